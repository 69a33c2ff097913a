"""What a session is: its record, its turns and its permissions, as plain data.

A `SessionRecord` is all that is kept of a session beside its events. It is written whole with every change that matters, in
the same commit as the events that tell of it, and read whole at the start.
"""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from workspace_runtime.events.model import encode

from .drivers.base import (
    FilePart,
    ImagePart,
    PermissionOption,
    PromptPart,
    Question,
    StopReason,
    TextPart,
    Usage,
)

JsonObject = dict[str, Any]
Status = Literal["starting", "idle", "running", "requires_action", "failed", "terminated"]
Delivery = Literal["queue", "interrupt", "steer"]

# What an `error` of the code `server_restarted` says, whether the server was stopped or killed.
SERVER_RESTARTED = "The server was stopped while this turn ran. The next prompt goes on with the conversation."
PREVIEW_CHARACTERS = 200
TITLE_CHARACTERS = 80


@dataclass(slots=True)
class SessionRecord:
    """The lasting state of one session. `cwd` is relative to the workspace's root, `.` for the root itself.

    `env` and `system_prompt` are secrets: kept to start the agent again, never answered.
    """

    id: str
    stream: int
    agent: str
    created_at: str
    updated_at: str
    cwd: str = "."
    title: str | None = None
    status: Status = "starting"
    # as the agent told it; what a client chose is kept apart, so that the agent's own settings go on to count where it did not
    model: str | None = None
    chosen_model: str | None = None
    effort: str | None = None
    permission_mode: str | None = None
    labels: list[str] = field(default_factory=list)
    turn_count: int = 0
    active_turn: JsonObject | None = None
    last_message: JsonObject | None = None
    queue_length: int = 0
    queue_paused: bool = False
    pending_permissions: list[str] = field(default_factory=list)
    plan: list[JsonObject] | None = None
    # what the agent does beside its turns, as `task_updated` told it last
    background: list[JsonObject] = field(default_factory=list)
    usage: JsonObject = field(default_factory=lambda: usage_json(Usage()))
    cost_usd: float = 0.0
    context: JsonObject | None = None
    parent_session_id: str | None = None
    native_session_id: str | None = None
    # the conversation to begin from at the first start: set by `resume`, used until the agent tells its own id
    resume_native_id: str | None = None
    fork: bool = False
    error: JsonObject | None = None
    permission_timeout_s: float | None = None
    max_turns: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    system_prompt: str | None = None

    @property
    def conversation(self) -> str | None:
        """The agent's own conversation that this session goes on with, unless it is terminated; a fork has none of its own yet."""
        return self.native_session_id or (None if self.fork else self.resume_native_id)

    def dump(self) -> bytes:
        """The stored form."""
        return encode({name: getattr(self, name) for name in _RECORD_FIELDS})

    @classmethod
    def load(cls, data: bytes) -> "SessionRecord":
        """Read the stored form; what an older version did not know gets its default."""
        stored = orjson.loads(data)
        return cls(**{name: value for name, value in stored.items() if name in _RECORD_FIELDS})


_RECORD_FIELDS = frozenset(entry.name for entry in dataclasses.fields(SessionRecord))


@dataclass(slots=True)
class QueuedPrompt:
    """A prompt that waits for its turn, or whose turn is about to begin. `waited`: clients saw it in the queue; `held`: the agent
    was steered with it and has not taken it in yet; `dropped`: it is to go as soon as the agent gave it back."""

    turn_id: str
    parts: Sequence[PromptPart]
    client_message_id: str | None = None
    waited: bool = False
    held: bool = False
    dropped: bool = False

    def dump(self) -> bytes:
        """The stored form."""
        return orjson.dumps({"client_message_id": self.client_message_id, "prompt": prompt_json(self.parts)})

    @classmethod
    def load(cls, turn_id: str, data: bytes) -> "QueuedPrompt":
        """Read the stored form."""
        stored = orjson.loads(data)
        return cls(turn_id, prompt_parts(stored["prompt"]), stored["client_message_id"], waited=True)


