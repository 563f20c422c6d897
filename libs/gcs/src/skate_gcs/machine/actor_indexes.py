"""Ways to find live actors: by name, job, owner, node and worker. All steps O(1)."""

from __future__ import annotations

from collections.abc import Iterable

from skate_gcs.machine.records import ActorRecord

_Ids = dict[bytes, None]  # a set that keeps the order in which its members came


class ActorIndexes:
    """Invariant: holds exactly the live actors, each under the values of its present row."""

    def __init__(self) -> None:
        self._live: _Ids = {}
        self._holders: dict[tuple[str, str], bytes] = {}
        self._of_job: dict[bytes, _Ids] = {}
        self._owned_by: dict[bytes, _Ids] = {}
        self._on_node: dict[bytes, _Ids] = {}
        self._of_worker: dict[bytes, bytes] = {}
        self._of_group: dict[bytes, _Ids] = {}
        self._owned_on: dict[bytes, _Ids] = {}

    def add(self, record: ActorRecord) -> None:
        """Take a live actor in."""
        spec = record.spec
        self._live[spec.actor_id] = None
        if spec.name and not record.life.is_released:
            self._holders[spec.namespace, spec.name] = spec.actor_id
        self._of_job.setdefault(spec.job_id, {})[spec.actor_id] = None
        self._owned_by.setdefault(spec.owner.worker_id, {})[spec.actor_id] = None
        self._owned_on.setdefault(spec.owner.node_id, {})[spec.actor_id] = None
        if spec.strategy.group_id:
            self._of_group.setdefault(spec.strategy.group_id, {})[spec.actor_id] = None
        self._place(record)

    def move(self, before: ActorRecord, after: ActorRecord) -> None:
        """The actor's node or worker may have changed."""
        if before.life.node_id != after.life.node_id or before.life.address != after.life.address:
            self._unplace(before)
            self._place(after)

    def remove(self, record: ActorRecord) -> None:
        """The actor's life is over."""
        spec = record.spec
        del self._live[spec.actor_id]
        self.free_name(record)
        _drop(self._of_job, spec.job_id, spec.actor_id)
        _drop(self._owned_by, spec.owner.worker_id, spec.actor_id)
        _drop(self._owned_on, spec.owner.node_id, spec.actor_id)
        if spec.strategy.group_id:
            _drop(self._of_group, spec.strategy.group_id, spec.actor_id)
        self._unplace(record)

    def free_name(self, record: ActorRecord) -> None:
        """Others may take the actor's name from now on."""
        key = (record.spec.namespace, record.spec.name)
        if self._holders.get(key) == record.spec.actor_id:
            del self._holders[key]

    def all_live(self) -> list[bytes]:
        """Live actors, in order of registration."""
        return list(self._live)

    def holder_of(self, namespace: str, name: str) -> bytes | None:
        """Who holds the name; nobody holds the empty one."""
        return self._holders.get((namespace, name))

    def of_job(self, job_id: bytes) -> list[bytes]:
        """Live actors of a job."""
        return list(self._of_job.get(job_id, ()))

    def owned_by(self, worker_id: bytes) -> list[bytes]:
        """Live actors that a worker created."""
        return list(self._owned_by.get(worker_id, ()))

    def owned_on(self, node_id: bytes) -> list[bytes]:
        """Live actors whose creators are on a node."""
        return list(self._owned_on.get(node_id, ()))

    def of_group(self, group_id: bytes) -> list[bytes]:
        """Live actors inside a placement group."""
        return list(self._of_group.get(group_id, ()))

    def on_node(self, node_id: bytes) -> list[bytes]:
        """Actors that run there or that the node was asked to start."""
        return list(self._on_node.get(node_id, ()))

    def actor_of_worker(self, worker_id: bytes) -> bytes | None:
        """The actor that runs in a worker."""
        return self._of_worker.get(worker_id)

    def check_invariants(self, live: Iterable[ActorRecord]) -> None:
        """Raise ``AssertionError`` unless the indexes are what these rows would give."""
        fresh = ActorIndexes()
        for record in live:
            fresh.add(record)
        assert fresh._live.keys() == self._live.keys()
        assert fresh._holders == self._holders
        assert fresh._of_worker == self._of_worker
        for mine, wanted in (
            (self._of_job, fresh._of_job),
            (self._owned_by, fresh._owned_by),
            (self._owned_on, fresh._owned_on),
            (self._on_node, fresh._on_node),
            (self._of_group, fresh._of_group),
        ):
            assert {key: set(ids) for key, ids in mine.items()} == {
                key: set(ids) for key, ids in wanted.items()
            }

    def _place(self, record: ActorRecord) -> None:
        if record.life.node_id:
            self._on_node.setdefault(record.life.node_id, {})[record.spec.actor_id] = None
        if record.life.address.worker_id:
            self._of_worker[record.life.address.worker_id] = record.spec.actor_id

    def _unplace(self, record: ActorRecord) -> None:
        if record.life.node_id:
            _drop(self._on_node, record.life.node_id, record.spec.actor_id)
        self._of_worker.pop(record.life.address.worker_id, None)


def _drop(index: dict[bytes, _Ids], key: bytes, actor_id: bytes) -> None:
    ids = index[key]
    del ids[actor_id]
    if not ids:
        del index[key]
