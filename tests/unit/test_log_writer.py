"""The log's writer: what a bad batch, a bad disk and a dead thread mean for everybody else."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.waiting import until
from unit.test_event_log import text
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.log import Batch, EventLog, StreamBroken

pytestmark = pytest.mark.anyio

BAD_STATEMENT = ("INSERT INTO nowhere VALUES (1)", ())


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EventLog]:
    made = EventLog.open(tmp_path)
    yield made
    await made.close()


def bad(kind: str) -> Batch:
    """A batch that can't be stored, and whose fault can't pass."""
    match kind:
        case "no table":
            return Batch(statements=[BAD_STATEMENT])
        case "constraint":
            return Batch(statements=[("INSERT INTO meta VALUES ('log_id', 'x')", ())])
        case "half a character":
            return Batch(statements=[("INSERT INTO meta VALUES ('a', ?)", ("image/\ud83d",))])
        case "number":
            return Batch(statements=[("INSERT INTO meta VALUES ('a', ?)", (2**70,))])
        case "type":
            return Batch(statements=[("INSERT INTO meta VALUES ('a', ?)", (object(),))])
        case _:
            return Batch(9, (text(2**41),))


@pytest.mark.parametrize("kind", ["no table", "constraint", "half a character", "number", "type", "seq"])
async def test_a_batch_that_can_not_be_stored_is_refused_and_the_others_live(log: EventLog, kind: str) -> None:
    heard: list[BaseException] = []
    guilty = bad(kind)
    guilty.refused = heard.append
    before, after = Batch(1, (text(1),)), Batch(2, (text(1),))
    batches = (before, guilty, after)
    for batch in batches:
        batch.done = log.future()
        log.submit(batch)
    await log.settled(before)
    with pytest.raises(Exception) as raised:
        await log.settled(guilty)
    assert heard == [raised.value]
    await log.settled(after)
    assert log.healthy
    assert await log.bounds(1) == (1, 1) and await log.bounds(2) == (1, 1)
    assert await log.query("SELECT 1 FROM meta WHERE key = 'a'") == []
    await log.commit(Batch(1, (text(2),)))
    assert log._bytes == 0 and log._outstanding == 0


async def test_what_was_numbered_after_a_refused_batch_is_refused_until_it_is_numbered_anew(log: EventLog) -> None:
    await log.commit(Batch(1, (text(1),)))
    waiting = [
        Batch(1, (text(2),), statements=[BAD_STATEMENT]),
        Batch(1, (text(3),)),
        Batch(2, (text(1),)),
        Batch(1, (text(4),)),
    ]
    for batch in waiting:
        batch.done = log.future()
        log.submit(batch)
    for index, kind in ((0, sqlite3.OperationalError), (1, StreamBroken), (3, StreamBroken)):
        with pytest.raises(kind):
            await log.settled(waiting[index])
    await log.settled(waiting[2])
    with pytest.raises(StreamBroken):
        await log.commit(Batch(1, (text(5),)))
    assert await log.bounds(1) == (1, 1)
    log.mend(1)
    await log.commit(Batch(1, (text(2),)))
    assert await log.bounds(1) == (1, 2)


async def test_a_fault_while_it_is_published_stops_nobody_else(log: EventLog) -> None:
    def broken() -> None:
        raise KeyError("a fault of ours")

    first, second = Batch(1, (text(1),), published=broken), Batch(2, (text(1),))
    for batch in (first, second):
        batch.done = log.future()
        log.submit(batch)
    await log.settled(first)
    await log.settled(second)


async def test_a_writer_that_has_ended_is_not_healthy_and_refuses_at_once(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    class End(BaseException):
        pass

    def end(batches: object) -> None:
        raise End

    monkeypatch.setattr(log._writer, "_write", end)
    lost = Batch(1, (text(1),))
    with pytest.raises(End):
        await log.commit(lost)
    await until(lambda: not log.healthy)
    with pytest.raises(WorkspaceError) as refused:
        await log.commit(Batch(1, (text(1),)))
    assert refused.value.code == "storage_unavailable"


async def test_a_full_disk_holds_all_and_loses_nothing(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    (pages,) = log._connection.execute("PRAGMA page_count").fetchone()
    log._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    big = Batch(1, (text(1, "x" * 100_000),), done=log.future())
    log.submit(big)
    await until(lambda: not log.healthy)
    small = Batch(2, (text(1),), done=log.future())
    log.submit(small)
    log._connection.execute("PRAGMA max_page_count = 100000")
    await log.settled(big)
    await log.settled(small)
    assert log.healthy
    await log.close()


async def test_who_waits_for_a_disk_that_takes_nothing_hears_of_the_stop(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    (pages,) = log._connection.execute("PRAGMA page_count").fetchone()
    log._connection.execute(f"PRAGMA max_page_count = {pages}")
    batches = [Batch(1, (text(seq, "x" * 100_000),), done=log.future()) for seq in (1, 2, 3)]
    for batch in batches:
        log.submit(batch)
    await until(lambda: not log.healthy)
    await log.close()
    for batch in batches:
        assert batch.done is not None
        fault = batch.done.exception()
        assert isinstance(fault, WorkspaceError) and fault.code == "storage_unavailable"


async def test_blobs_count_as_what_is_held(log: EventLog) -> None:
    statements = [EventLog.put_blob(1, 1, "image/png", b"x" * 1_000_000)[1]]
    assert Batch(statements=statements).size > 1_000_000


# --- space --------------------------------------------------------------------------------------------------------------


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


async def fill(log: EventLog, stream: int, seqs: range, word: str = "y") -> None:
    for seq in seqs:
        await log.commit(Batch(stream, (text(seq, word * (300_000 // len(word))),)))


async def test_blobs_go_with_their_event(log: EventLog) -> None:
    ids = []
    for seq in (1, 2, 3):
        blob_id, statement = EventLog.put_blob(1, seq, "image/png", b"image %d" % seq)
        ids.append(blob_id)
        await log.commit(Batch(1, (text(seq),), statements=[statement]))
    await log.commit(Batch(statements=log.trim(1, 3)))
    assert [await log.blob(1, blob_id) is not None for blob_id in ids] == [False, False, True]


async def test_the_file_shrinks_by_itself_once_much_of_it_is_free(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    await fill(log, 1, range(1, 41))
    await log.commit(Batch(2, (text(1),)))
    full = size_of(tmp_path)
    assert full > 12_000_000
    await log.commit(Batch(statements=log.trim(1, 40)))
    await until(lambda: size_of(tmp_path) < 6_000_000)
    assert await log.bounds(1) == (40, 40) and await log.bounds(2) == (1, 1)
    await log.close()


async def test_nothing_of_what_is_erased_is_left_in_the_files(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    await fill(log, 1, range(1, 4), "precious ")
    for seq in range(1, 30):
        await log.commit(Batch(1, (text(seq + 3, "precious"),)))
        await log.commit(Batch(2, (text(seq),)))
    await log.commit(Batch(statements=log.remove(1)))
    await log.erase()
    for path in tmp_path.iterdir():
        assert b"precious" not in path.read_bytes(), path
    assert await log.bounds(2) == (1, 29)
    await log.close()


async def test_events_are_taken_while_space_is_given_back(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    await fill(log, 1, range(1, 31))
    await log.commit(Batch(statements=log.remove(1)))
    erasing = asyncio.create_task(log.erase())
    for seq in range(1, 50):
        await log.commit(Batch(2, (text(seq),)))
    await erasing
    assert await log.bounds(2) == (1, 49)
    assert size_of(tmp_path) < 6_000_000
    await log.close()


async def test_a_file_of_the_older_version_is_brought_up_to_date(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    log_id = log.log_id
    event = text(1, type="tool_result")
    told = event.data.replace(b'"content"', b'"blob_id":"blob_00ff","content"')
    await log.commit(Batch(1, (text(2),)))
    await log.close()
    path = tmp_path / "log.sqlite3"
    old = sqlite3.connect(path, isolation_level=None)
    old.executescript("""
        DROP INDEX blobs_of_events; DROP TABLE blobs;
        CREATE TABLE blobs (stream INTEGER NOT NULL, id TEXT NOT NULL, mime_type TEXT NOT NULL, data BLOB NOT NULL,
          PRIMARY KEY (stream, id));
        UPDATE meta SET value = '1' WHERE key = 'schema_version';
        PRAGMA auto_vacuum = NONE; VACUUM;
    """)
    old.execute("INSERT INTO events VALUES (?, 'tool_result', NULL, NULL, ?)", ((1 << 40) | 1, told))
    old.execute("INSERT INTO blobs VALUES (1, 'blob_00ff', 'image/png', x'01')")
    old.execute("INSERT INTO blobs VALUES (1, 'blob_ffff', 'image/png', x'02')")
    old.execute("CREATE TABLE big (data BLOB)")
    old.execute("INSERT INTO big VALUES (zeroblob(20000000))")
    old.execute("DROP TABLE big")
    assert old.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    old.close()
    assert path.stat().st_size > 20_000_000
    for _ in range(2):
        log = EventLog.open(tmp_path)
        assert log.log_id == log_id and await log.bounds(1) == (1, 2)
        assert await log.blob(1, "blob_00ff") == ("image/png", b"\x01")
        assert await log.blob(1, "blob_ffff") is None  # its event was trimmed long ago
        await log.close()
        assert path.stat().st_size < 1_000_000
    log = EventLog.open(tmp_path)
    await log.commit(Batch(statements=log.trim(1, 2)))
    assert await log.blob(1, "blob_00ff") is None
    await log.close()
    assert os.path.exists(path)
