"""Nothing is left of very many objects: neither bytes in the store, nor rows, nor memory.

``pytest tests/integration/test_many_objects.py -s --objects 100000`` for the full size; it prints
what each process took.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import skate
from skate.util.state import list_objects
from skate_worker.current import require_core
from tests.waiting import wait_for

WAIT_S = 120.0
ROUNDS = 3
RETURNS = 10  # of one task
LARGE = 130_000  # bytes, beyond what travels in messages
STORE_BYTES = 200 << 20
# Of all objects: put and small, returned by tasks, put with a reference inside, large.
SHARES = (0.4, 0.4, 0.19, 0.01)
# A heap keeps holes, and pools reach their size late; a leaked row of a table is 200 bytes or more.
SLACK_BYTES = 16 << 20
SLACK_PER_OBJECT = 60

# Workers can not import this module: pytest made it from a path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def cluster(session_root: Path) -> Iterator[None]:
    skate.init(num_cpus=2, object_store_memory=STORE_BYTES)
    yield
    skate.shutdown()


@skate.remote(num_returns=RETURNS)
def numbers(start: int) -> list[int]:
    return list(range(start, start + RETURNS))


@skate.remote
class Reader:
    """Borrows, and adds up."""

    def total(self, refs: list[Any]) -> int:
        return sum(skate.get(refs))


def store() -> Any:
    (node,) = require_core().list_objects(10.0)
    return node


def memory() -> dict[str, int]:
    """Anonymous resident bytes of this process and its children: the arena is not among them."""
    found: dict[str, int] = {}
    for pid in [os.getpid(), *children(os.getpid())]:
        name = (
            "driver"
            if pid == os.getpid()
            else f"{Path(f'/proc/{pid}/comm').read_text().strip()} {pid}"
        )
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                found[name] = int(line.split()[1]) << 10
    return found


def children(pid: int) -> list[int]:
    """All descendants."""
    direct = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return direct + [below for one in direct for below in children(one)]


def make_use_and_drop(count: int, reader: Any) -> None:
    small, returned, nested, large = (int(count * share) for share in SHARES)
    refs = [skate.put(number) for number in range(small)]
    for start in range(0, returned, RETURNS):
        refs += numbers.remote(start)
    holders = [skate.put([ref]) for ref in refs[:nested]]
    arrays = [skate.put(np.zeros(LARGE, np.uint8)) for _ in range(large)]
    assert sum(skate.get(refs[small:])) == sum(range(len(refs) - small))
    assert skate.get(reader.total.remote(refs[:1000])) == sum(range(1000))
    inner = [skate.get(holder)[0] for holder in holders[:1000]]
    assert skate.get(inner) == list(range(len(inner)))
    assert store().used_bytes >= large * LARGE
    assert len(require_core().ownership.table.entries) >= count * 0.99
    del refs, holders, arrays, inner


def is_clean() -> bool:
    core = require_core()
    core.ownership.drain_dropped()
    node = store()
    return node.used_bytes == 0 and not node.stored and len(core.ownership.table.entries) <= 1


@pytest.mark.invariant("I6")
@pytest.mark.timeout(600)
def test_bytes_rows_and_memory_are_back_after_very_many_objects(
    cluster: None, object_count: int
) -> None:
    reader = Reader.remote()
    after: list[dict[str, int]] = []
    start = memory()
    for _ in range(ROUNDS):
        make_use_and_drop(object_count, reader)
        wait_for(is_clean, within_s=WAIT_S)
        gc.collect()
        after.append(memory())
    del reader
    wait_for(lambda: not list_objects(), within_s=WAIT_S)
    core = require_core()
    assert not core.ownership.untold
    assert not core.ownership.sites
    assert not core.plane.here
    assert not core.plane.directory._records
    for name, first in after[0].items():
        figures = [start.get(name, 0), *(each.get(name, 0) for each in after)]
        print(f"{name}: " + " ".join(f"{figure / (1 << 20):.1f}" for figure in figures) + " MiB")
        grown = after[-1].get(name, 0) - first
        # Two more rounds took no more than the first: what there were rows of is gone.
        assert grown < SLACK_BYTES + (ROUNDS - 1) * SLACK_PER_OBJECT * object_count, name
