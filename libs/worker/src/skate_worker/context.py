"""What is running: the task or call that the current thread or coroutine executes."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True)
class TaskContext:
    """The running task or call. In a driver, and in threads of user code: all fields nil."""

    task_id: bytes = b""
    name: str = ""
    function_name: str = ""
    actor_id: bytes = b""
    attempt: int = 0
    resources: dict[str, int] = field(default_factory=dict)  # units of 1e-4
    trace_parent: str = ""
    is_cancelled: bool = False


NO_TASK = TaskContext()

running_task: ContextVar[TaskContext] = ContextVar("skate_running_task", default=NO_TASK)
