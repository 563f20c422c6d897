# ruff: noqa: N802 - methods are named after the messages that they take
"""A raylet of a few lines for tests of the worker alone: real sockets and processes, no resources.

It grants every lease at once with a worker process of its own, keeps the key-value table in memory,
and starts actors where it stands. Several can be joined: a lease or actor that asks for a resource
named like one of them runs there, and objects are copied from store to store. What it does not do
(queueing, accounting, restarts) the real one is tested for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from skate_object_store import ObjectExistsError, StoreClient, StoreServer
from skate_rpc import node_protocol as node
from skate_rpc.event_loop import IoThread
from skate_rpc.handshake import ClientHandshake, ServerHandshake
from skate_rpc.node_messages import stamp
from skate_rpc.serials import Serials
from skate_rpc.stream import StreamClosedError, StreamConnection, StreamListener

TOKEN = "test-token" * 4
_START = """
import json, sys
from skate_worker.worker_main import WorkerConfig, run_worker
config = json.loads(sys.stdin.readline())
sys.exit(run_worker(WorkerConfig(config["raylet"], config["token"], "", b"", b"", config["id"])))
"""
_encode = msgspec.msgpack.encode


_serials: dict[Any, Serials] = {}  # by connection


def send(connection: Any, message: Any) -> None:
    """Send what may carry a serial. On any raylet's thread."""
    connection.send(stamp(message, _serials.setdefault(connection, Serials())))


