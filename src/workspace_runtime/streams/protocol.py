"""The typed frames of the agent-session WebSocket, both ways, and the fields of every event.

The documents that clients generate their types from are made from these models, and the tests hold every event that is sent
against them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from workspace_runtime.bodies import Body
from workspace_runtime.sessions.drivers.base import StopReason, ToolKind, ToolStatus
from workspace_runtime.sessions.schemas import (
    ContextState,
    Name,
    OptionView,
    PermissionBody,
    PlanItem,
    PromptBody,
    QuestionView,
    SessionView,
    UsageCounts,
)

MAX_REQUEST_ID = 200  # characters; of a longer one, which is refused, the refusal tells so many
RequestId = Annotated[str, StringConstraints(max_length=MAX_REQUEST_ID)]

# --- what a client may send ---------------------------------------------------------------------------------------------


class PromptFrame(PromptBody):
    """A prompt. Answered by `ack` with its `turn_id`."""

    type: Literal["prompt"]
    request_id: RequestId | None = None


class PermissionFrame(PermissionBody):
    """An answer to a permission."""

    type: Literal["permission"]
    permission_id: Name
    request_id: RequestId | None = None


class InterruptFrame(Body):
    """Stop the running turn. Acknowledged once it has ended; `turn_id` is null where none ran."""

    type: Literal["interrupt"]
    queue: Literal["keep", "drop"] = "keep"
    request_id: RequestId | None = None


class PingFrame(Body):
    """Answered by `pong`."""

    type: Literal["ping"]
    request_id: RequestId | None = None


ClientFrame = Annotated[PromptFrame | PermissionFrame | InterruptFrame | PingFrame, Field(discriminator="type")]

# --- what only the sender of a frame is answered, and what frames a connection --------------------------------------------


class AckFrame(BaseModel):
    """What was asked was done, and is durable."""

    type: Literal["ack"]
    request_id: str | None
    turn_id: str | None = None
    queued: bool | None = None
    position: int | None = None
    permission_id: str | None = None


class PongFrame(BaseModel):
    """The answer to `ping`."""

    type: Literal["pong"]
    request_id: str | None


class RejectedFrame(BaseModel):
    """What was asked was refused; the connection stays."""

    model_config = ConfigDict(extra="allow")

    type: Literal["rejected"]
    request_id: str | None
    code: str
    error: str


class SessionFrame(BaseModel):
    """The first frame where `events` was given: the session, and the `seq` up to which events are replayed."""

    type: Literal["session"]
    session: SessionView
    replay_to: int


class ReadyFrame(BaseModel):
    """The end of the replay where `events` was given: all up to `seq` was sent, what follows is live."""

    type: Literal["ready"]
    seq: int


# --- events -------------------------------------------------------------------------------------------------------------


class EventBase(BaseModel):
    """What every stored event has."""

    model_config = ConfigDict(extra="forbid")

    seq: int = Field(ge=1)
    id: str
    session_id: str
    turn_id: str | None
    timestamp: str
    parent_tool_use_id: str | None = Field(default=None, description="The call of the sub-agent that this event is of.")
    truncated: Literal[True] | None = Field(default=None, description="Cut to the frame's limit: `href` has the whole.")
    size: int | None = Field(default=None, description="The bytes of what was cut, before the cut.")
    href: str | None = None


class TextEvent(EventBase):
    """What the agent answers, a whole block."""

    type: Literal["text"]
    content: str
    partial: Literal[True] | None = Field(default=None, description="The block was cut short.")


class ThinkingEvent(EventBase):
    """What the agent thinks, a whole block."""

    type: Literal["thinking"]
    content: str
    partial: Literal[True] | None = None


class LocationView(BaseModel):
    """A place that a tool touches."""

    path: str
    line: int | None


class ToolUseEvent(EventBase):
    """The agent calls a tool."""

    type: Literal["tool_use"]
    tool: str
    input: dict[str, Any]
    tool_use_id: str
    kind: ToolKind
    title: str | None
    locations: list[LocationView]


class ImageBlob(BaseModel):
    """An image, to be had by `GET …/blobs/{blob_id}`."""

    type: Literal["image"]
    blob_id: str
    mime_type: str
    bytes: int


class ToolResultEvent(EventBase):
    """A tool has ended."""

    type: Literal["tool_result"]
    tool: str | None
    tool_use_id: str
    output: str
    is_error: bool
    status: ToolStatus
    duration_ms: int | None
    blocks: list[ImageBlob] | None = None
    blob_id: str | None = Field(default=None, description="Where the output was cut: the whole of it, as a blob.")


class ErrorEvent(EventBase):
    """Something failed. Inside a turn its `done` follows."""

    type: Literal["error"]
    error: str
    code: str
    retryable: bool


class DoneEvent(EventBase):
    """The turn has ended. Comes exactly once for each."""

    type: Literal["done"]
    stop_reason: StopReason
    usage: UsageCounts | None
    cost_usd: float | None
    duration_ms: int | None


class UserTextBlock(BaseModel):
    """Text of a prompt."""

    type: Literal["text"]
    text: str


class UserFileBlock(BaseModel):
    """A reference to a file in a prompt."""

    type: Literal["file"]
    path: str
    start_line: int | None
    end_line: int | None


class UserMessageEvent(EventBase):
    """A prompt whose turn has begun, or that went into the running turn."""

    type: Literal["user_message"]
    prompt: str | list[Annotated[UserTextBlock | ImageBlob | UserFileBlock, Field(discriminator="type")]]
    client_message_id: str | None
    origin: Literal["user"]


class TurnStartedEvent(EventBase):
    """A turn begins: of a prompt, or of the agent's own accord."""

    type: Literal["turn_started"]
    origin: Literal["user", "agent"]


