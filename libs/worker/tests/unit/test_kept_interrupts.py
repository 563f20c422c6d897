"""Ctrl-C in the finalizer of a reference reaches the program, and the reference still ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from skate_worker import kept_interrupts

PROGRAM = """
import signal, threading, time
from skate_worker.kept_interrupts import keep_interrupts
from skate_worker.object_ref import ObjectRef

class Core:
    def note_dropped(self, entry):
        signal.raise_signal(signal.SIGINT)

keep_interrupts(lambda call, *args: threading.Timer(0.001, call, args).start())
try:
    ref = ObjectRef(Core(), None)
    del ref
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_interrupt_in_a_finalizer_reaches_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=20, check=True
    )
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


class Ref:
    """Ends like a reference of Skate's, but for the first time."""

    def __init__(self) -> None:
        self.ends = 0

    def __del__(self) -> None:
        self.ends += 1
        if self.ends == 1:
            raise KeyboardInterrupt


Ref.__del__.__module__ = "skate_worker.object_ref"


class Unraisable:
    """What Python tells a hook."""

    def __init__(self, error: BaseException, of: Any) -> None:
        self.exc_type, self.exc_value, self.object = type(error), error, of
        traceback = error.__traceback__
        self.exc_traceback = traceback.tb_next if traceback is not None else None


@pytest.fixture
def unheard(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    return seen


def test_interrupt_before_a_finalizer_s_first_step_has_it_run_again(unheard: list[Any]) -> None:
    posted: list[Any] = []
    kept_interrupts.keep_interrupts(lambda *call: posted.append(call))
    ref = Ref()
    with pytest.raises(KeyboardInterrupt) as lost:
        ref.__del__()

    sys.unraisablehook(Unraisable(lost.value, Ref.__del__))  # type: ignore[arg-type]

    assert ref.ends == 2
    assert len(posted) == 1
    assert unheard == []


def test_interrupt_is_not_sent_while_the_hook_still_runs(
    unheard: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    posted: list[Any] = []
    sent: list[Any] = []
    monkeypatch.setattr(signal, "pthread_kill", lambda *how: sent.append(how))

    def post(send: Any) -> None:
        posted.append(send)
        if len(posted) == 1:
            send()  # another thread is quicker than the rest of the hook

    kept_interrupts.keep_interrupts(post)
    sys.unraisablehook(Unraisable(KeyboardInterrupt(), Ref.__del__))  # type: ignore[arg-type]

    assert sent == []
    assert len(posted) == 2
    posted[1]()
    assert sent == [(threading.main_thread().ident, signal.SIGINT)]


def test_other_exceptions_go_to_the_hook_that_was_there(unheard: list[Any]) -> None:
    posted: list[Any] = []
    kept_interrupts.keep_interrupts(lambda *call: posted.append(call))
    kept_interrupts.keep_interrupts(lambda *call: posted.append(call))
    ours = Unraisable(ValueError(), Ref.__del__)
    theirs = Unraisable(KeyboardInterrupt(), print)

    sys.unraisablehook(ours)  # type: ignore[arg-type]
    sys.unraisablehook(theirs)  # type: ignore[arg-type]

    assert unheard == [ours, theirs]
    assert posted == []
