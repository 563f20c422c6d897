"""What a control-plane call raises. No gRPC type leaves this library; these pickle without it.

``RpcError`` is the base: ``code`` is the name of a gRPC status code, so that a caller can branch on
``"NOT_FOUND"`` or ``"ALREADY_EXISTS"``. The cases that callers treat alike everywhere have classes.
"""

from __future__ import annotations

from skate_core_ids import SkateError
from skate_rpc.handshake import AuthenticationError


class RpcError(SkateError):
    """A call of another process failed. ``code`` is a gRPC status code's name."""

    def __init__(self, code: str, message: str, method: str = "", target: str = "") -> None:
        place = f"{method or 'RPC'}{f' at {target}' if target else ''}"
        super().__init__(f"{place} failed with {code}: {message}")
        self.code = code
        self.message = message
        self.method = method
        self.target = target

    def __reduce__(self) -> tuple[type[RpcError], tuple[str, str, str, str]]:
        return type(self), (self.code, self.message, self.method, self.target)


class RpcTimeoutError(RpcError, TimeoutError):
    """The other side did not answer within the deadline; whether it acted is not known."""


class RpcUnavailableError(RpcError):
    """The other side is not there, went away during the call, or this channel is closed.

    Calls that may be repeated have been, until their deadline.
    """


class RpcAuthenticationError(RpcError, AuthenticationError):
    """The server refused this process's token: it is another, or an earlier, cluster's."""


class BindError(SkateError):
    """A server can not listen on this endpoint; the message says why and what to do."""

    def __init__(self, endpoint: str, problem: str) -> None:
        super().__init__(f"Can not listen on {endpoint!r}: {problem}")
        self.endpoint = endpoint
        self.problem = problem

    def __reduce__(self) -> tuple[type[BindError], tuple[str, str]]:
        return type(self), (self.endpoint, self.problem)
