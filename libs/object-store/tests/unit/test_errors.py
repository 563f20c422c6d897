from __future__ import annotations

import pickle

import pytest

from skate_core_ids import SkateError
from skate_object_store import (
    Fullness,
    FullReason,
    Holder,
    ObjectExistsError,
    ObjectNotFoundError,
    OutOfDiskError,
    SpilledObjectLostError,
    SpillReadError,
    StoreAuthenticationError,
    StoreClosedError,
    StoreError,
    StoreFullError,
    StoreProtocolError,
    StoreTimeoutError,
)

HOLDER = Holder(b"\xab\xcd", b"\x01", 3 << 20, 12.34, 2, is_sealed=True, is_deleted=True)
FULLNESS = Fullness(FullReason.NO_ROOM, 1 << 20, 4 << 20, 3 << 20, 0, (HOLDER,))
NOTED = Holder(b"\xab\xcd", b"", 3 << 20, 12.34, 0, True, False, note="job.py:7")
DISK_FULL = Fullness(FullReason.DISK_FULL, 1 << 20, 4 << 20, 3 << 20, 0, (NOTED,), "95% full")

ERRORS = [
    StoreFullError(b"\x12", FULLNESS),
    OutOfDiskError(b"\x12", DISK_FULL),
    SpilledObjectLostError(b"\x12", "a gap"),
    SpillReadError(b"\x12", "a timeout"),
    ObjectExistsError(b"\x12", True),
    ObjectNotFoundError(b"\x12"),
    StoreClosedError("unix:/x", "the server hung up"),
    StoreProtocolError("unix:/x", "nonsense"),
    StoreAuthenticationError("unix:/x", "wrong token"),
    StoreTimeoutError("unix:/x", 2.5),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_error_pickles_with_its_fields(error: StoreError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert isinstance(copy, SkateError)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


def test_full_error_names_holders_and_the_next_step() -> None:
    text = str(StoreFullError(b"\x12", FULLNESS))
    assert "object 12 needs 1.0 MiB" in text
    assert "3.0 MiB of 4.0 MiB used" in text
    assert "abcd: 3.0 MiB, owner 01, deleted, kept by 2 views, for 12.3 s" in text
    assert "Drop references" in text


def test_out_of_disk_names_the_disk_and_the_line_that_made_a_holder() -> None:
    text = str(OutOfDiskError(b"\x12", DISK_FULL))
    assert "Spilling: 95% full" in text
    assert "for 12.3 s, made at job.py:7" in text
    assert "Free the disk" in text


def test_timeout_is_also_the_builtin_one() -> None:
    assert isinstance(StoreTimeoutError("unix:/x", 1), TimeoutError)
