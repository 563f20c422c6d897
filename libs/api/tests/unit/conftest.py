"""Sessions without a cluster, and a watch that no test leaves one behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from libs.api.tests.unit.recording_core import RecordingCore
from skate_worker import current


@pytest.fixture
def core() -> Iterator[RecordingCore]:
    """A session on a recording runtime."""
    made = RecordingCore()
    current.set_current_core(made)  # type: ignore[arg-type]
    yield made
    current.set_current_core(None)


@pytest.fixture(autouse=True)
def no_session_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test starts a cluster unasked, and none leaves a session or a signal handler."""
    monkeypatch.setenv("SKATE_ENABLE_AUTO_CONNECT", "0")
    monkeypatch.delenv("SKATE_ADDRESS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert current.current_core() is None
    assert signal.getsignal(signal.SIGTERM) is before
