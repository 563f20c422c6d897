"""Commands that look into a cluster with work on it: logs, kill-actor, health-check."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import skate
from skate.cluster_utils import Cluster
from tests.waiting import wait_for

WAIT_S = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tempfile.mkdtemp(prefix="sk-")
        patch.setenv("SKATE_TMPDIR", folder)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        made.add_node(num_cpus=1, resources={"far": 1})
        made.connect()
        yield made
        skate.shutdown()
        made.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def start(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "skate_cluster", *arguments, "--address", cluster.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(cluster: Cluster, *arguments: str) -> tuple[int, str, str]:
    process = start(cluster, *arguments)
    out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, out, err


@skate.remote(resources={"far": 1})
def speak(text: str, count: int) -> None:
    for number in range(count):
        print(text, number)


def file_with(cluster: Cluster, text: str) -> str:
    """The name of the worker's file on the far node into which ``text`` was printed."""
    node = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    folder = Path(node.session_dir, "logs")

    def look() -> str:
        found = [path for path in folder.glob("worker-*.out") if text in path.read_text()]
        return found[0].name if found else ""

    return wait_for(look, f"{text} is in a log")


@pytest.mark.surface("K4")
def test_logs_of_every_node_are_listed_printed_and_cut_to_the_last_lines(cluster: Cluster) -> None:
    skate.get(speak.remote("line", 50), timeout=WAIT_S)
    name = file_with(cluster, "line 49")
    code, out, err = run(cluster, "logs", "--format", "json")
    assert code == 0, err
    files = json.loads(out)["files"]
    assert len({file["node_id"] for file in files if file["name"] == "daemon.log"}) == 2
    assert name in [file["name"] for file in files]
    assert name in run(cluster, "logs", "worker-*")[1]

    far = next(file["node_id"] for file in files if file["name"] == name)
    assert (
        run(cluster, "logs", name, "--node-id", far[:8], "--tail", "2")[1] == "line 48\nline 49\n"
    )
    printed = run(cluster, "logs", name, "--node-id", far, "--tail", "-1")[1]
    assert printed.endswith("".join(f"line {number}\n" for number in range(50)))


def test_log_is_followed_until_the_command_is_interrupted(cluster: Cluster) -> None:
    skate.get(speak.remote("before", 1), timeout=WAIT_S)
    name = file_with(cluster, "before 0")
    follower = start(cluster, "logs", name, "--follow", "--tail", "1")
    assert follower.stdout is not None
    assert follower.stdout.readline() == "before 0\n"
    skate.get(speak.remote("after", 1), timeout=WAIT_S)
    assert follower.stdout.readline() == "after 0\n"
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=WAIT_S)
    assert follower.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["no-such-file"], 4, "`skate logs` lists them"),
        (["daemon.log", "--follow"], 2, "2 files fit"),
        (["../token"], 4, "No log file fits"),
        (["--node-id", "zz"], 1, "No live node's id begins with zz"),
    ],
)
def test_logs_that_can_not_be_shown_say_why(
    cluster: Cluster, arguments: list[str], code: int, says: str
) -> None:
    found, _, err = run(cluster, "logs", *arguments)
    assert (found, says in err) == (code, True), err


@skate.remote(num_cpus=0)
class Sleeper:
    def pid(self) -> int:
        return os.getpid()


def raises_with(ref: Any, text: str) -> None:
    with pytest.raises(skate.exceptions.ActorDiedError, match=text):
        skate.get(ref, timeout=WAIT_S)


@pytest.mark.surface("K6")
def test_actor_is_killed_by_name_or_by_the_beginning_of_its_id(cluster: Cluster) -> None:
    named = Sleeper.options(name="victim").remote()
    other = Sleeper.remote()
    skate.get([named.pid.remote(), other.pid.remote()], timeout=WAIT_S)
    code, out, err = run(cluster, "kill-actor", "--name", "victim")
    assert (code, "'victim' (Sleeper)" in out) == (0, True), err
    raises_with(named.pid.remote(), "skate kill-actor")
    other_id = repr(other).rpartition(" ")[2].rstrip(")")
    assert run(cluster, "kill-actor", "--id", other_id[:20])[0] == 0
    raises_with(other.pid.remote(), "skate kill-actor")

    assert run(cluster, "kill-actor", "--name", "victim")[0] == 4
    assert run(cluster, "kill-actor")[0] == 2
    assert run(cluster, "kill-actor", "--id", "xyz")[0] == 2


