"""Random task graphs, the same for the same seed, run by the cluster and in sequence.

A value's bytes follow from its step and from the bytes of its inputs, so a wrong, old or torn input
anywhere shows in every leaf that comes after it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import skate

DEPTH_MAX = 12
WIDTH_MAX = 4
SIZES = (1_000, 20_000, 90_000, 110_000, 500_000, 4_000_000)
WEIGHTS = (30, 15, 10, 25, 15, 5)
KINDS = ("direct", "direct", "nested", "carry", "pair", "call", "item")
ITEMS = 3
CALLS_MAX = DEPTH_MAX * WIDTH_MAX  # of one graph


@dataclass(frozen=True)
class Step:
    """One vertex: a value that is put, or a task of the steps before it.

    ``put`` has no inputs. ``direct`` takes them as arguments, ``nested`` as references in a list,
    ``carry`` returns those references within its value, ``pair`` returns two values, ``call`` is
    made of an actor, which holds on to the references, and ``item`` is one that a task yields.
    """

    number: int
    kind: str
    size: int
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Carrier:
    """A value with references in it."""

    body: bytes
    refs: list[Any]


def make_graph(seed: int) -> list[Step]:
    """Steps in an order in which each comes after its inputs."""
    rng = random.Random(seed)
    steps: list[Step] = []
    layer: list[int] = []
    for depth in range(rng.randint(3, DEPTH_MAX)):
        before = layer
        layer = []
        for _ in range(rng.randint(1, WIDTH_MAX)):
            number = len(steps)
            inputs = _inputs(rng, before, number) if depth else ()
            kind = rng.choice(KINDS) if inputs else "put"
            (size,) = rng.choices(SIZES, WEIGHTS)
            steps.append(Step(number, kind, size, inputs))
            layer.append(number)
    return steps


def leaves(steps: Iterable[Step]) -> list[int]:
    """The steps that are nobody's input."""
    steps = list(steps)
    used = {number for step in steps for number in step.inputs}
    return [step.number for step in steps if step.number not in used]


def run_in_sequence(seed: int, steps: Iterable[Step]) -> dict[int, bytes]:
    """The digest of every step, worked out here."""
    found: dict[int, bytes] = {}
    for step in steps:
        body = body_of(seed, step, [found[number] for number in step.inputs])
        below = [found[number] for number in step.inputs] if step.kind == "carry" else []
        found[step.number] = combine(hashlib.sha256(body).digest(), below)
    return found


def submit(seed: int, steps: Iterable[Step]) -> tuple[dict[int, Any], Any]:
    """Run the graph on the cluster; the references of its leaves and of what was put; its actor.

    All others are dropped: lineage makes those values again. What was put it can not make, and it
    keeps no actor alive, so these are kept for as long as something may run again.
    """
    refs: dict[int, Any] = {}
    steps = list(steps)
    actor = Holder.remote() if any(step.kind == "call" for step in steps) else None
    for step in steps:
        inputs = [refs[number] for number in step.inputs]
        if step.kind == "put":
            refs[step.number] = skate.put(body_of(seed, step, []))
        elif step.kind == "direct":
            refs[step.number] = direct.remote(seed, step, *inputs)
        elif step.kind == "pair":
            refs[step.number] = pair.remote(seed, step, *inputs)[step.number % 2]
        elif step.kind == "call":
            refs[step.number] = actor.work.remote(seed, step, inputs)
        elif step.kind == "item":
            items = items_of.remote(seed, step, inputs)
            refs[step.number] = [next(items) for _ in range(ITEMS)][step.number % ITEMS]
        else:
            refs[step.number] = TASKS[step.kind].remote(seed, step, inputs)
    kept = {step.number for step in steps if step.kind == "put"}.union(leaves(steps))
    return {number: refs[number] for number in kept}, actor


def digest_of(value: Any, get: Callable[[list[Any]], list[Any]]) -> bytes:
    """What ``run_in_sequence`` has for this value; ``get`` brings what a carrier refers to."""
    if isinstance(value, Carrier):
        below = [digest_of(inner, get) for inner in get(value.refs)]
        return combine(hashlib.sha256(value.body).digest(), below)
    return hashlib.sha256(value).digest()


def combine(own: bytes, below: list[bytes]) -> bytes:
    """The digest of a value with what it carries; its own where it carries nothing."""
    return hashlib.sha256(own + b"".join(below)).digest() if below else own


def body_of(seed: int, step: Step, inputs: list[bytes]) -> bytes:
    """The bytes of a step whose inputs have these digests."""
    key = hashlib.sha256(f"{seed}/{step.number}".encode() + b"".join(inputs)).digest()
    return random.Random(key).randbytes(step.size)


def _inputs(rng: random.Random, before: list[int], number: int) -> tuple[int, ...]:
    chosen = set(rng.choices(before, k=rng.randint(1, 3)))
    if rng.random() < 0.3:
        chosen.add(rng.randrange(number))  # an old one
    return tuple(sorted(chosen - {number}))


def _digests(values: Iterable[Any]) -> list[bytes]:
    return [digest_of(value, skate.get) for value in values]


@skate.remote(max_retries=-1)
def direct(seed: int, step: Step, *inputs: Any) -> bytes:
    return body_of(seed, step, _digests(inputs))


@skate.remote(max_retries=-1)
def nested(seed: int, step: Step, refs: list[Any]) -> bytes:
    return body_of(seed, step, _digests(skate.get(refs)))


@skate.remote(max_retries=-1)
def carry(seed: int, step: Step, refs: list[Any]) -> Carrier:
    return Carrier(body_of(seed, step, _digests(skate.get(refs))), refs)


@skate.remote(max_retries=-1, num_returns=2)
def pair(seed: int, step: Step, *inputs: Any) -> tuple[bytes, bytes]:
    body = body_of(seed, step, _digests(inputs))
    return (body, b"other") if step.number % 2 == 0 else (b"other", body)


@skate.remote(max_retries=-1)
def items_of(seed: int, step: Step, refs: list[Any]) -> Iterator[bytes]:
    body = body_of(seed, step, _digests(skate.get(refs)))
    for index in range(ITEMS):
        yield body if index == step.number % ITEMS else b"other"


def ballast_of(number: int) -> bytes:
    """Sixteen megabytes."""
    return number.to_bytes(8, "big") * (2 << 20)


@skate.remote(max_retries=-1, scheduling_strategy="SPREAD")
def ballast(number: int) -> bytes:
    return ballast_of(number)


@skate.remote(max_restarts=-1, max_task_retries=-1, max_concurrency=CALLS_MAX)
class Holder:
    """Holds every reference that it was given since it last started.

    Its calls wait for values, and one that is lost may come of an earlier call, which then runs
    once more. One call at a time would never end: the later one waits for what runs after it.
    """

    def __init__(self) -> None:
        self.held: list[Any] = []

    def work(self, seed: int, step: Step, refs: list[Any]) -> bytes:
        self.held += refs
        return body_of(seed, step, _digests(skate.get(refs)))


TASKS = {"nested": nested, "carry": carry}
