"""Objects that are written while their pages come: steps, who waits for which, and shortage."""

from __future__ import annotations

import math
import random

import pytest

from skate_object_store.constants import CHUNK_BYTES, LATE_REQUESTS_MAX, LATE_STEP_BYTES
from skate_object_store.machine.late_pages import Answer, LatePages, Step
from skate_object_store.machine.records import ClientMisuseError, Created, CreateRequest

CLIENT, SERIAL = 7, 3
SIZE = 3 * LATE_STEP_BYTES + 1000


def created(size: int = SIZE, *, serial: int = SERIAL, offset: int = 0) -> Created:
    wish = CreateRequest(CLIENT, 1, b"id", size, b"", True, math.inf, takes_late_pages=True)
    return Created(wish, serial, offset)


def test_pages_come_step_by_step_up_to_the_end_though_nobody_asks() -> None:
    late, whole = LatePages(), created()
    steps = [late.begin(whole)]
    while grown := list(late.grown(SERIAL)):
        (step,) = grown
        assert isinstance(step, Step)
        steps.append(step)
    assert [step.size_bytes for step in steps] == [LATE_STEP_BYTES] * 3 + [1000]
    assert [step.offset for step in steps] == [n * LATE_STEP_BYTES for n in range(4)]


def test_steps_end_with_chunks_wherever_the_object_starts() -> None:
    late, whole = LatePages(), created(offset=CHUNK_BYTES - 64)
    step = late.begin(whole)
    assert step.offset == CHUNK_BYTES - 64
    assert (step.offset + step.size_bytes) % CHUNK_BYTES == 0
    (after,) = late.grown(SERIAL)
    assert isinstance(after, Step)
    assert after.offset == step.offset + step.size_bytes


def test_each_request_is_answered_when_its_bytes_are_there() -> None:
    late = LatePages()
    late.begin(created())
    assert late.want(CLIENT, 10, SERIAL, 1) is None
    assert late.want(CLIENT, 11, SERIAL, LATE_STEP_BYTES + 1) is None
    answer, _ = late.grown(SERIAL)
    assert answer == Answer(CLIENT, 10, True)
    assert late.want(CLIENT, 12, SERIAL, LATE_STEP_BYTES) == Answer(CLIENT, 12, True)
    answer, _ = late.grown(SERIAL)
    assert answer == Answer(CLIENT, 11, True)


def test_shortage_refuses_who_waits_and_the_next_request_tries_again() -> None:
    late = LatePages()
    first = late.begin(created())
    late.want(CLIENT, 10, SERIAL, 1)
    late.want(CLIENT, 11, SERIAL, SIZE)
    assert late.step_under_way(SERIAL) == first
    assert late.failed(SERIAL) == [10, 11]
    assert late.want(CLIENT, 12, SERIAL, 1) == first
    answer, _ = late.grown(SERIAL)
    assert answer == Answer(CLIENT, 12, True)


def test_object_is_sealed_with_all_of_its_pages_only() -> None:
    late = LatePages()
    late.begin(created(CHUNK_BYTES))
    with pytest.raises(ClientMisuseError, match="before it had its pages"):
        late.seal(CLIENT, SERIAL)
    list(late.grown(SERIAL))
    with pytest.raises(ClientMisuseError):
        late.seal(CLIENT + 1, SERIAL)
    late.seal(CLIENT, SERIAL)
    assert len(late) == 0


def test_freed_object_answers_who_waits_and_its_step_matters_no_more() -> None:
    late = LatePages()
    late.begin(created(offset=4096))
    late.want(CLIENT, 10, SERIAL, 1)
    assert late.freed(8192) == []
    assert late.freed(4096) == [Answer(CLIENT, 10, False)]
    assert list(late.grown(SERIAL)) == []
    assert late.failed(SERIAL) == []
    assert late.step_under_way(SERIAL) is None
    assert late.want(CLIENT, 11, SERIAL, 1) == Answer(CLIENT, 11, False)


def test_misuse_is_refused() -> None:
    late = LatePages()
    late.begin(created())
    with pytest.raises(ClientMisuseError):
        late.want(CLIENT + 1, 10, SERIAL, 1)
    with pytest.raises(ClientMisuseError):
        late.want(CLIENT, 10, SERIAL, SIZE + 1)
    for request in range(LATE_REQUESTS_MAX):
        late.want(CLIENT, request, SERIAL, SIZE)
    with pytest.raises(ClientMisuseError, match="at a time"):
        late.want(CLIENT, LATE_REQUESTS_MAX, SERIAL, SIZE)


@pytest.mark.parametrize("seed", range(100), ids=lambda seed: f"seed-{seed}")
def test_random_history_answers_each_request_once_and_never_too_early(seed: int) -> None:
    """Several objects; a step succeeds, fails, or ends after its object was given up."""
    chance = random.Random(seed)
    late = LatePages()
    sizes = {serial: chance.choice([0, 1, CHUNK_BYTES, SIZE]) for serial in range(1, 5)}
    steps: dict[int, Step] = {}  # under way
    done = dict.fromkeys(sizes, 0)
    asked: dict[int, tuple[int, int]] = {}  # request -> (serial, bytes)
    gone: set[int] = set()

    def take(outcomes: list[Answer | Step]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Step):
                serial = outcome.created.serial
                assert serial not in steps
                assert outcome.offset == serial * (1 << 40) + done[serial]
                steps[serial] = outcome
            else:
                serial, size = asked.pop(outcome.request)
                assert outcome.has_pages == (serial not in gone)
                assert size <= done[serial] or serial in gone

    for serial, size in sizes.items():
        take([late.begin(created(size, serial=serial, offset=serial * (1 << 40)))])
    for request in range(200):
        serial = chance.choice(list(sizes))
        match chance.choice(["want", "want", "grown", "grown", "failed", "freed"]):
            case "want":
                asked[request] = (serial, chance.randint(0, sizes[serial]))
                outcome = late.want(CLIENT, request, *asked[request])
                take([] if outcome is None else [outcome])
            case "grown" if serial in steps:
                done[serial] += steps.pop(serial).size_bytes
                take(list(late.grown(serial)))
            case "failed" if serial in steps:
                del steps[serial]
                refused = late.failed(serial)
                assert set(refused) == {one for one, (its, _) in asked.items() if its == serial}
                for one in refused:
                    del asked[one]
            case "freed" if chance.random() < 0.1:
                gone.add(serial)
                take([*late.freed(serial * (1 << 40))])
        assert {serial for serial, _ in asked.values()} <= set(steps) - gone
    for serial in [one for one in sizes if one not in gone]:
        while serial in steps:
            done[serial] += steps.pop(serial).size_bytes
            take(list(late.grown(serial)))
    assert asked == {}
