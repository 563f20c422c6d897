"""Gathers what a cluster's stores hold and who refers to it: one question to one live node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from skate_cluster.first_node import ask_first_node
from skate_rpc.object_report import NodeObjects
from skate_rpc.object_rows import ReferenceRow, rows_of

SCHEMA = "skate.memory/1"
SORT_KEYS: dict[str, Callable[[ReferenceRow], Any]] = {
    "size": lambda row: (-row.object_size, row.object_id, row.pid),
    "pid": lambda row: (row.pid, -row.object_size, row.object_id),
}
GROUP_KEYS: dict[str, Callable[[ReferenceRow], str]] = {
    "node": lambda row: f"node {row.node_id[:12]} ({row.ip})",
    "line": lambda row: row.call_site or "line not recorded",
}


@dataclass(frozen=True, slots=True)
class Store:
    """One node's store. ``used`` is the sum of the four parts that follow it."""

    node_id: str
    name: str
    ip_address: str
    capacity_bytes: int
    used_bytes: int
    listed_bytes: int
    """The content of the objects that are listed."""
    copies_bytes: int
    """Copies of other nodes' objects, dropped when room is needed."""
    left_out_bytes: int
    """Of objects past the report's limit."""
    rounding_bytes: int
    """The allocator's rounding, and what changed while the report was made."""
    listed_objects: int
    left_out_objects: int
    problem: str
    """Why the node did not report; empty when it did."""


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The cluster's objects at one moment."""

    address: str
    stores: list[Store]
    references: list[ReferenceRow]
    problems: list[str]
    """Processes that did not report, or left something out."""

    def sorted_by(self, key: str) -> list[ReferenceRow]:
        """The references in the order of ``SORT_KEYS[key]``."""
        return sorted(self.references, key=SORT_KEYS[key])

    def grouped_by(self, key: str, rows: Sequence[ReferenceRow]) -> dict[str, list[ReferenceRow]]:
        """``rows`` by ``GROUP_KEYS[key]``, the group with the most bytes first."""
        groups: defaultdict[str, list[ReferenceRow]] = defaultdict(list)
        for row in rows:
            groups[GROUP_KEYS[key](row)].append(row)
        return dict(sorted(groups.items(), key=lambda item: -total_bytes(item[1])))

    def to_json(self, rows: Sequence[ReferenceRow]) -> dict[str, Any]:
        """The report under its versioned schema, with these references."""
        return {
            "schema": SCHEMA,
            "address": self.address,
            "stores": [asdict(store) for store in self.stores],
            "objects": len({row.object_id for row in self.references}),
            "references": [asdict(row) for row in rows],
            "problems": self.problems,
        }


def total_bytes(rows: Sequence[ReferenceRow]) -> int:
    """The bytes of the objects of these references, each object once."""
    return sum({row.object_id: max(0, row.object_size) for row in rows}.values())


async def collect_memory(gcs_endpoint: str, token: str, timeout_s: float) -> MemoryReport:
    """Ask the GCS for the nodes, and the first live one that answers for everybody's objects.

    Raises ``RpcError`` when the GCS or every node fails to answer.
    """
    found = await ask_first_node(
        gcs_endpoint,
        token,
        timeout_s,
        lambda raylet: raylet.objects(whole_cluster=True, timeout_s=timeout_s),
    )
    return make_report(gcs_endpoint, found)


def make_report(address: str, nodes: Sequence[NodeObjects]) -> MemoryReport:
    """The reports of all nodes as one."""
    problems: list[str] = []
    for node in nodes:
        for process in node.processes:
            who = f"process {process.pid} on node {node.node_id.hex()[:12]}"
            if process.problem:
                problems.append(f"{who}: {process.problem}")
            elif process.left_out:
                problems.append(
                    f"{who}: {process.left_out} smaller objects of {process.left_out_bytes} bytes"
                    " in all are left out."
                )
    return MemoryReport(address, [_store(node) for node in nodes], rows_of(nodes), problems)


def _store(node: NodeObjects) -> Store:
    return Store(
        node_id=node.node_id.hex(),
        name=node.node_name,
        ip_address=node.ip,
        capacity_bytes=node.capacity_bytes,
        used_bytes=node.used_bytes,
        listed_bytes=node.listed_bytes(),
        copies_bytes=node.copies_bytes,
        left_out_bytes=node.stored_left_out_bytes,
        rounding_bytes=node.rounding_bytes(),
        listed_objects=len(node.stored),
        left_out_objects=node.stored_left_out,
        problem=node.problem,
    )
