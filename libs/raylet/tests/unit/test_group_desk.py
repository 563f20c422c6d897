"""News of placement groups and answers to questions about them, in whatever order they come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from skate_raylet.machine import events as on
from skate_raylet.service.group_desk import GroupDesk
from skate_rpc import node_protocol as node
from skate_rpc.gen.skate.v1 import gcs_pb2

GROUP = b"g" * 18
HERE = b"n" * 28
CREATED = gcs_pb2.PLACEMENT_GROUP_STATE_CREATED
PENDING = gcs_pb2.PLACEMENT_GROUP_STATE_PENDING


def row(state: gcs_pb2.PlacementGroupState) -> gcs_pb2.PlacementGroupInfo:
    spec = gcs_pb2.PlacementGroupSpec(group_id=GROUP, strategy="PACK")
    node_ids = [HERE] if state == CREATED else [b""]
    return gcs_pb2.PlacementGroupInfo(spec=spec, state=state, node_ids=node_ids)


class Process:
    """A local process that keeps what it is sent."""

    def __init__(self) -> None:
        self.states: list[str] = []

    def queue(self, message: node.PlacementGroupUpdate) -> None:
        self.states.append(message.group.state)

    def flush(self) -> None:
        """It is there already."""


class Gcs:
    """Answers a question when the test says so."""

    def __init__(self) -> None:
        self.groups = self
        self.answers: asyncio.Queue[gcs_pb2.PlacementGroupInfo | None] = asyncio.Queue()

    async def get(self, group_id: bytes) -> gcs_pb2.PlacementGroupInfo | None:
        return await self.answers.get()


def play(test: Callable[[GroupDesk, Gcs, list[Any]], Awaitable[None]]) -> None:
    async def run() -> None:
        gcs, told = Gcs(), []
        client: Any = gcs
        desk = GroupDesk(client, HERE, told.append, lambda: [GROUP])
        async with asyncio.timeout(10):
            await test(desk, gcs, told)
        await desk.close()

    asyncio.run(run())


async def settle(desk: GroupDesk) -> None:
    """Let the questions that are answered end."""
    while desk._tasks:  # noqa: ASYNC110  they end one by one
        await asyncio.sleep(0)


def test_subscriber_is_not_told_an_answer_that_is_older_than_news() -> None:
    async def test(desk: GroupDesk, gcs: Gcs, told: list[Any]) -> None:
        process: Any = Process()
        desk.subscribe(process, node.SubscribePlacementGroup(GROUP))
        await asyncio.sleep(0)
        desk.take_news(row(CREATED))
        gcs.answers.put_nowait(row(PENDING))
        await settle(desk)
        assert process.states == ["CREATED"]
        desk.subscribe(process, node.SubscribePlacementGroup(GROUP))
        gcs.answers.put_nowait(row(CREATED))
        await settle(desk)
        assert process.states == ["CREATED", "CREATED"]

    play(test)


def test_machine_is_told_what_is_an_answer() -> None:
    async def test(desk: GroupDesk, gcs: Gcs, told: list[Any]) -> None:
        desk.ask(GROUP)
        gcs.answers.put_nowait(row(CREATED))
        await settle(desk)
        desk.take_news(row(CREATED))
        assert told == [on.GroupSeen(GROUP, (HERE,), is_answer=True), on.GroupSeen(GROUP, (HERE,))]

    play(test)


def test_snapshot_from_before_an_answer_does_not_end_the_group() -> None:
    async def test(desk: GroupDesk, gcs: Gcs, told: list[Any]) -> None:
        desk.ask(GROUP)
        gcs.answers.put_nowait(row(CREATED))
        await settle(desk)
        desk.snapshot_taken()
        assert [type(event) for event in told] == [on.GroupSeen]
        desk.snapshot_taken()
        assert [type(event) for event in told] == [on.GroupSeen, on.GroupGone]

    play(test)
