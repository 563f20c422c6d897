"""``JobSubmissionClient``: jobs of a cluster, over HTTP. Standard library only.

Source: SURFACE row J7. The names and shapes are Ray's.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from skate_jobs.errors import JobError
from skate_jobs.machine.records import JobStatus

ADDRESS_VARIABLE: Final = "SKATE_API_SERVER_ADDRESS"
HEADERS_VARIABLE: Final = "SKATE_JOB_HEADERS"
TOKEN_FILE_VARIABLE: Final = "SKATE_TOKEN_FILE"
TIMEOUT_S: Final = 60.0
LOOK_S: Final = 0.2  # between two looks at a log that is followed


class JobRequestError(JobError, RuntimeError):
    """The API server refused a request. ``status``: of HTTP; 0: it could not be reached."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class JobDetails:
    """One job. Times are Unix milliseconds."""

    type: str
    job_id: str | None
    submission_id: str
    driver_info: Any
    status: JobStatus
    entrypoint: str
    message: str
    error_type: str | None
    start_time: int
    end_time: int | None
    metadata: dict[str, str]
    runtime_env: dict[str, Any]
    driver_agent_http_address: str | None
    driver_node_id: str | None
    driver_exit_code: int | None


class JobSubmissionClient:
    """Submits jobs to one cluster and asks about them.

    Args:
        address: ``http://host:port`` of the API server; ``SKATE_API_SERVER_ADDRESS`` by default.
        headers: Sent with every request, over those of ``SKATE_JOB_HEADERS`` (a JSON object).
        token: The cluster's; else what the file says that ``SKATE_TOKEN_FILE`` names. Without
            either, ``headers`` must have it as ``Authorization: Bearer <token>``.
        timeout_s: For one request.

    Raises:
        ValueError: no address, or one that is no ``http://`` address.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        address = address or os.environ.get(ADDRESS_VARIABLE, "")
        parts = urllib.parse.urlsplit(address)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(
                f"The address of the API server must be http://host:port, got {address!r};"
                f" give it, or set {ADDRESS_VARIABLE}."
            )
        self._host = parts.hostname
        self._port = parts.port or 80
        self._timeout_s = timeout_s
        self._headers = {**json.loads(os.environ.get(HEADERS_VARIABLE) or "{}"), **(headers or {})}
        token = token or _token_of_file()
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def get_version(self) -> str:
        """The version of the server's API."""
        return str(self._call("GET", "/api/version")["version"])

    def submit_job(
        self,
        *,
        entrypoint: str,
        submission_id: str | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        entrypoint_num_cpus: float | None = None,
        entrypoint_num_gpus: float | None = None,
        entrypoint_memory: int | None = None,
        entrypoint_resources: Mapping[str, float] | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Submit a job; returns its submission id.

        Raises:
            JobRequestError: the submission makes no sense (400), or the id is taken (409).
        """
        body = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "runtime_env": runtime_env,
            "metadata": metadata,
            "entrypoint_num_cpus": entrypoint_num_cpus,
            "entrypoint_num_gpus": entrypoint_num_gpus,
            "entrypoint_memory": entrypoint_memory,
            "entrypoint_resources": entrypoint_resources,
            "idempotency_key": idempotency_key,
        }
        given = {name: value for name, value in body.items() if value is not None}
        return str(self._call("POST", "/api/jobs/", given)["submission_id"])

    def stop_job(self, job_id: str) -> bool:
        """Ask for the end of a job, which follows soon; False: it has ended already."""
        return bool(self._call("POST", f"{_path(job_id)}/stop")["stopped"])

    def delete_job(self, job_id: str) -> bool:
        """Forget a job that has ended. Raises ``JobRequestError`` (409) for one that has not."""
        return bool(self._call("DELETE", _path(job_id))["deleted"])

    def get_job_info(self, job_id: str) -> JobDetails:
        """One job. Raises ``JobRequestError`` (404) when there is none of this id."""
        return _details(self._call("GET", _path(job_id)))

    def get_job_status(self, job_id: str) -> JobStatus:
        """Where a job stands."""
        return self.get_job_info(job_id).status

    def list_jobs(self) -> list[JobDetails]:
        """All jobs, the oldest first."""
        return [_details(row) for row in self._call("GET", "/api/jobs/")]

    def get_job_logs(self, job_id: str) -> str:
        """What a job has printed; of a very long log the end."""
        return str(self._call("GET", f"{_path(job_id)}/logs")["logs"])

    def follow_job_logs(self, job_id: str) -> Iterator[str]:
        """What a job prints, piece by piece, until it has ended."""
        offset = 0
        while True:
            text, offset, has_ended = self._log_from(job_id, offset)
            if text:
                yield text
            elif has_ended:
                return
            else:
                time.sleep(LOOK_S)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """As :meth:`follow_job_logs`, for an event loop."""
        offset = 0
        while True:
            text, offset, has_ended = await asyncio.to_thread(self._log_from, job_id, offset)
            if text:
                yield text
            elif has_ended:
                return
            else:
                await asyncio.sleep(LOOK_S)

    def _log_from(self, job_id: str, offset: int) -> tuple[str, int, bool]:
        answer = self._call("GET", f"{_path(job_id)}/logs?offset={offset}")
        return answer["logs"], answer["next_offset"], answer["has_ended"]

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body)
        headers = dict(self._headers)
        if content is not None:
            headers["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise JobRequestError(
                0,
                f"The API server at http://{self._host}:{self._port} does not answer as one:"
                f" {error}. Check the address and that the cluster's head runs.",
            ) from error
        finally:
            connection.close()
        if response.status >= 400:
            raise JobRequestError(response.status, answer.get("error", str(answer)))
        return answer


def _path(job_id: str) -> str:
    return f"/api/jobs/{urllib.parse.quote(job_id, safe='')}"


def _details(row: dict[str, Any]) -> JobDetails:
    known: dict[str, Any] = {field.name: row.get(field.name) for field in fields(JobDetails)}
    known["status"] = JobStatus(row["status"])
    return JobDetails(**known)


def _token_of_file() -> str:
    path = os.environ.get(TOKEN_FILE_VARIABLE, "")
    if not path:
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read().strip()
