from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest

from skate_core_ids import SkateError
from skate_dashboard.application import make_application
from skate_dashboard.job_json import UNITS
from skate_dashboard.job_routes import BODY_BYTES_MAX, JobRoutes, _whole_characters
from skate_jobs import (
    Job,
    JobEnd,
    JobExistsError,
    JobNotFoundError,
    JobRun,
    JobRunsError,
    JobSpec,
    JobStatus,
)
from skate_rpc.node_protocol import LogPart, ReadLog

TOKEN = "0123456789abcdef" * 4
HOST = "127.0.0.1:8265"


class Manager:
    """Keeps what it is asked."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.error: SkateError | None = None
        self.job = Job(
            JobSpec("j", "run", 1000.0, "w", {"a": "b"}, {"E": "1"}),
            JobRun("w", 1001.0, b"n" * 28, "127.0.0.1", 7, "job.log"),
            None,
            JobEnd(JobStatus.SUCCEEDED, "Job finished successfully.", 1002.5, "", 0),
        )

    def submit(self, entrypoint: str, **options: Any) -> str:
        self._note("submit", entrypoint, options)
        return options["submission_id"] or "made"

    def get(self, submission_id: str) -> Job:
        self._note("get", submission_id)
        return self.job

    def list(self) -> list[Job]:
        self._note("list")
        return [self.job]

    def stop(self, submission_id: str) -> bool:
        self._note("stop", submission_id)
        return True

    def delete(self, submission_id: str) -> None:
        self._note("delete", submission_id)

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error


class Client:
    """Speaks ASGI to the application, as uvicorn does."""

    def __init__(self, log: bytes = b"hello\n") -> None:
        self.manager = Manager()

        def read_log(question: ReadLog) -> LogPart | None:
            offset = max(0, len(log) + question.offset) if question.offset < 0 else question.offset
            return LogPart(log[offset : offset + 3], offset, len(log))

        self.application = make_application(
            JobRoutes(self.manager, read_log),  # type: ignore[arg-type]
            token=TOKEN,
            hosts=frozenset({HOST}),
            session_name="session_1",
        )

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: tuple[tuple[str, str], ...] = (
            ("host", HOST),
            ("authorization", f"Bearer {TOKEN}"),
        ),
    ) -> tuple[int, Any]:
        content = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8265),
        }
        asyncio.run(self.application(scope, receive, send))  # type: ignore[arg-type]
        text = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], json.loads(text)


def all_routes() -> list[tuple[str, str]]:
    document = Client().call("GET", "/api/openapi.json")[1]
    return [
        (method.upper(), path.replace("{id}", "j"))
        for path, operations in document["paths"].items()
        for method in operations
    ]


@pytest.mark.surface("J5", "J3")
def test_jobs_have_rays_shape() -> None:
    status, job = Client().call("GET", "/api/jobs/j")
    assert status == 200
    assert job == {
        "type": "SUBMISSION",
        "job_id": None,
        "submission_id": "j",
        "driver_info": None,
        "status": "SUCCEEDED",
        "entrypoint": "run",
        "message": "Job finished successfully.",
        "error_type": None,
        "start_time": 1000000,
        "end_time": 1002500,
        "metadata": {"a": "b"},
        "runtime_env": {"env_vars": {"E": "1"}},
        "driver_agent_http_address": None,
        "driver_node_id": (b"n" * 28).hex(),
        "driver_exit_code": 0,
    }
    assert Client().call("GET", "/api/jobs/") == (200, [job])


@pytest.mark.surface("J6")
def test_submission_is_passed_on_in_units() -> None:
    client = Client()
    answer = client.call(
        "POST",
        "/api/jobs/",
        {
            "entrypoint": "run",
            "metadata": {"a": "b"},
            "runtime_env": {"env_vars": {"E": "1"}},
            "entrypoint_num_cpus": 0.5,
            "entrypoint_resources": {"disk": 2},
        },
    )
    assert answer == (200, {"job_id": "made", "submission_id": "made"})
    assert client.manager.calls == [
        (
            "submit",
            "run",
            {
                "submission_id": "",
                "metadata": {"a": "b"},
                "env_vars": {"E": "1"},
                "resources": {"disk": 2 * UNITS, "CPU": UNITS // 2},
                "idempotency_key": "",
            },
        )
    ]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "not what is expected"),
        (b"\xff", "not what is expected"),
        ([], "not what is expected"),
        ({}, "entrypoint"),
        ({"entrypoint": 3}, "entrypoint"),
        ({"entrypoint": "x", "nonsense": 1}, "nonsense"),
        ({"entrypoint": "x", "metadata": {"a": 1}}, "metadata"),
        ({"entrypoint": "x", "entrypoint_num_cpus": -1}, "must not be negative"),
        ({"entrypoint": "x", "entrypoint_num_gpus": 1e300}, "must not be negative"),
        ({"entrypoint": "x", "runtime_env": {"pip": ["a"]}}, "'pip' is not supported yet"),
        ({"entrypoint": "x", "runtime_env": {"env_vars": {"a": 1}}}, "strings to strings"),
        ({"entrypoint": "x", "runtime_env": {"env_vars": [1]}}, "strings to strings"),
    ],
)
def test_submission_that_makes_no_sense_is_refused_with_a_sentence(body: Any, text: str) -> None:
    client = Client()
    status, answer = client.call("POST", "/api/jobs/", body)
    assert status == 400
    assert text in answer["error"]
    assert client.manager.calls == []


def test_body_without_end_is_refused() -> None:
    status, answer = Client().call("POST", "/api/jobs/", bytes(BODY_BYTES_MAX + 1))
    assert (status, answer["error"]) == (413, f"The body is larger than {BODY_BYTES_MAX} bytes.")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (JobNotFoundError("j"), 404),
        (JobExistsError("j"), 409),
        (JobRunsError("j"), 409),
        (SkateError("The GCS is away."), 503),
    ],
)
def test_errors_of_the_manager_have_their_status_and_sentence(
    error: SkateError, status: int
) -> None:
    client = Client()
    client.manager.error = error
    for method, path in (
        ("GET", "/api/jobs/j"),
        ("POST", "/api/jobs/j/stop"),
        ("DELETE", "/api/jobs/j"),
    ):
        assert client.call(method, path) == (status, {"error": str(error)})


def test_whole_log_is_shown() -> None:
    log = "h\u00e4llo \u20ac\n".encode() * 3
    assert Client(log).call("GET", "/api/jobs/j/logs") == (200, {"logs": log.decode()})


def test_unknown_routes_and_methods_are_told_as_json() -> None:
    assert Client().call("GET", "/api/nothing")[0] == 404
    assert Client().call("PATCH", "/api/jobs/j")[0] == 405


@pytest.mark.parametrize(("method", "path"), all_routes())
def test_every_route_but_the_health_check_wants_the_token(method: str, path: str) -> None:
    wrong = [
        "",
        "Bearer ",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"bearer {TOKEN}",
        f"Basic {TOKEN}",
    ]
    for value in wrong:
        client = Client()
        headers = (("host", HOST), *([("authorization", value)] if value else []))
        status, _ = client.call(method, path, {"entrypoint": "x"}, headers=headers)
        assert status == (200 if path == "/healthz" else 401), value
        assert client.manager.calls == []
    twice = (("host", HOST), *[("authorization", f"Bearer {TOKEN}")] * 2)
    assert Client().call(method, path, headers=twice)[0] == (200 if path == "/healthz" else 401)


BAD_HEADERS = [
    (("host", "evil.example"),),
    (("host", "localhost.evil:8265"),),
    (("host", "127.0.0.1"),),
    (("host", "127.0.0.1:8266"),),
    (("host", HOST), ("host", "evil.example")),
    (),
    (("host", HOST), ("origin", "http://evil.example")),
    (("host", HOST), ("origin", "null")),
    (("host", HOST), ("origin", "http://127.0.0.1")),
    (("host", HOST), ("origin", f"https://{HOST}")),
]


@pytest.mark.parametrize(("route", "bad"), list(itertools.product(all_routes(), BAD_HEADERS)))
def test_other_names_and_other_sites_are_refused_whatever_they_know(
    route: tuple[str, str], bad: tuple[tuple[str, str], ...]
) -> None:
    client = Client()
    headers = (*bad, ("authorization", f"Bearer {TOKEN}"))
    status, _ = client.call(*route, {"entrypoint": "x"}, headers=headers)
    assert status == 403
    assert client.manager.calls == []


def test_own_origin_is_let_in() -> None:
    headers = (("host", HOST), ("origin", f"http://{HOST}"), ("authorization", f"Bearer {TOKEN}"))
    assert Client().call("GET", "/api/jobs/", headers=headers)[0] == 200


@pytest.mark.parametrize("size", range(1, 12))
def test_text_is_never_cut_inside_a_character(size: int) -> None:
    data = "a\u00e4\u20ac\U0001f600z".encode() * 3
    text, rest = "", b""
    for start in range(0, len(data), size):
        more, rest = _whole_characters(rest + data[start : start + size])
        text += more
    assert (text, rest) == (data.decode(), b"")


def test_bytes_that_are_no_text_do_not_pile_up() -> None:
    assert _whole_characters(b"\xff\xfe\x80\x80\x80") == ("\ufffd" * 5, b"")
