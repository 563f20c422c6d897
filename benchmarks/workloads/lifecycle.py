"""Import, start, first result and shutdown: measured by each round around its own cluster."""

from __future__ import annotations

from benchmarks.workload import Capability, Registry, Stage, Workload

IMPORT = "import"
IMPORT_USED = "import_used"
INIT = "init"
FIRST_RESULT = "first_result"
PROCESSES = "processes"
SHUTDOWN = "shutdown"
GONE = "gone"


def register(registry: Registry) -> None:
    """Add the workloads of this module."""
    rows: tuple[tuple[str, str, str, str, set[Capability]], ...] = (
        (IMPORT, "import", "s", "the peer's import in a fresh interpreter", set()),
        (
            IMPORT_USED,
            "import of what a program uses",
            "s",
            "the same with the names of an ordinary program: a lazy import may hide its cost",
            set(),
        ),
        (
            INIT,
            "init",
            "s",
            "starting a local cluster, until the call returns",
            {Capability.CLUSTER},
        ),
        (
            FIRST_RESULT,
            "init to first result",
            "s",
            "from the start of init until the first task's result is here",
            {Capability.CLUSTER, Capability.TASKS},
        ),
        (
            PROCESSES,
            "processes after init",
            "processes",
            "the driver and everything it started, counted when init returns",
            {Capability.CLUSTER},
        ),
        (
            SHUTDOWN,
            "shutdown",
            "s",
            "stopping the cluster, until the call returns",
            {Capability.CLUSTER},
        ),
        (
            GONE,
            "shutdown to last process gone",
            "s",
            "from the start of shutdown until the driver is the only process left",
            {Capability.CLUSTER},
        ),
    )
    for workload_id, title, unit, definition, needs in rows:
        registry.add(
            Workload(
                id=workload_id,
                title=title,
                unit=unit,
                definition=definition,
                source="Skate",
                needs=frozenset(needs),
                stage=Stage.LIFECYCLE,
                is_rate=False,
            )
        )
