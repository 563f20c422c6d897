"""One node: its launcher, its daemon, its session folder. Loads the standard library only."""

from __future__ import annotations

from skate_node.daemon_process import ExitStatus
from skate_node.errors import ClusterNotFoundError, NodeStartError, SessionRootError
from skate_node.launcher import RunningNode, start_node
from skate_node.options import NodeOptions
from skate_node.session import NodeRecord, find_node, live_nodes, sweep_dead_sessions

__all__ = [
    "ClusterNotFoundError",
    "ExitStatus",
    "NodeOptions",
    "NodeRecord",
    "NodeStartError",
    "RunningNode",
    "SessionRootError",
    "find_node",
    "live_nodes",
    "start_node",
    "sweep_dead_sessions",
]
