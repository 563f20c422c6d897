"""How long to measure and how much work a batch holds: the quick, the default and the full plan.

The default plan keeps a complete run of Skate and Ray under a quarter of an hour on two cores; the
full one has Ray's own batch sizes and sample lengths; the quick one is a smoke test.
"""

from __future__ import annotations

from dataclasses import dataclass

PLACEMENT_RESOURCE = "custom"
PLACEMENT_RESOURCE_TOTAL = 100


@dataclass(frozen=True, slots=True)
class Sizes:
    """Counts of the workloads; the defaults are Ray's, but for those that say otherwise."""

    batch: int = 1000  # Tasks or calls that are submitted together.
    put_clients: int = 10
    puts_per_client: int = 100
    array_bytes: int = 100 * 1024 * 1024 * 8
    fresh_store_puts: int = 10
    warm_store_bytes_max: int = 32_000_000_000
    client_array_bytes: int = 10 * 1024 * 1024 * 8
    array_puts_per_client: int = 10
    contained_references: int = 10_000
    waited_references: int = 1000
    submitters: int = 4
    tasks_per_submitter: int = 1000  # Ray: 10,000 (a batch of 40,000 takes Ray 20 s on two cores).
    calls_per_client: int = 5000
    argument_calls_per_client: int = 1000
    actor_threads: int = 16
    queued_tasks: int = 10_000
    medium_array_bytes: int = 8 * 1000 * 1000
    medium_array_tasks: int = 100
    arguments: int = 10_000
    returns: int = 3000
    fetched_objects: int = 10_000
    list_length: int = 10_000  # Elements of each argument, return value and fetched object.
    placement_groups: int = 100
    many_placement_groups: int = 1000
    actors_created: int = 8
    live_actors: int = 41


@dataclass(frozen=True, slots=True)
class Plan:
    """Lengths in seconds; `cpus` is what each cluster is given.

    A workload warms up for about `warm_up_s`, then takes up to `samples_max` samples of about
    `sample_s`, fewer (at least one) when `budget_s` is spent. One that takes longer than `limit_s`
    is ended and reported as failed.
    """

    sizes: Sizes
    cpus: int
    warm_up_s: float = 0.3
    sample_s: float = 0.4
    samples_max: int = 3
    budget_s: float = 4.0
    limit_s: float = 90.0
    start_limit_s: float = 90.0
    stop_limit_s: float = 30.0
    import_samples: int = 3
    is_every_round_complete: bool = False  # True: `rounds_max` of the workloads is not applied.


def default_plan(cpus: int) -> Plan:
    """The plan whose results are kept."""
    return Plan(sizes=Sizes(), cpus=cpus)


def full_plan(cpus: int) -> Plan:
    """Ray's published batch sizes and sample lengths; the better part of an hour with Ray."""
    return Plan(
        sizes=Sizes(tasks_per_submitter=10_000),
        cpus=cpus,
        warm_up_s=1.0,
        sample_s=2.0,
        samples_max=4,
        budget_s=30.0,
        limit_s=300.0,
        is_every_round_complete=True,
    )


def quick_plan(cpus: int) -> Plan:
    """Everything once and small: shows that the workloads run, says nothing about speed."""
    sizes = Sizes(
        batch=50,
        put_clients=2,
        puts_per_client=10,
        array_bytes=8_000_000,
        fresh_store_puts=2,
        warm_store_bytes_max=16_000_000,
        client_array_bytes=1_000_000,
        array_puts_per_client=2,
        contained_references=200,
        waited_references=50,
        submitters=2,
        tasks_per_submitter=20,
        calls_per_client=50,
        argument_calls_per_client=20,
        actor_threads=4,
        queued_tasks=200,
        medium_array_bytes=1_000_000,
        medium_array_tasks=5,
        arguments=200,
        returns=100,
        fetched_objects=200,
        list_length=100,
        placement_groups=5,
        many_placement_groups=20,
        actors_created=2,
        live_actors=4,
    )
    return Plan(
        sizes=sizes,
        cpus=cpus,
        warm_up_s=0.02,
        sample_s=0.05,
        samples_max=1,
        budget_s=1.0,
        limit_s=30.0,
        start_limit_s=30.0,
        stop_limit_s=15.0,
        import_samples=1,
    )
