"""Ray's older place for :func:`skate.internal.free`."""

from __future__ import annotations

from skate.internal import free

__all__ = ["free"]
