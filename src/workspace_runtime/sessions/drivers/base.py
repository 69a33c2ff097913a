"""What a driver is: the one interface between a session and any coding agent.

A *driver* owns one agent process for one session. It is used by exactly one task (the session's actor). It speaks the
agent's own protocol on one side and the neutral agent events below on the other; nothing of the agent's wire format passes
it unnamed. The events come from `Driver.events`, in the order the agent said them, and are pulled: a driver reads no faster
than the actor takes, so an agent that floods is slowed by its own pipe.

Cancellation contract: every method may be cancelled. `close` is bounded by itself, finishes its work when it is cancelled,
and afterwards no process of the agent is left, whatever happened before.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

JsonObject = dict[str, Any]

ToolKind = Literal[
    "read",
    "edit",
    "delete",
    "move",
    "search",
    "execute",
    "fetch",
    "think",
    "plan",
    "question",
    "sub_agent",
    "mcp",
    "other",
]
ToolStatus = Literal["completed", "failed", "denied", "cancelled"]
StopReason = Literal[
    "end_turn", "max_turns", "max_tokens", "refusal", "interrupted", "cancelled", "error", "agent_died", "server_restarted",
    "terminated",
]  # fmt: skip
BlockKind = Literal["text", "thinking"]
Decision = Literal["allow", "deny"]
Scope = Literal["once", "session", "always"]


# --- what goes to an agent --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of a prompt: text."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A piece of a prompt: an image, `data` in base64."""

    mime_type: str
    data: str


@dataclass(frozen=True, slots=True)
class FilePart:
    """A piece of a prompt: a reference to a file, `path` relative to the workspace root; lines count from 1.

    Drivers never get one: it is replaced by what is in the file.
    """

    path: str
    start_line: int | None = None
    end_line: int | None = None


@dataclass(frozen=True, slots=True)
class FileText:
    """A `FilePart` as it is handed to an agent: with the text of the file, or of the lines that were named."""

    path: str
    text: str
    start_line: int | None = None
    end_line: int | None = None


PromptPart = TextPart | ImagePart | FilePart | FileText


@dataclass(frozen=True, slots=True)
class DriverSpec:
    """All that a driver needs to start its agent for one session.

    `cwd` is absolute. `native_session_id` is the agent's own id of the conversation to go on with (`fork`: to branch off
    from), None for a new one. `session_rules` are the rules granted with scope `session` so far, in the agent's own
    notation, to be granted again to a new process. `env` is laid over the server's own environment; names of the product's
    own settings have been taken out of that already.
    """

    session_id: str
    root: Path
    cwd: Path
    env: Mapping[str, str]
    model: str | None = None
    effort: str | None = None
    permission_mode: str | None = None
    system_prompt: str | None = None
    max_turns: int | None = None
    native_session_id: str | None = None
    fork: bool = False
    session_rules: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class PermissionAnswer:
    """How a person or program answered. `answers` maps a question's id to chosen labels or free text.

    `rules` are the rules of the chosen option, for a scope of `session` or `always`.
    """

    decision: Decision
    scope: Scope = "once"
    updated_input: JsonObject | None = None
    message: str | None = None
    answers: Mapping[str, Sequence[str] | str] | None = None
    interrupt: bool = False


# --- what comes from an agent -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BlockDelta:
    """More of a text or thinking block that the agent is still writing. `block` names it within the turn."""

    block: str
    kind: BlockKind
    text: str
    parent_tool_use_id: str | None = None


@dataclass(frozen=True, slots=True)
class BlockEnded:
    """A text or thinking block, whole. `block` is the name its deltas had, None where there were none."""

    kind: BlockKind
    content: str
    block: str | None = None
    partial: bool = False
    parent_tool_use_id: str | None = None


@dataclass(frozen=True, slots=True)
class Location:
    """A place a tool touches: `path` as the agent said it, `line` from 1."""

    path: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The agent calls a tool. Said at most once for each `tool_use_id`."""

    tool_use_id: str
    tool: str
    input: JsonObject
    kind: ToolKind = "other"
    title: str | None = None
    locations: Sequence[Location] = ()
    parent_tool_use_id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolImage:
    """An image in a tool's result, its bytes decoded."""

    mime_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class ToolEnded:
    """A tool's result. `output` is text, whole, however long."""

    tool_use_id: str
    output: str
    status: ToolStatus = "completed"
    images: Sequence[ToolImage] = ()
    parent_tool_use_id: str | None = None


