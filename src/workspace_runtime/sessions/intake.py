"""The intake: what an agent says is made sound here, once for every driver, before it becomes events and state.

An agent is a program of somebody else: its words may hold half characters, its numbers may be none that JSON knows, its names may
be as long as its texts. What is sound passes as it is. Prose is never shortened here (the frame's limit is the journal's job), but
names are, since they stand in every frame's envelope and in the session that every list shows.
"""

import dataclasses
import hashlib
import re
from typing import Any

from workspace_runtime.events.values import clean_json, clean_number, clean_text

from .drivers.base import (
    AgentEvent,
    BackgroundChanged,
    BlockDelta,
    BlockEnded,
    PermissionWithdrawn,
    PlanChanged,
    PlanEntry,
    SessionChanged,
    ToolImage,
    TurnEnded,
)

# Names of things, in characters; a longer one keeps its beginning, and a digest tells it from others.
MAX_NAME = 256
_NAMES = frozenset({"tool_use_id", "parent_tool_use_id", "tool", "code"})
# What stands in a session's answer: its own title, model and mode, and its plan.
MAX_SESSION_TEXT = 1000
MAX_PLAN_ENTRIES = 200
MAX_TASKS = 200
MAX_PLAN_CHARACTERS = 40_000
# A count of tokens that is added to others and must stay a whole number for every client.
MAX_COUNT = 2**53 - 1
UNKNOWN_MIME_TYPE = "application/octet-stream"
_MIME_TYPE = re.compile(r"[A-Za-z0-9][\w.+-]{0,100}/[A-Za-z0-9][\w.+-]{0,100}", re.ASCII)
_EXACT = frozenset({"request", "block"})  # only compared, and given back to the driver


class Intake:
    """What one agent process says, in its order."""

    def __init__(self) -> None:
        # the first half of a character whose second half is to come, by sub-agent and block
        self._halves: dict[tuple[str | None, str], str] = {}

    def take(self, event: AgentEvent) -> AgentEvent | None:
        """The event, sound; None where nothing of it is left to tell now."""
        if isinstance(event, BlockDelta | BlockEnded) and not self._halves and _plain(event):
            return event
        match event:
            case BlockDelta():
                return self._delta(event)
            case BlockEnded(block=str(block)):
                self._halves.pop((event.parent_tool_use_id, block), None)
            case TurnEnded():
                self._halves.clear()
            case PlanChanged(entries):
                event = PlanChanged(_plan(entries))
            case BackgroundChanged(tasks, ended):
                kept = tuple(dataclasses.replace(task, title=task.title[:MAX_SESSION_TEXT]) for task in tasks)
                event = BackgroundChanged(kept[:MAX_TASKS], ended)
            case PermissionWithdrawn():
                return event
        return _sound(event)  # type: ignore[no-any-return]

    def _delta(self, event: BlockDelta) -> BlockDelta | None:
        name, text = (event.parent_tool_use_id, event.block), event.text
        if self._halves:
            text = self._halves.pop(name, "") + text
        if text and "\ud800" <= text[-1] <= "\udbff":
            self._halves[name] = text[-1]
            text = text[:-1]
        if not text:
            return None
        changed = dataclasses.replace(event, text=text) if text is not event.text else event
        return _sound(changed)  # type: ignore[no-any-return]


def _plain(event: BlockDelta | BlockEnded) -> bool:
    """Whether a piece of text is sound at first sight: most events are such pieces."""
    text, parent = event.text if isinstance(event, BlockDelta) else event.content, event.parent_tool_use_id
    return text != "" and text.isascii() and (parent is None or (parent.isascii() and len(parent) <= MAX_NAME))


def mime_type(told: str) -> str:
    """A MIME type that can stand in a header, whatever was told."""
    return told if _MIME_TYPE.fullmatch(told) else UNKNOWN_MIME_TYPE


_known_fields: dict[type, tuple[str, ...]] = {}


def _fields(kind: type) -> tuple[str, ...]:
    if kind not in _known_fields:
        _known_fields[kind] = tuple(f.name for f in dataclasses.fields(kind) if f.name not in _EXACT)
    return _known_fields[kind]


def _sound(told: Any) -> Any:
    """The same object where all of it is sound, else another one."""
    changes: dict[str, Any] = {}
    for name in _fields(type(told)):
        value = getattr(told, name)
        sound = _value(name, value)
        if sound is not value:
            changes[name] = sound
    if isinstance(told, SessionChanged):
        changes |= {name: text[:MAX_SESSION_TEXT] for name, text in _long_texts(told, changes)}
    if isinstance(told, ToolImage) and (kind := mime_type(told.mime_type)) != told.mime_type:
        changes["mime_type"] = kind
    return dataclasses.replace(told, **changes) if changes else told


def _value(name: str, value: Any) -> Any:
    if isinstance(value, str):
        text = clean_text(value)
        return _name(text) if name in _NAMES and len(text) > MAX_NAME else text
    if value is None or isinstance(value, bool | bytes):
        return value
    if isinstance(value, int):
        return min(max(value, -MAX_COUNT), MAX_COUNT)
    if isinstance(value, float):
        return clean_number(value)
    if isinstance(value, dict):
        return clean_json(value)
    if isinstance(value, list | tuple):
        items = tuple(_value("", item) for item in value)
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    return _sound(value) if dataclasses.is_dataclass(value) else clean_json(value)


def _name(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text[: MAX_NAME - 17]}~{digest}"


def _long_texts(told: SessionChanged, changes: dict[str, Any]) -> list[tuple[str, str]]:
    texts = [(name, changes.get(name, getattr(told, name))) for name in _fields(SessionChanged)]
    return [(name, text) for name, text in texts if isinstance(text, str) and len(text) > MAX_SESSION_TEXT]


def _plan(entries: Any) -> tuple[PlanEntry, ...]:
    """As much of a plan as every list of sessions can show."""
    kept: list[PlanEntry] = []
    left = MAX_PLAN_CHARACTERS
    for entry in entries[:MAX_PLAN_ENTRIES]:
        content = entry.content[: min(MAX_SESSION_TEXT, left)]
        if not content and entry.content:
            break
        left -= len(content)
        kept.append(dataclasses.replace(entry, id=entry.id[:MAX_NAME], content=content))
    return tuple(kept)
