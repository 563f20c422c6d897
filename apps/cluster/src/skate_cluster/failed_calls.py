"""What a command says when the cluster does not answer it: one sentence with the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from skate_cluster.exit_codes import FAILED, TIMED_OUT, UNREACHABLE, CommandError
from skate_rpc.errors import RpcAuthenticationError, RpcError, RpcTimeoutError, RpcUnavailableError


@contextmanager
def explained(endpoint: str, timeout_s: float) -> Iterator[None]:
    """Turn an ``RpcError`` of calls to the cluster at ``endpoint`` into a ``CommandError``."""
    try:
        yield
    except RpcAuthenticationError as error:
        raise CommandError(
            f"The cluster at {endpoint} refused the token: {error.message}", FAILED
        ) from None
    except RpcTimeoutError:
        raise CommandError(
            f"The cluster at {endpoint} did not answer within {timeout_s:g} s;"
            " look into the logs of its head.",
            TIMED_OUT,
        ) from None
    except RpcUnavailableError:
        raise CommandError(
            f"The cluster at {endpoint} can not be reached; check the address and that"
            " its head runs.",
            UNREACHABLE,
        ) from None
    except RpcError as error:
        raise CommandError(str(error), FAILED) from None
