"""The tables of the sessions, beside the events: what is kept of a session, its queue, its permissions, used keys.

Writing is by statements that travel in a batch of the event log, so that a session's state and its events are durable in the
same instant. Reading is at the start, all at once, but for answered permissions.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import orjson

from workspace_runtime.events.log import EventLog, Statement
from workspace_runtime.events.model import encode

from .model import JsonObject, Permission, QueuedPrompt, SessionRecord

# How long a `client_message_id` or `Idempotency-Key` makes a retry safe.
KEY_LIFETIME_S = 24 * 3600

SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (stream INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS prompts (
  session TEXT NOT NULL, turn TEXT NOT NULL, position REAL NOT NULL, body BLOB NOT NULL, PRIMARY KEY (session, turn)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS permissions (
  session TEXT NOT NULL, id TEXT NOT NULL, pending INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (session, id)
);
CREATE INDEX IF NOT EXISTS pending_permissions ON permissions (id) WHERE pending = 1;
CREATE TABLE IF NOT EXISTS used_keys (
  scope TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, answer BLOB NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (scope, key)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class UsedKey:
    """A key that a client has used: of which request (`digest` of its body), and what it was answered."""

    digest: str
    answer: JsonObject
    at: float


def save_session(record: SessionRecord, state: bytes) -> Statement:
    """Write a session's state, whole: `state` is its `SessionRecord.dump`."""
    return "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)", (record.stream, record.id, state)


def save_next_stream(stream: int) -> Statement:
    """Remember the next stream key, so that a removed session's is never given out again."""
    return "INSERT OR REPLACE INTO meta VALUES ('next_stream', ?)", (str(stream),)


def remove_session(record: SessionRecord, created_by: Sequence[tuple[str, str]] = ()) -> list[Statement]:
    """Remove all that is kept of a session; `created_by` are the used keys (scope, key) that it was created with."""
    return [
        *(("DELETE FROM used_keys WHERE scope = ? AND key = ?", name) for name in created_by),
        ("DELETE FROM sessions WHERE id = ?", (record.id,)),
        ("DELETE FROM prompts WHERE session = ?", (record.id,)),
        ("DELETE FROM permissions WHERE session = ?", (record.id,)),
        ("DELETE FROM used_keys WHERE scope = ?", (record.id,)),
        *EventLog.remove(record.stream),
    ]


def save_prompt(session_id: str, position: float, prompt: QueuedPrompt) -> Statement:
    """Keep a prompt until its turn begins. Prompts are taken in the order of `position`."""
    return "INSERT OR REPLACE INTO prompts VALUES (?, ?, ?, ?)", (session_id, prompt.turn_id, position, prompt.dump())


def remove_prompt(session_id: str, turn_id: str) -> Statement:
    """Forget a prompt: its turn has begun, or it was taken back."""
    return "DELETE FROM prompts WHERE session = ? AND turn = ?", (session_id, turn_id)


def save_permission(permission: Permission) -> Statement:
    """Write a permission as the API answers it."""
    pending = permission.resolution is None
    body = encode(permission.view())
    return "INSERT OR REPLACE INTO permissions VALUES (?, ?, ?, ?)", (
        permission.session_id,
        permission.id,
        int(pending),
        body,
    )


def save_key(scope: str, key: str, used: UsedKey) -> Statement:
    """Remember a used key. `scope` is a session's id, or empty for creating sessions."""
    return "INSERT OR REPLACE INTO used_keys VALUES (?, ?, ?, ?, ?)", (
        scope,
        key,
        used.digest,
        orjson.dumps(used.answer),
        used.at,
    )


def note_start() -> Statement:
    """Remember when the server started: by this write it learns whether its disk takes any."""
    return "INSERT OR REPLACE INTO meta VALUES ('started', ?)", (str(time.time()),)


def drop_old_keys() -> Statement:
    """Forget keys past their lifetime."""
    return "DELETE FROM used_keys WHERE at < ?", (time.time() - KEY_LIFETIME_S,)


