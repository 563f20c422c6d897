"""The one pickler of the runtime: cloudpickle, references, and serialisers that users register.

It collects every reference (an ``ObjectRef``, an actor handle) that it meets, so that the owner can
count the reference as held by the value that contains it.
"""

from __future__ import annotations

import copyreg
import inspect
import io
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle

PROTOCOL = 5

Reduced = tuple[Any, ...]
Reducer = Callable[[Any], Reduced]

# Exact class to reducer. Filled at import of the reference types, and by users.
_reference_reducers: dict[type, Reducer] = {}
_value_reducers: dict[type, Reducer] = {}
_own_reducers: dict[type, Reducer] = {}  # those of the above that Skate brings
_awaited_modules = ["numpy", "torch"]  # whose types are not known yet, as nobody imported them


class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles one value; ``contained`` lists the references that it met, in order."""

    def __init__(
        self, file: io.BytesIO, buffer_callback: Callable[[Any], object] | None = None
    ) -> None:
        # The C pickler looks into this table for nearly every object; a plain dict is several times
        # faster than cloudpickle's ChainMap (measured: ten fractions 9.8 us against 17.5 us).
        self.dispatch_table = _flat_table()
        for name in _awaited_modules:
            if name in sys.modules:
                _know_modules()
                break
        super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)
        self.contained: list[Any] = []

    def reducer_override(self, value: Any) -> Any:
        """Called by the C pickler for everything but the plainest built-in types."""
        kind = type(value)
        reduce = _reference_reducers.get(kind)
        if reduce is not None:
            check_session(value)
            self.contained.append(value)
            return reduce(value)
        reduce = _value_reducers.get(kind)
        if reduce is not None:
            return reduce(value)
        return super().reducer_override(value)


def register_reference_type(cls: type, reduce: Reducer) -> None:
    """Make instances of exactly ``cls`` references: collected when pickled by ``reduce``."""
    _reference_reducers[cls] = reduce


def check_session(reference: Any) -> None:
    """Raise ``UnknownOwnerError`` for a reference of a session that has ended."""
    core = getattr(reference, "_core", None)
    if core is not None and getattr(core, "is_closed", False):
        from skate_worker.errors import UnknownOwnerError  # noqa: PLC0415 - which imports this

        raise UnknownOwnerError(
            f"{reference!r} belongs to a session that has ended: its owner is unknown in this one."
        )


def is_reference_type(cls: type) -> bool:
    """Whether :func:`register_reference_type` was called for ``cls``."""
    return cls in _reference_reducers


def register_serializer(
    cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]
) -> None:
    """Pickle instances of exactly ``cls`` as ``serializer(value)``, in this process only.

    ``deserializer`` travels with each value, so the reading process needs no registration.

    Raises:
        TypeError: an argument is not a class, or not callable.
    """
    if not inspect.isclass(cls):
        raise TypeError(f"register_serializer takes a class, got {cls!r}.")
    if not all(map(callable, (serializer, deserializer))):
        raise TypeError("serializer and deserializer must be callables that take one argument.")

    def reduce(value: Any) -> Reduced:
        return deserializer, (serializer(value),)

    _value_reducers[cls] = reduce


def deregister_serializer(cls: type) -> None:
    """Undo :func:`register_serializer`; nothing happens when the class was not registered."""
    if cls in _own_reducers:
        _value_reducers[cls] = _own_reducers[cls]
    else:
        _value_reducers.pop(cls, None)


def _know_modules() -> None:
    modules = sys.modules
    numpy, torch = modules.get("numpy"), modules.get("torch")
    # A module that another thread is importing has not all its names yet, and no values either.
    if "numpy" in _awaited_modules and hasattr(numpy, "ndarray"):
        from skate_worker.serialization.arrays import reduce_array  # noqa: PLC0415 - see its module

        _know("numpy", {numpy.ndarray: reduce_array})  # type: ignore[union-attr]
    if "torch" in _awaited_modules and hasattr(getattr(torch, "nn", None), "Parameter"):
        from skate_worker.serialization.tensors import tensor_reducers  # noqa: PLC0415 - as above

        _know("torch", tensor_reducers(torch))  # type: ignore[arg-type]


def _know(module: str, reducers: dict[type, Reducer]) -> None:
    _own_reducers.update(reducers)
    for cls, reduce in reducers.items():
        _value_reducers.setdefault(cls, reduce)
    _awaited_modules.remove(module)


def pickle_in_band(value: Any) -> bytes:
    """Pickle into one ``bytes``, buffers included."""
    file = io.BytesIO()
    ValuePickler(file).dump(value)
    return file.getvalue()


class _FlatTable:
    """cloudpickle's and copyreg's reducers in one dict, made anew when copyreg has changed."""

    def __init__(self) -> None:
        self.made_from: dict[type, Any] = dict(copyreg.dispatch_table)
        self.table: dict[type, Any] = dict(cloudpickle.Pickler.dispatch_table)


_flat = _FlatTable()


def _flat_table() -> dict[type, Any]:
    if copyreg.dispatch_table != _flat.made_from:
        _flat.made_from = dict(copyreg.dispatch_table)
        _flat.table = dict(cloudpickle.Pickler.dispatch_table)
    return _flat.table
