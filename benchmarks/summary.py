"""From the turns of a run to one figure per workload and peer, and to ratios between peers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.events import Kind
from benchmarks.rounds import Turn
from benchmarks.workload import Registry, Workload


@dataclass(frozen=True, slots=True)
class Measured:
    """Samples by round, in the workload's unit. `details` are those of the last round."""

    by_round: list[list[float]]
    details: dict[str, float] = field(default_factory=dict)

    @property
    def samples(self) -> list[float]:
        """All samples of all rounds."""
        return [sample for samples in self.by_round for sample in samples]

    @property
    def median(self) -> float:
        """The median over all samples."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest sample."""
        return min(self.samples), max(self.samples)


@dataclass(frozen=True, slots=True)
class Lacking:
    """The peer cannot do it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """It failed in some round; what other rounds measured is kept in the JSON, not shown."""

    error: str
    by_round: list[list[float]]


Outcome = Measured | Lacking | Failed


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times better the subject is than the other: above 1 is better, whatever the unit.

    `lowest` and `highest` are over the rounds, each comparing that round's two medians.
    """

    value: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Row:
    """A workload's outcomes by peer, and the subject's ratios by other peer."""

    workload: Workload
    outcomes: dict[str, Outcome]
    ratios: dict[str, Ratio]


def summarise(
    registry: Registry, workload_ids: Sequence[str], turns: Sequence[Turn], peers: Sequence[str]
) -> list[Row]:
    """One row per workload, in order. The first of `peers` is the subject of the ratios."""
    rows = []
    for workload_id in workload_ids:
        workload = registry[workload_id]
        outcomes = {}
        for peer in peers:
            outcome = _outcome(workload_id, [turn for turn in turns if turn.peer == peer])
            if outcome is not None:
                outcomes[peer] = outcome
        rows.append(Row(workload, outcomes, _ratios(workload, outcomes, peers)))
    return rows


def compare(subject: Measured, other: Measured, *, is_rate: bool) -> Ratio:
    """The ratio of two peers' medians, oriented so that above 1 the subject is better."""
    by_round = [
        _oriented(statistics.median(ours), statistics.median(theirs), is_rate=is_rate)
        for ours, theirs in zip(subject.by_round, other.by_round, strict=False)
    ]
    value = _oriented(subject.median, other.median, is_rate=is_rate)
    return Ratio(value, min([value, *by_round]), max([value, *by_round]))


def _oriented(ours: float, theirs: float, *, is_rate: bool) -> float:
    better, worse = (ours, theirs) if is_rate else (theirs, ours)
    return better / worse if worse else float("inf")


def _ratios(
    workload: Workload, outcomes: dict[str, Outcome], peers: Sequence[str]
) -> dict[str, Ratio]:
    subject = outcomes.get(peers[0])
    if not isinstance(subject, Measured):
        return {}
    ratios = {}
    for peer in peers[1:]:
        other = outcomes.get(peer)
        if isinstance(other, Measured):
            ratios[peer] = compare(subject, other, is_rate=workload.is_rate)
    return ratios


def _outcome(workload_id: str, turns: Sequence[Turn]) -> Outcome | None:
    """What the turns say of one workload; None when no turn had it."""
    events = [turn.results[workload_id] for turn in turns if workload_id in turn.results]
    measured = [event for event in events if event.kind is Kind.MEASURED]
    by_round = [event.samples for event in measured]
    for event in events:
        if event.kind is Kind.FAILED:
            return Failed(event.text, by_round)
        if event.kind is Kind.LACKING:
            return Lacking(event.text)
    return Measured(by_round, measured[-1].details) if measured else None
