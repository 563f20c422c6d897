"""How much of the machine's copy bandwidth a put reaches, and what a get costs.

Run: ``python libs/object-store/benches/bandwidth.py [--quick]``. Plain copies go into memory that
    has
been touched before, by one thread and by two; puts go into a store whose arena is warm, except
where the row says cold. Medians of several rounds, taken in turn so that a busy machine treats all
alike.
"""
# ruff: noqa: INP001, T201  A script that talks to a terminal.

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable

from skate_object_store import StoreClient, StoreServer

KIB, MIB = 1 << 10, 1 << 20


def main() -> None:
    """Measure and print one table for large copies and one for small calls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    is_quick = parser.parse_args().quick
    large = (64 if is_quick else 800) * MIB
    rounds = 3 if is_quick else 7
    with (
        tempfile.TemporaryDirectory() as folder,
        StoreServer(os.path.join(folder, "store.sock"), 3 * large) as server,
        StoreClient(server.endpoint) as client,
    ):
        report_bandwidth(client, large, rounds)
        report_calls(client, 50 if is_quick else 500)


def report_bandwidth(client: StoreClient, size: int, rounds: int) -> None:
    """Large copies, in GB/s, and their share of a plain two-thread copy."""
    source = _touched(size)
    target = _touched(size)
    half = size // 2 // mmap.PAGESIZE * mmap.PAGESIZE

    def copy(start: int, end: int) -> None:
        ctypes.memmove(_address(target) + start, _address(source) + start, end - start)

    def copy_in_two() -> None:
        helper = threading.Thread(target=copy, args=(half, size))
        helper.start()
        copy(0, half)
        helper.join()

    def put() -> None:
        client.put(b"large", [source])

    def delete() -> None:
        client.delete([b"large"])
        client.contains(b"large")  # The delete has arrived when this is answered.

    def get() -> None:
        (view,) = client.get([b"large"])
        assert view is not None

    cold_s = _seconds(put)
    delete()
    rows: dict[str, list[float]] = {
        "plain copy, 1 thread": [],
        "plain copy, 2 threads": [],
        "put": [],
        "get": [],
    }
    for _ in range(rounds):
        rows["plain copy, 1 thread"].append(_seconds(lambda: copy(0, size)))
        rows["plain copy, 2 threads"].append(_seconds(copy_in_two))
        rows["put"].append(_seconds(put))
        rows["get"].append(_seconds(get))
        delete()
    plain_s = statistics.median(rows["plain copy, 2 threads"])
    print(f"{size // MIB} MiB, median of {rounds} rounds")
    print(f"{'':24}{'ms':>9}{'GB/s':>9}{'of plain':>10}")
    for name, seconds in {"put into a cold arena": [cold_s], **rows}.items():
        took_s = statistics.median(seconds)
        share = f"{plain_s / took_s:.2f}" if name != "get" else "no copy"
        speed = f"{size / took_s / 1e9:.1f}" if name != "get" else ""
        print(f"{name:24}{took_s * 1e3:9.2f}{speed:>9}{share:>10}")


def report_calls(client: StoreClient, rounds: int) -> None:
    """Small and medium objects, in microseconds a call."""
    print(f"\n{'microseconds, median':24}{'put':>9}{'get':>9}{'again':>9}{'plain copy':>12}")
    for size in (1 * KIB, 100 * KIB, 1 * MIB, 8 * MIB):
        medians = _call_medians(client, size, max(10, rounds * 100 * KIB // max(size, 100 * KIB)))
        print(
            f"{size // KIB:>8} KiB{'':12}{medians[0]:9.0f}{medians[1]:9.0f}{medians[2]:9.1f}"
            f"{medians[3]:12.0f}"
        )


def _call_medians(client: StoreClient, size: int, rounds: int) -> list[float]:
    """Microseconds of: put, get, get again, plain copy."""
    source, target = _touched(size), _touched(size)
    times: list[list[float]] = [[], [], [], []]
    for _ in range(rounds):
        times[0].append(_seconds(lambda: client.put(b"id", [source])))
        start_s = time.perf_counter()
        views = client.get([b"id"])
        times[1].append(time.perf_counter() - start_s)
        times[2].append(_seconds(lambda: client.get([b"id"])))
        times[3].append(_seconds(lambda: ctypes.memmove(_address(target), _address(source), size)))
        del views
        client.delete([b"id"])
        client.contains(b"id")
    return [statistics.median(row) * 1e6 for row in times]


def _touched(size: int) -> mmap.mmap:
    """Anonymous memory with all of its pages."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, size, mmap.PAGESIZE):
        memory[start] = start & 0xFF
    return memory


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _seconds(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


if __name__ == "__main__":
    main()