@dataclass(slots=True)
class ToolRun:
    """A tool that the agent has called and that has not ended."""

    tool: str
    started: float
    parent_tool_use_id: str | None


@dataclass(slots=True)
class Turn:
    """The running turn. `sent`: the agent has got the prompt. `stop_as`: how it shall end, once someone asked to stop it."""

    id: str
    origin: Literal["user", "agent"]
    started: float = field(default_factory=time.monotonic)
    prompt: QueuedPrompt | None = None
    sent: bool = False
    stop_as: StopReason | None = None
    failed: bool = False
    # whether the queue pauses when the turn is stopped or fails
    pause: bool = True
    over: asyncio.Event = field(default_factory=asyncio.Event)
    usage: Usage | None = None
    # what was steered into it: each of these prompts gets a `done` of its own with the turn's
    taken: list[str] = field(default_factory=list)

    def end_as(self, reason: StopReason, *, pause: bool = True) -> StopReason:
        """Note at once that it is to be stopped, since it may end by itself before the agent hears of it; how it will end.

        The first reason stays; whether the queue pauses is for the last one to say.
        """
        self.stop_as, self.pause = self.stop_as or reason, pause
        return self.stop_as


@dataclass(slots=True)
class Permission:
    """A permission, question or plan that waits for an answer, or has been answered (`resolution`)."""

    id: str
    session_id: str
    turn_id: str | None
    request: str
    kind: Literal["tool", "question", "plan"]
    tool: str
    input: JsonObject
    created_at: str
    title: str | None = None
    tool_use_id: str | None = None
    parent_tool_use_id: str | None = None
    plan: str | None = None
    questions: Sequence[Question] = ()
    options: Sequence[PermissionOption] = ()
    expires_at: str | None = None
    resolution: JsonObject | None = None

    def view(self) -> JsonObject:
        """As the API answers it."""
        return {
            "id": self.id,
            "session_id": self.session_id,
            "turn_id": self.turn_id,
            "tool_use_id": self.tool_use_id,
            "parent_tool_use_id": self.parent_tool_use_id,
            "kind": self.kind,
            "tool": self.tool,
            "title": self.title,
            "input": self.input,
            "plan": self.plan,
            "questions": [dataclasses.asdict(question) for question in self.questions],
            "options": [dataclasses.asdict(option) for option in self.options],
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "status": "resolved" if self.resolution else "pending",
            "resolution": self.resolution,
        }


def usage_json(usage: Usage) -> JsonObject:
    """Tokens as the API answers them."""
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
    }


def prompt_json(parts: Sequence[PromptPart]) -> list[JsonObject]:
    """A prompt as blocks of the API."""
    blocks: list[JsonObject] = []
    for part in parts:
        match part:
            case TextPart(text):
                blocks.append({"type": "text", "text": text})
            case ImagePart(mime_type, data):
                blocks.append({"type": "image", "mime_type": mime_type, "data": data})
            case FilePart(path, start, end):
                blocks.append({"type": "file", "path": path, "start_line": start, "end_line": end})
    return blocks


def prompt_parts(blocks: Sequence[JsonObject]) -> list[PromptPart]:
    """The inverse of `prompt_json`."""
    parts: list[PromptPart] = []
    for block in blocks:
        if block["type"] == "text":
            parts.append(TextPart(block["text"]))
        elif block["type"] == "image":
            parts.append(ImagePart(block["mime_type"], block["data"]))
        else:
            parts.append(FilePart(block["path"], block.get("start_line"), block.get("end_line")))
    return parts


def prompt_text(parts: Sequence[PromptPart]) -> str:
    """What a prompt says, as text: for titles and previews."""
    words = []
    for part in parts:
        match part:
            case TextPart(text):
                words.append(text)
            case ImagePart():
                words.append("[image]")
            case FilePart(path):
                words.append(f"@{path}")
    return " ".join(words).strip()


def preview(text: str, length: int = PREVIEW_CHARACTERS) -> str:
    """The beginning of a text in one line, at most `length` characters."""
    line = " ".join(text[: length * 4].split())
    return line if len(line) <= length else line[: length - 1] + "…"