async def load_next_stream(log: EventLog) -> int:
    """The next free stream key."""
    rows = await log.query("SELECT value FROM meta WHERE key = 'next_stream'")
    return int(rows[0][0]) if rows else 1


async def load_sessions(log: EventLog) -> list[SessionRecord]:
    """All sessions, oldest first."""
    return [SessionRecord.load(row[0]) for row in await log.query("SELECT state FROM sessions ORDER BY stream")]


async def load_session(log: EventLog, stream: int) -> SessionRecord | None:
    """The session of a stream."""
    rows = await log.query("SELECT state FROM sessions WHERE stream = ?", (stream,))
    return SessionRecord.load(rows[0][0]) if rows else None


async def load_prompts(log: EventLog, session_id: str | None = None) -> Iterator[tuple[str, float, QueuedPrompt]]:
    """All waiting prompts in order, or those of one session: session id, position, prompt."""
    rows = await log.query(
        "SELECT session, turn, position, body FROM prompts WHERE session = ? OR ? IS NULL ORDER BY session, position",
        (session_id, session_id),
    )
    return ((session, position, QueuedPrompt.load(turn, body)) for session, turn, position, body in rows)


async def load_keys(log: EventLog) -> dict[tuple[str, str], UsedKey]:
    """All used keys within their lifetime."""
    rows = await log.query(
        "SELECT scope, key, digest, answer, at FROM used_keys WHERE at >= ?", (time.time() - KEY_LIFETIME_S,)
    )
    return {(scope, key): UsedKey(digest, orjson.loads(answer), at) for scope, key, digest, answer, at in rows}


async def pending_permissions(log: EventLog) -> list[JsonObject]:
    """Permissions that waited when the server ended."""
    return [orjson.loads(row[0]) for row in await log.query("SELECT body FROM permissions WHERE pending = 1")]


async def answered_permissions(
    log: EventLog, session_ids: Sequence[str], before: int, limit: int, max_bytes: int
) -> tuple[list[JsonObject], int | None]:
    """Answered permissions of some sessions, newest first: those with a row below `before` (0: from the newest).

    At most `limit`, and `max_bytes` in all, or one. Also the row below which there are more, None where there are none.
    """
    marks = ",".join("?" * len(session_ids))
    sizes = await log.query(
        f"SELECT rowid, length(body) FROM permissions WHERE pending = 0 AND session IN ({marks})"  # noqa: S608
        " AND (? = 0 OR rowid < ?) ORDER BY rowid DESC LIMIT ?",
        (*session_ids, before, before, limit + 1),
    )
    count = fitting((size for _, size in sizes[:limit]), max_bytes)
    if not count:
        return [], None
    last = sizes[count - 1][0]
    rows = await log.query(
        f"SELECT body FROM permissions WHERE pending = 0 AND session IN ({marks})"  # noqa: S608
        " AND rowid <= ? AND rowid >= ? ORDER BY rowid DESC",
        (*session_ids, sizes[0][0], last),
    )
    return [orjson.loads(body) for (body,) in rows], last if len(sizes) > count else None


def fitting(sizes: Iterable[int], max_bytes: int) -> int:
    """How many of these, from the first, make a page: as many as `max_bytes` hold, or one."""
    count = total = 0
    for size in sizes:
        total += size
        if count and total > max_bytes:
            break
        count += 1
    return count


def trim_session(record: SessionRecord, below: int, at: str) -> list[Statement]:
    """Remove a session's events below a `seq`, what belongs to them, and the permissions answered before the time `at`."""
    return [
        *EventLog.trim(record.stream, below),
        (
            "DELETE FROM permissions WHERE session = ? AND pending = 0"
            " AND json_extract(CAST(body AS TEXT), '$.created_at') < ?",
            (record.id, at),
        ),
    ]


async def find_permission(log: EventLog, session_id: str, permission_id: str) -> JsonObject | None:
    """One permission of a session, answered or not."""
    rows = await log.query("SELECT body FROM permissions WHERE session = ? AND id = ?", (session_id, permission_id))
    return orjson.loads(rows[0][0]) if rows else None
