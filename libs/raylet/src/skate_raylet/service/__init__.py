"""The shell of a node: sockets, processes and the GCS, around the machines."""

from __future__ import annotations
