"""What every actor answers to beside its class's methods: readiness, any function, the end.

The class is exported inside an :class:`ExportedClass`, which adds them where the actor's worker
loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skate_worker.current import require_core


class ExportedClass:
    """Pickles as a user's class; loads as that class with the built-in methods added."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.__name__: str = cls.__name__

    def __reduce__(self) -> tuple[Callable[[type], type], tuple[type]]:
        return _with_built_ins, (self.cls,)


def _with_built_ins(cls: type) -> type:
    for name, function in (("ready", _ready), ("call", _call), ("terminate", _terminate)):
        for prefix in ("ray", "skate"):
            try:
                setattr(cls, f"__{prefix}_{name}__", function)
            except (
                AttributeError,
                TypeError,
            ):  # A metaclass or a class in C that can not be changed.
                return cls
    return cls


def _ready(_self: Any) -> bool:
    """Answers once the constructor has run."""
    return True


def _call(self: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run ``function(self, *args, **kwargs)`` inside the actor."""
    return function(self, *args, **kwargs)


def _terminate(_self: Any) -> None:
    """End the actor after the calls that came before."""
    require_core().exit_actor("__ray_terminate__ was called")
