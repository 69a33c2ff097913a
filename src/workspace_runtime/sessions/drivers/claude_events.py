"""From Claude Code's messages to the neutral agent events. Pure: state, no I/O, nothing of the SDK.

The mapper takes the CLI's messages as they are on the wire (decoded JSON), one by one, in order. What it must know that no
message says (a prompt was sent, an interrupt was asked for, a permission was denied) it is told by methods.

- A text or thinking block comes twice: as stream events, then whole. Both have the name `<message id>:<index>`. A block whose
  stream was given up (a retry begins the message anew) is ended as partial when the next message begins.
- Messages with a `parent_tool_use_id` are a sub-agent's. They belong to no turn's begin or end: a sub-agent in the background
  goes on between turns.
- The CLI's own words (errors as assistant messages, hints to the model as user messages) are no words of the model.
- The CLI tells of each prompt when it was queued, when a turn took it in, and when it was dropped (`command_lifecycle`). By that a
  turn's result is told from that of another, and a steered prompt's own turn from one that the agent began by itself.
- After an interrupt nothing counts until the next prompt: a turn that the CLI begins all the same is not told (`unasked`).
"""

import base64
import binascii
from dataclasses import dataclass, field
from typing import Literal

from . import claude_errors, claude_tools
from .base import (
    AgentError,
    AgentEvent,
    AgentTurnStarted,
    BlockDelta,
    BlockEnded,
    BlockKind,
    Compacted,
    JsonObject,
    PromptReturned,
    PromptTaken,
    SessionChanged,
    ToolCalled,
    ToolEnded,
    ToolImage,
    ToolStatus,
    TurnEnded,
    UsageChanged,
)
from .claude_background import Background
from .claude_plan import Plan
from .claude_usage import Spending


@dataclass(slots=True)
class _Block:
    """A block that is being streamed."""

    name: str
    kind: BlockKind
    pieces: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Stream:
    """The message that one speaker (the agent, or a sub-agent) is streaming."""

    message_id: str = ""
    blocks: dict[int, _Block] = field(default_factory=dict)


@dataclass(slots=True)
class _Turn:
    """What is known of the running turn. `prompt_id`: the CLI's id of the prompt it is for; `begun`: the CLI took that one in."""

    prompt_id: str | None = None
    begun: bool = False
    spoke: bool = False
    unreachable: bool = False
    failure: JsonObject | None = None


