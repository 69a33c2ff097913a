"""The HTTP doors of the agents and their sessions."""

import asyncio
import dataclasses
import re
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel

from workspace_runtime.bodies import Limit, raw
from workspace_runtime.conditions import byte_range, matches
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.hub import Stream
from workspace_runtime.events.model import encode
from workspace_runtime.streams.protocol import EventPage
from workspace_runtime.streams.reading import MAX_SEQ, check_position, reading, types_of, whole
from workspace_runtime.streams.sse import EventStream

from . import schemas
from .intake import mime_type
from .keys import digest
from .manager import SessionManager
from .paging import MAX_PAGE_BYTES, pending_page
from .schemas import prompt_to_parts

router = APIRouter(prefix="/api/v1", tags=["Agent sessions"])
agents_router = APIRouter(prefix="/api/v1", tags=["Agents"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="Makes a retry safe for 24 h, over restarts too.",
    ),
]
Cursor = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")]


def _manager(request: Request) -> SessionManager:
    manager: SessionManager = request.app.state.manager
    return manager


# --- agents -------------------------------------------------------------------------------------------------------------


class ModeView(BaseModel):
    """A permission mode, by the agent's own name."""

    id: str
    label: str
    description: str
    dangerous: bool


class ModelView(BaseModel):
    """A model that the agent offers."""

    id: str
    label: str
    context_window: int | None
    efforts: list[str]
    default: bool


class AgentView(BaseModel):
    """An agent that sessions can be made with."""

    id: str
    name: str
    installed: bool
    version: str | None
    signed_in: bool | None
    sign_in: str
    capabilities: dict[str, bool]
    modes: list[ModeView]
    models: list[ModelView]


class AgentList(BaseModel):
    """All agents."""

    items: list[AgentView]
    next_cursor: None = None


@agents_router.get("/agents", response_model=AgentList, summary="List agents")
async def list_agents(request: Request) -> Response:
    """Every kind of agent: whether it is installed and signed in, what it can do, its modes and models."""
    infos = await asyncio.gather(*(agent.info() for agent in _manager(request).agents.values()))
    return raw(orjson.dumps({"items": [dataclasses.asdict(info) for info in infos], "next_cursor": None}))


# --- sessions -----------------------------------------------------------------------------------------------------------


