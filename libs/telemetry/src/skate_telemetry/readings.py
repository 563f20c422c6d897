"""What a component says at a scrape, as values of the declared families.

A component offers ``statistics()``; the composition of a node turns it into readings with the
functions here, which take plain numbers, so that this library needs to know no component::

    def read_store() -> Iterator[Reading]:
        now = store.statistics()
        return store_readings(capacity_bytes=now.capacity_bytes, used_bytes=now.used_bytes, ...)
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from skate_telemetry import families as f
from skate_telemetry.families import Family


class HistogramValue(NamedTuple):
    """What a histogram has seen."""

    counts: tuple[int, ...]
    """Observations per bucket, not cumulative; one more than the family has bounds."""
    total: float
    """The sum of all observations."""


class Reading(NamedTuple):
    """One value of one series."""

    family: Family
    value: float | HistogramValue
    labels: tuple[str, ...] = ()
    """Values of the family's labels, in its order."""


Source: TypeAlias = Callable[[], Iterable[Reading]]
"""Called at each scrape, on the metrics server's thread."""

LOOP_TIMEOUT_S = 2.0
"""How long a scrape waits for an event loop. A busy daemon is late by milliseconds; one that is
stuck for this long shows as its lag, and the scrape goes on without it."""


def run_on_loop(
    loop: asyncio.AbstractEventLoop, name: str, source: Source, timeout_s: float = LOOP_TIMEOUT_S
) -> Source:
    """``source`` for a component that is not thread-safe: it is read on its own event loop.

    Also reads the loop's lag, under the label ``name``. Reading raises ``TimeoutError`` when the
    loop does not get to it within ``timeout_s``, and ``RuntimeError`` when it is closed.
    """

    def read() -> Iterator[Reading]:
        done: concurrent.futures.Future[tuple[float, list[Reading]]] = concurrent.futures.Future()

        def read_here() -> None:
            if not done.set_running_or_notify_cancel():
                return  # The scrape has given up.
            try:
                done.set_result((time.monotonic(), list(source())))
            except Exception as error:  # noqa: BLE001  (the boundary between two threads)
                done.set_exception(error)

        asked_s = time.monotonic()
        loop.call_soon_threadsafe(read_here)
        try:
            ran_s, readings = done.result(timeout_s)
        except TimeoutError:
            done.cancel()
            yield Reading(f.EVENT_LOOP_LAG, time.monotonic() - asked_s, (name,))
            raise
        yield Reading(f.EVENT_LOOP_LAG, ran_s - asked_s, (name,))
        yield from readings

    return read


def build_readings(version: str) -> Iterator[Reading]:
    """Which code runs."""
    yield Reading(f.BUILD_INFO, 1, (version, platform.python_version()))


def node_readings(
    *, node_id: str, node_name: str, session_name: str, is_head: bool
) -> Iterator[Reading]:
    """Which node this is."""
    yield Reading(f.NODE_INFO, 1, (node_id, node_name, session_name, str(is_head).lower()))


def process_readings() -> Iterator[Reading]:
    """The calling process, from ``/proc``. Nothing where there is none."""
    if not os.path.exists("/proc/self/stat"):
        return
    with open("/proc/self/stat", "rb") as file:
        # The name in parentheses may hold anything, so fields are counted after its end; see
        # proc(5).
        fields = file.read().rpartition(b")")[2].split()
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    yield Reading(f.PROCESS_START_TIME, _boot_time_s() + int(fields[19]) / ticks_per_s)
    yield Reading(f.PROCESS_CPU, (int(fields[11]) + int(fields[12])) / ticks_per_s)
    yield Reading(f.PROCESS_RESIDENT_MEMORY, int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))
    yield Reading(f.PROCESS_OPEN_FILES, len(os.listdir("/proc/self/fd")))


@functools.cache  # The kernel computes it anew each time, and a start time must not wander.
def _boot_time_s() -> int:
    with open("/proc/stat", "rb") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(b"btime"))


def resource_readings(
    *, total: Mapping[str, int], available: Mapping[str, int], units_per_one: int = 10_000
) -> Iterator[Reading]:
    """A node's resources, given in units of 1e-4."""
    for name, units in total.items():
        yield Reading(f.RESOURCE_CAPACITY, units / units_per_one, (name,))
        yield Reading(f.RESOURCE_AVAILABLE, available.get(name, 0) / units_per_one, (name,))


def lease_readings(
    *,
    tasks: int,
    actors: int,
    waiting: int,
    infeasible: int,
    granted_total: int | None = None,
) -> Iterator[Reading]:
    """A node's leases: held now by kind, requests not granted by state, granted since the start."""
    yield Reading(f.LEASES, tasks, ("task",))
    yield Reading(f.LEASES, actors, ("actor",))
    yield Reading(f.LEASE_REQUESTS, waiting, ("waiting",))
    yield Reading(f.LEASE_REQUESTS, infeasible, ("infeasible",))
    if granted_total is not None:
        yield Reading(f.LEASES_GRANTED, granted_total)


