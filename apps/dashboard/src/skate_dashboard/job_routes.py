"""The routes of jobs. Source: SURFACE rows J5, J16.

The manager's calls wait for the cluster, so they run on threads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeVar

import anyio
import msgspec
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from skate_core_ids import SkateError
from skate_dashboard.job_json import Submission, details
from skate_jobs import (
    InvalidJobError,
    Job,
    JobExistsError,
    JobNotFoundError,
    JobRunsError,
)
from skate_jobs.manager import JobManager
from skate_rpc.node_protocol import LogPart, ReadLog

BODY_BYTES_MAX: Final = 4 << 20
LOG_BYTES_MAX: Final = 32 << 20  # of one answer; the tail has no bound
LOOK_S: Final = 0.2  # between two looks at a log that is followed
_STATUS: Final[dict[type[SkateError], int]] = {
    InvalidJobError: 400,
    JobExistsError: 409,
    JobNotFoundError: 404,
    JobRunsError: 409,
}

T = TypeVar("T")
ReadPart = Callable[[ReadLog], LogPart | None]
"""Reads part of a log on whichever node it lies. Raises ``SkateError``."""


class TooLargeError(SkateError):
    """A body larger than is taken."""

    def __str__(self) -> str:
        return f"The body is larger than {BODY_BYTES_MAX} bytes."


class JobRoutes:
    """The handlers, over one manager."""

    def __init__(self, manager: JobManager, read_log: ReadPart) -> None:
        self._manager = manager
        self._read_log = read_log

    async def submit(self, request: Request) -> Response:
        """Submit a job."""

        async def answer() -> Any:
            body = msgspec.json.decode(await _body(request), type=Submission)
            submission_id = await run_sync(
                lambda: self._manager.submit(
                    body.entrypoint,
                    submission_id=body.submission_id or body.job_id or "",
                    metadata=body.metadata,
                    env_vars=body.env_vars(),
                    resources=body.resources(),
                    idempotency_key=body.idempotency_key or "",
                )
            )
            return {"job_id": submission_id, "submission_id": submission_id}

        return await answered(answer)

    async def list(self, request: Request) -> Response:
        """List all jobs, the oldest first."""

        async def answer() -> Any:
            return [details(job) for job in await run_sync(self._manager.list)]

        return await answered(answer)

    async def get(self, request: Request) -> Response:
        """Describe one job."""

        async def answer() -> Any:
            return details(await self._job(request.path_params["id"]))

        return await answered(answer)

    async def stop(self, request: Request) -> Response:
        """Ask for the end of a job; it follows soon."""

        async def answer() -> Any:
            id_ = request.path_params["id"]
            return {"stopped": await run_sync(self._manager.stop, id_)}

        return await answered(answer)

    async def delete(self, request: Request) -> Response:
        """Forget a job that has ended."""

        async def answer() -> Any:
            await run_sync(self._manager.delete, request.path_params["id"])
            return {"deleted": True}

        return await answered(answer)

    async def logs(self, request: Request) -> Response:
        """Show what a job has printed; of a very long log the end.

        With ``offset``, a piece of what stands behind that many bytes, and the next offset.
        """

        async def answer() -> Any:
            offset = request.query_params.get("offset")
            job = await self._job(request.path_params["id"])
            if offset is not None:
                return await self._piece(job, _offset(offset))
            data = bytearray()
            async for piece in self._pieces(job, -LOG_BYTES_MAX):
                data += piece
            return {"logs": data.decode(errors="replace")}

        return await answered(answer)

    async def tail(self, socket: WebSocket) -> None:
        """Follow what a job prints, from its beginning until it has ended."""
        try:
            job = await self._job(socket.path_params["id"])
        except JobNotFoundError as error:
            await socket.close(1008, str(error))
            return
        await socket.accept()
        try:
            await self._follow(job, socket)
        except WebSocketDisconnect:
            return
        except SkateError as error:
            await socket.close(1011, str(error)[:120])
            return
        await socket.close()

    async def _follow(self, job: Job, socket: WebSocket) -> None:
        position = 0
        while True:
            has_ended = job.end is not None  # before the reading: nothing is printed after it
            rest = b""
            async for piece in self._pieces(job, position):
                position += len(piece)
                text, rest = _whole_characters(rest + piece)
                await socket.send_text(text)
            position -= len(rest)
            if has_ended:
                if rest:
                    await socket.send_text(rest.decode(errors="replace"))
                return
            await anyio.sleep(LOOK_S)
            job = await self._job(job.spec.submission_id)

    async def _piece(self, job: Job, offset: int) -> dict[str, Any]:
        data = b""
        async for piece in self._pieces(job, offset):
            data = piece
            break
        text, rest = _whole_characters(data)
        if not text and rest and job.end is not None:
            text, rest = rest.decode(errors="replace"), b""
        return {
            "logs": text,
            "next_offset": offset + len(data) - len(rest),
            "has_ended": job.end is not None,
        }

    async def _job(self, submission_id: str) -> Job:
        return await run_sync(self._manager.get, submission_id)

    async def _pieces(self, job: Job, offset: int) -> AsyncIterator[bytes]:
        """The log from an offset to its present end."""
        run = job.run
        if run is None:
            return
        while True:
            part = await run_sync(self._read_log, ReadLog(run.node_id, run.log_file, offset))
            if part is None or not part.data:
                return
            yield part.data
            offset = part.offset + len(part.data)


async def answered(answer: Callable[[], Any]) -> Response:
    """Its JSON, or what went wrong in one sentence with a fitting status."""
    try:
        return JSONResponse(await answer())
    except TooLargeError as error:
        return failure(413, str(error))
    except msgspec.DecodeError as error:  # its subclass for wrong types included
        return failure(400, f"The body is not what is expected here: {error}")
    except SkateError as error:
        return failure(_STATUS.get(type(error), 503), str(error))


def failure(status: int, message: str) -> Response:
    """An error as JSON."""
    return JSONResponse({"error": message}, status)


def _offset(text: str) -> int:
    """The query parameter. Raises ``InvalidJobError``."""
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise InvalidJobError(f"offset must be a number of bytes, got {text[:40]!r}.")
    return int(text)


async def _body(request: Request) -> bytes:
    """The body. Raises ``TooLargeError`` before more than that is taken."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > BODY_BYTES_MAX:
            raise TooLargeError
    return bytes(data)


def _whole_characters(data: bytes) -> tuple[str, bytes]:
    """The text, and the beginning of a character that is cut off."""
    for cut in range(1, min(4, len(data)) + 1):
        lead = data[-cut]
        if lead >= 0xC0:  # a character of several bytes begins here
            length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            if length > cut:
                return data[:-cut].decode(errors="replace"), data[-cut:]
            break
        if lead < 0x80:
            break
    return data.decode(errors="replace"), b""
