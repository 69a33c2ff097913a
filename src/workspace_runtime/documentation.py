"""FastAPI's application: the typed routes, their documents and pages."""

import json
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from . import __version__
from .errors import PROBLEMS, WorkspaceError
from .problems import MEDIA_TYPE, from_status, from_validation, problem

DESCRIPTION = """
The server inside a development workspace that runs coding agents and streams what they think and do.

Every error answer is a problem document (RFC 9457) with a stable `code`. Events of a session are read by the history
(`GET …/events`), by server-sent events on the same path, or by the WebSocket `/api/v1/ws/agent-sessions/{id}`, always from the
same log: `after=SEQ` gives every later event exactly once. The WebSocket's frames are described in `asyncapi.json`.
"""


class ErrorRow(BaseModel):
    """One field that does not fit."""

    loc: list[str | int]
    msg: str
    type: str


class ProblemView(BaseModel):
    """An error (RFC 9457, `application/problem+json`)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable, for programs.", examples=sorted(PROBLEMS)[:3])
    request_id: str
    errors: list[ErrorRow] | None = Field(default=None, description="With 422: each field that does not fit.")


class HealthView(BaseModel):
    """A stranger sees `status` alone."""

    status: str
    version: str | None = None
    uptime_s: float | None = None
    workspace_id: str | None = None
    running_agents: int | None = None


class WorkspaceView(BaseModel):
    """The workspace."""

    id: str
    name: str
    root: str


class ApiView(BaseModel):
    """What this server is, can do, and allows."""

    version: str
    workspace: WorkspaceView
    features: list[str]
    limits: dict[str, int | float]


def build_api(routers: list[APIRouter], about: Callable[[], dict[str, Any]] | None = None) -> FastAPI:
    """The application with all routes. `about` gives the answer of `GET /api/v1`."""
    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url="/redoc",
        title="Workspace Runtime",
        version=__version__,
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_url="/openapi.json",
        redirect_slashes=False,
        # what is measured costs a quarter of a request's time
        telemetry={"tracing": False, "metrics": False, "logs": False},
        responses={
            "4XX": {"model": ProblemView, "description": "Refused: see `code`."},
            "5XX": {"model": ProblemView, "description": "Failed: the server's log has more under `request_id`."},
        },
        generate_unique_id_function=lambda route: route.name,
    )

    async def refused(request: Request, fault: Exception) -> Response:
        if isinstance(fault, HTTPException):
            error = from_status(fault.status_code, str(fault.detail))
            headers = dict(fault.headers or {})
        elif isinstance(fault, RequestValidationError):
            error, headers = from_validation(fault.errors(), request.headers.get("content-type", "")), {}
        elif isinstance(fault, WorkspaceError):
            error, headers = fault, {}
        else:
            error, headers = WorkspaceError("internal_error", "Something went wrong in the server."), {}
        if error.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="workspace-runtime"'
        if "retry_after_s" in error.data:
            headers["Retry-After"] = str(error.data["retry_after_s"])
        body = problem(error.code, error.detail, request.scope.get("request_id", ""), error.data)
        return Response(body, error.status, headers, media_type=MEDIA_TYPE)

    for kind in (HTTPException, RequestValidationError, WorkspaceError, Exception):
        app.add_exception_handler(kind, refused)

    @app.get("/", include_in_schema=False)
    async def home(request: Request) -> Response:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/docs", 307)

    async def health() -> Response:
        """Needs no sign-in. A stranger is told the status alone, whoever may connect more. 503 when it is not ready."""
        raise WorkspaceError("not_found", "The entry answers this.")

    for path, name, summary in (
        ("/health", "health", "Health check"),
        ("/health/live", "health_live", "Alive?"),
        ("/health/ready", "health_ready", "Ready?"),
    ):
        app.get(path, name=name, response_model=HealthView, tags=["Health"], summary=summary)(health)

    @app.get("/api/v1", response_model=ApiView, tags=["Server"], summary="About this server")
    async def about_server() -> Response:
        """The version, the workspace, what this server can do, and every limit that is in force."""
        return Response(json.dumps(about() if about else {}), media_type="application/json")

    for router in routers:
        app.include_router(router)
    app.openapi = lambda: _with_problems(FastAPI.openapi(app))  # type: ignore[method-assign]  # FastAPI's own way
    return app


def _with_problems(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the errors' true media type: FastAPI knows one for all answers of a route."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if status[0] in "45" and "application/json" in answer.get("content", {}):
                    answer["content"] = {MEDIA_TYPE: answer["content"]["application/json"]}
    return document
