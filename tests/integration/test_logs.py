"""What tasks and actors print comes out of the driver: once, in order, and behind their names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]
PREFIX = re.compile(r"\((?:(\S+) )?pid=(\d+)(?:, ip=([\d.]+))?\) (.*)")


@pytest.fixture
def run(tmp_path: Path, run_script: Run) -> Run:
    """Run a program as a driver; its text may be indented."""

    def start(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(source), "utf-8")
        done = run_script(path, *arguments)
        assert done.returncode == 0, done.stderr
        return done

    return start


def shown(text: str) -> list[tuple[str, str]]:
    """Name and line of each line that a worker printed."""
    matches = [PREFIX.fullmatch(line) for line in text.splitlines()]
    return [(match[1] or "", match[4]) for match in matches if match is not None]


@pytest.mark.surface("W1", "W3", "W4")
def test_output_comes_with_the_name_of_its_function_or_class(run: Run) -> None:
    done = run("""
        import os, sys, skate
        skate.init(num_cpus=1)

        @skate.remote
        def shout(word):
            print(word)
            print("to stderr", file=sys.stderr)

        @skate.remote
        class Speaker:
            def __init__(self):
                print("made")
            def speak(self):
                print("first\\n\\nthird")
                os.write(1, b"raw \\xff\\n")
                print("no end", end="", flush=True)

        speaker = Speaker.remote()
        skate.get(speaker.speak.remote())
        skate.get(shout.remote("hello"))
        print("the driver's own")
    """)
    lines = shown(done.stdout)
    assert sorted(line for name, line in lines if name == "shout") == ["hello"]
    assert [line for name, line in lines if name == "Speaker"] == [
        "made",
        "first",
        "",
        "third",
        "raw \ufffd",
        "no end",
    ]
    assert shown(done.stderr) == [("shout", "to stderr")]
    assert "the driver's own\n" in done.stdout
    assert "\x1b" not in done.stdout  # no terminal, no colours


@pytest.mark.surface("W4")
def test_prefix_can_be_coloured_on_request(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKATE_COLOR_PREFIX", "1")
    done = run("""
        import skate
        skate.get(skate.remote(lambda: print("hello")).remote())
    """)
    assert re.search(r"\x1b\[\d+m\(.*pid=\d+\)\x1b\[0m hello", done.stdout)


@pytest.mark.surface("W6")
@pytest.mark.parametrize("silencer", ["argument", "variable"])
def test_output_can_be_silenced(run: Run, monkeypatch: pytest.MonkeyPatch, silencer: str) -> None:
    if silencer == "variable":
        monkeypatch.setenv("SKATE_LOG_TO_DRIVER", "0")
    argument = ", log_to_driver=False" if silencer == "argument" else ""
    done = run(f"""
        import skate
        skate.init(num_cpus=1{argument})
        skate.get(skate.remote(lambda: print("hello")).remote())
        print("done")
    """)
    assert done.stdout == "done\n"


def test_last_words_of_a_worker_that_dies_are_shown(run: Run) -> None:
    done = run("""
        import os, skate
        skate.init(num_cpus=1)

        @skate.remote(max_retries=0)
        def die():
            print("goodbye")
            os._exit(3)

        try:
            skate.get(die.remote())
        except skate.exceptions.WorkerCrashedError:
            print("it died")
    """)
    assert ("die", "goodbye") in shown(done.stdout)


def test_each_driver_sees_its_own_jobs_output(run: Run) -> None:
    done = run("""
        import os, subprocess, sys, skate
        from skate.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        other = '''if True:
            import skate, sys
            skate.init(sys.argv[1])
            skate.get(skate.remote(lambda: print("the other's")).remote())
        '''
        skate.init(cluster.address)
        skate.get(skate.remote(lambda: print("mine")).remote())
        command = [sys.executable, "-c", other, cluster.address]
        theirs = subprocess.run(command, capture_output=True, text=True, check=True)
        skate.shutdown()
        cluster.shutdown()
        print(theirs.stdout.replace("pid", "PID"), end="")
    """)
    assert [line for _, line in shown(done.stdout)] == ["mine"]
    assert [line for _, line in shown(done.stdout.replace("PID", "pid"))] == ["mine", "the other's"]


@pytest.mark.surface("W4")
def test_output_of_another_node_comes_with_its_address(run: Run) -> None:
    done = run("""
        import skate
        from skate.cluster_utils import Cluster

        cluster = Cluster()
        cluster.add_node(node_ip_address="127.0.0.2", num_cpus=1)
        cluster.add_node(node_ip_address="127.0.0.3", num_cpus=1, resources={"far": 1})
        cluster.connect()

        @skate.remote(resources={"far": 1})
        def speak():
            print("from afar")

        skate.get([speak.remote() for _ in range(3)])
        cluster.shutdown()
    """)
    places = [PREFIX.fullmatch(line) for line in done.stdout.splitlines()]
    assert [(place[1], place[3], place[4]) for place in places if place] == [
        ("speak", "127.0.0.3", "from afar")
    ] * 3


@pytest.mark.invariant("I26")
def test_numbered_lines_of_many_workers_come_once_and_in_order(run: Run, log_lines: int) -> None:
    done = run(
        """
        import sys, skate
        from skate.cluster_utils import Cluster

        count = int(sys.argv[1])
        cluster = Cluster()
        for _ in range(2):
            cluster.add_node(num_cpus=4)
        cluster.connect()

        @skate.remote(scheduling_strategy="SPREAD")
        class Talker:
            def talk(self, who, count):
                for number in range(count):
                    print(who, number)

        talkers = [Talker.remote() for _ in range(8)]
        skate.get([talker.talk.remote(who, count) for who, talker in enumerate(talkers)])
        skate.shutdown()
        cluster.shutdown()
    """,
        str(log_lines),
    )
    told: dict[str, list[int]] = defaultdict(list)
    for name, line in shown(done.stdout):
        assert name == "Talker"
        who, number = line.split()
        told[who].append(int(number))
    assert told == {str(who): list(range(log_lines)) for who in range(8)}


def test_driver_whose_output_nobody_reads_works_on(session_root: Path) -> None:
    """What is printed waits in files; it holds up neither workers nor the driver's calls."""
    program = textwrap.dedent("""
        import os, sys, skate
        skate.init(num_cpus=1)

        @skate.remote
        def talk():
            for number in range(50_000):
                print("x" * 50, number)
            return "done"

        assert skate.get(talk.remote(), timeout=30) == "done"
        sys.stderr.write("worked")
        sys.stderr.flush()
        sys.stdin.readline()
        os._exit(0)
    """)
    driver = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "SKATE_TMPDIR": str(session_root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert driver.stderr is not None
        assert driver.stderr.read(6) == b"worked"
    finally:
        driver.kill()
        driver.communicate()
