"""A node that is to leave: its machine gives out nothing new; its shell agrees, waits and goes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_raylet.machine import loan_events as loan
from skate_raylet.machine import loans
from skate_raylet.machine.lease_machine import LeaseConfig
from skate_raylet.machine.node_machine import NodeMachine
from skate_raylet.machine.worker_pool_machine import PoolConfig
from skate_raylet.service import draining
from skate_raylet.service.draining import IDLE, PREEMPTION, Draining
from skate_rpc.gen.skate.v1 import gcs_pb2
from skate_scheduler import NodeView, ResourceSet

HERE, THERE = b"here----node", b"there---node"
TWO = ResourceSet.from_amounts({"CPU": 2})
ONE = ResourceSet.from_amounts({"CPU": 1})


class Node:
    """A machine of two CPUs; every step checks the invariants."""

    def __init__(self) -> None:
        config = LeaseConfig(TWO, HERE[:8], 10.0, HERE)
        self.machine = NodeMachine(config, PoolConfig(4, 4, 100))
        self.now_s = 100.0

    def tell(self, event: Any) -> list[Any]:
        said: list[Any] = list(self.machine.handle(event, self.now_s))
        for command in list(said):
            if isinstance(command, do.StartWorker):
                worker_id = b"w%d" % command.startup_id
                said += self.tell(on.WorkerRegistered(command.startup_id, worker_id))
        self.machine.check_invariants()
        return said

    def request(self, number: int) -> list[Any]:
        return self.tell(on.LeaseRequested(b"driver", number, b"\0\0\0\1", ONE))

    def drain(self) -> list[Any]:
        said = self.machine.drain(self.now_s)
        self.machine.check_invariants()
        return said

    def see(self, *, is_draining: bool = False) -> list[Any]:
        return self.tell(loan.NodeSeen(NodeView(THERE, TWO, TWO, is_draining=is_draining)))


def of(kind: type[Any], said: list[Any]) -> list[Any]:
    return [command for command in said if isinstance(command, kind)]


def asks(said: list[Any]) -> list[bytes]:
    return [
        command.node_id
        for command in of(loan.TellLender, said)
        if isinstance(command.message, loans.Ask)
    ]


@pytest.mark.surface("Z9")
def test_draining_node_grants_nothing_and_asks_its_leases_back() -> None:
    node = Node()
    (granted,) = of(do.GrantLease, node.request(1))
    said = node.drain()
    assert said == [do.AskLeaseBack(b"driver", granted.lease_id)]
    assert of(do.GrantLease, node.request(2)) == []
    node.tell(on.LeaseReturned(b"driver", granted.lease_id, False))
    assert node.machine.leases() == []
    (waiting,) = node.machine.waiting(node.now_s)
    assert "draining" in waiting.reason.sentence()


@pytest.mark.surface("Z9")
def test_what_waits_moves_to_other_nodes_when_the_node_drains() -> None:
    node = Node()
    for number in (1, 2):
        node.request(number)
    node.see()
    assert asks(node.drain()) == []
    assert asks(node.request(3)) == [THERE]


def test_what_waited_while_it_was_alone_moves_to_the_first_node_that_comes() -> None:
    node = Node()
    node.drain()
    assert asks(node.request(1)) == []
    assert asks(node.see(is_draining=True)) == []  # as little as here
    assert asks(node.see()) == [THERE]


def test_no_node_asks_one_that_drains() -> None:
    node = Node()
    for number in (1, 2):
        node.request(number)
    node.see(is_draining=True)
    assert asks(node.request(3)) == []
    assert asks(node.see()) == [THERE]


# ---- the shell ----


class Shell:
    def __init__(self) -> None:
        self.busy = ""
        self.begun = 0
        self.left: list[str] = []
        self.draining = Draining(lambda: self.busy, self.begin, self.left.append)

    def begin(self) -> None:
        self.begun += 1


def order(reason: Any, **fields: Any) -> gcs_pb2.DrainInfo:
    return gcs_pb2.DrainInfo(reason=reason, **fields)


def play(monkeypatch: pytest.MonkeyPatch, test: Any) -> None:
    monkeypatch.setattr(draining, "POLL_S", 0.001)

    async def bounded() -> None:
        async with asyncio.timeout(10):
            await test(Shell())

    asyncio.run(bounded())


async def until_left(shell: Shell) -> str:
    while not shell.left:  # noqa: ASYNC110  the shell has no event for it
        await asyncio.sleep(0.001)
    (reason,) = shell.left
    return reason


def test_busy_node_refuses_to_be_idle_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(shell: Shell) -> None:
        shell.busy = "2 of its workers are in use"
        assert "2 of its workers" in shell.draining.ask(order(IDLE))
        assert (shell.begun, shell.draining.order) == (0, None)

    play(monkeypatch, test)


def test_node_leaves_when_it_is_idle_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(shell: Shell) -> None:
        shell.busy = "it works"
        assert shell.draining.ask(order(PREEMPTION, message="spot")) == ""
        assert shell.draining.ask(order(PREEMPTION, message="spot")) == ""
        assert (shell.begun, shell.left) == (1, [])
        await asyncio.sleep(0.02)
        assert shell.left == []
        shell.busy = ""
        assert await until_left(shell) == "The node was drained (spot)."
        assert shell.draining.is_preempted

    play(monkeypatch, test)


def test_node_leaves_at_its_deadline_and_names_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(shell: Shell) -> None:
        shell.busy = "1 of its workers are in use"
        shell.draining.ask(order(PREEMPTION))
        shell.draining.ask(order(PREEMPTION, deadline_s=time.time() + 0.01))  # replaces it
        assert "at its deadline, 1 of its workers" in await until_left(shell)

    play(monkeypatch, test)
