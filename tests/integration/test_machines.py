"""Two machines, played by two network namespaces with a cable between them, and the cable cut.

Needs the right to make network namespaces (root); skipped elsewhere.
"""

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

from tests.waiting import wait_for

WAIT_S = 40.0
PORT = 6390

TALK = """
import json, os, skate
skate.init(address="auto")

@skate.remote(resources={"far": 1})
def task(number):
    return number * 2, skate.get_runtime_context().get_node_id()

@skate.remote(num_cpus=0)
class Person:
    def pid(self):
        return os.getpid()
    def meet(self, friend):
        return skate.get(friend.pid.remote(), timeout=30)

far = Person.options(resources={"far": 1}).remote()
near = Person.options(resources={"near": 1}).remote()
pids = skate.get([near.pid.remote(), far.pid.remote()], timeout=30)
met = [skate.get(one.meet.remote(other), timeout=30) for one, other in ((near, far), (far, near))]
values = skate.get([task.remote(n) for n in range(50)], timeout=30)
ips = {node["NodeID"]: node["NodeManagerAddress"] for node in skate.nodes()}
print(json.dumps({
    "met": met == [pids[1], pids[0]],
    "values": [value for value, _ in values],
    "ips": sorted({ips[node_id] for _, node_id in values}),
}))
"""

LOSE = """
import json, sys, time, skate
from pathlib import Path
from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy
folder = Path(sys.argv[1])
skate.init(address="auto")
ips = {node["NodeID"]: node["NodeManagerAddress"] for node in skate.nodes()}
(far,) = [node_id for node_id, ip in ips.items() if ip == "10.199.7.2"]

@skate.remote(max_retries=1, scheduling_strategy=NodeAffinitySchedulingStrategy(far, soft=True))
def stay():
    node_id = skate.get_runtime_context().get_node_id()
    (folder / node_id).touch()
    while not (folder / "cut").exists():
        time.sleep(0.01)
    if node_id == far:
        time.sleep(600)  # its owner does not hear of it any more
    return node_id

print(json.dumps({"ran_on": ips[skate.get(stay.remote(), timeout=60)]}))
"""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)


class Machines:
    """``names`` are the namespaces; each has a folder of its own for sessions."""

    def __init__(self) -> None:
        mark = f"sks{os.getpid()}"
        self.names = [f"{mark}a", f"{mark}b"]
        self.ips = ["10.199.7.1", "10.199.7.2"]
        self.roots = [tempfile.mkdtemp(prefix="sk-") for _ in self.names]
        self.daemons: list[subprocess.Popen[bytes]] = []

    def connect(self) -> None:
        for name in self.names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        first, second = self.names
        run("ip", "-n", first, "link", "add", "v0", "type", "veth", "peer", "v0", "netns", second)
        for name, ip in zip(self.names, self.ips, strict=True):
            run("ip", "-n", name, "addr", "add", f"{ip}/24", "dev", "v0")
            run("ip", "-n", name, "link", "set", "v0", "up")

    def cut(self) -> None:
        """No packet goes through any more, and nobody is told."""
        for name in self.names:
            run("ip", "-n", name, "link", "set", "v0", "down")

    def command(self, machine: int, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", self.names[machine], sys.executable, *arguments]

    def environment(self, machine: int) -> dict[str, str]:
        return {**os.environ, "SKATE_TMPDIR": self.roots[machine]}

    def start(self, machine: int, *arguments: str) -> Path:
        """Start a node and return its session folder once it is ready."""
        log = Path(self.roots[machine], "start.log")
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                self.command(
                    machine, "-m", "skate_cluster", "start", "--block", "--num-cpus", "2",
                    "--host", self.ips[machine], *arguments,
                ),
                env=self.environment(machine),
                stdout=output,
                stderr=output,
            )  # fmt: skip
        self.daemons.append(daemon)
        record = wait_for(
            lambda: next(Path(self.roots[machine]).rglob("node.json"), None) or daemon.poll(),
            "the node starts",
        )
        assert isinstance(record, Path), log.read_text()
        return record.parent

    def drive(self, script: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(0, "-c", script, *arguments),
            env=self.environment(0),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def close(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(10)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        for root in self.roots:
            shutil.rmtree(root, ignore_errors=True)


def answer_of(driver: subprocess.Popen[bytes]) -> Any:
    try:
        output, errors = driver.communicate(timeout=75)
    finally:
        driver.kill()
    assert driver.returncode == 0, errors.decode()[-3000:]
    return json.loads(output.decode().splitlines()[-1])


@pytest.fixture
def machines() -> Iterator[Machines]:
    made = Machines()
    try:
        try:
            made.connect()
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"network namespaces can not be made here: {error}")
        session = made.start(0, "--head", "--port", str(PORT), "--resources", '{"near": 1}')
        made.start(
            1, "--address", f"{made.ips[0]}:{PORT}", "--token-file", str(session / "token"),
            "--resources", '{"far": 4}',
        )  # fmt: skip
        yield made
    finally:
        made.close()


@pytest.mark.timeout(120)
def test_tasks_and_actors_of_two_machines_work_together(machines: Machines) -> None:
    said = answer_of(machines.drive(TALK))

    assert said["met"]
    assert said["values"] == [number * 2 for number in range(50)]
    assert said["ips"] == [machines.ips[1]]


@pytest.mark.timeout(180)
@pytest.mark.invariant("I1", "I22")
def test_task_on_a_machine_that_vanishes_runs_elsewhere(machines: Machines, tmp_path: Path) -> None:
    driver = machines.drive(LOSE, str(tmp_path))
    try:
        wait_for(lambda: list(tmp_path.iterdir()), "the task runs")
        machines.cut()
        (tmp_path / "cut").touch()
        said = answer_of(driver)
    finally:
        driver.kill()

    assert said["ran_on"] == machines.ips[0]