class ClaudeEvents:
    """See the module. `session_id` is the CLI's conversation, once it told."""

    def __init__(self, cwd: str) -> None:
        self.session_id: str | None = None
        self._cwd = cwd
        # an interrupt stands: nothing is to happen until the next prompt
        self.halted = False
        # the CLI began a turn although it is halted: it must be interrupted again
        self.unasked = False
        self._turn: _Turn | None = None
        self._held: dict[str, str] = {}
        self._tells_begin = False
        self._interrupting = False
        self._streams: dict[str | None, _Stream] = {}
        self._called: dict[str, tuple[str, JsonObject]] = {}
        self._ended: set[str] = set()
        self._denied: set[str] = set()
        self._agents: dict[str, str] = {}
        self._said_before: frozenset[str] = frozenset()
        self._background = Background()
        self._plan = Plan()
        self._spending = Spending()

    # --- what no message says -----------------------------------------------------------------------------------------

    def prompted(self, prompt_id: str) -> None:
        """A prompt is sent, which begins a turn."""
        self.halted = self.unasked = False
        self._turn = _Turn(prompt_id)
        self._interrupting = False

    def steered(self, prompt_id: str, prompt: str) -> None:
        """A prompt is sent into the running turn; `prompt` is what `PromptTaken` will call it."""
        self._held[prompt_id] = prompt

    def interrupted(self) -> None:
        """An interrupt is asked for: a block that ends now was cut short, a tool that fails now was stopped."""
        self.halted = True
        self._interrupting = self._turn is not None

    def denied(self, tool_use_id: str) -> None:
        """A permission for this tool call was denied."""
        self._denied.add(tool_use_id)

    def parent_of(self, agent_id: str | None) -> str | None:
        """The tool call that started a sub-agent, by the CLI's id of it."""
        return self._agents.get(agent_id) if agent_id else None

    def input_of(self, tool_use_id: str | None) -> JsonObject:
        """What the model itself gave to a running tool call."""
        return self._called.get(tool_use_id or "", ("", {}))[1]

    def called(self, tool_use_id: str, tool: str, input: JsonObject, parent: str | None) -> list[AgentEvent]:
        """A tool call, said at most once, whoever mentions it first: the model's message or its permission request."""
        if tool_use_id in self._called or tool_use_id in self._ended:
            return []
        self._called[tool_use_id] = (tool, input)
        return [
            ToolCalled(
                tool_use_id=tool_use_id,
                tool=tool,
                input=input,
                kind=claude_tools.kind(tool),
                title=claude_tools.title(tool, input, self._cwd),
                locations=claude_tools.locations(tool, input),
                parent_tool_use_id=parent,
            )
        ]

    # --- messages -----------------------------------------------------------------------------------------------------

    def take(self, message: JsonObject) -> list[AgentEvent]:
        """The events of one message. A kind of message that is not known has none."""
        if self.halted and self._turn is None and self._is_of_a_turn(message):
            self.unasked = True
            return []
        if message.get("uuid") in self._said_before:  # a compaction says again what it keeps
            return []
        match message.get("type"):
            case "command_lifecycle":
                fired = self._background.woke(message.get("wakeup_source"))
                return fired + self._lifecycle(str(message.get("command_uuid")), message.get("state"))
            case "stream_event":
                return self._begun(message) + self._stream(message["event"], message.get("parent_tool_use_id"))
            case "assistant":
                return self._begun(message) + self._assistant(message)
            case "user":
                return self._user(message)
            case "system":
                return self._system(message)
            case "result":
                return self._result(message)
        return []

    @staticmethod
    def _is_of_a_turn(message: JsonObject) -> bool:
        """Whether a message shows that a turn of the agent itself goes on."""
        if message.get("type") == "system":
            return message.get("subtype") == "status" and message.get("status") == "requesting"
        return message.get("type") in ("stream_event", "assistant", "user") and not message.get("parent_tool_use_id")

    def _lifecycle(self, prompt_id: str, state: object) -> list[AgentEvent]:
        """The CLI tells what became of a prompt."""
        self._tells_begin = True
        if state == "queued":
            return []
        turn, held = self._turn, self._held.pop(prompt_id, None)
        if held is not None:
            if state not in ("started", "completed"):
                return [PromptReturned(held)]
            if turn is None and self.halted:  # what this turn says is not told: the prompt is to come again
                self.unasked = True
                return [PromptReturned(held)]
            if turn is None:
                self._turn = _Turn(prompt_id, begun=True)
                self._interrupting = False
            return [PromptTaken(held)]
        if turn is None or turn.prompt_id != prompt_id:
            return []
        if state == "started":
            turn.begun = True
        elif not turn.begun:  # taken back before it began: no result will come
            self._turn = None
            if self._interrupting:
                return [TurnEnded("interrupted")]
            return [
                AgentError("agent_request_refused", f"Claude Code did not take the prompt ({state})."),
                TurnEnded("error"),
            ]
        return []

    def _begun(self, message: JsonObject) -> list[AgentEvent]:
        """The agent speaks: where no turn runs, it began one by itself."""
        if self._turn is not None or message.get("parent_tool_use_id"):
            return []
        self._turn = _Turn()
        self._interrupting = False
        return [AgentTurnStarted()]

    def _stream(self, event: JsonObject, parent: str | None) -> list[AgentEvent]:
        stream = self._streams.setdefault(parent, _Stream())
        index = event.get("index", 0)
        match event.get("type"):
            case "message_start":
                given_up = self._give_up(parent)
                started = event.get("message", {})
                self._streams[parent] = _Stream(started.get("id", ""))
                if parent is None:
                    self._spending.call_began(started.get("usage", {}))
                return given_up
            case "content_block_start":
                kind = event.get("content_block", {}).get("type")
                if kind in ("text", "thinking"):
                    stream.blocks[index] = _Block(f"{stream.message_id}:{index}", kind)
            case "content_block_delta":
                block, delta = stream.blocks.get(index), event.get("delta", {})
                text = delta.get("text") or delta.get("thinking")
                if block is not None and text:
                    block.pieces.append(text)
                    return [BlockDelta(block.name, block.kind, text, parent)]
            case "content_block_stop" if index in stream.blocks:
                # the whole block always comes before its stop: this one was cut off, and the CLI dropped it
                return self._give_up(parent)
            case "message_delta" if parent is None:
                return [UsageChanged(self._spending.call_ended(event.get("usage", {})))]
        return []

    def _give_up(self, parent: str | None) -> list[AgentEvent]:
        """End the blocks of a stream that will not go on; what was seen of them stays."""
        stream = self._streams.pop(parent, _Stream())
        return [
            BlockEnded(block.kind, "".join(block.pieces), block.name, partial=True, parent_tool_use_id=parent)
            for block in stream.blocks.values()
            if block.pieces
        ]

    def _assistant(self, message: JsonObject) -> list[AgentEvent]:
        parent = message.get("parent_tool_use_id")
        if message.get("is_api_error_message") or message.get("error"):
            if parent is None and self._turn is not None:
                self._turn.failure = message
            return []
        said: list[AgentEvent] = []
        body = message.get("message", {})
        for block in body.get("content") or []:
            match block.get("type"):
                case "text" | "thinking" as kind:
                    said += self._block(kind, block.get(kind) or "", body.get("id"), parent)
                case "tool_use" | "server_tool_use":
                    said += self.called(block["id"], block["name"], block.get("input") or {}, parent)
                case other if other and other.endswith("_tool_result"):
                    said += self._tool_result(block, {}, None, parent)
        return said

    def _block(self, kind: BlockKind, content: str, message_id: str | None, parent: str | None) -> list[AgentEvent]:
        stream = self._streams.get(parent)
        name, streamed = None, ""
        if stream is not None and stream.message_id == message_id:
            for index, block in stream.blocks.items():
                if block.kind == kind:
                    name, streamed = block.name, "".join(block.pieces)
                    del stream.blocks[index]
                    break
        content = content or streamed
        if not content:
            return []
        if parent is None and self._turn is not None and kind == "text":
            self._turn.spoke = True
        partial = self._interrupting and name is not None
        return [BlockEnded(kind, content, name, partial=partial, parent_tool_use_id=parent)]

    def _user(self, message: JsonObject) -> list[AgentEvent]:
        body = message.get("message", {}).get("content")
        blocks = body if isinstance(body, list) else []
        if message.get("isSynthetic") and self._turn is not None and _is_about_a_cut(blocks):
            self._turn.unreachable = True
        metas = {meta.get("id"): meta for meta in message.get("tool_result_meta") or [] if isinstance(meta, dict)}
        said: list[AgentEvent] = []
        for block in blocks:
            if isinstance(block, dict) and block.get("type") == "tool_result":
                meta = metas.get(block.get("tool_use_id"), {})
                said += self._tool_result(
                    block, meta, message.get("tool_use_result"), message.get("parent_tool_use_id")
                )
        return said

    def _tool_result(self, block: JsonObject, meta: JsonObject, native: object, parent: str | None) -> list[AgentEvent]:
        tool_use_id = str(block.get("tool_use_id"))
        if tool_use_id in self._ended:
            return []
        self._ended.add(tool_use_id)
        tool, input = self._called.pop(tool_use_id, ("", {}))
        output, images = content(block.get("content"))
        status = self._status(tool_use_id, bool(block.get("is_error")), meta, output)
        ended: list[AgentEvent] = [ToolEnded(tool_use_id, output, status, images, parent)]
        if parent is None and status == "completed":
            changed = self._plan.tool_ended(tool, input, native)
            ended += [changed] if changed is not None else []
        if status == "completed":
            ended += self._background.tool_ended(tool_use_id, tool, input, native)
        return ended

    def _status(self, tool_use_id: str, is_error: bool, meta: JsonObject, output: str) -> ToolStatus:
        if tool_use_id in self._denied:
            self._denied.discard(tool_use_id)
            return "denied"
        if not is_error:
            return "completed"
        kind = str(meta.get("non_execution_kind") or "")
        if kind == "user-rejected" or (self._interrupting and not kind):
            return "cancelled"
        if kind.startswith(("permission", "hook")) or output.startswith("Permission to use "):
            return "denied"
        return "failed"

    def _system(self, message: JsonObject) -> list[AgentEvent]:
        match message.get("subtype"):
            case "init":
                self.session_id = message.get("session_id")
                return [SessionChanged(model=message.get("model"), permission_mode=message.get("permissionMode"))]
            case "status" if message.get("permissionMode"):
                return [SessionChanged(permission_mode=message["permissionMode"])]
            case "task_started" if message.get("tool_use_id"):
                self._agents[str(message.get("task_id"))] = message["tool_use_id"]
            case "api_retry" if self._turn is not None:
                self._turn.unreachable = message.get("error_status") is None
            case "compact_boundary":
                return [self._compacted(message.get("compact_metadata") or {})]
        return self._background.told(message)

    def _compacted(self, told: JsonObject) -> AgentEvent:
        kept = (told.get("preserved_messages") or {}).get("all_uuids")
        self._said_before = frozenset(kept if isinstance(kept, list) else ())
        trigger: Literal["manual", "auto"] = "manual" if told.get("trigger") == "manual" else "auto"
        before, after = (told.get(name) for name in ("pre_tokens", "post_tokens"))
        return Compacted(
            trigger, before if isinstance(before, int) else None, after if isinstance(after, int) else None
        )

    # --- the end of a turn --------------------------------------------------------------------------------------------

    def _result(self, message: JsonObject) -> list[AgentEvent]:
        self.session_id = message.get("session_id") or self.session_id
        usage, cost = self._spending.turn_ended(message)
        turn = self._turn
        if turn is None:
            return []
        if turn.prompt_id is not None and self._tells_begin and not turn.begun:
            return self._give_up(None)  # a turn of the agent's own ended just as ours was sent: ours is to come
        said = self._give_up(None)
        reason = claude_errors.stop_reason(message)
        if self._interrupting and reason == "error" and turn.failure is None:
            reason = "interrupted"
        if reason == "error":
            said.append(claude_errors.failure(message, turn.failure, unreachable=turn.unreachable))
        elif not turn.spoke and reason == "end_turn" and not message.get("is_error"):
            text = message.get("result")  # a slash command answers without a message of the model
            said += [BlockEnded("text", text)] if isinstance(text, str) and text.strip() else []
        if reason == "error" and self._held:  # the CLI would go on with what it holds; a failed turn is to be the last
            self.halted = True
        said.append(TurnEnded(reason, usage, cost))
        self._turn = None
        self._interrupting = False
        self._streams.clear()
        return said

    def ended(self) -> list[AgentEvent]:
        """The CLI's process is gone: end what was being streamed."""
        return [event for parent in list(self._streams) for event in self._give_up(parent)]

    def start_failed(self, message: JsonObject | None, words: str) -> AgentError:
        """Why the CLI did not start, from its result, where it gave one, and its last words."""
        return claude_errors.failure(message or {"errors": [words]}, None, unreachable=False)


def _is_about_a_cut(blocks: list[object]) -> bool:
    """Whether the CLI tells the model that its last answer was cut off, or never came."""
    texts = [block.get("text") for block in blocks if isinstance(block, dict)]
    return any(
        isinstance(text, str) and ("cut off mid-stream" in text or "no visible output" in text) for text in texts
    )


def content(told: object) -> tuple[str, tuple[ToolImage, ...]]:
    """A tool result's content as text and images."""
    if isinstance(told, str):
        return told, ()
    texts, images = [], []
    for part in told if isinstance(told, list) else []:
        if not isinstance(part, dict):
            continue
        if part.get("type") == "text":
            texts.append(str(part.get("text", "")))
        source = part.get("source")
        if part.get("type") == "image" and isinstance(source, dict) and source.get("type") == "base64":
            try:
                data = base64.b64decode(source.get("data", ""), validate=True)
            except (binascii.Error, ValueError):
                continue
            images.append(ToolImage(str(source.get("media_type")), data))
    return "\n".join(texts), tuple(images)
