"""Where a node's servers listen, decided from its options before anything is opened.

A cluster that lives with its driver uses Unix sockets alone. One that others may join listens on
TCP: the GCS where the options say, the raylet on a free port of an address that other nodes can
call.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from skate_node.options import LOOPBACK_HOSTS, NodeOptions

_WILDCARDS = ("0.0.0.0", "::", "[::]")  # Compared with, not bound.
_LOOPBACK = "127.0.0.1"
_DOCUMENTATION_ADDRESS = "192.0.2.1"  # RFC 5737; a UDP "connect" to it sends nothing.


@dataclass(frozen=True, slots=True)
class NodeEndpoints:
    """Addresses to bind: ``unix:/path`` or ``host:port``."""

    gcs: str
    """The GCS of a head; for others the address of the GCS to call."""
    raylet: str
    stream: str
    metrics_host: str
    ip_address: str


def plan_endpoints(options: NodeOptions, session_dir: str) -> NodeEndpoints:
    """The endpoints of a node with these options."""
    sockets = os.path.join(session_dir, "sockets")
    gcs = options.gcs_address or f"unix:{sockets}/gcs.sock"
    stream = f"unix:{sockets}/node.sock"
    if options.is_head and options.port is not None:
        gcs = _join(options.host or _LOOPBACK, options.port)
    if gcs.startswith("unix:"):
        return NodeEndpoints(gcs, f"unix:{sockets}/raylet.sock", stream, _LOOPBACK, _LOOPBACK)
    ip_address = _own_address(options.host, gcs)
    bind_host = options.host if options.host and not options.is_head else ip_address
    if bind_host in _WILDCARDS:
        bind_host = ip_address
    return NodeEndpoints(gcs, _join(bind_host, 0), stream, ip_address, ip_address)


def reachable_from_here(bound: str) -> str:
    """How this machine calls a server bound to ``bound``: a wildcard is called on loopback."""
    host, _, port = bound.rpartition(":")
    if host == "0.0.0.0":
        return f"{_LOOPBACK}:{port}"
    return f"[::1]:{port}" if host in ("::", "[::]") else bound


def _own_address(host: str | None, gcs: str) -> str:
    """The address by which others know this node."""
    if host and host not in _WILDCARDS:
        return _LOOPBACK if host in LOOPBACK_HOSTS else _numeric(host)
    gcs_host = gcs.rpartition(":")[0].strip("[]")
    if gcs_host in LOOPBACK_HOSTS:
        return _LOOPBACK
    return _outgoing_address(_DOCUMENTATION_ADDRESS if gcs_host in _WILDCARDS else gcs_host)


def _numeric(host: str) -> str:
    """The address that a name stands for: peers compare addresses. A name of nothing stays."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return host  # what listens there says better what is wrong
    return str(found[0][4][0])


def _outgoing_address(peer: str) -> str:
    """This machine's address on the way to ``peer``; loopback when there is no way."""
    try:
        family, _, _, _, address = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return _LOOPBACK


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
