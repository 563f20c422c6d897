"""Just enough HTTP/1.x to answer a scrape: the head of a request in, the bytes of a response out.

Pure: no sockets. It is strict where leniency has been exploited elsewhere: one Host, at most one
Authorization, no folded lines, no body is read, and each connection carries one request.

Source: RFC 9112, sections 3 (request line, Host) and 5 (header fields).
"""

from __future__ import annotations

import http
import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass

HEAD_BYTES_MAX = 8 * 1024
HEAD_END = b"\r\n\r\n"

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,2048}) HTTP/1\.[01]")
# The spaces around a value are stripped afterwards: a pattern for them would backtrack.
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}):([\x20-\x7e\t]*)")
_SINGLE_FIELDS = ("host", "authorization")


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request."""

    method: str
    path: str
    """Without the query."""
    host: str
    """The Host header's name or address, lower case, without port; empty when the header is
    missing."""
    authorization: str


class BadRequestError(Exception):
    """The peer did not send a request that this server reads; ``status`` is the answer."""

    def __init__(self, status: http.HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


def parse_head(head: bytes) -> Request:
    """Read a request's head, up to and without the empty line. Raises :class:`BadRequestError`."""
    line, *fields = head.split(b"\r\n")
    matched = _REQUEST_LINE.fullmatch(line)
    if matched is None:
        raise BadRequestError(http.HTTPStatus.BAD_REQUEST)
    values: dict[str, str] = {}
    for field in fields:
        parts = _FIELD.fullmatch(field)
        if parts is None:
            raise BadRequestError(http.HTTPStatus.BAD_REQUEST)
        name = parts[1].decode("ascii").lower()
        if name in values and name in _SINGLE_FIELDS:
            raise BadRequestError(http.HTTPStatus.BAD_REQUEST)
        values[name] = parts[2].strip(b" \t").decode("ascii")
    return Request(
        method=matched[1].decode("ascii"),
        path=matched[2].decode("ascii").partition("?")[0],
        host=host_name(values.get("host", "")),
        authorization=values.get("authorization", ""),
    )


def host_name(host: str) -> str:
    """The name or address of ``name``, ``name:port``, ``1.2.3.4:port`` or ``[::1]:port``."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def is_host_allowed(host: str, allowed: Collection[str]) -> bool:
    """Whether a request for ``host`` is meant for this server.

    A page that a browser loaded from elsewhere reaches a local server by making its own domain
    point here (DNS rebinding), and then the request names that domain. An address can not be
    rebound.
    """
    if host in allowed:
        return True
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def response(
    status: http.HTTPStatus,
    body: bytes = b"",
    content_type: str = "text/plain; charset=utf-8",
    *,
    headers: tuple[str, ...] = (),
    is_head: bool = False,
) -> bytes:
    """A complete response, after which the connection closes."""
    body = body or f"{status.phrase}\n".encode()
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        *headers,
        "",
        "",
    )
    return "\r\n".join(lines).encode("ascii") + (b"" if is_head else body)
