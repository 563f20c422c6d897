"""Where this process is. Source: SURFACE U6."""

from __future__ import annotations

from skate.session import require_session
from skate_worker.current import current_core


def get_node_ip_address(address: str | None = None) -> str:
    """The address of this node: the one that its processes are reached at.

    ``address`` is accepted for Ray's sake; the session knows its own.
    """
    return (current_core() or require_session()).ip
