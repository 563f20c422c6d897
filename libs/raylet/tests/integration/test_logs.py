from __future__ import annotations

import asyncio
import functools
import inspect
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from skate_raylet.service.job_book import Job, JobBook
from skate_raylet.service.local_process import LocalProcess
from skate_raylet.service.logs import log_tailer
from skate_raylet.service.logs.log_office import LogOffice
from skate_rpc import node_protocol as node
from skate_rpc.gen.skate.v1 import gcs_pb2, raylet_pb2, raylet_pb2_grpc
from skate_rpc.grpc_server import SecureServer

TOKEN = "0123456789abcdef" * 4
WAIT_S = 15.0
JOB = b"jjjj"
HERE, THERE = b"h" * 28, b"t" * 28


class Driver:
    """The driver's end of its connection: prints nothing, keeps all."""

    def __init__(self) -> None:
        self.office: LogOffice | None = None
        self.process = LocalProcess(b"d" * 28, 1, JOB, "", "", True, 0, self)  # type: ignore[arg-type]
        self.messages: list[Any] = []
        self.flushed: list[int] = []
        self.takes = True
        self.untaken: list[int] = []

    def send(self, message: Any) -> None:
        if isinstance(message, node.LogsFlushed):
            self.flushed.append(message.number)
            return
        self.messages.append(message)
        self.untaken.append(message.number)
        if self.takes:
            asyncio.get_running_loop().call_soon(self.take_all)

    def take_all(self) -> None:
        assert self.office is not None
        untaken, self.untaken = self.untaken, []
        for number in untaken:
            self.office.on_taken(self.process, node.LogsTaken(number))

    def lines(self, pid: int, *, is_error: bool = False) -> list[str]:
        return [
            line
            for message in self.messages
            if (message.pid, message.is_error) == (pid, is_error)
            for line in message.lines
        ]


class Worker:
    """A worker's two files."""

    def __init__(self, folder: Path, office: LogOffice, number: int) -> None:
        self.pid, self.number = 1000 + number, number
        self.out, self.err = folder / f"w{number}.out", folder / f"w{number}.err"
        self.office = office
        office.worker_started(number, JOB, self.pid, (str(self.err), str(self.out)))

    def print(self, text: str) -> None:
        with self.out.open("a") as file:
            file.write(text)

    def end(self) -> None:
        self.office.worker_ended(self.number)


class Server(raylet_pb2_grpc.RayletServiceServicer):
    """The driver's node, which can be cut off."""

    def __init__(self, office: LogOffice, endpoint: str) -> None:
        self.office, self.endpoint = office, endpoint
        self.server: SecureServer | None = None
        self.lines = 0

    async def ForwardLogs(  # noqa: N802
        self, request_iterator: AsyncIterator[raylet_pb2.LogForward], context: Any
    ) -> AsyncIterator[raylet_pb2.LogOrder]:
        is_welcome = False
        async for order in self.office.serve(request_iterator):
            self.lines += not is_welcome
            is_welcome = True
            yield order
        if not is_welcome:
            await context.abort(grpc.StatusCode.NOT_FOUND, "")

    async def start(self) -> None:
        self.server = SecureServer(TOKEN)
        self.server.add(raylet_pb2_grpc.add_RayletServiceServicer_to_server, self)
        await self.server.start(self.endpoint)

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(0.0)
            self.server = None


