"""What ``ref.why()`` says: from what this process knows when the value is there, else by the
raylet, which asks the whole cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skate_rpc import node_protocol as node
from skate_rpc.wait_report import Explanation
from skate_worker.machine.references import FAILED, INLINE, STORED, Entry
from skate_worker.serialization import ErrorValue, deserialize

if TYPE_CHECKING:
    from skate_worker.object_access import ObjectAccess

MORE_S = 10.0  # for the GCS and the way back, beyond what those asked may take


def explain_object(core: ObjectAccess, entry: Entry, timeout_s: float) -> Explanation:
    """What is known of a value. Raises what ``NodeClient.call`` raises."""
    object_id = entry.object_id.hex()
    subject = f"object {object_id}"
    settled = _explain_settled(subject, entry)
    if settled is not None:
        return settled
    found: list[Explanation] = core.raylet.call(
        "why", node.Why(object_id, timeout_s), list[Explanation], timeout_s + MORE_S
    )
    if found:
        return found[0]
    # It may have come while the others were asked.
    text = "No process that answered owns or runs the task that makes it."
    return _explain_settled(subject, entry) or Explanation(subject, "object", "", (text,))


def explain_ready(
    core: ObjectAccess, entry: Entry, group_id: bytes, timeout_s: float
) -> Explanation:
    """What a value of ``PlacementGroup.ready()`` waits for. Raises as :func:`explain_object`."""
    name = group_id.hex()
    subject = f"object {entry.object_id.hex()}, ready() of placement group {name}"
    found: list[Explanation] = core.raylet.call(
        "why", node.Why(name, timeout_s), list[Explanation], timeout_s + MORE_S
    )
    settled = _explain_settled(subject, entry)
    if settled is not None:
        return settled  # it has come while the others were asked
    if not found:
        text = "The cluster has not heard of the group yet."
        return Explanation(subject, "object", "PENDING", (text,))
    group = found[0]
    return Explanation(subject, "object", group.state, group.lines, group.circle, group.problems)


def _explain_settled(subject: str, entry: Entry) -> Explanation | None:
    text = ""
    if entry.state == INLINE:
        text = "The value is there."
    elif entry.state == STORED and entry.node_id:
        where = f"{entry.size_bytes} bytes in the store of node {entry.node_id.hex()}"
        text = f"The value is there: {where}."
    elif entry.state == FAILED:
        value = deserialize(entry.data)
        error = value.error if isinstance(value, ErrorValue) else None
        lines = str(error).strip().splitlines()  # of an error in a task: its traceback
        reason = lines[-1] if lines else ""
        failed = f"It failed: {type(error).__name__}: {reason}"
        return Explanation(subject, "object", "FAILED", (failed,))
    return Explanation(subject, "object", "FINISHED", (text,)) if text else None
