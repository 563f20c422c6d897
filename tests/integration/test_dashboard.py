"""The API server as it runs: a process beside a cluster, asked over real sockets."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from skate.cluster_utils import Cluster
from skate_jobs import JobRequestError, JobStatus, JobSubmissionClient
from tests.conftest import ROOT

WAIT_S = 20.0


@dataclass
class ApiServer:
    """A running one."""

    process: subprocess.Popen[str]
    host: str
    token: str
    cluster: Cluster

    @property
    def address(self) -> str:
        return f"http://{self.host}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def stop(self) -> None:
        """Let go of it, as its daemon does when that ends."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(WAIT_S) in (0, -9)
        finally:
            self.process.kill()
            self.process.stdout.close()

    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.address, token=self.token)


def start(cluster: Cluster) -> ApiServer:
    session = cluster.head_node.session_dir
    process = subprocess.Popen(
        [sys.executable, "-m", "skate_dashboard.server", "--session", session, "--port", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    word, host = process.stdout.readline().split()
    assert word == "listening"
    token = Path(session, "token").read_text("utf-8").strip()
    return ApiServer(process, host, token, cluster)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield made
    made.shutdown()


@pytest.fixture
def server(cluster: Cluster) -> Iterator[ApiServer]:
    made = start(cluster)
    yield made
    made.stop()


def wait_end(client: JobSubmissionClient, job_id: str) -> JobStatus:
    deadline_s = time.monotonic() + WAIT_S
    while not (status := client.get_job_status(job_id)).is_final:
        assert time.monotonic() < deadline_s, f"{job_id} does not end: {status}"
        time.sleep(0.05)
    return status


@pytest.mark.surface("J5", "J7", "J16")
def test_client_submits_follows_and_deletes_a_job(server: ApiServer) -> None:
    client = server.client()
    text = "".join(f"line {number} \u20ac\n" for number in range(100))
    job_id = client.submit_job(
        entrypoint=f"for i in 1 2 3; do echo $COLOUR $i \u20ac; sleep 0.1; done; echo '{text}'",
        runtime_env={"env_vars": {"COLOUR": "blue"}},
        metadata={"who": "me"},
    )
    printed = "".join(client.follow_job_logs(job_id))
    assert printed == "blue 1 \u20ac\nblue 2 \u20ac\nblue 3 \u20ac\n" + text + "\n"
    info = client.get_job_info(job_id)
    assert (info.status, info.driver_exit_code) == (JobStatus.SUCCEEDED, 0)
    assert (info.metadata, info.error_type) == ({"who": "me"}, None)
    assert client.get_job_logs(job_id) == printed
    assert job_id in [row.submission_id for row in client.list_jobs()]
    assert client.delete_job(job_id)
    with pytest.raises(JobRequestError, match="There is no job"):
        client.get_job_info(job_id)


@pytest.mark.surface("J16")
def test_log_is_followed_over_a_websocket_and_by_an_event_loop(server: ApiServer) -> None:
    client = server.client()
    job_id = client.submit_job(entrypoint="echo one; sleep 0.3; echo two")
    url = f"ws://{server.host}/api/jobs/{job_id}/logs/tail"
    with connect(url, additional_headers=server.headers) as socket_:
        assert "".join(str(piece) for piece in socket_) == "one\ntwo\n"

    async def tail() -> str:
        return "".join([piece async for piece in client.tail_job_logs(job_id)])

    assert asyncio.run(tail()) == "one\ntwo\n"


def test_websocket_wants_the_token_and_its_own_origin(server: ApiServer) -> None:
    url = f"ws://{server.host}/api/jobs/x/logs/tail"
    for headers in ({}, {**server.headers, "Origin": "http://evil.example"}):
        with pytest.raises(InvalidStatus), connect(url, additional_headers=headers):
            pass


@pytest.mark.invariant("I20")
def test_server_that_is_killed_loses_no_job_and_the_next_goes_on(server: ApiServer) -> None:
    client = server.client()
    running = client.submit_job(entrypoint="sleep 1; echo done")
    ids = [client.submit_job(entrypoint="true") for _ in range(5)]
    server.process.kill()
    server.process.wait()
    successor = start(server.cluster)
    try:
        client = successor.client()
        assert {wait_end(client, id_) for id_ in (running, *ids)} == {JobStatus.SUCCEEDED}
        assert client.get_job_logs(running) == "done\n"
    finally:
        successor.stop()


def test_errors_reach_the_client_as_sentences(server: ApiServer) -> None:
    client = server.client()
    for call, status, text in (
        (lambda: client.submit_job(entrypoint=""), 400, "must be a command"),
        (lambda: client.get_job_info("../../etc"), 404, "There is no"),
        (lambda: client.stop_job("nothing"), 404, "There is no job 'nothing'"),
    ):
        with pytest.raises(JobRequestError, match=text) as caught:
            call()
        assert caught.value.status == status
    with pytest.raises(JobRequestError, match="token") as caught:
        JobSubmissionClient(server.address, token="wrong").list_jobs()
    assert caught.value.status == 401
    with pytest.raises(ValueError, match="http://host:port"):
        JobSubmissionClient("127.0.0.1:8265")


def test_health_check_needs_no_token_and_says_nothing_else(server: ApiServer) -> None:
    with urllib.request.urlopen(f"{server.address}/healthz", timeout=WAIT_S) as answer:
        assert json.loads(answer.read()) == {"status": "ok"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"GET " + b"/" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /api/jobs/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/jobs/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=range(8),
)
def test_garbage_ends_its_own_connection_and_nothing_else(server: ApiServer, data: bytes) -> None:
    host, port = server.host.split(":")
    with socket.create_connection((host, int(port)), WAIT_S) as stranger:
        try:
            stranger.sendall(data)
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(65536):
                pass
        except ConnectionError:
            pass  # closed in the middle of what it said: as well
    assert server.client().get_version() == "4"


RAY = shutil.which("ray")


@pytest.mark.skipif(RAY is None, reason="Ray's own client is not installed here")
@pytest.mark.surface("J8")
def test_rays_own_command_line_submits_and_stops_jobs(server: ApiServer) -> None:
    assert RAY is not None

    def ray(*arguments: str) -> str:
        done = subprocess.run(
            [RAY, "job", *arguments],
            env={
                "PATH": "/usr/bin:/bin",
                "RAY_API_SERVER_ADDRESS": server.address,
                "RAY_JOB_HEADERS": json.dumps(server.headers),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout + done.stderr

    assert "hello from ray" in ray("submit", "--", "echo", "hello from ray")
    ray("submit", "--no-wait", "--submission-id", "slow", "--", "sleep", "300")
    assert "RUNNING" in ray("status", "slow") or "PENDING" in ray("status", "slow")
    assert "stopped" in ray("stop", "slow")
    assert "'slow'" in ray("list")
    ray("delete", "slow")


def call(server: ApiServer, method: str, path: str) -> tuple[int, Any]:
    request = urllib.request.Request(server.address + path, method=method, headers=server.headers)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize("text", ["..", "%2e%2e%2f", "a%00b", "%2fetc%2fpasswd", "x" * 5000])
def test_hostile_ids_are_unknown_jobs(server: ApiServer, text: str) -> None:
    for method, path in (("GET", ""), ("GET", "/logs"), ("POST", "/stop"), ("DELETE", "")):
        status, answer = call(server, method, f"/api/jobs/{text}{path}")
        assert status in (404, 405), answer
        assert "canary" not in str(answer)
