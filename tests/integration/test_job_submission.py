"""Jobs from Python beside a head that ``skate start`` made: nothing but ``import skate``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skate.job_submission import JobStatus, JobSubmissionClient
from skate_node import ClusterNotFoundError

WAIT_S = 60.0
SMALL = ("--num-cpus", "2", "--object-store-memory", str(80 * 1024 * 1024))
PROGRAM = """
import skate as ray
ray.init()
@ray.remote
def square(x):
    return x * x
print(sum(ray.get([square.remote(n) for n in range(10)])))
"""


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "skate_cluster", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True)
    return done.stdout


@pytest.fixture
def head(session_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("SKATE_ADDRESS", "SKATE_API_SERVER_ADDRESS", "SKATE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    run("start", "--head", "--port", "0", "--dashboard-port", "0", *SMALL)
    yield
    run("stop", "--force")


@pytest.mark.usefixtures("head")
@pytest.mark.surface("J7", "J11")
def test_job_is_a_driver_of_the_cluster_it_was_submitted_to(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    client = JobSubmissionClient()
    job_id = client.submit_job(entrypoint=f"{sys.executable} {script}")
    assert "".join(client.follow_job_logs(job_id)) == "285\n"
    assert client.get_job_status(job_id) is JobStatus.SUCCEEDED
    assert [row.submission_id for row in JobSubmissionClient("auto").list_jobs()] == [job_id]


@pytest.mark.usefixtures("session_root")
def test_without_a_cluster_the_client_says_how_to_start_one() -> None:
    with pytest.raises(ClusterNotFoundError, match="skate start --head"):
        JobSubmissionClient("auto")
