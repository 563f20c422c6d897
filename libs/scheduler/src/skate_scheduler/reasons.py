"""Why something waits: a record that programs can read and a sentence that people can.

Every queued item has one at every moment; it is computed from the same state as the decision
itself, so it can not disagree with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from skate_scheduler.resources import ResourceSet, format_units

_NOTHING = ResourceSet()


class WaitKind(Enum):
    """What the item waits for."""

    INFEASIBLE = "infeasible"  # the node could not hold it even when idle
    RESOURCES = "resources"  # it fits the node, and others hold what it needs
    RESERVED = "reserved"  # it fits, but an older request is being saved up for
    TURN = "turn"  # it fits, and others are served first
    WORKER = "worker"  # its resources are set aside, its worker process is starting
    WORKER_LIMIT = "worker_limit"  # the node runs as many processes as it may
    ELSEWHERE = "elsewhere"  # only other nodes could hold it, and none of them has room
    ASKED = "asked"  # another node was asked for it and has not answered
    NOWHERE = "nowhere"  # no live node could ever hold it; one that joins may
    DRAINING = "draining"  # the node is to leave and gives out nothing new
    BUNDLE = "bundle"  # for room in a placement group's bundle, which ``blocked_by`` names


@dataclass(frozen=True, slots=True)
class Missing:
    """One short resource, in units: ``needs > available``, and ``needs > total`` if infeasible."""

    name: str
    needs: int
    available: int
    total: int


@dataclass(frozen=True, slots=True)
class WaitReason:
    """Why one item waits."""

    kind: WaitKind
    needs: ResourceSet
    total: ResourceSet
    available: ResourceSet
    since_s: float  # the clock of the machine that holds the item
    missing: tuple[Missing, ...] = ()
    blocked_by: tuple[str, ...] = ()  # who holds what is missing, for people; at most five
    most: ResourceSet = _NOTHING  # the largest amount of each resource that any node has
    detail: str = ""  # of ELSEWHERE, ASKED and NOWHERE: where, or why not, as a sentence

    def sentence(self) -> str:
        """One sentence for a person, naming amounts."""
        short = ", ".join(
            f"{item.name} {format_units(item.needs)}"
            f" (free {format_units(item.available)} of {format_units(item.total)})"
            for item in self.missing
        )
        holders = f"; held by {', '.join(self.blocked_by)}" if self.blocked_by else ""
        match self.kind:
            case WaitKind.INFEASIBLE:
                wants = ", ".join(
                    f"{item.name} {format_units(item.needs)} (total {format_units(item.total)})"
                    for item in self.missing
                )
                return f"This node can never hold it: it needs {wants}."
            case WaitKind.RESOURCES:
                return f"Waits for {short}{holders}."
            case WaitKind.RESERVED:
                return f"Needs {self.needs}, which is kept for an older request{holders}."
            case WaitKind.DRAINING:
                return f"This node is draining; it needs {self.needs} on another node."
            case WaitKind.TURN:
                return f"Needs {self.needs}; other requests are served first."
            case WaitKind.ELSEWHERE | WaitKind.ASKED | WaitKind.NOWHERE:
                return self.detail
            case WaitKind.BUNDLE:
                return f"Waits for {self.needs} in {', '.join(self.blocked_by)}."
            case WaitKind.WORKER:
                return f"Has its resources ({self.needs}); its worker process is starting."
            case WaitKind.WORKER_LIMIT:
                return (
                    f"Has its resources ({self.needs}), but the node already runs as many"
                    f" worker processes as it may{holders}."
                )


def find_missing(
    needs: ResourceSet, available: ResourceSet, total: ResourceSet
) -> tuple[WaitKind, tuple[Missing, ...]] | None:
    """What keeps ``needs`` from fitting, or None when it fits.

    If the total is too small the answer is ``INFEASIBLE`` with only the resources that can never
    suffice.
    """
    limit, kind = (total, WaitKind.INFEASIBLE)
    if needs.fits_in(total):
        limit, kind = (available, WaitKind.RESOURCES)
    missing = tuple(
        Missing(name, needs[name], available[name], total[name]) for name in needs.shortfall(limit)
    )
    return (kind, missing) if missing else None
