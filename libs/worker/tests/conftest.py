"""Options of the worker's tests: how many seeds a simulation tries, or which one it replays."""

from __future__ import annotations

import contextlib

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--seeds`` and ``--seed``."""
    # The tests of skate_sim have the same options: who is loaded second finds them there.
    with contextlib.suppress(ValueError):
        parser.addoption("--seeds", type=int, default=0, help="seeds that a simulation tries")
        parser.addoption("--seed", type=int, default=-1, help="replay this seed of a simulation")
