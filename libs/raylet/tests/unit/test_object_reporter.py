"""Asking the processes of a node for their objects: who answers, who does not, and who is late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from skate_object_store import StoreClient, StoreServer
from skate_raylet.service.local_process import LocalProcess, LocalProcesses
from skate_raylet.service.object_reporter import ObjectReporter
from skate_rpc.gen.skate.v1 import gcs_pb2
from skate_rpc.node_protocol import AskObjects, ObjectsReport
from skate_rpc.object_report import NodeObjects, ObjectRow

NODE_ID = b"n" * 28
TOKEN = "a-token-of-the-cluster"
ROW = ObjectRow(b"o" * 28, "INLINE", 7, b"w" * 28, {"LOCAL_REFERENCE": 1})


class Line:
    """A process at the other end of its stream."""

    def __init__(self, answer: Callable[[AskObjects], None]) -> None:
        self.answer = answer
        self.is_closed = False

    def send(self, message: AskObjects) -> None:
        asyncio.get_running_loop().call_soon(self.answer, message)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreServer]:
    with StoreServer(str(tmp_path / "s" / "store"), 1 << 24) as server:
        yield server


class Node:
    """A reporter and its processes."""

    def __init__(self, store: StoreServer, calls: ThreadPoolExecutor) -> None:
        self.processes = LocalProcesses()
        self.rows = [self.row()]
        self.reporter = ObjectReporter(self.row, TOKEN, self.processes, store, calls, self.list)

    def row(self, node_id: bytes = NODE_ID, endpoint: str = "") -> gcs_pb2.NodeInfo:
        alive = gcs_pb2.NodeInfo.STATE_ALIVE
        return gcs_pb2.NodeInfo(node_id=node_id, state=alive, raylet_endpoint=endpoint)

    async def list(self) -> list[gcs_pb2.NodeInfo]:
        return self.rows

    def add(self, name: bytes, pid: int, answer: Callable[[LocalProcess, AskObjects], None]) -> Any:
        line: Any = Line(lambda message: answer(process, message))
        process = LocalProcess(name * 28, pid, b"", "", "", False, 1, line)
        self.processes.add(process)
        return process

    def prompt(self, process: LocalProcess, ask: AskObjects) -> None:
        self.reporter.on_report(process, ObjectsReport(ask.number, [ROW][: ask.rows_max], 3, 30))


@pytest.fixture
def node(store: StoreServer) -> Iterator[Node]:
    with ThreadPoolExecutor(1) as calls:
        yield Node(store, calls)


def report(node: Node, timeout_s: float = 5.0, rows_max: int = 10) -> NodeObjects:
    return asyncio.run(node.reporter.node(rows_max, timeout_s))


def test_node_reports_its_processes_and_its_store(node: Node, store: StoreServer) -> None:
    node.add(b"w", 7, node.prompt)
    client = StoreClient(store.endpoint, owner=b"w" * 28)
    client.put(b"o" * 28, [bytes(5000)])

    found = report(node)

    (process,) = found.processes
    assert (process.pid, process.rows, process.left_out, process.problem) == (7, [ROW], 3, "")
    assert [(item.object_id, item.size_bytes) for item in found.stored] == [(b"o" * 28, 5000)]
    assert found.listed_bytes() + found.rounding_bytes() == found.used_bytes
    client.close()


def test_process_that_does_not_answer_is_named_beside_the_others(node: Node) -> None:
    node.add(b"w", 7, node.prompt)
    node.add(b"v", 8, lambda process, ask: None)

    prompt, silent = report(node, timeout_s=0.01).processes

    assert prompt.problem == ""
    assert (silent.pid, silent.rows) == (8, [])
    assert "did not answer within 0.01 s" in silent.problem


def test_process_that_ends_while_it_is_asked_is_left_out(node: Node) -> None:
    def hang_up(process: LocalProcess, ask: AskObjects) -> None:
        process.connection.is_closed = True  # type: ignore[misc]

    node.add(b"w", 7, node.prompt)
    node.add(b"v", 8, hang_up)
    assert [process.pid for process in report(node, timeout_s=60.0).processes] == [7]


def test_late_answer_and_answer_of_another_question_are_ignored(node: Node) -> None:
    asked: list[tuple[LocalProcess, AskObjects]] = []
    process = node.add(b"w", 7, lambda process, ask: asked.append((process, ask)))
    assert report(node, timeout_s=0.01).processes[0].problem

    node.reporter.on_report(process, ObjectsReport(asked[0][1].number, [ROW]))
    node.reporter.on_report(process, ObjectsReport(99, [ROW]))

    assert report(node, timeout_s=0.01).processes[0].rows == []


def test_limit_of_rows_is_passed_on_and_has_a_bound(node: Node) -> None:
    limits: list[int] = []

    def answer(process: LocalProcess, ask: AskObjects) -> None:
        limits.append(ask.rows_max)
        node.prompt(process, ask)

    node.add(b"w", 7, answer)
    report(node, rows_max=5)
    report(node, rows_max=10**9)
    assert limits == [5, 10_000]


def test_node_whose_store_is_closed_says_so(node: Node, store: StoreServer) -> None:
    node.add(b"w", 7, node.prompt)
    store.close()
    found = report(node)
    assert found.problem
    assert found.processes[0].rows == [ROW]


def test_cluster_report_names_nodes_that_do_not_answer(node: Node, tmp_path: Path) -> None:
    node.rows.append(node.row(b"m" * 28, f"unix:{tmp_path}/nobody"))
    dead = node.row(b"x" * 28)
    dead.state = gcs_pb2.NodeInfo.STATE_DEAD
    node.rows.append(dead)

    own, other = asyncio.run(node.reporter.cluster(10, 0.05))

    assert (own.node_id, own.problem) == (NODE_ID, "")
    assert other.node_id == b"m" * 28
    assert other.problem.startswith("It did not answer")
