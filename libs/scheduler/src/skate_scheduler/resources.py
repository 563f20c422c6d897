"""Amounts of resources, exact: integers in units of 1e-4.

Floats drift (ten times 0.1 is not 1.0), so an amount is converted once, at the edge, and every sum
after that is an integer sum. A :class:`ResourceSet` is a vector of such amounts; what it does not
name is zero.
"""

from __future__ import annotations

import math
from collections.abc import ItemsView, Iterable, Iterator, Mapping
from typing import Final

from skate_scheduler.errors import ResourceTypeError, ResourceValueError

UNITS: Final = 10_000  # in one whole resource
AMOUNT_MAX: Final = 2**62  # units, so that the sum of two still fits the wire's 64 bits
NAME_LENGTH_MAX: Final = 255
CPU: Final = "CPU"
GPU: Final = "GPU"
MEMORY: Final = "memory"

# Devices that are handed out one by one: a request is a share of one device, or whole devices.
DEVICE_RESOURCES: Final = (GPU, "TPU", "neuron_cores")

# A float that was computed (0.1 + 0.2) misses its nearest unit by far less than this, and a request
# for a finer amount than one unit (1e-7 is 0.001 units) by more.
_ROUNDING_TOLERANCE: Final = 1e-4


def to_units(amount: float, name: str = "amount") -> int:
    """The amount in units of 1e-4: ``to_units(1.5) == 15000``.

    Raises:
        ResourceTypeError: the amount is not a number.
        ResourceValueError: it is negative, not finite, finer than 1e-4 or too large.
    """
    _check_amount(name, amount)
    scaled = amount * UNITS
    units = round(scaled)
    if abs(scaled - units) > max(_ROUNDING_TOLERANCE, abs(scaled) * 1e-12):
        raise ResourceValueError(
            name, f"amounts are counted in steps of 0.0001, {amount} is finer."
        )
    return units


def from_units(units: int) -> float:
    """The amount that people read: ``from_units(15000) == 1.5``."""
    return units / UNITS


def format_units(units: int) -> str:
    """Shortest exact text: ``"2"``, ``"0.5"``, ``"-0.0001"``."""
    whole, part = divmod(abs(units), UNITS)
    sign = "-" if units < 0 else ""
    return f"{sign}{whole}" if part == 0 else f"{sign}{whole}.{part:04d}".rstrip("0")


def request_units(name: str, amount: float) -> int:
    """Check one resource of a task's or actor's request and convert it to units.

    Devices (:data:`DEVICE_RESOURCES`) are a share of one device or a whole number of them;
    ``memory`` is rounded down to whole bytes, because nobody asks for a part of one.

    Raises:
        ResourceTypeError: name or amount of the wrong type.
        ResourceValueError: an amount that no node could ever hold.
    """
    _check_name(name)
    if name == MEMORY:
        _check_amount(name, amount)
        amount = math.floor(amount)
    units = to_units(amount, name)
    if name in DEVICE_RESOURCES and units > UNITS and units % UNITS:
        raise ResourceValueError(
            name, f"above one, only whole devices can be requested, got {format_units(units)}."
        )
    return units


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise ResourceTypeError(
            str(name), f"a resource's name is a str, not {type(name).__name__}."
        )
    if not name or len(name) > NAME_LENGTH_MAX:
        raise ResourceValueError(
            name[:32], f"a resource's name has 1 to {NAME_LENGTH_MAX} characters, got {len(name)}."
        )


def _check_amount(name: str, amount: object) -> None:
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise ResourceTypeError(name, f"an amount is a number, not {type(amount).__name__}.")
    if amount != amount:  # noqa: PLR0124  the definition of NaN, for integers of any size too
        raise ResourceValueError(name, "an amount is a number, not NaN.")
    if amount < 0:
        raise ResourceValueError(name, f"an amount can not be negative, got {amount}.")
    if amount > AMOUNT_MAX / UNITS:
        raise ResourceValueError(name, f"{amount} is more than any node can hold.")


