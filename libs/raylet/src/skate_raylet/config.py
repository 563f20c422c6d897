"""What a raylet needs to know at its start. Only the apps read environment variables."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from skate_object_store import SpillConfig
from skate_scheduler import UNITS

PULL_BYTES_MAX_DEFAULT = 2 << 30
PULL_SHARE_OF_STORE = 0.3
WORKERS_MAX_DEFAULT = 1024
STARTS_MIN = 4
GCS_RECONNECT_S = 60.0  # SURFACE 3.3
GCS_CALL_SHARE = 0.9  # of that: who asked hears of it before the node ends
STARTS_PER_CPU = 2


@dataclass(frozen=True, slots=True)
class RayletConfig:
    """One node's settings. Endpoints are ``unix:/path`` or ``host:port``; amounts are in units."""

    node_id: bytes
    session_dir: str  # holds sockets/ and logs/, which exist
    token: str = field(repr=False)
    gcs_endpoint: str
    stream_endpoint: str  # for this node's workers and drivers: "unix:/path"
    grpc_endpoint: str  # for the GCS and the command line; port 0 takes a free one
    resources: Mapping[str, int]
    store_capacity_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)
    is_head: bool = False
    ip_address: str = "127.0.0.1"
    node_name: str = ""
    metrics_endpoint: str = ""
    is_tracing: bool = False
    # The program that workers are forked from; the number of its control descriptor is appended.
    zygote_command: tuple[str, ...] = (sys.executable, "-m", "skate_worker.zygote")
    # Imported by the zygote where installed, so that workers have them without importing.
    preload: tuple[str, ...] = ("cloudpickle", "skate")
    # File mode mask of user code; None: the daemon's.
    worker_umask: int | None = None
    # Worker processes of the node, whatever they do; never exceeded.
    workers_max: int = WORKERS_MAX_DEFAULT
    # Idle workers kept while no more task workers than this run; None: the whole CPUs, at least 1.
    workers_soft_limit: int | None = None
    # Processes starting at once; None: two a CPU, at least four.
    starts_max: int | None = None
    # A task that no node can ever hold fails after this; None: it waits for one that can.
    infeasible_grace_s: float | None = None
    # A GCS that has not answered for this long is given up, and the node ends.
    gcs_reconnect_s: float = GCS_RECONNECT_S
    # Where the object store spills to when memory is short; the default: nowhere.
    spill: SpillConfig = field(default_factory=SpillConfig)
    # Where other nodes fetch objects: "unix:/path" or "tcp:ip:port"; empty: by the node's address.
    object_endpoint: str = ""
    # Sizes of the objects under way to this node; None: 2 GiB, or 30 % of a smaller store.
    pull_bytes_max: int | None = None
    # Bytes of exported functions kept at the node, least recently used dropped first.
    function_cache_bytes: int = 256 << 20

    @property
    def soft_limit(self) -> int:
        """``workers_soft_limit`` or its default."""
        if self.workers_soft_limit is not None:
            return self.workers_soft_limit
        return max(1, self.resources.get("CPU", 0) // UNITS)

    @property
    def start_limit(self) -> int:
        """``starts_max`` or its default."""
        if self.starts_max is not None:
            return self.starts_max
        return max(STARTS_MIN, STARTS_PER_CPU * self.resources.get("CPU", 0) // UNITS)

    @property
    def object_listen_endpoint(self) -> str:
        """``object_endpoint`` or its default: a Unix socket where no other machine can be met."""
        if self.object_endpoint:
            return self.object_endpoint
        address = ipaddress.ip_address(self.ip_address)
        if address.is_loopback:
            return f"unix:{os.path.join(self.session_dir, 'sockets', 'objects.sock')}"
        host = f"[{address}]" if address.version == 6 else str(address)
        return f"tcp:{host}:0"

    @property
    def pull_limit_bytes(self) -> int:
        """``pull_bytes_max`` or its default."""
        if self.pull_bytes_max is not None:
            return self.pull_bytes_max
        return min(PULL_BYTES_MAX_DEFAULT, int(PULL_SHARE_OF_STORE * self.store_capacity_bytes))