@dataclass(frozen=True, slots=True)
class QuestionOption:
    """One answer offered to a question."""

    label: str
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A question the agent asks; `id` is unique within its permission."""

    id: str
    question: str
    header: str | None = None
    multi_select: bool = False
    options: Sequence[QuestionOption] = ()


@dataclass(frozen=True, slots=True)
class PermissionOption:
    """One way to answer. `rule` is what would be granted, in the agent's notation; `writes_to` the file it goes to."""

    id: str
    decision: Decision
    scope: Scope
    label: str
    rule: str | None = None
    writes_to: str | None = None


@dataclass(frozen=True, slots=True)
class PermissionAsked:
    """The agent waits for an answer. `request` names it between driver and actor; answer by `Driver.answer`."""

    request: str
    kind: Literal["tool", "question", "plan"]
    tool: str
    input: JsonObject
    title: str | None = None
    tool_use_id: str | None = None
    parent_tool_use_id: str | None = None
    plan: str | None = None
    questions: Sequence[Question] = ()
    options: Sequence[PermissionOption] = ()


@dataclass(frozen=True, slots=True)
class PermissionWithdrawn:
    """The agent no longer waits for this answer (it gave up, or was interrupted)."""

    request: str


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """One entry of the agent's to-do list."""

    id: str
    content: str
    status: Literal["pending", "in_progress", "completed"]
    priority: Literal["high", "medium", "low"] | None = None


@dataclass(frozen=True, slots=True)
class PlanChanged:
    """The agent's to-do list, whole."""

    entries: Sequence[PlanEntry]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one turn, and how full the context window is, where the agent tells."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    context_used_tokens: int | None = None
    context_window_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class UsageChanged:
    """What the running turn has used so far."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class SessionChanged:
    """The agent told something of its session; None means unchanged.

    `native_session_id` is said as soon as the conversation can be resumed by it, `model` and `permission_mode` when they
    are known or change.
    """

    native_session_id: str | None = None
    model: str | None = None
    permission_mode: str | None = None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class AgentTurnStarted:
    """The agent began a turn by itself (a background task ended, a timer fired), with no prompt of ours."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class PromptTaken:
    """The agent took in a prompt that it was steered with: into the running turn, or where none runs as a turn that begins now."""

    prompt: str


@dataclass(frozen=True, slots=True)
class PromptReturned:
    """The agent will not take in a prompt that it was steered with: it is ours again."""

    prompt: str


@dataclass(frozen=True, slots=True)
class BackgroundTask:
    """Something of the agent that goes on beside its turns. `id` is the agent's own, unique within its process."""

    id: str
    kind: Literal["command", "sub_agent", "timer", "other"]
    title: str
    tool_use_id: str | None = None


