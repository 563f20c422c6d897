"""Every metric that Skate exports, declared once: name, kind, unit, help and labels.

The table in this library's README, the HELP lines of an exposition and the tests come from here.
Names carry the prefix ``skate_``, the base unit, and ``_total`` on counters. No label holds the
id of a task, an actor or a worker; the values of a label that users choose are capped
(``metrics.py``).

Source: ECOSYSTEM 2.3; the Prometheus naming rules, which ``promtool check metrics`` enforces.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class Kind(enum.Enum):
    """How a family's values behave."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Unit(enum.Enum):
    """The base unit of a family's values; a name ends with it."""

    NONE = ""
    SECONDS = "seconds"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric and what distinguishes its series."""

    name: str
    kind: Kind
    unit: Unit
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, growing; one more bucket holds what is above."""

    def __post_init__(self) -> None:
        if list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"The buckets of {self.name} must grow.")
        if bool(self.buckets) is not (self.kind is Kind.HISTOGRAM):
            raise ValueError(f"{self.name}: histograms have buckets, and nothing else has.")


def _gauge(name: str, unit: Unit, text: str, *labels: str) -> Family:
    return Family(name, Kind.GAUGE, unit, text, labels)


def _counter(name: str, unit: Unit, text: str, *labels: str) -> Family:
    return Family(name, Kind.COUNTER, unit, text, labels)


# ---- the process and the node ----

BUILD_INFO: Final = _gauge(
    "skate_build_info", Unit.NONE, "Versions of the running code; always 1.", "version", "python"
)
NODE_INFO: Final = _gauge(
    "skate_node_info",
    Unit.NONE,
    "Names of this node; always 1.",
    "node_id",
    "node_name",
    "session_name",
    "is_head",
)
PROCESS_START_TIME: Final = _gauge(
    "skate_process_start_time_seconds", Unit.SECONDS, "Unix time at which the node daemon started."
)
PROCESS_CPU: Final = _counter(
    "skate_process_cpu_seconds_total",
    Unit.SECONDS,
    "Processor time that the node daemon has used, in user and system mode.",
)
PROCESS_RESIDENT_MEMORY: Final = _gauge(
    "skate_process_resident_memory_bytes",
    Unit.BYTES,
    "Memory of the node daemon that is in RAM, with the part of the object store that it touched.",
)
PROCESS_OPEN_FILES: Final = _gauge(
    "skate_process_open_files", Unit.NONE, "File descriptors that the node daemon has open."
)
EVENT_LOOP_LAG: Final = _gauge(
    "skate_event_loop_lag_seconds",
    Unit.SECONDS,
    "How long the event loop took to run a callback at this scrape.",
    "loop",
)

# ---- leases and workers ----

RESOURCE_CAPACITY: Final = _gauge(
    "skate_resource_capacity", Unit.NONE, "Amount of a resource that the node has.", "resource"
)
RESOURCE_AVAILABLE: Final = _gauge(
    "skate_resource_available", Unit.NONE, "Amount of a resource that no lease holds.", "resource"
)
LEASES: Final = _gauge(
    "skate_leases", Unit.NONE, "Workers that are leased now, by what they run.", "kind"
)
LEASES_GRANTED: Final = _counter(
    "skate_leases_granted_total", Unit.NONE, "Leases that the node has granted."
)
LEASE_REQUESTS: Final = _gauge(
    "skate_lease_requests",
    Unit.NONE,
    "Requests for a lease that are not granted: waiting, or infeasible on every live node.",
    "state",
)
WORKERS: Final = _gauge(
    "skate_workers", Unit.NONE, "Worker processes of the node: idle, busy or starting.", "state"
)
WORKERS_STARTED: Final = _counter(
    "skate_workers_started_total", Unit.NONE, "Worker processes that the node has started."
)
WORKER_DEATHS: Final = _counter(
    "skate_worker_deaths_total", Unit.NONE, "Worker processes that have ended, by cause.", "reason"
)

# ---- the object store ----

STORE_CAPACITY: Final = _gauge(
    "skate_object_store_capacity_bytes", Unit.BYTES, "Size of the node's object store."
)
STORE_USED: Final = _gauge(
    "skate_object_store_used_bytes", Unit.BYTES, "Bytes of the store that objects occupy."
)
STORE_PINNED: Final = _gauge(
    "skate_object_store_pinned_bytes",
    Unit.BYTES,
    "Bytes of sealed objects that at least one process has a view of.",
)
STORE_EVICTABLE: Final = _gauge(
    "skate_object_store_evictable_bytes",
    Unit.BYTES,
    "Bytes of copies that are dropped when room is needed.",
)
STORE_OBJECTS: Final = _gauge(
    "skate_object_store_objects", Unit.NONE, "Objects in the node's store."
)
STORE_CREATED: Final = _counter(
    "skate_object_store_created_objects_total", Unit.NONE, "Objects created in the node's store."
)
STORE_EVICTED: Final = _counter(
    "skate_object_store_evicted_objects_total", Unit.NONE, "Copies dropped to make room."
)
STORE_EVICTED_BYTES: Final = _counter(
    "skate_object_store_evicted_bytes_total", Unit.BYTES, "Bytes of copies dropped to make room."
)
STORE_SPILLED: Final = _gauge(
    "skate_object_store_spilled_bytes", Unit.BYTES, "Bytes of objects that are on disk only."
)
STORE_DISK: Final = _gauge(
    "skate_object_store_disk_bytes",
    Unit.BYTES,
    "Bytes of files that hold spilled objects, those that are in memory too included.",
)
STORE_SPILLED_TOTAL: Final = _counter(
    "skate_object_store_spilled_bytes_total", Unit.BYTES, "Bytes of objects written to disk."
)
STORE_RESTORED_TOTAL: Final = _counter(
    "skate_object_store_restored_bytes_total", Unit.BYTES, "Bytes of objects read back from disk."
)

