"""The environment that a task or actor asks for: environment variables, and how they are inherited.

A worker's environment is its job's, then its parent's, then its own, the later one winning per
variable. What was asked for travels in one more variable, so that what a worker starts inherits
it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from skate_worker.setup_hook import SETUP_VARIABLE

EnvVars = tuple[tuple[str, str], ...]

INHERITED_VARIABLE: Final = "SKATE_RUNTIME_ENV"

_SUPPORTED: Final = ("env_vars",)


def check_runtime_env(value: object) -> EnvVars:
    """The variables of a ``runtime_env`` option, sorted by name.

    Raises:
        TypeError: not a dict, or variables that are not strings.
        ValueError: a field that this version does not support, or a name that can not be one.
    """
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise TypeError(f"runtime_env must be a dict, got {type(value).__name__}.")
    for field in value:
        if field not in _SUPPORTED:
            raise ValueError(
                f"runtime_env field {field!r} is not supported yet;"
                f" the supported fields are: {', '.join(_SUPPORTED)}."
            )
    env_vars = value.get("env_vars")
    if env_vars is None:
        return ()
    if not isinstance(env_vars, Mapping):
        raise TypeError(
            f"runtime_env['env_vars'] must be a dict of strings, got {type(env_vars).__name__}."
        )
    for name, content in env_vars.items():
        if not isinstance(name, str) or not isinstance(content, str):
            raise TypeError(
                f"runtime_env['env_vars'] maps strings to strings, got {name!r}: {content!r};"
                " write numbers as strings."
            )
        if not name or "=" in name or "\0" in name or "\0" in content:
            raise ValueError(f"runtime_env['env_vars'] has the impossible entry {name!r}.")
    return tuple(sorted(env_vars.items()))


def merge(base: EnvVars, own: EnvVars) -> EnvVars:
    """``own`` over ``base``, with the inherited variable made to tell both."""
    if not own:
        return base
    merged = {**dict(base), **dict(own)}
    merged.pop(INHERITED_VARIABLE, None)
    merged[INHERITED_VARIABLE] = json.dumps(merged, sort_keys=True)
    return tuple(sorted(merged.items()))


def inherited() -> EnvVars:
    """What this worker was started with; what it starts gets the same."""
    text = os.environ.get(INHERITED_VARIABLE)
    if not text:
        return ()
    values: dict[str, Any] = json.loads(text)
    return merge((), tuple(sorted(values.items())))


def as_runtime_env(env_vars: EnvVars) -> dict[str, Any]:
    """The option as a user would write it; empty when nothing was asked for."""
    own = (INHERITED_VARIABLE, SETUP_VARIABLE)
    plain = {name: value for name, value in env_vars if name not in own}
    return {"env_vars": plain} if plain else {}
