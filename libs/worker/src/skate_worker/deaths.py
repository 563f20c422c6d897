"""Deaths that this process heard of, and the error that tells of an owner's.

News of a death come by two ways: the connection breaks, which says little, and the raylet names the
cause, which may take a moment longer. Whoever asks later for an object of a dead owner is told the
same as those who waited.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from skate_rpc.node_protocol import Death
from skate_worker.errors import OwnerDiedError, ending
from skate_worker.machine.references import Owner

DEATHS_KEPT_MAX: Final = 10_000


class Deaths:
    """Written on the loop's thread, read on any."""

    def __init__(self) -> None:
        self._workers: OrderedDict[bytes, Death] = OrderedDict()
        self._nodes: OrderedDict[bytes, Death] = OrderedDict()

    def worker_died(self, worker_id: bytes, death: Death) -> None:
        """A process of the cluster is gone."""
        _note(self._workers, worker_id, death)

    def node_died(self, node_id: bytes, death: Death) -> None:
        """A node is gone, with all processes on it."""
        _note(self._nodes, node_id, death)

    def is_dead(self, owner: Owner) -> bool:
        """Whether the process is known to be gone, by itself or with its node."""
        return owner.worker_id in self._workers or owner.node_id in self._nodes

    def of_node(self, node_id: bytes) -> str:
        """How a node ended, for a person; empty when it is not known to have."""
        death = self._nodes.get(node_id)
        return "" if death is None else _cause(death)

    def owner_died(
        self,
        object_id: bytes,
        owner: Owner,
        reason: str = "its connection is closed",
        call_site: str = "",
    ) -> OwnerDiedError:
        """The error of whoever needs an object of this owner. ``reason``: if nobody told more.
        ``call_site``: the line that made the object, if it is known here.
        """
        death = self._workers.get(owner.worker_id)
        address = f"worker {owner.worker_id.hex()}"
        if death is not None and death.pid:
            address += f" (pid={death.pid})"
        if owner.node_id:
            address += f" on node {owner.node_id.hex()}"
        of_node = self._nodes.get(owner.node_id)
        if death is not None:
            cause = _cause(death)
        elif of_node is not None:
            cause = f"its node died: {_cause(of_node)}"
        else:
            cause = reason
        return OwnerDiedError(
            object_id.hex(), address, call_site, f"{OwnerDiedError.REASON}: {cause}"
        )


def _note(deaths: OrderedDict[bytes, Death], key: bytes, death: Death) -> None:
    deaths[key] = death
    while len(deaths) > DEATHS_KEPT_MAX:
        deaths.popitem(last=False)


def _cause(death: Death) -> str:
    return (death.message or ending(death.kind, death.exit_code, death.signal)).rstrip(".")
