"""Endpoints of gRPC servers: ``unix:/path`` or ``host:port``, and who could reach them.

A name is resolved once, here, and the address is what the server binds: what was checked for being
loopback is then what is listened on, whatever the name means later. Spellings that gRPC would
interpret on its own (``ipv4:…``, ``dns:///…``, ``unix-abstract:…``, ``*``) are refused.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from skate_rpc.errors import BindError

UNIX_PREFIX = "unix:"
UNIX_PATH_BYTES_MAX = 103  # sun_path holds 108 on Linux and 104 on macOS, with the final NUL


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """A socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"{UNIX_PREFIX}{self.path}"


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """A numeric address and a port; port 0 asks for a free one."""

    address: str
    port: int
    is_loopback: bool

    def __str__(self) -> str:
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )


def resolve_bind_endpoint(endpoint: str) -> UnixEndpoint | TcpEndpoint:
    """What a server would listen on. Raises :class:`BindError` for an unsupported spelling."""
    if endpoint.startswith(UNIX_PREFIX):
        return _unix_endpoint(endpoint)
    host, separator, port_text = endpoint.rpartition(":")
    if not separator or not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65535:
        raise BindError(endpoint, "give it as unix:/path or host:port.")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise BindError(endpoint, "an IPv6 address goes in brackets, as in [::1]:6379.")
    if not host or host == "*":
        raise BindError(endpoint, "name the host; 0.0.0.0 or [::] stands for every interface.")
    return _tcp_endpoint(endpoint, host, int(port_text))


def _unix_endpoint(endpoint: str) -> UnixEndpoint:
    path = endpoint.removeprefix(UNIX_PREFIX)
    if not path.startswith("/") or "\0" in path:
        raise BindError(
            endpoint, "the path of a unix socket must be absolute, as in unix:/run/gcs.sock."
        )
    if len(path.encode()) > UNIX_PATH_BYTES_MAX:
        raise BindError(
            endpoint,
            f"the path is longer than the {UNIX_PATH_BYTES_MAX} bytes that a unix socket may have;"
            " set SKATE_TMPDIR to a shorter folder.",
        )
    return UnixEndpoint(path)


def _tcp_endpoint(endpoint: str, host: str, port: int) -> TcpEndpoint:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise BindError(endpoint, f"the host {host!r} can not be resolved ({error}).") from error
    address = str(found[0][4][0])
    return TcpEndpoint(address, port, _is_loopback(address))


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.is_loopback
    return parsed.is_loopback
