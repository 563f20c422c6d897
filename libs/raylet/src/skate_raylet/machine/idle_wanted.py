"""Whose leases would be of use if their holders are idle: said once per lease, when others wait.

A holder keeps an idle lease for a while, because its next task usually comes soon. While somebody
else waits that is a loss for the node, and only the holder knows that it is idle. So each lease is
told once that others wait; its holder then gives it back at its first pause. One that stays busy is
asked back after its turn (``reclaim``).

O(1) per event when nobody waits or only a holder's own requests do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from skate_raylet.machine.lease_table import Granted, Lease


class IdleWanted:
    """The granted task leases whose holders have not been told that others wait."""

    def __init__(self) -> None:
        self._untold: dict[bytes, dict[bytes, Lease]] = {}  # by holder, then by lease id

    def granted(self, lease: Lease) -> None:
        """A task lease was handed to its holder."""
        self._untold.setdefault(lease.holder_id, {})[lease.lease_id] = lease

    def tell(self, waiting: Iterable[bytes]) -> Iterator[Lease]:
        """The leases whose holders are to hear of it now. ``waiting``: who has requests waiting."""
        holders = set(waiting)
        if not holders:
            return
        for holder_id in [held for held in self._untold if holders != {held}]:
            for lease in self._untold.pop(holder_id).values():
                if isinstance(lease.state, Granted):
                    yield lease

    def holder_gone(self, holder_id: bytes) -> None:
        """The holder ended."""
        self._untold.pop(holder_id, None)

    def ended(self, lease: Lease) -> None:
        """The lease is over."""
        held = self._untold.get(lease.holder_id)
        if held is not None and held.pop(lease.lease_id, None) is not None and not held:
            del self._untold[lease.holder_id]
