"""The GCS's settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from skate_gcs.machine.limits import GcsLimits


@dataclass(frozen=True, slots=True)
class GcsConfig:
    """What a GCS needs to know at its start."""

    endpoint: str
    """Where to listen: ``unix:/path`` or ``host:port``; port 0 takes any free one."""

    token: str | None
    """The cluster's token; None only for a private or loopback endpoint."""

    storage: str = "memory"
    """``memory`` (gone with the process), ``sqlite:/path`` (survives it), or a ``redis://`` URL
    (survives its machine; see ``skate_gcs.storage.redis_url``)."""

    advertised_host: str = ""
    """The address by which other machines call it; empty: as it is bound. Nodes that knew it
    elsewhere are told."""

    holder: str = ""
    """This GCS's name to others that may use the same ``redis`` storage. One of the same name is
    taken for dead and superseded at once; empty: a name that nobody else has."""

    storage_wait_s: float = 60.0
    """How long a ``redis`` server may be away when the GCS starts. Later it is 60 s."""

    cluster_id: str = ""
    """Empty: the stored one, or a fresh one for an empty storage. Otherwise it must be the stored
    one."""

    limits: GcsLimits = field(default_factory=GcsLimits)
    """Times and counts of the tables."""

    node_call_timeout_s: float = 5.0
    """How long a node may take to answer an order before it is repeated. Half of the silence after
    which it is dead, so that an unanswered order is repeated at least once."""

    node_calls_max: int = 64
    """Orders to one node that are under way at a time; more wait their turn."""

    subscriber_events_max: int = 10_000
    """Events that wait for one subscriber; a slower one is cut off and takes a new snapshot."""

    requests_max: int = 10_000
    """Requests that wait to be handled; more are refused as UNAVAILABLE, which clients retry."""
