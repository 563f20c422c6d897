"""Decisions of the store, without I/O or clocks: where bytes go, and which objects live."""

from __future__ import annotations
