"""From what the user wrote to a GCS endpoint and its token."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from skate_cluster.exit_codes import FAILED, UNREACHABLE, CommandError
from skate_core_ids import SkateError
from skate_node.errors import ClusterNotFoundError
from skate_node.session import find_node
from skate_rpc.tokens import read_token_file

ADDRESS_VARIABLE = "SKATE_ADDRESS"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that can be called."""

    gcs_endpoint: str
    token: str = field(repr=False)


def chosen_address(address: str | None) -> str:
    """The option, else ``$SKATE_ADDRESS``, else ``auto``."""
    return address or os.environ.get(ADDRESS_VARIABLE) or "auto"


def find_cluster(address: str, token_file: str | None, temp_dir: str | None) -> Cluster:
    """The cluster at ``address``; its token from the file, else from a node of it on this machine.

    Raises ``CommandError``: status 3 when no such cluster is known here.
    """
    try:
        if token_file is not None and address != "auto":
            return Cluster(address, read_token_file(token_file))
        node = find_node(address, temp_dir)
        return Cluster(node.gcs_endpoint, read_token_file(token_file or node.token_path))
    except ClusterNotFoundError as error:
        if address != "auto":
            raise CommandError(
                f"No node of the cluster at {address} runs on this machine, so its token is not"
                " known here; give --token-file.",
                UNREACHABLE,
            ) from None
        raise CommandError(str(error), UNREACHABLE) from None
    except SkateError as error:
        raise CommandError(str(error), FAILED) from None
