"""Ctrl-C at any moment: the call ends, and the client goes on working."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from skate_object_store import StoreClient, StoreServer

Connect = Callable[..., StoreClient]
Eventually = Callable[[Callable[[], bool]], None]


class Interrupted(BaseException):
    """What the signal raises, in place of KeyboardInterrupt, which pytest takes for its own."""


@contextmanager
def interrupted_after(delay_s: float) -> Iterator[None]:
    """One interrupt, if the block takes that long."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, delay_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_client_survives_interrupts_in_every_call(
    server: StoreServer, connect: Connect, eventually: Eventually
) -> None:
    client = connect()
    client.put(b"known", [b"value" * 1000])
    big = np.arange(1_500_000)
    interrupts = 0

    def work(number: int) -> None:
        for object_id, part in ((b"small %d", b"x" * 100), (b"big %d", big)):
            client.delete([object_id % earlier for earlier in range(number - 6, number)])
            client.put(object_id % number, [part])
            client.delete([object_id % number])
        assert client.get([b"known", b"missing"]) == [b"value" * 1000, None]
        assert client.wait([b"known", b"missing"], 2, 0.001) == [b"known"]

    source = random.Random(4)
    for number in range(300):
        try:
            with interrupted_after(source.uniform(0.0001, 0.01)):
                for repeat in range(5):
                    work(number * 6 + repeat + 1)
        except Interrupted:
            interrupts += 1
    assert interrupts > 100
    work(10**6)
    client.close()
    eventually(lambda: server.statistics().clients == 0)
    counts = server.statistics()
    assert (counts.pinned_bytes, counts.unsealed_bytes) == (0, 0)


def test_interrupted_wait_leaves_nothing_waiting(
    server: StoreServer, client: StoreClient, eventually: Eventually
) -> None:
    for call in (
        lambda: client.get([b"never"], None),
        lambda: client.wait([b"never"], 1, None),
    ):
        try:
            with interrupted_after(0.05):
                call()
        except Interrupted:
            pass  # As meant.
        eventually(lambda: server.statistics().waiting_requests == 0)
    client.put(b"never", [b"x"])
    assert client.get([b"never"]) == [b"x"]
