"""What a node is asked to be, checked before any process is started.

Standard library only, but for the check of labels, which is loaded when there are any.

The launcher writes these options as JSON to the daemon's standard input; nothing of them is in its
arguments or environment.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

MINIMUM_OBJECT_STORE_BYTES = 75 * 1024 * 1024
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_REDIS_SCHEMES = ("redis", "rediss", "redis+unix")
_RESERVED_RESOURCES = {
    "CPU": "num_cpus",
    "GPU": "num_gpus",
    "object_store_memory": "object_store_memory",
}


@dataclass(frozen=True)
class NodeOptions:
    """How to start a node. Raises ``ValueError`` or ``TypeError`` naming the option at fault.

    The defaults are those of ``skate.init()``: a cluster of one node that belongs to this process,
    speaks over Unix sockets alone, keeps its tables in memory and goes when the process goes.
    """

    is_head: bool = True
    """Run the GCS here. False joins the cluster at ``gcs_address``."""
    gcs_address: str | None = None
    """``host:port`` or ``unix:/path`` of the GCS to join; None on a head."""
    token: str | None = field(default=None, repr=False)
    """The cluster's token; None on a head makes a new one."""

    num_cpus: float | None = None
    """None: as many as this process may use (affinity and cgroup quota)."""
    num_gpus: float | None = None
    """None: those that the driver shows, limited by ``CUDA_VISIBLE_DEVICES``."""
    memory: int | None = None
    """Bytes that tasks may ask for; None: 70 % of what is available."""
    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources by name. ``CPU`` and ``GPU`` have options of their own."""
    labels: dict[str, str] = field(default_factory=dict)
    """Facts about the node for people and policies; the node adds ``ray.io/node-id`` itself."""
    object_store_memory: int | None = None
    """Bytes of the object store, at least 75 MiB; None: 30 % of what is available."""
    spill_dir: str | None = None
    """Where objects go when the store is full: an absolute path, or a URL that ``fsspec`` knows.
    None: ``spill/`` in the session folder, which goes with the session."""

    host: str | None = None
    """Address to listen on. None: Unix sockets only, or 127.0.0.1 when ``port`` is given."""
    port: int | None = None
    """TCP port of the GCS (head). 0 takes a free one; None: a Unix socket."""
    metrics_port: int | None = 0
    """Port of ``GET /metrics``. 0 takes a free one; None: no endpoint, nothing listens."""
    api_ports: tuple[int, ...] = ()
    """Of the API server on a head: the first that is free is taken, 0 is any; empty: none."""
    api_host: str | None = None
    """Address that the API server listens on. None: 127.0.0.1."""
    api_command: tuple[str, ...] = ()
    """Arguments of the Python interpreter that start the API server."""

    storage: str | None = field(default=None, repr=False)
    """``memory``, ``sqlite:/path`` or a ``redis://`` URL (``skate_gcs.storage.redis_url``). None:
    memory with a lifeline, else in the session folder."""
    temp_dir: str | None = None
    """Where session folders go. None: ``$SKATE_TMPDIR``, ``$TMPDIR`` or ``/tmp``."""
    node_name: str = ""
    """For people. Empty: the host's name."""

    is_tracing: bool = False
    """Workers and drivers report task events; the daemon turns them into spans."""
    lifeline: bool = True
    """The node ends when the starting process ends, however it ends."""
    keep_logs: bool = False
    """Leave ``logs/`` behind at a stop, for people; a later start deletes the oldest."""
    workers_max: int | None = None
    infeasible_timeout_s: float | None = None
    """Tasks of this node's processes that no node can ever hold fail after so many seconds.
    None: they wait for a node that can, and their author is told after ten seconds."""
    """Hard limit of worker processes on the node. None: the raylet's default."""
    gcs_reconnect_s: float = 60.0
    """A GCS that has not answered for this long is given up, and the node ends."""

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus"):
            _check_quantity(name, getattr(self, name))
        timeout_s: Any = self.infeasible_timeout_s
        if timeout_s is not None and not (
            isinstance(timeout_s, int | float) and 0 <= timeout_s < math.inf
        ):
            raise ValueError(f"infeasible_timeout_s must be seconds or None, got {timeout_s!r}.")
        for name in ("memory", "object_store_memory"):
            _check_bytes(name, getattr(self, name))
        for name in ("port", "metrics_port"):
            _check_port(name, getattr(self, name))
        for port in self.api_ports:
            _check_port("api_ports", port)
        if (self.object_store_memory or MINIMUM_OBJECT_STORE_BYTES) < MINIMUM_OBJECT_STORE_BYTES:
            raise ValueError(
                f"object_store_memory must be at least {MINIMUM_OBJECT_STORE_BYTES} bytes (75 MiB),"
                f" got {self.object_store_memory}."
            )
        if not 0 < self.gcs_reconnect_s < math.inf:
            raise ValueError(
                f"gcs_reconnect_s must be positive and finite, got {self.gcs_reconnect_s}."
            )
        for resource, quantity in self.resources.items():
            _check_resource(resource, quantity)
        if self.labels:
            _check_labels(self.labels)
        spill_dir = self.spill_dir
        if not isinstance(spill_dir, str | None):
            raise TypeError(f"spill_dir must be a string, got {type(spill_dir).__name__}.")
        if spill_dir is not None and not (spill_dir.startswith("/") or "://" in spill_dir):
            raise ValueError(f"spill_dir must be an absolute path or a URL, got {spill_dir!r}.")
        self._check_role()

    def _check_role(self) -> None:
        if self.is_head and self.gcs_address is not None:
            raise ValueError("A head node has no gcs_address: it is the GCS.")
        if self.api_ports and not (self.is_head and self.api_command):
            raise ValueError("The API server belongs to a head, and needs its api_command.")
        if not self.is_head and not self.gcs_address:
            raise ValueError("A node that joins needs the gcs_address of its cluster.")
        if not self.is_head and not self.token:
            raise ValueError("A node that joins needs the token of its cluster.")
        if self.token is not None and not self.token.strip():
            raise ValueError("The token is empty; a cluster without a token does not start.")
        if self.storage is not None and self.storage != "memory":
            kind, _, path = self.storage.partition(":")
            if not (kind == "sqlite" and path.startswith("/")) and not (
                kind in _REDIS_SCHEMES and path.startswith("//")
            ):
                # It may hold a password, so it is not repeated.
                raise ValueError(
                    "storage must be 'memory', 'sqlite:/absolute/path' or 'redis://host:port/db'"
                    f" (or rediss://, redis+unix:///path); it begins with {kind!r}."
                )

    def to_json(self) -> dict[str, Any]:
        """The options as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NodeOptions:
        """The options from :meth:`to_json`. Raises ``TypeError`` for an unknown name."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})  # JSON knows no tuples


