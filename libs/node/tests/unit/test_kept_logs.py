from __future__ import annotations

import os
from pathlib import Path

from skate_node.kept_logs import LOG_FILE_KEPT_BYTES_MAX, trim_logs


def test_trim_long_file_keeps_its_last_whole_lines(tmp_path: Path) -> None:
    lines = [f"line {number:09d}" for number in range(200_000)]
    log = tmp_path / "worker.out"
    log.write_text("\n".join(lines) + "\n")
    left = trim_logs(str(tmp_path))
    kept = log.read_text().splitlines()
    assert left == log.stat().st_size <= LOG_FILE_KEPT_BYTES_MAX
    assert kept[0].startswith("[the beginning was cut off")
    assert kept[1:] == lines[-len(kept) + 1 :]
    assert len(kept) > 60_000


def test_trim_too_many_files_drops_the_oldest(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / f"{number}.log"
        path.write_bytes(b"x" * 100)
        os.utime(path, (number, number))
    assert trim_logs(str(tmp_path), total_max=250) == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.log", "4.log"]


def test_trim_short_logs_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("hello\n")
    assert trim_logs(str(tmp_path)) == 6
    assert (tmp_path / "a.log").read_text() == "hello\n"


def test_trim_missing_folder_is_empty(tmp_path: Path) -> None:
    assert trim_logs(str(tmp_path / "none")) == 0


def test_trim_link_to_a_long_file_leaves_its_target_alone(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"x" * (2 * LOG_FILE_KEPT_BYTES_MAX))
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "link").symlink_to(victim)
    trim_logs(str(logs))
    assert victim.stat().st_size == 2 * LOG_FILE_KEPT_BYTES_MAX
