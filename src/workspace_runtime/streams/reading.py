"""How a client says what it wants to read, the same for WebSocket, SSE and history: `after`, `tail`, `log_id`, `events`."""

from collections.abc import Mapping
from dataclasses import dataclass

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.hub import Stream, event_types
from workspace_runtime.queries import invalid

MAX_SEQ = 2**40 - 1


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a subscriber begins (every event with a higher `seq`), and which types it gets. `chosen`: it said which."""

    after: int
    types: frozenset[str]
    chosen: bool


def whole(query: Mapping[str, str], name: str, *, most: int = MAX_SEQ) -> int | None:
    """A whole number of the query, None where it is not given. Raises 422."""
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) <= most):
        raise invalid(name, f"must be a whole number from 0 to {most}")
    return int(text)


def types_of(query: Mapping[str, str]) -> frozenset[str]:
    """The types that `events=` chooses. Raises 422 for an unknown one."""
    try:
        return event_types(query.get("events"))
    except KeyError as fault:
        raise invalid("events", f"{fault.args[0]!r} is no type of event") from None


def check_position(stream: Stream, after: int, log_id: str | None) -> None:
    """Raise `after_beyond_end` (409) or `history_trimmed` (410) for a position that can't be read on from."""
    if log_id is not None and log_id != stream.log.log_id:
        detail = "The log was replaced since: read again from 0."
        raise WorkspaceError("after_beyond_end", detail, last_seq=stream.head, log_id=stream.log.log_id)
    if after > stream.head:
        detail = f"after={after} lies beyond the last event, {stream.head}."
        raise WorkspaceError("after_beyond_end", detail, last_seq=stream.head, log_id=stream.log.log_id)
    if 0 < after < stream.first - 1:
        detail = f"Events up to {stream.first - 1} are no longer kept. Read again from the start."
        raise WorkspaceError("history_trimmed", detail, first_seq=stream.first)


async def reading(stream: Stream, query: Mapping[str, str], last_event_id: str | None = None) -> Reading:
    """Where to begin, and what to send. `last_event_id` (of an SSE client) wins over `after` and `tail`.

    Raises `WorkspaceError`: `validation_failed`, `after_beyond_end`, `history_trimmed`.
    """
    types = types_of(query)
    after = whole(query, "after")
    tail = whole(query, "tail", most=1_000_000)
    if last_event_id is not None:
        after = whole({"Last-Event-ID": last_event_id}, "Last-Event-ID")
        tail = None
    elif after is not None and tail is not None:
        raise invalid("tail", "goes without after")
    if tail is not None:
        if tail == 0:
            after = stream.head
        else:
            start = await stream.log.turn_start(stream.key, tail, before=stream.head + 1)
            after = max(0, start - 1)
        if 0 < after < stream.first - 1:
            after = 0
    check_position(stream, after or 0, query.get("log_id"))
    return Reading(after or 0, types, "events" in query)