# ---- objects between nodes ----

OBJECT_PULLS: Final = _gauge(
    "skate_object_pulls",
    Unit.NONE,
    "Objects on their way to this node: queued, or under way.",
    "state",
)
OBJECT_PULLS_ENDED: Final = _counter(
    "skate_object_pulls_ended_total",
    Unit.NONE,
    "Transfers to this node that ended: done or failed.",
    "outcome",
)
OBJECT_PULLED_BYTES: Final = _counter(
    "skate_object_pulled_bytes_total", Unit.BYTES, "Bytes of objects received from other nodes."
)
OBJECT_SERVED_BYTES: Final = _counter(
    "skate_object_served_bytes_total", Unit.BYTES, "Bytes of objects sent to other nodes."
)

# ---- the cluster, on the head node ----

NODES: Final = _gauge("skate_nodes", Unit.NONE, "Nodes of the cluster: alive or dead.", "state")
ACTORS: Final = _gauge("skate_actors", Unit.NONE, "Actors that the GCS knows, by state.", "state")
PLACEMENT_GROUPS: Final = _gauge(
    "skate_placement_groups", Unit.NONE, "Placement groups that the GCS knows, by state.", "state"
)
PLACEMENT_GROUP_CREATIONS: Final = _counter(
    "skate_placement_group_creations_total", Unit.NONE, "Placement groups that were created."
)
PLACEMENT_GROUP_CREATION_S: Final = _counter(
    "skate_placement_group_creation_seconds_total",
    Unit.SECONDS,
    "Time that creations of placement groups took, from registration, in all.",
)
JOBS: Final = _gauge("skate_jobs", Unit.NONE, "Jobs: running or finished.", "state")
KV_ENTRIES: Final = _gauge("skate_kv_entries", Unit.NONE, "Keys in the GCS's key-value store.")
KV_BYTES: Final = _gauge(
    "skate_kv_bytes", Unit.BYTES, "Bytes of keys and values in the GCS's key-value store."
)

# ---- tasks, from the events that workers send while tracing is on ----

TASKS_FINISHED: Final = _counter(
    "skate_tasks_finished_total",
    Unit.NONE,
    "Attempts of tasks and actor calls that ended, counted while tracing is on.",
    "name",
    "outcome",
)
TASK_DURATION: Final = Family(
    "skate_task_duration_seconds",
    Kind.HISTOGRAM,
    Unit.SECONDS,
    "Run time of attempts of tasks and actor calls, measured while tracing is on.",
    ("name",),
    (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0),
)

# ---- calls between processes, and telemetry itself ----

RPC_CALLS: Final = _counter(
    "skate_rpc_calls_total", Unit.NONE, "Control-plane calls with the right token.", "server"
)
RPC_REFUSED: Final = _counter(
    "skate_rpc_refused_calls_total", Unit.NONE, "Control-plane calls without the token.", "server"
)
SPANS: Final = _counter(
    "skate_trace_spans_total",
    Unit.NONE,
    "Spans of finished tasks: recorded, exported, failed to export, or rejected as malformed.",
    "outcome",
)
DROPPED_SERIES: Final = _counter(
    "skate_metrics_dropped_series_total",
    Unit.NONE,
    "Label combinations over a metric's cap, which are counted together as __other__.",
    "metric",
)
SOURCE_ERRORS: Final = _counter(
    "skate_metrics_source_errors_total",
    Unit.NONE,
    "Scrapes at which a component did not give its statistics.",
    "source",
)

FAMILIES: Final[tuple[Family, ...]] = (
    BUILD_INFO,
    NODE_INFO,
    PROCESS_START_TIME,
    PROCESS_CPU,
    PROCESS_RESIDENT_MEMORY,
    PROCESS_OPEN_FILES,
    EVENT_LOOP_LAG,
    RESOURCE_CAPACITY,
    RESOURCE_AVAILABLE,
    LEASES,
    LEASES_GRANTED,
    LEASE_REQUESTS,
    WORKERS,
    WORKERS_STARTED,
    WORKER_DEATHS,
    STORE_CAPACITY,
    STORE_USED,
    STORE_PINNED,
    STORE_EVICTABLE,
    STORE_OBJECTS,
    STORE_CREATED,
    STORE_EVICTED,
    STORE_EVICTED_BYTES,
    OBJECT_PULLS,
    OBJECT_PULLS_ENDED,
    OBJECT_PULLED_BYTES,
    OBJECT_SERVED_BYTES,
    STORE_SPILLED,
    STORE_DISK,
    STORE_SPILLED_TOTAL,
    STORE_RESTORED_TOTAL,
    NODES,
    ACTORS,
    PLACEMENT_GROUPS,
    PLACEMENT_GROUP_CREATIONS,
    PLACEMENT_GROUP_CREATION_S,
    JOBS,
    KV_ENTRIES,
    KV_BYTES,
    TASKS_FINISHED,
    TASK_DURATION,
    RPC_CALLS,
    RPC_REFUSED,
    SPANS,
    DROPPED_SERIES,
    SOURCE_ERRORS,
)
"""In the order of an exposition."""


def families_table() -> str:
    """The families as a Markdown table, as it stands in the README."""
    lines = ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{family.name}` | {family.kind.value}"
        f" | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |"
        for family in FAMILIES
    ]
    return "\n".join(lines)
