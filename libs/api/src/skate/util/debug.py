"""Logging something once, or now and then. Source: Ray's ``ray.util.debug``, SURFACE D5."""

from __future__ import annotations

import time
from typing import Final

PERIOD_S: Final = 60.0  # of periodic logging

_seen: set[str] = set()
_switches = {"is_off": False, "is_periodic": False}
_last_reset_s = [time.monotonic()]


def log_once(key: str) -> bool:
    """True the first time that this process asks with this key, and False from then on.

    ``if log_once("slow path"): logger.warning(...)``
    """
    if _switches["is_off"]:
        return False
    if _switches["is_periodic"] and time.monotonic() - _last_reset_s[0] > PERIOD_S:
        _seen.clear()
        _last_reset_s[0] = time.monotonic()
    if key in _seen:
        return False
    _seen.add(key)
    return True


def disable_log_once_globally() -> None:
    """Have :func:`log_once` say False always."""
    _switches["is_off"] = True


def enable_periodic_logging() -> None:
    """Have :func:`log_once` forget what it saw every minute."""
    _switches["is_periodic"] = True
