"""Who must be alive: reachability over everything that the simulated programs hold.

Roots, for each living process: the instances that its program holds, those of the tasks that it
runs, the arguments of the tasks that it submitted and whose outcome it has not, what it pickled out
of band, and the closures that it exported or loaded. Edges: from an object to the references inside
its value. Counts, pins and messages are never asked; they are what is tested.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from skate_worker.errors import (
    DeserializationError,
    ObjectLostError,
    OwnerDiedError,
    TaskError,
    WorkerCrashedError,
)
from skate_worker.machine.references import INLINE, PENDING, STORED, Entry

if TYPE_CHECKING:
    from borrowing_world import SimProcess, World

    from skate_worker.object_ref import ObjectRef
    from skate_worker.submission import Submission


class Violation(AssertionError):
    """The protocol broke a promise."""


class Oracle:
    """Checks one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.contents: dict[bytes, list[bytes]] = {}  # object id -> ids inside its value
        self.owner_of: dict[bytes, SimProcess] = {}
        self.violation: Violation | None = None
        self._returning: dict[bytes, list[list[bytes]]] = {}  # task id -> contents of its returns

    def fail(self, text: str) -> None:
        """Note the first broken promise; raised again where user code can not catch it."""
        if self.violation is None:
            self.violation = Violation(text)
            if self.world.trace is not None:
                self.world.trace.append(f"!! {text}")
        raise self.violation

    # ---- what is reachable ----

    def roots_of(self, process: SimProcess) -> list[bytes]:
        """The ids that one process holds by itself."""
        roots = [r._entry.object_id for r in process.held]
        for refs in process.running:
            roots += [r._entry.object_id for r in refs]
        for _, args, _ in process.tasks.pending.values():
            roots += args
        for body in process.bodies:
            roots += [r._entry.object_id for r in body.closure]
        roots += process.out_of_band
        roots += process.exported
        return roots

    def reachable(self) -> set[bytes]:
        """The ids that any living process reaches."""
        seen: set[bytes] = set()
        frontier = [i for p in self.world.processes if p.is_alive for i in self.roots_of(p)]
        while frontier:
            object_id = frontier.pop()
            if object_id not in seen:
                seen.add(object_id)
                inner = self.contents.get(object_id)
                if inner and self._has_value(object_id):
                    frontier += inner
        return seen

    def _has_value(self, object_id: bytes) -> bool:
        if self.owner_of[object_id].is_alive:
            return True
        # What it holds lives on where its value had arrived.
        return any(_has(p, object_id) for p in self.world.processes if p.is_alive)

    def leads_to(self, object_id: bytes, task_id: bytes) -> bool:
        """Whether what the object holds leads to a return of this task.

        A task that returned it would close a ring of values that hold each other, which counting
        never frees; programs here make none.
        """
        frontier, seen = [object_id], set()
        while frontier:
            object_id = frontier.pop()
            if object_id not in seen:
                seen.add(object_id)
                if object_id.startswith(task_id):
                    return True
                frontier += self.contents.get(object_id, [])
        return False

    # ---- while it runs ----

    def watch(self, process: SimProcess) -> None:
        """Look at what a process releases and returns, the moment it does."""
        ownership, outcomes, table = process.ownership, process.outcomes, process.ownership.table
        finish_released = ownership.finish_released
        success, failure, own = outcomes.success, outcomes.failure, table.own

        def finish_checked(released: list[Entry]) -> None:
            if process.is_alive and any(entry.owner is None for entry in released):
                reachable = self.reachable()
                for entry in released:
                    if entry.owner is None and entry.object_id in reachable:
                        self.fail(f"{process} frees {self._name(entry)}, which is still reachable")
            finish_released(released)

        def succeed(peer: Any, task_id: bytes, *rest: Any) -> Any:
            inner = self._returning.pop(task_id, None)
            try:
                outcome = success(peer, task_id, *rest)
            finally:
                process.ownership.store.is_failing = False  # type: ignore[union-attr]
            if process.is_alive and inner is not None:
                for index, ids in enumerate(inner, start=1):
                    self.contents[task_id + index.to_bytes(4, "big")] = ids
            return outcome

        def fail(task_id: bytes, name: str, error: BaseException, *rest: Any, **named: Any) -> Any:
            self._check_failure(process, error)
            return failure(task_id, name, error, *rest, **named)

        def own_noted(object_id: bytes) -> Entry:
            self.owner_of[object_id] = process
            return own(object_id)

        ownership.finish_released = finish_checked  # type: ignore[method-assign]
        outcomes.success = succeed  # type: ignore[method-assign]
        outcomes.failure = fail  # type: ignore[method-assign]
        table.own = own_noted  # type: ignore[method-assign]

    def returning(self, task_id: bytes, values: list[list[ObjectRef[Any]]]) -> None:
        """A task is about to return these references."""
        self._returning[task_id] = [[r.binary() for r in refs] for refs in values]

    def forget_returns(self, submission: Submission) -> None:
        """What the last attempt of a task returned is not coming."""
        for index in range(1, submission.message.num_returns + 1):
            self.contents.pop(submission.task_id + index.to_bytes(4, "big"), None)

    def check_step(self) -> None:
        """After each step: every reachable object of a living owner is there."""
        if self.violation is not None:
            raise self.violation
        for object_id in self.reachable():
            owner = self.owner_of[object_id]
            if not owner.is_alive:
                continue
            entry = owner.ownership.table.entries.get(object_id)
            if entry is None:
                self.fail(f"{owner} has no {self.world.name_of(object_id)}, which is reachable")
            elif entry.state == STORED and object_id not in self.world.stored:
                self.fail(f"the store has no {self._name(entry)}, which is reachable")

    def check_value(self, ref: ObjectRef[Any], inner: list[ObjectRef[Any]]) -> None:
        """A program read a value and found these references."""
        expected = Counter(self.contents.get(ref.binary(), []))
        if Counter(r.binary() for r in inner) != expected:
            self.fail(f"{self._name(ref._entry)} does not hold what was put into it")

    def check_error(self, process: SimProcess, ref: ObjectRef[Any], error: BaseException) -> None:
        """A program read an error. Only what the session's faults explain is allowed."""
        owner = self.owner_of[ref.binary()]
        is_explained = isinstance(error, TaskError | WorkerCrashedError) or (
            isinstance(error, OwnerDiedError | ObjectLostError) and not owner.is_alive
        )
        if not is_explained:
            self.fail(f"{process} reads {self._name(ref._entry)}: {type(error).__name__}: {error}")

    def _check_failure(self, process: SimProcess, error: BaseException) -> None:
        """A task failed in a way that its program did not choose."""
        if type(error).__name__ in ("UserError", "StoreTimeoutError") or not process.is_alive:
            return
        somebody_died = any(not p.is_alive for p in self.world.processes)
        if isinstance(error, OwnerDiedError | ObjectLostError) and somebody_died:
            return
        if isinstance(error, DeserializationError) and somebody_died:
            return
        self.fail(f"a task on {process} fails: {type(error).__name__}: {error}")

    # ---- at rest ----

    def check_rest(self, when: str) -> None:
        """Nothing is under way: the tables hold what is reachable, and nothing else."""
        world = self.world
        living = world.alive()
        reachable = self.reachable()
        for process in living:
            self._check_table(process, reachable, when)
        needed = {
            object_id
            for p in living
            for object_id, entry in p.ownership.table.entries.items()
            if entry.state == STORED
        }
        for object_id in world.stored:
            if object_id not in needed:
                self.fail(f"{when}: the store still has {world.name_of(object_id)}")

    def _check_table(self, process: SimProcess, reachable: set[bytes], when: str) -> None:
        ownership, name_of = process.ownership, self.world.name_of
        table = ownership.table
        table.check_invariants()
        if process.tasks.pending:
            self.fail(f"{when}: {process} waits for tasks for ever")
        for what, left in (
            ("untold references", ownership.untold),
            ("unconfirmed borrows", ownership._borrows),
            ("pins of outcomes", process.outcomes._pins),
        ):
            if left:
                self.fail(f"{when}: {process} keeps {len(left)} {what}")
        expected = self._expected(process, reachable)
        for object_id, entry in table.entries.items():
            if object_id not in expected:
                counts = f"local {entry.local}, pins {entry.pins}, {self._borrowers(entry)}"
                self.fail(
                    f"{when}: {process} keeps {name_of(object_id)}, which nobody holds ({counts})"
                )
            if entry.state == PENDING and entry.is_asked:
                self.fail(f"{when}: {process} waits for {name_of(object_id)} for ever")
            self._check_counts(process, entry, when)
        for object_id in expected:
            if object_id not in table.entries and self.owner_of[object_id].is_alive:
                self.fail(f"{when}: {process} lost {name_of(object_id)}, which is reachable")

    def _expected(self, process: SimProcess, reachable: set[bytes]) -> set[bytes]:
        """Own objects that anybody reaches, and borrowed ones that this process reaches itself."""
        expected = {i for i in reachable if self.owner_of[i] is process}
        frontier = [*self.roots_of(process), *expected]
        seen: set[bytes] = set()
        while frontier:
            object_id = frontier.pop()
            if object_id not in seen:
                seen.add(object_id)
                if _has(process, object_id):
                    frontier += self.contents.get(object_id, [])
        return seen | expected

    def _check_counts(self, process: SimProcess, entry: Entry, when: str) -> None:
        object_id, name = entry.object_id, self._name(entry)
        held = [*process.held, *(ref for body in process.bodies for ref in body.closure)]
        instances = {id(ref) for ref in held if ref._entry.object_id == object_id}
        if entry.local != len(instances):
            self.fail(f"{when}: {process} counts {entry.local} instances of {name}")
        pins = process.out_of_band.count(object_id) + process.exported.count(object_id)
        for holder in process.ownership.table.entries.values():
            pins += (holder.contained or []).count(entry)
        if entry.pins != pins:
            self.fail(f"{when}: {process} counts {entry.pins} pins of {name} and not {pins}")
        if entry.owner is None:
            borrowers = {
                p.worker_id: 1
                for p in self.world.alive()
                if p is not process and object_id in p.ownership.table.entries
            }
            if (entry.borrowers or {}) != borrowers:
                self.fail(f"{when}: {process} takes {self._borrowers(entry)} for those of {name}")

    def _borrowers(self, entry: Entry) -> str:
        borrowers = (entry.borrowers or {}).items()
        return f"borrowers {[(self.world.by_id[i].name, n) for i, n in borrowers]}"

    def _name(self, entry: Entry) -> str:
        return self.world.name_of(entry.object_id)


def _has(process: SimProcess, object_id: bytes) -> bool:
    """Whether the value itself is in this process."""
    entry = process.ownership.table.entries.get(object_id)
    return entry is not None and entry.state in (INLINE, STORED)
