"""What goes wrong when a raylet starts."""

from __future__ import annotations

from skate_core_ids import SkateError


class ZygoteStartError(SkateError):
    """The process that workers are forked from did not become ready.

    ``exit_status`` says how it ended, as in "exited with status 3"; empty while it lives.
    """

    component = "zygote"

    def __init__(self, reason: str, exit_status: str = "") -> None:
        self.reason = reason
        self.exit_status = exit_status
        super().__init__(reason)

    def __reduce__(self) -> tuple[type[ZygoteStartError], tuple[str, str]]:
        return type(self), (self.reason, self.exit_status)
