"""What agents say is made sound once, for every driver: any value they send is stored, shown, and read again."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.scripted_driver import ScriptedAgent
from support.waiting import until
from unit.test_actor import history, idle, manager_of, say
from workspace_runtime.events.model import MAX_EVENT_BYTES, encode, make_event
from workspace_runtime.events.values import MAX_DEPTH, clean_json, clean_number, clean_text
from workspace_runtime.sessions.drivers import base
from workspace_runtime.sessions.intake import (
    MAX_COUNT,
    MAX_NAME,
    MAX_PLAN_ENTRIES,
    UNKNOWN_MIME_TYPE,
    Intake,
    mime_type,
)
from workspace_runtime.sessions.manager import NewSession

pytestmark = pytest.mark.anyio

# text of an agent: any code unit, also a half of a pair
ANY_TEXT = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from(["\0", "\ud83d", "\ude00", "\u2028", "\u2029", "\x85", "\x1b", "\x7f", "\ufeff", "\U0001f600"]),
    )
)
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**400), 10**400) | st.floats() | ANY_TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(ANY_TEXT | st.integers() | st.none() | st.booleans() | st.floats(), inner, max_size=4)
    ),
    max_leaves=12,
)


def nested(depth: int) -> Any:
    value: Any = "core"
    for index in range(depth):
        value = [value] if index % 2 else {"inner": value}
    return value


@given(ANY_TEXT)
def test_text_becomes_valid_unicode_and_whole_pairs_are_kept(text: str) -> None:
    cleaned = clean_text(text)
    cleaned.encode()
    assert clean_text(cleaned) is cleaned
    assert cleaned.encode("utf-16-le") == text.encode("utf-16-le", "surrogatepass").decode(
        "utf-16-le", "replace"
    ).encode("utf-16-le")
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert cleaned == text


def test_halves_that_stand_together_are_one_character() -> None:
    assert clean_text("a\ud83d\ude00b") == "a\U0001f600b"
    assert clean_text("\ude00\ud83d") == "\ufffd\ufffd"


@given(ANY_VALUE)
@settings(deadline=None)
def test_any_value_can_be_encoded_in_one_line_and_read_by_any_reader(value: Any) -> None:
    data = encode({"input": value})
    text = data.decode()
    assert len(text.splitlines()) == 1
    assert "input" in orjson.loads(data) and "input" in json.loads(text, parse_constant=pytest.fail)
    assert encode(orjson.loads(encode(clean_json(value)))) == encode(clean_json(value))


def test_numbers_that_json_can_not_say() -> None:
    assert clean_number(2**64) == 1.8446744073709552e19 and clean_number(-(2**63)) == -(2**63)
    assert clean_number(10**400) is None
    assert [clean_number(value) for value in (math.nan, math.inf, -math.inf)] == [None] * 3


@pytest.mark.parametrize("depth", [MAX_DEPTH, 250, 300, 900])
def test_deep_values_are_cut_and_what_is_above_stays(depth: int) -> None:
    body = orjson.loads(encode({"input": nested(depth)}))
    assert "inner" in body["input"] or body["input"]


@given(ANY_TEXT, ANY_TEXT, ANY_VALUE)
@settings(deadline=None)
def test_every_event_of_an_agent_is_sound(text: str, name: str, value: Any) -> None:
    intake = Intake()
    told: list[base.AgentEvent] = [
        base.BlockDelta(name, "text", text, name),
        base.BlockEnded("text", text, name, parent_tool_use_id=name),
        base.ToolCalled(name, name, {text: value}, title=text, locations=(base.Location(text),), parent_tool_use_id=name),
        base.ToolEnded(name, text, images=(base.ToolImage(text, b"\xff"),)),
        base.PermissionAsked(
            name, "question", name, {text: value}, title=text, plan=text, tool_use_id=name,
            questions=(base.Question(text, text, text, options=(base.QuestionOption(text, text),)),),
            options=(base.PermissionOption(text, "allow", "once", text, text, text),),
        ),
        base.PlanChanged((base.PlanEntry(text, text, "pending"),)),
        base.UsageChanged(base.Usage(2**80, -(2**80))),
        base.SessionChanged(text, text, text, text),
        base.AgentError(name, text),
        base.TurnEnded("end_turn", base.Usage(10**30), math.nan),
    ]  # fmt: skip
    for event in told:
        sound = intake.take(event)
        if sound is None:
            assert isinstance(event, base.BlockDelta)
            continue
        body = dataclasses.asdict(sound)
        body.pop("images", None)
        request, block = body.pop("request", None), body.pop("block", None)
        orjson.dumps(body)
        assert request in (None, name) and block in (None, name)  # the driver gets back what it said
    assert intake.take(base.PermissionWithdrawn(name)) == base.PermissionWithdrawn(name)


def test_what_is_sound_is_the_same_object() -> None:
    intake = Intake()
    for event in (
        base.BlockDelta("b", "text", "plain"),
        base.BlockEnded("text", "größer \U0001f600", "b"),
        base.ToolCalled("t", "Write", {"a": [1, {"b": 2.5}]}, locations=(base.Location("a"),)),
        base.ToolEnded("t", "ok", images=(base.ToolImage("image/png", b""),)),
    ):
        assert intake.take(event) is event


def test_a_character_is_never_split_between_deltas() -> None:
    intake = Intake()

    def told(block: str, text: str) -> str | None:
        event = intake.take(base.BlockDelta(block, "text", text))
        return event.text if isinstance(event, base.BlockDelta) else None

    assert told("a", "one \ud83d") == "one "
    assert told("b", "\ude00") == "\ufffd"  # another block's
    assert told("a", "\ude00 two") == "\U0001f600 two"
    assert told("a", "\ud83d") is None
    assert told("a", "x") == "\ufffdx"
    assert told("a", "\ud83d") is None
    intake.take(base.TurnEnded("interrupted"))
    assert told("a", "y") == "y"


def test_names_are_bounded_and_stay_apart() -> None:
    intake = Intake()
    long = "t" * 1_000_000
    called, other = (intake.take(base.ToolCalled(long + end, "Run", {})) for end in "ab")
    ended = intake.take(base.ToolEnded(long + "a", ""))
    assert isinstance(called, base.ToolCalled) and isinstance(ended, base.ToolEnded)
    assert isinstance(other, base.ToolCalled) and called.tool_use_id == ended.tool_use_id != other.tool_use_id
    assert len(called.tool_use_id) == MAX_NAME
    plan = intake.take(base.PlanChanged(tuple(base.PlanEntry("1", "x" * 100_000, "pending") for _ in range(10_000))))
    assert isinstance(plan, base.PlanChanged) and 0 < len(plan.entries) <= MAX_PLAN_ENTRIES
    assert len(encode(dataclasses.asdict(plan))) < MAX_EVENT_BYTES // 4
    session = intake.take(base.SessionChanged(title="x" * 100_000))
    assert isinstance(session, base.SessionChanged) and len(session.title or "") == 1000
    usage = intake.take(base.UsageChanged(base.Usage(2**70)))
    assert isinstance(usage, base.UsageChanged) and usage.usage.input_tokens == MAX_COUNT


def test_an_event_with_a_huge_envelope_is_cut_too() -> None:
    intake = Intake()
    event = intake.take(base.BlockEnded("text", "x", parent_tool_use_id="p" * 2_000_000))
    assert isinstance(event, base.BlockEnded)
    made = make_event(
        seq=1, event_id="evt_1", type="text", session_id="ses_1", turn_id=None,
        parent_tool_use_id=event.parent_tool_use_id, fields={"content": event.content},
    )  # fmt: skip
    assert len(made.data) < 1000


@pytest.mark.parametrize(
    "told", ["image/\ud83d", "image/png\r\nSet-Cookie: a=b", "", "None", "image/é", "a/" + "b" * 999]
)
def test_a_mime_type_that_is_none(told: str) -> None:
    assert mime_type(told) == UNKNOWN_MIME_TYPE
    assert mime_type("image/svg+xml") == "image/svg+xml"


async def test_a_session_lives_with_whatever_its_agent_says(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = lambda driver, parts: driver.say(
        base.BlockDelta("b\ud83d", "text", "\ud83d"),
        base.BlockEnded("text", "\ud83d\0", "b\ud83d"),
        base.ToolCalled("t\ud83d", "T\ud83d", {"deep": nested(400), "\ud83d": math.nan, "big": 10**300}),
        base.ToolEnded("t\ud83d", "\udc00", images=(base.ToolImage("image/\ud83d", b"\x01"),)),
        base.BlockEnded("text", "inner", parent_tool_use_id="t\ud83d"),
        base.SessionChanged("native\ud83d", "model\ud83d", title="\ud83d"),
        base.PlanChanged((base.PlanEntry("\ud83d", "\ud83d", "pending"),)),
        base.AgentError("agent_error", "\ud83d"),
        base.TurnEnded("error", base.Usage(2**100), math.inf),
    )
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: session.record.turn_count == 1)
        await idle(session)
        other = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: other.record.turn_count == 1)
        await idle(other)
        events = await history(manager, session)
        assert manager.log.healthy
        assert [e["type"] for e in events if e["type"] in ("text", "tool_use", "tool_result", "done", "error")] == [
            "text", "tool_use", "tool_result", "text", "error", "done",
        ]  # fmt: skip
        result = next(e for e in events if e["type"] == "tool_result")
        blob = await manager.log.blob(session.record.stream, result["blocks"][0]["blob_id"])
        assert blob == (UNKNOWN_MIME_TYPE, b"\x01")
        orjson.loads(manager.view_bytes(session))
