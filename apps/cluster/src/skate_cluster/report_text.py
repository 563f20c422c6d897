"""A report as text for a terminal. Plain columns: it reads the same in a pipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from skate_cluster.demand import Demands, GroupDemand
from skate_cluster.report import Node, Report
from skate_scheduler.resources import format_units, to_units

_BYTE_RESOURCES = ("memory", "object_store_memory")
_HIDDEN_PREFIX = "node:"
_PENDING_ROWS_MAX = 20
_LEASE_ROWS_MAX = 100
_BUNDLES_MAX = 4


def format_report(report: Report, *, is_verbose: bool) -> str:
    """The whole page, without a final newline."""
    dead = len(report.nodes) - len(report.live_nodes)
    lines = [
        f"Cluster at {report.address}: {len(report.live_nodes)} alive"
        + (f", {dead} dead" if dead else "")
    ]
    lines += ["", "Nodes", *_nodes(report, is_verbose)]
    lines += ["", "Resources (used / total)", *_resources(report)]
    lines += ["", "Leases", *_leases(report, is_verbose)]
    lines += ["", "Pending", *_pending(report)]
    lines += ["", "Demands (what waits for room, in the whole cluster)", *_demands(report.demands)]
    if report.placement_groups:
        lines += ["", "Placement groups", *_placement_groups(report, is_verbose)]
    return "\n".join(lines)


def format_bytes(count: float) -> str:
    """Binary units with one decimal: ``format_bytes(1536) == "1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _nodes(report: Report, is_verbose: bool) -> list[str]:
    rows = [("id", "name", "address", "role", "state", "workers", "store")]
    rows += [
        (
            node.node_id[:12],
            node.name,
            node.ip_address,
            "head" if node.is_head else "worker",
            _state(node),
            f"{node.workers_total - node.workers_idle} busy, {node.workers_idle} idle",
            _store(node),
        )
        for node in (report.nodes if is_verbose else report.live_nodes)
    ]
    return columns(rows)


def _store(node: Node) -> str:
    used, capacity = format_bytes(node.store_used_bytes), format_bytes(node.store_capacity_bytes)
    return f"{used} / {capacity}, {node.store_objects} objects"


def _state(node: Node) -> str:
    if not node.is_alive:
        return f"dead ({node.death})" if node.death else "dead"
    if node.is_suspect:
        return "suspect (it has not been heard for some seconds)"
    if node.problem:
        return f"no answer ({node.problem})"
    return f"draining ({node.drain})" if node.drain else "alive"


def _resources(report: Report) -> list[str]:
    rows = []
    for name, (used, total) in sorted(report.resources().items()):
        if name.startswith(_HIDDEN_PREFIX):
            continue
        form = format_bytes if name in _BYTE_RESOURCES else _plain
        rows.append((name, f"{form(used)} / {form(total)}"))
    return columns(rows)


def _leases(report: Report, is_verbose: bool) -> list[str]:
    leases = [(node, lease) for node in report.live_nodes for lease in node.leases]
    if not is_verbose:
        counts = Counter(
            ("actor" if lease.actor_id else "task", _shape(lease.resources)) for _, lease in leases
        )
        rows = [(str(count), kind, shape) for (kind, shape), count in counts.most_common()]
        return columns([("count", "kind", "resources"), *rows]) if rows else ["  none"]
    if not leases:
        return ["  none"]
    rows5 = [
        (
            node.node_id[:12],
            str(lease.worker_pid),
            f"actor {lease.actor_id[:12]}" if lease.actor_id else "task",
            _shape(lease.resources),
            "blocked, lends its CPU" if lease.is_blocked else "",
        )
        for node, lease in leases[:_LEASE_ROWS_MAX]
    ]
    lines = columns([("node", "pid", "kind", "resources", ""), *rows5])
    return lines + _left_out(len(leases), _LEASE_ROWS_MAX)


