"""Programs that were written for Ray and know nothing of Skate, run as they stand."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skate import import_alias

PROGRAMS = Path(__file__).parent / "ray_programs"


def run(session_root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "SKATE_TMPDIR": str(session_root)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.surface("I1")
@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        ("core.py", ["--scale", "3"], "scale 3 script core.py main __main__"),
        ("services.py", [], "services 127.0.0.1"),
        ("with_a_module.py", [], "modules"),
    ],
)
def test_program_for_ray_runs_as_it_stands(
    program: str, arguments: list[str], expected: str, session_root: Path
) -> None:
    script = str(PROGRAMS / program)
    done = run(session_root, "-m", "skate.as_ray", script, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == expected


@pytest.mark.surface("I1")
def test_program_for_ray_runs_on_a_running_cluster(session_root: Path) -> None:
    cli = ("-m", "skate_cluster")
    started = run(session_root, *cli, "start", "--head", "--port=0", "--num-cpus=2")
    assert started.returncode == 0, started.stderr
    try:
        script = str(PROGRAMS / "with_a_module.py")
        done = run(session_root, *cli, "run", "--as-ray", script)
        plain = run(session_root, *cli, "run", script)
    finally:
        stopped = run(session_root, *cli, "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert done.stdout == "modules\n", done.stderr
    # Without the option nothing named ray is found, on the same cluster.
    assert plain.returncode == 1
    assert "No module named 'ray'" in plain.stderr


@pytest.mark.surface("I1")
def test_what_is_absent_is_named(session_root: Path) -> None:
    done = run(session_root, "-m", "skate.as_ray", str(PROGRAMS / "absent.py"))
    told, name = done.stdout.splitlines()
    assert "'ray.tune'" in told
    assert "Skate has no 'skate.tune'" in told
    assert name == "ray.tune"
    assert done.returncode == 1
    assert "cannot import name 'no_such_thing'" in done.stderr


def test_script_that_does_not_exist_and_exit_statuses(session_root: Path, tmp_path: Path) -> None:
    assert run(session_root, "-m", "skate.as_ray", "no_such.py").returncode == 2
    assert run(session_root, "-m", "skate.as_ray").returncode == 2
    script = tmp_path / "leaves.py"
    script.write_text("import sys, ray; sys.exit(7 if ray.__name__ == 'skate' else 1)", "utf-8")
    assert run(session_root, "-m", "skate.as_ray", str(script)).returncode == 7


@pytest.fixture
def alias() -> Iterator[None]:
    import_alias.install()
    yield
    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, import_alias.AliasFinder)]
    for name in [name for name in sys.modules if name.partition(".")[0] == import_alias.ALIAS]:
        del sys.modules[name]


@pytest.mark.usefixtures("alias")
def test_alias_is_the_module_itself_and_leaves_it_as_it_was() -> None:
    import skate.util.queue as real

    spec = real.__spec__
    aliased: Any = __import__("ray.util.queue", fromlist=["Queue"])
    assert aliased is real
    assert aliased.__spec__ is spec
    assert aliased.__name__ == "skate.util.queue"
    assert pickle.loads(pickle.dumps(aliased.Empty)) is real.Empty
    assert __import__("ray._common.test_utils", fromlist=["SignalActor"]).SignalActor
    import_alias.install()
    assert sum(isinstance(finder, import_alias.AliasFinder) for finder in sys.meta_path) == 1


def test_alias_refuses_to_replace_another_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", pytest)
    with pytest.raises(ImportError, match="imported already"):
        import_alias.install()
