"""``skate job``: entry points that run on the cluster, through its API server."""

from __future__ import annotations

import functools
import json
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from skate_cluster.exit_codes import (
    FAILED,
    INTERRUPTED,
    NOT_FOUND,
    TIMED_OUT,
    UNREACHABLE,
    USAGE,
    CommandError,
)
from skate_cluster.report_text import columns
from skate_core_ids import SkateError
from skate_jobs import JobDetails, JobRequestError, JobStatus, JobSubmissionClient
from skate_node.api_address import find_api_server
from skate_node.errors import ApiServerNotFoundError, ClusterNotFoundError

POLL_S = 0.2
STOP_WAIT_S = 30.0
SCHEMA = "skate.jobs/1"
_EXIT_CODES = {0: UNREACHABLE, 400: USAGE, 404: NOT_FOUND, 422: USAGE}


def _with_client(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say which API server, and how its refusals end the command."""

    @functools.wraps(command)
    def call(
        address: str | None, token_file: str | None, temp_dir: str | None, **arguments: Any
    ) -> None:
        try:
            found = find_api_server(address, token_file, temp_dir)
            client = JobSubmissionClient(found.url, token=found.token or None)
            command(client, **arguments)
        except (ClusterNotFoundError, ApiServerNotFoundError) as error:
            raise CommandError(str(error), UNREACHABLE) from None
        except JobRequestError as error:
            raise CommandError(error.message, _EXIT_CODES.get(error.status, FAILED)) from None
        except ValueError as error:
            raise CommandError(str(error), USAGE) from None
        except SkateError as error:
            raise CommandError(str(error), FAILED) from None

    decorated: Callable[..., None] = call
    for option in (
        click.option("--temp-dir", type=click.Path(), help="Where session folders are."),
        click.option("--token-file", type=click.Path(), help="File with the cluster's token."),
        click.option(
            "--address",
            metavar="URL|HOST:PORT",
            help="The API server, or a cluster of this machine."
            "  [default: $SKATE_API_SERVER_ADDRESS, $SKATE_ADDRESS, auto]",
        ),
    ):
        decorated = option(decorated)
    return decorated


_style = click.option(
    "-o",
    "--format",
    "style",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
)


@click.group(name="job", short_help="Submit, follow and stop jobs.")
def command() -> None:
    r"""Jobs: entry points that run on the cluster, each to exactly one end.

    \b
    skate job submit -- python train.py --epochs 3
    skate job submit --no-wait --submission-id nightly -- python report.py
    skate job logs nightly --follow
    """


@command.command(context_settings={"ignore_unknown_options": True})
@_with_client
@click.option("--submission-id", help="Name of the job, for ever.  [default: made up]")
@click.option("--runtime-env-json", metavar="JSON", help="Environment of the entry point.")
@click.option("--metadata-json", metavar="JSON", help="Strings to keep with the job.")
@click.option("--entrypoint-num-cpus", type=click.FloatRange(min=0), help="CPUs that it holds.")
@click.option("--entrypoint-num-gpus", type=click.FloatRange(min=0), help="GPUs that it holds.")
@click.option("--entrypoint-memory", type=click.IntRange(min=0), help="Bytes that it holds.")
@click.option("--entrypoint-resources", metavar="JSON", help="""Others: '{"disk": 1}'.""")
@click.option("--idempotency-key", help="The same id with the same key is the same job.")
@click.option("--no-wait", is_flag=True, help="Return when it is submitted.")
@click.argument("entrypoint", nargs=-1, required=True, metavar="-- COMMAND...")
def submit(
    client: JobSubmissionClient,
    entrypoint: tuple[str, ...],
    no_wait: bool,
    runtime_env_json: str | None,
    metadata_json: str | None,
    entrypoint_resources: str | None,
    **options: Any,
) -> None:
    """Run a shell command on the cluster and follow what it prints.

    Ends with status 0 when the job succeeds and 1 when it fails or is stopped. Interrupting this
    command leaves the job alone. One argument is taken as a line for the shell; more are quoted.
    """
    job_id = client.submit_job(
        entrypoint=entrypoint[0] if len(entrypoint) == 1 else shlex.join(entrypoint),
        runtime_env=_object("--runtime-env-json", runtime_env_json),
        metadata=_object("--metadata-json", metadata_json),
        entrypoint_resources=_object("--entrypoint-resources", entrypoint_resources),
        **options,
    )
    click.echo(f"Job {job_id} is submitted.", err=True)
    if no_wait:
        click.echo(f"Follow it with `skate job logs {job_id} --follow`.", err=True)
        click.echo(job_id)
        return
    _follow(client, job_id)
    _end_as(client.get_job_info(job_id))


@command.command()
@_with_client
@_style
@click.argument("job_id")
def status(client: JobSubmissionClient, job_id: str, style: str) -> None:
    """Say where a job stands."""
    info = client.get_job_info(job_id)
    if style == "json":
        click.echo(json.dumps({"schema": SCHEMA, "jobs": [asdict(info)]}, indent=2))
    else:
        click.echo(f"{info.status}: {info.message}")


@command.command(name="list")
@_with_client
@_style
def list_(client: JobSubmissionClient, style: str) -> None:
    """List the jobs, the oldest first."""
    rows = client.list_jobs()
    if style == "json":
        click.echo(json.dumps({"schema": SCHEMA, "jobs": [asdict(row) for row in rows]}, indent=2))
    elif rows:
        table: list[tuple[str, ...]] = [("id", "status", "submitted", "ran for", "entry point")]
        table += [_row(row) for row in rows]
        click.echo("\n".join(columns(table)))
    else:
        click.echo("No jobs. Submit one with `skate job submit -- python script.py`.")


@command.command()
@_with_client
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@click.argument("job_id")
def logs(client: JobSubmissionClient, job_id: str, follow: bool) -> None:
    """Print what a job has printed."""
    if follow:
        _follow(client, job_id)
    else:
        click.echo(client.get_job_logs(job_id), nl=False)


@command.command()
@_with_client
@click.option("--no-wait", is_flag=True, help="Return when it is asked for.")
@click.argument("job_id")
def stop(client: JobSubmissionClient, job_id: str, no_wait: bool) -> None:
    """Ask for the end of a job: SIGTERM to its processes, SIGKILL three seconds later."""
    if not client.stop_job(job_id):
        click.echo(f"Job {job_id} has ended already: {client.get_job_status(job_id)}.")
        return
    deadline_s = time.monotonic() + STOP_WAIT_S
    while not no_wait:
        info = client.get_job_info(job_id)
        if info.status.is_final:
            click.echo(f"Job {job_id}: {info.status}.")
            return
        if time.monotonic() >= deadline_s:
            raise CommandError(
                f"Job {job_id} has not ended within {STOP_WAIT_S:g} s; see `skate job status"
                f" {job_id}`.",
                TIMED_OUT,
            )
        time.sleep(POLL_S)
    click.echo(f"Job {job_id} is asked to stop.")


@command.command()
@_with_client
@click.argument("job_id")
def delete(client: JobSubmissionClient, job_id: str) -> None:
    """Forget a job that has ended, and its log."""
    client.delete_job(job_id)
    click.echo(f"Job {job_id} is deleted.")


def _follow(client: JobSubmissionClient, job_id: str) -> None:
    try:
        for text in client.follow_job_logs(job_id):
            click.echo(text, nl=False)
    except KeyboardInterrupt:
        raise CommandError(
            f"Job {job_id} goes on; stop it with `skate job stop {job_id}`.", INTERRUPTED
        ) from None


def _end_as(info: JobDetails) -> None:
    if info.status is JobStatus.SUCCEEDED:
        click.echo(f"Job {info.submission_id} succeeded.", err=True)
        return
    raise CommandError(f"Job {info.submission_id}: {info.status}: {info.message}")


def _object(option: str, text: str | None) -> dict[str, Any] | None:
    """A JSON object that the user wrote. Raises ``CommandError``."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CommandError(f"{option} is not valid JSON: {error}.", USAGE) from None
    if not isinstance(value, dict):
        raise CommandError(f"{option} must be a JSON object, got {text}.", USAGE)
    return value


def _row(job: JobDetails) -> tuple[str, ...]:
    end_ms = time.time() * 1000 if job.end_time is None else job.end_time
    submitted = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.start_time / 1000))
    ran = f"{max(0.0, end_ms - job.start_time) / 1000:.1f} s"
    return job.submission_id, str(job.status), submitted, ran, job.entrypoint[:60]
