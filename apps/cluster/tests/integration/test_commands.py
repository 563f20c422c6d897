"""The commands as a person runs them, with real nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skate_node import live_nodes
from skate_node.session import is_alive

TIMEOUT_S = 50
SMALL = ("--num-cpus", "1", "--object-store-memory", str(80 * 1024 * 1024))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "skate_cluster", *arguments]


@pytest.fixture
def environment(temp_dir: str) -> Iterator[dict[str, str]]:
    values = {key: value for key, value in os.environ.items() if key != "SKATE_ADDRESS"}
    values["SKATE_TMPDIR"] = temp_dir
    yield values
    subprocess.run(command("stop", "--all", "--force"), env=values, check=False, timeout=TIMEOUT_S)


class Shell:
    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            check=False,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def start_head(self, *more: str) -> str:
        done = self("start", "--head", "--port", "0", *SMALL, *more)
        assert done.returncode == 0, done.stderr
        return next(
            line.split()[1] for line in done.stdout.splitlines() if line.startswith("  address")
        )


@pytest.fixture
def skate(environment: dict[str, str]) -> Shell:
    return Shell(environment)


def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


@pytest.mark.parametrize("is_auto", [False, True], ids=["address", "auto"])
def test_start_status_join_stop(skate: Shell, temp_dir: str, is_auto: bool) -> None:
    address = skate.start_head("--resources", '{"disk": 2}', "--node-name", "first")
    joined = skate("start", "--address", "auto" if is_auto else address, *SMALL)
    assert joined.returncode == 0, joined.stderr
    report = json.loads(skate("status", "--format", "json").stdout)
    assert report["address"] == address
    assert report["resources"]["disk"] == {"used": 0.0, "total": 2.0}
    assert [node["is_head"] for node in report["nodes"]] == [True, False]
    assert "first" in skate("status", "-v").stdout
    stopped = skate("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "Stopped 2 nodes.\n")
    assert live_nodes(temp_dir) == []
    assert skate("status").returncode == 3


def test_joining_auto_without_a_cluster_says_so(skate: Shell) -> None:
    done = skate("start", "--address", "auto", *SMALL)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1


def test_second_head_on_one_port_is_refused_in_one_sentence(skate: Shell) -> None:
    port = skate.start_head().rpartition(":")[2]
    done = skate("start", "--head", "--port", port, *SMALL)
    assert done.returncode == 1
    assert "already runs" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_stop_force_leaves_no_node(skate: Shell, temp_dir: str) -> None:
    skate.start_head()
    assert skate("stop", "--force").returncode == 0
    assert live_nodes(temp_dir) == []


def test_stop_of_a_node_that_hangs_times_out_and_force_ends_it(skate: Shell, temp_dir: str) -> None:
    skate.start_head()
    (node,) = live_nodes(temp_dir)
    os.kill(node.pid, signal.SIGSTOP)
    done = skate("stop", "--grace", "0.2")
    assert done.returncode == 5
    assert "--force" in done.stderr
    assert skate("stop", "--force").returncode == 0
    assert live_nodes(temp_dir) == []


def test_run_passes_arguments_address_and_exit_status(skate: Shell, temp_dir: str) -> None:
    address = skate.start_head()
    script = Path(temp_dir, "script.py")
    script.write_text(
        "import os, sys; print(os.environ['SKATE_ADDRESS'], sys.argv[1:]); sys.exit(7)"
    )
    done = skate("run", str(script), "--flag", "-v", "value")
    assert done.returncode == 7
    assert done.stdout == f"{address} ['--flag', '-v', 'value']\n"


def test_run_forwards_signals_to_the_script(skate: Shell, temp_dir: str) -> None:
    skate.start_head()
    script = Path(temp_dir, "script.py")
    script.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        command("run", str(script)), env=skate.environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_S) == 9
    process.stdout.close()


def start_blocking(skate: Shell) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command("start", "--head", "--port", "0", *SMALL, "--block"),
        env=skate.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while "skate stop" not in (line := process.stdout.readline()):
        if not line:
            pytest.fail(process.communicate(timeout=TIMEOUT_S)[1])
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_start_block_ends_its_node_on_a_signal(
    skate: Shell, temp_dir: str, number: signal.Signals, status: int
) -> None:
    process = start_blocking(skate)
    (node,) = live_nodes(temp_dir)
    process.send_signal(number)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == status
    assert not is_alive(node.session_dir)
    assert os.path.exists(os.path.join(node.session_dir, "logs", "daemon.log"))


def test_start_block_fails_when_its_node_dies(skate: Shell, temp_dir: str) -> None:
    process = start_blocking(skate)
    (node,) = live_nodes(temp_dir)
    os.kill(node.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert "SIGKILL" in errors


def test_start_block_that_is_killed_takes_its_node_along(skate: Shell, temp_dir: str) -> None:
    process = start_blocking(skate)
    (node,) = live_nodes(temp_dir)
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    eventually(lambda: not is_alive(node.session_dir), 3.0)


def test_start_failure_shows_component_and_log(skate: Shell, temp_dir: str) -> None:
    broken = Path(temp_dir, "broken.sqlite")
    broken.write_bytes(b"no database" * 1000)
    done = skate("start", "--head", "--port", "0", *SMALL, "--storage", f"sqlite:{broken}")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The node did not start: gcs failed")


def test_restart_with_the_same_storage_keeps_the_cluster(skate: Shell, temp_dir: str) -> None:
    storage = f"sqlite:{temp_dir}/gcs.sqlite"
    skate.start_head("--storage", storage)
    assert skate("stop").returncode == 0
    skate.start_head("--storage", storage)
    report = json.loads(skate("status", "--format", "json").stdout)
    assert [node["is_alive"] for node in report["nodes"] if node["is_alive"]] == [True]


def test_node_of_skate_start_survives_its_command_and_the_terminal(
    skate: Shell, temp_dir: str
) -> None:
    skate.start_head()
    (node,) = live_nodes(temp_dir)
    assert os.getsid(node.pid) == node.pid
    assert os.readlink(f"/proc/{node.pid}/fd/0") == "/dev/null"


def test_head_on_every_interface_names_an_address_that_others_can_call(
    skate: Shell, temp_dir: str
) -> None:
    done = skate("start", "--head", "--port", "0", "--host", "0.0.0.0", *SMALL)
    assert done.returncode == 0, done.stderr
    (hint,) = [line for line in done.stdout.splitlines() if "more nodes" in line]
    (node,) = live_nodes(temp_dir)
    assert f"--address {node.ip_address}:" in hint
    assert "0.0.0.0" not in hint
    joined = skate("start", "--address", node.gcs_endpoint, *SMALL)
    assert joined.returncode == 0, joined.stderr
    assert skate("stop").stdout == "Stopped 2 nodes.\n"
