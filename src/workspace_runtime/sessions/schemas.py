"""The shapes of the session API: what a client sends and gets, checked at the door. Inside, `model.py` has plain data."""

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from workspace_runtime.bodies import Body, Piece

from .drivers.base import FilePart, ImagePart, PromptPart, TextPart
from .manager import NewSession
from .permissions import Answer

MAX_PROMPT_BLOCKS = 256
# What a process is given at its start: Linux refuses one variable or argument of more than 128 KiB, and all that a session is made
# with is written with each of its changes.
MAX_GIVEN_BYTES = 100_000
IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")

Label = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Title = Annotated[str, StringConstraints(max_length=200)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class TextBlock(Piece):
    """Text."""

    type: Literal["text"]
    text: str


class ImageBlock(Piece):
    """An image, in base64."""

    type: Literal["image"]
    mime_type: Literal["image/png", "image/jpeg", "image/gif", "image/webp"]
    data: str = Field(description="The image's bytes in base64.")

    @field_validator("data")
    @classmethod
    def _is_base64(cls, value: str) -> str:
        try:
            if base64.b64decode(value, validate=True):
                return value
        except (binascii.Error, ValueError):
            pass
        raise ValueError("must be base64 of the image's bytes")


class FileBlock(Piece):
    """A reference to a file of the workspace, or to some of its lines."""

    type: Literal["file"]
    path: str = Field(min_length=1, max_length=4096, description="Relative to the workspace's root.")
    start_line: int | None = Field(default=None, ge=1, le=2**31)
    end_line: int | None = Field(default=None, ge=1, le=2**31)

    @model_validator(mode="after")
    def _in_order(self) -> "FileBlock":
        if self.end_line is not None and (self.start_line is None or self.end_line < self.start_line):
            raise ValueError("end_line goes with a start_line that is not beyond it")
        return self


Block = Annotated[TextBlock | ImageBlock | FileBlock, Field(discriminator="type")]
Prompt = Annotated[
    Annotated[str, StringConstraints(min_length=1)]
    | Annotated[list[Block], Field(min_length=1, max_length=MAX_PROMPT_BLOCKS)],
    Field(description="A string, or blocks: text, images and references to files."),
]


def prompt_to_parts(prompt: str | list[Any]) -> list[PromptPart]:
    """A checked prompt as plain data. Raises `ValueError` when it has no content."""
    if isinstance(prompt, str):
        parts: list[PromptPart] = [TextPart(prompt)]
    else:
        parts = []
        for block in prompt:
            if isinstance(block, TextBlock):
                parts.append(TextPart(block.text))
            elif isinstance(block, ImageBlock):
                parts.append(ImagePart(block.mime_type, block.data))
            elif isinstance(block, FileBlock):
                parts.append(FilePart(block.path, block.start_line, block.end_line))
    if not any(not isinstance(part, TextPart) or part.text.strip() for part in parts):
        raise ValueError("the prompt says nothing")
    return parts


class Prompted(Body):
    """What carries a prompt."""

    @field_validator("prompt", check_fields=False)
    @classmethod
    def _says_something(cls, value: Any) -> Any:
        if value is not None:
            prompt_to_parts(value)
        return value


class Resume(Piece):
    """A conversation to go on with."""

    session_id: Name | None = None
    native_session_id: Name | None = Field(default=None, description="The agent's own id of the conversation.")

    @model_validator(mode="after")
    def _one(self) -> "Resume":
        if (self.session_id is None) == (self.native_session_id is None):
            raise ValueError("name session_id or native_session_id, and not both")
        return self


class CreateSession(Prompted):
    """A new session. All is optional."""

    agent: Name = "claude"
    prompt: Prompt | None = None
    title: Title | None = None
    model: Name | None = None
    effort: Name | None = None
    permission_mode: Name | None = Field(default=None, description="A mode by the agent's own name.")
    cwd: str = Field(
        default=".", max_length=4096, description="The folder to work in, relative to the workspace's root."
    )
    env: dict[Annotated[str, StringConstraints(pattern=r"^[^=\x00]+$", max_length=200)], str] = Field(
        default_factory=dict,
        description="Variables for the agent, 100 KB of names and values at most. Kept for resuming, never answered.",
    )
    system_prompt: str | None = Field(
        default=None, description="At most 100 KB of text. Kept for resuming, never answered."
    )
    max_turns: int | None = Field(default=None, ge=1, le=10_000)
    permission_timeout_s: float | None = Field(
        default=None, gt=0, le=86_400 * 7, description="Deny a permission that nobody answers for so long."
    )
    labels: list[Label] = Field(default_factory=list, max_length=32)
    resume: Resume | None = None
    fork: bool = Field(default=False, description="With `resume`: branch off, and leave the old conversation as it is.")

    @field_validator("env")
    @classmethod
    def _can_be_given(cls, value: dict[str, str]) -> dict[str, str]:
        if sum(len(name.encode()) + len(text.encode()) + 2 for name, text in value.items()) > MAX_GIVEN_BYTES:
            raise ValueError(f"must have at most {MAX_GIVEN_BYTES} bytes in all; put more into a file")
        return value

    @field_validator("system_prompt")
    @classmethod
    def _can_be_told(cls, value: str | None) -> str | None:
        if value is not None and len(value.encode()) > MAX_GIVEN_BYTES:
            raise ValueError(f"must have at most {MAX_GIVEN_BYTES} bytes; put more into a file of the workspace")
        return value

    @model_validator(mode="after")
    def _fork_of_something(self) -> "CreateSession":
        if self.fork and self.resume is None:
            raise ValueError("fork goes with resume")
        if any("\0" in value for value in self.env.values()):
            raise ValueError("a variable's value must not contain NUL")
        return self

    def plain(self) -> NewSession:
        """As plain data."""
        return NewSession(
            agent=self.agent,
            prompt=prompt_to_parts(self.prompt) if self.prompt is not None else None,
            title=self.title,
            model=self.model,
            effort=self.effort,
            permission_mode=self.permission_mode,
            cwd=self.cwd,
            env=self.env,
            system_prompt=self.system_prompt,
            max_turns=self.max_turns,
            permission_timeout_s=self.permission_timeout_s,
            labels=self.labels,
            resume_session_id=self.resume.session_id if self.resume else None,
            resume_native_id=self.resume.native_session_id if self.resume else None,
            fork=self.fork,
        )


class PromptBody(Prompted):
    """A prompt for a session."""

    prompt: Prompt
    client_message_id: Key | None = Field(
        default=None, description="Makes a retry safe for 24 h; returns in `user_message`."
    )
    delivery: Literal["queue", "interrupt", "steer"] = Field(
        default="queue",
        description="Wait for the turns before it, stop the running turn first, or go into the running turn.",
    )


class PatchSession(Body):
    """What can be changed of a session. Left out means unchanged."""

    title: Title | None = None
    model: Name | None = None
    effort: Name | None = None
    permission_mode: Name | None = None
    labels: list[Label] | None = Field(default=None, max_length=32)

    def changes(self) -> dict[str, Any]:
        """The fields that were sent with a value."""
        return {name: value for name, value in self.model_dump(exclude_unset=True).items() if value is not None}


class InterruptBody(Body):
    """How to interrupt."""

    queue: Literal["keep", "drop"] = Field(default="keep", description="What becomes of the prompts that wait.")


class PermissionBody(Body):
    """An answer: one of the options, or a decision."""

    option_id: Name | None = None
    decision: Literal["allow", "deny"] | None = None
    scope: Literal["once", "session", "always"] | None = None
    updated_input: dict[str, Any] | None = Field(default=None, description="Let the tool run with this input instead.")
    message: str | None = Field(default=None, max_length=20_000, description="Tells the agent why.")
    answers: dict[str, list[str] | str] | None = Field(
        default=None, description="For a question: its id → the chosen labels, or free text."
    )
    interrupt: bool = Field(default=False, description="With `deny`: stop the turn as well.")

    def plain(self) -> Answer:
        """As plain data."""
        return Answer(**{name: getattr(self, name) for name in PermissionBody.model_fields if name in Answer.__slots__})


# --- what a client gets -------------------------------------------------------------------------------------------------


class ActiveTurn(BaseModel):
    """The running turn."""

    id: str
    started_at: str
    tool: str | None


class LastMessage(BaseModel):
    """The newest message, its first 200 characters."""

    role: Literal["user", "assistant"]
    text: str
    at: str


class QueueState(BaseModel):
    """The prompts that wait."""

    length: int
    paused: bool


class PlanItem(BaseModel):
    """One entry of the agent's to-do list."""

    id: str
    content: str
    status: Literal["pending", "in_progress", "completed"]
    priority: Literal["high", "medium", "low"] | None


class UsageCounts(BaseModel):
    """Tokens."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int


class ContextState(BaseModel):
    """How full the agent's context window is."""

    used_tokens: int
    window_tokens: int | None


class SessionError(BaseModel):
    """Why the agent could not start."""

    code: str
    error: str


class SessionView(BaseModel):
    """A session."""

    id: str
    agent: str
    title: str | None
    status: Literal["starting", "idle", "running", "requires_action", "failed", "terminated"]
    model: str | None
    effort: str | None
    permission_mode: str | None
    cwd: str
    labels: list[str]
    created_at: str
    updated_at: str
    first_seq: int
    last_seq: int
    log_id: str
    turn_count: int
    active_turn: ActiveTurn | None
    last_message: LastMessage | None
    queue: QueueState
    plan: list[PlanItem] | None
    usage: UsageCounts
    cost_usd: float
    context: ContextState | None
    pending_permissions: list[str] = Field(description="The ids of the permissions that wait.")
    parent_session_id: str | None
    native_session_id: str | None
    error: SessionError | None


class SessionPage(BaseModel):
    """A page of sessions, newest first."""

    items: list[SessionView]
    next_cursor: str | None


class ReceiptView(BaseModel):
    """How a prompt was taken."""

    turn_id: str
    queued: bool
    position: int = Field(description="Its place in the queue, from 1; 0: its turn began at once.")


class InterruptView(BaseModel):
    """The turn that was stopped."""

    turn_id: str
    stop_reason: str


class OptionView(BaseModel):
    """One way to answer a permission."""

    id: str
    decision: Literal["allow", "deny"]
    scope: Literal["once", "session", "always"]
    label: str
    rule: str | None
    writes_to: str | None


class QuestionOptionView(BaseModel):
    """One answer offered to a question."""

    label: str
    description: str | None


class QuestionView(BaseModel):
    """A question of the agent."""

    id: str
    header: str | None
    question: str
    multi_select: bool
    options: list[QuestionOptionView]


class ResolutionView(BaseModel):
    """How a permission ended."""

    model_config = ConfigDict(extra="allow")

    decision: Literal["allow", "deny"]
    by: Literal["client", "timeout", "interrupt", "turn_ended", "agent", "server_restarted"]
    at: str
    option_id: str | None = None
    scope: str | None = None


class PermissionView(BaseModel):
    """A permission, question or plan that the agent asked for."""

    id: str
    session_id: str
    turn_id: str | None
    tool_use_id: str | None
    parent_tool_use_id: str | None
    kind: Literal["tool", "question", "plan"]
    tool: str
    title: str | None
    input: dict[str, Any]
    plan: str | None
    questions: list[QuestionView]
    options: list[OptionView]
    created_at: str
    expires_at: str | None
    status: Literal["pending", "resolved"]
    resolution: ResolutionView | None


class PermissionPage(BaseModel):
    """A page of permissions."""

    items: list[PermissionView]
    next_cursor: str | None
