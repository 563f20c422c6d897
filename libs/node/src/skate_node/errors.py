"""What can go wrong when a node starts or when a cluster is looked for. Standard library only.

Each error holds fields and builds its own message, which ends with what to do next. All pickle.
"""

from __future__ import annotations

from skate_core_ids import SkateError


class NodeStartError(SkateError):
    """A node did not come up; nothing of it is left running.

    ``component`` is the part that failed ("python import", "session", "tracing", "gcs", "metrics",
    "resources", "raylet", "store", "zygote", "api server"); ``exit_status`` says how its process
    ended (empty while it lived); ``log_tail`` is its last lines, at most 20.
    """

    def __init__(
        self, component: str, reason: str, exit_status: str = "", log_tail: str = ""
    ) -> None:
        self.component = component
        self.reason = reason
        self.exit_status = exit_status
        self.log_tail = log_tail
        message = f"The node did not start: {component} failed: {reason.rstrip('.')}."
        if exit_status:
            message += f" Its process {exit_status}."
        if log_tail:
            indented = "\n".join(f"    {line}" for line in log_tail.splitlines())
            message += f"\nLast lines of its log:\n{indented}"
        super().__init__(message)

    def __reduce__(self) -> tuple[type[NodeStartError], tuple[str, str, str, str]]:
        return type(self), (self.component, self.reason, self.exit_status, self.log_tail)


class SessionRootError(SkateError):
    """The folder that holds the sessions can not be trusted or used."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(
            f"The session folder {path} can not be used: {reason.rstrip('.')}."
            " Set SKATE_TMPDIR to a folder of your own."
        )

    def __reduce__(self) -> tuple[type[SessionRootError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


class ClusterNotFoundError(SkateError, ConnectionError):
    """No running node on this machine answers to the address."""

    def __init__(self, address: str, reason: str = "") -> None:
        self.address = address
        self.reason = reason
        if address == "auto":
            message = (
                f"No running cluster was found on this machine{': ' + reason if reason else ''}."
                " Start one with `skate start --head`, or call skate.init() without an address."
            )
        else:
            message = (
                f"No node of the cluster at {address} runs on this machine"
                f"{': ' + reason if reason else ''}. Start one with"
                f" `skate start --address {address} --token-file FILE`."
            )
        super().__init__(message)

    def __reduce__(self) -> tuple[type[ClusterNotFoundError], tuple[str, str]]:
        return type(self), (self.address, self.reason)


class ApiServerNotFoundError(SkateError, ConnectionError):
    """The cluster has no API server, or none whose address is known on this machine."""

    def __init__(self, address: str, is_head_here: bool) -> None:
        self.address = address
        self.is_head_here = is_head_here
        if is_head_here:
            message = (
                f"The cluster at {address} runs without an API server;"
                " start its head with `skate start --head`."
            )
        else:
            message = (
                f"The API server of the cluster at {address} is on its head, which is another"
                " machine: give its http://host:port as the address, as the head's start told it."
            )
        super().__init__(message)

    def __reduce__(self) -> tuple[type[ApiServerNotFoundError], tuple[str, bool]]:
        return type(self), (self.address, self.is_head_here)
