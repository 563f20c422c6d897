"""``skate job`` as a person uses it: with a head that ``skate start`` made."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skate_jobs import JobStatus, JobSubmissionClient
from skate_node import NodeRecord, find_node
from skate_node.api_address import find_api_server

TIMEOUT_S = 50
SMALL = ("--num-cpus", "2", "--object-store-memory", str(80 * 1024 * 1024))


class Shell:
    """The ``skate`` command against one head."""

    def __init__(self, temp_dir: str) -> None:
        self.temp_dir = temp_dir
        self.environment = {
            key: value for key, value in os.environ.items() if not key.startswith("SKATE_")
        } | {"SKATE_TMPDIR": temp_dir}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "skate_cluster", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, out, err

    @property
    def node(self) -> NodeRecord:
        return find_node("auto", self.temp_dir)


@pytest.fixture(scope="module")
def skate() -> Iterator[Shell]:
    folder = tempfile.mkdtemp(prefix="sk-")
    shell = Shell(folder)
    try:
        code, _, err = shell("start", "--head", "--port", "0", "--dashboard-port", "0", *SMALL)
        assert code == 0, err
        yield shell
    finally:
        shell("stop", "--all", "--force")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.surface("J8")
def test_submitted_command_is_followed_and_its_end_is_the_commands(
    skate: Shell, tmp_path: Path
) -> None:
    script = tmp_path / "has blank.py"
    script.write_text("import sys; print('got', sys.argv[1:]); sys.exit(len(sys.argv) - 3)")
    command = ("job", "submit", "--submission-id", f"two-{os.getpid()}", "--")
    code, out, err = skate(*command, sys.executable, str(script), "a b", "$c")
    assert (code, out) == (0, "got ['a b', '$c']\n"), err
    assert "succeeded" in err

    code, out, err = skate("job", "submit", "--", sys.executable, str(script), "x", "y", "z")
    assert (code, out) == (1, "got ['x', 'y', 'z']\n")
    assert "FAILED" in err
    assert "exit code 1" in err or "status 1" in err


@pytest.mark.surface("J8", "J12")
def test_jobs_are_listed_looked_at_stopped_and_deleted(skate: Shell) -> None:
    code, out, err = skate("job", "submit", "--no-wait", "--", "echo begun; sleep 600")
    job_id = out.strip()
    assert code == 0, err
    deadline_s = time.monotonic() + TIMEOUT_S
    while "begun" not in skate("job", "logs", job_id)[1]:
        assert time.monotonic() < deadline_s
    assert job_id in skate("job", "list")[1]
    assert skate("job", "delete", job_id)[0] == 1
    assert skate("job", "stop", job_id)[:2] == (0, f"Job {job_id}: STOPPED.\n")
    shown = json.loads(skate("job", "status", job_id, "--format", "json")[1])
    assert [row["status"] for row in shown["jobs"]] == ["STOPPED"]
    assert skate("job", "delete", job_id)[0] == 0
    code, _, err = skate("job", "status", job_id)
    assert (code, err) == (4, f"Error: There is no job {job_id}.\n") or job_id in err


def test_interrupted_follower_leaves_the_job_alone(skate: Shell) -> None:
    follower = skate.start("job", "submit", "--", "echo begun; sleep 2; echo done")
    assert follower.stdout is not None
    assert follower.stderr is not None
    assert follower.stdout.readline() == "begun\n"
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=TIMEOUT_S)
    job_id = err.split()[1]
    assert follower.returncode == 130
    assert f"skate job stop {job_id}" in err
    code, out, _ = skate("job", "logs", job_id, "--follow")
    assert (code, out) == (0, "begun\ndone\n")


def test_server_that_is_killed_comes_back_and_knows_its_jobs(skate: Shell) -> None:
    found = find_api_server(None, None, skate.temp_dir)
    client = JobSubmissionClient(found.url, token=found.token)
    job_id = client.submit_job(entrypoint="sleep 1; echo over")
    daemon = skate.node.pid
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    servers = [
        int(pid)
        for pid in children
        if b"skate_dashboard.server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(servers) == 1
    os.kill(servers[0], signal.SIGKILL)
    code, out, _ = skate("job", "logs", job_id, "--follow")
    assert (code, out) == (0, "over\n")
    assert client.get_job_status(job_id) is JobStatus.SUCCEEDED


def test_wrong_use_is_said_in_one_sentence(skate: Shell) -> None:
    code, _, err = skate("job", "submit", "--runtime-env-json", "{", "--", "true")
    assert code == 2
    assert "--runtime-env-json is not valid JSON" in err
    code, _, err = skate("job", "status", "never-was")
    assert code == 4
    code, _, err = skate("job", "list", "--address", "http://127.0.0.1:1")
    assert code == 3
    assert "Check the address" in err


def test_head_without_an_api_server_says_so(temp_dir: str) -> None:
    shell = Shell(temp_dir)
    try:
        code, out, err = shell(
            "start", "--head", "--port", "0", "--include-dashboard", "no", *SMALL
        )
        assert code == 0, err
        assert "API server" not in out
        code, _, err = shell("job", "list")
        assert code == 3
        assert "runs without an API server" in err
    finally:
        shell("stop", "--all", "--force")
