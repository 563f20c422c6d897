"""The metrics server over real sockets (RELIABILITY S01, S02, S08, S17, S18, S25)."""

from __future__ import annotations

import http.client
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from skate_telemetry import http_connection, metrics_server
from skate_telemetry.errors import MetricsBindError
from skate_telemetry.metrics import MetricsRegistry
from skate_telemetry.metrics_server import CONNECTIONS_MAX, RENDERS_PENDING_MAX, MetricsServer
from skate_telemetry.readings import build_readings

TOKEN = "5e" * 32
GOOD = {"Authorization": f"Bearer {TOKEN}"}


class Text:
    """Renders one word, when it is let."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.rendering = threading.Semaphore(0)
        self.error: Exception | None = None

    def render(self) -> bytes:
        self.rendering.release()
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return b"word\n"


@pytest.fixture
def text() -> Iterator[Text]:
    text = Text()
    yield text
    text.gate.set()


@pytest.fixture
def server(text: Text) -> Iterator[MetricsServer]:
    server = MetricsServer(text, "127.0.0.1", 0, TOKEN)
    yield server
    server.close()


def address_of(server: MetricsServer) -> tuple[str, int]:
    host, _, port = server.endpoint.rpartition(":")
    return host, int(port)


def ask(
    server: MetricsServer,
    path: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address_of(server), timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def send_raw(server: MetricsServer, data: bytes) -> bytes:
    """Everything the server answers until it closes."""
    with socket.create_connection(address_of(server), timeout=20) as raw:
        raw.sendall(data)
        received = b""
        try:
            while chunk := raw.recv(65536):
                received += chunk
        except ConnectionResetError:
            pass  # It closed with some of our bytes unread.
        return received


def test_metrics_right_token_gives_the_exposition() -> None:
    registry = MetricsRegistry()
    registry.add_source("build", lambda: build_readings("0.1.0"))
    server = MetricsServer(registry, "127.0.0.1", 0, TOKEN)
    try:
        connection = http.client.HTTPConnection(*address_of(server), timeout=20)
        connection.request("GET", "/metrics", headers=GOOD)
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert answer.headers["Connection"] == "close"
        assert b"skate_build_info{" in answer.read()
        connection.close()
    finally:
        server.close()


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}0",
        f"Bearer {TOKEN} ,",
        f"Bearer  {TOKEN}",
        f"Bearer {'0f' * 32}",
        "Bearer " + "x" * 7000,
    ],
)
@pytest.mark.parametrize(
    "path", ["/metrics", "/", "/other", "/metrics/", "//metrics", "/healthz/x"]
)
def test_any_route_without_the_token_is_unauthorized(
    server: MetricsServer, path: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    status, body = ask(server, path, headers=headers)
    assert status == 401
    assert b"word" not in body


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"]
)
def test_open_routes_are_exactly_get_and_head_of_healthz(
    server: MetricsServer, method: str
) -> None:
    assert ask(server, "/healthz", method)[0] == (200 if method in {"GET", "HEAD"} else 401)
    assert ask(server, "/metrics", method)[0] == 401


@pytest.mark.parametrize(("path", "status"), [("/", 404), ("/healthz/", 404), ("/metrics", 200)])
def test_routes_with_the_token_are_metrics_and_healthz(
    server: MetricsServer, path: str, status: int
) -> None:
    assert ask(server, path, headers=GOOD)[0] == status


def test_methods_other_than_get_and_head_are_not_allowed(server: MetricsServer) -> None:
    assert ask(server, "/metrics", "POST", GOOD, b"x" * 100)[0] == 405
    assert ask(server, "/metrics", "DELETE", GOOD)[0] == 405
    assert ask(server, "/metrics", "HEAD", GOOD) == (200, b"")
    assert ask(server, "/metrics?format=x", headers=GOOD) == (200, b"word\n")


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:9100", ""])
def test_foreign_host_header_is_forbidden_even_with_the_token(
    server: MetricsServer, host: str, path: str
) -> None:
    assert ask(server, path, headers={**GOOD, "Host": host})[0] == 403


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:9100", "scraper.internal"])
def test_own_names_and_addresses_as_host_are_served(text: Text, host: str) -> None:
    server = MetricsServer(text, "127.0.0.1", 0, TOKEN, allowed_hosts=["Scraper.Internal"])
    try:
        assert ask(server, "/metrics", headers={**GOOD, "Host": host})[0] == 200
    finally:
        server.close()


@pytest.mark.parametrize(
    "noise",
    [
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x80\x05.\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
)
def test_noise_is_answered_with_bad_request_only(server: MetricsServer, noise: bytes) -> None:
    assert send_raw(server, noise).startswith(b"HTTP/1.1 400 ")
    assert ask(server, "/healthz") == (200, b"ok\n")


def test_endless_header_is_cut_off(server: MetricsServer) -> None:
    answer = send_raw(server, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    assert ask(server, "/healthz") == (200, b"ok\n")


def test_request_in_single_bytes_is_read(server: MetricsServer) -> None:
    with socket.create_connection(address_of(server), timeout=20) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n":
            raw.sendall(bytes([byte]))
        assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_silent_connection_is_closed_after_its_time(
    monkeypatch: pytest.MonkeyPatch, text: Text
) -> None:
    monkeypatch.setattr(http_connection, "REQUEST_S_MAX", 0.05)
    server = MetricsServer(text, "127.0.0.1", 0, TOKEN)
    try:
        assert send_raw(server, b"GET /metr") == b""
    finally:
        server.close()


def test_connections_held_open_do_not_keep_a_scraper_out(server: MetricsServer) -> None:
    held = [socket.create_connection(address_of(server), timeout=20) for _ in range(100)]
    try:
        assert ask(server, "/metrics", headers=GOOD) == (200, b"word\n")
        still_open = 0
        for raw in held:
            raw.setblocking(False)
            try:
                raw.recv(1)
            except BlockingIOError:
                still_open += 1
            except ConnectionResetError:
                pass
        assert still_open <= CONNECTIONS_MAX
    finally:
        for raw in held:
            raw.close()


def test_slow_rendering_leaves_healthz_and_bounds_the_scrapes(
    server: MetricsServer, text: Text
) -> None:
    text.gate.clear()
    request = f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    scrapes = [
        socket.create_connection(address_of(server), timeout=20)
        for _ in range(RENDERS_PENDING_MAX + 1)
    ]
    try:
        for raw in scrapes:
            raw.sendall(request.encode())
        assert text.rendering.acquire(timeout=20)
        (refused,) = select.select(scrapes, [], [], 20)[0]  # the others wait for the gate
        assert refused.recv(65536).startswith(b"HTTP/1.1 503 ")
        assert ask(server, "/healthz") == (200, b"ok\n")
        text.gate.set()
        for raw in set(scrapes) - {refused}:
            assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")
    finally:
        for raw in scrapes:
            raw.close()


def test_failing_render_is_an_internal_error_and_the_server_goes_on(
    server: MetricsServer, text: Text, caplog: pytest.LogCaptureFixture
) -> None:
    text.error = RuntimeError("secret detail")
    status, body = ask(server, "/metrics", headers=GOOD)
    assert status == 500
    assert b"secret" not in body
    text.error = None
    assert ask(server, "/metrics", headers=GOOD)[0] == 200


def test_empty_token_is_refused(text: Text) -> None:
    with pytest.raises(ValueError, match="token"):
        MetricsServer(text, "127.0.0.1", 0, "")


@pytest.mark.parametrize("host", ["no such host.invalid", "203.0.113.1", "a" * 300])
def test_address_that_can_not_be_bound_raises(text: Text, host: str) -> None:
    with pytest.raises(MetricsBindError):
        MetricsServer(text, host, 0, TOKEN)


def test_port_in_use_raises(server: MetricsServer, text: Text) -> None:
    with pytest.raises(MetricsBindError, match="in use"):
        MetricsServer(text, *address_of(server), TOKEN)


def test_close_frees_the_port_and_ends_the_threads(text: Text) -> None:
    server = MetricsServer(text, "127.0.0.1", 0, TOKEN)
    held = socket.create_connection(address_of(server), timeout=20)
    assert ask(server, "/metrics", headers=GOOD)[0] == 200
    server.close()
    server.close()
    try:
        assert held.recv(1) == b""
    except ConnectionResetError:
        pass
    held.close()
    again = MetricsServer(text, *address_of(server), TOKEN)
    again.close()
    names = {thread.name for thread in threading.enumerate()}
    assert "skate-metrics" not in names


def test_limits_are_related_as_they_should() -> None:
    assert http_connection.REQUEST_S_MAX < http_connection.CONNECTION_S_MAX
    assert metrics_server.RENDERS_PENDING_MAX < CONNECTIONS_MAX
