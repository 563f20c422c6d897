"""Which endpoints a server takes, and which of them others can reach (RELIABILITY S25)."""

from __future__ import annotations

import pytest

from skate_rpc.endpoints import TcpEndpoint, UnixEndpoint, resolve_bind_endpoint
from skate_rpc.errors import BindError


@pytest.mark.parametrize(
    ("endpoint", "bound"),
    [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("127.1.2.3:80", "127.1.2.3:80"),
        ("127.1:80", "127.0.0.1:80"),
        ("[::1]:80", "[::1]:80"),
        ("[::ffff:127.0.0.1]:80", "[::ffff:127.0.0.1]:80"),
    ],
)
def test_resolve_loopback_spelling_is_loopback(endpoint: str, bound: str) -> None:
    resolved = resolve_bind_endpoint(endpoint)
    assert isinstance(resolved, TcpEndpoint)
    assert resolved.is_loopback
    assert str(resolved) == bound


def test_resolve_host_name_gives_its_address() -> None:
    resolved = resolve_bind_endpoint("localhost:80")
    assert isinstance(resolved, TcpEndpoint)
    assert resolved.is_loopback
    assert "localhost" not in str(resolved)


@pytest.mark.parametrize(
    "endpoint",
    [
        "0.0.0.0:0",
        "0:0",
        "0x0:0",
        "00.00.00.00:0",
        "0.0:0",
        "[::]:0",
        "[0:0:0:0:0:0:0:0]:0",
        "[::0]:0",
        "[::ffff:0.0.0.0]:0",
        "10.0.0.1:0",
        "192.168.1.1:0",
        "1.2.3.4:0",
        "16909060:0",
        "0x01020304:0",
        "[2001:db8::1]:0",
        "[fe80::1]:0",
        "[::ffff:10.0.0.1]:0",
        "255.255.255.255:0",
        "224.0.0.1:0",
        "128.0.0.1:0",
    ],
)
def test_resolve_other_address_is_not_loopback(endpoint: str) -> None:
    resolved = resolve_bind_endpoint(endpoint)
    assert isinstance(resolved, TcpEndpoint)
    assert not resolved.is_loopback


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        ":",
        ":80",
        "*:80",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:-1",
        "127.0.0.1:65536",
        "127.0.0.1:٣",
        "::1:80",
        "ipv4:127.0.0.1:80",
        "dns:///localhost:80",
        "tcp:127.0.0.1:80",
        "vsock:1:2",
        "unix-abstract:gcs",
        "unix:relative.sock",
        "unix:",
        "unix:///tmp/x\0y",
        "unix:/" + "x" * 103,
        "no such host.invalid:80",
        "a" * 300 + ":80",
    ],
)
def test_resolve_malformed_endpoint_raises_bind_error(endpoint: str) -> None:
    with pytest.raises(BindError):
        resolve_bind_endpoint(endpoint)


def test_resolve_unix_path_is_kept() -> None:
    assert resolve_bind_endpoint("unix:/run/gcs.sock") == UnixEndpoint("/run/gcs.sock")
    assert str(UnixEndpoint("/run/gcs.sock")) == "unix:/run/gcs.sock"
