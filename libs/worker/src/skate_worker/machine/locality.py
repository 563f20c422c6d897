"""Near which node a task should run: the one whose store holds most bytes of its arguments.

Only values that lie in stores count (more than 100 KiB each), spilled ones too; small ones travel
with the task. Before it: the owner's directory of copies. After it: the lease request, which names
the nodes, and the raylet's choice, which takes the first that has room.

Source: SURFACE row L3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

NODES_MAX: Final = 3  # in a request


def nearest(
    arguments: Iterable[tuple[Sequence[bytes], int]], here: bytes
) -> list[tuple[bytes, int]]:
    """At most ``NODES_MAX`` nodes with their bytes of arguments, most first.

    ``arguments``: for each stored one the nodes that hold it and its size in bytes. Empty when no
    node holds more than ``here`` does: then there is nothing to go elsewhere for.
    """
    held: dict[bytes, int] = {}
    for node_ids, size_bytes in arguments:
        for node_id in node_ids:
            held[node_id] = held.get(node_id, 0) + size_bytes
    here_bytes = held.get(here, 0)
    if not any(size_bytes > here_bytes for size_bytes in held.values()):
        return []
    return sorted(held.items(), key=lambda item: (-item[1], item[0]))[:NODES_MAX]
