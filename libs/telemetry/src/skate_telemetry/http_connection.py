"""One connection of the metrics server: one request in, one response out, within a bounded time."""

from __future__ import annotations

import asyncio
import http
from typing import Protocol

from skate_telemetry.http_request import (
    HEAD_BYTES_MAX,
    HEAD_END,
    BadRequestError,
    Request,
    parse_head,
    response,
)

REQUEST_S_MAX = 5.0
"""From the connection to the end of the request's head."""
CONNECTION_S_MAX = 30.0
"""From the connection to the last byte of the response; Prometheus itself gives up after 10 s."""

assert REQUEST_S_MAX < CONNECTION_S_MAX


class Owner(Protocol):
    """Who decides about connections and requests; called on the loop's thread."""

    def admit(self, connection: HttpConnection) -> None:
        """A connection was made."""

    def discard(self, connection: HttpConnection) -> None:
        """A connection has ended."""

    def answer(self, request: Request, connection: HttpConnection) -> None:
        """Call the connection's ``finish``, now or later."""


class HttpConnection(asyncio.Protocol):
    """Reads a request's head, asks the owner for the answer, closes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner) -> None:
        self._loop = loop
        self._owner = owner
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.is_answering = False
        """The request is complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._deadline = self._loop.call_later(REQUEST_S_MAX, self.abort)
        self._owner.admit(self)

    def data_received(self, data: bytes) -> None:
        """Read until the head is complete; what follows it is left alone."""
        if self.is_answering:
            return
        self._received += data
        head, end, _ = self._received.partition(HEAD_END)
        if len(head) > HEAD_BYTES_MAX:
            self._begin_answer()
            self.finish(response(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        elif end:
            self._begin_answer()
            try:
                request = parse_head(bytes(head))
            except BadRequestError as error:
                self.finish(response(error.status))
            else:
                self._owner.answer(request, self)

    def eof_received(self) -> bool:
        """Keep the connection for the answer when the peer has only finished sending."""
        return self.is_answering

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._transport = None
        self._owner.discard(self)

    def finish(self, answer: bytes) -> None:
        """Send the response and close; nothing happens when the peer has gone."""
        if self._transport is not None:
            self._transport.write(answer)
            self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is on its way."""
        if self._transport is not None:
            self._transport.abort()

    def _begin_answer(self) -> None:
        self.is_answering = True
        self._received.clear()
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(CONNECTION_S_MAX - REQUEST_S_MAX, self.abort)
