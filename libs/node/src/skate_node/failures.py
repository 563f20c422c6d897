"""Which part of a node failed to start, and what its log says."""

from __future__ import annotations

import os
import traceback

from skate_core_ids import SkateError
from skate_node.launch_protocol import tail_of

# Parts that another part starts, by the module in which their start goes wrong.
_INNER_PARTS = {"skate_object_store": "store", "skate_raylet.service.zygote": "zygote"}


class ComponentFailedError(SkateError):
    """A part did not start. The launcher turns it into ``NodeStartError``."""

    def __init__(
        self, component: str, reason: str, exit_status: str = "", log_tail: str = ""
    ) -> None:
        self.component = component
        self.reason = reason
        self.exit_status = exit_status
        self.log_tail = log_tail
        super().__init__(f"{component}: {reason}")

    def __reduce__(self) -> tuple[type[ComponentFailedError], tuple[str, str, str, str]]:
        return type(self), (self.component, self.reason, self.exit_status, self.log_tail)


def blame(component: str, error: Exception, session_dir: str) -> ComponentFailedError:
    """The failure of ``component``, or of the part inside it that ``error`` comes from."""
    if isinstance(error, ComponentFailedError):
        return error
    component = getattr(error, "component", "") or _inner_part(error) or component
    is_ours = isinstance(error, SkateError)
    reason = str(error) if is_ours else f"{type(error).__name__}: {error}"
    logs = os.path.join(session_dir, "logs")
    tail = tail_of(os.path.join(logs, "zygote.err")) if component == "zygote" else ""
    if not tail and not is_ours:
        tail = "".join(traceback.format_exception(error)[-6:]).rstrip()
    exit_status = str(getattr(error, "exit_status", ""))
    return ComponentFailedError(component, reason, exit_status, tail)


def _inner_part(error: Exception) -> str:
    """The inner part whose code the error passed last; empty when it passed none."""
    part = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        for name, inner in _INNER_PARTS.items():
            if module == name or module.startswith(f"{name}."):
                part = inner
    return part
