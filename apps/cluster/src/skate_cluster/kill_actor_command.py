"""``skate kill-actor``: end an actor by its name or id."""

from __future__ import annotations

import asyncio
import re

import click

from skate_cluster.addresses import Cluster, chosen_address, find_cluster
from skate_cluster.connections import gcs_at
from skate_cluster.exit_codes import NOT_FOUND, USAGE, CommandError
from skate_cluster.failed_calls import explained
from skate_cluster.shared_options import which_cluster
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2

_ID_DIGITS_MIN = 6


@click.command(name="kill-actor", short_help="End an actor.")
@click.option("--name", help="The actor's name.")
@click.option("--namespace", default="", help="The namespace of the name.  [default: any]")
@click.option("--id", "id_", help="The actor's id, or the beginning of it.")
@click.option(
    "--no-restart/--restart",
    default=True,
    show_default=True,
    help="Whether it is gone for good, or starts again as its max_restarts allow.",
)
@which_cluster
@click.option("--timeout", type=click.FloatRange(min=0.1), default=10.0, show_default=True)
def command(
    name: str | None,
    namespace: str,
    id_: str | None,
    no_restart: bool,
    address: str | None,
    token_file: str | None,
    temp_dir: str | None,
    timeout: float,
) -> None:
    """End an actor: its process is killed, and calls that wait for it fail with that cause."""
    if (name is None) == (id_ is None):
        raise CommandError("Give either --name or --id of the actor.", USAGE)
    if id_ is not None and re.fullmatch(f"[0-9a-fA-F]{{{_ID_DIGITS_MIN},}}", id_) is None:
        raise CommandError(f"--id needs at least {_ID_DIGITS_MIN} hex digits.", USAGE)
    cluster = find_cluster(chosen_address(address), token_file, temp_dir)
    with explained(cluster.gcs_endpoint, timeout):
        actor = asyncio.run(_kill(cluster, name, namespace, id_, timeout, no_restart=no_restart))
    spec = actor.spec
    what = f"{spec.name!r} ({spec.class_name})" if spec.name else spec.class_name
    click.echo(f"Actor {what}, {spec.actor_id.hex()}, is killed.")


async def _kill(
    cluster: Cluster,
    name: str | None,
    namespace: str,
    id_: str | None,
    timeout_s: float,
    *,
    no_restart: bool,
) -> gcs_pb2.ActorInfo:
    async with gcs_at(cluster.gcs_endpoint, cluster.token) as gcs:
        actors = gcs.actors
        found = [
            row
            for row in await actors.list(timeout_s=timeout_s)
            if row.state != gcs_pb2.ACTOR_STATE_DEAD and _is_meant(row.spec, name, namespace, id_)
        ]
        wanted = f"has the name {name!r}" if id_ is None else f"has an id that begins with {id_}"
        if not found:
            raise CommandError(f"No living actor {wanted}.", NOT_FOUND)
        if len(found) > 1:
            raise CommandError(
                f"{len(found)} living actors {wanted}; give --namespace or more of the --id.", USAGE
            )
        cause = common_pb2.DeathCause(
            kind=common_pb2.DeathCause.KIND_KILLED_BY_USER, message="killed by `skate kill-actor`"
        )
        await actors.kill(found[0].spec.actor_id, no_restart, cause, timeout_s=timeout_s)
        return found[0]


def _is_meant(spec: gcs_pb2.ActorSpec, name: str | None, namespace: str, id_: str | None) -> bool:
    if id_ is not None:
        return spec.actor_id.hex().startswith(id_.lower())
    return spec.name == name and namespace in ("", spec.namespace)
