"""Actors: the classes behind handles, finding one by name, ending one from outside or inside."""

from __future__ import annotations

from typing import Annotated, Any, NoReturn, TypeVar

from skate.actor_class import ActorClass, ActorClassInheritanceError
from skate.actor_handle import ActorHandle, ActorMethod
from skate.session import require_session
from skate_core_ids import ActorID

ActorClassInheritanceException = ActorClassInheritanceError

__all__ = [
    "ActorClass",
    "ActorClassInheritanceError",
    "ActorClassInheritanceException",
    "ActorHandle",
    "ActorMethod",
    "ActorProxy",
    "exit_actor",
    "get_actor",
    "kill",
    "typed",
]

T = TypeVar("T")

ActorProxy = Annotated[T, "the handle of an actor of this class"]
"""How a handle is annotated whose methods are to be known: a type checker sees the class itself."""


def typed(handle: ActorHandle[T]) -> T:
    """The handle itself, which a type checker then takes for an instance of its class.

    Of methods that ``@skate.method`` decorates, ``.remote(...)`` is then checked, and gives
    ``ObjectRef`` of what they return::

        class Counter:
            @skate.method
            def add(self, amount: int) -> int: ...


        counter = typed(skate.remote(Counter).remote())
        total = counter.add.remote(2)  # ObjectRef[int]
    """
    return handle  # type: ignore[return-value]  # what it is for


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """A weak handle to the live actor of this name: it does not keep the actor alive.

    ``namespace`` is the session's own by default.

    Raises:
        TypeError: a name or namespace that is not a string.
        ValueError: an empty name or namespace, or no such actor.
    """
    for label, text in (("name", name), ("namespace", namespace)):
        if label == "namespace" and text is None:
            continue
        if not isinstance(text, str):
            raise TypeError(f"An actor's {label} is a string, got {type(text).__name__}.")
        if not text:
            raise ValueError(f"An actor's {label} must not be empty.")
    core = require_session()
    found = core.named_actor(name, namespace or "")
    if found is None:
        raise ValueError(
            f"Failed to look up actor with name {name!r} in namespace"
            f" {namespace or core.namespace!r}: it was never created, has died, or is in another"
            " namespace."
        )
    return ActorHandle(core, ActorID(found.actor_id), found.handle_state, None)


def kill(actor: ActorHandle[Any], *, no_restart: bool = True) -> None:
    """Kill an actor at once, without running its exit hooks; ``no_restart=False`` lets it restart.

    Pending and later calls fail with ``ActorDiedError``. An actor that is dead stays dead.

    Raises:
        ValueError: not an actor's handle.
        ActorHandleNotFoundError: the session of the handle has ended.
    """
    if not isinstance(actor, ActorHandle):
        raise ValueError(
            f"kill() takes the handle of an actor, got {type(actor).__name__};"
            " use cancel() for a task."
        )
    actor._live_core().kill_actor(actor._actor_id, no_restart)  # noqa: SLF001 - the same package


def exit_actor() -> NoReturn:
    """End the actor that runs this, after the present call; its caller gets ``ActorDiedError``.

    It is no failure: the actor is not restarted, and its exit hooks run.

    Raises:
        TypeError: called outside an actor.
    """
    core = require_session()
    if not core.current.actor_id:
        raise TypeError("exit_actor() can only be called inside an actor.")
    core.exit_actor("exit_actor() was called")
    raise AssertionError("exit_actor() returned")
