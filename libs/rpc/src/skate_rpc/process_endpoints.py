"""Where a process listens for the task plane, and by which of its endpoints a peer calls it.

A process always listens on a Unix socket. On a node that other machines know by an address of its
own it listens on TCP at that address too, and its endpoint names both::

    unix:/session/sockets/p-1f.sock
    unix:/session/sockets/p-1f.sock,tcp:10.0.0.7:40123

Whoever has the same address is on the same machine and takes the Unix socket. Standard library
only: every worker loads this.
"""

from __future__ import annotations

from typing import Final

LOOPBACK: Final = "127.0.0.1"
# Addresses by which every machine calls itself: a node known by one has no peers elsewhere.
_LOCAL_ONLY: Final = (LOOPBACK, "::1", "localhost")
_TCP: Final = ",tcp:"


def listens_on_tcp(ip_address: str) -> bool:
    """Whether processes of a node with this address can be called from other machines."""
    return ip_address not in _LOCAL_ONLY


def tcp_endpoint(ip_address: str, port: int) -> str:
    """``"tcp:10.0.0.7:40123"``; an IPv6 address goes in brackets."""
    host = f"[{ip_address}]" if ":" in ip_address else ip_address
    return f"tcp:{host}:{port}"


def with_tcp(unix_endpoint: str, tcp: str) -> str:
    """The endpoint of a process that listens on both."""
    return f"{unix_endpoint},{tcp}"


def choose_endpoint(endpoint: str, own_ip: str) -> str:
    """The part of a process's endpoint by which a process at ``own_ip`` calls it."""
    unix, separator, tcp = endpoint.rpartition(_TCP)
    if not separator:
        return endpoint
    host = tcp.rpartition(":")[0].removeprefix("[").removesuffix("]")
    return unix if host == own_ip else f"tcp:{tcp}"
