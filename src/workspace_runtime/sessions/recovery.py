"""What follows a crash or a kill: turns that the old server left open are closed, before anything is served.

The agents themselves are gone by then (their keepers end them with the server). Each open tool gets its result, each pending
permission its end, each block that was cut was never stored; then come the `error` and the `done` of the turn.
"""

from typing import Any

import orjson

from workspace_runtime.events.log import EventLog

from .journal import Journal
from .model import SERVER_RESTARTED, JsonObject, SessionRecord, preview


def needs_recovery(record: SessionRecord) -> bool:
    """Whether the session was left in the middle of something."""
    return record.active_turn is not None or record.status in ("starting", "running", "requires_action")


async def recover(journal: Journal, record: SessionRecord, pending: list[JsonObject], waiting: int) -> None:
    """Close what was left open. `pending` are the session's pending permissions, `waiting` the length of its queue."""
    turn_id = record.active_turn["id"] if record.active_turn else None
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
        resolution = {"decision": "deny", "by": "server_restarted", "at": record.updated_at}
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
        fields = {"error": SERVER_RESTARTED, "code": "server_restarted", "retryable": True}
        journal.emit("error", fields, turn_id=turn_id)
        fields = {"stop_reason": "server_restarted", "usage": None, "cost_usd": None, "duration_ms": None}
        journal.emit("done", fields, turn_id=turn_id)
    record.active_turn = None
    record.pending_permissions = []
    _refresh_last_message(record, events)
    if waiting:
        record.queue_paused = True
    if record.status != "terminated":
        record.status = "idle"
        journal.emit("status", {"status": "idle"})
    batch = journal.commit(state=True, waited=True)
    await journal.log.settled(batch)


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