@dataclass(frozen=True, slots=True)
class BackgroundChanged:
    """All that goes on in the background now. `ended` tells how what is no longer among it came to its end."""

    tasks: Sequence[BackgroundTask]
    ended: Mapping[str, Literal["completed", "failed", "stopped"]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Compacted:
    """The agent replaced the conversation so far by a summary. Tokens where the agent tells."""

    trigger: Literal["manual", "auto"]
    before_tokens: int | None = None
    after_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class AgentNotice:
    """Something that a person should know, and that is no failure of the turn. `code` is stable."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class AgentError:
    """Something failed. Inside a turn a `TurnEnded` with `error` follows. `code` is one of the contract's agent codes."""

    code: str
    message: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The turn is over. `usage` and `cost_usd` are this turn's own; None where the agent does not tell."""

    stop_reason: StopReason
    usage: Usage | None = None
    cost_usd: float | None = None


AgentEvent = (
    BlockDelta
    | BlockEnded
    | ToolCalled
    | ToolEnded
    | PermissionAsked
    | PermissionWithdrawn
    | PlanChanged
    | UsageChanged
    | SessionChanged
    | AgentTurnStarted
    | PromptTaken
    | PromptReturned
    | BackgroundChanged
    | Compacted
    | AgentNotice
    | AgentError
    | TurnEnded
)


class AgentStartError(Exception):
    """The agent can't start. `code` is one of the contract's agent codes, the message says what to do.

    `conversation_lost`: the agent no longer has the conversation that was to be gone on with; the next start begins another.
    """

    def __init__(self, code: str, message: str, retryable: bool = False, *, conversation_lost: bool = False) -> None:
        super().__init__(message)
        self.conversation_lost = conversation_lost
        self.code = code
        self.message = message
        self.retryable = retryable


class Driver(Protocol):
    """One agent process for one session. See the module for order, back pressure and cancellation."""

    async def start(self) -> None:
        """Start the agent, ready for a prompt.

        Raises `AgentStartError`; then, and when cancelled, nothing is left running once `close` returned.
        """

    def events(self) -> AsyncIterator[AgentEvent]:
        """All that the agent says, once, from `start` on. Ends when the process is gone, for whatever reason."""

    async def prompt(self, parts: Sequence[PromptPart]) -> None:
        """Begin a turn. Called only while no turn runs. Its end is a `TurnEnded`, or the end of `events`."""

    async def steer(self, prompt: str, parts: Sequence[PromptPart]) -> None:
        """Say something into the running turn, under the name `prompt`. Only called where the capability `steer` is told.

        The agent holds it until it says `PromptTaken` or `PromptReturned` of it, or is interrupted.
        """

    async def interrupt(self) -> None:
        """Stop the agent, whatever it does: the running turn, what it holds and has not taken in, its sub-agents.

        Nothing more happens until the next `prompt`: what was steered and not taken is forgotten by the agent, and it begins no turn
        by itself. Of a running turn a `TurnEnded` follows unless the agent hangs (then the actor closes the driver).
        """

    async def answer(self, request: str, answer: PermissionAnswer) -> None:
        """Answer a `PermissionAsked`. An unknown or withdrawn request is ignored."""

    async def configure(self, *, model: str | None, effort: str | None, permission_mode: str | None) -> None:
        """Change what is not None, for this and later turns. Raises `WorkspaceError` where the agent refuses."""

    async def close(self, *, at_once: bool = False) -> None:
        """End the agent and its whole process tree, in 10 s at most; without any grace where `at_once`.

        Safe to call twice and before `start`.
        """

    @property
    def exit_status(self) -> int | None:
        """The process' exit status after `close`, negative for a signal; None where there was no process, or it can't be told."""


# --- what is known of an agent before a session ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentMode:
    """A permission mode by the agent's own name. `dangerous`: it lets the agent act without asking."""

    id: str
    label: str
    description: str
    dangerous: bool = False


@dataclass(frozen=True, slots=True)
class AgentModel:
    """A model the agent offers."""

    id: str
    label: str
    context_window: int | None = None
    efforts: Sequence[str] = ()
    default: bool = False


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an agent can do; what it can't is refused with `not_supported`."""

    steer: bool = False
    fork: bool = False
    resume: bool = False
    images: bool = False
    thinking: bool = False
    plan: bool = False
    questions: bool = False
    permissions: bool = False
    updated_input: bool = False
    set_model: bool = False
    set_permission_mode: bool = False
    system_prompt: bool = False
    max_turns: bool = False
    live_tool_output: bool = False


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """One row of the list of agents. `signed_in` is None where it can't be known without running the agent."""

    id: str
    name: str
    installed: bool
    version: str | None
    signed_in: bool | None
    sign_in: str
    capabilities: Capabilities
    modes: Sequence[AgentMode] = ()
    models: Sequence[AgentModel] = field(default=())


class Agent(Protocol):
    """A kind of agent: what it is, and drivers for it. Stateless but for caches."""

    @property
    def id(self) -> str:
        """The name in the API, `claude` for instance."""

    async def info(self) -> AgentInfo:
        """What is known now. Never raises for an agent that is missing: `installed` is false then."""

    def check(self, *, model: str | None, effort: str | None, permission_mode: str | None) -> None:
        """Raise `WorkspaceError` (`model_not_found`, `mode_not_found`, …) for a choice the agent does not know."""

    def conversation(self, native_session_id: str) -> str:
        """The one form of the agent's own id of a conversation. Raises `WorkspaceError` (`validation_failed`) for what is none."""

    def driver(self, spec: DriverSpec) -> Driver:
        """A driver for one session; starts nothing yet."""

    async def forget(self, native_session_id: str) -> None:
        """A conversation is purged: remove what is kept of it in the server's own state. Never raises.

        What the agent keeps in places of its own is its user's, and stays.
        """
