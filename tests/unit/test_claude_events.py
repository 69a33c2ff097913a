"""Claude Code's messages become neutral events: golden samples of the real CLI, and what they can't show."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.record_claude import GOLDEN, SCENARIOS, encode, read, replay
from workspace_runtime.sessions.drivers import claude_errors
from workspace_runtime.sessions.drivers.base import (
    AgentError,
    AgentEvent,
    AgentTurnStarted,
    BlockDelta,
    BlockEnded,
    PlanChanged,
    PromptReturned,
    SessionChanged,
    ToolCalled,
    ToolEnded,
    ToolImage,
    TurnEnded,
    Usage,
)
from workspace_runtime.sessions.drivers.claude_events import ClaudeEvents
from workspace_runtime.sessions.drivers.claude_outputs import whole
from workspace_runtime.sessions.drivers.claude_plan import Plan

SAMPLES = {path.stem: read(path) for path in sorted(GOLDEN.glob("*.jsonl")) if not path.stem.endswith(".events")}


def test_every_scenario_is_recorded() -> None:
    assert set(SAMPLES) == set(SCENARIOS)


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_golden(name: str) -> None:
    events = [json.loads(json.dumps(encode(event))) for event in replay(SAMPLES[name])]
    assert events == read(GOLDEN / f"{name}.events.jsonl")


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_rules_that_hold_for_every_conversation(name: str) -> None:
    events = list(replay(SAMPLES[name]))
    calls = [event.tool_use_id for event in events if isinstance(event, ToolCalled)]
    ends = [event.tool_use_id for event in events if isinstance(event, ToolEnded)]
    assert len(set(calls)) == len(calls) and sorted(calls) == sorted(ends)
    turns = SCENARIOS[name].turns or len(SCENARIOS[name].prompts)
    assert len([event for event in events if isinstance(event, TurnEnded)]) == turns
    for event in events:
        if isinstance(event, BlockEnded) and event.block:
            deltas = [e.text for e in events if isinstance(e, BlockDelta) and e.block == event.block]
            assert "".join(deltas) == event.content


def test_samples_name_no_machine() -> None:
    for path in GOLDEN.glob("*.jsonl"):
        assert not any(word in path.read_text() for word in ("/tmp/", "/root/", "pytest"))


# --- what the samples can't show ----------------------------------------------------------------------------------------


def stream(event: dict[str, Any], parent: str | None = None) -> dict[str, Any]:
    return {"type": "stream_event", "event": event, "parent_tool_use_id": parent}


def begin(message_id: str) -> dict[str, Any]:
    return stream({"type": "message_start", "message": {"id": message_id, "usage": {"input_tokens": 1}}})


def block(index: int, kind: str = "text") -> dict[str, Any]:
    return stream({"type": "content_block_start", "index": index, "content_block": {"type": kind}})


def delta(index: int, text: str) -> dict[str, Any]:
    return stream({"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}})


def result(**more: Any) -> dict[str, Any]:
    return {"type": "result", "subtype": "success", "is_error": False, "session_id": "s", "total_cost_usd": 0.5} | more


def tool_result(tool_use_id: str, content: Any, meta: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    body = {"type": "tool_result", "tool_use_id": tool_use_id, "content": content} | more
    metas = [{"id": tool_use_id, **meta}] if meta else []
    return {"type": "user", "message": {"content": [body]}, "tool_result_meta": metas, "parent_tool_use_id": None}


def take(mapper: ClaudeEvents, *messages: dict[str, Any]) -> list[AgentEvent]:
    return [event for message in messages for event in mapper.take(message)]


def lifecycle(prompt: str, state: str) -> dict[str, Any]:
    return {"type": "command_lifecycle", "command_uuid": prompt, "state": state}


@pytest.fixture
def mapper() -> ClaudeEvents:
    mapper = ClaudeEvents("/workspace")
    mapper.prompted("p1")
    return mapper


def test_a_message_begun_anew_ends_what_was_seen_of_the_first_as_partial(mapper: ClaudeEvents) -> None:
    events = take(mapper, begin("m1"), block(0), delta(0, "seen"), begin("m2"), block(0), delta(0, "anew"))
    assert events == [
        BlockDelta("m1:0", "text", "seen"),
        BlockEnded("text", "seen", "m1:0", partial=True),
        BlockDelta("m2:0", "text", "anew"),
    ]
    assert mapper.ended() == [BlockEnded("text", "anew", "m2:0", partial=True)]


def test_a_block_that_stops_without_having_come_whole_is_partial(mapper: ClaudeEvents) -> None:
    events = take(
        mapper, begin("m1"), block(0), delta(0, "cut"), stream({"type": "content_block_stop", "index": 0}), begin("m2")
    )
    assert events[1:] == [BlockEnded("text", "cut", "m1:0", partial=True)]


def test_the_agents_own_turn_that_ends_as_ours_begins_does_not_end_ours(mapper: ClaudeEvents) -> None:
    assert take(mapper, lifecycle("p1", "queued"), result(origin={"kind": "task-notification"})) == []
    (ended,) = take(mapper, lifecycle("p1", "started"), result(total_cost_usd=0.75))
    assert isinstance(ended, TurnEnded) and ended.cost_usd == 0.25


def test_the_agents_own_turn_that_took_our_prompt_in_ends_ours(mapper: ClaudeEvents) -> None:
    own = result(origin={"kind": "task-notification"})
    events = take(mapper, lifecycle("p1", "queued"), lifecycle("p1", "started"), own, lifecycle("p1", "completed"))
    assert [type(event) for event in events] == [TurnEnded]


@pytest.mark.parametrize("state", ["cancelled", "discarded", "refused"])
def test_a_prompt_that_the_cli_drops_ends_its_turn(mapper: ClaudeEvents, state: str) -> None:
    refused, ended = take(mapper, lifecycle("p1", "queued"), lifecycle("p1", state))
    assert isinstance(refused, AgentError) and ended == TurnEnded("error")
    mapper.prompted("p2")
    mapper.interrupted()
    assert take(mapper, lifecycle("p2", "queued"), lifecycle("p2", state)) == [TurnEnded("interrupted")]


def test_nothing_of_a_halted_cli_is_told_until_the_next_prompt(mapper: ClaudeEvents) -> None:
    mapper.steered("p2", "turn_2")
    mapper.interrupted()
    assert take(mapper, result(terminal_reason="aborted_tools")) == [TurnEnded("interrupted", Usage(), 0.5)]
    assert take(mapper, lifecycle("p2", "started")) == [PromptReturned("turn_2")] and mapper.unasked
    mapper.unasked = False
    requesting = {"type": "system", "subtype": "status", "status": "requesting"}
    assert take(mapper, requesting, begin("m1"), block(0), delta(0, "never"), result()) == [] and mapper.unasked
    mapper.prompted("p3")
    assert [type(e) for e in take(mapper, begin("m2"), block(0), delta(0, "now"))] == [BlockDelta]


def test_a_turn_without_a_prompt_begins_by_itself() -> None:
    mapper = ClaudeEvents("/workspace")
    inner = {"type": "assistant", "parent_tool_use_id": "t1", "message": {"content": [{"type": "text", "text": "in"}]}}
    assert take(mapper, inner) == [BlockEnded("text", "in", parent_tool_use_id="t1")]
    assert take(mapper, begin("m1"), block(0)) == [AgentTurnStarted()]
    assert [type(event) for event in take(mapper, result())] == [TurnEnded]
    assert take(mapper, result()) == []


def test_a_conversation_begun_anew_counts_its_cost_from_nothing(mapper: ClaudeEvents) -> None:
    take(mapper, result(total_cost_usd=3.0))
    mapper.prompted("p2")
    (ended,) = take(mapper, result(total_cost_usd=0.5))
    assert isinstance(ended, TurnEnded) and ended.cost_usd == 0.5


def test_what_a_tool_returns(mapper: ClaudeEvents) -> None:
    png = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"x").decode()},
    }
    broken = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "%%"}}
    contents: list[Any] = [
        "text",
        [{"type": "text", "text": "a"}, png, broken, {"type": "text", "text": "b"}],
        None,
        [7],
    ]
    ended = [take(mapper, tool_result(f"t{number}", content))[0] for number, content in enumerate(contents)]
    assert ended == [
        ToolEnded("t0", "text"),
        ToolEnded("t1", "a\nb", images=(ToolImage("image/png", b"x"),)),
        ToolEnded("t2", ""),
        ToolEnded("t3", ""),
    ]
    assert take(mapper, tool_result("t0", "again")) == []


def test_how_a_tool_ended(mapper: ClaudeEvents) -> None:
    mapper.denied("asked")
    results = [
        tool_result("asked", "no", {"non_execution_kind": "user-rejected"}, is_error=True),
        tool_result("rule", "no", {"non_execution_kind": "permission-rule"}, is_error=True),
        tool_result("words", "Permission to use Bash with command rm has been denied.", is_error=True),
        tool_result("stopped", "stop", {"non_execution_kind": "user-rejected"}, is_error=True),
        tool_result("failed", "exit 1", is_error=True),
        tool_result("fine", "ok"),
    ]
    statuses = [event.status for event in take(mapper, *results) if isinstance(event, ToolEnded)]
    assert statuses == ["denied", "denied", "denied", "cancelled", "failed", "completed"]


def test_a_tool_call_is_said_once_whoever_says_it_first(mapper: ClaudeEvents) -> None:
    call = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}}
    first = mapper.called("t1", "Bash", {"command": "ls"}, None)
    assert [type(event) for event in first] == [ToolCalled]
    assert take(mapper, {"type": "assistant", "message": {"id": "m", "content": [call]}}) == []
    take(mapper, tool_result("t1", ""))
    assert mapper.called("t1", "Bash", {}, None) == []


def test_changes_of_the_session(mapper: ClaudeEvents) -> None:
    told = {"type": "system", "subtype": "status", "permissionMode": "plan"}
    assert take(mapper, told) == [SessionChanged(permission_mode="plan")]


def test_unknown_messages_say_nothing(mapper: ClaudeEvents) -> None:
    unknown: list[dict[str, Any]] = [
        {"type": "new"},
        {"type": "system", "subtype": "new"},
        {},
        {"type": "user", "message": {"content": "x"}},
    ]
    assert take(mapper, *unknown) == []


@given(
    st.lists(st.sampled_from([m for sample in SAMPLES.values() for m in sample if m["type"] != "told"]), max_size=40)
)
def test_no_order_of_messages_breaks_it(messages: list[dict[str, Any]]) -> None:
    running = False
    for event in replay(messages):
        if isinstance(event, AgentTurnStarted):
            assert not running
            running = True
        elif isinstance(event, TurnEnded):
            assert running
            running = False


@pytest.mark.parametrize(
    ("ended", "said", "code", "retryable"),
    [
        ({"api_error_status": 403}, {}, "agent_request_refused", False),
        ({"api_error_status": 503}, {}, "agent_overloaded", True),
        ({}, {"error": "rate_limit"}, "agent_rate_limited", True),
        ({}, {"error": "billing_error"}, "agent_request_refused", False),
        ({}, {"error": "server_error", "api_error": "connection_failed"}, "agent_unreachable", True),
        ({}, {"error": "server_error"}, "agent_overloaded", True),
        ({"errors": ["it broke"]}, {}, "agent_error", False),
    ],
)
def test_codes_of_failures(ended: dict[str, Any], said: dict[str, Any], code: str, retryable: bool) -> None:
    assert claude_errors.stop_reason({"is_error": True} | ended) == "error"
    failure = claude_errors.failure(ended, said, unreachable=False)
    assert isinstance(failure, AgentError)
    assert (failure.code, failure.retryable) == (code, retryable) and failure.message


def test_the_older_todo_list() -> None:
    plan = Plan()
    todos = [{"content": "a", "status": "completed"}, {"content": "b", "status": "odd"}]
    changed = plan.tool_ended("TodoWrite", {"todos": todos}, None)
    assert isinstance(changed, PlanChanged)
    assert [(entry.id, entry.content, entry.status) for entry in changed.entries] == [
        ("1", "a", "completed"),
        ("2", "b", "pending"),
    ]
    assert plan.tool_ended("TodoWrite", {"todos": todos}, None) is None
    assert plan.tool_ended("TaskUpdate", {"taskId": "9", "status": "completed"}, {"success": True}) is None


class TestLargeOutputs:
    def preview(self, path: Path) -> ToolEnded:
        text = (
            f"<persisted-output>\nOutput too large (4.8MB). Full output saved to: {path}\n\nPreview (first 2KB):\nxxx"
        )
        return ToolEnded("t1", text)

    def saved(self, config: Path, name: str, content: str) -> Path:
        path = config / "projects" / "-with space" / "s" / "tool-results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def test_are_read_whole(self, tmp_path: Path) -> None:
        assert whole(self.preview(self.saved(tmp_path, "a.txt", "all of it")), tmp_path).output == "all of it"
        blocks = json.dumps([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])
        assert whole(self.preview(self.saved(tmp_path, "b.json", blocks)), tmp_path).output == "one\ntwo"

    def test_are_read_from_the_conversations_own_folders_only(self, tmp_path: Path) -> None:
        config = tmp_path / "config"
        elsewhere = self.saved(tmp_path / "elsewhere", "secret.txt", "secret")
        link = self.saved(config, "link.txt", "")
        link.unlink()
        link.symlink_to(elsewhere)
        up = link.parent / ".." / ".." / ".." / ".." / ".." / "elsewhere" / "tool-results" / "x"
        for path in (elsewhere, link, up, link.parent / "missing.txt"):
            assert whole(self.preview(path), config) == self.preview(path)
        assert whole(ToolEnded("t1", "<persisted-output> nothing"), config).output == "<persisted-output> nothing"
