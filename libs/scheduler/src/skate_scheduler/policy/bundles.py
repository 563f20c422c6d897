"""Where the bundles of a placement group go: all of them at once, or none.

============= ===================================================================================
PACK          on one node if one can hold all, else on as few as are found
SPREAD        on nodes of their own if there are enough, else on as many as are found
STRICT_PACK   on one node, or nowhere
STRICT_SPREAD on nodes of their own, or nowhere
============= ===================================================================================

A bundle is never divided. Large bundles, and those with devices, are placed first. Among nodes that
serve alike the fullest is taken, so that large gaps stay whole, and one without devices that nobody
asked for before one with them.

The two strict strategies are decided exactly. Whether several bundles fit on several nodes is bin
packing: a greedy pass answers nearly always, and where it fails a search of bounded length looks
again, which is exact for small groups.

Source: SURFACE rows P1, P2, P4, P14, which restate Ray's bundle policies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from skate_scheduler.labels import ANY_NODE, LabelSelector
from skate_scheduler.node_index import Ids, NodeIndex
from skate_scheduler.policy.hybrid import Fit
from skate_scheduler.resources import DEVICE_RESOURCES, ResourceSet

SEARCH_STEPS_MAX: Final = 2_000  # of the search after the greedy pass failed

Vector = tuple[int, ...]
Rank = tuple[float, ...]


class BundleStrategy(StrEnum):
    """How the bundles of a group lie to each other."""

    PACK = "PACK"
    SPREAD = "SPREAD"
    STRICT_PACK = "STRICT_PACK"
    STRICT_SPREAD = "STRICT_SPREAD"


@dataclass(frozen=True, slots=True)
class BundleRequest:
    """One bundle: what it reserves, and which nodes may hold it."""

    resources: ResourceSet
    selector: LabelSelector = ANY_NODE


@dataclass(frozen=True, slots=True)
class BundlePlacement:
    """The decision. ``node_ids``: one for each bundle, in order; empty unless ``fit`` is NOW."""

    fit: Fit
    node_ids: tuple[bytes, ...] = ()


def place_bundles(
    bundles: Sequence[BundleRequest],
    strategy: BundleStrategy,
    nodes: NodeIndex,
    *,
    held: Sequence[bytes] = (),
    preferred_id: bytes = b"",
) -> BundlePlacement:
    """Choose a node for each bundle.

    ``held``: for each bundle the node that has it already, or ``b""`` for one that is to be placed;
    empty when none is held. What nodes have free is without what they hold. ``preferred_id``: taken
    by STRICT_PACK if it can hold the group.

    LATER: the nodes could hold it, once others are gone; NEVER: not even if all were idle (what is
    held stays where it is).

    Cost: O(bundles^2 x classes of nodes that are alike to the group), see ``NodeIndex``; with label
    selectors O(nodes x selectors) besides.
    """
    kept = tuple(held) or (b"",) * len(bundles)
    for is_idle, fit in ((False, Fit.NOW), (True, Fit.LATER)):
        found = _Placing(bundles, kept, nodes, is_idle).place(strategy, preferred_id)
        if found is not None:
            return BundlePlacement(fit, found if fit is Fit.NOW else ())
    return BundlePlacement(Fit.NEVER)


class _Site:
    """A node, or (``ids`` not empty) any one of several that are alike."""

    __slots__ = ("count", "free", "has_other_devices", "ids", "matches", "node_id")

    def __init__(
        self, free: Vector, matches: tuple[bool, ...], has_other_devices: bool, ids: Ids
    ) -> None:
        self.free = free
        self.matches = matches  # for each selector of the group
        self.has_other_devices = has_other_devices
        self.ids = ids
        self.node_id = b""  # of a single one
        self.count = 0  # bundles of the group that are on it

    def left_share(self, need: Vector) -> float:
        """The largest part of what is free here that placing this would leave."""
        share = 0.0
        for free, units in zip(self.free, need, strict=True):
            if units and free:
                share = max(share, (free - units) / free)
        return share


class _Placing:
    """One attempt to place one group: sites that are used, and classes of those that are not."""

    def __init__(
        self,
        bundles: Sequence[BundleRequest],
        held: tuple[bytes, ...],
        nodes: NodeIndex,
        is_idle: bool,
    ) -> None:
        self._nodes = nodes
        self._names = tuple(sorted({name for bundle in bundles for name in bundle.resources}))
        self._needs = [
            tuple([bundle.resources[name] for name in self._names]) for bundle in bundles
        ]
        self._selectors = list(dict.fromkeys(b.selector for b in bundles if b.selector))
        self._selector_of = [
            self._selectors.index(b.selector) if b.selector else -1 for b in bundles
        ]
        self._at: list[bytes] = list(held)
        self._todo = sorted(
            (index for index, node_id in enumerate(held) if not node_id),
            key=lambda index: (_size(bundles[index].resources), index),
        )
        self._used: dict[bytes, _Site] = {}
        self._classes = self._sort_nodes(is_idle)
        # One of each class is taken out when it is used; its class has one less for as long.
        self._class_of: dict[bytes, _Site] = {}
        for index, node_id in enumerate(held):
            if node_id:
                self._use_held(node_id, is_idle, index)

    def place(self, strategy: BundleStrategy, preferred_id: bytes) -> tuple[bytes, ...] | None:
        """The node of each bundle, or None."""
        match strategy:
            case BundleStrategy.STRICT_PACK:
                is_placed = self._on_one(preferred_id)
            case BundleStrategy.STRICT_SPREAD:
                is_placed = self._on_own()
            case BundleStrategy.PACK:
                is_placed = self._on_one(b"") or self._search(self._pack())
            case BundleStrategy.SPREAD:
                is_placed = self._on_own() or self._search(self._spread())
        return tuple(self._at) if is_placed else None

    # ---- the sites ----

    def _sort_nodes(self, is_idle: bool) -> list[_Site]:
        classes = self._nodes.classes(self._names, is_idle=is_idle)
        least = self._least()
        sites: list[_Site] = []
        for key, ids in classes.items():
            if not _fits(least, key.amounts):
                continue
            for matches, members in self._by_labels(ids).items():
                sites.append(_Site(key.amounts, matches, key.has_other_devices, members))
        return sites

    def _least(self) -> Vector:
        """What every bundle needs at least: a node without it is of no use."""
        needs = [self._needs[index] for index in self._todo]
        return tuple(map(min, zip(*needs, strict=True))) if needs else (0,) * len(self._names)

    def _by_labels(self, ids: Ids) -> dict[tuple[bool, ...], Ids]:
        if not self._selectors:
            return {(): ids}
        groups: dict[tuple[bool, ...], Ids] = {}
        for node_id in ids:
            groups.setdefault(self._matches(node_id), {})[node_id] = None
        return groups

    def _matches(self, node_id: bytes) -> tuple[bool, ...]:
        view = self._nodes.get(node_id)
        labels = {} if view is None else view.labels
        return tuple([selector.matches(labels) for selector in self._selectors])

    def _use_held(self, node_id: bytes, is_idle: bool, index: int) -> None:
        """A node that holds a bundle of the group: in use from the start, with what is free."""
        site = self._used.get(node_id)
        if site is None:
            view = self._nodes.get(node_id)
            amounts = ResourceSet()
            if view is not None:
                amounts = view.total if is_idle else view.available
            free = tuple([amounts[name] for name in self._names])
            site = _Site(free, self._matches(node_id), False, {})
            site.node_id = node_id
            self._used[node_id] = site
        if is_idle:
            site.free = _less(site.free, self._needs[index])
        site.count += 1

    def _member(self, site: _Site) -> bytes:
        """A node of the class that the group does not use; ``b""`` when all are used."""
        for node_id in site.ids:
            if node_id not in self._used:
                return node_id
        return b""

    def _unused(self) -> list[_Site]:
        """The classes that still have a node for the group. O(classes + nodes used)."""
        return [site for site in self._classes if self._member(site)]

    def _can_hold(self, site: _Site, index: int) -> bool:
        selector = self._selector_of[index]
        return (selector < 0 or site.matches[selector]) and _fits(self._needs[index], site.free)

    def _put(self, site: _Site, index: int) -> _Site:
        """Place a bundle; returns the single node's site."""
        if not site.node_id:
            single = _Site(site.free, site.matches, site.has_other_devices, {})
            single.node_id = self._member(site)
            self._used[single.node_id] = single
            site = single
        site.free = _less(site.free, self._needs[index])
        site.count += 1
        self._at[index] = site.node_id
        return site

    def _take_off(self, site: _Site, index: int) -> None:
        site.free = _plus(site.free, self._needs[index])
        site.count -= 1
        self._at[index] = b""
        if not site.count:
            del self._used[site.node_id]

    def _clear(self) -> None:
        for index in self._todo:
            node_id = self._at[index]
            if node_id:
                self._take_off(self._used[node_id], index)

    # ---- all on one node ----

    def _on_one(self, preferred_id: bytes) -> bool:
        if not self._todo:
            return True
        if self._used:
            sites = list(self._used.values()) if len(self._used) == 1 else []
        else:
            sites = list(self._classes)
        need = tuple(map(sum, zip(*(self._needs[index] for index in self._todo), strict=True)))
        selectors = {self._selector_of[index] for index in self._todo} - {-1}
        fitting = [
            site
            for site in sites
            if _fits(need, site.free) and all(site.matches[one] for one in selectors)
        ]
        if not fitting:
            return False
        best = min(fitting, key=lambda site: (site.has_other_devices, site.left_share(need)))
        for site in fitting:
            if preferred_id in site.ids:
                site.ids = {preferred_id: None}
                best = site
        for index in self._todo:
            best = self._put(best, index)
        return True

    # ---- each on its own node ----

    def _on_own(self) -> bool:
        """A matching of bundles and nodes: greedy, then augmenting paths over classes (Kuhn)."""
        counts = {id(site): self._room_in(site) for site in self._classes}
        sites = {id(site): site for site in self._classes if counts[id(site)]}
        if len(set(filter(None, self._at))) < sum(map(bool, self._at)):
            return False  # two of those that are held share a node
        chosen: dict[int, dict[int, None]] = {key: {} for key in sites}  # class -> bundles

        def options(index: int) -> list[int]:
            fitting = [key for key, site in sites.items() if self._can_hold(site, index)]
            need = self._needs[index]
            fitting.sort(key=lambda k: (sites[k].has_other_devices, sites[k].left_share(need)))
            return fitting

        def augment(index: int, seen: dict[int, None]) -> bool:
            fitting = options(index)
            for key in fitting:
                if key not in seen and len(chosen[key]) < counts[key]:
                    chosen[key][index] = None
                    return True
            for key in fitting:
                if key in seen:
                    continue
                seen[key] = None
                for other in list(chosen[key]):
                    del chosen[key][other]
                    chosen[key][index] = None
                    if augment(other, seen):
                        return True
                    del chosen[key][index]
                    chosen[key][other] = None
            return False

        for index in self._todo:
            if not augment(index, {}):
                return False
        for key, indices in chosen.items():
            for index in indices:
                self._put(sites[key], index)
        return True

    def _room_in(self, site: _Site) -> int:
        return len(site.ids) - sum(node_id in site.ids for node_id in self._used)

    # ---- as good as it gets ----

    def _pack(self) -> Callable[[int, _Site], Rank]:
        """Greedy: on the node that takes most of what is left, nodes in use first."""
        left = list(self._todo)
        while left:
            best: tuple[Rank, _Site, list[int]] | None = None
            for site in (*self._used.values(), *self._unused()):
                taken = self._fill(site, left)
                if taken:
                    rank = (
                        not site.node_id,
                        -len(taken),
                        site.has_other_devices,
                        site.left_share(self._needs[taken[0]]),
                    )
                    if best is None or rank < best[0]:
                        best = (rank, site, taken)
            if best is None:
                break
            site = best[1]
            for index in best[2]:
                site = self._put(site, index)
                left.remove(index)
        return lambda index, site: (
            not site.node_id,
            site.has_other_devices,
            site.left_share(self._needs[index]),
        )

    def _fill(self, site: _Site, indices: list[int]) -> list[int]:
        free = site.free
        taken: list[int] = []
        for index in indices:
            selector = self._selector_of[index]
            if (selector < 0 or site.matches[selector]) and _fits(self._needs[index], free):
                free = _less(free, self._needs[index])
                taken.append(index)
        return taken

    def _spread(self) -> Callable[[int, _Site], Rank]:
        """Greedy: on an unused node, else on the one with the fewest bundles of the group."""

        def rank(index: int, site: _Site) -> Rank:
            return (site.count, site.has_other_devices, site.left_share(self._needs[index]))

        for index in self._todo:
            sites = [
                site
                for site in (*self._used.values(), *self._unused())
                if self._can_hold(site, index)
            ]
            if not sites:
                break
            self._put(min(sites, key=lambda site: rank(index, site)), index)
        return rank

    def _search(self, rank: Callable[[int, _Site], Rank]) -> bool:
        """Whether all are placed; where the greedy pass failed, after a look at other choices."""
        if all(self._at):
            return True
        self._clear()
        self._steps = 0
        return self._search_from(0, rank)

    def _search_from(self, position: int, rank: Callable[[int, _Site], Rank]) -> bool:
        if position == len(self._todo):
            return True
        index = self._todo[position]
        tried: set[tuple[Vector, tuple[bool, ...]]] = set()
        sites = [
            site for site in (*self._used.values(), *self._unused()) if self._can_hold(site, index)
        ]
        for site in sorted(sites, key=lambda site: rank(index, site)):
            kind = (site.free, site.matches)
            if kind in tried:
                continue  # a node that is like one that led nowhere
            tried.add(kind)
            self._steps += 1
            if self._steps > SEARCH_STEPS_MAX:
                return False
            used = self._put(site, index)
            if self._search_from(position + 1, rank):
                return True
            self._take_off(used, index)
        return False


def _size(resources: ResourceSet) -> tuple[int, int, int]:
    """For sorting: devices first, then kinds of resources, then amounts; the largest first."""
    devices = sum(resources[name] for name in DEVICE_RESOURCES)
    return (-devices, -len(resources), -sum(resources.values()))


def _fits(need: Vector, free: Vector) -> bool:
    for units, room in zip(need, free, strict=True):  # noqa: SIM110  a generator costs more
        if units > room:
            return False
    return True


def _less(free: Vector, need: Vector) -> Vector:
    return tuple([room - units for room, units in zip(free, need, strict=True)])


def _plus(free: Vector, need: Vector) -> Vector:
    return tuple([room + units for room, units in zip(free, need, strict=True)])
