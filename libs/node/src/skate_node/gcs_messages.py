"""What the daemon and the GCS's own process say to each other: JSON lines over two pipes.

::

    daemon                               python -P -m skate_node.gcs_main
      stdin    --- Begin, AskStatistics -->  0   EOF: stop in order
      stdout   <-- Begun, then ------------- 1
                   Listening or Failed,
                   Statistics, Failed
      gcs.err  <-- whatever is printed ----  2

The token travels in ``Begin`` alone, and so is in no argument or environment.
"""

from __future__ import annotations

from typing import Final

import msgspec

from skate_gcs import GcsStatistics

LINE_BYTES_MAX: Final = 1 << 20


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Be this GCS. The first line; the process may have waited for it for long."""

    endpoint: str
    token: str
    storage: str
    holder: str
    storage_wait_s: float
    advertised_host: str
    log_path: str


class AskStatistics(msgspec.Struct, frozen=True, tag=True):
    """Answered by ``Statistics``."""


class Begun(msgspec.Struct, frozen=True, tag=True):
    """It has heard ``Begin`` and goes to open the storage. The first line."""


class Listening(msgspec.Struct, frozen=True, tag=True):
    """The tables are loaded, and calls are answered at ``endpoint``."""

    endpoint: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The GCS does not start, or has stopped by itself. The last line."""

    reason: str
    may_pass: bool = False
    """Whether another process, started now, may succeed."""


class Statistics(msgspec.Struct, frozen=True, tag=True):
    """Counts of this moment."""

    counts: GcsStatistics


Order = Begin | AskStatistics
News = Begun | Listening | Failed | Statistics

encode: Final = msgspec.json.Encoder().encode
decode_order: Final = msgspec.json.Decoder(Order).decode
decode_news: Final = msgspec.json.Decoder(News).decode
