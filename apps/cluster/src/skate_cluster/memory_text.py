"""A memory report as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skate_cluster.memory_report import MemoryReport, Store, total_bytes
from skate_cluster.report_text import columns, format_bytes
from skate_rpc.object_rows import ReferenceRow

FIXED_UNITS = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3}
_HEAD = ("size", "process", "held as", "object", "owner", "task", "made at")


def format_memory(
    report: MemoryReport,
    rows: Sequence[ReferenceRow],
    *,
    sort_by: str,
    group_by: str,
    units: str,
    is_stats_only: bool,
) -> str:
    """The whole page, without a final newline; ``rows`` are the references to show."""
    size = _sizes(units)
    objects = len({row.object_id for row in report.references})
    summary = (
        f"Objects of the cluster at {report.address}: {objects} objects,"
        f" {len(report.references)} references, {size(total_bytes(report.references))}"
    )
    lines = [summary, "", "Stores (used = listed + copies + left out + rounding)"]
    lines += _stores(report.stores, size)
    if not is_stats_only:
        if group_by:
            for title, group in report.grouped_by(group_by, rows).items():
                lines += ["", f"{title}: {len(group)} references, {size(total_bytes(group))}"]
                lines += _references(group, size)
        else:
            lines += ["", f"References, by {sort_by}", *_references(rows, size)]
        left_out = len(report.references) - len(rows)
        if left_out:
            lines.append(f"  ... and {left_out} more (--num-entries)")
    if report.problems:
        lines += ["", "Not in this list", *(f"  {problem}" for problem in report.problems)]
    return "\n".join(lines)


def _sizes(units: str) -> Callable[[float], str]:
    if units == "auto":
        return format_bytes
    divisor = FIXED_UNITS[units]
    return lambda count: f"{count:.0f} B" if divisor == 1 else f"{count / divisor:.3f} {units}"


def _stores(stores: Sequence[Store], size: Callable[[float], str]) -> list[str]:
    head = (
        "node",
        "name",
        "used / capacity",
        "objects",
        "listed",
        "copies",
        "left out",
        "rounding",
        "",
    )
    return columns(
        [
            head,
            *(
                (
                    store.node_id[:12],
                    store.name,
                    f"{size(store.used_bytes)} / {size(store.capacity_bytes)}",
                    str(store.listed_objects + store.left_out_objects),
                    size(store.listed_bytes),
                    size(store.copies_bytes),
                    size(store.left_out_bytes),
                    size(store.rounding_bytes),
                    store.problem,
                )
                for store in stores
            ),
        ]
    )


def _references(rows: Sequence[ReferenceRow], size: Callable[[float], str]) -> list[str]:
    if not rows:
        return ["  none"]
    return columns([_HEAD, *(_cells(row, size) for row in rows)])


def _cells(row: ReferenceRow, size: Callable[[float], str]) -> tuple[str, ...]:
    process = f"{row.type.lower()} {row.pid}" if row.type else "none"
    reasons = ", ".join(
        reason if count == 1 else f"{reason} x{count}" for reason, count in row.reasons.items()
    )
    if row.owner_id == row.worker_id:
        owner = "itself"
    else:
        owner = f"process {row.owner_pid}" if row.owner_pid else f"worker {row.owner_id[:12]}"
    task = f"{row.task_name}() " if row.task_name else ""
    status = row.task_status if row.task_status != "NIL" else ""
    if row.attempt_number:
        status += f", attempt {row.attempt_number + 1}"
    return (
        "pending" if row.object_size < 0 else size(row.object_size),
        process,
        (reasons or row.reference_type) + (", spilled" if row.is_spilled else ""),
        row.object_id,
        owner,
        (task + status) or "-",
        row.call_site or "-",
    )
