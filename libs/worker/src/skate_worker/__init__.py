"""The runtime inside every driver and worker."""

from __future__ import annotations

__all__: list[str] = []
