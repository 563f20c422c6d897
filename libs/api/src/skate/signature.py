"""Whether a call's arguments fit a function, checked where the call is made (SURFACE T23).

``inspect.Signature.bind`` costs several microseconds and needs the function; this keeps the few
facts that decide, answers the common call by comparing two integers, and travels with an actor's
handle.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final

UNLIMITED: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class CallSignature:
    """What may be passed: ``quick_min <= len(args) <= quick_max`` without keywords always may."""

    positional: tuple[str, ...] = ()
    """Names that may be given by position, in order."""
    positional_only: int = 0
    """How many of the first ``positional`` may not be given by keyword."""
    required: int = 0
    """How many of the first ``positional`` have no default."""
    keyword_only: tuple[str, ...] = ()
    keyword_required: tuple[str, ...] = ()
    takes_any_positional: bool = False
    takes_any_keyword: bool = False
    quick_min: int = 0
    quick_max: int = 0

    @classmethod
    def of(cls, function: Callable[..., Any], *, skip_first: bool = False) -> CallSignature:
        """From a function, without ``self`` if ``skip_first``. One that hides it takes anything."""
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # Built-in, or a callable that hides it.
            return ANYTHING
        if skip_first:
            if not parameters:
                return ANYTHING
            if parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
                del parameters[0]
        return _from_parameters(parameters)

    def check(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise the ``TypeError`` that the call ``name(*args, **kwargs)`` itself would raise."""
        given = len(args)
        if given > len(self.positional) and not self.takes_any_positional:
            raise TypeError(
                f"{name}() takes {_count(self, 'positional argument')} but {given}"
                f" {'was' if given == 1 else 'were'} given"
            )
        for key in kwargs:
            if key in self.keyword_only:
                continue
            try:
                index = self.positional.index(key, self.positional_only)
            except ValueError:
                if self.takes_any_keyword:
                    continue
                if key in self.positional:
                    raise TypeError(
                        f"{name}() got a positional-only argument passed as keyword: {key!r}"
                    ) from None
                raise TypeError(f"{name}() got an unexpected keyword argument {key!r}") from None
            if index < given:
                raise TypeError(f"{name}() got multiple values for argument {key!r}")
        missing = [
            key
            for index, key in enumerate(self.positional[: self.required])
            if index >= given and (key not in kwargs or index < self.positional_only)
        ]
        missing += [key for key in self.keyword_required if key not in kwargs]
        if missing:
            plural = "s" if len(missing) > 1 else ""
            names = ", ".join(map(repr, missing))
            raise TypeError(f"{name}() missing {len(missing)} required argument{plural}: {names}")

    def to_tuple(self) -> tuple[Any, ...]:
        """Plain values only, for the wire."""
        return tuple(getattr(self, field.name) for field in fields(self))


ANYTHING: Final = CallSignature(
    takes_any_positional=True, takes_any_keyword=True, quick_max=UNLIMITED
)


def _from_parameters(parameters: list[inspect.Parameter]) -> CallSignature:
    kinds = inspect.Parameter
    by_position = [
        p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    by_keyword = [p for p in parameters if p.kind is kinds.KEYWORD_ONLY]
    takes_any_positional = any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
    required = sum(p.default is kinds.empty for p in by_position)
    keyword_required = tuple(p.name for p in by_keyword if p.default is kinds.empty)
    most = UNLIMITED if takes_any_positional else len(by_position)
    return CallSignature(
        positional=tuple(p.name for p in by_position),
        positional_only=sum(p.kind is kinds.POSITIONAL_ONLY for p in by_position),
        required=required,
        keyword_only=tuple(p.name for p in by_keyword),
        keyword_required=keyword_required,
        takes_any_positional=takes_any_positional,
        takes_any_keyword=any(p.kind is kinds.VAR_KEYWORD for p in parameters),
        # A required keyword makes every call without keywords wrong: no count is quickly right.
        quick_min=UNLIMITED + 1 if keyword_required else required,
        quick_max=most,
    )


def _count(signature: CallSignature, noun: str) -> str:
    least, most = signature.required, len(signature.positional)
    number = str(most) if least == most else f"from {least} to {most}"
    return f"{number} {noun}{'' if number == '1' else 's'}"