class World:
    """A driver on one node, and workers there and on another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.driver = Driver()
        self.here, self.there = (LogOffice(node_id, TOKEN, jobs()) for node_id in (HERE, THERE))
        self.driver.office = self.here
        self.server = Server(self.here, f"unix:{folder}/s")
        self.workers = 0

    async def start(self) -> None:
        await self.server.start()
        alive = gcs_pb2.NodeInfo.STATE_ALIVE
        self.there.node_seen(
            gcs_pb2.NodeInfo(node_id=HERE, raylet_endpoint=self.server.endpoint, state=alive)
        )
        self.here.node_seen(gcs_pb2.NodeInfo(node_id=THERE, ip_address="10.0.0.2", state=alive))

    async def close(self) -> None:
        await self.there.close()
        await self.here.close()
        await self.server.stop()

    def worker(self, office: LogOffice) -> Worker:
        self.workers += 1
        return Worker(self.folder, office, self.workers)


def jobs() -> JobBook:
    book = JobBook()
    book.update(Job(JOB, "", (), wants_logs=True, driver_node_id=HERE))
    return book


def in_world(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that runs in a world of its own."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        async def play() -> None:
            with tempfile.TemporaryDirectory(prefix="sk-") as folder:
                world = World(Path(folder))
                await world.start()
                try:
                    await test(world, **arguments)
                finally:
                    await world.close()

        asyncio.run(play())

    signature = inspect.signature(test)
    rest = list(signature.parameters.values())[1:]
    run.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
    return run


async def until(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        await asyncio.sleep(0.005)


@in_world
async def test_output_of_workers_here_and_elsewhere_comes_with_names_and_places(
    world: World,
) -> None:
    world.here.driver_joined(world.driver.process)
    near, far = world.worker(world.here), world.worker(world.there)
    near.print(f"{node.LOG_NAME_MARK}f\none\n")
    far.print(f"{node.LOG_NAME_MARK}g\ntwo\n")
    await until(lambda: len(world.driver.messages) == 2)
    first, second = sorted(world.driver.messages, key=lambda message: message.pid)
    assert (first.name, first.pid, first.ip, first.lines) == ("f", near.pid, "", ["one"])
    assert (second.name, second.pid, second.ip, second.lines) == (
        "g",
        far.pid,
        "10.0.0.2",
        ["two"],
    )


@in_world
async def test_what_a_worker_printed_before_its_end_or_before_the_driver_came_is_not_lost(
    world: World,
) -> None:
    near, far = world.worker(world.here), world.worker(world.there)
    for worker in (near, far):
        worker.print("first\nlast, without an end")
        worker.end()
    world.here.driver_joined(world.driver.process)
    for worker in (near, far):
        await until(lambda pid=worker.pid: len(world.driver.lines(pid)) == 2)
        assert world.driver.lines(worker.pid) == ["first", "last, without an end"]


@in_world
async def test_driver_that_prints_nothing_is_sent_a_bounded_number_and_all_in_the_end(
    world: World,
) -> None:
    world.driver.takes = False
    world.here.driver_joined(world.driver.process)
    for worker in (world.worker(world.here), world.worker(world.there)):
        worker.print("".join(f"{number}\n" for number in range(200_000)))
    limit = node.LOG_LINES_UNDER_WAY_MAX
    await until(lambda: len(world.driver.messages) >= limit)
    sent = len(world.driver.messages)
    await asyncio.sleep(3 * log_tailer.LOOK_MAX_S)  # nothing is to happen in it
    # One reading may be several messages, and so may what was on its way.
    assert len(world.driver.messages) == sent < 100
    world.driver.takes = True
    world.driver.take_all()
    for pid in (1001, 1002):
        await until(lambda pid=pid: len(world.driver.lines(pid)) == 200_000)
        assert world.driver.lines(pid) == [str(number) for number in range(200_000)]


@in_world
async def test_flush_is_answered_behind_everything_that_was_printed(world: World) -> None:
    world.here.driver_joined(world.driver.process)
    near, far = world.worker(world.here), world.worker(world.there)
    far.print("line open\n")
    await until(lambda: world.driver.lines(far.pid))
    for number in range(1, 20):
        near.print(f"{number}\n")
        far.print(f"{number}\n")
        world.here.on_flush(world.driver.process, node.FlushLogs(number))
        await until(lambda number=number: number in world.driver.flushed)
        assert world.driver.lines(near.pid)[-1] == world.driver.lines(far.pid)[-1] == str(number)


@in_world
async def test_flush_ends_although_another_node_is_cut_off(world: World) -> None:
    world.here.driver_joined(world.driver.process)
    far = world.worker(world.there)
    far.print("line open\n")
    await until(lambda: world.driver.lines(far.pid))
    await world.server.stop()
    world.here.on_flush(world.driver.process, node.FlushLogs(1))
    await until(lambda: world.driver.flushed == [1])


@pytest.mark.invariant("I26")
@pytest.mark.parametrize("seed", range(3))
@in_world
async def test_lines_come_once_and_in_order_however_often_the_line_breaks(
    world: World, seed: int
) -> None:
    draw = random.Random(seed)
    world.here.driver_joined(world.driver.process)
    workers = [world.worker(world.there) for _ in range(4)]
    printed: dict[int, int] = {worker.pid: 0 for worker in workers}
    living = list(workers)
    for _ in range(300):
        worker = draw.choice(living)
        count = draw.choice([1, 10, 2000])
        first = printed[worker.pid]
        worker.print("".join(f"{number}\n" for number in range(first, first + count)))
        printed[worker.pid] += count
        what = draw.random()
        if what < 0.03:
            await world.server.stop()
            await asyncio.sleep(draw.uniform(0.0, 0.1))
            await world.server.start()
        elif what < 0.05:
            living.remove(worker)
            worker.end()
            fresh = world.worker(world.there)
            living.append(fresh)
            printed[fresh.pid] = 0
        await asyncio.sleep(draw.choice([0.0, 0.0, 0.005]))
    await until(lambda: world.server.lines > 1)
    for pid, count in printed.items():
        await until(lambda pid=pid, count=count: len(world.driver.lines(pid)) >= count)
        assert world.driver.lines(pid) == [str(number) for number in range(count)]


@in_world
async def test_finished_job_is_read_no_more(world: World) -> None:
    world.here.driver_joined(world.driver.process)
    near, far = world.worker(world.here), world.worker(world.there)
    far.print("line open\n")
    await until(lambda: world.driver.lines(far.pid))
    for office in (world.here, world.there):
        office.job_finished(JOB)
    near.print("unseen\n")
    far.print("unseen\n")
    await asyncio.sleep(2 * log_tailer.LOOK_MAX_S)  # nothing is to happen in it
    assert world.driver.lines(near.pid) == []
    assert world.driver.lines(far.pid) == ["line open"]


@in_world
async def test_driver_that_wants_no_output_costs_no_look_at_a_file(world: World) -> None:
    book = JobBook()
    book.update(Job(JOB, "", (), wants_logs=False, driver_node_id=HERE))
    office = LogOffice(HERE, TOKEN, book)
    world.worker(office)
    assert office._tailer._jobs == {}
    await office.close()
