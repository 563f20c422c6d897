r"""Log files of the daemons: one ``key=value`` line per record, in a file of bounded size.

A line is made of printable characters only: whatever a user's name or an error's text contains
(line ends, terminal escapes) stays inside quotes as ``\n`` or ``\u001b``, so one record is one
line and reading a log with ``cat`` is safe. Fields are given by ``extra``::

    _log.info("lease granted", extra={"lease": lease_id.hex(), "waited_s": 0.2})

    time=2026-11-23T08:00:00.123Z level=info component=raylet logger=skate_raylet.leases
    event="lease granted" lease=ab12 waited_s=0.2                              (on one line)

Source: the logfmt convention; RELIABILITY.md, tests S12 and S20.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import logging.handlers
import os
import re
from io import TextIOWrapper

from skate_telemetry.context import current_trace

FILE_BYTES_MAX = 64 * 1024 * 1024
"""At this size a file is moved to ``.1``; three older ones are kept, so a component takes 256
MiB."""
BACKUPS_MAX = 3
FILE_MODE = 0o600
VALUE_CHARS_MAX = 16 * 1024

_BARE = re.compile(r"[A-Za-z0-9_./:@%+,\-\[\]{}()]+")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_STANDARD_ATTRIBUTES = frozenset(
    (*vars(logging.makeLogRecord({})), "message", "asctime", "taskName")
)


class KeyValueFormatter(logging.Formatter):
    """A record as one line of ``key=value`` pairs: fixed ones, then the record's ``extra`` ones."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        """One line without its end."""
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
        pairs: list[tuple[str, object]] = [
            ("time", moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")),
            ("level", record.levelname.lower()),
            ("component", self._component),
            ("logger", record.name),
            ("event", record.getMessage()),
        ]
        trace = current_trace()
        if trace is not None:
            pairs.append(("trace_id", trace.trace_id))
        pairs += [
            (name, value)
            for name, value in vars(record).items()
            if name not in _STANDARD_ATTRIBUTES and _KEY.fullmatch(name)
        ]
        if record.exc_info:
            pairs.append(("exception", self.formatException(record.exc_info)))
        if record.stack_info:
            pairs.append(("stack", self.formatStack(record.stack_info)))
        return " ".join(f"{name}={format_value(value)}" for name, value in pairs)


def format_value(value: object) -> str:
    """A value as it stands after ``=``: bare when that is unambiguous, else a JSON string."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > VALUE_CHARS_MAX:
        text = text[:VALUE_CHARS_MAX] + f"... ({len(text)} characters)"
    return text if _BARE.fullmatch(text) else json.dumps(text)


class PrivateRotatingFileHandler(logging.handlers.RotatingFileHandler):
    """A rotating file that only its owner can read, and that is not written through a link."""

    def _open(self) -> TextIOWrapper:
        def open_private(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)

        return open(self.baseFilename, "a", encoding="utf-8", opener=open_private)


class _ComponentHandler(PrivateRotatingFileHandler):
    """The handler that :func:`configure_logging` has set, so that a second call finds it."""


def configure_logging(
    component: str,
    path: str,
    level: int | str = logging.INFO,
    *,
    bytes_max: int = FILE_BYTES_MAX,
    backups_max: int = BACKUPS_MAX,
) -> None:
    """Send this process's log records to ``path``, one ``key=value`` line each.

    Only for processes that Skate owns: it sets the root logger's level and replaces what an earlier
    call has set; other handlers stay. Python warnings are logged too.

    Args:
        component: Who writes: ``"node"``, ``"zygote"``.
        path: The file; its folder must exist.
        level: The least severe level that is written, as a number or a name.
        bytes_max: Size at which the file is rotated; 0: never.
        backups_max: Older files that are kept, as ``path.1``, ``path.2``, ...

    Raises:
        OSError: the file can not be opened, or ``path`` is a link.
        ValueError: the level's name is unknown.
    """
    handler = _ComponentHandler(path, maxBytes=bytes_max, backupCount=backups_max, encoding="utf-8")
    handler.setFormatter(KeyValueFormatter(component))
    root = logging.getLogger()
    try:
        root.setLevel(level.upper() if isinstance(level, str) else level)
    except ValueError:
        handler.close()
        raise
    for old in [other for other in root.handlers if isinstance(other, _ComponentHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    logging.captureWarnings(True)