def parse_resources(text: str) -> dict[str, float]:
    """Custom resources from a JSON object. Raises ``ValueError`` with what is wrong."""
    return {name: float(value) for name, value in _parse_object("resources", text).items()}


def parse_labels(text: str) -> dict[str, str]:
    """Labels from a JSON object or from ``key=value,key=value``. Raises ``ValueError``."""
    if text.lstrip().startswith("{"):
        return {name: str(value) for name, value in _parse_object("labels", text).items()}
    labels: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        key, separator, value = item.partition("=")
        if not separator or not key.strip():
            raise ValueError(f"labels takes key=value pairs, got {item!r}.")
        labels[key.strip()] = value.strip()
    return labels


def _parse_object(name: str, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{name} must be a JSON object such as '{{\"name\": 1}}', got {text}.")
    for key, value in values.items():
        if name == "resources" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"resources maps names to numbers, got {key!r}: {value!r}.")
    return values


def _check_quantity(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}.")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number that is not negative, got {value}.")
    units = value * 10_000
    if abs(units - round(units)) > 1e-6 * max(1.0, units):
        raise ValueError(f"{name} has a granularity of 0.0001, got {value}.")


def _check_resource(resource: object, quantity: object) -> None:
    if not isinstance(resource, str) or not resource:
        raise TypeError(f"resources maps names to numbers, got the name {resource!r}.")
    if resource in _RESERVED_RESOURCES or resource == "memory":
        option = _RESERVED_RESOURCES.get(resource, "memory")
        raise ValueError(f"Give {resource!r} by the option {option}, not inside resources.")
    if resource.startswith("node:"):
        raise ValueError(f"resources can not hold {resource!r}: the node makes it itself.")
    _check_quantity(f"resources[{resource!r}]", quantity)


def _check_labels(labels: dict[Any, Any]) -> None:
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"labels maps strings to strings, got {key!r}: {value!r}.")
    # Late: a driver's start waits for what is imported, and few nodes are given labels.
    from skate_scheduler import LabelError, check_labels  # noqa: PLC0415

    try:
        check_labels(labels)
    except LabelError as error:
        raise ValueError(f"labels: {error}") from None


def _check_bytes(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number of bytes, got {type(value).__name__}.")
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}.")


def _check_port(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}.")
    if not 0 <= value <= 65535:
        raise ValueError(f"{name} must lie between 0 and 65535, got {value}.")
