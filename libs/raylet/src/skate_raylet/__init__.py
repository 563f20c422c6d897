"""A node of a cluster: worker leases, the worker pool, and the gateway of its processes."""

from __future__ import annotations
