"""Why a placement group waits, in sentences: what it needs, the most that there is, who holds it,
since when; or where its bundles are.

The sentence of what it needs and what the cluster has comes from the GCS, which decides
(``skate_scheduler.bundle_reasons``); who holds it comes from the nodes' leases and the other
groups. No I/O here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from skate_raylet.service.wait_snapshot import Snapshot
from skate_rpc.node_protocol import PlacementGroupView
from skate_scheduler import ResourceSet

HOLDERS_MAX: Final = 5
NODES_MAX: Final = 10  # named of one group


def name_of_group(view: PlacementGroupView) -> str:
    """``placement group train (3fa9...)``."""
    name = f"{view.name} " if view.name else ""
    return f"placement group {name}({view.group_id.hex()})"


def lines_of_group(
    view: PlacementGroupView, snapshot: Snapshot, holders: Mapping[bytes, str]
) -> list[str]:
    """``holders``: what to call a leased worker, by its id. O(bundles of all groups + leases)."""
    if view.state == "REMOVED":
        return [f"It was removed: {view.removal_reason or 'nobody said why.'}"]
    # While it is PENDING the nodes are at most asked.
    lines = [] if view.state == "PENDING" else _lines_of_place(view, snapshot)
    if view.state == "CREATED":
        return lines
    waited = ""
    if view.pending_since_s:
        waited = f" It has waited for {max(0.0, snapshot.unix_s - view.pending_since_s):.1f} s"
        waited += f", in {view.attempts} attempts." if view.attempts > 1 else "."
    lines.append(f"{view.pending_reason or 'Nodes are sought for it.'}{waited}")
    wanted = [
        ResourceSet(amounts)
        for amounts, node_id in zip(view.bundles, view.node_ids, strict=True)
        if not node_id
    ]
    held = _held_of(wanted, view, snapshot, holders)
    if held:
        more = f" and {len(held) - HOLDERS_MAX} more" if len(held) > HOLDERS_MAX else ""
        lines.append("Of what it needs is held: " + "; ".join(held[:HOLDERS_MAX]) + more + ".")
    return lines


def _lines_of_place(view: PlacementGroupView, snapshot: Snapshot) -> list[str]:
    at: dict[bytes, list[int]] = {}
    for index, node_id in enumerate(view.node_ids):
        if node_id:
            at.setdefault(node_id, []).append(index)
    lines = [
        f"{'Bundles' if len(indices) > 1 else 'Bundle'} {', '.join(map(str, indices))}:"
        f" {_node(node_id, snapshot)}."
        for node_id, indices in list(at.items())[:NODES_MAX]
    ]
    if len(at) > NODES_MAX:
        lines.append(f"and bundles on {len(at) - NODES_MAX} more nodes.")
    return lines


def _held_of(
    wanted: list[ResourceSet],
    view: PlacementGroupView,
    snapshot: Snapshot,
    holders: Mapping[bytes, str],
) -> list[str]:
    """Who holds resources that a bundle needs, on nodes large enough for it: the most first."""
    names = {name for needs in wanted for name in needs}
    able = {
        node_id: node
        for node_id, node in snapshot.nodes.items()
        if node.state == "ALIVE" and any(needs.fits_in(ResourceSet(node.total)) for needs in wanted)
    }
    found: list[tuple[int, str]] = []

    def note(amounts: Mapping[str, int], who: str, node_id: bytes) -> None:
        part = ResourceSet({name: units for name, units in amounts.items() if name in names})
        if part:
            found.append((sum(part.values()), f"{part} by {who} on {_node(node_id, snapshot)}"))

    for node_id, node in able.items():
        for lease in node.leases:
            if not lease.group_id:
                note(lease.holds, holders.get(lease.worker_id, "a worker"), node_id)
    for other in snapshot.groups.values():
        if other.group_id == view.group_id:
            continue
        sums: dict[bytes, list[ResourceSet]] = {}
        for amounts, node_id in zip(other.bundles, other.node_ids, strict=True):
            if node_id in able:
                sums.setdefault(node_id, []).append(ResourceSet(amounts))
        for node_id, parts in sums.items():
            note(ResourceSet.total_of(parts), name_of_group(other), node_id)
    return [text for _, text in sorted(found, key=lambda pair: -pair[0])]


def _node(node_id: bytes, snapshot: Snapshot) -> str:
    node = snapshot.nodes.get(node_id)
    name = f" ({node.node_name})" if node is not None and node.node_name else ""
    return f"node {node_id.hex()[:12]}{name}"
