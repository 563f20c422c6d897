"""Who is let in: the first thing that any request meets.

Every route but ``/healthz`` wants the cluster's token (``Authorization: Bearer <token>``). The
``Host`` header must be one of the server's own names, and ``Origin``, which browsers send, its own
origin: so a page of another site can neither be made to call the server nor point a name of its own
at it. Source: RELIABILITY S17, S18; SURFACE row Y1.
"""

from __future__ import annotations

import hmac
import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS: Final = frozenset({"/healthz"})
POLICY_VIOLATION: Final = 1008  # RFC 6455, section 7.4.1


class Guard:
    """ASGI middleware. ``hosts``: the exact values of ``Host`` under which the server answers."""

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str]) -> None:
        self._app = app
        self._wanted = f"Bearer {token}".encode()
        self._hosts = hosts
        self._origins = frozenset(f"http://{host}" for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it before anything else looks at it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        problem = self._problem_with(scope)
        if problem is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()  # the request to open it
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": problem[1]})
        else:
            await _refuse(send, *problem)

    def _problem_with(self, scope: Scope) -> tuple[int, str] | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = [value.decode("latin-1").lower() for value in headers.get(b"host", [])]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return 403, "The Host header names another server than this one."
        origins = [value.decode("latin-1").lower() for value in headers.get(b"origin", [])]
        if any(origin not in self._origins for origin in origins):
            return 403, "Requests of pages from other sites are refused."
        if scope["path"] in OPEN_PATHS:
            return None
        given = headers.get(b"authorization", [])
        if len(given) != 1 or not hmac.compare_digest(given[0], self._wanted):
            return 401, "Send the cluster's token as 'Authorization: Bearer <token>'."
        return None


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
