"""Where a cluster's API server is, and the token it asks for."""

from __future__ import annotations

import os
import urllib.parse
from dataclasses import dataclass, field
from typing import Final

from skate_node.endpoints import reachable_from_here
from skate_node.errors import ApiServerNotFoundError
from skate_node.session import NodeRecord, find_node, live_nodes
from skate_rpc.tokens import read_token_file

API_ADDRESS_VARIABLE: Final = "SKATE_API_SERVER_ADDRESS"
CLUSTER_VARIABLE: Final = "SKATE_ADDRESS"
TOKEN_FILE_VARIABLE: Final = "SKATE_TOKEN_FILE"


@dataclass(frozen=True, slots=True)
class ApiAddress:
    """An API server that can be called."""

    url: str
    """``http://host:port``."""
    token: str = field(repr=False)
    """Empty: not known here."""


def find_api_server(
    address: str | None = None, token_file: str | None = None, temp_dir: str | None = None
) -> ApiAddress:
    """The API server at ``address``: ``http://host:port``, or a cluster of this machine.

    None: ``$SKATE_API_SERVER_ADDRESS``, else ``$SKATE_ADDRESS``, else ``auto``. The token is the
    file's, else that of ``$SKATE_TOKEN_FILE``, else the one of the head that runs here.

    Raises:
        ApiServerNotFoundError: the cluster has none that is known here.
        ClusterNotFoundError: there is no such cluster here.
    """
    chosen = (
        address
        or os.environ.get(API_ADDRESS_VARIABLE)
        or os.environ.get(CLUSTER_VARIABLE)
        or "auto"
    )
    token_file = token_file or os.environ.get(TOKEN_FILE_VARIABLE) or None
    if chosen.startswith(("http://", "https://")):
        head = _head_that_serves(chosen, temp_dir)
    else:
        head = _head_of(find_node(chosen, temp_dir), temp_dir)
        chosen = f"http://{reachable_from_here(head.api_endpoint)}"
    if token_file is not None:
        return ApiAddress(chosen, read_token_file(token_file))
    return ApiAddress(chosen, "" if head is None else read_token_file(head.token_path))


def _head_of(node: NodeRecord, temp_dir: str | None) -> NodeRecord:
    """The head of the node's cluster, with its API server. Raises ``ApiServerNotFoundError``."""
    alike = [one for one in live_nodes(temp_dir) if one.gcs_endpoint == node.gcs_endpoint]
    for one in [node, *alike]:
        if one.api_endpoint:
            return one
    raise ApiServerNotFoundError(node.gcs_endpoint, any(one.is_head for one in alike))


def _head_that_serves(url: str, temp_dir: str | None) -> NodeRecord | None:
    """The head of this machine behind an address; None when another machine's is meant."""
    host, port = urllib.parse.urlsplit(url).hostname, urllib.parse.urlsplit(url).port
    wanted = f"{'127.0.0.1' if host == 'localhost' else host}:{port}"
    for node in live_nodes(temp_dir):
        here = {node.api_endpoint, reachable_from_here(node.api_endpoint)}
        by_address = f"{node.ip_address}:{node.api_endpoint.rpartition(':')[2]}"
        if node.api_endpoint and wanted in here | {by_address}:
            return node
    return None
