"""The line of user code that a call into Skate came from.

Walking the frames costs about a microsecond, so it is done for what is worth a note: values in the
object store, whose bytes somebody may want explained, and everything on request
(``SKATE_RECORD_REF_CREATION_SITES=1``).
"""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Final

RECORD_ALL_VARIABLE: Final = "SKATE_RECORD_REF_CREATION_SITES"
NOTE_BYTES_MAX: Final = 200  # what the object store keeps with an object

_OWN: Final = frozenset({"skate", "skate_worker"})
_ON_THE_WAY: Final = frozenset({"pickle", "copy", "copyreg", "cloudpickle"})


def records_all() -> bool:
    """Whether the creation of every reference is to be noted, not only of stored values."""
    return os.environ.get(RECORD_ALL_VARIABLE, "0") == "1"


def call_site() -> str:
    """``file:line in function`` of the innermost frame outside Skate; empty when there is none.

    At most ``NOTE_BYTES_MAX`` bytes of UTF-8; a long path loses its beginning.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        root = frame.f_globals.get("__name__", "").partition(".")[0]
        if root not in _OWN and root not in _ON_THE_WAY:
            code = frame.f_code
            return clipped(f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}")
        frame = frame.f_back
    return ""


def clipped(note: str) -> str:
    """``note`` within the limit, by leaving out its beginning."""
    data = note.encode(errors="replace")
    if len(data) <= NOTE_BYTES_MAX:
        return note
    return "..." + data[3 - NOTE_BYTES_MAX :].decode(errors="ignore")
