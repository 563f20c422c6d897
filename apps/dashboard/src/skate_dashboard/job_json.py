"""Jobs as JSON, in the shapes of Ray's job API. Source: SURFACE rows J3, J5, J6."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from skate_jobs import InvalidJobError, Job

UNITS: Final = 10_000  # of a resource's amounts
_SUPPORTED: Final = ("env_vars",)


class Submission(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /api/jobs/``. Amounts are whole resources; memory in bytes."""

    entrypoint: str
    submission_id: str | None = None
    job_id: str | None = None  # an old name of submission_id
    runtime_env: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_memory: int | None = None
    entrypoint_resources: dict[str, float] | None = None
    entrypoint_label_selector: dict[str, str] | None = None
    idempotency_key: str | None = None  # the same id with the same key is the same job

    def resources(self) -> dict[str, int]:
        """What the entry point holds, in units. Raises ``InvalidJobError``."""
        amounts = {
            **(self.entrypoint_resources or {}),
            "CPU": self.entrypoint_num_cpus or 0,
            "GPU": self.entrypoint_num_gpus or 0,
            "memory": self.entrypoint_memory or 0,
        }
        for name, amount in amounts.items():
            if not 0 <= amount < 1e12:
                raise InvalidJobError(f"The amount of {name} must not be negative, got {amount}.")
        return {name: round(amount * UNITS) for name, amount in amounts.items() if amount}

    def env_vars(self) -> dict[str, str]:
        """What the entry point finds in its environment. Raises ``InvalidJobError``."""
        runtime_env = self.runtime_env or {}
        for field, value in runtime_env.items():
            if field not in _SUPPORTED and value:
                raise InvalidJobError(
                    f"runtime_env field {field!r} is not supported yet;"
                    f" the supported fields are: {', '.join(_SUPPORTED)}."
                )
        env_vars = runtime_env.get("env_vars") or {}
        if not isinstance(env_vars, dict) or not all(
            isinstance(item, str) and "\0" not in item for pair in env_vars.items() for item in pair
        ):
            raise InvalidJobError("runtime_env['env_vars'] must map strings to strings.")
        return env_vars


def details(job: Job) -> dict[str, Any]:
    """``JobDetails`` of one job. Times are Unix milliseconds."""
    spec, run, end = job.spec, job.run, job.end
    return {
        "type": "SUBMISSION",
        "job_id": None,
        "submission_id": spec.submission_id,
        "driver_info": None,
        "status": str(job.status),
        "entrypoint": spec.entrypoint,
        "message": job.message,
        "error_type": (end.error_type or None) if end is not None else None,
        "start_time": round(spec.submitted_s * 1000),
        "end_time": round(end.ended_s * 1000) if end is not None else None,
        "metadata": spec.metadata,
        "runtime_env": {"env_vars": spec.env_vars} if spec.env_vars else {},
        "driver_agent_http_address": None,
        "driver_node_id": run.node_id.hex() if run is not None else None,
        "driver_exit_code": end.exit_code if end is not None else None,
    }
