"""``ActorGroup``: the same call on many actors of one class. Source: SURFACE U6."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from skate.actor import kill
from skate.decorators import remote


class ActorGroup:
    """``group.method.remote(...)`` calls the method of every actor; returns a list of references.

    ::

        group = ActorGroup(Worker, 4)
        skate.get(group.step.remote(1))  # four results, in the order of the actors
    """

    def __init__(
        self,
        actor_cls: type,
        num_actors: int = 1,
        num_cpus_per_actor: float = 1,
        num_gpus_per_actor: float = 0,
        resources_per_actor: dict[str, float] | None = None,
        init_args: tuple[Any, ...] | None = None,
        init_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Start ``num_actors`` actors of a plain class, each with these resources and arguments.

        Raises:
            ValueError: fewer than one actor, or an amount that can not be.
            TypeError: ``actor_cls`` is not a plain class.
        """
        if num_actors < 1:
            raise ValueError(f"num_actors must be at least 1, got {num_actors}.")
        if not isinstance(actor_cls, type):
            raise TypeError(f"ActorGroup takes a plain class, got {actor_cls!r}.")
        options: dict[str, Any] = {"num_cpus": num_cpus_per_actor, "num_gpus": num_gpus_per_actor}
        if resources_per_actor:
            options["resources"] = resources_per_actor
        self._name = actor_cls.__name__
        self._made: Any = remote(actor_cls).options(**options)
        self._arguments = (init_args or (), init_kwargs or {})
        self._actors: list[Any] = []
        self.add_actors(num_actors)

    def add_actors(self, num_actors: int) -> None:
        """Start more, with the arguments of the first."""
        args, kwargs = self._arguments
        self._actors += [self._made.remote(*args, **kwargs) for _ in range(num_actors)]

    def remove_actors(self, actor_indexes: list[int]) -> None:
        """Let these go; each ends after the calls that it has, unless another handle is left.

        Raises:
            IndexError: there is no such actor.
        """
        gone = {range(len(self._actors))[index] for index in actor_indexes}
        self._actors = [actor for at, actor in enumerate(self._actors) if at not in gone]

    def shutdown(self, patience_s: float = 5) -> None:
        """End all: after their calls within ``patience_s`` seconds; killed at once when it is 0."""
        actors, self._actors = self._actors, []
        if patience_s <= 0:
            for actor in actors:
                kill(actor)

    @property
    def actors(self) -> list[Any]:
        """Their handles."""
        return list(self._actors)

    def __len__(self) -> int:
        return len(self._actors)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.actors)

    def __getitem__(self, index: int) -> Any:
        return self._actors[index]

    def __getattr__(self, name: str) -> _GroupMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        if not self._actors:
            raise RuntimeError(f"This group of {self._name} has no actors any more.")
        return _GroupMethod([getattr(actor, name) for actor in self._actors])

    def __repr__(self) -> str:
        return f"ActorGroup({self._name}, {len(self._actors)} actors)"


class _GroupMethod:
    """A method of all actors of a group."""

    def __init__(self, methods: list[Any]) -> None:
        self._methods = methods

    def remote(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Call each with the same arguments; the references in the order of the actors."""
        return [method.remote(*args, **kwargs) for method in self._methods]