class MiniRaylet:
    """Serves one session directory until :meth:`close`."""

    def __init__(self, directory: Path, name: str = "first") -> None:
        self.name = name
        self.endpoint = f"unix:{directory}/raylet.sock"
        self.node_id = os.urandom(28)
        self.job_id = b"\0\0\0\1"
        self.store = StoreServer(
            f"{directory}/store.sock",
            256 << 20,
            handshake=lambda: ServerHandshake(TOKEN.encode()),
        )
        self.store.start()
        self.loop = IoThread("mini-raylet")
        self.loop.start()
        self.blocked = 0
        self.others: dict[bytes, MiniRaylet] = {}  # the joined ones
        self.pulls: list[node.PullObject] = []
        self.hold_pulls = threading.Event()  # while set, pulls are not answered
        self.held: list[tuple[Any, node.PullObject]] = []
        self.cancelled: list[int] = []
        self.hangs_up = False  # on whoever joins from now on
        self.is_dead = False
        self.is_closing = False
        self._store_client: StoreClient | None = None
        self.workers: dict[bytes, StreamConnection[Any, Any]] = {}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.leases: dict[bytes, tuple[StreamConnection[Any, Any], int]] = {}
        self._idle: list[tuple[StreamConnection[Any, Any], node.RegisterProcess]] = []
        self._wanted: list[Any] = []
        self.backlogs: list[dict[int, int]] = []  # as they were told, by request
        self._kv: dict[bytes, bytes] = {}
        self.actors: dict[bytes, node.ActorView] = {}
        self._subscribers: dict[bytes, list[StreamConnection[Any, Any]]] = {}
        self._actor_of: dict[StreamConnection[Any, Any], bytes] = {}
        ready = threading.Event()

        def listen() -> None:
            self._listener = StreamListener(
                self.endpoint,
                TOKEN.encode(),
                self.loop,
                incoming=node.FromProcess,
                on_open=lambda connection: connection.close() if self.hangs_up else None,
                on_messages=self._on_messages,
                on_close=self._on_close,
            )
            ready.set()

        self.loop.call_soon_threadsafe(listen)
        assert ready.wait(10)

    def close(self) -> None:
        self.is_closing = True
        done = threading.Event()

        def hang_up() -> None:
            self._listener.close()
            for connection in self.workers.values():
                connection.close()
            self.loop.call_soon_threadsafe(done.set)

        self.loop.call_soon_threadsafe(hang_up)
        assert done.wait(10)
        for process in self.processes.values():
            process.kill()
            process.wait(10)
        self.loop.stop()
        if self._store_client is not None:
            self._store_client.close()
        self.store.close()

    def join(self, other: MiniRaylet) -> None:
        """Make one cluster of two nodes; more by joining each with each."""
        self.others[other.node_id] = other
        other.others[self.node_id] = self
        other._kv = self._kv

    def die(self) -> None:
        """The node vanishes: its processes are killed, and every other node tells its own."""
        self.is_dead = True
        for process in self.processes.values():
            process.kill()
            process.wait(10)
        death = node.Death("node_lost", "its machine was switched off")
        for other in self.others.values():
            other.tell(node.NodeDied(self.node_id, death))

    def tell(self, message: Any) -> None:
        """Send to every process of this node."""
        for connection in list(self.workers.values()):
            with contextlib.suppress(StreamClosedError):
                connection.send(message)

    def stored(self) -> int:
        """How many objects are in this node's store."""
        objects: int = self.store.statistics().objects
        return objects

    def client(self) -> StoreClient:
        """A client of this node's store, for copying and for losing objects on purpose."""
        if self._store_client is None:
            self._store_client = StoreClient(
                self.store.endpoint, handshake=ClientHandshake(TOKEN.encode())
            )
        return self._store_client

    def _on_PullObject(self, connection: Any, message: node.PullObject) -> None:
        self.pulls.append(message)
        if self.hold_pulls.is_set():
            self.held.append((connection, message))
        else:
            self._pull(connection, message)

    def release_pulls(self) -> None:
        """Answer the pulls that were held."""
        self.hold_pulls.clear()
        held, self.held = self.held, []
        for connection, message in held:
            self.loop.call_soon_threadsafe(self._pull, connection, message)

    def _pull(self, connection: Any, message: node.PullObject) -> None:
        lost: list[bytes] = []
        for node_id in message.node_ids:
            if node_id == self.node_id:
                if self.client().contains(message.object_id):
                    break
            elif (other := self.others.get(node_id)) is not None and not other.is_dead:
                view = other.client().get([message.object_id], 0)[0]
                if view is not None:
                    try:
                        self.client().put(
                            message.object_id, (view,), evictable=True, owner=message.owner_id
                        )
                    except ObjectExistsError:
                        pass
                    break
            lost.append(node_id)
        else:
            connection.send(node.PullEnded(message.pull_id, "lost", "nobody has it", lost))
            return
        connection.send(node.PullEnded(message.pull_id))

    def _on_CancelPull(self, connection: Any, message: node.CancelPull) -> None:
        self.cancelled.append(message.pull_id)
        self.held = [item for item in self.held if item[1].pull_id != message.pull_id]
        connection.send(node.PullEnded(message.pull_id, "cancelled"))

    def _on_DeleteCopies(self, connection: Any, message: node.DeleteCopies) -> None:
        for node_id, object_ids in message.copies.items():
            holder = self if node_id == self.node_id else self.others[node_id]
            holder.client().delete(object_ids)

    def _on_KeepCopies(self, connection: Any, message: node.KeepCopies) -> None:
        for node_id, object_ids in message.copies.items():
            holder = self if node_id == self.node_id else self.others[node_id]
            if holder.is_dead:
                continue
            kept = holder.client().keep(object_ids)
            gone = [object_id for object_id in object_ids if object_id not in kept]
            send(connection, node.CopiesKept(node_id, kept, gone))

    def _spawn(self) -> None:
        if self.is_closing:
            return
        number = len(self.processes)
        process = subprocess.Popen(
            [sys.executable, "-c", _START], stdin=subprocess.PIPE, start_new_session=True
        )
        self.processes[number] = process
        config = {"raylet": self.endpoint, "token": TOKEN, "id": number}
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(json.dumps(config).encode() + b"\n")

    def _on_messages(self, connection: StreamConnection[Any, Any], batch: list[Any]) -> None:
        for message in batch:
            getattr(self, "_on_" + type(message).__name__, self._ignore)(connection, message)

    def _ignore(self, connection: StreamConnection[Any, Any], message: Any) -> None:
        pass

    def _on_RegisterProcess(self, connection: Any, message: node.RegisterProcess) -> None:
        connection.context = message
        self.workers[message.worker_id] = connection
        connection.send(
            node.ProcessRegistered(
                self.node_id, self.job_id, "tests", self.store.endpoint, "", "", "", False
            )
        )
        if not message.is_driver:
            self._idle.append((connection, message))
            self._serve()

    def _on_RequestLease(self, connection: Any, message: node.RequestLease) -> None:
        there = self._named_by(message.resources)
        there.loop.call_soon_threadsafe(there._take, connection, message)

    def _named_by(self, resources: dict[str, int]) -> MiniRaylet:
        return next((r for r in self.others.values() if r.name in resources), self)

    def _take(self, asker: Any, message: Any) -> None:
        self._wanted.append((asker, message))
        if not self._idle:
            self._spawn()
        self._serve()

    def _on_CancelLeaseRequest(self, connection: Any, message: node.CancelLeaseRequest) -> None:
        self._wanted = [
            w
            for w in self._wanted
            if not (w[0] is connection and getattr(w[1], "request_id", 0) == message.request_id)
        ]

    def _on_TellBacklog(self, connection: Any, message: node.TellBacklog) -> None:
        self.backlogs.append(dict(message.backlogs))

    def _serve(self) -> None:
        while self._idle and self._wanted:
            worker, registered = self._idle.pop()
            asker, message = self._wanted.pop(0)
            if isinstance(message, node.CreateActor):
                self._actor_of[worker] = message.actor_id
                send(worker, message)
                continue
            lease_id = os.urandom(16)
            self.leases[lease_id] = (asker, registered.pid)
            worker.context = (registered, lease_id)
            send(
                asker,
                node.LeaseGranted(
                    message.request_id,
                    lease_id,
                    registered.worker_id,
                    self.node_id,
                    registered.endpoint,
                    registered.pid,
                ),
            )

    def _on_ReturnLease(self, connection: Any, message: node.ReturnLease) -> None:
        for other in self.others.values():
            if message.lease_id in other.leases:
                other.loop.call_soon_threadsafe(other._on_ReturnLease, connection, message)
                return
        asker_pid = self.leases.pop(message.lease_id, None)
        if asker_pid is None:
            return
        for worker in self.workers.values():
            context = worker.context
            if isinstance(context, tuple) and context[1] == message.lease_id:
                worker.context = context[0]
                if not message.discard:
                    self._idle.append((worker, context[0]))
        self._serve()

    def _on_KillWorker(self, connection: Any, message: node.KillWorker) -> None:
        os.kill(self.leases[message.lease_id][1], signal.SIGKILL)

    def _on_Blocked(self, connection: Any, message: node.Blocked) -> None:
        self.blocked += 1

    def _on_close(self, connection: Any, reason: str) -> None:
        context = connection.context
        registered = context[0] if isinstance(context, tuple) else context
        if registered is not None and not self.is_dead:
            died = node.Death("signaled", "killed by signal SIGKILL", registered.pid, signal=9)
            for node_of in (self, *self.others.values()):
                node_of.tell(node.WorkerDied(registered.worker_id, died))
        self._idle = [item for item in self._idle if item[0] is not connection]
        death = node.Death("signaled", "killed by signal SIGKILL", signal=9)
        if isinstance(context, tuple):
            lease = self.leases.pop(context[1], None)
            if lease is not None and not lease[0].is_closed:
                lease[0].send(node.LeaseLost(context[1], death))
        actor_id = self._actor_of.pop(connection, None)
        if actor_id is not None and self.actors[actor_id].state != "DEAD":
            self._publish(actor_id, "DEAD", death=death)

    def _on_ControlCall(self, connection: Any, call: node.ControlCall) -> None:
        body, error, kind = b"", "", ""
        if call.method == "kv_put":
            put = msgspec.msgpack.decode(call.body, type=node.KvPut)
            self._kv[put.key] = put.value
            body = _encode(True)
        elif call.method == "kv_get":
            get = msgspec.msgpack.decode(call.body, type=node.KvGet)
            body = _encode(self._kv.get(get.key))
        elif call.method == "register_actor":
            spec = msgspec.msgpack.decode(call.body, type=node.ActorRegistration)
            view = node.ActorView(spec.actor_id, "PENDING_CREATION", class_name=spec.class_name)
            there = self._named_by(spec.placement_resources)
            for known in (self, *self.others.values()):
                known.actors[spec.actor_id] = view
            creation = node.CreateActor(spec.actor_id, 0, spec.creation_task)
            there.loop.call_soon_threadsafe(there._start_actor, connection, creation)
            body = _encode(node.RegisteredActor(view, True))
        elif call.method in ("kill_actor", "release_actor"):
            actor_id = msgspec.msgpack.decode(call.body, type=node.ActorRelease).actor_id
            for worker, known in self._actor_of.items():
                if known == actor_id:
                    os.kill(self._pid_of(worker), signal.SIGKILL)
            body = _encode(True)
        else:
            error, kind = f"{call.method} is not served here", "invalid"
        connection.send(node.ControlReply(call.call_id, body, error, kind))

    def _start_actor(self, connection: Any, creation: node.CreateActor) -> None:
        self._wanted.append((connection, creation))
        self._spawn()
        self._serve()

    def _pid_of(self, worker: Any) -> int:
        context = worker.context
        pid: int = (context[0] if isinstance(context, tuple) else context).pid
        return pid

    def _on_SubscribeActor(self, connection: Any, message: node.SubscribeActor) -> None:
        self._subscribers.setdefault(message.actor_id, []).append(connection)
        if message.actor_id in self.actors:
            send(connection, node.ActorUpdate(self.actors[message.actor_id]))

    def _on_ActorCreated(self, connection: Any, message: node.ActorCreated) -> None:
        registered = connection.context
        self._publish(
            message.actor_id,
            "ALIVE",
            endpoint=registered.endpoint,
            worker_id=registered.worker_id,
            node_id=self.node_id,
            pid=registered.pid,
        )

    def _on_ActorCreationFailed(self, connection: Any, message: node.ActorCreationFailed) -> None:
        death = node.Death("creation_failed", message.message)
        self._publish(message.actor_id, "DEAD", death=death, creation_error=message.error)

    def _publish(self, actor_id: bytes, state: str, **fields: Any) -> None:
        view = msgspec.structs.replace(self.actors[actor_id], state=state, **fields)
        for known in (self, *self.others.values()):
            known.actors[actor_id] = view
            for connection in known._subscribers.get(actor_id, []):
                if not connection.is_closed:
                    send(connection, node.ActorUpdate(view))
