"""The event log: one SQLite file, one writer thread, group commit.

Invariant: what a reader or subscriber sees has been fsynced (WAL with `synchronous=FULL`). `submit` hands a batch to the
writer, which takes all that waits, commits it at once, and only then lets the batches be published, in order, on the event
loop. A batch may carry statements of other tables beside its events (a session's state, its queue), so that both are durable
in the same instant or not at all.

A write that fails because of the disk is not dropped: the writer keeps the batches, says so (`healthy`), and tries again until it
succeeds; meanwhile nothing is published and `room` holds back those who would add more. A log that can't even be opened, for the same
reason, is opened by the writer's next try that can; until then (`opened`) nothing can be read either. A batch that itself can't be stored
is refused with its exception, and the others live (see `writer`).

Rows of the `events` table have the key `stream << 40 | seq`: one tree, appended in order, read by range.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, WorkspaceError
from .database import SEQ_MASK, connect, key_of
from .model import new_id
from .writer import Batch, Erase, Mend, Statement, StreamBroken, Writer, unavailable

__all__ = ["Batch", "EventLog", "Page", "Row", "Statement", "StreamBroken", "unavailable"]

logger = logging.getLogger(__name__)

# Above these, those who append wait (`room`): a bound on memory while the disk is slower than the agents.
_MAX_BACKLOG_BATCHES = 4096
_MAX_BACKLOG_BYTES = 32 * 1024 * 1024
# So many events are taken in one turn of the event loop: a pipe that never runs dry must not hold up everybody else.
_EVENTS_A_TURN = 512
# How long an answer may wait for a disk that does not take writes.
COMMIT_TIMEOUT_S = 15.0
# How long a removal waits until nothing is left in the files; the rest is done afterwards.
ERASE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Row:
    """A stored event: its `seq` and its bytes."""

    seq: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """Stored events in the order that was asked for, and whether there are more."""

    rows: Sequence[Row]
    more: bool


class EventLog:
    """The log of one state folder. Made by `open`; `submit` and `room` are of the event loop's thread alone."""

    def __init__(self, path: Path, connection: sqlite3.Connection | None, schema: str) -> None:
        self.path = path
        self.log_id = ""
        self.opened = False
        self._schema = schema
        self._maybe_connection = connection
        if connection is not None:
            self._begin_with(connection)
        self._loop = asyncio.get_running_loop()
        self._outstanding = 0
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="log-reader")
        self._local = threading.local()
        self._reader_connections: list[sqlite3.Connection] = []
        self._closing = False
        self._taken = 0  # in this turn of the event loop
        self._writer = Writer(lambda: self._connection, self._told, opened=self.opened)

    @property
    def healthy(self) -> bool:
        """Whether writes are taken now, as far as is known."""
        return self._writer.healthy

    @classmethod
    def open(cls, folder: Path, schema: str = "") -> "EventLog":
        """Open or make the log in `folder`; `schema` makes the tables of others who commit along.

        A file that is no sound database is set aside beside it, never deleted, and a new log with a new `log_id` begins. Where the
        disk does not let it be opened (it is full), the log comes up all the same, neither `healthy` nor `opened`.
        Raises `ConfigError` for a log of another version.
        """
        path = folder / "log.sqlite3"
        connection: sqlite3.Connection | None = None
        try:
            connection = connect(path, schema)
        except OSError as fault:
            logger.error("the event log %s can't be opened (%s): trying again", path, fault)
        except sqlite3.DatabaseError as fault:
            if isinstance(fault, sqlite3.OperationalError) and "malformed" not in str(fault):
                logger.error("the event log %s can't be opened (%s): trying again", path, fault)
                return cls(path, None, schema)
            aside = f"{path}.broken-{int(time.time())}"
            logger.error("the event log %s is damaged (%s): set aside as %s, a new one begins", path, fault, aside)
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{path}{suffix}", f"{aside}{suffix}")
            connection = connect(path, schema)
        return cls(path, connection, schema)

    def _begin_with(self, connection: sqlite3.Connection) -> None:
        self.log_id = connection.execute("SELECT value FROM meta WHERE key = 'log_id'").fetchone()[0]
        self._maybe_connection = connection
        self.opened = True

    @property
    def _connection(self) -> sqlite3.Connection:
        """The writer's own. Raises `sqlite3.OperationalError` where it can't be opened yet."""
        if self._maybe_connection is None:
            try:
                self._begin_with(connect(self.path, self._schema))
            except (OSError, ConfigError) as fault:
                closed = sqlite3.OperationalError(str(fault))
                closed.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
                raise closed from fault
        assert self._maybe_connection is not None
        return self._maybe_connection

    # --- writing ------------------------------------------------------------------------------------------------------

    def submit(self, batch: Batch) -> None:
        """Hand a batch to the writer. Batches become durable and are published in the order of these calls."""
        if self._closing:
            raise WorkspaceError("shutting_down", "The server is stopping; nothing was changed. Try again in a moment.")
        if not self._writer.alive:
            raise WorkspaceError(
                "storage_unavailable", "The event log has failed: nothing was changed. Restart the server."
            )
        self._outstanding += 1
        self._bytes += batch.size
        if self._outstanding > _MAX_BACKLOG_BATCHES or self._bytes > _MAX_BACKLOG_BYTES:
            self._room.clear()
        self._writer.put(batch)

    async def commit(self, batch: Batch) -> None:
        """Submit a batch and wait until it is durable and published.

        Raises `WorkspaceError("storage_unavailable")` when the disk takes no writes for `COMMIT_TIMEOUT_S`; the batch
        then still stands in line, and becomes durable once the disk takes writes again. Raises the batch's own exception
        when it can't be stored.
        """
        batch.done = self._loop.create_future()
        self.submit(batch)
        await self.settled(batch)

    async def settled(self, batch: Batch, timeout_s: float = COMMIT_TIMEOUT_S) -> None:
        """Wait for a batch that was submitted with a `done` future. Raises as `commit`."""
        assert batch.done is not None
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(batch.done)
        except TimeoutError:
            raise unavailable() from None

    def future(self) -> "asyncio.Future[None]":
        """A future for a batch's `done`."""
        return self._loop.create_future()

    async def room(self) -> None:
        """Wait until the backlog is short enough to add more, and let others run now and then.

        Whoever turns an agent's output into events awaits it after each: an agent may write as fast as it is read.
        """
        self._taken += 1
        if self._taken == 1:
            self._loop.call_soon(self._turned)
        if not self._room.is_set():
            await self._room.wait()
        elif self._taken > _EVENTS_A_TURN:
            await asyncio.sleep(0)

    def _turned(self) -> None:
        self._taken = 0

    def mend(self, stream: int) -> None:
        """Take batches of this stream again, after one was refused: from now on they are numbered from what is stored."""
        self._writer.put(Mend(stream))

    async def erase(self) -> None:
        """See that nothing of what was removed is left in the files, or give up waiting for it after a while."""
        if not self._closing and self._writer.alive:
            erase = Erase()
            self._writer.put(erase)
            await asyncio.wait([asyncio.wrap_future(erase.done)], timeout=ERASE_TIMEOUT_S)

    def _told(self, batches: list[Batch]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody is left to tell
            self._loop.call_soon_threadsafe(self._publish, batches)

    def _publish(self, batches: list[Batch]) -> None:
        for batch in batches:
            self._outstanding -= 1
            self._bytes -= batch.size
            try:
                if batch.fault is None:
                    if batch.published is not None:
                        batch.published()
                elif batch.refused is not None:
                    batch.refused(batch.fault)
            except Exception:  # the edge of a batch: the others must be told whatever becomes of this one
                logger.exception("a batch could not be published")
            if batch.done is not None and not batch.done.done():
                if batch.fault is None:
                    batch.done.set_result(None)
                else:
                    batch.done.set_exception(batch.fault)
                    batch.done.exception()  # nobody need be waiting
        if self._outstanding <= _MAX_BACKLOG_BATCHES // 2 and self._bytes <= _MAX_BACKLOG_BYTES // 2:
            self._room.set()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a reading statement, run in a reader thread."""
        return await self._loop.run_in_executor(self._readers, self._query, statement, parameters)

    def _query(self, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        return self._reader().execute(statement, parameters).fetchall()

    def _reader(self) -> sqlite3.Connection:
        """This thread's reading connection."""
        if not self.opened:
            raise unavailable()
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(f"file:{_quote(self.path)}?mode=ro", uri=True, check_same_thread=False)
            connection.execute("PRAGMA query_only = 1")
            self._local.connection = connection
            self._reader_connections.append(connection)
        return connection

    async def read(self, stream: int, **choice: Any) -> Sequence[Row]:
        """As `page`, without whether there are more: ask again until none comes."""
        return (await self.page(stream, **choice)).rows

    async def page(
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
    ) -> Page:
        """Stored events with `after < seq <= upto`: at most `limit` of them, and `max_bytes` of data, or one."""
        where = ["id > ? AND id <= ?"]
        parameters: list[Any] = [key_of(stream, after), key_of(stream, upto)]
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

    def _page(self, statement: str, parameters: Sequence[Any], limit: int, max_bytes: int) -> Page:
        with contextlib.closing(self._reader().execute(statement, parameters)) as cursor:
            return _page_of(cursor, limit, max_bytes)

    async def bounds(self, stream: int) -> tuple[int, int]:
        """The first and last `seq` stored of a stream; (0, 0) when there is none."""
        return await self._loop.run_in_executor(self._readers, self.bounds_now, stream)

    def bounds_now(self, stream: int) -> tuple[int, int]:
        """As `bounds`, at once: for the start, before anything is served."""
        low, high = key_of(stream, 0), key_of(stream + 1, 0)
        # two statements: SQLite answers min or max from the tree's edge only when asked for one of them
        first = self._query("SELECT min(id) FROM events WHERE id > ? AND id < ?", (low, high))[0][0]
        last = self._query("SELECT max(id) FROM events WHERE id > ? AND id < ?", (low, high))[0][0]
        return (0, 0) if first is None else (first & SEQ_MASK, last & SEQ_MASK)

    async def turn_start(self, stream: int, back: int, *, before: int) -> int:
        """The `seq` at which the `back`-th newest turn that began below `before` begins; 0 when there are fewer."""
        statement = (
            "SELECT id FROM events WHERE type = 'turn_started' AND id > ? AND id < ? ORDER BY id DESC LIMIT 1 OFFSET ?"
        )
        rows = await self.query(statement, (key_of(stream, 0), key_of(stream, before), back - 1))
        return rows[0][0] & SEQ_MASK if rows else 0

    async def event(self, stream: int, seq: int) -> bytes | None:
        """One event, whole, however long it is; None where there is none."""
        if not 0 < seq <= SEQ_MASK:
            return None
        key = key_of(stream, seq)
        rows = await self.query("SELECT data FROM wholes WHERE id = ?", (key,))
        rows = rows or await self.query("SELECT data FROM events WHERE id = ?", (key,))
        return rows[0][0] if rows else None

    async def blob(self, stream: int, blob_id: str) -> tuple[str, bytes] | None:
        """A blob's MIME type and bytes."""
        rows = await self.query("SELECT mime_type, data FROM blobs WHERE stream = ? AND id = ?", (stream, blob_id))
        return rows[0] if rows else None

    # --- statements for a batch ---------------------------------------------------------------------------------------

    @staticmethod
    def put_blob(stream: int, seq: int, mime_type: str, data: bytes) -> tuple[str, Statement]:
        """A new blob of the event `seq`, with which it goes: its id, and the statement that stores it."""
        blob_id = new_id("blob")
        statement = "INSERT INTO blobs (stream, id, mime_type, data, seq) VALUES (?, ?, ?, ?, ?)"
        return blob_id, (statement, (stream, blob_id, mime_type, data, seq))

    @staticmethod
    def trim(stream: int, below: int) -> list[Statement]:
        """Statements that remove all events of a stream with a `seq` below `below`, and what belongs to them."""
        bounds = (key_of(stream, 0), key_of(stream, below))
        return [
            *[(f"DELETE FROM {table} WHERE id > ? AND id < ?", bounds) for table in ("events", "wholes")],  # noqa: S608
            ("DELETE FROM blobs WHERE stream = ? AND seq < ?", (stream, below)),
        ]

    @staticmethod
    def remove(stream: int) -> list[Statement]:
        """Statements that remove all of a stream."""
        return [*EventLog.trim(stream, SEQ_MASK), ("DELETE FROM blobs WHERE stream = ?", (stream,))]

    async def close(self) -> None:
        """Write all that waits (giving up after a failed try), then close the files."""
        self._closing = True
        await self._loop.run_in_executor(None, self._writer.close)
        await asyncio.sleep(0)  # let the last batches be published
        self._readers.shutdown(wait=True)
        for connection in [*self._reader_connections, self._maybe_connection]:
            if connection is not None:
                connection.close()


def _page_of(cursor: sqlite3.Cursor, limit: int, max_bytes: int) -> Page:
    """What fits of a cursor's rows; looked at one by one, so that no more is ever held."""
    rows: list[Row] = []
    size = 0
    for key, data in cursor:
        size += len(data)
        if rows and (len(rows) >= limit or size > max_bytes):
            return Page(rows, True)
        rows.append(Row(key & SEQ_MASK, data))
    return Page(rows, False)


def _quote(path: Path) -> str:
    return os.fspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
