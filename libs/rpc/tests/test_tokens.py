"""The cluster token and its file (RELIABILITY S02, S20, S21)."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path

import pytest

from skate_rpc.tokens import (
    TokenError,
    TokenFileError,
    check_token,
    generate_token,
    read_token_file,
    tokens_match,
    write_token_file,
)

TOKEN = "ab" * 32


def write_raw(path: Path, content: bytes, mode: int = 0o600) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def test_generate_token_gives_64_hex_digits_that_differ() -> None:
    tokens = {generate_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) == 64 and int(token, 16) for token in tokens)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "hunter2",
        "x" * 513,
        "a" * 20 + " " + "b" * 20,
        "a" * 30 + "\n",
        "ä" * 30,
        "a" * 30 + "\0",
    ],
)
def test_check_token_unusable_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(TokenError) as caught:
        check_token(token)
    assert len(token) < 5 or token not in str(caught.value)


@pytest.mark.parametrize(
    ("offered", "matches"),
    [(TOKEN, True), (TOKEN[:-1], False), (TOKEN + "0", False), ("", False), ("ä\ud800\0", False)],
)
def test_tokens_match_only_the_same(offered: str, matches: bool) -> None:
    assert tokens_match(offered, TOKEN) is matches


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277])
def test_token_file_round_trip_has_mode_0600_under_any_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "token"
    before = os.umask(umask)
    try:
        write_token_file(str(path), TOKEN)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_token_file(str(path)) == TOKEN


def test_write_token_file_existing_file_is_left_alone(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "token", b"precious")
    with pytest.raises(TokenFileError, match="already exists"):
        write_token_file(path, TOKEN)
    assert Path(path).read_bytes() == b"precious"


@pytest.mark.parametrize("is_dangling", [False, True])
def test_write_token_file_symlink_target_is_not_touched(tmp_path: Path, is_dangling: bool) -> None:
    victim = tmp_path / "victim"
    if not is_dangling:
        victim.write_bytes(b"precious")
    (tmp_path / "token").symlink_to(victim)
    with pytest.raises(TokenFileError, match="already exists"):
        write_token_file(str(tmp_path / "token"), TOKEN)
    assert victim.exists() is not is_dangling
    assert is_dangling or victim.read_bytes() == b"precious"


def test_write_token_file_without_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="can not be created"):
        write_token_file(str(tmp_path / "missing" / "token"), TOKEN)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o620, 0o601])
def test_read_token_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = write_raw(tmp_path / "token", TOKEN.encode(), mode)
    with pytest.raises(TokenFileError, match="chmod 600") as caught:
        read_token_file(path)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "too short"),
        (b"\n", "too short"),
        (b"x" * 1_000_000, "too large"),
        (b"x" * 513, "too long"),
        (b"\xff" * 64, "not ASCII"),
        (TOKEN.encode() + b"\n\n", "a space, a control character"),
    ],
)
def test_read_token_file_without_usable_token_is_refused(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    with pytest.raises(TokenFileError, match=problem):
        read_token_file(write_raw(tmp_path / "token", content))


def test_read_token_file_symlink_is_refused(tmp_path: Path) -> None:
    write_raw(tmp_path / "real", TOKEN.encode())
    (tmp_path / "token").symlink_to(tmp_path / "real")
    with pytest.raises(TokenFileError, match="is a symbolic link"):
        read_token_file(str(tmp_path / "token"))


def test_read_token_file_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token", 0o600)
    with pytest.raises(TokenFileError, match="not a regular file"):
        read_token_file(str(tmp_path / "token"))


def test_read_token_file_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="not a regular file"):
        read_token_file(str(tmp_path))


def test_read_token_file_missing_says_what_to_check(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="Is the cluster running"):
        read_token_file(str(tmp_path / "token"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_read_token_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "token", TOKEN.encode())
    os.chown(path, 65534, 65534)
    with pytest.raises(TokenFileError, match="belongs to user 65534"):
        read_token_file(path)


@pytest.mark.parametrize(
    "error", [TokenError("is too short"), TokenFileError("/x/token", "is empty", "Fill it.")]
)
def test_token_errors_survive_pickling(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
