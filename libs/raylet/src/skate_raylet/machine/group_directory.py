"""What this node knows of placement groups: on which nodes their bundles are, and which are gone.

It is told by the GCS; what it has not heard of, it asks for. A group that is not usable yet has no
homes, so that what is to run in it waits.
"""

from __future__ import annotations

from typing import Final

REMOVED_KEPT_MAX: Final = 10_000


class GroupDirectory:
    """The groups of the cluster, as last told."""

    def __init__(self) -> None:
        self._homes: dict[bytes, tuple[bytes, ...]] = {}  # by bundle; empty where there is none
        self._removed: dict[bytes, str] = {}
        self._asked: dict[bytes, None] = {}  # not known, and asked for
        self._turns: dict[bytes, int] = {}
        self._shunned: dict[tuple[bytes, bytes], float] = {}  # group, node -> until when

    def see(self, group_id: bytes, node_ids: tuple[bytes, ...]) -> None:
        """A group lives; ``node_ids``: where each bundle can be used, ``b""`` where it can not."""
        if group_id not in self._removed:
            self._homes[group_id] = node_ids
            self._asked.pop(group_id, None)

    def remove(self, group_id: bytes, why: str) -> None:
        """A group is gone for good."""
        self._homes.pop(group_id, None)
        self._asked.pop(group_id, None)
        self._turns.pop(group_id, None)
        self._removed[group_id] = why
        while len(self._removed) > REMOVED_KEPT_MAX:
            del self._removed[next(iter(self._removed))]

    def known(self) -> list[bytes]:
        """The groups that are held for alive."""
        return list(self._homes)

    def why_removed(self, group_id: bytes) -> str | None:
        """Why a group is gone; None when it is not known to be."""
        return self._removed.get(group_id)

    def is_to_be_asked_for(self, group_id: bytes) -> bool:
        """Whether the GCS should be asked; True once for each group that is not known."""
        if group_id in self._homes or group_id in self._removed or group_id in self._asked:
            return False
        self._asked[group_id] = None
        return True

    def is_asked_for(self, group_id: bytes) -> bool:
        """Whether the GCS was asked, and nothing was heard of the group since."""
        return group_id in self._asked

    def was_not_answered(self, group_id: bytes) -> None:
        """The question got no answer: it may be asked again."""
        self._asked.pop(group_id, None)

    def homes(self, group_id: bytes, index: int) -> list[bytes]:
        """The nodes where the bundle, or any bundle, can be used; each once, in turn."""
        node_ids = self._homes.get(group_id, ())
        if index >= 0:
            is_there = index < len(node_ids) and node_ids[index]
            return [node_ids[index]] if is_there else []
        homes = list(dict.fromkeys(filter(None, node_ids)))
        turn = self._turns.get(group_id, 0)
        if len(homes) > 1:
            self._turns[group_id] = turn + 1
            turn %= len(homes)
            homes = homes[turn:] + homes[:turn]
        return homes

    def has_one_home(self, group_id: bytes, index: int) -> bool:
        """Whether one node alone comes into question."""
        return index >= 0 or len(set(filter(None, self._homes.get(group_id, ())))) == 1

    def has_other_home(self, group_id: bytes, node_id: bytes) -> bool:
        """Whether a bundle of the group is on another node than this one."""
        return any(home and home != node_id for home in self._homes.get(group_id, ()))

    def shun(self, group_id: bytes, node_id: bytes, until_s: float) -> None:
        """The group's bundles at that node are full: leave them alone for a while."""
        self._shunned[group_id, node_id] = until_s

    def is_shunned(self, group_id: bytes, node_id: bytes, now_s: float) -> bool:
        """Whether they are to be left alone now."""
        return self._shunned.get((group_id, node_id), now_s) > now_s

    def next_change_s(self, now_s: float) -> float | None:
        """When a node may be asked again; None when all may. O(shunned pairs), which are few."""
        for key in [key for key, until_s in self._shunned.items() if until_s <= now_s]:
            del self._shunned[key]
        return min(self._shunned.values(), default=None)
