"""Decides which objects travel to this node, in which order, from whom, and when to give up.

What comes before: processes that wait for objects of other nodes (``PullObject``). What comes
after: the shell, which reserves room in the store, moves bytes, and reports.

- One transfer an object, however many wait for it; it has the priority of the most urgent.
- Order: ``get`` before ``wait`` before arguments, first come first served within each. The sum of
  the sizes under way stays within ``bytes_max``, but one transfer always may run, however large.
- A transfer that finds the store full steps aside, so that it holds nothing that a more urgent one
  needs, and tries again until ``room_wait_s`` is over: nothing waits for ever.
  What it got is dropped, and tried again likewise, if the store runs out of memory on the way.
- A large object is fetched in pieces from up to two sources at a time. What a source did not send
  the next one does, from that byte on. Where the owner names a node to which a copy is on its way,
  that one alone is asked, and the others stand in for it.
- A source is given up when it says that it lacks the object, when it fails twice in a row, when it
  is silent for ``stall_s``, and when its node dies.

Cost: O(sources) an event, plus O(ranges under way) for choosing the least loaded. Source: SURFACE
O13; RELIABILITY I1 to I3.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import assert_never

from skate_raylet.machine.pull import Pull, Range, Stage, Waiter
from skate_raylet.machine.pull_config import PullConfig, PullStatistics
from skate_raylet.machine.pull_events import (
    CopyDropped,
    CopySealed,
    DropCopy,
    EndPull,
    FetchRange,
    MakeRoom,
    NodeGone,
    NodeSeen,
    OwnerGone,
    ProcessGone,
    PullCancelled,
    PullCommand,
    PullEvent,
    PullRequested,
    RangeFailed,
    RangeFetched,
    RangeProgressed,
    RoomMade,
    RoomRefusal,
    RoomRefused,
    RoomWithdrawn,
    SealCopy,
    StopRange,
    TimePassed,
)
from skate_raylet.machine.pull_queue import PullQueue
from skate_raylet.machine.pull_sources import PullSources


class PullPlanner:
    """Invariant: each object has at most one pull, and each waiter is in exactly one of them."""

    def __init__(self, config: PullConfig, node_id: bytes) -> None:
        self._config = config
        self._sources = PullSources(config, node_id)
        self._pulls: dict[bytes, Pull] = {}
        self._of_waiter: dict[Waiter, Pull] = {}
        self._of_process: dict[bytes, dict[int, None]] = {}
        self._queue = PullQueue(config)
        self._next_range_id = 1
        self._done_total = 0
        self._failed_total = 0

    def handle(self, event: PullEvent, now_s: float) -> list[PullCommand]:
        """Take one event; returns what the shell has to do, in this order."""
        out: list[PullCommand] = []
        match event:
            case PullRequested():
                self._request(event, now_s, out)
            case PullCancelled(process_id, pull_id):
                self._cancel((process_id, pull_id), now_s, out)
            case ProcessGone(process_id):
                for pull_id in list(self._of_process.get(process_id, ())):
                    self._forget_waiter((process_id, pull_id), now_s, out)
            case OwnerGone(owner_id, why):
                for pull in [p for p in self._pulls.values() if p.owner_id == owner_id]:
                    self._fail(pull, "lost", f"The object's owner died: {why}", now_s, out)
            case NodeSeen(node_id):
                if self._sources.seen(node_id):
                    self._fetch_all(now_s, out)
            case NodeGone(node_id, why):
                self._bury(node_id, why, now_s, out)
            case RoomMade() | RoomRefused():
                self._take_room(event, now_s, out)
            case RoomWithdrawn():
                self._give_up_room(event, out)
            case RangeProgressed(object_id, range_id):
                pull = self._pulls[object_id]
                pull.ranges[range_id].progress_at_s = now_s
            case RangeFetched() | RangeFailed():
                self._end_range(event, now_s, out)
            case CopySealed() | CopyDropped():
                self._close(event, now_s, out)
            case TimePassed():
                self._queue.unpark(now_s)
                self._stop_stalled(now_s, out)
                self._fetch_all(now_s, out)
            case _:
                assert_never(event)
        self._admit(out)
        return out

    def next_wakeup(self) -> tuple[float, str] | None:
        """When ``TimePassed`` is due, and why; None when time alone changes nothing.

        It may be past already: time went on since the last event was handled.
        """
        times: list[tuple[float, str]] = []
        unpark_s = self._queue.next_unpark_s()
        if unpark_s is not None:
            times.append((unpark_s, "the store was full"))
        for pull in self._queue.under_way.values():
            if pull.stage is not Stage.FETCHING:
                continue
            times += [
                (part.progress_at_s + self._config.stall_s, "a source is silent")
                for part in pull.ranges.values()
                if not part.stop_reason
            ]
            if self._can_use_more(pull):
                at_s = self._sources.next_s(pull)
                if at_s < math.inf:
                    times.append((at_s, "a source may be tried again"))
        return min(times, default=None)

    def statistics(self) -> PullStatistics:
        """O(1)."""
        return PullStatistics(
            queued=len(self._queue),
            under_way=len(self._queue.under_way),
            bytes_under_way=self._queue.bytes_under_way,
            done_total=self._done_total,
            failed_total=self._failed_total,
        )

    # ---- who waits ----

    def _request(self, event: PullRequested, now_s: float, out: list[PullCommand]) -> None:
        waiter = (event.process_id, event.pull_id)
        if waiter in self._of_waiter:
            return
        pull = self._pulls.get(event.object_id)
        if pull is None:
            pull = Pull(event.object_id, event.size_bytes, event.owner_id)
            self._pulls[event.object_id] = pull
        elif pull.stage is Stage.MAKING_ROOM:
            pull.is_unwanted = False
        if pull.is_unwanted or pull.stage is Stage.DROPPING:
            pull.successor = (event.size_bytes, event.owner_id)  # a task run again may differ
        pull.waiters[waiter] = event.priority
        self._of_waiter[waiter] = pull
        self._of_process.setdefault(event.process_id, {})[event.pull_id] = None
        pull.add_sources(event.arriving_at, now_s, are_arriving=True)
        pull.add_sources(event.node_ids, now_s)
        self._sources.lose_dead(pull)
        if pull.stage is Stage.QUEUED:
            if self._has_hope(pull):
                self._queue.add(pull)
            else:
                self._fail(pull, "lost", pull.why_lost(), now_s, out)
        elif pull.stage is Stage.FETCHING:
            self._fetch(pull, now_s, out)

    def _cancel(self, waiter: Waiter, now_s: float, out: list[PullCommand]) -> None:
        if waiter in self._of_waiter:
            out.append(EndPull(*waiter, "cancelled", "The pull was cancelled."))
            self._forget_waiter(waiter, now_s, out)

    def _forget_waiter(self, waiter: Waiter, now_s: float, out: list[PullCommand]) -> None:
        pull = self._of_waiter[waiter]
        self._drop_waiter(pull, waiter)
        if pull.stage is Stage.QUEUED:
            if pull.waiters:
                self._queue.add(pull)
            else:
                self._queue.remove(pull)
                del self._pulls[pull.object_id]
        elif not pull.waiters:
            self._abandon(pull, "nobody waits for it any more", out)

    def _drop_waiter(self, pull: Pull, waiter: Waiter) -> None:
        del pull.waiters[waiter]
        del self._of_waiter[waiter]
        process_id, pull_id = waiter
        numbers = self._of_process[process_id]
        del numbers[pull_id]
        if not numbers:
            del self._of_process[process_id]

    def _tell_waiters(
        self,
        pull: Pull,
        kind: str,
        message: str,
        lost_at: tuple[bytes, ...],
        out: list[PullCommand],
        fullness: bytes = b"",
    ) -> None:
        for waiter in list(pull.waiters):
            out.append(EndPull(*waiter, kind, message, lost_at, fullness))
            self._drop_waiter(pull, waiter)

    def _fail(
        self, pull: Pull, kind: str, message: str, now_s: float, out: list[PullCommand]
    ) -> None:
        """Tell all who wait, and end the transfer if there is one."""
        self._failed_total += 1
        if pull.stage is Stage.QUEUED:
            self._queue.remove(pull)
            del self._pulls[pull.object_id]
        self._tell_waiters(pull, kind, message, pull.lost_at(), out)
        if pull.stage is not Stage.QUEUED:
            self._abandon(pull, message, out)

    # ---- order ----

    def _admit(self, out: list[PullCommand]) -> None:
        while (pull := self._queue.admit_next()) is not None:
            pull.stage = Stage.MAKING_ROOM
            out.append(MakeRoom(pull.object_id, pull.size_bytes, pull.owner_id))

    def _finish(self, pull: Pull) -> None:
        """The transfer is over; whoever came too late for it gets a new one."""
        self._queue.end(pull)
        pull.stage = Stage.QUEUED
        pull.renew()
        if pull.waiters:
            self._queue.add(pull)
        else:
            del self._pulls[pull.object_id]

    def _park(self, pull: Pull, now_s: float) -> None:
        """Hold nothing for a while, then stand in the queue again."""
        self._queue.end(pull)
        pull.stage = Stage.QUEUED
        pull.renew()
        self._queue.park(pull, now_s)

    # ---- room ----

    def _take_room(
        self, event: RoomMade | RoomRefused, now_s: float, out: list[PullCommand]
    ) -> None:
        pull = self._pulls[event.object_id]
        if isinstance(event, RoomMade):
            pull.stage = Stage.FETCHING
            if pull.is_unwanted:
                self._drop(pull, out)
                return
            self._start_fetching(pull)
            self._fetch(pull, now_s, out)
            return
        if event.reason is RoomRefusal.SEALED:
            self._done_total += 1
            self._tell_waiters(pull, "", "", (), out)
        is_final = event.reason in {RoomRefusal.TOO_LARGE, RoomRefusal.FAILED}
        self._try_room_later(pull, event.message, event.fullness, now_s, out, is_final=is_final)

    def _try_room_later(
        self,
        pull: Pull,
        message: str,
        fullness: bytes,
        now_s: float,
        out: list[PullCommand],
        *,
        is_final: bool = False,
    ) -> None:
        if pull.room_deadline_s is None:
            pull.room_deadline_s = now_s + self._config.room_wait_s
        if pull.waiters and (is_final or now_s >= pull.room_deadline_s):
            self._failed_total += 1
            self._tell_waiters(pull, "full", message, (), out, fullness)
        if pull.waiters:
            self._park(pull, now_s)
        else:
            self._finish(pull)

    def _give_up_room(self, event: RoomWithdrawn, out: list[PullCommand]) -> None:
        pull = self._pulls.get(event.object_id)
        if pull is None or pull.stage is not Stage.FETCHING or pull.is_unwanted:
            return  # It has ended meanwhile, or is about to.
        pull.withdrawal = (event.message, event.fullness)
        self._abandon(pull, event.message, out)

    def _start_fetching(self, pull: Pull) -> None:
        holders = self._sources.holders(pull)
        is_split = pull.size_bytes >= self._config.split_bytes and holders > 1
        pull.cut(self._config.piece_bytes if is_split else max(1, pull.size_bytes))

    # ---- sources ----

    def _has_hope(self, pull: Pull) -> bool:
        """Whether a source is left. This node itself counts: the store says whether it has it."""
        return any(not source.is_lost for source in pull.sources.values())

    def _fetch_all(self, now_s: float, out: list[PullCommand]) -> None:
        for pull in list(self._queue.under_way.values()):
            if pull.stage is Stage.FETCHING and not pull.is_unwanted:
                self._fetch(pull, now_s, out)

    def _fetch(self, pull: Pull, now_s: float, out: list[PullCommand]) -> None:
        """Give missing parts to idle sources; end the transfer when nothing is left to do."""
        if pull.is_unwanted:
            return
        self._sources.lose_unknown(pull, now_s)
        while self._can_use_more(pull):
            node_id = self._sources.choose(pull, now_s)
            if node_id is None:
                break
            offset, length = pull.missing.pop()
            range_id = self._next_range_id
            self._next_range_id += 1
            pull.ranges[range_id] = Range(node_id, offset, length, now_s)
            self._sources.begin(node_id)
            is_arriving = pull.sources[node_id].is_arriving
            out.append(
                FetchRange(
                    pull.object_id, range_id, node_id, offset, length, pull.size_bytes, is_arriving
                )
            )
        if pull.ranges:
            return
        if not pull.missing:
            pull.stage = Stage.SEALING
            out.append(SealCopy(pull.object_id))
        elif not self._has_hope(pull):
            self._fail(pull, "lost", pull.why_lost(), now_s, out)

    def _can_use_more(self, pull: Pull) -> bool:
        return (
            bool(pull.missing)
            and not pull.is_unwanted
            and len(pull.ranges) < self._config.sources_per_object
        )

    def _end_range(
        self, event: RangeFetched | RangeFailed, now_s: float, out: list[PullCommand]
    ) -> None:
        pull = self._pulls[event.object_id]
        part = pull.ranges.pop(event.range_id)
        self._sources.end(part.node_id)
        source = pull.sources[part.node_id]
        if isinstance(event, RangeFetched):
            source.failures = 0
        else:
            received_bytes = min(event.received_bytes, part.length)
            if received_bytes < part.length or part.length == 0:
                rest = (part.offset + received_bytes, part.length - received_bytes)
                pull.missing.append(rest)
            if event.is_absent:
                source.is_absent = True
                pull.lose_source(part.node_id, event.message)
            elif not part.stop_reason:
                not_before_s = now_s + self._config.retry_pause_s
                pull.source_failed(part.node_id, received_bytes, event.message, not_before_s)
        if pull.is_unwanted:
            self._drop(pull, out)
        else:
            self._fetch(pull, now_s, out)
        self._fetch_all(now_s, out)  # the source may be what others waited for

    def _bury(self, node_id: bytes, why: str, now_s: float, out: list[PullCommand]) -> None:
        if not self._sources.gone(node_id, why):
            return
        for pull in list(self._pulls.values()):
            if node_id not in pull.sources:
                continue
            pull.lose_source(node_id, why)
            self._stop_ranges(pull, why, out, node_id)
            if pull.stage is Stage.QUEUED and not self._has_hope(pull):
                self._fail(pull, "lost", pull.why_lost(), now_s, out)
            elif pull.stage is Stage.FETCHING:
                self._fetch(pull, now_s, out)

    def _stop_stalled(self, now_s: float, out: list[PullCommand]) -> None:
        for pull in self._queue.under_way.values():
            for part in list(pull.ranges.values()):
                # The same sum as in next_wakeup: a difference could round to just below the limit.
                if part.stop_reason or now_s < part.progress_at_s + self._config.stall_s:
                    continue
                problem = f"it sent nothing for {self._config.stall_s:g} s"
                pull.lose_source(part.node_id, problem)
                self._stop_ranges(pull, problem, out, part.node_id)

    # ---- ends ----

    def _stop_ranges(
        self, pull: Pull, reason: str, out: list[PullCommand], node_id: bytes | None = None
    ) -> None:
        for range_id, part in pull.ranges.items():
            if not part.stop_reason and node_id in (None, part.node_id):
                part.stop_reason = reason
                out.append(StopRange(pull.object_id, range_id))

    def _abandon(self, pull: Pull, reason: str, out: list[PullCommand]) -> None:
        """End a transfer that is under way; what is about to be sealed anyway is let be."""
        if pull.stage is Stage.MAKING_ROOM:
            pull.is_unwanted = True
        elif pull.stage is Stage.FETCHING:
            pull.is_unwanted = True
            self._stop_ranges(pull, reason, out)
            self._drop(pull, out)

    def _drop(self, pull: Pull, out: list[PullCommand]) -> None:
        """Give the room back, once nobody writes into it."""
        if not pull.ranges and pull.stage is Stage.FETCHING:
            pull.stage = Stage.DROPPING
            out.append(DropCopy(pull.object_id))

    def _close(self, event: CopySealed | CopyDropped, now_s: float, out: list[PullCommand]) -> None:
        pull = self._pulls[event.object_id]
        if isinstance(event, CopySealed):
            if event.problem:
                self._failed_total += 1
                self._tell_waiters(pull, "full", event.problem, (), out)
            else:
                self._done_total += 1
                self._tell_waiters(pull, "", "", pull.absent_at(), out)
        else:
            withdrawal, pull.withdrawal = pull.withdrawal, None
            pull.missing.clear()
            pull.forgive_sources(now_s)
            self._sources.lose_dead(pull)
            if withdrawal is not None and pull.waiters:
                self._try_room_later(pull, *withdrawal, now_s, out)
                return
            pull.room_deadline_s = None
        self._finish(pull)

    # ---- checks ----

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the planner is inconsistent."""
        waiters = {waiter for pull in self._pulls.values() for waiter in pull.waiters}
        assert waiters == set(self._of_waiter)
        self._queue.check_invariants(self._pulls.values())
        loads: Counter[bytes] = Counter()
        for pull in self._pulls.values():
            assert pull.waiters or pull.stage is not Stage.QUEUED
            assert not pull.ranges or pull.stage is Stage.FETCHING
            assert not pull.is_unwanted or pull.stage in {
                Stage.MAKING_ROOM,
                Stage.FETCHING,
                Stage.DROPPING,
            }
            loads.update(part.node_id for part in pull.ranges.values())
        assert loads == self._sources.loads
