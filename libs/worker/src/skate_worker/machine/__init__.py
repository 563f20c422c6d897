"""The decisions of a worker or driver: who holds a reference, which leased worker gets a task,
which calls of an actor may go. No I/O, no clock: time is a parameter and effects are returned.
"""

from __future__ import annotations