class ResourceSet(Mapping[str, int]):
    """An immutable vector of amounts in units; zero amounts are left out, names are sorted.

    Equal vectors are equal, hash equal and iterate alike, so a set can be the key of a scheduling
    class. Amounts may be negative only in the difference of two sets (:meth:`minus`).
    """

    __slots__ = ("_amounts", "_hash")

    def __init__(self, amounts: Mapping[str, int] | Iterable[tuple[str, int]] = ()) -> None:
        given = dict(amounts)
        self._amounts: dict[str, int] = {name: given[name] for name in sorted(given) if given[name]}
        self._hash: int | None = None

    @classmethod
    def from_amounts(cls, amounts: Mapping[str, float]) -> ResourceSet:
        """From amounts as people write them (``{"CPU": 1.5}``). Raises as :func:`request_units`."""
        return cls({name: request_units(name, amount) for name, amount in amounts.items()})

    @classmethod
    def total_of(cls, parts: Iterable[ResourceSet]) -> ResourceSet:
        """The sum of all parts. O(names in all parts)."""
        amounts: dict[str, int] = {}
        for part in parts:
            for name, units in part.items():
                amounts[name] = amounts.get(name, 0) + units
        return cls(amounts)

    @classmethod
    def largest_of(cls, parts: Iterable[ResourceSet]) -> ResourceSet:
        """The largest amount of each resource in any part. O(names in all parts)."""
        amounts: dict[str, int] = {}
        for part in parts:
            for name, units in part.items():
                amounts[name] = max(amounts.get(name, 0), units)
        return cls(amounts)

    def __getitem__(self, name: str) -> int:
        return self._amounts.get(name, 0)

    def __contains__(self, name: object) -> bool:
        return name in self._amounts

    def __iter__(self) -> Iterator[str]:
        return iter(self._amounts)

    def __len__(self) -> int:
        return len(self._amounts)

    def items(self) -> ItemsView[str, int]:
        """Names and amounts, sorted by name."""
        return self._amounts.items()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ResourceSet):
            return self._amounts == other._amounts
        return NotImplemented

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(tuple(self._amounts.items()))
        return self._hash

    def __repr__(self) -> str:
        return f"ResourceSet({self})"

    def __str__(self) -> str:
        """For people: ``"CPU 2, GPU 0.5"``, or ``"nothing"``."""
        if not self._amounts:
            return "nothing"
        return ", ".join(f"{name} {format_units(units)}" for name, units in self._amounts.items())

    def __reduce__(self) -> tuple[type[ResourceSet], tuple[dict[str, int]]]:
        return ResourceSet, (self._amounts,)

    def plus(self, other: ResourceSet) -> ResourceSet:
        """The sum."""
        return ResourceSet.total_of((self, other))

    def minus(self, other: ResourceSet) -> ResourceSet:
        """The difference; an amount is negative where ``other`` is larger."""
        amounts = dict(self._amounts)
        for name, units in other._amounts.items():
            amounts[name] = amounts.get(name, 0) - units
        return ResourceSet(amounts)

    def clamped(self) -> ResourceSet:
        """The same, with zero in the place of what is negative."""
        return ResourceSet({name: units for name, units in self._amounts.items() if units > 0})

    def without(self, name: str) -> ResourceSet:
        """The same, with none of one resource."""
        if name not in self._amounts:
            return self
        return ResourceSet({key: units for key, units in self._amounts.items() if key != name})

    def fits_in(self, other: ResourceSet) -> bool:
        """Whether ``other`` has at least this much of everything named here."""
        amounts = other._amounts
        for name, units in self._amounts.items():  # noqa: SIM110  a generator costs more than the loop
            if units > amounts.get(name, 0):
                return False
        return True

    def shortfall(self, other: ResourceSet) -> ResourceSet:
        """How much of each resource ``other`` lacks to hold this. Empty exactly when it fits."""
        return self.minus(other).clamped().restricted_to(self)

    def restricted_to(self, other: ResourceSet) -> ResourceSet:
        """Only the resources that ``other`` names."""
        return ResourceSet(
            {name: units for name, units in self._amounts.items() if name in other._amounts}
        )

    def dominant_share(self, total: ResourceSet) -> float:
        """The largest fraction of ``total`` that this takes of any one resource; 0.0 when empty.

        Taking what the total does not have counts as a whole share.
        """
        share = 0.0
        for name, units in self._amounts.items():
            whole = total._amounts.get(name, 0)
            share = max(share, units / whole if whole > 0 else 1.0)
        return share

    def to_dict(self) -> dict[str, int]:
        """A fresh plain dict of the amounts in units, as messages carry it."""
        return dict(self._amounts)
