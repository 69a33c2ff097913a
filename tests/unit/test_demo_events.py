"""The demo agent's messages as agent events."""

from typing import Any

import pytest

from workspace_runtime.sessions.drivers.base import (
    AgentError,
    AgentEvent,
    AgentTurnStarted,
    BlockDelta,
    BlockEnded,
    FileText,
    ImagePart,
    Location,
    PermissionAnswer,
    PermissionAsked,
    PermissionOption,
    PermissionWithdrawn,
    PlanChanged,
    PlanEntry,
    PromptPart,
    Question,
    QuestionOption,
    SessionChanged,
    TextPart,
    ToolCalled,
    ToolEnded,
    ToolImage,
    TurnEnded,
    Usage,
    UsageChanged,
)
from workspace_runtime.sessions.drivers.demo_events import agent_event, answer_message, prompt_message

SAMPLES: list[tuple[dict[str, Any], AgentEvent | None]] = [
    ({"type": "started", "id": "c1", "model": "m", "mode": "ask"}, SessionChanged("c1", "m", "ask")),
    ({"type": "session", "model": None, "mode": "auto"}, SessionChanged(permission_mode="auto")),
    ({"type": "session", "title": "A name"}, SessionChanged(title="A name")),
    ({"type": "began", "reason": "later"}, AgentTurnStarted("later")),
    (
        {"type": "delta", "block": "b1", "kind": "text", "text": "hi", "parent": None},
        BlockDelta("b1", "text", "hi"),
    ),
    (
        {"type": "block", "block": "b1", "kind": "thinking", "content": "hm", "parent": "t1"},
        BlockEnded("thinking", "hm", "b1", parent_tool_use_id="t1"),
    ),
    (
        {"type": "block", "block": None, "kind": "text", "content": "h", "partial": True, "parent": None},
        BlockEnded("text", "h", None, partial=True),
    ),
    (
        {
            "type": "tool",
            "id": "t1",
            "name": "Read",
            "kind": "read",
            "input": {"path": "a"},
            "title": "Read a",
            "locations": [{"path": "a"}],
            "parent": None,
        },
        ToolCalled("t1", "Read", {"path": "a"}, "read", "Read a", (Location("a"),)),
    ),
    (
        {"type": "result", "id": "t1", "status": "failed", "output": "no", "parent": "t0"},
        ToolEnded("t1", "no", "failed", parent_tool_use_id="t0"),
    ),
    (
        {
            "type": "result",
            "id": "t1",
            "status": "completed",
            "output": "",
            "images": [{"mime_type": "image/png", "data": "aGk="}],
        },
        ToolEnded("t1", "", images=(ToolImage("image/png", b"hi"),)),
    ),
    (
        {
            "type": "permission",
            "request": "r1",
            "kind": "tool",
            "tool": "Run",
            "input": {"command": "ls"},
            "title": "Run ls",
            "tool_use_id": "t1",
            "parent": None,
            "options": [
                {"id": "always", "decision": "allow", "scope": "always", "label": "A", "rule": "r", "writes_to": "f"}
            ],
        },
        PermissionAsked(
            "r1",
            "tool",
            "Run",
            {"command": "ls"},
            "Run ls",
            "t1",
            options=(PermissionOption("always", "allow", "always", "A", "r", "f"),),
        ),
    ),
    (
        {
            "type": "permission",
            "request": "r2",
            "kind": "question",
            "tool": "Question",
            "input": {},
            "questions": [{"id": "q1", "question": "Which?", "multi_select": True, "options": [{"label": "a"}]}],
        },
        PermissionAsked(
            "r2",
            "question",
            "Question",
            {},
            questions=(Question("q1", "Which?", multi_select=True, options=(QuestionOption("a"),)),),
        ),
    ),
    ({"type": "withdrawn", "request": "r1"}, PermissionWithdrawn("r1")),
    (
        {"type": "plan", "entries": [{"id": "1", "content": "a", "status": "in_progress"}]},
        PlanChanged((PlanEntry("1", "a", "in_progress"),)),
    ),
    ({"type": "usage", "usage": {"input_tokens": 3}}, UsageChanged(Usage(3))),
    ({"type": "error", "code": "agent_error", "message": "no"}, AgentError("agent_error", "no")),
    (
        {"type": "ended", "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 4}},
        TurnEnded("end_turn", Usage(3, 4)),
    ),
    ({"type": "ended", "stop_reason": "error"}, TurnEnded("error")),
    ({"type": "from a newer agent", "data": 1}, None),
]


@pytest.mark.parametrize(("message", "event"), SAMPLES, ids=[m["type"] for m, _ in SAMPLES])
def test_a_message_becomes_its_event(message: dict[str, Any], event: AgentEvent | None) -> None:
    assert agent_event(message) == event


def test_a_message_that_lacks_something_is_no_event() -> None:
    with pytest.raises(KeyError):
        agent_event({"type": "delta"})


def test_what_the_agent_is_told() -> None:
    parts: list[PromptPart] = [
        TextPart("hi"),
        ImagePart("image/png", "aGk="),
        FileText("a.txt", "b\nc\n", 2, 3),
    ]
    assert prompt_message(parts)["type"] == "prompt"
    assert prompt_message(parts, "turn_1") == {
        "type": "steer",
        "prompt": "turn_1",
        "parts": [
            {"type": "text", "text": "hi"},
            {"type": "image", "mime_type": "image/png", "data": "aGk="},
            {"type": "file", "path": "a.txt", "text": "b\nc\n"},
        ],
    }
    assert answer_message("r1", PermissionAnswer("allow", "always", {"a": 1}, "m", {"q1": ["x"]}, True)) == {
        "type": "answer",
        "request": "r1",
        "decision": "allow",
        "scope": "always",
        "updated_input": {"a": 1},
        "message": "m",
        "answers": {"q1": ["x"]},
        "interrupt": True,
    }
