"""Decisions of a node, without I/O: leases, the worker pool, and the two of them together."""

from __future__ import annotations
