"""``import ray`` means ``import skate``: a finder of modules, for this process and its workers.

Nothing named ray lies on any disk. ``ray`` and ``ray.util.queue`` *are* the modules ``skate`` and
``skate.util.queue``, so classes and functions keep their own module's name, and pickles refer to
Skate's modules wherever they are loaded. Used by :mod:`skate.as_ray`. Source: PEP 451, SURFACE 1.1.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from skate_worker.setup_hook import SETUP_VARIABLE

ALIAS: Final = "ray"
TARGET: Final = "skate"
# Modules of Ray whose contents stand elsewhere in Skate.
_ELSEWHERE: Final = {
    "ray._common.test_utils": "skate.test_utils",
    "ray.experimental.tqdm_ray": "skate.experimental.tqdm_skate",
}
# Packages of Ray that only hold what is in the table above.
_SHELLS: Final = {"ray._common": "skate._private"}


class AliasFinder:
    """Finds ``ray`` and what is below it.

    Not derived from ``importlib.abc``, whose import would cost each driver 50 modules.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module that stands for this name; None for names of others.

        Raises:
            ModuleNotFoundError: a module of Ray that has no counterpart.
        """
        if fullname.partition(".")[0] != ALIAS:
            return None
        real = target_of(fullname)
        if importlib.util.find_spec(real) is None:
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: Skate has no {real!r}. What of Ray it offers stands"
                " in docs/surface.md.",
                name=fullname,
            )
        loader: Any = _AliasLoader(real)
        return ModuleSpec(fullname, loader, origin=f"alias of {real}")


class _AliasLoader:
    """Hands out a module under a second name, and leaves it as it is."""

    def __init__(self, real: str) -> None:
        self._real = real
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The real module, loaded now if it was not."""
        module = importlib.import_module(self._real)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Undo what the import system wrote into a module that it took for a new one."""
        module.__spec__ = self._spec


def target_of(name: str) -> str:
    """The module of Skate that stands for a module of Ray."""
    for table in (_ELSEWHERE, _SHELLS):
        if name in table:
            return table[name]
    return TARGET + name.removeprefix(ALIAS)


def install() -> None:
    """Have ``import ray`` mean Skate from now on, in this process and in its later sessions' tasks.

    Raises:
        ImportError: another ``ray`` has been imported.
    """
    if is_installed():
        return
    present = sys.modules.get(ALIAS)
    if present is not None:
        raise ImportError(
            f"'ray' is imported already, from {getattr(present, '__file__', '?')}; call"
            " skate.import_alias.install() before anything imports it."
        )
    # First: an installed Ray is not what is asked for.
    sys.meta_path.insert(0, AliasFinder())


def is_installed() -> bool:
    """Whether ``import ray`` means Skate here."""
    return any(isinstance(finder, AliasFinder) for finder in sys.meta_path)


def setup_vars() -> tuple[tuple[str, str], ...]:
    """The environment variables that have workers do as this process does."""
    return ((SETUP_VARIABLE, f"{__name__}:{install.__name__}"),) if is_installed() else ()
