"""What the demo agent says, as agent events, and what it is told: pure functions.

The agent's messages are objects with a `type` (see `demo_agent`). One of a kind that is not known here is ignored, so an
agent may be newer than the server; one that lacks a field raises `KeyError`.
"""

import base64
from collections.abc import Callable, Mapping, Sequence

from .base import (
    AgentError,
    AgentEvent,
    AgentTurnStarted,
    BackgroundChanged,
    BackgroundTask,
    BlockDelta,
    BlockEnded,
    FilePart,
    FileText,
    ImagePart,
    JsonObject,
    Location,
    PermissionAnswer,
    PermissionAsked,
    PermissionOption,
    PermissionWithdrawn,
    PlanChanged,
    PlanEntry,
    PromptPart,
    PromptReturned,
    PromptTaken,
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


def agent_event(message: JsonObject) -> AgentEvent | None:
    """The event that a message of the agent means, None where it means none."""
    read = _READERS.get(message["type"])
    return read(message) if read is not None else None


def part_message(part: PromptPart) -> JsonObject:
    """A piece of a prompt as the agent takes it."""
    match part:
        case TextPart(text):
            return {"type": "text", "text": text}
        case ImagePart(mime_type, data):
            return {"type": "image", "mime_type": mime_type, "data": data}
        case FileText(path, text):
            return {"type": "file", "path": path, "text": text}
        case FilePart():
            raise TypeError("a driver gets files with their text")


def answer_message(request: str, answer: PermissionAnswer) -> JsonObject:
    """An answer to a permission as the agent takes it."""
    return {
        "type": "answer",
        "request": request,
        "decision": answer.decision,
        "scope": answer.scope,
        "updated_input": answer.updated_input,
        "message": answer.message,
        "answers": dict(answer.answers) if answer.answers is not None else None,
        "interrupt": answer.interrupt,
    }


def _delta(message: JsonObject) -> AgentEvent:
    return BlockDelta(message["block"], message["kind"], message["text"], message.get("parent"))


def _block(message: JsonObject) -> AgentEvent:
    return BlockEnded(
        message["kind"],
        message["content"],
        message.get("block"),
        message.get("partial", False),
        message.get("parent"),
    )


def _tool(message: JsonObject) -> AgentEvent:
    return ToolCalled(
        tool_use_id=message["id"],
        tool=message["name"],
        input=message["input"],
        kind=message["kind"],
        title=message.get("title"),
        locations=tuple(Location(place["path"], place.get("line")) for place in message.get("locations", ())),
        parent_tool_use_id=message.get("parent"),
    )


def _result(message: JsonObject) -> AgentEvent:
    return ToolEnded(
        tool_use_id=message["id"],
        output=message["output"],
        status=message["status"],
        images=tuple(
            ToolImage(image["mime_type"], base64.b64decode(image["data"])) for image in message.get("images", ())
        ),
        parent_tool_use_id=message.get("parent"),
    )


def _background(message: JsonObject) -> AgentEvent:
    tasks = [BackgroundTask(task["id"], task["kind"], task["title"]) for task in message["tasks"]]
    return BackgroundChanged(tasks, message["ended"])


def _permission(message: JsonObject) -> AgentEvent:
    return PermissionAsked(
        request=message["request"],
        kind=message["kind"],
        tool=message["tool"],
        input=message["input"],
        title=message.get("title"),
        tool_use_id=message.get("tool_use_id"),
        parent_tool_use_id=message.get("parent"),
        plan=message.get("plan"),
        questions=tuple(_question(question) for question in message.get("questions", ())),
        options=tuple(_option(option) for option in message.get("options", ())),
    )


def _question(message: JsonObject) -> Question:
    return Question(
        id=message["id"],
        question=message["question"],
        header=message.get("header"),
        multi_select=message.get("multi_select", False),
        options=tuple(
            QuestionOption(option["label"], option.get("description")) for option in message.get("options", ())
        ),
    )


def _option(message: JsonObject) -> PermissionOption:
    return PermissionOption(
        id=message["id"],
        decision=message["decision"],
        scope=message["scope"],
        label=message["label"],
        rule=message.get("rule"),
        writes_to=message.get("writes_to"),
    )


def _withdrawn(message: JsonObject) -> AgentEvent:
    return PermissionWithdrawn(message["request"])


def _plan(message: JsonObject) -> AgentEvent:
    return PlanChanged(tuple(_entry(entry) for entry in message["entries"]))


def _entry(message: JsonObject) -> PlanEntry:
    return PlanEntry(message["id"], message["content"], message["status"], message.get("priority"))


def _usage(message: JsonObject) -> AgentEvent:
    return UsageChanged(Usage(**message["usage"]))


def _started(message: JsonObject) -> AgentEvent:
    return SessionChanged(message["id"], message["model"], message["mode"])


def _session(message: JsonObject) -> AgentEvent:
    return SessionChanged(model=message.get("model"), permission_mode=message.get("mode"), title=message.get("title"))


def _began(message: JsonObject) -> AgentEvent:
    return AgentTurnStarted(message.get("reason"))


def _taken(message: JsonObject) -> AgentEvent:
    return PromptTaken(message["prompt"])


def _returned(message: JsonObject) -> AgentEvent:
    return PromptReturned(message["prompt"])


def _error(message: JsonObject) -> AgentEvent:
    return AgentError(message["code"], message["message"], message.get("retryable", False))


def _ended(message: JsonObject) -> AgentEvent:
    usage = message.get("usage")
    return TurnEnded(message["stop_reason"], Usage(**usage) if usage else None)


_READERS: Mapping[str, Callable[[JsonObject], AgentEvent]] = {
    "delta": _delta,
    "block": _block,
    "tool": _tool,
    "result": _result,
    "background": _background,
    "permission": _permission,
    "withdrawn": _withdrawn,
    "plan": _plan,
    "usage": _usage,
    "started": _started,
    "session": _session,
    "began": _began,
    "taken": _taken,
    "returned": _returned,
    "error": _error,
    "ended": _ended,
}


def prompt_message(parts: Sequence[PromptPart], steered: str | None = None) -> JsonObject:
    """A `prompt`, or a `steer` into the running turn under this name."""
    message: JsonObject = {"type": "prompt"} if steered is None else {"type": "steer", "prompt": steered}
    return message | {"parts": [part_message(part) for part in parts]}
