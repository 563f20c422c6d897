"""``ActorHandle`` and ``ActorMethod``: how a process speaks to an actor.

A strong handle holds the actor's *keeper*, a reference that stands for the actor: while anyone
anywhere holds it, the actor lives. A handle from ``get_actor`` has none and keeps nothing alive.
"""

# ruff: noqa: SLF001 - a handle hides its fields, because its attributes are the actor's methods.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from skate.actor_state import ActorState, MethodSpec, check_group, decode_state
from skate.options import check_call_options, is_single
from skate_core_ids import ActorID
from skate_rpc.wait_report import TIMEOUT_S, Explanation
from skate_worker.current import current_core, require_core
from skate_worker.errors import ActorHandleNotFoundError

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker
    from skate_worker.object_ref import ObjectRef

T = TypeVar("T")


class ActorHandle(Generic[T]):
    """A hold on an actor. ``handle.method.remote(...)`` calls it; hashable; picklable."""

    __slots__ = ("__weakref__", "_actor_id", "_core", "_keeper", "_state", "_state_bytes")

    def __init__(
        self,
        core: CoreWorker,
        actor_id: ActorID,
        state_bytes: bytes,
        keeper: ObjectRef[Any] | None,
    ) -> None:
        self._core = core
        self._actor_id = actor_id
        self._state_bytes = state_bytes
        self._state: ActorState = decode_state(state_bytes)
        self._keeper = keeper

    def __getattr__(self, name: str) -> Any:
        try:
            return ActorMethod(self, self._state.methods[name])
        except KeyError:
            if name == "why":  # not a method of this class, which an actor's own would be hidden by
                return self._why
            raise AttributeError(
                f"The actor {self._state.class_name} has no method {name!r}."
            ) from None

    def _why(self, timeout: float = TIMEOUT_S) -> Explanation:
        """``handle.why()``, unless the actor has a method of that name: what it does or waits for.

        As :meth:`ObjectRef.why`; raises what that raises.
        """
        found = self._live_core().why(self._actor_id.hex(), timeout)
        if found:
            return found[0]
        text = "The GCS knows no such actor: its registration is under way."
        return Explanation(f"actor {self._actor_id.hex()}", "actor", "", (text,))

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self._state.methods})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActorHandle):
            return NotImplemented
        return self._actor_id == other._actor_id

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __repr__(self) -> str:
        return f"Actor({self._state.class_name}, {self._actor_id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The pickler meets the keeper and counts it for the value that contains this handle.
        return _rebuild, (bytes(self._actor_id), self._state_bytes, self._keeper)

    def _live_core(self) -> CoreWorker:
        """The session of this handle. Raises ``ActorHandleNotFoundError`` when it has ended."""
        if self._core is not current_core():
            raise ActorHandleNotFoundError(
                f"{self!r} belongs to a session that has ended; create the actor again, or look"
                " it up by name with skate.get_actor()."
            )
        return self._core


class ActorMethod:
    """A method of one actor, called by :meth:`remote`."""

    __slots__ = ("_handle", "_spec")

    def __init__(self, handle: ActorHandle[Any], spec: MethodSpec) -> None:
        # Strong, so that `Class.remote().method.remote()` keeps its actor.
        self._handle = handle
        self._spec = spec

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method; returns a reference to its result at once, as of tasks, and an
        ``ObjectRefGenerator`` for a method that yields.

        Raises:
            TypeError: the arguments do not fit the method, or can not be pickled.
            ActorHandleNotFoundError: the session of the handle has ended.
        """
        handle = self._handle
        spec = self._spec
        signature = spec.signature
        if kwargs or not signature.quick_min <= len(args) <= signature.quick_max:
            signature.check(spec.options.name, args, kwargs)
        core = handle._core
        if core is not current_core():
            core = handle._live_core()
        options = spec.options
        refs = core.submit_actor_task(handle._actor_id, args, kwargs, options)
        if options.num_returns == 1 or is_single(options.num_returns):
            return refs[0]
        return refs or None  # A list by the caller's own wish.

    def options(self, **options: Any) -> ActorMethod:
        """The same method with other options for the next call.

        Raises:
            TypeError, ValueError: an option that does not exist or has a wrong value.
        """
        checked = check_call_options(options)
        state = self._handle._state
        check_group(
            state.class_name, checked.get("concurrency_group", ""), state.concurrency_groups
        )
        return ActorMethod(self._handle, self._spec.with_options(checked))

    def _remote(
        self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        target = self.options(**options) if options else self
        return target.remote(*args, **(kwargs or {}))

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: a method of an actor is only called by :meth:`remote`."""
        name = self._spec.options.method
        raise TypeError(
            f"The actor method {self._spec.options.name} can not be called directly: instead of"
            f" handle.{name}(...), write handle.{name}.remote(...)."
        )

    def __repr__(self) -> str:
        return f"ActorMethod({self._spec.options.name}, {self._handle._actor_id.hex()})"


def _rebuild(
    actor_id: bytes, state_bytes: bytes, keeper: ObjectRef[Any] | None
) -> ActorHandle[Any]:
    return ActorHandle(require_core(), ActorID(actor_id), state_bytes, keeper)
