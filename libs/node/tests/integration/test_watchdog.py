"""The watchdog in a process of its own, because it owns signals and ends processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

PRELUDE = """
import os, sys, threading, time
from skate_node.watchdog import Watchdog
def say(text):
    print(text, flush=True)
def hard(reason):
    say("hard: " + reason)
    os._exit(9)
def watchdog(**changes):
    values = dict(lifeline_fd=None, starter_pid=0, grace_s=20.0, on_hard_stop=hard)
    made = Watchdog(**{**values, **changes})
    made.start()
    return made
"""


class Subject:
    def __init__(self, body: str, **options: object) -> None:
        self.process = subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, "-c", PRELUDE + textwrap.dedent(body)],
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )

    def line(self) -> str:
        text: str = self.process.stdout.readline()
        return text.strip()

    def end(self) -> int:
        self.process.stdout.close()
        status: int = self.process.wait(20)
        return status


def test_watchdog_signal_before_the_node_is_up_ends_the_process() -> None:
    subject = Subject("watchdog(); say('up'); time.sleep(60)")
    assert subject.line() == "up"
    subject.process.send_signal(signal.SIGTERM)
    assert subject.line() == "hard: SIGTERM, before the node was up"
    assert subject.end() == 9


def test_watchdog_armed_asks_though_the_main_thread_is_busy() -> None:
    subject = Subject(
        """
        watchdog().arm(lambda reason: say("ask: " + reason))
        say("up")
        held = threading.Lock()
        held.acquire()
        held.acquire()
        """
    )
    assert subject.line() == "up"
    subject.process.send_signal(signal.SIGTERM)
    assert subject.line() == "ask: SIGTERM"
    subject.process.kill()
    subject.end()


def test_watchdog_stop_that_takes_too_long_is_forced() -> None:
    subject = Subject(
        """
        made = watchdog(grace_s=0.05)
        made.arm(lambda reason: say("ask: " + reason))
        say("up")
        time.sleep(60)
        """
    )
    assert subject.line() == "up"
    subject.process.send_signal(signal.SIGTERM)
    assert subject.line() == "ask: SIGTERM"
    assert subject.line().startswith("hard: SIGTERM, and the stop took over")
    assert subject.end() == 9


def test_watchdog_second_sigterm_forces_at_once() -> None:
    subject = Subject(
        "watchdog().arm(lambda reason: say('ask: ' + reason)); say('up'); time.sleep(60)"
    )
    assert subject.line() == "up"
    subject.process.send_signal(signal.SIGTERM)
    assert subject.line() == "ask: SIGTERM"
    subject.process.send_signal(signal.SIGTERM)
    assert subject.line() == "hard: a second SIGTERM"
    assert subject.end() == 9


def test_watchdog_stop_in_time_is_not_forced() -> None:
    subject = Subject(
        """
        made = watchdog(grace_s=0.2)
        asked = threading.Event()
        made.arm(lambda reason: asked.set())
        say("up")
        asked.wait()
        made.disarm()
        time.sleep(0.5)
        sys.exit(5)
        """
    )
    assert subject.line() == "up"
    subject.process.send_signal(signal.SIGTERM)
    assert subject.end() == 5


def test_watchdog_lifeline_that_closes_ends_the_process() -> None:
    reader, writer = os.pipe()
    subject = Subject(
        f"watchdog(lifeline_fd={reader}); say('up'); time.sleep(60)", pass_fds=(reader,)
    )
    os.close(reader)
    assert subject.line() == "up"
    os.close(writer)
    assert subject.line() == "hard: the starting process is gone, before the node was up"
    assert subject.end() == 9


def test_watchdog_starter_that_is_not_the_parent_counts_as_gone() -> None:
    subject = Subject("watchdog(starter_pid=1); time.sleep(60)")
    assert subject.line().startswith("hard: the starting process is gone")
    assert subject.end() == 9


def test_watchdog_starter_that_lives_is_left_alone() -> None:
    subject = Subject("watchdog(starter_pid=os.getppid()); say('up'); sys.exit(3)")
    assert subject.line() == "up"
    assert subject.end() == 3


def test_watchdog_leaves_signals_unblocked_for_children() -> None:
    subject = Subject(
        """
        import signal, subprocess
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
        watchdog()
        code = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
        say(subprocess.check_output([sys.executable, "-c", code], text=True).strip())
        """
    )
    assert subject.line() == "[]"
    assert subject.end() == 0
