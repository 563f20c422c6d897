"""The command line of Skate, installed as ``skate`` and as ``cluster``."""

from __future__ import annotations

__all__: list[str] = []
