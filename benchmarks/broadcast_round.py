"""One round of one peer's broadcast, in a process of its own: written once, for Skate and Ray.

``python -m benchmarks.broadcast_round PEER NODES SIZE_BYTES REPEATS RESULT_PATH``:
benchmarks/broadcast.py starts it in the peer's environment and reads the seconds that it leaves in
``RESULT_PATH``. Both peers have the same public API, down to ``cluster_utils.Cluster``, so the
adapter is the name of the module.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Of every node's store: the object and a copy that is still being freed, and air.
STORE_OBJECTS = 4
STORE_BYTES_MIN = 150 << 20
CHECKED_BYTES = 16
ANSWER_S = 60.0
# Both peers free copies after the call that drops the last reference; neither says when it is done.
FREED_S = 1.5


class Taker:
    """Lives on one node and is given the object."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id

    def ready(self) -> str:
        """That it lives."""
        return self._node_id

    def take(self, values: Any) -> tuple[str, int]:
        """Where it is, and what some of the bytes add up to."""
        return self._node_id, checksum(values)


def checksum(values: Any) -> int:
    """The sum of a few bytes, the first and the last among them. O(1)."""
    last = len(values) - 1
    return sum(int(values[last * place // CHECKED_BYTES]) for place in range(CHECKED_BYTES + 1))


def measure(peer: str, count: int, size_bytes: int, repeats: int) -> list[float]:
    """Seconds of one broadcast into memory that was never used, then of ``repeats`` others."""
    module: Any = importlib.import_module(peer)
    clusters: Any = importlib.import_module(f"{peer}.cluster_utils")
    strategies: Any = importlib.import_module(f"{peer}.util.scheduling_strategies")
    numpy: Any = importlib.import_module("numpy")
    node_args = {
        "num_cpus": 1,
        "object_store_memory": max(STORE_BYTES_MIN, STORE_OBJECTS * size_bytes),
    }
    head_args = node_args | ({"include_dashboard": False} if peer == "ray" else {})
    cluster = clusters.Cluster(initialize_head=True, connect=True, head_node_args=head_args)
    try:
        node_ids = [str(cluster.add_node(**node_args).node_id) for _ in range(count)]
        cluster.wait_for_nodes()
        served = module.remote(num_cpus=1)(Taker)
        takers = [
            served.options(
                scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
            ).remote(node_id)
            for node_id in node_ids
        ]
        module.get([taker.ready.remote() for taker in takers], timeout=ANSWER_S)
        seconds = []
        for number in range(1 + repeats):
            # Other bytes each time: what an earlier object left in the memory must not pass.
            random = numpy.random.default_rng(number)
            values = random.integers(0, 256, size_bytes, dtype=numpy.uint8)
            expected = [(node_id, checksum(values)) for node_id in node_ids]
            seconds.append(_broadcast(module, takers, values, expected))
        return seconds
    finally:
        module.shutdown()
        cluster.shutdown()


def _broadcast(
    module: Any, takers: Sequence[Any], values: Any, expected: list[tuple[str, int]]
) -> float:
    reference = module.put(values)
    start_s = time.perf_counter()
    answers = module.get([taker.take.remote(reference) for taker in takers], timeout=ANSWER_S)
    elapsed_s = time.perf_counter() - start_s
    if [tuple(answer) for answer in answers] != expected:
        raise ValueError(f"the nodes answered {answers}, not {expected}")
    del reference, answers
    time.sleep(FREED_S)
    return elapsed_s


def main(arguments: Sequence[str]) -> None:
    """Measure, and leave the seconds in a file: peers write what they like to the output."""
    peer, count, size_bytes, repeats, path = arguments
    seconds = measure(peer, int(count), int(size_bytes), int(repeats))
    Path(path).write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
