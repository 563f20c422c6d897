from __future__ import annotations

import signal
from pathlib import Path

import pytest

from skate_raylet.service import death
from skate_raylet.service.death import (
    ExitStatus,
    Intent,
    OomCounter,
    describe_exit,
    read_log_tail,
)


def describe(status: int, intent: Intent | None = None, oom_kills: int = 0) -> tuple[str, str]:
    exited = ExitStatus(42, status, 7 << 20)
    told = describe_exit(exited, intent=intent, oom_kills=oom_kills, log_tail="", what="worker")
    assert (told.pid, told.exit_code, told.signal) == (42, exited.exit_code, exited.signal)
    return told.kind, told.message


def test_exit_code_is_named() -> None:
    kind, message = describe(3 << 8)
    assert (kind, message) == ("exited", "The worker (pid 42) exited with code 3.")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGTERM])
def test_signal_is_named(number: signal.Signals) -> None:
    kind, message = describe(number)
    assert kind == "signaled"
    assert number.name in message


def test_unnamed_real_time_signal_has_a_number() -> None:
    assert "signal 40" in describe(40)[1]


def test_kill_without_a_counted_one_mentions_memory_as_a_possibility() -> None:
    kind, message = describe(signal.SIGKILL)
    assert kind == "signaled"
    assert "memory ran out" in message
    assert "7 MiB" in message


def test_kill_with_a_counted_one_is_out_of_memory() -> None:
    kind, message = describe(signal.SIGKILL, oom_kills=1)
    assert kind == "out_of_memory"
    assert "killed by the kernel because memory ran out" in message


def test_counted_kill_explains_no_other_signal() -> None:
    assert describe(signal.SIGSEGV, oom_kills=1)[0] == "signaled"


def test_intent_names_the_kind_and_the_facts_stay() -> None:
    kind, message = describe(signal.SIGKILL, Intent("killed_by_user", "cancel(force=True)."))
    assert kind == "killed_by_user"
    assert "cancel(force=True)" in message
    assert "SIGKILL" in message


@pytest.mark.parametrize("oom_kills", [0, 1])
def test_end_that_nobody_wanted_names_the_log(oom_kills: int) -> None:
    def message(intent: Intent | None) -> str:
        return describe_exit(
            ExitStatus(42, signal.SIGKILL, 7 << 20),
            intent=intent,
            oom_kills=oom_kills,
            log_tail="",
            what="worker",
            log_path="/s/logs/worker-1.err",
        ).message

    assert message(None).endswith("What it printed is in /s/logs/worker-1.err on its node.")
    assert "worker-1.err" not in message(Intent("killed_by_user", "kill()."))


def test_log_tail_is_the_end_of_the_first_file_with_content(tmp_path: Path) -> None:
    err, out = tmp_path / "err", tmp_path / "out"
    err.write_text("\n")
    out.write_bytes(b"x" * 100 + b"\xff end")
    assert read_log_tail([str(err), str(out)], limit_bytes=5) == "� end"
    assert read_log_tail([str(tmp_path / "none")]) == ""


def test_oom_counter_explains_each_kill_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 5
    monkeypatch.setattr(death, "_counter", lambda path, name: count)
    counter = OomCounter()
    assert counter.take() == 0
    count = 7
    assert counter.take() == 2
    assert counter.take() == 0
    count = 8
    counter.forget()
    assert counter.take() == 0
