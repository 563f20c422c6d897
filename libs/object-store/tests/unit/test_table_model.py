"""Random histories of the object table against a model that is too simple to be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from skate_object_store.machine.facts import Copy
from skate_object_store.machine.records import (
    Created,
    CreateExists,
    CreateRefused,
    CreateRequest,
    Effect,
    Freed,
    Got,
    Ready,
)
from skate_object_store.machine.table import ObjectTable

CAPACITY = 64 * 64
IDS = st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f"])
CLIENTS = st.integers(0, 2)
SIZES = st.one_of(st.integers(0, 200), st.integers(0, CAPACITY + 64))
WAITS = st.sampled_from([0.0, 3.0, 30.0])


@dataclass
class Model:
    """What clients were told, and so what must hold."""

    unsealed: dict[int, Created] = field(default_factory=dict)  # by serial
    pins: dict[tuple[int, int], int] = field(default_factory=dict)  # (client, serial) -> count
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)  # of viewed or unsealed copies
    pending: dict[tuple[int, int], str] = field(default_factory=dict)  # unanswered requests


class TableHistory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = ObjectTable(CAPACITY)
        self.model = Model()
        self.now_s = 0.0
        self.request = 0
        self.alive: dict[int, int] = {}  # slot -> client number
        self.next_client = 10

    def client(self, slot: int) -> int:
        if slot not in self.alive:
            self.alive[slot] = self.next_client
            self.next_client += 1
            self.table.connect(self.alive[slot])
        return self.alive[slot]

    def absorb(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Created(wish, serial, offset):
                    self.answered(wish.client, wish.request)
                    self.model.unsealed[serial] = effect
                    self.claim(serial, offset, wish.size_bytes)
                case CreateExists(client, request) | CreateRefused(client, request):
                    self.answered(client, request)
                case Got(client, request, copies):
                    self.answered(client, request)
                    for copy in copies:
                        if copy is not None:
                            self.note_pin(client, copy)
                case Ready(client, request, _):
                    self.answered(client, request)
                case Freed(offset, size):
                    for start, length in self.model.ranges.values():
                        assert offset >= start + length or offset + size <= start, "use after free"

    def answered(self, client: int, request: int) -> None:
        del self.model.pending[client, request]  # Exactly one answer for each.

    def note_pin(self, client: int, copy: Copy) -> None:
        key = (client, copy.serial)
        self.model.pins[key] = self.model.pins.get(key, 0) + 1
        self.model.ranges.setdefault(copy.serial, (copy.offset, copy.size_bytes))

    def claim(self, serial: int, offset: int, size: int) -> None:
        for start, length in self.model.ranges.values():
            assert offset >= start + length or offset + size <= start, "given out twice"
        self.model.ranges[serial] = (offset, size)

    def drop_range_unless_pinned(self, serial: int) -> None:
        if serial in self.model.unsealed or any(key[1] == serial for key in self.model.pins):
            return
        self.model.ranges.pop(serial, None)

    def ask(self, client: int, kind: str) -> int:
        self.request += 1
        self.model.pending[client, self.request] = kind
        return self.request

    @rule(slot=CLIENTS, name=IDS, size=SIZES, evictable=st.booleans(), wait_s=WAITS)
    def create(self, slot: int, name: bytes, size: int, evictable: bool, wait_s: float) -> None:
        client = self.client(slot)
        request = self.ask(client, "create")
        owner = b"owner %d" % slot
        wish = CreateRequest(client, request, name, size, owner, evictable, self.now_s + wait_s)
        self.absorb(self.table.create(wish, self.now_s))

    @precondition(lambda self: self.model.unsealed)
    @rule(choice=st.integers(0, 1 << 20), keeps_pin=st.booleans(), is_abort=st.booleans())
    def finish(self, choice: int, keeps_pin: bool, is_abort: bool) -> None:
        serial = list(self.model.unsealed)[choice % len(self.model.unsealed)]
        created = self.model.unsealed.pop(serial)
        client = created.wish.client
        if not is_abort and keeps_pin:
            self.model.pins[client, serial] = self.model.pins.get((client, serial), 0) + 1
        self.drop_range_unless_pinned(serial)
        if is_abort:
            self.absorb(self.table.abort(client, serial, self.now_s))
        else:
            self.absorb(self.table.seal(client, serial, self.now_s, keeps_pin=keeps_pin))

    @rule(slot=CLIENTS, names=st.lists(IDS, min_size=1, max_size=4), wait_s=WAITS)
    def get(self, slot: int, names: list[bytes], wait_s: float) -> None:
        client = self.client(slot)
        request = self.ask(client, "get")
        self.absorb(self.table.get(client, request, names, self.now_s, self.now_s + wait_s))

    @rule(
        slot=CLIENTS,
        names=st.lists(IDS, min_size=1, max_size=4),
        wanted=st.integers(0, 5),
        wait_s=WAITS,
    )
    def wait(self, slot: int, names: list[bytes], wanted: int, wait_s: float) -> None:
        client = self.client(slot)
        request = self.ask(client, "wait")
        deadline_s = self.now_s + wait_s
        self.absorb(self.table.wait(client, request, names, wanted, self.now_s, deadline_s))

    @precondition(lambda self: self.model.pins)
    @rule(choice=st.integers(0, 1 << 20), takes_all=st.booleans())
    def release(self, choice: int, takes_all: bool) -> None:
        client, serial = list(self.model.pins)[choice % len(self.model.pins)]
        held = self.model.pins.pop((client, serial))
        count = held if takes_all else 1
        if count < held:
            self.model.pins[client, serial] = held - count
        self.drop_range_unless_pinned(serial)
        self.absorb(self.table.release(client, [(serial, count)], self.now_s))

    @rule(slot=CLIENTS, names=st.lists(IDS, min_size=1, max_size=3))
    def keep(self, slot: int, names: list[bytes]) -> None:
        client = self.client(slot)
        self.absorb(self.table.keep(client, self.ask(client, "keep"), names, self.now_s))

    @rule(names=st.lists(IDS, max_size=3))
    def delete(self, names: list[bytes]) -> None:
        self.absorb(self.table.delete(names, self.now_s))

    @rule(slot=CLIENTS)
    def owner_dies(self, slot: int) -> None:
        self.absorb(self.table.release_owner(b"owner %d" % slot, self.now_s))

    @precondition(lambda self: self.model.pending)
    @rule(choice=st.integers(0, 1 << 20))
    def cancel(self, choice: int) -> None:
        client, request = list(self.model.pending)[choice % len(self.model.pending)]
        self.absorb(self.table.cancel(client, request, self.now_s))
        assert (client, request) not in self.model.pending

    @precondition(lambda self: self.alive)
    @rule(slot=CLIENTS)
    def client_dies(self, slot: int) -> None:
        client = self.alive.pop(slot, None)
        if client is None:
            return
        model = self.model
        gone = [serial for serial, made in model.unsealed.items() if made.wish.client == client]
        for serial in gone:
            del model.unsealed[serial]
        gone += [serial for holder, serial in model.pins if holder == client]
        model.pins = {key: count for key, count in model.pins.items() if key[0] != client}
        model.pending = {key: kind for key, kind in model.pending.items() if key[0] != client}
        for serial in gone:
            self.drop_range_unless_pinned(serial)
        self.absorb(self.table.client_gone(client, self.now_s))

    @rule(elapsed_s=st.sampled_from([0.5, 2.0, 10.0]))
    def time_passes(self, elapsed_s: float) -> None:
        self.now_s += elapsed_s
        self.absorb(self.table.expire(self.now_s))
        wakeup = self.table.next_wakeup()
        assert wakeup is None or wakeup.at_s > self.now_s

    @precondition(lambda self: self.model.unsealed)
    @rule(choice=st.integers(0, 1 << 20))
    def machine_is_short(self, choice: int) -> None:
        serial = list(self.model.unsealed)[choice % len(self.model.unsealed)]
        created = self.model.unsealed.pop(serial)
        self.drop_range_unless_pinned(serial)
        self.model.pending[created.wish.client, created.wish.request] = "create"
        self.absorb(self.table.machine_short(created, self.now_s))

    @invariant()
    def table_is_consistent(self) -> None:
        self.table.check_invariants()
        assert self.table.statistics().waiting_requests == len(self.model.pending)

    def teardown(self) -> None:
        for slot in list(self.alive):
            self.client_dies(slot)
        self.absorb(self.table.delete([b"a", b"b", b"c", b"d", b"e", b"f"], self.now_s))
        assert self.table.allocator.used_bytes == 0, "bytes that nobody can name"
        self.table.check_invariants()


TestTableHistory = TableHistory.TestCase
TestTableHistory.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
