"""``ActorClass``: what ``@skate.remote`` makes of a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from skate.actor_builtins import ExportedClass
from skate.actor_handle import ActorHandle
from skate.actor_state import (
    constructor_signature,
    describe_class,
    encode_state,
    is_async_class,
)
from skate.options import (
    DEFAULT_ASYNC_CONCURRENCY,
    Options,
    asks_for_resources,
    check_actor_combination,
    check_actor_options,
    placement_of,
    resources_of,
)
from skate.runtime_env import check_runtime_env, merge
from skate.session import base_env_vars, require_session
from skate.signature import CallSignature
from skate_worker.specs import ActorOptions

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker

T = TypeVar("T")


class ActorClassInheritanceError(TypeError):
    """A class was derived from an actor class."""


class ActorClass(Generic[T]):
    """A class whose instances are actors. Create one by :meth:`remote`."""

    def __init__(self, cls: type[T], options: Options) -> None:
        describe_class(cls, options)  # Wrong concurrency groups are told where they are written.
        self._set(_Exported(cls), options)

    def _set(self, exported: _Exported, options: Options) -> None:
        # These two are found on this class before `__getattr__` is asked.
        self.__doc__ = exported.cls.__doc__
        self.__module__ = exported.cls.__module__
        self._exported = exported
        self._options = options
        self._session: object = None
        self._class_id = b""
        self._actor_options = ActorOptions("")

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        """Create an actor; returns its handle at once, before the constructor has run.

        Raises:
            TypeError: the arguments do not fit the constructor, or can not be pickled.
            ActorAlreadyExistsError: the name is taken and ``get_if_exists`` is not set.
        """
        check_actor_combination(self._options)
        exported = self._exported
        exported.signature.check(exported.cls.__name__, args, kwargs)
        core = require_session()
        if core.binding is not self._session:
            self._bind(core)
        options = self._actor_options
        actor_id, _, keeper = core.create_actor(self._class_id, args, kwargs, options)
        return ActorHandle(core, actor_id, options.handle_state, keeper)

    def options(self, **options: Any) -> ActorClass[T]:
        """The same class with other options; this one stays as it is.

        Raises:
            TypeError, ValueError: an option that does not exist or has a wrong value.
        """
        checked = check_actor_options(options, is_decoration=False)
        made: ActorClass[T] = ActorClass.__new__(ActorClass)
        made._set(self._exported, {**self._options, **checked})
        return made

    def _remote(
        self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any
    ) -> ActorHandle[T]:
        target = self.options(**options) if options else self
        return target.remote(*args, **(kwargs or {}))

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: the class only makes actors, by :meth:`remote`."""
        name = self._exported.cls.__name__
        raise TypeError(
            f"The actor class {name} can not be instantiated directly: instead of {name}(...),"
            f" write {name}.remote(...)."
        )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        name = self._exported.cls.__name__
        raise ActorClassInheritanceError(
            f"The actor class {name} can not be a base class; derive from the plain class, and"
            " decorate each class that is to be an actor."
        )

    def __getattr__(self, name: str) -> Any:
        # Class attributes and static methods; also __name__, __doc__ and the like.
        exported = self.__dict__.get("_exported")
        if exported is None:  # While it is being unpickled.
            raise AttributeError(name)
        return getattr(exported.cls, name)

    def __repr__(self) -> str:
        return f"ActorClass({self._exported.cls.__name__})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (), (self._exported.cls, self._options)

    def __setstate__(self, state: tuple[type[T], Options]) -> None:
        # In a class that refers to its own actor class this runs before the class is filled.
        self._set(_Exported(state[0]), state[1])

    def _bind(self, core: CoreWorker) -> None:
        self._class_id = self._exported.id_in(core)
        self._actor_options = _actor_options(self._exported.cls, self._options, core)
        self._session = core.binding


class _Exported:
    """A class, what its constructor takes, and its id in the latest session that used it."""

    __slots__ = ("_id", "_session", "_signature", "cls")

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self._signature: CallSignature | None = None
        self._session: object = None
        self._id = b""

    @property
    def signature(self) -> CallSignature:
        """What the constructor takes."""
        if self._signature is None:
            self._signature = constructor_signature(self.cls)
        return self._signature

    def id_in(self, core: CoreWorker) -> bytes:
        """The id in this session; pickles and stores the class on first use there."""
        if self._session is not core.worker_id:
            self._id = core.export(ExportedClass(self.cls))
            self._session = core.worker_id
        return self._id


def _blank() -> ActorClass[Any]:
    return ActorClass.__new__(ActorClass)


def _actor_options(cls: type, options: Options, core: CoreWorker) -> ActorOptions:
    is_async = is_async_class(cls)
    placement = resources_of(options, default_cpus=1)
    return ActorOptions(
        class_name=cls.__name__,
        name=options.get("name", ""),
        namespace=options.get("namespace", ""),
        is_detached=options.get("lifetime") == "detached",
        get_if_exists=options.get("get_if_exists", False),
        max_restarts=options.get("max_restarts", 0),
        max_task_retries=options.get("max_task_retries", 0),
        max_concurrency=options.get(
            "max_concurrency", DEFAULT_ASYNC_CONCURRENCY if is_async else 1
        ),
        is_async=is_async,
        concurrency_groups=tuple(options.get("concurrency_groups", {}).items()),
        placement_resources=placement,
        # One CPU to be placed and none to live, unless the user said what it needs (SURFACE A4).
        running_resources=placement if asks_for_resources(options) else (),
        env_vars=merge(base_env_vars(), check_runtime_env(options.get("runtime_env"))),
        handle_state=encode_state(describe_class(cls, options)),
        strategy=placement_of(options, core, placement, f"The actor {cls.__name__}"),
    )
