"""Memory explained: ``skate.util.state`` and ``skate memory`` over real processes."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import skate
from skate.internal import free
from skate.util.state import ObjectState, StateApiError, list_objects, summarize_objects
from skate_cluster.cli import cli
from skate_worker.current import require_core
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("shared_cluster")
WAIT_S = 20.0
LARGE = 50_000


def rows(ref: Any) -> list[ObjectState]:
    return list_objects(filters=[("object_id", "=", ref.hex())])


@skate.remote
class Keeper:
    def __init__(self) -> None:
        self.kept: Any = None

    def keep(self, value: Any) -> None:
        self.kept = value

    def make(self) -> Any:
        self.kept = skate.put(np.zeros(LARGE))
        return [self.kept]

    def wait_for(self, value: Any, path: str) -> None:
        while not Path(path).exists():
            time.sleep(0.005)

    def pid(self) -> int:
        return os.getpid()


@skate.remote
def boom() -> None:
    raise ValueError("boom")


def test_items_of_a_generator_that_nobody_has_taken_are_listed_as_that(tmp_path: Path) -> None:
    @skate.remote
    def items(path: str) -> Any:
        for number in range(3):
            yield np.full(LARGE, number)
        while not Path(path).exists():
            time.sleep(0.005)

    def listed() -> list[ObjectState]:
        return [row for row in list_objects() if row.reasons.get("UNREAD_GENERATOR_ITEM")]

    stream = items.remote(str(tmp_path / "go"))
    wait_for(lambda: len(listed()) == 3)
    for row in listed():
        assert row.reasons == {"UNREAD_GENERATOR_ITEM": 1}
        assert row.reference_type == "UNREAD_GENERATOR_ITEM"
        assert (row.task_name.rpartition(".")[2], row.task_status) == (
            "items",
            "SUBMITTED_TO_WORKER",
        )
        assert "items()" in row.call_site
    taken = next(stream)
    (row,) = rows(taken)
    assert row.reasons == {"LOCAL_REFERENCE": 1}
    (tmp_path / "go").touch()
    wait_for(lambda: {row.task_status for row in listed()} == {"FINISHED"})
    assert len(listed()) == 2
    del stream
    wait_for(lambda: not listed())


def test_local_reference_is_listed_with_its_line() -> None:
    ref = skate.put(np.zeros(LARGE))
    (row,) = rows(ref)
    assert row.reasons == {"LOCAL_REFERENCE": 1}
    assert row.reference_type == row["reference_type"] == "LOCAL_REFERENCE"
    assert row.object_size > LARGE * 8
    assert row.state == "STORED"
    assert (row.type, row.pid, row.owner_pid) == ("DRIVER", os.getpid(), os.getpid())
    assert re.search(r"test_object_listing\.py:\d+ in test_local", row.call_site)
    assert row.stored_on == [skate.get_runtime_context().get_node_id()]
    with pytest.raises(KeyError):
        row["no_such_field"]


def test_view_of_the_bytes_is_listed_and_outlives_the_reference() -> None:
    ref = skate.put(np.zeros(LARGE))
    object_id = ref.hex()
    array = skate.get(ref)
    assert rows(ref)[0].reasons == {"LOCAL_REFERENCE": 1, "PINNED_IN_MEMORY": 1}
    del ref

    def only_viewed() -> bool:
        found = list_objects(filters=[("object_id", "=", object_id)])
        return [row.reference_type for row in found] == ["PINNED_IN_MEMORY"]

    wait_for(only_viewed)
    assert array.sum() == 0
    del array
    wait_for(lambda: list_objects(filters=[("object_id", "=", object_id)]) == [])


def test_argument_of_a_pending_task_is_listed_and_so_is_the_task(tmp_path: Path) -> None:
    keeper = Keeper.remote()
    ref = skate.put(np.zeros(LARGE))
    result = keeper.wait_for.remote(ref, str(tmp_path / "go"))
    queued = keeper.pid.remote()

    (row,) = rows(ref)
    assert row.reasons["USED_BY_PENDING_TASK"] == 1
    assert row.reference_type == "USED_BY_PENDING_TASK"
    wait_for(lambda: rows(result)[0].task_status == "SUBMITTED_TO_WORKER")
    pending = rows(result)[0]
    assert (pending.object_size, pending.task_name) == (-1, "Keeper.wait_for")

    (tmp_path / "go").touch()
    skate.get([result, queued], timeout=WAIT_S)
    wait_for(lambda: "USED_BY_PENDING_TASK" not in rows(ref)[0].reasons)
    assert rows(queued)[0].task_status == "FINISHED"


def test_task_that_waits_for_its_arguments_is_listed_so(tmp_path: Path) -> None:
    keeper = Keeper.remote()

    @skate.remote
    def after(value: Any) -> None:
        return None

    first = keeper.wait_for.remote(None, str(tmp_path / "go"))
    second = after.remote(first)
    assert rows(second)[0].task_status == "PENDING_ARGS_AVAIL"
    assert rows(second)[0].task_name.endswith("after")
    (tmp_path / "go").touch()
    skate.get(second, timeout=WAIT_S)


def test_failed_task_is_listed_as_failed() -> None:
    ref = boom.remote()
    with pytest.raises(ValueError, match="boom"):
        skate.get(ref, timeout=WAIT_S)
    assert (rows(ref)[0].state, rows(ref)[0].task_status) == ("FAILED", "FAILED")


def test_reference_inside_a_value_is_listed_as_captured() -> None:
    inner = skate.put(np.zeros(LARGE))
    inner_id = inner.hex()
    outer = skate.put([inner, inner])
    del inner
    wait_for(
        lambda: (
            [row.reasons for row in list_objects(filters=[("object_id", "=", inner_id)])]
            == [{"CAPTURED_IN_OBJECT": 1}]
        )
    )
    free(outer)
    wait_for(lambda: list_objects(filters=[("object_id", "=", inner_id)]) == [])


def test_borrower_and_owner_are_both_listed() -> None:
    keeper = Keeper.remote()
    pid = skate.get(keeper.pid.remote(), timeout=WAIT_S)
    ref = skate.put(np.zeros(LARGE))
    skate.get(keeper.keep.remote([ref]), timeout=WAIT_S)

    wait_for(lambda: {row.pid for row in rows(ref)} == {os.getpid(), pid})
    by_pid = {row.pid: row for row in rows(ref)}
    assert by_pid[os.getpid()].reasons["BORROWED"] == 1
    assert by_pid[pid].reasons == {"LOCAL_REFERENCE": 1}
    assert by_pid[pid].owner_pid == os.getpid()
    assert by_pid[pid].call_site == by_pid[os.getpid()].call_site != ""


def test_object_of_an_actor_names_its_owner_and_its_line() -> None:
    keeper = Keeper.remote()
    pid = skate.get(keeper.pid.remote(), timeout=WAIT_S)
    (ref,) = skate.get(keeper.make.remote(), timeout=WAIT_S)
    (mine,) = (row for row in rows(ref) if row.pid == os.getpid())
    assert mine.owner_pid == pid
    assert "in Keeper.make" in mine.call_site


def test_handle_of_an_actor_is_listed() -> None:
    keeper = Keeper.remote()
    skate.get(keeper.pid.remote(), timeout=WAIT_S)
    found = list_objects(filters=[("reference_type", "=", "ACTOR_HANDLE")])
    assert any(row.pid == os.getpid() for row in found)


def test_large_return_names_its_task() -> None:
    @skate.remote
    def large() -> Any:
        return np.zeros(LARGE)

    ref = large.remote()
    skate.get(ref, timeout=WAIT_S)
    assert rows(ref)[0].call_site.endswith("large()")


def test_reference_pickled_elsewhere_is_listed() -> None:
    ref = skate.put(np.zeros(LARGE))
    with pytest.warns(UserWarning, match="pickled outside"):
        pickle.dumps(ref)
    assert rows(ref)[0].reasons == {"LOCAL_REFERENCE": 1, "PICKLED_OUT_OF_BAND": 1}


def test_every_stored_byte_has_a_row() -> None:
    refs = [skate.put(np.zeros(LARGE + n)) for n in range(5)]
    nodes = require_core().list_objects(5.0)
    listed = {row.object_id for row in list_objects(limit=10_000)}
    for node in nodes:
        assert {item.object_id.hex() for item in node.stored} <= listed
        assert node.used_bytes == (
            node.listed_bytes()
            + node.copies_bytes
            + node.stored_left_out_bytes
            + node.rounding_bytes()
        )
        # The allocator's rounding is small beside what it rounds.
        assert 0 <= node.rounding_bytes() <= 0.13 * node.listed_bytes() + 4096
    assert {ref.hex() for ref in refs} <= listed


def test_filters_and_limit_choose_rows() -> None:
    refs = [skate.put(np.zeros(LARGE * (n + 1))) for n in range(3)]
    stored = list_objects(filters=[("state", "=", "STORED"), ("pid", "=", os.getpid())], limit=2)
    assert len(stored) == 2
    assert stored[0].object_size >= stored[1].object_size
    others = list_objects(filters=[("state", "!=", "STORED")], limit=10_000)
    assert {ref.hex() for ref in refs}.isdisjoint(row.object_id for row in others)
    assert stored[0].asdict()["object_id"] == stored[0].object_id


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 100_000}, "limit"),
        ({"filters": [("size", "=", 1)]}, "no field 'size'"),
        ({"filters": [("pid", ">", 1)]}, "'='"),
        ({"filters": ["pid"]}, "filter"),
        ({"address": "10.0.0.1:6379"}, "another cluster"),
    ],
)
def test_list_with_wrong_arguments_is_refused(options: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        list_objects(**options)


def test_summary_counts_by_line_in_rays_shape() -> None:
    refs = [skate.put(np.zeros(LARGE)) for _ in range(3)]
    cluster = summarize_objects()["cluster"]
    (site,) = (s for s in cluster["summary"] if "in test_summary" in s)
    group = cluster["summary"][site]
    assert group["total_objects"] == len(refs)
    assert group["total_size_mb"] == pytest.approx(3 * LARGE * 8 / 1024**2, rel=0.01)
    assert group["ref_type_counts"] == {"LOCAL_REFERENCE": 3}
    assert group["total_num_workers"] == group["total_num_nodes"] == 1
    assert cluster["callsite_enabled"] is False
    assert cluster["total_objects"] >= 3


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_process_that_does_not_answer_is_named_and_not_waited_for() -> None:
    keeper = Keeper.remote()
    pid = skate.get(keeper.pid.remote(), timeout=WAIT_S)
    ref = skate.put(np.zeros(LARGE))
    with stopped(pid):
        with pytest.raises(StateApiError, match=f"process {pid} .*did not answer"):
            list_objects(timeout=1)
        kept = list_objects(timeout=1, raise_on_missing_output=False)
        shown = memory("--timeout", "1")
    assert ref.hex() in {row.object_id for row in kept}
    assert f"process {pid}" in shown.output
    assert "did not answer within" in shown.output
    assert skate.get(keeper.pid.remote(), timeout=WAIT_S) == pid


# ---- the command ----


def memory(*arguments: str) -> Result:
    address = require_core().gcs_endpoint
    return CliRunner().invoke(cli, ["memory", "--address", address, *arguments])


def test_memory_table_explains_each_object() -> None:
    ref = skate.put(np.zeros(LARGE))
    result = memory()
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.output.splitlines() if ref.hex() in line)
    assert "390.8 KiB" in line
    assert f"driver {os.getpid()}" in line
    assert "LOCAL_REFERENCE" in line
    assert "in test_memory_table" in line


def test_memory_json_has_a_schema_and_totals_that_add_up() -> None:
    refs = [skate.put(np.zeros(LARGE)) for _ in range(3)]
    report = json.loads(memory("--format", "json", "-n", "0").stdout)
    assert report["schema"] == "skate.memory/1"
    assert {ref.hex() for ref in refs} <= {row["object_id"] for row in report["references"]}
    for store in report["stores"]:
        parts = ("listed_bytes", "copies_bytes", "left_out_bytes", "rounding_bytes")
        assert sum(store[part] for part in parts) == store["used_bytes"]


def test_memory_groups_by_line_and_by_node_and_sorts() -> None:
    refs = [skate.put(np.zeros(LARGE)) for _ in range(3)]
    by_line = memory("--group-by", "line", "--units", "B").output
    assert re.search(r"in test_memory_groups\S+: 3 references, \d+ B", by_line)
    by_node = memory("--group-by", "node").output
    node_id = skate.get_runtime_context().get_node_id()
    assert f"node {node_id[:12]} (127.0.0.1)" in by_node
    by_pid = json.loads(memory("--format", "json", "--sort-by", "pid").stdout)["references"]
    assert [row["pid"] for row in by_pid] == sorted(row["pid"] for row in by_pid)
    assert len(refs) == 3


def test_memory_shows_as_many_entries_as_asked_for() -> None:
    refs = [skate.put(n) for n in range(5)]
    result = memory("-n", "2")
    assert re.search(r"\.\.\. and \d+ more \(--num-entries\)", result.output)
    assert "References" not in memory("--stats-only").output
    assert len(refs) == 5


@pytest.mark.usefixtures("session_root")
def test_memory_of_no_cluster_says_so() -> None:
    result = CliRunner().invoke(cli, ["memory"])
    assert result.exit_code == 3, result.output
    assert "skate start" in result.output


def test_listing_joins_the_nodes_of_a_cluster(session_root: Path) -> None:
    program = """
        import sys
        import numpy as np
        import skate
        from skate.cluster_utils import Cluster
        from skate.util.state import list_objects

        cluster = Cluster()
        cluster.add_node(num_cpus=1)
        other = cluster.add_node(num_cpus=1, resources={"other": 1})
        cluster.connect()

        @skate.remote(resources={"other": 1})
        class Away:
            def make(self):
                self.ref = skate.put(np.zeros(50_000))
                return [self.ref]

        away = Away.remote()
        (ref,) = skate.get(away.make.remote())
        rows = list_objects(filters=[("object_id", "=", ref.hex())])
        assert {row.type for row in rows} == {"DRIVER", "WORKER"}, rows
        assert all(row.stored_on == [other.node_id] for row in rows), rows
        (worker,) = (row for row in rows if row.type == "WORKER")
        assert worker.node_id == other.node_id
        assert {row.owner_pid for row in rows} == {worker.pid}
        skate.shutdown()
        cluster.shutdown()
        print("joined")
    """
    path = session_root / "program.py"
    path.write_text(textwrap.dedent(program))
    result = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=50, check=False
    )
    assert result.stdout == "joined\n", result.stderr
