"""What happened in a run, as lines and as one hash.

The hash goes over every line, traced or not, so two runs with one hash did the same in the same
order. Lines are kept only when somebody wants to read them: the last ones always, all of them when
tracing.
"""

from __future__ import annotations

import hashlib
from collections import deque

LINES_KEPT = 60
FLUSH_LINES = 256


class Journal:
    """The run's lines. ``trace``: keep them all."""

    def __init__(self, *, trace: bool = False) -> None:
        self._hash = hashlib.sha256()
        self._unhashed: list[str] = []
        self._lines: deque[str] = deque(maxlen=None if trace else LINES_KEPT)
        self.count = 0

    def note(self, now_s: float, who: str, what: str) -> None:
        """Write one line."""
        line = f"{now_s:.6f} {who} {what}"
        self.count += 1
        self._lines.append(line)
        self._unhashed.append(line)
        if len(self._unhashed) >= FLUSH_LINES:
            self._flush()

    def lines(self) -> list[str]:
        """The lines that were kept, oldest first."""
        return list(self._lines)

    def digest(self) -> str:
        """The hash of everything so far, in hex."""
        self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        if self._unhashed:
            self._hash.update("\n".join([*self._unhashed, ""]).encode())
            self._unhashed.clear()
