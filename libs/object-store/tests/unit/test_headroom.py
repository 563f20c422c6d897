from __future__ import annotations

from pathlib import Path

import pytest

from skate_object_store.service.headroom import RESERVE_BYTES, Headroom

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99 kB\nMemAvailable:  4194304 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("")
    return tmp_path


def headroom(machine: Path) -> Headroom:
    return Headroom(proc=str(machine / "proc"), cgroups=str(machine / "cgroup"))


def test_machine_without_groups_has_what_meminfo_says(machine: Path) -> None:
    assert headroom(machine).available_bytes() == 4 * GIB
    assert headroom(machine).has_room_for(4 * GIB - RESERVE_BYTES)
    assert not headroom(machine).has_room_for(4 * GIB - RESERVE_BYTES + 1)


def test_tightest_group_on_the_way_up_decides(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("0::/outer/inner\n")
    inner = machine / "cgroup/outer/inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("0\n")
    (inner.parent / "memory.max").write_text(f"{3 * GIB}\n")
    (inner.parent / "memory.current").write_text(f"{2 * GIB}\n")
    (inner.parent / "memory.stat").write_text(f"inactive_file {GIB // 2}\nshmem 5\n")
    assert headroom(machine).available_bytes() == GIB + GIB // 2


def test_old_groups_are_understood(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("5:cpu,memory:/job\n3:pids:/job\n")
    group = machine / "cgroup/memory"
    (group / "job").mkdir(parents=True)
    (group / "job/memory.limit_in_bytes").write_text(str(GIB))
    (group / "job/memory.usage_in_bytes").write_text(str(GIB // 4))
    (group / "memory.limit_in_bytes").write_text(str(1 << 62))
    (group / "memory.usage_in_bytes").write_text("0")
    assert headroom(machine).available_bytes() == GIB * 3 // 4


def test_unknown_machine_is_given_the_benefit_of_the_doubt(tmp_path: Path) -> None:
    unknown = headroom(tmp_path)
    assert unknown.available_bytes() is None
    assert unknown.has_room_for(1 << 60)
