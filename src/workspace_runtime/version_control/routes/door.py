"""What the doors of version control share."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import orjson
from fastapi import Query, Request, Response

from workspace_runtime.bodies import JSON, raw
from workspace_runtime.conditions import matches
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.queries import query_of, query_path

from ..credentials import tellable
from ..operations import Operation
from ..room import VersionControl
from ..work import Work

# For the documents: the door reads the path itself, since the framework's own reading loses what is not UTF-8.
Where = Annotated[
    str,
    Query(max_length=8192, description="Any path in the repository that is meant; left out, the workspace's root."),
]
Encoded = Annotated[str | None, Query(max_length=16384, description="`path` percent-encoded once more.")]
Cursor = Annotated[str | None, Query(max_length=16384, description="`next_cursor` of the page before.")]
Wait = Annotated[bool, Query(description="false: answer 202 with the operation, to be watched.")]


async def known_workspace(request: Request, id: str) -> None:
    """Raises `workspace_not_found` for another workspace's id."""
    if id != request.app.state.workspace_id:
        raise WorkspaceError("workspace_not_found", f"There is no workspace {tellable(id)!r} here.")


def room(request: Request) -> VersionControl:
    """The room."""
    found: VersionControl = request.app.state.version_control
    return found


def where(request: Request) -> bytes:
    """The path of the query."""
    return query_path(query_of(request.scope))


def answer(body: dict[str, Any], status: int = 200) -> Response:
    """A JSON answer."""
    return raw(orjson.dumps(body), status)


def tagged(request: Request, body: bytes, etag: str) -> Response:
    """A JSON answer with its entity tag; 304 where the client has it already."""
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    asked = request.headers.get("if-none-match")
    if asked is not None and matches(asked, etag, weak=True):
        return Response(status_code=304, headers=headers)
    return Response(body, 200, headers, media_type=JSON)


async def changed(
    request: Request,
    kind: str,
    call: Callable[[Work], Awaitable[dict[str, Any]]],
    status: int = 200,
    *,
    worktree: bool = True,
) -> Response:
    """Do a change in its turn, and answer its result."""
    return answer(await room(request).change(kind, where(request), call, worktree=worktree), status)


async def told(request: Request, operation: Operation, *, wait: bool, status: int = 200) -> Response:
    """The result of an operation, or with 202 the operation itself."""
    if wait:
        return answer(await room(request).operations.result(operation), status)
    base = f"{request.scope.get('root_path', '')}/api/v1/workspaces/{request.path_params['id']}/version-control"
    return raw(orjson.dumps(operation.view()), 202, {"Location": f"{base}/operations/{operation.id}"})
