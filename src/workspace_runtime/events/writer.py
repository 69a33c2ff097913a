"""The writing side of the log: one thread, which commits all that waits at once, and says of each batch what became of it.

A write that fails is one of two kinds. What may pass (a full disk, a lock, a disk that fails) or what no batch is to blame for (a
damaged file) holds all of them: the thread says so (`healthy`), and tries again until it succeeds. Anything else is the fault of
one batch: the batches are committed one by one, the guilty one is refused with its exception, and the others live.

A stream of which a batch was refused has a gap: what was numbered after it must not be stored either. All its later batches are
refused too, until its owner, who has heard of it, has numbered anew (`Mend`).

Between two groups the thread gives back the space of what was removed, in small steps.
"""

import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import WorkspaceError
from .database import SEQ_MASK, key_of
from .model import Event

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)

Statement = tuple[str, Sequence[Any]]

RETRY_S = 0.5
# SQLite's primary result codes for what may pass, or is no batch's fault.
_HOLDING = frozenset({
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_NOTADB,
})  # fmt: skip
# Free pages of 4 KiB that are kept for what comes next; beyond them, a quarter of the file may be free before it is made smaller.
_FREE_PAGES = 1024
_PAGES_A_STEP = 256
# How often a checkpoint that a reader holds up is tried again.
_CHECKPOINTS = 40


class StreamBroken(WorkspaceError):
    """An earlier batch of this stream was refused, so this one, numbered after it, is refused too."""

    def __init__(self) -> None:
        detail = "An earlier part of this session could not be stored. It is brought back: try again in a moment."
        super().__init__("storage_unavailable", detail)


@dataclass(slots=True, eq=False)
class Batch:
    """What is committed together. `published` runs on the event loop once it is durable, or `refused` when it can't be.

    `done` is for who waits (`EventLog.settled`); `size` is roughly what it holds in memory, in bytes.
    """

    stream: int = 0
    events: Sequence[Event] = ()
    statements: list[Statement] = field(default_factory=list)
    published: Callable[[], None] | None = None
    done: "asyncio.Future[None] | None" = None
    refused: Callable[[BaseException], None] | None = None
    fault: BaseException | None = None
    size: int = 0

    def __post_init__(self) -> None:
        size = 0
        for event in self.events:
            size += len(event.data) + len(event.whole or b"")
        for _, parameters in self.statements:
            size += sum(len(value) for value in parameters if isinstance(value, bytes | str))
        self.size = size


@dataclass(frozen=True, slots=True)
class Mend:
    """The owner of a stream numbers it anew from what is stored: batches that follow this are taken again."""

    stream: int


@dataclass(frozen=True, slots=True)
class Erase:
    """Leave nothing in the files of what was removed. `done` is set when that is so, or can't be."""

    done: "Future[None]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.done.set_running_or_notify_cancel()  # who waits may leave, without a word to the thread


def unavailable() -> WorkspaceError:
    """What a client is told whose change can't be kept now."""
    detail = "The state folder takes no writes (is its disk full?). Free some space; it is tried again by itself."
    return WorkspaceError("storage_unavailable", detail)


