"""Subscribers: who gets which changes, and how much may wait for the slow ones."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from skate_gcs.machine.events import Channel
from skate_gcs.machine.records import (
    ActorRecord,
    Announced,
    JobRecord,
    NodeRecord,
    PlacementGroupRecord,
    WorkerRecord,
)
from skate_gcs.service.convert import event_to
from skate_rpc.gen.skate.v1 import gcs_pb2

_CHANNELS: Final[dict[type[Announced], Channel]] = {
    ActorRecord: Channel.ACTOR,
    NodeRecord: Channel.NODE,
    JobRecord: Channel.JOB,
    WorkerRecord: Channel.WORKER,
    PlacementGroupRecord: Channel.PLACEMENT_GROUP,
}

EVENTS_PER_MESSAGE_MAX: Final = 256
"""A message of the stream costs ten times what one more event in it does."""


class SlowSubscriberError(Exception):
    """More events waited than may; they were dropped and the subscription is over."""


class HubClosedError(Exception):
    """The GCS stops."""


class Subscription:
    """One subscriber's events. Invariant: at most ``events_max`` wait."""

    def __init__(
        self,
        channels: tuple[Channel, ...],
        events_max: int,
        on_attach: Callable[[Subscription], int],
    ) -> None:
        self.channels = channels
        self.sequence = 0
        """The last change before the snapshot."""
        self._events_max = events_max
        self._on_attach = on_attach
        self._events: deque[gcs_pb2.Event] = deque()
        self._woken = asyncio.Event()
        self._end: SlowSubscriberError | HubClosedError | None = None

    def attach(self) -> None:
        """Get every change from this moment on: the one at which the snapshot was taken."""
        self.sequence = self._on_attach(self)

    def push(self, event: gcs_pb2.Event) -> None:
        """Queue a change, or end the subscription if too many wait."""
        if self._end is not None:
            return
        if len(self._events) >= self._events_max:
            self.end(SlowSubscriberError(f"{self._events_max} events were waiting"))
            return
        self._events.append(event)
        self._woken.set()

    def end(self, reason: SlowSubscriberError | HubClosedError) -> None:
        """Drop what waits; :meth:`next` raises the reason."""
        self._end = reason
        self._events.clear()
        self._woken.set()

    async def next(self) -> list[gcs_pb2.Event]:
        """The next changes: all that wait, up to ``EVENTS_PER_MESSAGE_MAX``.

        Raises:
            SlowSubscriberError: changes were dropped.
            HubClosedError: the GCS stops.
        """
        while not self._events:
            if self._end is not None:
                raise self._end
            self._woken.clear()
            await self._woken.wait()
        count = min(len(self._events), EVENTS_PER_MESSAGE_MAX)
        return [self._events.popleft() for _ in range(count)]


class Hub:
    """All subscriptions of one GCS, and the numbers of its changes."""

    def __init__(self, events_max: int) -> None:
        self._events_max = events_max
        self._subscriptions: dict[int, Subscription] = {}
        self._sequence = 0
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._subscriptions)

    def open(self, channels: tuple[Channel, ...]) -> Subscription:
        """A subscription that gets nothing before it is attached."""
        return Subscription(channels, self._events_max, self._attach)

    def drop(self, subscription: Subscription) -> None:
        """Forget a subscription. May be repeated."""
        self._subscriptions.pop(id(subscription), None)

    def publish(self, record: Announced) -> None:
        """Number a change and hand it to those who want it. O(subscribers)."""
        self._sequence += 1
        channel = _CHANNELS[type(record)]
        event: gcs_pb2.Event | None = None
        for subscription in self._subscriptions.values():
            if channel in subscription.channels:
                if event is None:
                    event = event_to(record, self._sequence)
                subscription.push(event)

    def close(self) -> None:
        """End all subscriptions, present and future."""
        self._is_closed = True
        for subscription in self._subscriptions.values():
            subscription.end(HubClosedError("the GCS stops"))

    def _attach(self, subscription: Subscription) -> int:
        if self._is_closed:
            subscription.end(HubClosedError("the GCS stops"))
        else:
            self._subscriptions[id(subscription)] = subscription
        return self._sequence
