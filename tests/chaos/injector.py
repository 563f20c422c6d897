"""A thread that injects faults, one after the other, while the test's own thread works."""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections import Counter


class Injector(ABC):
    """Injects until it is left, as many faults as are ``wanted`` at most.

    ``done`` counts them by kind and ``lasted_s`` adds their lengths up; ``error`` is what ended the
    thread, if anything did. Random choices follow from ``seed``, their moments do not.
    """

    def __init__(self, seed: int, wanted: int) -> None:
        self.done: Counter[str] = Counter()
        self.lasted_s = 0.0
        self.error: Exception | None = None
        self._rng = random.Random(seed)
        self._wanted = wanted
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="injector", daemon=True)

    def __enter__(self) -> Injector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def is_at_work(self) -> bool:
        """Whether faults are still to come."""
        return self._thread.is_alive()

    def assert_done(self) -> None:
        """All that were wanted have been injected; raises what went wrong."""
        if self.error is not None:
            raise self.error
        assert self.done.total() == self._wanted, f"only {self.done}"

    @abstractmethod
    def _inject(self) -> float:
        """One fault, or none if there is nothing to break; how long to leave all alone then."""

    def _hold(self, kind: str, length_s: float) -> None:
        """Leave a fault as it is for so long, and count it."""
        self._is_over.wait(length_s)
        self.done[kind] += 1
        self.lasted_s += length_s

    def _run(self) -> None:
        try:
            while self.done.total() < self._wanted and not self._is_over.is_set():
                self._is_over.wait(self._inject())
        except Exception as error:  # noqa: BLE001 - the test raises it
            self.error = error
