"""The log and the hub: durable before visible, each event once and in order, for every subscriber."""

import asyncio
import os
import sqlite3
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workspace_runtime.events.hub import Lagged, Stream, Subscription, TooFarBehind, event_types, frame_sse, frame_ws
from workspace_runtime.events.log import Batch, EventLog
from workspace_runtime.events.model import ALL_TYPES, DEFAULT_TYPES, MAX_EVENT_BYTES, Event, make_event

pytestmark = pytest.mark.anyio


def text(seq: int, content: str = "x", type: str = "text") -> Event:
    return make_event(
        seq=seq, event_id=f"evt_{seq}", type=type, session_id="ses_1", turn_id=None, parent_tool_use_id=None,
        fields={"content": content},
    )  # fmt: skip


def add(log: EventLog, stream: Stream, *events: Event) -> Batch:
    batch = Batch(stream.key, events, published=lambda: stream.publish(events, at_once=True), done=log.future())
    log.submit(batch)
    return batch


async def collect(subscription: Subscription) -> list[int]:
    """All seqs that a subscription gives now."""
    seqs: list[int] = []
    while True:
        async for chunk in subscription.replay():
            seqs += seqs_of(chunk)
        try:
            while (live := subscription.follow()) is not None:
                seqs += seqs_of(live)
        except Lagged:
            continue
        return seqs


def seqs_of(chunk: bytes) -> list[int]:
    return [orjson.loads(line[6:])["seq"] for line in chunk.split(b"\n") if line.startswith(b"data: ")]


def subscribe(stream: Stream, after: int = 0, types: frozenset[str] = ALL_TYPES) -> Subscription:
    return Subscription(stream, after=after, types=types, framing="sse", wake=lambda: None)