class Writer:
    """See the module. `told` is called in the thread, with batches in the order in which they were put in.

    `connection` gives the database, and raises `sqlite3.Error` for as long as it can't be opened.
    """

    def __init__(
        self, connection: Callable[[], sqlite3.Connection], told: Callable[[list[Batch]], None], *, opened: bool = True
    ) -> None:
        self._open = connection
        self._told = told
        self._waiting: queue.SimpleQueue[Batch | Mend | Erase | None] = queue.SimpleQueue()
        self._writes = opened
        self._group: list[Batch] = []  # taken, and not told of yet
        self._broken: set[int] = set()
        self._frees = False  # whether there is space to give back
        self._erasing: list[Erase] = []
        self._checkpoints = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether batches are written now, as far as is known."""
        return self._writes and self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether anything that is put in will be looked at."""
        return self._thread.is_alive()

    def put(self, item: Batch | Mend | Erase) -> None:
        """Put something in line. Never waits."""
        self._waiting.put(item)

    def close(self) -> None:
        """Write all that waits, giving up after a failed try; returns when the thread has ended."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join()

    @property
    def _connection(self) -> sqlite3.Connection:
        return self._open()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            go_on = True
            while go_on:
                if self._frees and self._waiting.empty():
                    self._give_back()
                    continue
                go_on = self._collect()
                self._commit()
                if self._frees:  # also while more and more comes
                    self._give_back()
        except BaseException as fault:  # the edge of this thread: who waits for it must hear that it is gone
            logger.exception("the event log's writer has ended: nothing is stored any more")
            self._refuse_all(fault)
        finally:
            self._erased()

    def _collect(self) -> bool:
        """Take all that waits into the group; false where nothing comes after it."""
        item = self._waiting.get()
        while True:
            if item is None:
                return False
            if isinstance(item, Batch):
                self._group.append(item)
            elif isinstance(item, Erase):
                self._frees = True
                self._erasing.append(item)
                self._checkpoints = 0
            else:
                self._commit()  # those before it are refused, those after it are not
                self._broken.discard(item.stream)
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                return True

    def _refuse_all(self, fault: BaseException) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._waiting.get_nowait()
                if isinstance(item, Batch):
                    self._group.append(item)
                elif isinstance(item, Erase):
                    self._erasing.append(item)
        for batch in self._group:
            batch.fault = batch.fault or fault
        self._told(self._group)

    def _commit(self) -> None:
        """Make the group's batches durable, or give each that can't be its `fault`; then tell of them."""
        group = self._group
        if not group:
            return
        sound = [batch for batch in group if not self._is_broken(batch)] if self._broken else group
        fault = self._try(sound) if sound else None
        if fault is not None and _holds(fault):  # the server stops, and the disk takes nothing
            for batch in sound:
                batch.fault = unavailable()
        elif fault is not None:
            for batch in sound:
                self._commit_one(batch)
        if not self._frees and any(batch.statements for batch in group):
            self._look_for_space()
        self._group = []
        self._told(group)

    def _commit_one(self, batch: Batch) -> None:
        """Find out whether it is this batch that can't be stored."""
        if self._is_broken(batch):
            return
        batch.fault = self._try([batch])
        if batch.fault is not None and not _holds(batch.fault):
            logger.error("a batch can't be stored, and is refused", exc_info=batch.fault)
            if batch.stream:
                self._broken.add(batch.stream)

    def _is_broken(self, batch: Batch) -> bool:
        """Whether a batch must not be stored because one before it was not; it has its fault then."""
        if batch.stream not in self._broken:
            return False
        batch.fault = StreamBroken()
        return True

    def _try(self, batches: list[Batch]) -> Exception | None:
        """Commit all of these; tried again for as long as that may help. What is wrong with them, where it can't."""
        while True:
            try:
                self._write(batches)
            except Exception as fault:  # whatever a value does to the database's library: the thread must live on
                self._roll_back()
                if not _holds(fault):
                    return fault
                if self._writes:
                    logger.error("the event log can't be written (%s): trying again", fault)
                self._writes = False
                if self._closing.wait(RETRY_S):
                    logger.error("gave up on %d batches that could not be written", len(batches))
                    return fault
            else:
                if not self._writes:
                    logger.info("the event log can be written again")
                self._writes = True
                return None

    def _roll_back(self) -> None:
        try:
            self._connection.rollback()
        except sqlite3.Error as fault:  # there is nothing to undo, or the next BEGIN says what is wrong
            logger.warning("the event log could not be rolled back: %s", fault)

    def _write(self, batches: list[Batch]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        rows: list[Any] = []
        for batch in batches:
            base = key_of(batch.stream, 0)
            for event in batch.events:
                if event.seq > SEQ_MASK:
                    raise ValueError(f"{event.seq} is no seq")
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

    # --- space that is free -------------------------------------------------------------------------------------------

    def _look_for_space(self) -> None:
        """Whether so much is free that the file should be made smaller."""
        try:
            free = self._pragma("freelist_count")
            self._frees = free > _FREE_PAGES and free * 4 > self._pragma("page_count")
        except sqlite3.Error as fault:  # the next write says what is wrong
            logger.warning("the free space of the event log can't be told: %s", fault)

    def _give_back(self) -> None:
        """One step: some pages leave the file, or it is all done and the write-ahead log is emptied."""
        try:
            free = self._pragma("freelist_count")
            wanted = free - (0 if self._erasing else _FREE_PAGES)
            if wanted > 0:
                # all rows: each frees one page
                self._connection.execute(f"PRAGMA incremental_vacuum({min(wanted, _PAGES_A_STEP)})").fetchall()
                if self._pragma("freelist_count") < free:
                    return
            if self._empty_wal():
                return
        except sqlite3.Error as fault:
            self._roll_back()
            logger.warning("the event log could not be made smaller: %s", fault)
        self._frees = False
        self._erased()

    def _empty_wal(self) -> bool:
        """Move the write-ahead log into the file and empty it; whether to try again, since a reader held it up."""
        self._connection.execute("PRAGMA busy_timeout = 50")
        try:
            held = bool(self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        finally:
            self._connection.execute("PRAGMA busy_timeout = 10000")
        self._checkpoints += 1
        return held and self._checkpoints % _CHECKPOINTS != 0

    def _erased(self) -> None:
        for erase in self._erasing:
            erase.done.set_result(None)
        self._erasing.clear()

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])


def _holds(fault: Exception) -> bool:
    """Whether a failed write may pass, or is no batch's fault."""
    code = getattr(fault, "sqlite_errorcode", None)
    return isinstance(fault, sqlite3.Error) and code is not None and code & 0xFF in _HOLDING
