"""What tests of the whole system share: a cluster of their own, and scripts run as a user would."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import skate
from skate.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parent.parent
SCRIPT_TIMEOUT_S = 50.0

RunScript = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--faults``, ``--log-lines`` and ``--objects`` size tests, ``--chaos-seed`` repeats one."""
    parser.addoption("--faults", type=int, default=50, help="faults that a chaos test injects")
    parser.addoption("--log-lines", type=int, default=3000, help="lines that each worker prints")
    parser.addoption("--objects", type=int, default=4000, help="objects that exist at once")
    parser.addoption(
        "--new-work-s",
        type=float,
        default=15.0,
        help="how long new work may take after the last fault of a chaos test, and the end of its"
        " cluster where 3 s are too few; 2 when nothing else runs on the machine",
    )
    parser.addoption("--chaos-seed", type=int, help="seed of the chaos tests; random if not given")


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> int:
    """How many faults to inject."""
    count: int = request.config.getoption("--faults")
    return count


@pytest.fixture
def log_lines(request: pytest.FixtureRequest) -> int:
    """How many lines each worker of the log test prints."""
    count: int = request.config.getoption("--log-lines")
    return count


@pytest.fixture
def object_count(request: pytest.FixtureRequest) -> int:
    """How many objects exist at once in the test of many objects."""
    count: int = request.config.getoption("--objects")
    return count


@pytest.fixture
def new_work_s(request: pytest.FixtureRequest) -> float:
    """How long new work may take once it is calm."""
    limit_s: float = request.config.getoption("--new-work-s")
    return limit_s


@pytest.fixture
def chaos_seed(request: pytest.FixtureRequest) -> int:
    """What the random choices of a chaos test follow from."""
    given: int | None = request.config.getoption("--chaos-seed")
    return secrets.randbelow(1 << 30) if given is None else given


@pytest.fixture
def session_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own for session folders, short enough for socket paths.

    pytest's ``tmp_path`` is too deep: a Unix socket's path has at most 107 bytes.
    """
    root = Path(tempfile.mkdtemp(prefix="sk-"))
    monkeypatch.setenv("SKATE_TMPDIR", str(root))
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def nodes(session_root: Path) -> Iterator[Cluster]:
    """A cluster of real nodes on this machine, none yet: the test adds them, and connects."""
    made = Cluster()
    yield made
    skate.shutdown()
    made.shutdown()


@pytest.fixture
def cluster(session_root: Path) -> Iterator[Any]:
    """A local cluster with two CPUs and this process as its driver; gives what ``init`` gave."""
    context = skate.init(num_cpus=2)
    yield context
    skate.shutdown()


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Any]:
    """Like ``cluster``, for all tests of a module: for those that leave it as they found it."""
    with pytest.MonkeyPatch.context() as patch:
        root = Path(tempfile.mkdtemp(prefix="sk-"))
        patch.setenv("SKATE_TMPDIR", str(root))
        context = skate.init(num_cpus=2)
        yield context
        skate.shutdown()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def run_script(session_root: Path) -> RunScript:
    """Run a Python file with this interpreter, from the root, as a user would.

    ``run_script(path, *arguments, timeout_s=50.0)`` returns the completed process with text output;
    a script past its time is killed and raises ``subprocess.TimeoutExpired``.
    """

    def run(
        path: Path, *arguments: str, timeout_s: float = SCRIPT_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(path), *arguments],
            cwd=ROOT,
            env={**os.environ, "SKATE_TMPDIR": str(session_root)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run
