from __future__ import annotations

import re

import pytest

from skate_cluster.demand import BundleDemand, Demand, Demands, GroupDemand
from skate_cluster.report import Lease, Node, PendingLease, PlacementGroup, Report
from skate_cluster.report_text import format_bytes, format_report

GIB = float(1 << 30)


def node(**changes: object) -> Node:
    values: dict[str, object] = {
        "node_id": "ab" * 28,
        "name": "n1",
        "ip_address": "127.0.0.1",
        "is_head": True,
        "is_alive": True,
        "death": "",
        "total": {"CPU": 2.0, "memory": 4 * GIB, "node:127.0.0.1": 1.0},
        "available": {"CPU": 0.5, "memory": 4 * GIB, "node:127.0.0.1": 1.0},
        "labels": {},
        "metrics_endpoint": "",
        "workers_total": 3,
        "workers_idle": 1,
        "store_capacity_bytes": 1 << 30,
        "store_used_bytes": 1 << 20,
        "store_objects": 7,
    }
    return Node(**{**values, **changes})  # type: ignore[arg-type]


def test_report_of_an_idle_node_names_its_resources() -> None:
    text = format_report(Report("127.0.0.1:6379", [node()]), is_verbose=False)
    assert "1 alive" in text
    assert "1.5 / 2" in text
    assert "0 B / 4.0 GiB" in text
    assert "2 busy, 1 idle" in text
    assert "1.0 MiB / 1.0 GiB, 7 objects" in text
    assert "node:127.0.0.1" not in text


def test_report_pending_leases_are_grouped_with_their_reason() -> None:
    waiting = [PendingLease({"CPU": 1.0}, "waits for CPU 1: 0.5 free", s) for s in (1.0, 9.0)]
    waiting.append(PendingLease({"GPU": 4.0}, "no node has GPU", 2.0))
    text = format_report(Report("a", [node(pending=waiting)]), is_verbose=False)
    assert "2      CPU 1      9 s      waits for CPU 1: 0.5 free" in text
    assert "GPU 4" in text
    assert "no node has GPU" in text


def test_report_leases_are_counted_and_listed_when_verbose() -> None:
    leases = [
        Lease("01", 11, "", {"CPU": 1.0}, is_blocked=False),
        Lease("02", 12, "", {"CPU": 1.0}, is_blocked=True),
        Lease("03", 13, "ee" * 16, {}, is_blocked=False),
    ]
    report = Report("a", [node(leases=leases)])
    text = format_report(report, is_verbose=False)
    assert "2      task   CPU 1" in text
    assert "1      actor  nothing" in text
    verbose = format_report(report, is_verbose=True)
    assert "blocked, lends its CPU" in verbose
    assert "actor eeeeeeeeeeee" in verbose


def test_report_dead_nodes_are_shown_when_verbose_and_never_summed() -> None:
    dead = node(node_id="cd" * 28, is_alive=False, death="the process was killed")
    report = Report("a", [node(), dead])
    assert report.resources()["CPU"] == (1.5, 2.0)
    assert "1 alive, 1 dead" in format_report(report, is_verbose=False)
    assert "cdcdcdcdcdcd" not in format_report(report, is_verbose=False)
    assert "dead (the process was killed)" in format_report(report, is_verbose=True)


def test_report_long_lists_say_what_they_leave_out() -> None:
    waiting = [PendingLease({"CPU": float(n)}, "busy", 0.0) for n in range(1, 31)]
    text = format_report(Report("a", [node(pending=waiting)]), is_verbose=False)
    assert "... and 10 more (--format json)" in text


def test_format_bytes_has_binary_units() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 TiB",
    ]


@pytest.mark.surface("P16")
def test_report_placement_groups_are_counted_and_waiting_ones_say_why() -> None:
    def group(name: str, state: str, reason: str = "") -> PlacementGroup:
        return PlacementGroup("ab" * 18, name, state, "PACK", [{"CPU": 2.0}], [""], reason, 7.0)

    groups = [
        group("a", "CREATED"),
        group("b", "CREATED"),
        group("c", "PENDING", "It needs CPU 2."),
    ]
    text = format_report(Report("x", [node()], groups), is_verbose=False)
    assert "2 CREATED, 1 PENDING" in text
    assert "c      PENDING  PACK      CPU 2    7 s    It needs CPU 2." in text
    assert "  a " not in text
    assert "  a " in format_report(Report("x", [node()], groups), is_verbose=True)
    assert "Placement groups" not in format_report(Report("x", [node()]), is_verbose=True)


def test_report_demands_say_how_many_wait_for_what_and_where() -> None:
    demands = Demands(
        [
            Demand({"CPU": 1.0}, 1000, 1, "", False),
            Demand({"GPU": 0.5}, 0, 2, "where zone is a", True),
        ],
        [
            GroupDemand(
                3, "SPREAD", [BundleDemand(4, {"CPU": 2.0}, {}), BundleDemand(1, {"GPU": 1.0}, {})],
                0.0, False,
            )
        ],
        shapes_left_out=7,
    )  # fmt: skip
    text = format_report(Report("a", [node()], demands=demands), is_verbose=False)
    assert re.search(r"1000 tasks, 1 actor +CPU 1\n", text)
    assert re.search(r"2 actors +GPU 0.5 +where zone is a +no live node can ever hold one", text)
    assert re.search(r"3 placement groups +SPREAD of 4 x \(CPU 2\) \+ \(GPU 1\)\n", text)
    assert "... and 7 shapes past the limit of the GCS" in text


def test_report_without_demand_says_so() -> None:
    text = format_report(Report("a", [node()]), is_verbose=False)
    assert "Demands (what waits for room, in the whole cluster)\n  none" in text
