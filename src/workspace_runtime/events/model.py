"""The envelope of an event and its one stored form.

An event's bytes are made once, here: compact JSON with the envelope first (`seq, id, type, session_id, turn_id, timestamp`,
and `parent_tool_use_id` where there is one), then the fields of its type. These bytes are stored, sent on every WebSocket and
SSE line, and listed in the history, always the same. What would make them longer than `MAX_EVENT_BYTES` is cut, and the whole
is kept beside it.
"""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from .values import clean_json

JsonObject = dict[str, Any]

# No frame a client receives is longer than this (bytes of its JSON).
MAX_EVENT_BYTES = 512 * 1024

# The types a client receives that asks for nothing else.
DEFAULT_TYPES = frozenset({"thinking", "tool_use", "tool_result", "text", "done", "error"})
# Types that are only seen live: they have no `seq` and are never stored.
LIVE_TYPES = frozenset({"text_delta", "thinking_delta"})
STORED_TYPES = DEFAULT_TYPES | {
    "user_message",
    "turn_started",
    "permission_request",
    "permission_resolved",
    "queue_updated",
    "plan",
    "usage",
    "status",
    "session_updated",
    "task_updated",
    "compaction",
    "notice",
}
ALL_TYPES = STORED_TYPES | LIVE_TYPES
# Names that the API has settled and that nothing tells yet. A client may ask for them already: a newer server tells them.
COMING_TYPES = frozenset({
    "commands_updated", "mcp_updated",
    "tool_input_delta", "tool_output_delta", "tool_progress", "phase",
})  # fmt: skip

# Line ends of Unicode that JSON leaves as they are. Many readers of lines cut there, so they are always escaped.
_LINE_ENDS = (
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
    ("\x85".encode(), b"\\u0085"),
)


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it is sent. `seq` is 0 for a live one. `data` is its JSON; `whole` the uncut JSON where `data` is cut."""

    seq: int
    type: str
    turn_id: str | None
    parent_tool_use_id: str | None
    data: bytes
    whole: bytes | None = None


def new_id(prefix: str) -> str:
    """A fresh random id such as `evt_9f…`: 80 bits, never reused."""
    return f"{prefix}_{secrets.token_hex(10)}"


def now() -> str:
    """The time as the API says it: RFC 3339, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def encode(value: Any) -> bytes:
    """Compact JSON in UTF-8, in one line for whatever counts as the end of one. What JSON can't say is cleaned (`values`)."""
    try:
        data = orjson.dumps(value)
    except TypeError:
        data = orjson.dumps(clean_json(value))
    return in_one_line(data)


def in_one_line(data: bytes) -> bytes:
    """JSON without anything that counts as the end of a line for some reader."""
    if not data.isascii():
        for raw, escaped in _LINE_ENDS:
            if raw in data:
                data = data.replace(raw, escaped)
    return data


def make_event(
    *,
    seq: int,
    event_id: str,
    type: str,
    session_id: str,
    turn_id: str | None,
    parent_tool_use_id: str | None,
    fields: JsonObject,
    timestamp: str | None = None,
) -> Event:
    """Build an event and its bytes. `seq` 0 makes a live one, without `seq` in its JSON.

    `fields` are those of the type, in the order they are to be sent.
    """
    body: JsonObject = {"seq": seq} if seq else {}
    body["id"] = event_id
    body["type"] = type
    body["session_id"] = session_id
    body["turn_id"] = turn_id
    body["timestamp"] = timestamp or now()
    if parent_tool_use_id is not None:
        body["parent_tool_use_id"] = parent_tool_use_id
    body.update(fields)
    data = encode(body)
    if len(data) <= MAX_EVENT_BYTES:
        return Event(seq, type, turn_id, parent_tool_use_id, data)
    envelope = len(body) - len(fields)
    href = f"/api/v1/agent-sessions/{session_id}/events/{seq}"
    short = dict(body)
    if type == "tool_result":
        short["blob_id"] = f"output-{seq}"  # the door makes this blob from the whole event
    return Event(seq, type, turn_id, parent_tool_use_id, _cut(short, envelope, href), data)


def _cut(body: JsonObject, envelope: int, href: str) -> bytes:
    """The JSON of `body` within the limit: long strings of its fields shortened, long lists ended early."""
    names = list(body)[envelope:]
    text, items = 128 * 1024, 4096
    while True:
        cutter = _Cutter(text, items)
        short = {name: cutter.cut(body[name]) if name in names else body[name] for name in body}
        short |= {"truncated": True, "size": cutter.size, "href": href}
        data = encode(short)
        if len(data) <= MAX_EVENT_BYTES:
            return data
        text, items = text // 2, items // 2


class _Cutter:
    """Shortens values and adds up the UTF-8 size of the strings it cut, before the cut."""

    def __init__(self, text: int, items: int) -> None:
        self.text, self.items, self.size = text, items, 0

    def cut(self, value: Any) -> Any:
        if isinstance(value, str):
            if len(value) > self.text:
                self.size += len(value.encode("utf-8", "surrogatepass"))
                return value[: self.text]
            return value
        if isinstance(value, list | tuple):
            return [self.cut(item) for item in value[: self.items]]
        if isinstance(value, dict):
            return {key[:1024]: self.cut(value[key]) for key in list(value)[: self.items]}
        return value
