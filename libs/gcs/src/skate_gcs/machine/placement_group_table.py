"""The placement-group table: groups of bundles that are reserved all together, or not at all.

::

    PENDING --place--> PREPARING --all set aside--> PREPARED --all told--> CREATED
       ^                   |                            |                     |
       +----- undone ------+ (refused, silent, node     +---- node dies ------+--> RESCHEDULING
              after a pause   died)                                  |  as PENDING, for what is lost
                                                                     +--> CREATED
    any --removed, job or creator ended--> REMOVED

An *attempt* is a two-phase commit over the nodes that it chose, under a number that grows. That it
is made is stored before a node hears of it, and so is that it is undone, or that it holds. So a
restarted GCS goes on where the row stands: it asks again (PREPARING), or tells again (COMMITTING);
both are idempotent at the nodes. An attempt on one node needs no second phase.

Once all nodes have set their bundles aside the decision stands. A node that dies after that has
lost bundles, as one that dies later does; they alone are placed again.

Clean-up is level-triggered: nodes report which bundles they hold, under which attempt, and the
answer names those that no row knows. Giving back is also ordered at once, but nothing depends on
that order's arrival.

Cost: O(bundles) per event of a group, and of a pass what ``place_bundles`` costs for each line of
groups that are alike (see ``placement_group_queue``).

Source: SURFACE rows P1-P4, P9-P14; RELIABILITY I13, I14; ray#64693, ray#64696 (what goes wrong
where clean-up is an order that is given up after some tries).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from skate_core_ids import PlacementGroupID
from skate_gcs.machine.answers import Done, GroupFound, GroupRegistered, RefusalKind, Refused
from skate_gcs.machine.clock import Now, Wakeup
from skate_gcs.machine.commands import Command, Publish, Reply
from skate_gcs.machine.demand import GroupDemand, sum_groups
from skate_gcs.machine.events import BundlesCommitted, BundlesPrepared, GroupCreated
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.node_table import NodeTable
from skate_gcs.machine.placement_group_queue import Line, PlacementGroupQueue
from skate_gcs.machine.placement_group_rounds import Rounds, bundles_at
from skate_gcs.machine.placement_group_rows import PlacementGroupRows
from skate_gcs.machine.records import (
    BundleRef,
    GroupPhase,
    PlacementGroupRecord,
    PlacementGroupSpec,
    PlacementGroupState,
)
from skate_scheduler import (
    BundleRequest,
    BundleStrategy,
    Fit,
    LabelSelector,
    NodeIndex,
    ResourceSet,
    place_bundles,
    why_bundles_wait,
)

_PENDING, _PREPARED = PlacementGroupState.PENDING, PlacementGroupState.PREPARED
_CREATED, _RESCHEDULING = PlacementGroupState.CREATED, PlacementGroupState.RESCHEDULING


class PlacementGroupTable:
    """All placement groups, live and lately removed. Invariants: see :meth:`check_invariants`."""

    def __init__(self, nodes: NodeTable, limits: GcsLimits) -> None:
        self._nodes = nodes
        self._limits = limits
        self._rows = PlacementGroupRows(limits)
        self._queue = PlacementGroupQueue(limits)
        self._index = NodeIndex()
        self._rounds = Rounds(nodes, limits)
        self._requests: dict[bytes, tuple[BundleRequest, ...]] = {}  # of live groups
        # What nodes were asked to set aside and have not answered, by node and group: their reports
        # do not know of it.
        self._claims: dict[bytes, dict[bytes, ResourceSet]] = {}
        self._claimed: dict[bytes, ResourceSet] = {}  # the sum of each node's
        self._failures: dict[bytes, int] = {}  # attempts in a row
        self._changed: dict[bytes, None] = {}  # groups whose usable bundles changed
        self._creations = 0
        self._creation_s = 0.0

    # ---- restart of the GCS ----

    def restore(self, rows: list[PlacementGroupRecord]) -> None:
        """Take the stored rows; :meth:`resume` goes on with them."""
        self._rows.restore(rows)

    def resume(self, now: Now, out: list[Command]) -> None:
        """Go on where the stored rows stand."""
        self._rows.trim(out)
        for record in self._rows.all():
            if record.is_removed:
                continue
            self._requests[record.spec.group_id] = _requests_of(record.spec)
            self._changed[record.spec.group_id] = None
            if record.phase is not GroupPhase.IDLE:
                self._rounds.begin(record, now)
                self._rounds.send(record, out)
            elif record.state is not _CREATED:
                self._enqueue(record)
        for record in self._rows.all():
            for node_id in dict.fromkeys(record.node_ids):
                # A node's death and what it means for its groups are stored together, but a GCS of
                # an older version may have been less careful.
                if node_id and self._nodes.get_alive(node_id) is None:
                    self.node_died(node_id, now, out)

    # ---- requests ----

    def register(
        self,
        event: GroupCreated,
        doomed: str,
        creator_actor_id: bytes,
        now: Now,
        out: list[Command],
    ) -> None:
        """Create a group unless its name is held. ``doomed``: why it must not come about."""
        spec = event.spec
        problem = _problem_of(spec, self._limits.group_bundles_max)
        if problem:
            out.append(Reply(Refused(RefusalKind.INVALID, problem)))
            return
        known = self._rows.get(spec.group_id)
        if known is not None:
            out.append(Reply(GroupRegistered(self._explained(known), is_new=True)))
            return
        holder = self._rows.holder_of(spec.namespace, spec.name)
        if holder is not None:
            out.append(Reply(GroupRegistered(self._explained(self._rows[holder]), is_new=False)))
            return
        count = len(spec.bundles)
        record = PlacementGroupRecord(
            spec,
            _PENDING,
            (b"",) * count,
            (0,) * count,
            creator_actor_id=creator_actor_id,
            number=self._rows.next_number(),
            pending_since_s=now.unix_s,
            registered_s=now.unix_s,
        )
        self._rows.put(record, out)
        if doomed:
            self._remove(record, doomed, now, out)
        else:
            self._requests[spec.group_id] = _requests_of(spec)
            self._enqueue(record)
            self.pump(now, out)
        out.append(Reply(GroupRegistered(self._explained(self._rows[spec.group_id]), is_new=True)))

    def remove(self, group_id: bytes, reason: str, now: Now, out: list[Command]) -> None:
        """The user's removal."""
        record = self._rows.get(group_id)
        if record is not None and not record.is_removed:
            self._remove(record, reason or "It was removed.", now, out)
        out.append(Reply(Done()))

    # ---- the nodes' answers ----

    def prepared(self, event: BundlesPrepared, now: Now, out: list[Command]) -> None:
        """A node set its bundles aside, or did not."""
        record = self._asked(event.group_id, event.attempt, GroupPhase.PREPARING)
        if record is None or not self._rounds.awaits(event.group_id, event.node_id):
            return
        if event.problem:
            why = f"Node {event.node_id.hex()} did not set its bundles aside: {event.problem}"
            self._undo(record, why, now, out)
            return
        claim = self._unclaim(event.group_id, event.node_id)
        if self._nodes.candidate(event.node_id) is not None:
            self._nodes.claim(event.node_id, claim)  # until its next report, which knows of it
        is_alone = self._rounds.is_alone(event.group_id)
        if not self._rounds.answered(event.group_id, event.node_id):
            return
        if is_alone:
            self._settle(record, now, out)
            return
        state = _PREPARED if record.state is _PENDING else record.state
        record = self._rows.put(replace(record, state=state, phase=GroupPhase.COMMITTING), out)
        self._rounds.begin(record, now)
        self._rounds.send(record, out)

    def committed(self, event: BundlesCommitted, now: Now, out: list[Command]) -> None:
        """A node knows that its bundles hold, or does not have them, or did not answer."""
        record = self._asked(event.group_id, event.attempt, GroupPhase.COMMITTING)
        if record is None or not self._rounds.awaits(event.group_id, event.node_id):
            return
        if event.is_lost:
            self._lose(record, event.node_id, now, out, attempt=event.attempt)
        elif not event.is_done:
            self._rounds.repeat_later(event.group_id, event.node_id, now)
        elif self._rounds.answered(event.group_id, event.node_id):
            self._settle(record, now, out)

    def reported(self, node_id: bytes, held: Iterable[BundleRef]) -> tuple[BundleRef, ...]:
        """Which of the bundles that a node holds it must give back. O(bundles held)."""
        stale: list[BundleRef] = []
        for ref in held:
            record = self._rows.get(ref.group_id)
            indices = tuple(
                index
                for index in ref.indices
                if record is None
                or index >= len(record.node_ids)
                or record.node_ids[index] != node_id
                or record.attempts[index] != ref.attempt
            )
            if indices:
                stale.append(BundleRef(ref.group_id, ref.attempt, indices))
        return tuple(stale)

    # ---- the ends of others ----

    def node_died(self, node_id: bytes, now: Now, out: list[Command]) -> None:
        """What it held is lost; attempts that it took part in are undone."""
        for group_id in self._rows.on_node(node_id):
            record = self._rows[group_id]
            if record.phase is GroupPhase.PREPARING and self._rounds.takes_part(group_id, node_id):
                self._undo(record, f"Node {node_id.hex()} died while it was asked.", now, out)
                record = self._rows[group_id]
            if node_id in record.node_ids:
                self._lose(record, node_id, now, out)
        self.nodes_changed()

    def job_finished(
        self, job_id: bytes, why: str, live_actors: Iterable[bytes], now: Now, out: list[Command]
    ) -> None:
        """The job's groups end with it, but for those of an actor that outlives it."""
        keeps = set(live_actors)
        for group_id in self._rows.of_job(job_id):
            record = self._rows[group_id]
            if not record.spec.is_detached and record.creator_actor_id not in keeps:
                self._remove(record, f"Its job has finished. {why}".rstrip(), now, out)

    def creator_ended(self, actor_id: bytes, now: Now, out: list[Command]) -> None:
        """The actor that made groups is gone for good; its job has finished before."""
        for group_id in self._rows.of_creator(actor_id):
            record = self._rows[group_id]
            if not record.spec.is_detached:
                why = f"The actor {actor_id.hex()} that created it is dead."
                self._remove(record, why, now, out)

    def creators(self) -> list[bytes]:
        """The actors that live groups end with."""
        return self._rows.creators()

    # ---- the passing of time ----

    def nodes_changed(self) -> None:
        """A node came, went, or has more free."""
        self._queue.nodes_changed()

    def tick(self, now: Now, out: list[Command]) -> None:
        """End the pauses that are over, and repeat what was not answered."""
        for group_id in self._queue.ended_pauses(now.now_s):
            self._enqueue(self._rows[group_id])
        for group_id, node_id in self._rounds.due(now.now_s):
            self._rounds.send(self._rows[group_id], out, only=node_id)

    def pump(self, now: Now, out: list[Command]) -> None:
        """Place what can be placed."""
        lines = self._queue.open_lines(now.now_s)
        if not lines:
            return
        for node_id in self._nodes.take_moved():
            self._see(node_id)
        for line in lines:
            self._pump_line(line, now, out)

    def next_wakeup(self) -> Wakeup | None:
        """The earliest pause that ends."""
        wakeups = [w for w in (self._queue.next_wakeup(), self._rounds.next_wakeup()) if w]
        return min(wakeups, key=lambda wakeup: wakeup.at_s) if wakeups else None

    # ---- questions ----

    def get(self, group_id: bytes) -> GroupFound:
        """One group."""
        record = self._rows.get(group_id)
        return GroupFound(None if record is None else self._explained(record))

    def get_named(self, namespace: str, name: str) -> GroupFound:
        """The group that holds a name."""
        holder = self._rows.holder_of(namespace, name)
        return GroupFound(None if holder is None else self._explained(self._rows[holder]))

    def records(self) -> list[PlacementGroupRecord]:
        """All groups, in order of registration."""
        return [self._explained(record) for record in self._rows.all()]

    def live(self, group_id: bytes) -> PlacementGroupRecord | None:
        """A group that is not removed."""
        record = self._rows.get(group_id)
        return None if record is None or record.is_removed else record

    def homes(self, group_id: bytes, bundle_index: int, request: ResourceSet) -> list[bytes]:
        """Nodes that hold an open bundle of the group which is large enough. O(bundles)."""
        record = self.live(group_id)
        if record is None or record.state not in (_CREATED, _RESCHEDULING):
            return []
        found: dict[bytes, None] = {}
        for index, node_id in enumerate(record.node_ids):
            is_open = bool(node_id) and not self._rounds.takes_part(group_id, node_id, index)
            is_wanted = is_open and bundle_index in (-1, index)
            if is_wanted and request.fits_in(self._requests[group_id][index].resources):
                found[node_id] = None
        return list(found)

    def demands(self) -> tuple[list[GroupDemand], int]:
        """The groups that wait for room, those that are alike as one, the most numerous first.

        Also how many groups are missing because of the limit. O(lines and pauses, and their
        bundles).
        """
        waiting: list[tuple[PlacementGroupRecord, int, bool]] = []
        for line in self._queue.lines():
            is_infeasible = line.is_stuck and line.scheduling_state == "INFEASIBLE"
            head = self._rows[next(iter(line.waiting))]
            waiting.append((head, len(line.waiting), is_infeasible))
        waiting += [(self._rows[group_id], 1, False) for group_id in self._queue.paused()]
        return sum_groups(waiting, self._limits.demand_shapes_max)

    def take_changed(self) -> list[bytes]:
        """The groups whose usable bundles may be others than at the last question."""
        changed, self._changed = list(self._changed), {}
        return changed

    def count_by_state(self) -> dict[PlacementGroupState, int]:
        """Groups in each state."""
        return self._rows.count_by_state()

    @property
    def creations(self) -> tuple[int, float]:
        """Groups that were created since the start, and how long that took in all, in seconds."""
        return self._creations, self._creation_s

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the table is inconsistent."""
        self._rows.check_invariants()
        self._queue.check_invariants()
        for record in self._rows.all():
            group_id = record.spec.group_id
            is_busy = record.phase is not GroupPhase.IDLE
            assert self._rounds.is_under_way(group_id) == is_busy
            waits = not is_busy and record.state in (_PENDING, _RESCHEDULING)
            assert (group_id in self._queue) == waits, "a group waits for nodes exactly if idle"
            assert (group_id in self._requests) is not record.is_removed
            for node_id in record.node_ids:
                assert not node_id or self._nodes.get_alive(node_id) is not None
        self._rounds.check_invariants()
        assert self._claimed.keys() == self._claims.keys()
        for node_id, claims in self._claims.items():
            assert claims
            assert self._claimed[node_id] == ResourceSet.total_of(claims.values())
            for group_id in claims:
                assert self._rows[group_id].phase is GroupPhase.PREPARING
                assert self._rounds.awaits(group_id, node_id)

    # ---- how it is done ----

    def _enqueue(self, record: PlacementGroupRecord) -> None:
        self._queue.add(record, is_urgent=record.state is _RESCHEDULING)

    def _pump_line(self, line: Line, now: Now, out: list[Command]) -> None:
        while line.waiting:
            group_id = next(iter(line.waiting))
            record = self._rows[group_id]
            requests = self._requests[group_id]
            strategy = BundleStrategy(record.spec.strategy)
            placement = place_bundles(
                requests,
                strategy,
                self._index,
                held=record.node_ids,
                preferred_id=record.spec.soft_target_id,
            )
            if placement.fit is not Fit.NOW:
                line.is_stuck = True
                line.reason = why_bundles_wait(requests, strategy, self._index, placement.fit)
                is_never = placement.fit is Fit.NEVER
                line.scheduling_state = "INFEASIBLE" if is_never else "NO_RESOURCES"
                return
            self._queue.discard(group_id)
            self._begin(record, placement.node_ids, now, out)

    def _begin(
        self,
        record: PlacementGroupRecord,
        node_ids: tuple[bytes, ...],
        now: Now,
        out: list[Command],
    ) -> None:
        attempt = record.attempt + 1
        attempts = tuple(
            held if before else attempt
            for held, before in zip(record.attempts, record.node_ids, strict=True)
        )
        record = self._rows.put(
            replace(
                record,
                phase=GroupPhase.PREPARING,
                attempt=attempt,
                node_ids=node_ids,
                attempts=attempts,
            ),
            out,
        )
        self._rounds.begin(record, now)
        requests = self._requests[record.spec.group_id]
        for node_id, indices in bundles_at(record).items():
            claim = ResourceSet.total_of(requests[index].resources for index in indices)
            self._claims.setdefault(node_id, {})[record.spec.group_id] = claim
            self._claimed[node_id] = self._claimed.get(node_id, ResourceSet()).plus(claim)
            self._see(node_id)  # the next group of this pass is placed on what is left
        self._rounds.send(record, out)

    def _see(self, node_id: bytes) -> None:
        """Put a node's latest view, less what was asked of it and not answered, into the index."""
        view = self._nodes.candidate(node_id)
        if view is None:
            self._index.discard(node_id)
            return
        claimed = self._claimed.get(node_id)
        self._index.put(view.with_claimed(claimed) if claimed else view)

    def _unclaim(self, group_id: bytes, node_id: bytes) -> ResourceSet:
        """A node has answered, or is not asked any more. Returns what was asked of it."""
        claims = self._claims.get(node_id, {})
        claim = claims.pop(group_id, ResourceSet())
        if claim:
            self._claimed[node_id] = self._claimed[node_id].minus(claim)
            self._see(node_id)
        if not claims:
            self._claims.pop(node_id, None)
            self._claimed.pop(node_id, None)
        return claim

    def _undo(self, record: PlacementGroupRecord, why: str, now: Now, out: list[Command]) -> None:
        """Give back what the attempt reserved, and try again after a pause."""
        group_id = record.spec.group_id
        self._rounds.end(group_id)
        requests = self._requests[group_id]
        fresh = bundles_at(record)
        undone = {index for indices in fresh.values() for index in indices}
        failures = self._failures.get(group_id, 0) + 1
        self._failures[group_id] = failures
        pause_s = self._limits.group_pause_s(failures)
        self._rows.put(
            replace(
                record,
                phase=GroupPhase.IDLE,
                node_ids=tuple(
                    b"" if index in undone else node_id
                    for index, node_id in enumerate(record.node_ids)
                ),
                highest_retry_delay_s=max(record.highest_retry_delay_s, pause_s),
                pending_reason=f"{why} It is tried again.",
            ),
            out,
        )
        self._drop_claims(record, requests)
        self._rounds.give_back(record, fresh, out)
        self._queue.pause(group_id, now.now_s + pause_s)

    def _drop_claims(self, record: PlacementGroupRecord, requests: Sequence[BundleRequest]) -> None:
        for node_id, indices in bundles_at(record).items():
            if not self._unclaim(record.spec.group_id, node_id):
                # It had answered that it set them aside.
                claim = ResourceSet.total_of(requests[index].resources for index in indices)
                self._nodes.unclaim(node_id, claim)

    def _lose(
        self,
        record: PlacementGroupRecord,
        node_id: bytes,
        now: Now,
        out: list[Command],
        attempt: int | None = None,
    ) -> None:
        """A node does not hold its bundles of the group, or of one attempt, any more.

        A decision that was made stands.
        """
        group_id = record.spec.group_id
        is_committing = record.phase is GroupPhase.COMMITTING
        if record.phase is GroupPhase.PREPARING:
            # What is under way was chosen to go with what is lost now (STRICT_PACK).
            self._undo(record, f"Node {node_id.hex()} died, which held a bundle.", now, out)
            record = self._rows[group_id]
        is_usable = record.state in (_CREATED, _RESCHEDULING)
        record = self._rows.put(
            replace(
                record,
                state=_RESCHEDULING if is_usable else record.state,
                node_ids=tuple(
                    b"" if at == node_id and attempt in (None, held_by) else at
                    for at, held_by in zip(record.node_ids, record.attempts, strict=True)
                ),
                pending_since_s=record.pending_since_s or now.unix_s,
                pending_reason="",
            ),
            out,
        )
        if is_usable:
            self._tell(record, out)
        if not is_committing:
            self._enqueue(record)
        elif self._rounds.awaits(group_id, node_id) and self._rounds.answered(group_id, node_id):
            self._settle(record, now, out)

    def _settle(self, record: PlacementGroupRecord, now: Now, out: list[Command]) -> None:
        """The attempt is over and holds."""
        group_id = record.spec.group_id
        self._rounds.end(group_id)
        self._failures.pop(group_id, None)
        is_whole = all(record.node_ids)
        is_first = is_whole and not record.created_s
        if is_first:
            self._creations += 1
            self._creation_s += max(0.0, now.unix_s - record.registered_s)
        record = self._rows.put(
            replace(
                record,
                state=_CREATED if is_whole else _RESCHEDULING,
                phase=GroupPhase.IDLE,
                created_s=now.unix_s if is_first else record.created_s,
                pending_since_s=0.0 if is_whole else record.pending_since_s or now.unix_s,
                pending_reason="",
            ),
            out,
        )
        self._tell(record, out)
        if not is_whole:
            self._enqueue(record)

    def _remove(self, record: PlacementGroupRecord, why: str, now: Now, out: list[Command]) -> None:
        group_id = record.spec.group_id
        self._rounds.end(group_id)
        self._queue.discard(group_id)
        self._failures.pop(group_id, None)
        requests = self._requests.pop(group_id, ())
        if record.phase is GroupPhase.PREPARING:
            self._drop_claims(record, requests)
        count = len(record.node_ids)
        removed = self._rows.put(
            replace(
                record,
                state=PlacementGroupState.REMOVED,
                phase=GroupPhase.IDLE,
                node_ids=(b"",) * count,
                pending_since_s=0.0,
                removal_reason=why,
                removed_s=now.unix_s,
                pending_reason="",
            ),
            out,
        )
        self._tell(removed, out)
        held: dict[bytes, list[int]] = {}
        for index, node_id in enumerate(record.node_ids):
            if node_id:
                held.setdefault(node_id, []).append(index)
        self._rounds.give_back(record, held, out)

    def _tell(self, record: PlacementGroupRecord, out: list[Command]) -> None:
        self._changed[record.spec.group_id] = None
        out.append(Publish(self._explained(record)))

    def _asked(
        self, group_id: bytes, attempt: int, phase: GroupPhase
    ) -> PlacementGroupRecord | None:
        """The group, if this attempt is under way and in this phase."""
        record = self._rows.get(group_id)
        is_asked = record is not None and (record.attempt, record.phase) == (attempt, phase)
        return record if is_asked else None

    def _explained(self, record: PlacementGroupRecord) -> PlacementGroupRecord:
        """The row with the reason why it waits. O(1)."""
        reason, state = record.pending_reason, "QUEUED"
        line = self._queue.line_of(record.spec.group_id)
        if record.is_removed:
            state = "REMOVED"
        elif record.state is _CREATED:
            state = "FINISHED"
        elif record.phase is not GroupPhase.IDLE:
            state = "SCHEDULING_STARTED"
            what = "set its bundles aside" if record.phase is GroupPhase.PREPARING else "open them"
            nodes = self._rounds.awaited(record.spec.group_id)
            reason = f"{nodes} of its nodes are asked to {what} (attempt {record.attempt})."
        elif line is not None and line.is_stuck:
            reason, state = line.reason, line.scheduling_state
        return replace(record, pending_reason=reason, scheduling_state=state)


def _requests_of(spec: PlacementGroupSpec) -> tuple[BundleRequest, ...]:
    return tuple(
        BundleRequest(ResourceSet(bundle.resources), LabelSelector.parse(bundle.selector))
        for bundle in spec.bundles
    )


def _problem_of(spec: PlacementGroupSpec, bundles_max: int) -> str:
    """Why the request makes no sense, or nothing."""
    if len(spec.group_id) != PlacementGroupID.SIZE:
        return f"A group_id has {PlacementGroupID.SIZE} bytes, got {len(spec.group_id)}."
    if not 1 <= len(spec.bundles) <= bundles_max:
        return f"A placement group has 1 to {bundles_max} bundles, got {len(spec.bundles)}."
    if spec.strategy not in list(BundleStrategy):
        return f"A strategy is one of {', '.join(BundleStrategy)}, got {spec.strategy!r}."
    for bundle in spec.bundles:
        if not bundle.resources or min(bundle.resources.values()) <= 0:
            return f"A bundle needs resources, all of them positive, got {bundle.resources}."
        try:
            LabelSelector.parse(bundle.selector)
        except ValueError as error:
            return str(error)
    return ""
