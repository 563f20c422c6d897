"""The text of an exception as its user should read it: user frames only, chains and notes kept."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import traceback
from typing import Final

TEXT_MAX_CHARS: Final = 256 * 1024
FULL_TRACEBACK_VARIABLE: Final = "SKATE_FULL_TB"

_CHAIN_DEPTH_MAX: Final = 64
_LOOP_DIRECTORY: Final = os.path.dirname(asyncio.__file__) + os.sep
_RUNTIME_PACKAGES: Final = (
    "skate",
    "skate_core_ids",
    "skate_object_store",
    "skate_rpc",
    "skate_telemetry",
    "skate_worker",
)


def exception_text(error: BaseException, *, own_text: type[BaseException]) -> str:
    """Format an exception and its chain without the runtime's own frames.

    ``own_text`` is the class whose string already tells its whole chain. ``SKATE_FULL_TB=1`` in the
    environment keeps every frame. Longer texts lose their middle.
    """
    try:
        told = traceback.TracebackException.from_exception(error, compact=True)
        if os.environ.get(FULL_TRACEBACK_VARIABLE) != "1":
            _fold(told, error, own_text, _runtime_directories(), 0)
        text = "".join(told.format())
    except Exception as failure:  # noqa: BLE001 - User code in __str__, __notes__ and the like.
        text = f"{type(error).__name__} (its text could not be made: {type(failure).__name__})\n"
    if len(text) <= TEXT_MAX_CHARS:
        return text.rstrip("\n")
    half = TEXT_MAX_CHARS // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n... {left_out} characters left out ...\n{text[-half:]}".rstrip("\n")


def _fold(
    told: traceback.TracebackException,
    error: BaseException,
    own_text: type[BaseException],
    directories: tuple[str, ...],
    depth: int,
) -> None:
    frames = [f for f in told.stack if not f.filename.startswith(directories)]
    # What stands before all user code is the event loop that a coroutine was run on.
    loop = _LOOP_DIRECTORY
    frames = list(itertools.dropwhile(lambda f: f.filename.startswith(loop), frames))
    if frames:
        told.stack[:] = frames
    else:
        told.stack = traceback.StackSummary()
    if isinstance(error, own_text):
        told.__cause__ = told.__context__ = None
    if depth >= _CHAIN_DEPTH_MAX:
        return
    if told.__cause__ is not None and error.__cause__ is not None:
        _fold(told.__cause__, error.__cause__, own_text, directories, depth + 1)
    if told.__context__ is not None and error.__context__ is not None:
        _fold(told.__context__, error.__context__, own_text, directories, depth + 1)
    if told.exceptions and isinstance(error, BaseExceptionGroup):
        for inner_told, inner in zip(told.exceptions, error.exceptions, strict=False):
            _fold(inner_told, inner, own_text, directories, depth + 1)


def _runtime_directories() -> tuple[str, ...]:
    directories = []
    for name in (*_RUNTIME_PACKAGES, "cloudpickle"):
        module = sys.modules.get(name)
        if module is not None and module.__file__ is not None:
            directories.append(os.path.dirname(module.__file__) + os.sep)
    return tuple(directories)
