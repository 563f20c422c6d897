"""What programs measure is on the node's page."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import skate
from skate.test_utils import wait_for_condition
from skate.util.metrics import Counter, Gauge, Histogram

WAIT_S = 30.0

rows_read = Counter("rows_read", "Rows read.", tag_keys=("source",))


def samples(cluster: Any) -> dict[tuple[str, str], float]:
    """Each sample by its name and its labels' values."""
    (node,) = skate.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    token = next(Path(cluster.address_info["session_dir"]).glob("token")).read_text().strip()
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=WAIT_S) as response:
        text = response.read().decode()
    return {
        (sample.name, "/".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.surface("M1")
def test_driver_tasks_and_actors_add_up_on_the_page_of_their_node(cluster: Any) -> None:
    @skate.remote
    def read(count: int) -> None:
        rows_read.inc(count, tags={"source": "disk"})

    @skate.remote(num_cpus=0)
    class Server:
        def __init__(self) -> None:
            self.waiting = Gauge("waiting_requests")
            self.seconds = Histogram("request_seconds", boundaries=[0.1, 1])

        def serve(self, waiting: int, seconds: float) -> None:
            self.waiting.set(waiting)
            self.seconds.observe(seconds)

    assert not [name for name, _ in samples(cluster) if "rows_read" in name]
    server = Server.remote()  # type: ignore[attr-defined]
    skate.get([read.remote(count) for count in (1, 2, 3)])
    skate.get([server.serve.remote(7, 0.05), server.serve.remote(4, 5.0)])
    rows_read.inc(10, tags={"source": "driver"})
    expected = {
        ("skate_rows_read_total", "disk"): 6,
        ("skate_rows_read_total", "driver"): 10,
        ("skate_waiting_requests", ""): 4,
        ("skate_request_seconds_bucket", "0.1"): 1,
        ("skate_request_seconds_bucket", "1.0"): 1,
        ("skate_request_seconds_bucket", "+Inf"): 2,
        ("skate_request_seconds_sum", ""): 5.05,
    }
    wait_for_condition(lambda: expected.items() <= samples(cluster).items(), timeout=WAIT_S)


@pytest.mark.surface("M1")
def test_actor_that_ends_at_once_has_said_what_it_measured(cluster: Any) -> None:
    @skate.remote(num_cpus=0)
    class Brief:
        def work(self) -> None:
            Counter("brief_work").inc()
            skate.actor.exit_actor()

    skate.wait([Brief.remote().work.remote()])  # type: ignore[attr-defined]
    wait_for_condition(
        lambda: samples(cluster).get(("skate_brief_work_total", "")) == 1, timeout=WAIT_S
    )
