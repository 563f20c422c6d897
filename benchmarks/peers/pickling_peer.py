"""Not a runtime: what pickling alone costs, in one process.

A task pickles its arguments, unpickles them, calls the function, and pickles the results; `get`
unpickles. The bound for whatever moves Python objects between processes by pickling them, which
is what rows with large lists mostly consist of.
"""

from __future__ import annotations

from collections.abc import Callable
from pickle import HIGHEST_PROTOCOL, dumps, loads
from typing import Any, ClassVar

from benchmarks.peers.peer import Peer, Reference, Send
from benchmarks.workload import Capability

NOT_A_RUNTIME = "pickling in one process, not a runtime"
CAN = {Capability.SMALL_OBJECTS, Capability.TASKS, Capability.TASK_RETURNS}


class PicklingPeer(Peer):
    """A reference is the pickled value."""

    name = "pickling"
    import_statement = "import pickle"
    lacks: ClassVar[dict[Capability, str]] = {
        capability: NOT_A_RUNTIME for capability in Capability if capability not in CAN
    }

    def start(self, cpus: int) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def put(self, value: object) -> Reference:
        """Pickle the value."""
        return dumps(value, HIGHEST_PROTOCOL)

    def get(self, reference: Reference | list[Reference]) -> Any:
        """Unpickle one value, or a list of them."""
        if isinstance(reference, list):
            return [loads(each) for each in reference]
        return loads(reference)

    def task(self, function: Callable[..., object], returns: int = 1) -> Send:
        """Call the function on a pickled copy of the arguments; the results are pickled."""

        def send(*arguments: object) -> Reference:
            result: Any = function(*loads(dumps(arguments, HIGHEST_PROTOCOL)))
            if returns == 1:
                return dumps(result, HIGHEST_PROTOCOL)
            return [dumps(each, HIGHEST_PROTOCOL) for each in result]

        return send
