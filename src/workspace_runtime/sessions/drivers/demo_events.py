"""Maps the demo agent's lines to the neutral agent events. Pure: no I/O."""

import base64
from typing import Any

from .base import (
    AgentError,
    AgentEvent,
    AgentTurnStarted,
    BlockDelta,
    BlockEnded,
    Location,
    PermissionAsked,
    PermissionOption,
    PermissionWithdrawn,
    PlanChanged,
    PlanEntry,
    Question,
    QuestionOption,
    SessionChanged,
    ToolCalled,
    ToolEnded,
    ToolImage,
    TurnEnded,
    Usage,
)

WINDOW_TOKENS = 100_000


def map_line(line: dict[str, Any]) -> AgentEvent:
    """One line of the demo agent as an event. Raises `KeyError` for a line that is none of its."""
    parent = line.get("parent")
    match line["type"]:
        case "delta":
            return BlockDelta(line["block"], line["kind"], line["text"], parent)
        case "block":
            return BlockEnded(line["kind"], line["text"], line.get("block"), parent_tool_use_id=parent)
        case "tool":
            places = (Location(line["path"]),) if line.get("path") else ()
            return ToolCalled(line["id"], line["tool"], line["input"], line["kind"], line["title"], places, parent)
        case "tool_ended":
            images = tuple(ToolImage(i["mime_type"], base64.b64decode(i["data"])) for i in line.get("images", ()))
            return ToolEnded(line["id"], line["output"], line["status"], images, parent)
        case "permission":
            return _permission(line)
        case "withdrawn":
            return PermissionWithdrawn(line["request"])
        case "plan":
            return PlanChanged(tuple(PlanEntry(e["id"], e["content"], e["status"]) for e in line["entries"]))
        case "session":
            return SessionChanged(native_session_id=line["id"], permission_mode=line["mode"])
        case "turn_started":
            return AgentTurnStarted(line["reason"])
        case "error":
            return AgentError(line["code"], line["message"])
        case "turn_ended":
            used = line["usage"]
            usage = Usage(
                used["input"], used["output"], context_used_tokens=used["context"], context_window_tokens=WINDOW_TOKENS
            )
            return TurnEnded(line["reason"], usage, 0.0)
        case other:
            raise KeyError(other)


def _permission(line: dict[str, Any]) -> PermissionAsked:
    deny = PermissionOption("deny", "deny", "once", "Deny")
    options: tuple[PermissionOption, ...] = (PermissionOption("allow", "allow", "once", "Allow"), deny)
    if line["kind"] == "tool":
        rule = line["rule"]
        options = (
            options[0],
            PermissionOption("session", "allow", "session", "Allow this in the session", rule),
            PermissionOption("always", "allow", "always", "Always allow this", rule, line["writes_to"]),
            deny,
        )
    questions = tuple(
        Question(q["id"], q["question"], options=tuple(QuestionOption(o["label"]) for o in q["options"]))
        for q in line.get("questions", ())
    )
    return PermissionAsked(
        line["request"],
        line["kind"],
        line["tool"],
        line["input"],
        title=line["title"],
        tool_use_id=line["tool_use_id"],
        parent_tool_use_id=line.get("parent"),
        plan=line.get("plan"),
        questions=questions,
        options=options,
    )