class PermissionRequestEvent(EventBase):
    """The agent waits for an answer."""

    type: Literal["permission_request"]
    permission_id: str
    tool_use_id: str | None
    kind: Literal["tool", "question", "plan"]
    tool: str
    title: str | None
    input: dict[str, Any]
    plan: str | None
    questions: list[QuestionView]
    options: list[OptionView]
    created_at: str
    expires_at: str | None


class PermissionResolvedEvent(EventBase):
    """A permission has ended. Comes exactly once for each."""

    type: Literal["permission_resolved"]
    permission_id: str
    tool_use_id: str | None
    decision: Literal["allow", "deny"]
    by: Literal["client", "timeout", "interrupt", "turn_ended", "agent", "server_restarted"]
    at: str
    option_id: str | None = None
    scope: Literal["once", "session", "always"] | None = None


class QueueItem(BaseModel):
    """A prompt that waits."""

    turn_id: str
    prompt_preview: str
    client_message_id: str | None
    delivery: Literal["queue", "steer"] = Field(
        description="`steer`: the agent is to take it into the running turn, and has not yet."
    )


class QueueUpdatedEvent(EventBase):
    """The prompts that wait, all of them."""

    type: Literal["queue_updated"]
    items: list[QueueItem]
    paused: bool


class PlanEvent(EventBase):
    """The agent's to-do list, whole."""

    type: Literal["plan"]
    entries: list[PlanItem]


class UsageEvent(EventBase):
    """What the turn has used so far."""

    type: Literal["usage"]
    usage: UsageCounts
    context: ContextState | None


class StatusEvent(EventBase):
    """The session's status has changed."""

    type: Literal["status"]
    status: Literal["starting", "idle", "running", "requires_action", "failed", "terminated"]


class SessionChanges(BaseModel):
    """What can change of a session."""

    id: str
    title: str | None
    model: str | None
    effort: str | None
    permission_mode: str | None
    labels: list[str]
    native_session_id: str | None


class SessionUpdatedEvent(EventBase):
    """Title, model, mode, labels or the agent's own id have changed."""

    type: Literal["session_updated"]
    session: SessionChanges


class TaskView(BaseModel):
    """What the agent does beside its turns."""

    id: str = Field(description="The agent's own, unique within its process.")
    kind: Literal["command", "sub_agent", "timer", "other"]
    title: str
    tool_use_id: str | None
    status: Literal["running", "completed", "failed", "stopped"]
    started_at: str
    ended_at: str | None


class TaskUpdatedEvent(EventBase):
    """Something in the background has begun or ended; with the agent's process it is `stopped`."""

    type: Literal["task_updated"]
    task: TaskView


class CompactionEvent(EventBase):
    """The agent replaced the conversation so far by a summary."""

    type: Literal["compaction"]
    trigger: Literal["manual", "auto"]
    before_tokens: int | None
    after_tokens: int | None


class NoticeEvent(EventBase):
    """Something that a person should know, and that is no failure of the turn."""

    type: Literal["notice"]
    code: str
    message: str


class DeltaBase(BaseModel):
    """More of a block that is being written. Live only: without `seq`, and never stored."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="The `id` of the event that the block will become.")
    session_id: str
    turn_id: str | None
    parent_tool_use_id: str | None = None
    offset: int = Field(description="Where `content` stands in the block, in UTF-16 code units, as a browser counts.")
    content: str


class TextDeltaEvent(DeltaBase):
    """More text."""

    type: Literal["text_delta"]


class ThinkingDeltaEvent(DeltaBase):
    """More thinking."""

    type: Literal["thinking_delta"]


StoredEvent = Annotated[
    TextEvent
    | ThinkingEvent
    | ToolUseEvent
    | ToolResultEvent
    | ErrorEvent
    | DoneEvent
    | UserMessageEvent
    | TurnStartedEvent
    | PermissionRequestEvent
    | PermissionResolvedEvent
    | QueueUpdatedEvent
    | PlanEvent
    | UsageEvent
    | StatusEvent
    | SessionUpdatedEvent
    | TaskUpdatedEvent
    | CompactionEvent
    | NoticeEvent,
    Field(discriminator="type"),
]
LiveEvent = Annotated[TextDeltaEvent | ThinkingDeltaEvent, Field(discriminator="type")]
ServerFrame = Annotated[
    StoredEvent | LiveEvent | SessionFrame | ReadyFrame | AckFrame | PongFrame | RejectedFrame,
    Field(discriminator="type"),
]


class EventPage(BaseModel):
    """A page of a session's history."""

    items: list[StoredEvent]
    first_seq: int
    last_seq: int
    has_more: bool
