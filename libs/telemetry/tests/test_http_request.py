"""Reading the head of a request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate_telemetry.http_request import (
    BadRequestError,
    Request,
    host_name,
    is_host_allowed,
    parse_head,
)


def test_parse_head_ordinary_request_is_read() -> None:
    head = b"GET /metrics?x=1 HTTP/1.1\r\nHost: Node:9100\r\nAuthorization:  Bearer t \r\nX: \t"
    assert parse_head(head) == Request("GET", "/metrics", "node", "Bearer t")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET",
        b"GET /",
        b"GET / HTTP/2.0",
        b"get / HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET http://evil/metrics HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET /\x00 HTTP/1.1",
        b"GET /" + b"x" * 3000 + b" HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\nHost",
        b"GET / HTTP/1.1\r\nHost : a",
        b"GET / HTTP/1.1\r\n folded: a",
        b"GET / HTTP/1.1\r\nHost: a\r\n b",
        b"GET / HTTP/1.1\r\nHost: a\r\nhost: b",
        b"GET / HTTP/1.1\r\nAuthorization: a\r\nAUTHORIZATION: a",
        b"GET / HTTP/1.1\r\nX: \x00",
        b"GET / HTTP/1.1\r\nX: a\nHost: b",
        b"GET / HTTP/1.1\nHost: a",
        # A pattern that backtracks takes minutes over these, and the test's time limit shows it.
        b"GET / HTTP/1.1\r\nX: " + b" " * 8_000 + b"\x00",
        b"GET / HTTP/1.1\r\nX: " + b"a " * 4_000 + b"\x00",
        b"GET / HTTP/1.1\r\n" + b"x" * 8_000,
    ],
)
def test_parse_head_odd_request_is_refused(head: bytes) -> None:
    with pytest.raises(BadRequestError):
        parse_head(head)


@given(st.binary(max_size=300))
def test_parse_head_any_bytes_are_read_or_refused(data: bytes) -> None:
    for head in (data, b"GET /metrics HTTP/1.1\r\n" + data, b"GET / HTTP/1.1\r\nHost: " + data):
        try:
            parse_head(head)
        except BadRequestError:
            pass


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("Node", "node"),
        ("node:9100", "node"),
        ("10.0.0.1:9100", "10.0.0.1"),
        ("[::1]:9100", "::1"),
        ("[::1]", "::1"),
        ("", ""),
    ],
)
def test_host_name_leaves_the_port_out(header: str, host: str) -> None:
    assert host_name(header) == host


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "10.0.0.1", "fe80::1%eth0"])
def test_host_own_name_or_address_is_allowed(host: str) -> None:
    assert is_host_allowed(host, {"localhost"})


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "127.1", "0x7f000001"],
)
def test_host_other_name_is_not_allowed(host: str) -> None:
    assert not is_host_allowed(host, {"localhost"})
