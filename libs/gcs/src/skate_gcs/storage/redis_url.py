"""What a ``redis`` storage setting says, checked before anything is opened.

::

    redis://[user[:password]@]host[:port][/db][?prefix=NAME&password_file=/path]
    rediss://...       the same over TLS; ?ca_file=/path&cert_file=/path&key_file=/path
    redis+unix:///path/to/socket[?db=0&prefix=NAME...]

A password does not belong into a command line: give it by ``password_file`` (its first line).
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from skate_gcs.errors import GcsConfigError

SCHEMES: Final = ("redis", "rediss", "redis+unix")
DEFAULT_PORT: Final = 6379
DEFAULT_PREFIX: Final = "skate"
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_FILES: Final = {"ca_file": "ssl_ca_certs", "cert_file": "ssl_certfile", "key_file": "ssl_keyfile"}


class RedisAddress(msgspec.Struct, frozen=True):
    """Where a cluster's tables are."""

    where: str  # for people: the setting without its secrets
    prefix: str  # of all keys
    options: dict[str, Any]  # of ``redis.Redis``, but for the password's file
    password_file: str = ""

    def read_password(self) -> str | None:
        """The password; read anew at each connection, so that it can be changed.

        Raises:
            OSError: the file can not be read.
        """
        if not self.password_file:
            password: str | None = self.options.get("password")
            return password
        with open(self.password_file, encoding="utf-8") as file:
            return file.readline().rstrip("\n")


def is_redis(setting: str) -> bool:
    """Whether the setting names this back end."""
    return setting.partition("://")[0] in SCHEMES and "://" in setting


def parse_redis_url(setting: str) -> RedisAddress:
    """Take a setting apart.

    Raises:
        GcsConfigError: it is malformed; its secrets are not in the message.
    """
    url = urlsplit(setting)
    query = {name: values[-1] for name, values in parse_qs(url.query).items()}
    prefix = query.pop("prefix", DEFAULT_PREFIX)
    if not _PREFIX.fullmatch(prefix):
        raise GcsConfigError(
            "storage", f"prefix={prefix!r} may have letters, digits, and any of _.:- only."
        )
    password_file = query.pop("password_file", "")
    options: dict[str, Any] = {}
    if url.username:
        options["username"] = unquote(url.username)
    if url.password:
        options["password"] = unquote(url.password)
    if url.scheme == "redis+unix":
        if not url.path.startswith("/") or url.netloc.rpartition("@")[2]:
            raise GcsConfigError("storage", "a socket is given as redis+unix:///path/to/socket.")
        options["unix_socket_path"] = url.path
        options["db"] = _number("db", query.pop("db", "0"))
        place = url.path
    else:
        try:
            port = url.port or DEFAULT_PORT
        except ValueError:
            raise GcsConfigError("storage", "the port is no number below 65536.") from None
        if not url.hostname:
            raise GcsConfigError("storage", f"a host is missing: {url.scheme}://host:port/db.")
        options |= {"host": url.hostname, "port": port, "db": _number("db", url.path[1:] or "0")}
        place = f"{url.hostname}:{port}"
    if url.scheme == "rediss":
        options["ssl"] = True
        for name, option in _FILES.items():
            if name in query:
                options[option] = query.pop(name)
    if query:
        names = ", ".join(sorted(query))
        raise GcsConfigError("storage", f"{url.scheme}:// has no parameter {names}.")
    where = f"{url.scheme}://{place}/{options['db']} (prefix {prefix})"
    return RedisAddress(where, prefix, options, password_file)


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise GcsConfigError("storage", f"{name} is a number, got {text!r}.")
    return int(text)
