"""Processes that join a node which is just ending."""

from __future__ import annotations

import logging
import threading

import pytest
from mini_raylet import TOKEN, MiniRaylet

from skate_worker.core import CoreWorker
from skate_worker.errors import LocalRayletDiedError

WAIT_S = 20.0


def test_worker_whose_raylet_is_lost_while_it_joins_says_so(
    raylet: MiniRaylet, caplog: pytest.LogCaptureFixture
) -> None:
    told = threading.Event()

    class LosesItsRayletFirst(CoreWorker):
        """Makes its parts when its line to the raylet has ended already."""

        def _listen(self) -> None:
            assert told.wait(WAIT_S)
            super()._listen()

        def _raylet_lost(self, reason: str) -> None:
            try:
                super()._raylet_lost(reason)
            finally:
                told.set()

    raylet.hangs_up = True
    with pytest.raises(LocalRayletDiedError, match="lost its raylet"):
        LosesItsRayletFirst.connect_worker(
            raylet_endpoint=raylet.endpoint,
            token=TOKEN,
            startup_id=1,
            on_raylet_lost=lambda reason: None,
        )
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
