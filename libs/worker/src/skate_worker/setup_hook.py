"""A function that a worker calls before anything else: named by an environment variable.

What it is for is above this library: a layer that workers need but that the runtime does not know.
"""

from __future__ import annotations

import importlib
import os
from typing import Final

SETUP_VARIABLE: Final = "SKATE_WORKER_SETUP_HOOK"
"""``module:function``; the function takes nothing."""


def run_setup_hook() -> None:
    """Call it, if there is one.

    Raises:
        ValueError: the variable has another form.
        ImportError, AttributeError: there is no such function.
        Exception: what it raises; the worker then does not start, and its log says why.
    """
    named = os.environ.get(SETUP_VARIABLE)
    if not named:
        return
    module, colon, function = named.partition(":")
    if not (module and colon and function):
        raise ValueError(f"{SETUP_VARIABLE} is written module:function, got {named!r}.")
    getattr(importlib.import_module(module), function)()
