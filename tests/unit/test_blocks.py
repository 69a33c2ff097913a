"""Blocks being written: whoever joins gets them whole, in frames of a bounded size, counted as a browser counts."""

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.scripted_driver import ScriptedAgent
from support.waiting import until
from unit.test_actor import history, idle, manager_of, say
from workspace_runtime.events.blocks import OpenBlock, utf16_length
from workspace_runtime.events.hub import Lagged, Stream, Subscription
from workspace_runtime.events.log import EventLog
from workspace_runtime.events.model import ALL_TYPES, MAX_EVENT_BYTES
from workspace_runtime.sessions.drivers import base
from workspace_runtime.sessions.journal import Journal
from workspace_runtime.sessions.manager import NewSession
from workspace_runtime.sessions.model import SessionRecord

pytestmark = pytest.mark.anyio

BLOCK = "evt_" + "0" * 20
LETTERS = st.sampled_from(["a", "é", "\U0001f600", "\u2028", "\0", '"', "漢"])


class Browser:
    """Assembles blocks as a page does: strings of UTF-16 code units, cut and joined by their index."""

    def __init__(self) -> None:
        self.units: dict[str, bytes] = {}
        self.seqs: list[int] = []

    def take(self, chunk: bytes) -> None:
        for line in chunk.split(b"\n"):
            if line.startswith(b"data: "):
                self.one(orjson.loads(line[6:]), len(line) - 6)

    def one(self, event: dict[str, Any], size: int) -> None:
        assert size <= MAX_EVENT_BYTES
        if "seq" in event:
            self.seqs.append(event["seq"])
            return
        before = self.units.get(event["id"], b"")
        assert len(before) == 2 * event["offset"], "content.slice(0, offset) is not what was there"
        event["content"].encode()  # no half of a pair
        self.units[event["id"]] = before + event["content"].encode("utf-16-le")

    @property
    def text(self) -> str:
        return self.units.get(BLOCK, b"").decode("utf-16-le")


def new_journal(log: EventLog) -> Journal:
    record = SessionRecord(id="ses_1", stream=1, agent="demo", created_at="", updated_at="")
    return Journal(log, Stream(log, "ses_1", 1), record)


def join(stream: Stream, types: Iterable[str] = ALL_TYPES) -> Subscription:
    return Subscription(stream, after=0, types=frozenset(types), framing="sse", wake=lambda: None)


async def catch_up(subscription: Subscription, browser: Browser) -> None:
    browser.units.clear()
    async for chunk in subscription.replay():
        browser.take(chunk)


@given(
    st.lists(st.tuples(st.lists(LETTERS, max_size=6), st.integers(1, 30_000), st.booleans()), min_size=1, max_size=6)
)
@settings(max_examples=40, deadline=None)
async def test_whoever_joins_whenever_assembles_the_same_text(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[list[str], int, bool]]
) -> None:
    log = EventLog.open(tmp_path_factory.mktemp("log"))
    journal = new_journal(log)
    whole = ""
    readers: list[tuple[Subscription, Browser]] = []
    for letters, times, joins in steps:
        text = "".join(letters) * times
        whole += text
        if text:
            journal.delta(BLOCK, "text", text, turn_id=None, parent=None)
        await asyncio.sleep(0)
        if joins:
            reader = join(journal.stream), Browser()
            readers.append(reader)
            await catch_up(*reader)
        else:
            await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    readers.append((join(journal.stream), Browser()))
    for subscription, browser in readers:
        try:
            while subscription._channel is not None and (chunk := subscription.follow()) is not None:
                browser.take(chunk)
        except Lagged:
            pass
        if browser.text != whole:  # it had fallen behind what is kept in memory, or has only just come
            await catch_up(subscription, browser)
        assert browser.text == whole
        subscription.close()
    await log.close()


@pytest.mark.parametrize("letter", ["x", "é", "\U0001f600", "\0", "\u2028"])
async def test_a_long_block_is_given_in_frames_of_a_bounded_size(tmp_path: Path, letter: str) -> None:
    log = EventLog.open(tmp_path)
    journal = new_journal(log)
    live, late = Browser(), Browser()
    follower, joiner = join(journal.stream), join(journal.stream)
    await catch_up(follower, live)
    whole = letter * 1_000_000
    journal.delta(BLOCK, "text", whole, turn_id=None, parent=None)  # also one delta of an agent may be long
    await until(lambda: journal.stream.blocks and journal.stream.blocks[BLOCK].shown == len(whole))
    await catch_up(joiner, late)
    assert late.text == whole
    try:
        while (chunk := follower.follow()) is not None:
            live.take(chunk)
    except Lagged:
        await catch_up(follower, live)
    assert live.text == whole
    for subscription in (follower, joiner):
        subscription.close()
    await log.close()


