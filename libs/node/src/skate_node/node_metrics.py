"""The node's ``GET /metrics``: what its parts count anyway, asked for at each scrape."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from skate_gcs import GcsServer, GcsStatistics
from skate_node.gcs_process import GcsProcess
from skate_node.program_metrics import ProgramMetrics
from skate_node.session import NodeRecord
from skate_node.task_spans import TaskSpans
from skate_raylet import Raylet
from skate_telemetry import readings
from skate_telemetry.metrics import MetricsRegistry
from skate_telemetry.metrics_server import MetricsServer
from skate_telemetry.readings import Reading


class NodeMetrics:
    """Listens from the start; has values once :meth:`watch` was called."""

    def __init__(self, host: str, port: int, token: str) -> None:
        """Raises ``MetricsBindError`` or ``MissingExtraError``."""
        self._registry = MetricsRegistry()
        self._server = MetricsServer(self._registry, host, port, token)
        self.endpoint = self._server.endpoint

    def watch(
        self,
        record: NodeRecord,
        gcs: GcsServer | GcsProcess | None,
        raylet: Raylet,
        spans: TaskSpans,
        programs: ProgramMetrics,
    ) -> None:
        """Ask these parts at each scrape. On the loop that the GCS and the raylet run on."""
        loop = asyncio.get_running_loop()
        add = self._registry.add_source
        add("build", _build)
        add("node", lambda: _node(record))
        add("process", readings.process_readings)
        add("tasks", spans.readings)
        self._registry.add_undeclared(programs.collect)
        add("raylet", readings.run_on_loop(loop, "node", lambda: _raylet(raylet)))
        if isinstance(gcs, GcsServer):
            add("gcs", readings.run_on_loop(loop, "gcs", lambda: _gcs(gcs.statistics())))
        elif gcs is not None:

            def ask() -> GcsStatistics:
                asked = asyncio.run_coroutine_threadsafe(gcs.statistics(), loop)
                return asked.result(readings.LOOP_TIMEOUT_S)

            add("gcs", lambda: _gcs(ask()))

    def close(self) -> None:
        """Stop serving."""
        self._server.close()


def _build() -> Iterator[Reading]:
    # Imported at a scrape, not at the daemon's start: 10 ms.
    from importlib.metadata import version  # noqa: PLC0415

    return readings.build_readings(version("skate-node"))


def _node(record: NodeRecord) -> Iterator[Reading]:
    return readings.node_readings(
        node_id=record.node_id,
        node_name=record.node_name,
        session_name=record.session_name,
        is_head=record.is_head,
    )


def _raylet(raylet: Raylet) -> Iterator[Reading]:
    counts = raylet.statistics()
    node, store = counts.node, counts.store
    yield from readings.resource_readings(
        total=node.total.to_dict(), available=node.available.to_dict()
    )
    yield from readings.lease_readings(
        tasks=node.task_leases,
        actors=node.actor_leases,
        waiting=node.waiting,
        infeasible=node.infeasible,
    )
    yield from readings.worker_readings(
        idle=node.workers_idle,
        busy=node.workers - node.workers_idle - node.workers_starting,
        starting=node.workers_starting,
    )
    yield from readings.store_readings(
        capacity_bytes=store.capacity_bytes,
        used_bytes=store.used_bytes,
        objects=store.objects,
        pinned_bytes=store.pinned_bytes,
        evictable_bytes=store.evictable_bytes,
        created_total=store.created_total,
        evicted_total=store.evicted_total,
        evicted_bytes_total=store.evicted_bytes_total,
        spilled_bytes=store.spilled_bytes,
        disk_bytes=store.disk_files_bytes,
        spilled_bytes_total=store.spilled_bytes_total,
        restored_bytes_total=store.restored_bytes_total,
    )
    transfers = counts.transfers
    yield from readings.transfer_readings(
        queued=transfers.pulls.queued,
        under_way=transfers.pulls.under_way,
        done_total=transfers.pulls.done_total,
        failed_total=transfers.pulls.failed_total,
        pulled_bytes_total=transfers.pulled_bytes_total,
        served_bytes_total=transfers.served_bytes_total,
    )


def _gcs(counts: GcsStatistics) -> Iterator[Reading]:
    tables = counts.tables
    yield from readings.gcs_readings(
        nodes={"alive": tables.nodes_alive, "dead": tables.nodes_dead},
        actors={state.name: count for state, count in tables.actors.items()},
        jobs={"running": tables.jobs_running, "finished": tables.jobs_finished},
        kv_entries=tables.kv_entries,
        kv_bytes=tables.kv_bytes,
        placement_groups={state.name: n for state, n in tables.placement_groups.items()},
        group_creations=tables.group_creations,
        group_creation_s=tables.group_creation_s,
    )
    yield from readings.rpc_readings("gcs", calls=counts.rpc_calls, refused=counts.rpc_refused)
