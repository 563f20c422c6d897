"""The facts of jobs in the cluster's key-value store: written once, never changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from skate_jobs.machine.records import Job, JobEnd, JobRun, JobSpec, JobStop
from skate_rpc import node_protocol as node

NAMESPACE: Final = "skate:jobs"
_SPEC: Final = b"spec"
_FACTS: Final[dict[type, bytes]] = {
    JobSpec: _SPEC,
    JobRun: b"run",
    JobStop: b"stop",
    JobEnd: b"end",
}

Fact = JobSpec | JobRun | JobStop | JobEnd
F = TypeVar("F", bound=Fact)
Call = Callable[[str, Any, Any], Any]
"""A control call of this process's raylet: method, body, type of the answer."""


class JobStore:
    """Thread-safe. Every method may raise what a control call raises while the GCS is away."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def put(self, submission_id: str, fact: Fact) -> bool:
        """Store a fact; whether it holds now, which it does not if another was there before.

        A repetition that finds its own fact, because the answer was lost, holds as well.
        """
        value = msgspec.msgpack.encode(fact)
        body = node.KvPut(NAMESPACE, _key(submission_id, type(fact)), value, overwrite=False)
        if self._call("kv_put", body, bool):
            return True
        return self._read(submission_id, type(fact)) == fact

    def get(self, submission_id: str) -> Job | None:
        """The job; None when nothing of that id was submitted."""
        spec = self._read(submission_id, JobSpec)
        if spec is None:
            return None
        # The end last: what was read before it can only be older.
        run = self._read(submission_id, JobRun)
        stop = self._read(submission_id, JobStop)
        return Job(spec, run, stop, self._read(submission_id, JobEnd))

    def ids(self) -> list[str]:
        """The submission ids of all jobs, sorted."""
        keys: list[bytes] = self._call("kv_keys", node.KvGet(NAMESPACE, b"", True), list[bytes])
        suffix = b"/" + _SPEC
        return sorted(key.removesuffix(suffix).decode() for key in keys if key.endswith(suffix))

    def delete(self, submission_id: str) -> None:
        """Forget a job that has ended. The spec goes first: without it there is no job."""
        for kind in _FACTS:
            self._call("kv_delete", node.KvGet(NAMESPACE, _key(submission_id, kind)), int)

    def _read(self, submission_id: str, kind: type[F]) -> F | None:
        body = node.KvGet(NAMESPACE, _key(submission_id, kind))
        value: bytes | None = self._call("kv_get", body, bytes | None)
        return None if value is None else msgspec.msgpack.decode(value, type=kind)


def _key(submission_id: str, kind: type) -> bytes:
    return submission_id.encode() + b"/" + _FACTS[kind]
