"""What puts and gets cost when the store holds more than its memory, beside plain files.

Run: ``python libs/object-store/benches/spilling.py [--quick] [--directory PLACE]``. Three times the
capacity is put and got back, once each, in objects of several sizes; plain files of the same sizes
are written to and read from the same place. Neither syncs, so both meet the page cache alike.
"""
# ruff: noqa: INP001, T201  A script that talks to a terminal.

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable

from skate_object_store import SpillConfig, StoreClient, StoreConfig, StoreServer

MIB = 1 << 20


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small store")
    parser.add_argument("--directory", help="where to spill; a temporary folder by default")
    options = parser.parse_args()
    capacity = (64 if options.quick else 512) * MIB
    print(f"{3 * capacity // MIB} MiB through a store of {capacity // MIB} MiB, in MB/s")
    print(f"{'object':>10}{'file write':>12}{'put':>8}{'share':>7}", end="")
    print(f"{'file read':>12}{'get':>8}{'share':>7}{'spilled':>9}{'restored':>9}")
    for size in (MIB // 8, MIB, 8 * MIB):
        with tempfile.TemporaryDirectory(dir=options.directory) as folder:
            report(folder, capacity, size)


def report(folder: str, capacity: int, size: int) -> None:
    """One row."""
    count = 3 * capacity // size
    value = os.urandom(size)
    write_s, read_s = plain_files(os.path.join(folder, "plain"), count, value)
    spill = SpillConfig(directories=(os.path.join(folder, "spill"),))
    socket = os.path.join(folder, "store.sock")
    with (
        StoreServer(socket, capacity, config=StoreConfig(spill=spill)) as server,
        StoreClient(server.endpoint) as client,
    ):
        names = [b"%d" % number for number in range(count)]
        put_s = seconds(lambda: [client.put(name, [value]) for name in names])
        spilled = server.statistics().spilled_total
        get_s = seconds(lambda: [check(client, name, value) for name in names])
        restored = server.statistics().restored_total
    total = count * size / 1e6
    print(
        f"{size // 1024:>6} KiB{total / write_s:12.0f}{total / put_s:8.0f}{write_s / put_s:7.2f}"
        f"{total / read_s:12.0f}{total / get_s:8.0f}{read_s / get_s:7.2f}{spilled:9}{restored:9}"
    )


def plain_files(folder: str, count: int, value: bytes) -> tuple[float, float]:
    """Seconds to write and to read so many files, one after the other."""
    os.mkdir(folder)
    paths = [os.path.join(folder, str(number)) for number in range(count)]
    buffer = bytearray(len(value))

    def write(path: str) -> None:
        with open(path, "wb", buffering=0) as file:
            file.write(value)

    def read(path: str) -> None:
        with open(path, "rb", buffering=0) as file:
            file.readinto(buffer)

    write_s = seconds(lambda: [write(path) for path in paths])
    read_s = seconds(lambda: [read(path) for path in paths])
    for path in paths:
        os.unlink(path)
    return write_s, read_s


def check(client: StoreClient, name: bytes, value: bytes) -> None:
    """Get one object and look at its ends."""
    (view,) = client.get([name])
    assert view is not None
    assert view[:8] == value[:8]
    assert view[-8:] == value[-8:]


def seconds(call: Callable[[], object]) -> float:
    """How long it took."""
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


if __name__ == "__main__":
    main()
