"""What follows a crash or a kill: turns that the old server left open are closed, before anything is served.

The agents themselves are gone by then (their keepers end them with the server). Each open tool gets its result, each pending
permission its end, each block that was cut was never stored; then come the `error` and the `done` of the turn.

A session of which something could not be stored is brought back in the same way, while the server runs: what is true of it is what
stands in the log.
"""

from collections.abc import Iterable
from typing import Any

import orjson

from workspace_runtime.events.blocks import OpenBlock
from workspace_runtime.events.log import Batch, EventLog
from workspace_runtime.events.model import now

from . import store
from .drivers.base import StopReason
from .journal import Journal
from .model import SERVER_RESTARTED, JsonObject, QueuedPrompt, SessionRecord, preview

NOT_STORED = (
    "Something of this turn could not be stored, so it was stopped. The next prompt goes on with the conversation."
)


def needs_recovery(record: SessionRecord) -> bool:
    """Whether the session was left in the middle of something."""
    return (
        bool(record.background)
        or record.active_turn is not None
        or record.status in ("starting", "running", "requires_action")
    )


async def recover(
    journal: Journal,
    record: SessionRecord,
    pending: list[JsonObject],
    waiting: int,
    *,
    blocks: Iterable[tuple[str, OpenBlock]] = (),
    error: tuple[str, str, StopReason] = ("server_restarted", SERVER_RESTARTED, "server_restarted"),
) -> Batch:
    """Close what was left open. `pending` are the session's pending permissions, `waiting` the length of its queue.

    `blocks` were being written, as far as they were shown; `error` is the turn's code, its message and its stop reason. Returns the
    batch that makes it durable, with a future.
    """
    code, message, reason = error
    turn_id = record.active_turn["id"] if record.active_turn else None
    for block_id, block in blocks:
        kind, fields = block.type.removesuffix("_delta"), {"content": block.content()[: block.shown], "partial": True}
        journal.emit(kind, fields, turn_id=block.turn_id, parent=block.parent_tool_use_id, event_id=block_id)
    for task in record.background:  # it went with the agent's process
        stopped = task | {"status": "stopped", "ended_at": now()}
        journal.emit("task_updated", {"task": stopped}, turn_id=turn_id)
    record.background = []
    events = await _events_of_turn(journal.log, record.stream, turn_id, journal.last_seq) if turn_id else []
    for tool in _open_tools(events):
        fields = {
            "tool": tool["tool"],
            "tool_use_id": tool["tool_use_id"],
            "output": "",
            "is_error": True,
            "status": "cancelled",
            "duration_ms": None,
        }
        journal.emit("tool_result", fields, turn_id=turn_id, parent=tool.get("parent_tool_use_id"))
    for permission in pending:
        by = "server_restarted" if reason == "server_restarted" else "turn_ended"
        resolution = {"decision": "deny", "by": by, "at": record.updated_at}
        body = orjson.dumps(permission | {"status": "resolved", "resolution": resolution})
        journal.also(
            (
                "UPDATE permissions SET pending = 0, body = ? WHERE session = ? AND id = ?",
                (body, record.id, permission["id"]),
            )
        )
        fields = {"permission_id": permission["id"], "tool_use_id": permission["tool_use_id"], **resolution}
        journal.emit(
            "permission_resolved", fields, turn_id=permission["turn_id"], parent=permission["parent_tool_use_id"]
        )
    if turn_id is not None:
        fields = {"error": message, "code": code, "retryable": True}
        journal.emit("error", fields, turn_id=turn_id)
        fields = {"stop_reason": reason, "usage": None, "cost_usd": None, "duration_ms": None}
        journal.emit("done", fields, turn_id=turn_id)
    record.active_turn = None
    record.pending_permissions = []
    _refresh_last_message(record, events)
    if waiting:
        record.queue_paused = True
    if record.status != "terminated":
        record.status = "idle"
        journal.emit("status", {"status": "idle"})
    return journal.commit(state=True, waited=True)


async def bring_back(old: Journal) -> tuple[SessionRecord, list[tuple[float, QueuedPrompt]]] | None:
    """A session's record and queue as they are stored, after its journal has broken; None where it never was stored.

    The old journal takes no more by then, and all that it had shown is closed in the log.
    """
    log, stream = old.log, old.stream
    log.mend(stream.key)
    record = await store.load_session(log, stream.key)
    if record is None:
        return None
    queue = [(position, prompt) for _, position, prompt in await store.load_prompts(log, record.id)]
    pending = [one for one in await store.pending_permissions(log) if one["session_id"] == record.id]
    blocks = list(stream.blocks.items())
    journal = Journal(log, stream, record)
    error: tuple[str, str, StopReason] = ("agent_error", NOT_STORED, "error")
    await log.settled(await recover(journal, record, pending, len(queue), blocks=blocks, error=error))
    stream.blocks.clear()
    record.queue_length = len(queue)
    return record, queue


async def _events_of_turn(log: EventLog, stream: int, turn_id: str, last_seq: int) -> list[JsonObject]:
    """The stored events of a turn, oldest first: it is the newest, so its beginning is the last `turn_started`."""
    start = await log.turn_start(stream, 1, before=last_seq + 1)
    events: list[JsonObject] = []
    after = max(0, start - 1)
    while rows := await log.read(stream, after=after, upto=last_seq, types=("tool_use", "tool_result", "text")):
        events += [orjson.loads(row.data) for row in rows]
        after = rows[-1].seq
    return [event for event in events if event["turn_id"] == turn_id]


def _open_tools(events: list[JsonObject]) -> list[JsonObject]:
    tools: dict[str, Any] = {}
    for event in events:
        if event["type"] == "tool_use":
            tools[event["tool_use_id"]] = event
        elif event["type"] == "tool_result":
            tools.pop(event["tool_use_id"], None)
    return list(tools.values())


def _refresh_last_message(record: SessionRecord, events: list[JsonObject]) -> None:
    """The record is not written with every text: find the last one again."""
    for event in reversed(events):
        if event["type"] == "text" and "parent_tool_use_id" not in event and event["content"].strip():
            text = preview(event["content"])
            record.last_message = {"role": "assistant", "text": text, "at": event["timestamp"]}
            return