def _pending(report: Report) -> list[str]:
    counts: Counter[tuple[str, str]] = Counter()
    longest: dict[tuple[str, str], float] = {}
    for node in report.live_nodes:
        for item in node.pending:
            key = (_shape(item.resources), item.reason)
            counts[key] += 1
            longest[key] = max(longest.get(key, 0.0), item.waiting_s)
    if not counts:
        return ["  none"]
    rows = [
        (str(count), shape, f"{longest[shape, reason]:.0f} s", reason)
        for (shape, reason), count in counts.most_common(_PENDING_ROWS_MAX)
    ]
    lines = columns([("count", "resources", "longest", "why"), *rows])
    return lines + _left_out(len(counts), _PENDING_ROWS_MAX)


def _demands(demands: Demands) -> list[str]:
    """How many wait for which shape, on which nodes."""
    rows = [
        (
            _counted(one.tasks, "task", one.actors, "actor"),
            _shape(one.resources),
            one.where,
            "no live node can ever hold one" if one.is_infeasible else "",
        )
        for one in demands.shapes
    ]
    rows += [
        (
            _counted(one.count, "placement group"),
            f"{one.strategy} of {_bundles(one)}",
            "",
            "no live nodes can ever hold one" if one.is_infeasible else "",
        )
        for one in demands.groups
    ]
    if not rows:
        return ["  none"]
    lines = columns([("waiting", "each needs", "where", ""), *rows[:_PENDING_ROWS_MAX]])
    lines += _left_out(len(rows), _PENDING_ROWS_MAX)
    if demands.shapes_left_out or demands.groups_left_out:
        missing = _counted(demands.shapes_left_out, "shape", demands.groups_left_out, "group")
        lines.append(f"  ... and {missing} past the limit of the GCS")
    return lines


def _bundles(group: GroupDemand) -> str:
    kinds = [
        (f"{kind.count} x " if kind.count > 1 else "")
        + f"({_shape(kind.resources)}"
        + "".join(f", {key}: {text}" for key, text in kind.label_selector.items())
        + ")"
        for kind in group.bundles[:_BUNDLES_MAX]
    ]
    return " + ".join(kinds) + (" + ..." if len(group.bundles) > _BUNDLES_MAX else "")


def _counted(count: int, noun: str, more: int = 0, other: str = "") -> str:
    """``_counted(2, "task", 1, "actor") == "2 tasks, 1 actor"``; what is 0 is left out."""
    pairs = ((count, noun), (more, other))
    return ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for n, name in pairs if n)


def _placement_groups(report: Report, is_verbose: bool) -> list[str]:
    """How many are in each state; those that wait with the reason, when verbose all others too."""
    groups = report.placement_groups
    counts = Counter(group.state for group in groups)
    lines = ["  " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))]
    shown = [group for group in groups if is_verbose or group.state != "CREATED"]
    if not shown:
        return lines
    rows = [
        (
            group.name or group.group_id[:12],
            group.state,
            group.strategy,
            " + ".join(_shape(bundle) for bundle in group.bundles[:_BUNDLES_MAX])
            + (" + ..." if len(group.bundles) > _BUNDLES_MAX else ""),
            f"{group.waiting_s:.0f} s" if group.reason else "",
            group.reason,
        )
        for group in shown[:_PENDING_ROWS_MAX]
    ]
    lines += columns([("group", "state", "strategy", "bundles", "since", "why"), *rows])
    return lines + _left_out(len(shown), _PENDING_ROWS_MAX)


def _left_out(count: int, shown_max: int) -> list[str]:
    return [f"  ... and {count - shown_max} more (--format json)"] if count > shown_max else []


def _shape(resources: Mapping[str, float]) -> str:
    parts = [
        f"{name} {format_bytes(amount) if name in _BYTE_RESOURCES else _plain(amount)}"
        for name, amount in sorted(resources.items())
    ]
    return ", ".join(parts) or "nothing"


def _plain(amount: float) -> str:
    return format_units(to_units(amount)) if amount >= 0 else f"-{_plain(-amount)}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as indented lines with aligned columns; "none" when there are no rows."""
    if not rows:
        return ["  none"]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
