"""The event log: one SQLite file, one writer thread, group commit.

Invariant: what a reader or subscriber sees has been fsynced (WAL with `synchronous=FULL`). `submit` hands a batch to the
writer, which takes all that waits, commits it at once, and only then lets the batches be published, in order, on the event
loop. A batch may carry statements of other tables beside its events (a session's state, its queue), so that both are durable
in the same instant or not at all.

A write that fails (a full disk) is not dropped: the writer keeps the batches, says so (`healthy`), and tries again until it
succeeds; meanwhile nothing is published and `room` holds back those who would add more.

Rows of the `events` table have the key `stream << 40 | seq`: one tree, appended in order, read by range.
"""

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import WorkspaceError
from .model import Event, new_id

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_SHIFT = 40
_SEQ_MASK = (1 << _SHIFT) - 1
# Above these, those who append wait (`room`): a bound on memory while the disk is slower than the agents.
_MAX_BACKLOG_BATCHES = 4096
_MAX_BACKLOG_BYTES = 32 * 1024 * 1024
# How long an answer may wait for a disk that does not take writes.
COMMIT_TIMEOUT_S = 15.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, type TEXT NOT NULL, turn TEXT, parent TEXT, data BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS turn_starts ON events (id) WHERE type = 'turn_started';
CREATE TABLE IF NOT EXISTS wholes (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS blobs (
  stream INTEGER NOT NULL, id TEXT NOT NULL, mime_type TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (stream, id)
);
"""

Statement = tuple[str, Sequence[Any]]


@dataclass(slots=True)
class Batch:
    """What is committed together. `published` runs on the event loop once it is durable."""

    stream: int = 0
    events: Sequence[Event] = ()
    statements: list[Statement] = field(default_factory=list)
    published: Callable[[], None] | None = None
    done: "asyncio.Future[None] | None" = None

    @property
    def size(self) -> int:
        """Bytes held in memory, roughly."""
        return sum(len(event.data) + len(event.whole or b"") for event in self.events)


@dataclass(frozen=True, slots=True)
class Row:
    """A stored event: its `seq` and its bytes."""

    seq: int
    data: bytes


class EventLog:
    """The log of one state folder. Made by `open`; `submit` and `room` are of the event loop's thread alone."""

    def __init__(self, path: Path, connection: sqlite3.Connection, log_id: str) -> None:
        self.path = path
        self.log_id = log_id
        self.healthy = True
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._outstanding = 0
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="log-reader")
        self._local = threading.local()
        self._reader_connections: list[sqlite3.Connection] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_loop, name="log-writer", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, folder: Path, schema: str = "") -> "EventLog":
        """Open or make the log in `folder`; `schema` makes the tables of others who commit along.

        A file that is no sound database is set aside beside it, never deleted, and a new log with a new `log_id` begins.
        """
        path = folder / "log.sqlite3"
        try:
            connection = _connect(path, schema)
        except sqlite3.DatabaseError as fault:
            if isinstance(fault, sqlite3.OperationalError) and "malformed" not in str(fault):
                raise
            aside = f"{path}.broken-{int(time.time())}"
            logger.error("the event log %s is damaged (%s): set aside as %s, a new one begins", path, fault, aside)
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{path}{suffix}", f"{aside}{suffix}")
            connection = _connect(path, schema)
        row = connection.execute("SELECT value FROM meta WHERE key = 'log_id'").fetchone()
        return cls(path, connection, row[0])

    # --- writing ------------------------------------------------------------------------------------------------------

    def submit(self, batch: Batch) -> None:
        """Hand a batch to the writer. Batches become durable and are published in the order of these calls."""
        if self._closing.is_set():
            raise WorkspaceError("shutting_down", "The server is stopping; nothing was changed. Try again in a moment.")
        self._outstanding += 1
        self._bytes += batch.size
        if self._outstanding > _MAX_BACKLOG_BATCHES or self._bytes > _MAX_BACKLOG_BYTES:
            self._room.clear()
        self._waiting.put(batch)

    async def commit(self, batch: Batch) -> None:
        """Submit a batch and wait until it is durable and published.

        Raises `WorkspaceError("storage_unavailable")` when the disk takes no writes for `COMMIT_TIMEOUT_S`; the batch
        then still stands in line, and becomes durable once the disk takes writes again.
        """
        batch.done = self._loop.create_future()
        self.submit(batch)
        await self.settled(batch)

    async def settled(self, batch: Batch) -> None:
        """Wait for a batch that was submitted with a `done` future. Raises as `commit`."""
        assert batch.done is not None
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await asyncio.shield(batch.done)
        except TimeoutError:
            detail = (
                "The state folder takes no writes (is its disk full?). Free some space; it is tried again by itself."
            )
            raise WorkspaceError("storage_unavailable", detail) from None

    def future(self) -> "asyncio.Future[None]":
        """A future for a batch's `done`."""
        return self._loop.create_future()

    async def room(self) -> None:
        """Wait until the backlog is short enough to add more. Whoever turns an agent's output into events awaits it."""
        await self._room.wait()

    def _write_loop(self) -> None:
        stop = False
        while not stop:
            item = self._waiting.get()
            batches: list[Batch] = []
            while True:
                if item is None:
                    stop = True
                else:
                    batches.append(item)
                try:
                    item = self._waiting.get_nowait()
                except queue.Empty:
                    break
            if batches:
                self._commit_until_done(batches)
                with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody is left to tell
                    self._loop.call_soon_threadsafe(self._publish, batches)

    def _commit_until_done(self, batches: list[Batch]) -> None:
        while True:
            try:
                self._write(batches)
            except sqlite3.Error as fault:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.rollback()
                if self.healthy:
                    logger.error("the event log can't be written (%s): trying again", fault)
                self.healthy = False
                if self._closing.wait(0.5):
                    logger.error("gave up on %d batches that could not be written", len(batches))
                    return
            else:
                if not self.healthy:
                    logger.info("the event log can be written again")
                self.healthy = True
                return

    def _write(self, batches: list[Batch]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        rows: list[Any] = []
        for batch in batches:
            base = batch.stream << _SHIFT
            for event in batch.events:
                key = base | event.seq
                rows += (key, event.type, event.turn_id, event.parent_tool_use_id, event.data)
                if event.whole is not None:
                    execute("INSERT INTO wholes VALUES (?, ?)", (key, event.whole))
            if batch.statements:
                self._insert(rows)  # a statement may remove what stands before it
                rows = []
                for statement, parameters in batch.statements:
                    execute(statement, parameters)
        self._insert(rows)
        execute("COMMIT")

    def _insert(self, rows: list[Any]) -> None:
        """Insert events, five values each. Many by one statement: each call gives up the interpreter's lock once, and a
        busy event loop is slow to return it."""
        start = 0
        while start < len(rows):
            count = min(64, 1 << (((len(rows) - start) // 5).bit_length() - 1))
            values = ",".join(("(?,?,?,?,?)",) * count)
            self._connection.execute(f"INSERT INTO events VALUES {values}", rows[start : start + 5 * count])  # noqa: S608
            start += 5 * count

    def _publish(self, batches: list[Batch]) -> None:
        for batch in batches:
            self._outstanding -= 1
            self._bytes -= batch.size
            if batch.published is not None:
                batch.published()
            if batch.done is not None and not batch.done.done():
                batch.done.set_result(None)
        if self._outstanding <= _MAX_BACKLOG_BATCHES // 2 and self._bytes <= _MAX_BACKLOG_BYTES // 2:
            self._room.set()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a reading statement, run in a reader thread."""
        return await self._loop.run_in_executor(self._readers, self._query, statement, parameters)

    def _query(self, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(f"file:{_quote(self.path)}?mode=ro", uri=True, check_same_thread=False)
            connection.execute("PRAGMA query_only = 1")
            self._local.connection = connection
            self._reader_connections.append(connection)
        return connection.execute(statement, parameters).fetchall()

    async def read(
        self,
        stream: int,
        *,
        after: int,
        upto: int,
        types: Iterable[str] | None = None,
        parent: str | None = None,
        descending: bool = False,
        limit: int = 512,
        max_bytes: int = 1024 * 1024,
    ) -> list[Row]:
        """Stored events with `after < seq <= upto`, at most `limit` of them and about `max_bytes` of data.

        Fewer than `limit` rows do not mean that there are no more: ask again until none comes.
        """
        where = ["id > ? AND id <= ?"]
        parameters: list[Any] = [(stream << _SHIFT) | after, (stream << _SHIFT) | upto]
        if types is not None:
            names = sorted(types)
            where.append(f"type IN ({','.join('?' * len(names))})")
            parameters += names
        if parent is not None:
            where.append("parent = ?")
            parameters.append(parent)
        order = "DESC" if descending else "ASC"
        statement = f"SELECT id, data FROM events WHERE {' AND '.join(where)} ORDER BY id {order}"  # noqa: S608
        return await self._loop.run_in_executor(self._readers, self._page, statement, parameters, limit, max_bytes)

    def _page(self, statement: str, parameters: Sequence[Any], limit: int, max_bytes: int) -> list[Row]:
        self._query("SELECT 1", ())
        page: list[Row] = []
        size = 0
        cursor = self._local.connection.execute(statement, parameters)
        try:
            while len(page) < limit and size < max_bytes:
                rows = cursor.fetchmany(min(64, limit - len(page)))
                if not rows:
                    break
                for key, data in rows:
                    if page and size + len(data) > max_bytes:
                        return page
                    page.append(Row(key & _SEQ_MASK, data))
                    size += len(data)
        finally:
            cursor.close()
        return page

    async def bounds(self, stream: int) -> tuple[int, int]:
        """The first and last `seq` stored of a stream; (0, 0) when there is none."""
        return await self._loop.run_in_executor(self._readers, self.bounds_now, stream)

    def bounds_now(self, stream: int) -> tuple[int, int]:
        """As `bounds`, at once: for the start, before anything is served."""
        low, high = stream << _SHIFT, (stream + 1) << _SHIFT
        # two statements: SQLite answers min or max from the tree's edge only when asked for one of them
        first = self._query("SELECT min(id) FROM events WHERE id > ? AND id < ?", (low, high))[0][0]
        last = self._query("SELECT max(id) FROM events WHERE id > ? AND id < ?", (low, high))[0][0]
        return (0, 0) if first is None else (first & _SEQ_MASK, last & _SEQ_MASK)

    async def turn_start(self, stream: int, back: int, *, before: int) -> int:
        """The `seq` at which the `back`-th newest turn that began below `before` begins; 0 when there are fewer."""
        statement = (
            "SELECT id FROM events WHERE type = 'turn_started' AND id > ? AND id < ? ORDER BY id DESC LIMIT 1 OFFSET ?"
        )
        rows = await self.query(statement, (stream << _SHIFT, (stream << _SHIFT) | before, back - 1))
        return rows[0][0] & _SEQ_MASK if rows else 0

    async def event(self, stream: int, seq: int) -> bytes | None:
        """One event, whole, however long it is."""
        key = (stream << _SHIFT) | seq
        rows = await self.query("SELECT data FROM wholes WHERE id = ?", (key,))
        rows = rows or await self.query("SELECT data FROM events WHERE id = ?", (key,))
        return rows[0][0] if rows else None

    async def blob(self, stream: int, blob_id: str) -> tuple[str, bytes] | None:
        """A blob's MIME type and bytes."""
        rows = await self.query("SELECT mime_type, data FROM blobs WHERE stream = ? AND id = ?", (stream, blob_id))
        return rows[0] if rows else None

    # --- statements for a batch ---------------------------------------------------------------------------------------

    @staticmethod
    def put_blob(stream: int, mime_type: str, data: bytes) -> tuple[str, Statement]:
        """A new blob: its id, and the statement that stores it."""
        blob_id = new_id("blob")
        return blob_id, ("INSERT INTO blobs VALUES (?, ?, ?, ?)", (stream, blob_id, mime_type, data))

    @staticmethod
    def trim(stream: int, below: int) -> list[Statement]:
        """Statements that remove all events of a stream with a `seq` below `below`."""
        bounds = (stream << _SHIFT, (stream << _SHIFT) | below)
        return [(f"DELETE FROM {table} WHERE id > ? AND id < ?", bounds) for table in ("events", "wholes")]  # noqa: S608

    @staticmethod
    def remove(stream: int) -> list[Statement]:
        """Statements that remove all of a stream."""
        return [*EventLog.trim(stream, _SEQ_MASK), ("DELETE FROM blobs WHERE stream = ?", (stream,))]

    async def close(self) -> None:
        """Write all that waits (giving up after a failed try), then close the files."""
        self._closing.set()
        self._waiting.put(None)
        await self._loop.run_in_executor(None, self._thread.join)
        await asyncio.sleep(0)  # let the last batches be published
        self._readers.shutdown(wait=True)
        for connection in [*self._reader_connections, self._connection]:
            connection.close()


def _quote(path: Path) -> str:
    return os.fspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _connect(path: Path, schema: str) -> sqlite3.Connection:
    """The writing connection, with its tables. Raises `sqlite3.DatabaseError` for a file that is no sound database."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite gives its other files the same mode
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: with NORMAL a power cut may lose commits, and their seq would be given out again.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 2000")
        connection.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}{schema};COMMIT;")
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('log_id', ?)", (new_id("log"),))
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),))
        version = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()[0]
    except BaseException:
        connection.close()
        raise
    if version != str(SCHEMA_VERSION):
        connection.close()
        raise WorkspaceError(
            "storage_unavailable",
            f"{path} was written by another version (schema {version}). Use that, or another STATE_PATH.",
        )
    return connection