@router.post("/agent-sessions", status_code=201, response_model=schemas.SessionView, summary="Create a session")
async def create_session(
    request: Request, body: schemas.CreateSession | None = None, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create an agent session. Answers at once, with the status `starting`; the agent starts meanwhile.

    With a `prompt` its first turn begins as soon as the agent stands.
    """
    manager = _manager(request)
    body = body or schemas.CreateSession()
    session = await manager.create(
        body.plain(), key=idempotency_key, digest=digest(body.model_dump(mode="json", exclude_defaults=True))
    )
    location = f"{request.scope.get('root_path', '')}/api/v1/agent-sessions/{session.record.id}"
    return raw(manager.view_bytes(session), 201, {"Location": location})


@router.get("/agent-sessions", response_model=schemas.SessionPage, summary="List sessions")
async def list_sessions(
    request: Request,
    status: Literal["starting", "idle", "running", "requires_action", "failed", "terminated"] | None = None,
    agent: str | None = None,
    label: str | None = None,
    q: Annotated[str | None, Query(max_length=200, description="Part of the title.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """All sessions, newest first."""
    items, next_cursor = _manager(request).list(
        limit=limit, cursor=cursor, status=status, agent=agent, label=label, query=q
    )
    return raw(b'{"items":[' + b",".join(items) + b'],"next_cursor":' + orjson.dumps(next_cursor) + b"}")


@router.get("/agent-sessions/{session_id}", response_model=schemas.SessionView, summary="Get a session")
async def get_session(request: Request, session_id: str) -> Response:
    """One session."""
    manager = _manager(request)
    return raw(manager.view_bytes(manager.get(session_id)))


@router.patch("/agent-sessions/{session_id}", response_model=schemas.SessionView, summary="Change a session")
async def patch_session(request: Request, session_id: str, body: schemas.PatchSession) -> Response:
    """Change title, labels, model, effort or permission mode, also while a turn runs."""
    manager = _manager(request)
    session = manager.get(session_id)
    await session.actor.change(body.changes())
    return raw(manager.view_bytes(session))


@router.delete("/agent-sessions/{session_id}", status_code=204, summary="Terminate a session")
async def delete_session(
    request: Request,
    session_id: str,
    purge: Annotated[bool, Query(description="Remove its history as well.")] = False,
) -> Response:
    """Stop the agent and all that it started, and keep the history. Once done, done again is the same."""
    manager = _manager(request)
    await (manager.purge(session_id) if purge else manager.terminate(session_id))
    return Response(status_code=204)


@router.post("/agent-sessions/{session_id}/reopen", response_model=schemas.SessionView, summary="Reopen a session")
async def reopen_session(request: Request, session_id: str) -> Response:
    """Make a terminated session idle again. Its agent goes on with the conversation at the next prompt."""
    manager = _manager(request)
    session = await manager.reopen(session_id)
    return raw(manager.view_bytes(session))


@router.post(
    "/agent-sessions/{session_id}/messages",
    status_code=202,
    response_model=schemas.ReceiptView,
    summary="Send a prompt",
)
async def send_message(
    request: Request, session_id: str, body: schemas.PromptBody, idempotency_key: IdempotencyKey = None
) -> Response:
    """Send a prompt. It is durable when this answers; each prompt is one turn, in order."""
    key = body.client_message_id or idempotency_key
    content = body.model_dump(mode="json", exclude={"client_message_id"})
    receipt = await _manager(request).prompt(
        session_id, prompt_to_parts(body.prompt), delivery=body.delivery, client_message_id=key, digest=digest(content)
    )
    return raw(orjson.dumps(receipt.view()), 202)


@router.post(
    "/agent-sessions/{session_id}/interrupt",
    response_model=schemas.InterruptView,
    responses={204: {"description": "No turn was running."}},
    summary="Interrupt the running turn",
)
async def interrupt_session(request: Request, session_id: str, body: schemas.InterruptBody | None = None) -> Response:
    """Stop the running turn within 3 s and keep the session. Answers once the turn's `done` is durable."""
    drop = body is not None and body.queue == "drop"
    stopped = await _manager(request).get(session_id).actor.interrupt(drop_queue=drop)
    return Response(status_code=204) if stopped is None else raw(orjson.dumps(stopped))


# --- permissions --------------------------------------------------------------------------------------------------------

PermissionStatus = Annotated[Literal["pending", "resolved"], Query(description="Waiting, or answered (newest first).")]


async def _permissions(
    request: Request, session_id: str | None, status: str, limit: int, cursor: str | None
) -> Response:
    manager = _manager(request)
    if status == "pending":
        found, next_cursor = pending_page(manager.pending_permissions(session_id), limit=limit, cursor=cursor)
    else:
        answered, next_cursor = await manager.answered_permissions(session_id, limit=limit, cursor=cursor)
        found = [encode(permission) for permission in answered]
    return raw(b'{"items":[' + b",".join(found) + b'],"next_cursor":' + orjson.dumps(next_cursor) + b"}")


@router.get("/permissions", response_model=schemas.PermissionPage, summary="List permissions of all sessions")
async def list_all_permissions(
    request: Request, status: PermissionStatus = "pending", limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """What agents ask, over all sessions."""
    return await _permissions(request, None, status, limit, cursor)


@router.get(
    "/agent-sessions/{session_id}/permissions", response_model=schemas.PermissionPage, summary="List permissions"
)
async def list_permissions(
    request: Request, session_id: str, status: PermissionStatus = "pending", limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """What the agent of one session asks."""
    return await _permissions(request, session_id, status, limit, cursor)


@router.post(
    "/agent-sessions/{session_id}/permissions/{permission_id}",
    response_model=schemas.PermissionView,
    summary="Answer a permission",
)
async def answer_permission(
    request: Request, session_id: str, permission_id: str, body: schemas.PermissionBody
) -> Response:
    """Answer by one of the options, or by a decision. A second answer is refused with the first one's `resolution`."""
    permission = await _manager(request).answer_permission(session_id, permission_id, body.plain())
    return raw(encode(permission))


# --- reading ------------------------------------------------------------------------------------------------------------


@router.get(
    "/agent-sessions/{session_id}/events",
    response_model=EventPage,
    responses={200: {"content": {"text/event-stream": {}}}, 204: {"description": "SSE: the session is over."}},
    summary="Read events",
)
async def read_events(
    request: Request,
    session_id: str,
    after: Annotated[int | None, Query(ge=0, le=MAX_SEQ, description="Events with a higher seq.")] = None,
    before: Annotated[int | None, Query(ge=1, le=MAX_SEQ, description="Events with a lower seq.")] = None,
    order: Literal["asc", "desc"] = "asc",
    turns: Annotated[
        int | None, Query(ge=1, le=1000, description="Only the newest so many turns of the range.")
    ] = None,
    tail: Annotated[
        int | None, Query(ge=0, description="Begin with the newest so many turns; 0: only what comes.")
    ] = None,
    events: Annotated[str | None, Query(description="`all`, or types with commas; by default the six.")] = None,
    parent_tool_use_id: str | None = None,
    log_id: str | None = None,
    limit: Limit = 1000,
) -> Response:
    """A page of the history, of 4 MiB at most; with `Accept: text/event-stream` a stream of all events after `after`, then live.

    An event is the same bytes here, in the stream and on the WebSocket.
    """
    session = _manager(request).get(session_id)
    stream = session.stream
    if _wants_stream(request.headers.get("accept", "")):
        wanted = await reading(stream, request.query_params, request.headers.get("last-event-id"))
        if stream.ended and wanted.after >= stream.head:
            return Response(status_code=204)
        return EventStream(stream, wanted)
    types = types_of(request.query_params)
    head = stream.head
    check_position(stream, after or 0, log_id)
    low, high = after or 0, min(head, before - 1 if before is not None else head)
    if tail is not None:
        low = (await reading(stream, request.query_params)).after
    if turns is not None:
        low = max(low, await stream.log.turn_start(stream.key, turns, before=high + 1) - 1)
    page = await stream.log.page(
        stream.key, after=max(low, 0), upto=high, types=types, parent=parent_tool_use_id, descending=order == "desc",
        limit=limit, max_bytes=MAX_PAGE_BYTES,
    )  # fmt: skip
    items = b",".join([row.data for row in page.rows])
    facts = {"first_seq": stream.first, "last_seq": head, "has_more": page.more}
    return raw(b'{"items":[' + items + b"]," + orjson.dumps(facts)[1:])


def _wants_stream(accept: str) -> bool:
    return any(part.split(";")[0].strip().lower() == "text/event-stream" for part in accept.split(","))


async def _event(stream: Stream, seq: int) -> bytes | None:
    """An event of a session, whole; None where it has none of that `seq` that is published and kept."""
    return await stream.log.event(stream.key, seq) if stream.first <= seq <= stream.head else None


@router.get("/agent-sessions/{session_id}/events/{seq}", summary="Read one event whole")
async def read_event(request: Request, session_id: str, seq: str) -> Response:
    """One event, whole, however long it is."""
    stream = _manager(request).get(session_id).stream
    data = await _event(stream, whole({"seq": seq}, "seq") or 0)
    if data is None:
        raise WorkspaceError("event_not_found", f"There is no event {seq} here.", last_seq=stream.head)
    return raw(data)


_OUTPUT_BLOB = re.compile(r"output-([0-9]{1,13})")


@router.get(
    "/agent-sessions/{session_id}/blobs/{blob_id}",
    summary="Read an image or a whole output",
    responses={
        200: {"content": {"application/octet-stream": {}}},
        206: {"description": "The range that was asked for."},
    },
    response_class=Response,
)
async def read_blob(request: Request, session_id: str, blob_id: str) -> Response:
    """The bytes of an image, or of an output that was cut (`output-SEQ`), whole or by `Range`."""
    stream = _manager(request).get(session_id).stream
    found = None
    output = _OUTPUT_BLOB.fullmatch(blob_id)
    if output:
        event = await _event(stream, int(output[1]))
        text = await asyncio.to_thread(_output_of, event) if event is not None else None
        found = None if text is None else ("text/plain; charset=utf-8", text)
    else:
        found = await stream.log.blob(stream.key, blob_id)
        found = None if found is None else (mime_type(found[0]), found[1])
    if found is None:
        raise WorkspaceError("blob_not_found", f"There is no blob {blob_id[:100]!r} here.")
    media_type, data = found
    etag = f'"{blob_id}"'
    headers = {
        "Accept-Ranges": "bytes", "ETag": etag, "Cache-Control": "private, max-age=31536000, immutable",
        # what an agent brought must never run as a page of ours
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }  # fmt: skip
    if matches(request.headers.get("if-none-match", ""), etag, weak=True):
        return Response(status_code=304, headers=headers)
    part = byte_range(request.headers, len(data), etag, 0)
    if part is None:
        return Response(data, headers=headers, media_type=media_type)
    start, end = part
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
    return Response(data[start:end], 206, headers, media_type=media_type)


def _output_of(event: bytes) -> bytes | None:
    fields = orjson.loads(event)
    return fields["output"].encode() if fields["type"] == "tool_result" else None