async def test_events_are_durable_before_they_are_published(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    stream = Stream(log, "ses_1", 1)
    seen: list[int] = []

    def published() -> None:
        # another connection reads what is committed, at the moment of publishing
        with sqlite3.connect(tmp_path / "log.sqlite3") as other:
            seen.append(other.execute("SELECT count(*) FROM events").fetchone()[0])
        other.close()

    batch = Batch(1, (text(1), text(2)), published=published, done=log.future())
    log.submit(batch)
    await log.settled(batch)
    assert seen == [2]
    assert stream.head == 0
    await log.close()


async def test_a_reopened_log_has_all_events_and_the_same_id(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    log_id = log.log_id
    stream = Stream(log, "ses_1", 7)
    await log.settled(add(log, stream, *[text(seq) for seq in range(1, 200)]))
    await log.close()
    log = EventLog.open(tmp_path)
    assert log.log_id == log_id
    assert await log.bounds(7) == (1, 199)
    rows = await log.read(7, after=3, upto=150)
    assert [row.seq for row in rows] == list(range(4, 151))
    newest = await log.read(7, after=0, upto=150, descending=True, limit=3)
    assert [row.seq for row in newest] == [150, 149, 148]
    await log.close()


async def test_a_file_that_is_no_database_is_set_aside_and_gets_a_new_id(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    old = log.log_id
    await log.close()
    (tmp_path / "log.sqlite3").write_bytes(b"this is no database " * 1000)
    log = EventLog.open(tmp_path)
    assert log.log_id != old
    assert [p for p in tmp_path.iterdir() if ".broken-" in p.name]
    await log.close()


async def test_files_are_private(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    await log.commit(Batch(1, (text(1),)))
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o600"}
    await log.close()


async def test_a_write_that_fails_is_tried_again_and_nothing_is_lost(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    stream = Stream(log, "ses_1", 1)
    blocker = sqlite3.connect(tmp_path / "log.sqlite3", isolation_level=None)
    log._connection.execute("PRAGMA busy_timeout = 1")
    blocker.execute("BEGIN IMMEDIATE")
    batch = add(log, stream, text(1))
    async with asyncio.timeout(10):
        while log.healthy:
            await asyncio.sleep(0.01)
    assert stream.head == 0
    blocker.execute("ROLLBACK")
    blocker.close()
    await log.settled(batch)
    assert stream.head == 1
    assert log.healthy
    await log.close()


async def test_who_appends_waits_while_the_backlog_is_long(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    stream = Stream(log, "ses_1", 1)
    big = "x" * 500_000
    last = [add(log, stream, text(seq, big)) for seq in range(1, 80)][-1]
    assert not log._room.is_set()
    await log.room()
    await log.settled(last)
    assert log._bytes == 0
    await log.close()


async def test_a_subscriber_that_is_behind_the_channel_goes_back_to_the_log(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    stream = Stream(log, "ses_1", 1)
    await log.settled(add(log, stream, text(1)))
    slow = subscribe(stream)
    assert await collect(slow) == [1]
    big = "y" * 400_000
    for seq in range(2, 14):
        await log.settled(add(log, stream, text(seq, big)))
    with pytest.raises(Lagged):
        slow.follow()
    assert await collect(slow) == list(range(2, 14))
    slow.close()
    assert stream.subscribers == 0
    await log.close()


async def test_a_cursor_behind_trimmed_history_is_told(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    stream = Stream(log, "ses_1", 1)
    await log.settled(add(log, stream, *[text(seq) for seq in range(1, 11)]))
    early, fresh = subscribe(stream, after=2), subscribe(stream)
    async for _ in early.replay():
        break
    early.seq = 2
    await log.commit(Batch(statements=log.trim(1, 6)))
    stream.first = 6
    with pytest.raises(TooFarBehind):
        await collect(early)
    assert await collect(fresh) == [6, 7, 8, 9, 10]
    for subscription in (early, fresh):
        subscription.close()
    await log.close()


async def test_types_are_chosen_by_name(tmp_path: Path) -> None:
    assert event_types(None) == DEFAULT_TYPES
    assert event_types("all") == ALL_TYPES
    assert event_types("text, text_delta") == {"text", "text_delta"}
    assert event_types("") == frozenset()
    with pytest.raises(KeyError):
        event_types("text,nonsense")
    log = EventLog.open(tmp_path)
    stream = Stream(log, "ses_1", 1)
    await log.settled(add(log, stream, text(1), text(2, type="status"), text(3, type="thinking")))
    few = subscribe(stream, types=frozenset({"thinking"}))
    assert await collect(few) == [3]
    assert few.seq == 3
    few.close()
    await log.close()


@given(
    st.dictionaries(st.text(max_size=5), st.text(), max_size=4),
    st.integers(min_value=0, max_value=3_000_000),
    st.sampled_from(["x", "é", "\0", "\ud800", "𝄞", '"']),
)
@settings(max_examples=60, deadline=None)
def test_an_event_is_cut_to_the_limit_and_the_whole_is_kept(fields: dict[str, str], length: int, letter: str) -> None:
    event = make_event(
        seq=5, event_id="evt_5", type="tool_result", session_id="ses_1", turn_id="turn_1", parent_tool_use_id=None,
        fields={"output": letter * length, "input": fields, "many": [fields] * 100},
    )  # fmt: skip
    assert len(event.data) <= MAX_EVENT_BYTES
    body = orjson.loads(event.data)
    assert body["seq"] == 5 and body["turn_id"] == "turn_1"
    if event.whole is None:
        assert "truncated" not in body
    else:
        assert body["truncated"] is True and body["href"].endswith("/events/5")
        assert body["blob_id"] == "output-5"
        assert orjson.loads(event.whole)["output"].startswith(body["output"])


def test_frames_are_those_of_the_rfc() -> None:
    assert frame_ws(1, b"{}") == b"\x81\x02{}"
    assert frame_ws(1, b"a" * 126)[:4] == b"\x81\x7e\x00\x7e"
    assert frame_ws(1, b"a" * 70000)[:10] == b"\x81\x7f" + (70000).to_bytes(8, "big")
    assert frame_sse(3, b"{}") == b"id: 3\ndata: {}\n\n"
    assert frame_sse(0, b"{}") == b"data: {}\n\n"


# --- any interleaving ---------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 40)),
        st.tuples(st.just("large"), st.integers(1, 3)),
        st.tuples(st.just("subscribe"), st.integers(0, 3)),
        st.tuples(st.just("take"), st.integers(0, 3)),
        st.tuples(st.just("drop"), st.integers(0, 3)),
        st.tuples(st.just("settle"), st.just(0)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=25,
)


@given(STEPS)
@settings(max_examples=60, deadline=None)
async def test_each_subscriber_gets_each_event_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = EventLog.open(folder)
    stream = Stream(log, "ses_1", 1)
    given_out = 0
    last: Batch | None = None
    cursors: dict[int, Subscription] = {}
    got: dict[int, list[int]] = {number: [] for number in range(4)}  # what each client has, over all its connections

    async def settle() -> None:
        if last is not None and last.done is not None:
            await log.settled(last)

    for step, number in steps:
        if step in ("append", "large"):
            content = "z" * 300_000 if step == "large" else "x"
            for _ in range(number):
                given_out += 1
                last = add(log, stream, text(given_out, content))
        elif step == "subscribe":
            if number not in cursors:
                after = got[number][-1] if got[number] else 0
                cursors[number] = subscribe(stream, after=after)
        elif step == "take" and number in cursors:
            got[number] += await collect(cursors[number])
        elif step == "drop" and number in cursors:
            cursors.pop(number).close()
        elif step == "settle":
            await settle()
        elif step == "restart":
            await settle()
            for cursor in cursors.values():
                cursor.close()
            cursors.clear()
            await log.close()
            log = EventLog.open(folder)
            first, head = log.bounds_now(1)
            stream = Stream(log, "ses_1", 1, first=first, head=head)
            last = None
        assert all(seqs == list(range(1, len(seqs) + 1)) for seqs in got.values())
    await settle()
    for number in range(4):
        cursor = cursors.get(number) or subscribe(stream, after=len(got[number]))
        got[number] += await collect(cursor)
        cursor.close()
        assert got[number] == list(range(1, given_out + 1))
    await log.close()
    assert os.path.exists(folder / "log.sqlite3")
