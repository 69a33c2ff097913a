"""The typed frames of the general WebSocket, both ways: the live events of the workspace. As `protocol.py`, for what is not stored."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from workspace_runtime.bodies import Body
from workspace_runtime.version_control.schemas.views import HeadView, OperationView

from .live import MAX_WATCHED, watched
from .protocol import AckFrame, PingFrame, PongFrame, RejectedFrame, RequestId

# --- what a client may send ---------------------------------------------------------------------------------------------


class WatchFrame(Body):
    """Hear only of these paths and of all below them from now on; an empty path is the root. Answered by `ack`."""

    type: Literal["watch"]
    paths: list[str] = Field(max_length=MAX_WATCHED)
    paths_bytes: list[str] = Field(
        default=[], max_length=MAX_WATCHED, description="More paths, percent-encoded: for names that are not UTF-8."
    )
    request_id: RequestId | None = None

    def wanted(self) -> list[bytes]:
        """The paths. Raises `path_invalid`."""
        return watched(self.paths, self.paths_bytes)


LiveClientFrame = Annotated[WatchFrame | PingFrame, Field(discriminator="type")]

# --- events -------------------------------------------------------------------------------------------------------------


class WorkspaceEventBase(BaseModel):
    """What every event of the general WebSocket has."""

    model_config = ConfigDict(extra="forbid")

    seq: int = Field(ge=1, description="Counts the events of this connection.")


class FileChangedEvent(WorkspaceEventBase):
    """A file or folder was created, changed or deleted, by whoever."""

    type: Literal["file_changed"]
    path: str
    event_type: Literal["created", "modified", "deleted"]
    is_dir: bool = Field(description="A deleted folder is told once, with all that was below it.")
    size: int | None
    modified_at: str | None
    etag: str | None = Field(description="Of a file, as reading it gives.")
    moved_from: str | None = Field(description="The path that it had before, where it was moved or renamed.")
    path_bytes: str | None = Field(default=None, description="Where the path is not UTF-8: it, percent-encoded.")
    moved_from_bytes: str | None = None


class ResyncEvent(WorkspaceEventBase):
    """Changes below these paths may have been missed: list them again. An empty path is the root."""

    type: Literal["resync"]
    paths: list[str]
    paths_bytes: list[str] | None = None


class SystemStats(BaseModel):
    """Shares of what this workspace may use, from 0 to 100."""

    cpu_percent: float
    memory_percent: float
    disk_percent: float


class SystemStatsEvent(WorkspaceEventBase):
    """How busy the workspace is. One comes at once, then one every few seconds."""

    type: Literal["system_stats"]
    stats: SystemStats


class GitChangedEvent(WorkspaceEventBase):
    """The state of a repository has changed, whoever changed it. Topic `git`."""

    type: Literal["git_changed"]
    root: str = Field(description="The repository's folder in the workspace, as `status` has it.")
    root_bytes: str | None = Field(default=None, description="Where that is not UTF-8: it, percent-encoded.")
    changed: list[Literal["status", "head", "branch", "refs", "stash", "operation"]] = Field(
        description="What differs: the answer of `status`, the commit, what is checked out, any ref, the stash, what is under way."
    )
    head: HeadView | None = Field(description="What is checked out now. Null: there is no repository any more.")
    status_etag: str | None = Field(description="Of `status` without parameters. Null where it can't be read.")


class GitOperationEvent(WorkspaceEventBase):
    """An operation of version control has begun, come further or ended. Topic `git`."""

    type: Literal["git_operation"]
    operation: OperationView


WorkspaceEvent = Annotated[
    FileChangedEvent | ResyncEvent | SystemStatsEvent | GitChangedEvent | GitOperationEvent, Field(discriminator="type")
]
LiveServerFrame = Annotated[
    FileChangedEvent
    | ResyncEvent
    | SystemStatsEvent
    | GitChangedEvent
    | GitOperationEvent
    | AckFrame
    | PongFrame
    | RejectedFrame,
    Field(discriminator="type"),
]
