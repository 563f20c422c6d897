from __future__ import annotations

import errno
from pathlib import Path

import pytest

from skate_object_store.service.spill_backends import (
    FOLDER_PREFIX,
    DirectorySpill,
    remove_leftovers,
)


def written(backend: DirectorySpill, content: bytes) -> str:
    return backend.write(len(content), iter([memoryview(content)]))


def files(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file()]


def test_directories_are_used_in_turn(tmp_path: Path) -> None:
    backend = DirectorySpill([str(tmp_path / "a"), str(tmp_path / "b")], 1.0)
    for _ in range(6):
        written(backend, b"x")
    assert len(files(tmp_path / "a")) == len(files(tmp_path / "b")) == 3
    backend.close()
    assert files(tmp_path) == []


def test_file_system_that_is_as_full_as_it_may_be_takes_nothing(tmp_path: Path) -> None:
    backend = DirectorySpill([str(tmp_path)], 0.0)
    assert backend.room_bytes() == 0
    with pytest.raises(OSError, match="0% full") as caught:
        written(backend, b"x")
    assert caught.value.errno == errno.ENOSPC
    assert files(tmp_path) == []
    backend.close()


def test_no_directory_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        DirectorySpill([], 1.0)


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    dead = tmp_path / f"{FOLDER_PREFIX}1-dead"
    dead.mkdir()
    (dead / "1").write_bytes(b"x")
    others = tmp_path / "others"
    others.mkdir()
    (tmp_path / f"{FOLDER_PREFIX}file").write_text("no folder")
    (tmp_path / f"{FOLDER_PREFIX}link").symlink_to(others)
    assert remove_leftovers(str(tmp_path)) == [dead.name]
    assert others.is_dir()
    assert not dead.exists()


def test_path_swapped_for_a_link_leads_nowhere(tmp_path: Path) -> None:
    backend = DirectorySpill([str(tmp_path / "spill")], 1.0)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "1").write_text("precious")
    (folder,) = (tmp_path / "spill").iterdir()
    folder.rename(tmp_path / "moved")
    folder.symlink_to(victim)
    key = written(backend, b"x")
    assert b"".join(bytes(part) for part in backend.read(key, 0, 1)) == b"x"
    backend.delete(key)
    backend.close()
    assert (victim / "1").read_text() == "precious"
