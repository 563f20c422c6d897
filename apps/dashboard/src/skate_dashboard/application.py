"""All routes in one table: what is served, and the OpenAPI document that describes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

from skate_dashboard.guard import Guard
from skate_dashboard.job_json import Submission
from skate_dashboard.job_routes import JobRoutes, failure

if TYPE_CHECKING:
    from starlette.types import ASGIApp

API_VERSION: Final = "4"  # of Ray's job API
COMPATIBLE_RAY: Final = "2.60.0"  # whose clients are told that they may talk to us


@dataclass(frozen=True, slots=True)
class Described:
    """One route, for people and programs."""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    statuses: tuple[int, ...] = ()  # beside 200, 401 and 403
    body: type[Any] | None = None
    query: tuple[tuple[str, str], ...] = ()  # names and JSON types


_MEANINGS: Final = {
    200: "Done.",
    400: "The request makes no sense; the error says why.",
    401: "The token lacks or is wrong.",
    403: "The Host or Origin header is another server's.",
    404: "There is no such thing.",
    409: "The present state does not allow it; the error says why.",
    413: "The body is too large.",
    503: "The cluster does not answer.",
}


def routes_of(jobs: JobRoutes, session_name: str) -> list[Described]:
    """Every route but the document's own and the WebSocket."""

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def version(request: Request) -> Response:
        return JSONResponse(
            {
                "version": API_VERSION,
                "ray_version": COMPATIBLE_RAY,
                "ray_commit": "skate",
                "session_name": session_name,
            }
        )

    job = "/api/jobs/{id}"
    return [
        Described("GET", "/healthz", health, "Whether the server runs; needs no token."),
        Described("GET", "/api/version", version, "The version of this API."),
        Described(
            "POST", "/api/jobs/", jobs.submit, "Submit a job.", (400, 409, 413, 503), Submission
        ),
        Described("GET", "/api/jobs/", jobs.list, "List all jobs, the oldest first.", (503,)),
        Described("GET", job, jobs.get, "Describe one job.", (404, 503)),
        Described("DELETE", job, jobs.delete, "Forget a job that has ended.", (404, 409, 503)),
        Described("POST", f"{job}/stop", jobs.stop, "Ask for a job's end.", (404, 503)),
        Described(
            "GET",
            f"{job}/logs",
            jobs.logs,
            "Show what a job has printed; from an offset on, piece by piece.",
            (400, 404, 503),
            query=(("offset", "integer"),),
        ),
    ]


def make_application(
    jobs: JobRoutes, *, token: str, hosts: frozenset[str], session_name: str
) -> ASGIApp:
    """The whole server. ``hosts``: see :class:`Guard`."""
    described = routes_of(jobs, session_name)
    document = describe(described)

    async def openapi(request: Request) -> Response:
        return JSONResponse(document)

    async def not_found(request: Request, error: Exception) -> Response:
        return failure(404, "There is no such route; GET /api/openapi.json lists all.")

    async def not_allowed(request: Request, error: Exception) -> Response:
        return failure(405, "The route does not take this method.")

    application = Starlette(
        routes=[
            *(Route(one.path, one.handler, methods=[one.method]) for one in described),
            Route("/api/openapi.json", openapi),
            WebSocketRoute("/api/jobs/{id}/logs/tail", jobs.tail),
        ],
        exception_handlers={404: not_found, 405: not_allowed},
    )
    application.router.redirect_slashes = False  # a path is one resource, or none
    return Guard(application, token, hosts)


def describe(routes: list[Described]) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    paths: dict[str, Any] = {}
    bodies = [route.body for route in routes if route.body is not None]
    _, components = msgspec.json.schema_components(
        bodies, ref_template="#/components/schemas/{name}"
    )
    for route in routes:
        statuses = sorted({200, 401, 403, *route.statuses})
        operation: dict[str, Any] = {
            "summary": route.summary,
            "responses": {
                str(status): {
                    "description": _MEANINGS[status],
                    "content": {"application/json": {"schema": {}}},
                }
                for status in statuses
            },
        }
        parameters: list[dict[str, Any]] = [
            {"name": name, "in": "query", "schema": {"type": kind, "minimum": 0}}
            for name, kind in route.query
        ]
        if "{id}" in route.path:
            text = {"type": "string"}
            parameters.append({"name": "id", "in": "path", "required": True, "schema": text})
        if parameters:
            operation["parameters"] = parameters
        if route.body is not None:
            schema = {"$ref": f"#/components/schemas/{route.body.__name__}"}
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
        if route.path == "/healthz":
            operation["security"] = []
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Skate", "version": API_VERSION},
        "paths": paths,
        "security": [{"token": []}],
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
