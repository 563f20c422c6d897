"""Where programs written for Ray look for :mod:`skate.test_utils`."""

from __future__ import annotations

from skate.test_utils import Semaphore, SignalActor, async_wait_for_condition, wait_for_condition

__all__ = ["Semaphore", "SignalActor", "async_wait_for_condition", "wait_for_condition"]
