"""This process's line to its raylet: registration, leases, and calls for the GCS.

A worker or driver needs no gRPC: what is meant for the GCS goes to the raylet as a ``ControlCall``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from skate_core_ids import SkateError
from skate_rpc import node_protocol as node
from skate_rpc.event_loop import IoThread
from skate_rpc.node_messages import is_new, stamp
from skate_rpc.serials import Serials
from skate_rpc.stream import StreamClosedError, StreamConnection, connect_stream
from skate_worker.errors import GcsUnavailableError, LocalRayletDiedError, SkateSystemError

CALL_TIMEOUT_S = 60.0  # SURFACE 3.2: requests to the GCS
REGISTER_TIMEOUT_S = 30.0

R = TypeVar("R")

_encode = msgspec.msgpack.Encoder().encode


class ControlCallError(SkateError):
    """A control call was answered with an error. ``kind``: see ``ControlReply.error_kind``."""

    def __init__(self, method: str, kind: str, message: str) -> None:
        super().__init__(method, kind, message)
        self.method = method
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


class _Call:
    __slots__ = ("callback", "done", "reply")

    def __init__(self, callback: Callable[[node.ControlReply], None] | None) -> None:
        self.callback = callback
        self.done = threading.Event()
        self.reply: node.ControlReply | None = None


class NodeClient:
    """The stream to the raylet. ``handlers`` maps a message class to what it calls on the loop's
    thread.
    """

    def __init__(
        self,
        endpoint: str,
        token: bytes,
        loop: IoThread,
        handlers: dict[type[Any], Callable[[Any], None]],
        on_lost: Callable[[str], None],
    ) -> None:
        self._handlers = handlers
        self._handle_lost = on_lost
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count(1)
        self._serials = Serials()
        self._registered = threading.Event()
        self._registration: node.ProcessRegistered | None = None
        self._lost_reason = ""
        self._is_closing = False
        self._connection: StreamConnection[Any, Any] = connect_stream(
            endpoint,
            token,
            loop,
            incoming=node.FromRaylet,
            on_messages=self._on_messages,
            on_close=self._on_close,
        )

    def register(self, message: node.RegisterProcess) -> node.ProcessRegistered:
        """Make this process known; waits for the answer. Raises :class:`SkateSystemError`."""
        with contextlib.suppress(StreamClosedError):  # its end, with the reason, ends the wait too
            self._connection.send(message)
        if not self._registered.wait(REGISTER_TIMEOUT_S):
            raise SkateSystemError(
                f"The raylet did not answer within {REGISTER_TIMEOUT_S:g} s; see its log in the"
                " session directory."
            )
        registration = self._registration
        if registration is None:
            raise LocalRayletDiedError(self._lost_reason)
        if registration.error:
            raise SkateSystemError(registration.error)
        return registration

    def send(self, message: Any) -> None:
        """Send at once. Raises :class:`LocalRayletDiedError`."""
        stamp(message, self._serials)
        try:
            self._connection.send(message)
        except StreamClosedError:
            raise LocalRayletDiedError(self._lost_reason) from None

    def post(self, message: Any) -> None:
        """Send soon; a closed line is ignored, because its end is handled where it is noticed."""
        if not self._connection.is_closed:
            stamp(message, self._serials)
            try:
                self._connection.post(message)
            except StreamClosedError:
                return

    def call(
        self, method: str, body: Any, answer: type[R] | Any, timeout_s: float = CALL_TIMEOUT_S
    ) -> R:
        """Call the GCS through the raylet and wait.

        Raises :class:`ControlCallError`, :class:`LocalRayletDiedError` or
        :class:`SkateSystemError` (no answer in time). Never on the loop's thread.
        """
        call = self._start(method, body, None)
        if not call.done.wait(timeout_s):
            raise SkateSystemError(
                f"The control call {method} was not answered within {timeout_s:g} s."
            )
        reply = call.reply
        if reply is None:
            raise LocalRayletDiedError(self._lost_reason)
        if reply.error:
            if reply.error_kind == "unavailable":
                raise GcsUnavailableError(reply.error)
            raise ControlCallError(method, reply.error_kind, reply.error)
        result: R = msgspec.msgpack.decode(reply.body, type=answer)
        return result

    def call_soon(
        self, method: str, body: Any, callback: Callable[[node.ControlReply], None]
    ) -> None:
        """Call without waiting; ``callback`` gets the reply on the loop's thread."""
        self._start(method, body, callback)

    def close(self) -> None:
        """Hang up: for a driver, the end of its job."""
        self._is_closing = True
        self._connection.close()

    def _start(
        self, method: str, body: Any, callback: Callable[[node.ControlReply], None] | None
    ) -> _Call:
        number = next(self._numbers)
        call = self._calls[number] = _Call(callback)
        self.send(node.ControlCall(number, method, _encode(body)))
        return call

    def _on_messages(self, connection: StreamConnection[Any, Any], batch: list[Any]) -> None:
        for message in batch:
            kind = type(message)
            if not is_new(message, self._serials):
                continue
            if kind is node.ControlReply:
                call = self._calls.pop(message.call_id, None)
                if call is not None:
                    self._finish(call, message)
            elif kind is node.ProcessRegistered:
                self._registration = message
                self._registered.set()
            else:
                self._handlers[kind](message)

    def _finish(self, call: _Call, reply: node.ControlReply | None) -> None:
        call.reply = reply
        call.done.set()
        if call.callback is not None and reply is not None:
            call.callback(reply)

    def _on_close(self, connection: StreamConnection[Any, Any], reason: str) -> None:
        self._lost_reason = f"process {os.getpid()} lost its raylet: {reason}"
        self._registered.set()
        for number in list(self._calls):
            call = self._calls.pop(number)
            if call.callback is not None:
                reply = node.ControlReply(number, error=self._lost_reason, error_kind="unavailable")
                self._finish(call, reply)
            else:
                self._finish(call, None)
        if not self._is_closing:
            self._handle_lost(reason)
