"""Each part fails on start in turn, in a real daemon: the error names it, and nothing is left."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from skate_node import NodeOptions, NodeStartError, start_node
from skate_node.processes import session_processes
from skate_node.root import root_path

STORE_BYTES = 80 * 1024 * 1024
PRELUDE = """
import os, signal, sys, time
from skate_node import daemon

def make():
    from skate_node import composition
    from skate_node.composition import Components
    from skate_core_ids import SkateError
"""
EPILOGUE = """
daemon.main(make)
"""


def daemon_with(body: str) -> tuple[str, ...]:
    return ("-P", "-c", PRELUDE + textwrap.indent(textwrap.dedent(body), "    ") + EPILOGUE)


FAILURES = [
    pytest.param(
        """
        def gcs(config):
            raise SkateError("the tables are on fire")
        return Components(gcs=gcs)
        """,
        "gcs",
        "the tables are on fire",
        id="gcs-raises",
    ),
    pytest.param(
        """
        def gcs(config):
            print("gcs: about to die", file=sys.stderr, flush=True)
            os._exit(7)
        return Components(gcs=gcs)
        """,
        "gcs",
        "exited with status 7.\nLast lines of its log:\n    gcs: about to die",
        id="gcs-exits",
    ),
    pytest.param(
        """
        def raylet(config, **_):
            os.kill(os.getpid(), signal.SIGKILL)
        return Components(raylet=raylet)
        """,
        "raylet",
        "was killed by SIGKILL",
        id="raylet-is-killed",
    ),
    pytest.param(
        """
        class Raylet(composition.Raylet):
            async def start(self):
                await super().start()
                raise RuntimeError("half way")
        return Components(raylet=Raylet)
        """,
        "raylet",
        "RuntimeError: half way",
        id="raylet-fails-half-way",
    ),
    pytest.param(
        """
        def raylet(config, **options):
            os.chmod(config.session_dir + "/sockets", 0o777)
            return composition.Raylet(config, **options)
        return Components(raylet=raylet)
        """,
        "store",
        "sockets",
        id="store-refuses-its-folder",
    ),
    pytest.param(
        """
        def metrics(*arguments):
            raise OSError("no socket")
        return Components(metrics=metrics)
        """,
        "metrics",
        "OSError: no socket",
        id="metrics-fails",
    ),
    pytest.param(
        """
        raise ImportError("grpc is broken")
        """,
        "python import",
        "ImportError: grpc is broken",
        id="import-fails",
    ),
]


@pytest.mark.parametrize(("body", "component", "expected"), FAILURES)
def test_start_with_a_failing_part_names_it_and_leaves_nothing(
    temp_dir: str, body: str, component: str, expected: str
) -> None:
    options = NodeOptions(temp_dir=temp_dir, num_cpus=1, object_store_memory=STORE_BYTES)
    with pytest.raises(NodeStartError) as caught:
        start_node(options, command=daemon_with(body))
    assert caught.value.component == component
    assert expected in str(caught.value)
    assert not [name for name in os.listdir(root_path(temp_dir)) if name.startswith("session_")]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("/nonexistent/python",), "No such file or directory: '/nonexistent/python'"),
        (
            ("/bin/sh", "-c", "echo no such luck >&2; exit 3"),
            "exited with status 3.\nLast lines of its log:\n    no such luck",
        ),
        (("/bin/sh", "-c", "kill -9 $$"), "was killed by SIGKILL"),
    ],
    ids=["can-not-be-run", "exits", "is-killed"],
)
def test_start_with_a_failing_zygote_names_it_and_leaves_nothing(
    temp_dir: str, command: tuple[str, ...], expected: str
) -> None:
    options = NodeOptions(temp_dir=temp_dir, num_cpus=1, object_store_memory=STORE_BYTES)
    program = f"from skate_node import daemon; daemon.main(zygote_command={command!r})"
    with pytest.raises(NodeStartError) as caught:
        start_node(options, command=("-P", "-c", program))
    assert caught.value.component == "zygote"
    assert expected in str(caught.value)
    assert not [name for name in os.listdir(root_path(temp_dir)) if name.startswith("session_")]


def test_start_with_amounts_that_no_node_holds_names_the_resources(temp_dir: str) -> None:
    with pytest.raises(NodeStartError, match="CPU") as caught:
        start_node(NodeOptions(temp_dir=temp_dir, num_cpus=1e300))
    assert caught.value.component == "resources"


def test_start_with_a_hanging_part_ends_in_time_and_names_it(temp_dir: str) -> None:
    options = NodeOptions(temp_dir=temp_dir, num_cpus=1, object_store_memory=STORE_BYTES)
    body = """
        def gcs(config):
            time.sleep(600)
        return Components(gcs=gcs)
    """
    with pytest.raises(NodeStartError, match="not up within") as caught:
        start_node(options, command=daemon_with(body), timeout_s=5)
    assert caught.value.component == "gcs"


def test_blocked_loop_does_not_keep_the_node_alive(temp_dir: str) -> None:
    body = """
        class Raylet(composition.Raylet):
            async def wait_stopped(self):
                time.sleep(600)
        return Components(raylet=Raylet)
    """
    options = NodeOptions(temp_dir=temp_dir, num_cpus=1, object_store_memory=STORE_BYTES)
    node = start_node(options, command=daemon_with(body))
    name = Path(node.session_dir).name
    node.stop(timeout_s=20)
    assert str(node.wait(0)) == "exited with status 1"
    assert list(session_processes(name)) == []
    assert not os.path.exists(node.session_dir)


def test_part_that_ends_by_itself_ends_the_node(temp_dir: str) -> None:
    body = """
        class Gcs(composition.GcsServer):
            async def wait_stopped(self):
                return "its disk failed"
        return Components(gcs=Gcs)
    """
    options = NodeOptions(
        temp_dir=temp_dir, num_cpus=1, object_store_memory=STORE_BYTES, keep_logs=True
    )
    node = start_node(options, command=daemon_with(body))
    assert str(node.wait(20)) == "exited with status 1"
    log = Path(node.session_dir, "logs", "daemon.log").read_text()
    assert "the gcs ended: its disk failed" in log
    node.stop()