async def test_who_joins_gets_the_kinds_it_asked_for(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    journal = new_journal(log)
    journal.delta("evt_a", "thinking", "hm", turn_id=None, parent=None)
    journal.delta("evt_b", "text", "yes", turn_id=None, parent=None)
    await until(lambda: len(journal.stream.blocks) == 2)
    browser, subscription = Browser(), join(journal.stream, {"text_delta", "done"})
    await catch_up(subscription, browser)
    assert set(browser.units) == {"evt_b"}
    subscription.close()
    await log.close()


async def test_a_reader_that_stops_in_a_block_holds_no_text_of_its_own(tmp_path: Path) -> None:
    log = EventLog.open(tmp_path)
    journal = new_journal(log)
    journal.delta(BLOCK, "text", "x" * 500_000, turn_id=None, parent=None)
    await until(lambda: journal.stream.blocks and journal.stream.blocks[BLOCK].shown == 500_000)
    browser, subscription = Browser(), join(journal.stream)
    replay = subscription.replay()
    browser.take(await anext(replay))
    journal.delta(BLOCK, "text", "y" * 500_000, turn_id=None, parent=None)
    journal.end_block(BLOCK)
    async for chunk in replay:
        browser.take(chunk)
    assert browser.text == "x" * 500_000  # what was shown when it joined; the rest it follows
    subscription.close()
    await log.close()


def test_what_an_unfinished_block_costs_is_about_its_text() -> None:
    block = OpenBlock("text_delta", None, None)
    for index in range(300_000):
        block.add(chr(97 + index % 26))
    held = sum(map(sys.getsizeof, [*block._joined, *block._pieces])) + sys.getsizeof(block._joined)
    held += sys.getsizeof(block._pieces)
    assert held < 2 * 300_000
    assert block.units == 300_000 and block.content()[:3] == "abc" and len(block.content()) == 300_000
    assert utf16_length("a\U0001f600é") == 4


async def test_an_agent_that_never_pauses_leaves_room_for_others(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    pieces = 30_000
    agent.on_prompt = lambda driver, parts: driver.say(
        *(base.BlockDelta("b", "text", "x") for _ in range(pieces)),
        base.BlockEnded("text", "x" * pieces, "b"),
        base.TurnEnded("end_turn"),
    )
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        most = 0
        while session.record.turn_count == 0 or session.actor.turn is not None:
            most = max(most, len(session.stream._waiting))
            await asyncio.sleep(0)
        assert most < pieces // 2
        await idle(session)
        await until(lambda: not session.stream.blocks)


async def test_a_block_name_may_be_used_again_after_an_interrupt(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted"))
        for word in ("one", "two", "three"):
            agent.on_prompt = lambda driver, parts, word=word: driver.say(base.BlockDelta("0", "text", word))
            await manager.prompt(session.record.id, say(word))
            await until(lambda: session.stream.blocks)
            await session.actor.interrupt()
        await idle(session)
        texts = [e for e in await history(manager, session) if e["type"] == "text"]
        assert [e["content"] for e in texts] == ["one", "two", "three"]
        assert len({e["id"] for e in texts}) == 3


async def test_a_sub_agent_in_the_background_keeps_its_block_of_the_same_name(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: agent.started and agent.started[0].told)
        driver = agent.started[0]
        driver.say(
            base.ToolCalled("t1", "Agent", {}), base.BlockDelta("0", "text", "inner ", "t1"), base.TurnEnded("end_turn")
        )
        await idle(session)
        await manager.prompt(session.record.id, say("next"))
        await until(lambda: len(driver.told) == 2)
        driver.say(base.BlockDelta("0", "text", "main"), base.BlockDelta("0", "text", "goes on", "t1"))
        driver.say(base.BlockEnded("text", "main", "0"), base.BlockEnded("text", "inner goes on", "0", False, "t1"))
        driver.say(base.TurnEnded("end_turn"))
        await idle(session)
        texts = [e for e in await history(manager, session) if e["type"] == "text"]
        assert len({e["id"] for e in texts}) == 2
        assert {(e["content"], e.get("parent_tool_use_id")) for e in texts} == {("main", None), ("inner goes on", "t1")}
        await until(lambda: not session.stream.blocks)
