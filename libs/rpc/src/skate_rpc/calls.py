"""How a typed client makes a call: one deadline for all attempts, retries, typed errors.

A call that ``methods.METHODS`` marks as repeatable is sent again while the other side is
unavailable (down, restarting, or gone during the call), after a jittered, exponentially growing
pause, until its deadline. Everything else fails at once, because the other side answered.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc
import grpc.aio

from skate_rpc.errors import (
    RpcAuthenticationError,
    RpcError,
    RpcTimeoutError,
    RpcUnavailableError,
)
from skate_rpc.methods import DEFAULT_DEADLINE_S, METHODS, Method
from skate_rpc.repeats import Repeat

WRITE_FAILED = "Internal error from Core"  # gRPC's words

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")
_Reply_co = TypeVar("_Reply_co", covariant=True)


class _Messages(Protocol[_Reply_co]):
    """A call under way that answers with a stream."""

    def __aiter__(self) -> AsyncIterator[_Reply_co]: ...

    def cancel(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Pauses between attempts: ``first_s``, doubled each time up to ``max_s``, times 0.5 to 1."""

    first_s: float = 0.05
    """About the time in which a restarting process binds its socket again."""
    max_s: float = 1.0
    """Long enough that 10 000 nodes do not trample a GCS that comes back, short against a
    deadline."""

    def pause_s(self, attempt: int) -> float:
        """The pause after the ``attempt``-th attempt, counted from 1."""
        exponent = min(attempt - 1, 32)
        return min(self.first_s * 2.0**exponent, self.max_s) * random.uniform(0.5, 1.0)


class Caller:
    """Makes calls over one channel for the clients of all its services."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        target: str = "",
        retry: RetryPolicy | None = None,
        patience_s: float = DEFAULT_DEADLINE_S,
    ) -> None:
        """``target`` is named in errors; ``patience_s`` stands for the table's default deadline."""
        self._patience_s = patience_s
        self.channel = channel
        self.target = target
        self._retry = retry or RetryPolicy()

    def deadline_s(self, method: Method, timeout_s: float | None) -> float:
        """How long a call may take, all attempts together."""
        if timeout_s is not None:
            return timeout_s
        if method.deadline_s is None or method.deadline_s == DEFAULT_DEADLINE_S:
            return self._patience_s
        return method.deadline_s

    async def unary(
        self,
        name: str,
        call: grpc.aio.UnaryUnaryMultiCallable[_Request, _Reply],
        request: _Request,
        timeout_s: float | None,
        *,
        may_repeat: bool | None = None,
    ) -> _Reply:
        """Make the call ``name`` of ``METHODS``.

        ``timeout_s`` bounds all attempts together; None takes the table's. ``may_repeat`` decides
        for a method that the table calls conditional.

        Raises:
            RpcTimeoutError: no answer within the deadline.
            RpcUnavailableError: the other side is away, and stayed away until the deadline if the
                call may be repeated.
            RpcAuthenticationError: the token was refused.
            RpcError: any other status.
        """
        method = METHODS[name]
        if method.repeat is not Repeat.CONDITIONAL:
            may_repeat = True
        loop = asyncio.get_running_loop()
        total_s = self.deadline_s(method, timeout_s)
        deadline = loop.time() + total_s
        attempt = 0
        while True:
            attempt += 1
            try:
                return await call(request, timeout=max(deadline - loop.time(), 0.001))
            except grpc.aio.AioRpcError as error:
                failure = self._typed(error, method)
            except (grpc.aio.UsageError, asyncio.CancelledError) as error:
                raise self._closed(error, method) from None
            if not isinstance(failure, RpcUnavailableError) or not may_repeat:
                raise failure
            pause_s = self._retry.pause_s(attempt)
            if loop.time() + pause_s >= deadline:
                raise RpcUnavailableError(
                    failure.code,
                    f"{failure.message} ({attempt} attempts in {total_s:g} s)",
                    method.full_name,
                    self.target,
                )
            await asyncio.sleep(pause_s)

    async def stream(
        self,
        name: str,
        call: Callable[[_Request], _Messages[_Reply]],
        request: _Request,
    ) -> AsyncGenerator[_Reply, None]:
        """Messages of a server stream until it breaks; it does not end without an error.

        ``request`` is one message or, for a stream in both directions, an asynchronous iterator.

        Close the iterator (``contextlib.aclosing``) to end the call. Raises as :meth:`unary`,
        without retries: only the caller knows what a new stream means to it.
        """
        method = METHODS[name]
        try:
            messages = call(request)
        except grpc.aio.UsageError as error:
            raise self._closed(error, method) from None
        try:
            async for message in messages:
                yield message
        except grpc.aio.AioRpcError as error:
            raise self._typed(error, method) from None
        except (grpc.aio.UsageError, asyncio.CancelledError) as error:
            raise self._closed(error, method) from None
        finally:
            messages.cancel()
        raise RpcUnavailableError(
            "UNAVAILABLE", "the server ended the stream", method.full_name, self.target
        )

    def _typed(self, error: grpc.aio.AioRpcError, method: Method) -> RpcError:
        code = error.code()
        kind: type[RpcError]
        match code:
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                kind = RpcTimeoutError
            # A server that stops cancels its open calls; our own cancellation is CancelledError.
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
                kind = RpcUnavailableError
            # A message was being sent on a call that the server had just ended. gRPC then has lost
            # the server's reason; who calls again hears it.
            case grpc.StatusCode.INTERNAL if error.details() == WRITE_FAILED:
                kind = RpcUnavailableError
            case grpc.StatusCode.UNAUTHENTICATED:
                kind = RpcAuthenticationError
            case _:
                kind = RpcError
        return kind(code.name, error.details() or "no details", method.full_name, self.target)

    def _closed(self, error: BaseException, method: Method) -> BaseException:
        """Closing a channel cancels its calls: that is news for them, not a cancelled task."""
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
            return error
        return RpcUnavailableError(
            "UNAVAILABLE", "this client's channel is closed", method.full_name, self.target
        )
