"""Jobs from Python, under the names of Ray's ``ray.job_submission``.

::

    client = JobSubmissionClient()  # the cluster of this machine
    job_id = client.submit_job(entrypoint="python train.py")
    for text in client.follow_job_logs(job_id):
        print(text, end="")
"""

from __future__ import annotations

from collections.abc import Mapping

import skate_jobs
from skate_jobs import JobDetails, JobStatus
from skate_node.api_address import find_api_server

__all__ = ["JobDetails", "JobStatus", "JobSubmissionClient"]


class JobSubmissionClient(skate_jobs.JobSubmissionClient):
    """Submits jobs to one cluster and asks about them.

    Args:
        address: ``http://host:port`` of the API server, or a cluster of this machine (``auto``,
            its GCS address or its session folder); by default ``SKATE_API_SERVER_ADDRESS``, then
            ``SKATE_ADDRESS``, then ``auto``.
        headers: Sent with every request, over those of ``SKATE_JOB_HEADERS`` (a JSON object).
        token: The cluster's. Not needed beside the cluster's head, or with ``SKATE_TOKEN_FILE``.
        timeout_s: For one request.

    Raises:
        ClusterNotFoundError: no cluster runs here.
        ApiServerNotFoundError: it has no API server, or none that is known here.
        ValueError: the address is none.

    Source: SURFACE row J7.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        timeout_s: float = skate_jobs.client.TIMEOUT_S,
    ) -> None:
        found = find_api_server(address)
        super().__init__(
            found.url, headers=headers, token=token or found.token or None, timeout_s=timeout_s
        )
