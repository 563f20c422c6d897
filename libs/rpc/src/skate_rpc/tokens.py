"""The cluster token: one secret that every process of a cluster knows, and the file that holds it.

Who can read the token can run code in the cluster, so the file is created new (never through a
link that somebody left there) with mode 0600, and is refused when another user could have read or
written it. No error text of this module contains a token. Standard library only.

Source: RELIABILITY.md, security rule (d) and test S21.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat

from skate_core_ids import SkateError

TOKEN_BYTES = 32
TOKEN_CHARS_MIN = 16  # a given token may be shorter than a generated one, but not guessable
TOKEN_CHARS_MAX = 512  # it travels in one gRPC metadata entry, of which 8 KiB are allowed in total
FILE_MODE = 0o600

assert TOKEN_CHARS_MIN <= 2 * TOKEN_BYTES <= TOKEN_CHARS_MAX


class TokenError(SkateError):
    """A token is unusable: too short, too long, or with characters that no header can carry."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"The cluster token {problem}. Use {TOKEN_CHARS_MIN} to {TOKEN_CHARS_MAX} visible ASCII"
            " characters, for instance the output of: openssl rand -hex 32"
        )
        self.problem = problem

    def __reduce__(self) -> tuple[type[TokenError], tuple[str]]:
        return type(self), (self.problem,)


class TokenFileError(SkateError):
    """A token file can not be trusted or used; the message says what to do about it."""

    def __init__(self, path: str, problem: str, remedy: str) -> None:
        super().__init__(f"Token file {path}: {problem}. {remedy}")
        self.path = path
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[TokenFileError], tuple[str, str, str]]:
        return type(self), (self.path, self.problem, self.remedy)


def generate_token() -> str:
    """A new token: 32 random bytes as 64 hex digits."""
    return secrets.token_hex(TOKEN_BYTES)


def check_token(token: str) -> str:
    """Return ``token`` unchanged. Raises :class:`TokenError` when it can not serve as one."""
    if len(token) < TOKEN_CHARS_MIN:
        raise TokenError(f"is too short ({len(token)} characters)")
    if len(token) > TOKEN_CHARS_MAX:
        raise TokenError(f"is too long ({len(token)} characters)")
    if not all("!" <= character <= "~" for character in token):
        raise TokenError("has a space, a control character or a character outside ASCII")
    return token


def tokens_match(offered: str, expected: str) -> bool:
    """Compare without telling by the time it takes how much of the token was right."""
    return hmac.compare_digest(offered.encode("utf-8", "surrogatepass"), expected.encode("utf-8"))


def write_token_file(path: str, token: str) -> None:
    """Create ``path`` with mode 0600 and the token in it.

    Raises:
        TokenError: the token is unusable.
        TokenFileError: something is already there (a link counts), or it can not be written.
    """
    check_token(token)
    try:
        # With O_EXCL a link at the path is an error too, wherever it points.
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE
        )
    except FileExistsError:
        raise TokenFileError(
            path,
            "already exists and is left as it is",
            "Remove it after checking whose it is, or read it with read_token_file().",
        ) from None
    except OSError as error:
        raise TokenFileError(
            path, f"can not be created ({error.strerror})", "Check the folder and its permissions."
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, FILE_MODE)  # whatever the umask took away
            file.write(token.encode("ascii") + b"\n")
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        with contextlib.suppress(
            OSError
        ):  # Half a token must not stay; the first error is the news.
            os.unlink(path)
        raise TokenFileError(
            path, f"can not be written ({error.strerror})", "Check that the disk is not full."
        ) from error


def read_token_file(path: str) -> str:
    """The token in ``path``. A last newline is not part of it.

    Raises:
        TokenFileError: missing, a link or not a regular file, owned by another user, open to the
            group or others, too large, or without a usable token.
    """
    try:
        # O_NONBLOCK: opening a FIFO that somebody put there must not hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise TokenFileError(
            path, "does not exist", "Is the cluster running, and is it this user's?"
        ) from None
    except OSError as error:
        problem = (
            "is a symbolic link"
            if os.path.islink(path)
            else f"can not be opened ({error.strerror})"
        )
        raise TokenFileError(
            path, problem, "Give the path of the token file itself, readable by this user."
        ) from error
    try:
        _check_status(path, os.fstat(descriptor))
        content = os.read(descriptor, TOKEN_CHARS_MAX + 2)
    finally:
        os.close(descriptor)
    try:
        return check_token(content.decode("ascii").removesuffix("\n").removesuffix("\r"))
    except (UnicodeDecodeError, TokenError) as error:
        problem = error.problem if isinstance(error, TokenError) else "is not ASCII"
        raise TokenFileError(
            path,
            f"holds no usable token: it {problem}",
            "Write a token of 64 hex digits into it, on one line.",
        ) from None


def _check_status(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise TokenFileError(path, "is not a regular file", "Give the path of a token file.")
    if status.st_uid != os.geteuid():
        raise TokenFileError(
            path,
            f"belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}",
            "Use a token file of your own; a token from another user's file is not trusted.",
        )
    if status.st_mode & 0o077:
        raise TokenFileError(
            path,
            f"may be read or written by others (mode {stat.S_IMODE(status.st_mode):04o})",
            f"Others may know the token already: make a new one, or run chmod 600 {path}",
        )
    if status.st_size > TOKEN_CHARS_MAX + 2:
        raise TokenFileError(
            path, f"is too large ({status.st_size} bytes)", "Give the path of a token file."
        )
