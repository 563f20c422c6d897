"""The processes that speak to this raylet, and whom to tell what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from skate_rpc.node_messages import stamp
from skate_rpc.serials import Serials
from skate_rpc.stream import StreamClosedError, StreamConnection

Connection = StreamConnection[Any, Any]


@dataclass(slots=True, eq=False)
class LocalProcess:
    """A registered worker or driver."""

    worker_id: bytes
    pid: int
    job_id: bytes
    namespace: str
    endpoint: str
    is_driver: bool
    startup_id: int  # 0 for drivers
    connection: Connection
    actors: dict[bytes, None] = field(default_factory=dict)  # subscribed to
    calls_under_way: int = 0
    serials: Serials = field(default_factory=Serials)

    def send(self, message: Any) -> None:
        """Send at once; a process that has hung up is past telling, its end is being handled."""
        stamp(message, self.serials)
        try:
            self.connection.send(message)
        except StreamClosedError:
            return

    def post(self, message: Any) -> None:
        """Send soon, together with whatever else is posted by then."""
        stamp(message, self.serials)
        try:
            self.connection.post(message)
        except StreamClosedError:
            return

    def queue(self, message: Any) -> None:
        """Have a message go with whatever is sent next; see :meth:`flush`."""
        stamp(message, self.serials)
        try:
            self.connection.queue(message)
        except StreamClosedError:
            return

    def flush(self) -> None:
        """Send what is queued."""
        try:
            self.connection.flush()
        except StreamClosedError:
            return


class LocalProcesses:
    """All registered processes, by worker id."""

    def __init__(self) -> None:
        self._processes: dict[bytes, LocalProcess] = {}

    def __iter__(self) -> Iterator[LocalProcess]:
        return iter(list(self._processes.values()))

    def __len__(self) -> int:
        return len(self._processes)

    def get(self, worker_id: bytes) -> LocalProcess | None:
        """The registered process with this id."""
        return self._processes.get(worker_id)

    def add(self, process: LocalProcess) -> None:
        """A process registered."""
        self._processes[process.worker_id] = process

    def remove(self, worker_id: bytes) -> LocalProcess | None:
        """A process ended or hung up."""
        return self._processes.pop(worker_id, None)