def worker_readings(
    *,
    idle: int,
    busy: int,
    starting: int,
    started_total: int | None = None,
    died_total: Mapping[str, int] | None = None,
) -> Iterator[Reading]:
    """A node's worker processes; ``died_total`` by cause (``"exited"``, ``"signaled"``, ...)."""
    yield Reading(f.WORKERS, idle, ("idle",))
    yield Reading(f.WORKERS, busy, ("busy",))
    yield Reading(f.WORKERS, starting, ("starting",))
    if started_total is not None:
        yield Reading(f.WORKERS_STARTED, started_total)
    for reason, count in (died_total or {}).items():
        yield Reading(f.WORKER_DEATHS, count, (reason,))


def store_readings(
    *,
    capacity_bytes: int,
    used_bytes: int,
    objects: int,
    pinned_bytes: int,
    evictable_bytes: int,
    created_total: int,
    evicted_total: int,
    evicted_bytes_total: int,
    spilled_bytes: int = 0,
    disk_bytes: int = 0,
    spilled_bytes_total: int = 0,
    restored_bytes_total: int = 0,
) -> Iterator[Reading]:
    """A node's object store."""
    yield Reading(f.STORE_CAPACITY, capacity_bytes)
    yield Reading(f.STORE_USED, used_bytes)
    yield Reading(f.STORE_OBJECTS, objects)
    yield Reading(f.STORE_PINNED, pinned_bytes)
    yield Reading(f.STORE_EVICTABLE, evictable_bytes)
    yield Reading(f.STORE_CREATED, created_total)
    yield Reading(f.STORE_EVICTED, evicted_total)
    yield Reading(f.STORE_EVICTED_BYTES, evicted_bytes_total)
    yield Reading(f.STORE_SPILLED, spilled_bytes)
    yield Reading(f.STORE_DISK, disk_bytes)
    yield Reading(f.STORE_SPILLED_TOTAL, spilled_bytes_total)
    yield Reading(f.STORE_RESTORED_TOTAL, restored_bytes_total)


def transfer_readings(
    *,
    queued: int,
    under_way: int,
    done_total: int,
    failed_total: int,
    pulled_bytes_total: int,
    served_bytes_total: int,
) -> Iterator[Reading]:
    """Objects that travel between this node and others."""
    yield Reading(f.OBJECT_PULLS, queued, ("queued",))
    yield Reading(f.OBJECT_PULLS, under_way, ("under_way",))
    yield Reading(f.OBJECT_PULLS_ENDED, done_total, ("done",))
    yield Reading(f.OBJECT_PULLS_ENDED, failed_total, ("failed",))
    yield Reading(f.OBJECT_PULLED_BYTES, pulled_bytes_total)
    yield Reading(f.OBJECT_SERVED_BYTES, served_bytes_total)


def gcs_readings(
    *,
    nodes: Mapping[str, int],
    actors: Mapping[str, int],
    jobs: Mapping[str, int],
    kv_entries: int | None = None,
    kv_bytes: int | None = None,
    placement_groups: Mapping[str, int] | None = None,
    group_creations: int = 0,
    group_creation_s: float = 0.0,
) -> Iterator[Reading]:
    """The GCS's tables: rows by state. Give 0 for a state without rows: its series then exists."""
    for family, counts in ((f.NODES, nodes), (f.ACTORS, actors), (f.JOBS, jobs)):
        for state, count in counts.items():
            yield Reading(family, count, (state.lower(),))
    if placement_groups is not None:
        for state, count in placement_groups.items():
            yield Reading(f.PLACEMENT_GROUPS, count, (state.lower(),))
        yield Reading(f.PLACEMENT_GROUP_CREATIONS, group_creations)
        yield Reading(f.PLACEMENT_GROUP_CREATION_S, group_creation_s)
    if kv_entries is not None:
        yield Reading(f.KV_ENTRIES, kv_entries)
    if kv_bytes is not None:
        yield Reading(f.KV_BYTES, kv_bytes)


def rpc_readings(server: str, *, calls: int, refused: int) -> Iterator[Reading]:
    """One gRPC server (``"gcs"``, ``"raylet"``)."""
    yield Reading(f.RPC_CALLS, calls, (server,))
    yield Reading(f.RPC_REFUSED, refused, (server,))


def span_readings(*, recorded: int, exported: int, failed: int, rejected: int) -> Iterator[Reading]:
    """A span sink."""
    yield Reading(f.SPANS, recorded, ("recorded",))
    yield Reading(f.SPANS, exported, ("exported",))
    yield Reading(f.SPANS, failed, ("failed",))
    yield Reading(f.SPANS, rejected, ("rejected",))
