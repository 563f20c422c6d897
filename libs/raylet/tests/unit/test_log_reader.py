from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from skate_raylet.service.logs.log_reader import BYTES_MAX, LogReader
from skate_rpc.node_protocol import LogPart


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.log").write_bytes(b"0123456789")
    (tmp_path / "secret").write_text("canary", "utf-8")
    return logs


def read(folder: Path, file: str, offset: int = 0, bytes_max: int = 100) -> LogPart | None:
    reader = LogReader(b"n", str(folder), "token", lambda node_id: "")
    return asyncio.run(reader.read_here(file, offset, bytes_max))


def test_any_part_of_a_file_can_be_read(folder: Path) -> None:
    assert read(folder, "a.log") == LogPart(b"0123456789", 0, 10)
    assert read(folder, "a.log", 3, 4) == LogPart(b"3456", 3, 10)
    assert read(folder, "a.log", -3) == LogPart(b"789", 7, 10)
    assert read(folder, "a.log", -99) == LogPart(b"0123456789", 0, 10)
    assert read(folder, "a.log", 10) == LogPart(b"", 10, 10)


def test_one_reading_is_bounded(folder: Path) -> None:
    (folder / "big.log").write_bytes(bytes(BYTES_MAX + 1))
    part = read(folder, "big.log", 0, 1 << 30)
    assert part is not None
    assert len(part.data) == BYTES_MAX


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../secret",
        "./a.log",
        "/etc/hostname",
        "a.log/",
        "a\0b",
        "link",
        "pipe",
        "sub",
    ],
)
def test_nothing_but_a_plain_file_of_the_folder_is_read(folder: Path, name: str) -> None:
    (folder / "link").symlink_to(folder.parent / "secret")
    os.mkfifo(folder / "pipe")
    (folder / "sub").mkdir()
    assert read(folder, name) is None


def test_listing_has_plain_files_alone(folder: Path) -> None:
    (folder / "b.log").touch()
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "sub").mkdir()
    reader = LogReader(b"n", str(folder), "token", lambda node_id: "")
    files = asyncio.run(reader.list_here())
    assert [(file.name, file.size) for file in files] == [("a.log", 10), ("b.log", 0)]
