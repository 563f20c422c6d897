"""Use after free, looked for with poison: freed ranges are overwritten, every view is checked."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from skate_object_store import (
    ObjectExistsError,
    StoreClient,
    StoreConfig,
    StoreFullError,
    StoreServer,
)

KIB = 1 << 10
CAPACITY = 512 * KIB
IDS = [b"object %02d" % number for number in range(24)]

Serve = Callable[..., StoreServer]


def pattern(object_id: bytes, size: int) -> bytes:
    return (object_id * (size // len(object_id) + 1))[:size]


def churn(client: StoreClient, seed: int, steps: int) -> int:
    """Puts, gets, holds, checks and deletes at random; returns how many views it checked."""
    source = random.Random(seed)
    held: list[tuple[bytes, memoryview]] = []
    checked = 0
    for _ in range(steps):
        object_id = source.choice(IDS)
        action = source.random()
        if action < 0.35:
            size = source.randrange(100, 60 * KIB)
            try:
                client.put(object_id, [pattern(object_id, size)], evictable=source.random() < 0.8)
            except (ObjectExistsError, StoreFullError):
                pass  # Another took the id, or views hold everything: both are the point.
        elif action < 0.85:
            (view,) = client.get([object_id])
            if view is not None:
                assert view == pattern(object_id, len(view)), "changed before it was seen"
                held.append((object_id, view))
        elif action < 0.95:
            client.delete([object_id])
        while len(held) > 6 or (held and source.random() < 0.3):
            object_id, view = held.pop(source.randrange(len(held)))
            assert view == pattern(object_id, len(view)), "changed while it was held"
            checked += 1
    return checked + len(held)


@pytest.fixture
def poisoned(serve: Serve) -> StoreServer:
    config = StoreConfig(commit_ahead_min_bytes=0, trim_idle_s=0.01, is_poisoning=True)
    return serve(CAPACITY, config=config)


@pytest.mark.invariant("I4")
def test_views_never_change_under_get_and_evict_races_of_threads(poisoned: StoreServer) -> None:
    failures: list[Exception] = []
    checked: list[int] = []

    def work(seed: int, client: StoreClient) -> None:
        try:
            checked.append(churn(client, seed, 1500))
        except Exception as error:  # noqa: BLE001  The main thread shows it.
            failures.append(error)

    with StoreClient(poisoned.endpoint) as shared, StoreClient(poisoned.endpoint) as own:
        clients = [shared, shared, own, own]
        threads = [
            threading.Thread(target=work, args=(seed, client))
            for seed, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
        assert failures == []
        assert sum(checked) > 1000
        assert poisoned.statistics().evicted_total > 0


@pytest.mark.invariant("I4")
def test_views_never_change_under_races_of_processes_that_die(poisoned: StoreServer) -> None:
    code = f"""
import sys, os
sys.path.insert(0, {str(__file__).rsplit("/", 1)[0]!r})
import test_races
from skate_object_store import StoreClient
client = StoreClient(sys.argv[1])
print(test_races.churn(client, int(sys.argv[2]), 1500))
sys.stdout.flush()
os._exit(0)
"""
    for seed in range(2):
        children = [
            subprocess.Popen(
                [sys.executable, "-c", code, poisoned.endpoint, str(10 * seed + number)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(3)
        ]
        victim = children.pop()
        with StoreClient(poisoned.endpoint) as client:
            churn(client, 99 + seed, 300)
        victim.kill()
        victim.communicate(timeout=10)
        for child in children:
            output, _ = child.communicate(timeout=50)
            assert child.returncode == 0
            assert int(output) > 100
