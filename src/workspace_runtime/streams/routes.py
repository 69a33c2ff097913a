"""The HTTP door of the workspace's live events."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from workspace_runtime.events.board import Board
from workspace_runtime.sse import HEAD_SCOPE

from .live import MAX_WATCHED, Narrowing, topics_of, watched
from .sse import WorkspaceEventStream

router = APIRouter(prefix="/api/v1", tags=["Live events"])


@router.get(
    "/events",
    summary="Stream the workspace's live events",
    responses={
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "description": "Events until the client goes. `data` is one of: file_changed, resync, system_stats.",
        }
    },
    response_class=Response,
)
async def workspace_events(
    request: Request,
    topics: Annotated[str | None, Query(max_length=1000, description="More topics, separated by commas.")] = None,
    watch: Annotated[
        list[str] | None, Query(max_length=MAX_WATCHED, description="Hear only of these paths and all below them.")
    ] = None,
) -> Response:
    """The same events as on the WebSocket `/api/v1/ws`, as `text/event-stream`. Answered when the watch stands: every later
    change is told. Nothing is replayed: after a connect, and after a `resync`, list again."""
    board: Board = request.app.state.board
    wanted = topics_of(board, {"topics": topics or ""})
    narrowing = Narrowing(watched(watch) if watch is not None else None)
    more = asyncio.Event()
    if request.scope.get(HEAD_SCOPE):
        return Response(media_type="text/event-stream")
    return WorkspaceEventStream(await board.subscribe(wanted, more.set), narrowing, more)