def test_actor_with_restarts_left_can_be_made_to_start_again(cluster: Cluster) -> None:
    actor = Sleeper.options(name="phoenix", max_restarts=1, max_task_retries=1).remote()
    first = skate.get(actor.pid.remote(), timeout=WAIT_S)
    assert run(cluster, "kill-actor", "--name", "phoenix", "--restart")[0] == 0
    assert skate.get(actor.pid.remote(), timeout=WAIT_S) != first


@pytest.mark.surface("K8")
def test_health_is_told_by_the_exit_status(cluster: Cluster) -> None:
    code, out, _ = run(cluster, "health-check")
    assert (code, "answers" in out) == (0, True)
    command = [sys.executable, "-m", "skate_cluster", "health-check"]
    away = [*command, "--address", "127.0.0.1:1", "--timeout", "1", "--token-file"]
    token = Path(cluster.head_node.session_dir, "token")
    done = subprocess.run([*away, str(token)], capture_output=True, check=False, timeout=WAIT_S)
    assert done.returncode in (3, 5)


def rows_of(cluster: Cluster, *arguments: str) -> list[dict[str, Any]]:
    code, out, err = run(cluster, *arguments, "--format", "json")
    assert code == 0, err
    rows: list[dict[str, Any]] = json.loads(out)["rows"]
    return rows


@pytest.mark.surface("K4", "S4")
def test_nodes_and_jobs_are_listed_with_what_they_have(cluster: Cluster) -> None:
    nodes = rows_of(cluster, "list", "nodes")
    assert {row["state"] for row in nodes} == {"ALIVE"}
    assert {row["node_id"] for row in nodes} == {node.node_id for node in cluster.list_all_nodes()}
    (far,) = [row for row in nodes if "far" in row["resources_total"]]
    assert not far["is_head"]
    assert rows_of(cluster, "get", "nodes", far["node_id"][:10]) == [far]
    assert far["node_id"][:16] in run(cluster, "list", "nodes")[1]
    mine = skate.get_runtime_context().get_job_id()
    (job,) = [row for row in rows_of(cluster, "list", "jobs") if row["job_id"] == mine]
    assert (job["state"], job["driver_pid"]) == ("RUNNING", os.getpid())


@pytest.mark.surface("K4", "S4")
def test_actors_are_found_by_filters_and_counted_by_class_and_state(cluster: Cluster) -> None:
    kept = [Sleeper.options(name=f"kept-{number}").remote() for number in range(2)]
    gone = Sleeper.options(name="gone").remote()
    pids = skate.get([actor.pid.remote() for actor in (*kept, gone)], timeout=WAIT_S)
    skate.kill(gone)
    raises_with(gone.pid.remote(), "killed")

    alive = rows_of(cluster, "list", "actors", "--filter", "state=ALIVE")
    assert {row["pid"] for row in alive} >= set(pids[:2])
    wait_for(
        lambda: rows_of(cluster, "list", "actors", "-f", "name=gone", "-f", "state!=ALIVE"),
        "the GCS knows the death",
    )
    (dead,) = rows_of(cluster, "get", "actors", "gone")
    assert "killed" in dead["cause"]
    code, out, _ = run(cluster, "summary", "actors", "--format", "json")
    groups = {(one["class_name"], one["state"]): one["count"] for one in json.loads(out)["groups"]}
    assert code == 0
    assert groups["Sleeper", "ALIVE"] == len(alive)
    limited = run(cluster, "list", "actors", "--limit", "1")
    assert len(limited[1].splitlines()) == 2
    assert "--limit shows them" in limited[2]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["list", "nodes", "--filter", "colour=red"], 2, "the columns are: "),
        (["list", "nodes", "--filter", "state"], 2, "column=value"),
        (["list", "cats"], 2, "cats"),
        (["get", "actors", "nobody"], 4, "skate list actors"),
        (["get", "nodes", "zzzz"], 4, "skate list nodes"),
    ],
)
def test_questions_that_make_no_sense_are_refused(
    cluster: Cluster, arguments: list[str], code: int, says: str
) -> None:
    found, _, err = run(cluster, *arguments)
    assert (found, says in err) == (code, True), err
