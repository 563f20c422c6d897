"""What a round's process tells the runner, one JSON line per event on a pipe of its own."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable
from dataclasses import dataclass, field


class Kind(enum.StrEnum):
    """What happened."""

    FACTS = "facts"  # Versions in `facts`, and `samples` of the calibration in seconds.
    BEGUN = "begun"  # The phase `workload` has begun and must end within `limit_s`.
    MEASURED = "measured"
    LACKING = "lacking"  # The peer cannot do this; `text` says why.
    FAILED = "failed"  # `text` holds the error; the process ends, another takes the rest.


@dataclass(frozen=True, slots=True)
class Event:
    """One event; the fields that its kind does not use are empty."""

    kind: Kind
    workload: str = ""
    samples: list[float] = field(default_factory=list)
    details: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    text: str = ""
    limit_s: float = 0.0

    def to_line(self) -> str:
        """One line of JSON, the line's end included."""
        return json.dumps(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Event:
        """The event of a line. Raises ValueError, TypeError when it is none."""
        values = json.loads(line)
        values["kind"] = Kind(values["kind"])
        return cls(**values)


Emit = Callable[[Event], None]
