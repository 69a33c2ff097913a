"""What a client gets of a repository's state and of what it changes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from .history import CommitView, StashView, UnderWayView, WorktreeView


class HeadView(BaseModel):
    """What is checked out."""

    branch: str | None
    oid: str | None
    detached: bool
    unborn: bool = Field(description="There is no commit yet.")


class FollowedView(BaseModel):
    """The branch that the current one follows."""

    ref: str
    ahead: int | None
    behind: int | None
    gone: bool = Field(description="It is configured, and does not exist.")


class SubmoduleView(BaseModel):
    """What has changed of a submodule."""

    commit_changed: bool
    modified: bool
    untracked: bool


class FileView(BaseModel):
    """A file that differs."""

    path: str = Field(description="A folder that is one entry (`untracked=normal`, or a repository in it) ends in `/`.")
    path_bytes: str | None = None
    old_path: str | None
    old_path_bytes: str | None = None
    index: Literal["modified", "type_changed", "added", "deleted", "renamed", "copied"] | None = Field(
        description="How the index differs from the last commit."
    )
    worktree: (
        Literal["modified", "type_changed", "added", "deleted", "renamed", "copied", "untracked", "ignored"] | None
    ) = Field(description="How the working tree differs from the index.")
    conflict: (
        Literal[
            "both_deleted",
            "added_by_us",
            "deleted_by_them",
            "added_by_them",
            "deleted_by_us",
            "both_added",
            "both_modified",
        ]
        | None
    )
    additions: int | None = Field(description="Lines since the last commit. Null where they are not counted.")
    deletions: int | None
    binary: bool
    submodule: SubmoduleView | None


class StatusView(BaseModel):
    """The state of a working tree."""

    etag: str
    root: str = Field(description="The repository's folder in the workspace: its paths are relative to it.")
    root_bytes: str | None = None
    bare: bool
    read_only: bool = Field(description="It begins above the workspace.")
    shallow: bool
    sparse: bool
    head: HeadView
    upstream: FollowedView | None
    operation: UnderWayView | None
    stash_count: int
    files: list[FileView]
    file_count: int
    truncated: bool = Field(description="There are more files than are listed.")


class ProgressView(BaseModel):
    """How far an operation is."""

    phase: str
    percent: int | None
    done: int | None
    total: int | None
    bytes: int | None
    rate: int | None = Field(description="Bytes a second.")


class OperationView(BaseModel):
    """A piece of work on a repository."""

    id: str
    kind: str
    root: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created_at: str
    started_at: str | None
    ended_at: str | None
    progress: ProgressView | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None = Field(description="With code and detail, as an error answer has them.")
    truncated: bool = Field(description="In a list or a frame the result was too long: GET of the operation has it.")


class OperationList(BaseModel):
    """Operations, the newest first."""

    items: list[OperationView]
    next_cursor: str | None


class DoneView(BaseModel):
    """Done."""


class CommittedView(BaseModel):
    """A commit that was made."""

    oid: str
    commit: CommitView


class StashedView(BaseModel):
    """The stash that was made, applied or dropped."""

    stash: StashView


class WorktreeMade(BaseModel):
    """A working tree that was added."""

    worktree: WorktreeView | None


class WhereView(BaseModel):
    """What is checked out now."""

    head: HeadView


Warnings = Annotated[
    list[str] | None,
    Field(
        description="What git could not do, or warned of, in its words, where there is any: the rest is done. The last 100."
    ),
]


class StagedView(BaseModel):
    """Staged."""

    warnings: Warnings = None


class CheckoutView(WhereView):
    """A switch."""

    warnings: Warnings = None
    stash: str | None = Field(description="The id of the stash that has the local changes.")


class LeftView(WhereView):
    """Where an `autostash` may have been at work."""

    warnings: Warnings = None
    stash: str | None = Field(
        description="The id of the stash that has the local changes, where they could not be brought back as they were."
    )
    files: list[str] = Field(description="Those that are left with conflicts by that, at most 1000.")


class MergeView(LeftView):
    """A merge or rebase."""

    before: str | None


class StepView(LeftView):
    """A step of what is under way."""

    operation: UnderWayView | None


class PullView(MergeView):
    """A pull."""

    updated: bool


class RefChange(BaseModel):
    """A ref that a fetch has changed."""

    ref: str
    old: str | None
    new: str | None


class FetchView(BaseModel):
    """A fetch."""

    remote: str | None
    refs: list[RefChange]


class PushedRef(BaseModel):
    """What became of one ref of a push."""

    ref: str
    local: str | None
    status: Literal["up_to_date", "fast_forward", "forced", "new", "deleted", "rejected", "remote_rejected"]
    summary: str
    reason: str | None


class PushView(BaseModel):
    """A push."""

    remote: str | None
    refs: list[PushedRef]


class NamedView(BaseModel):
    """What has this name now."""

    name: str
    oid: str | None = None


class MadeView(BaseModel):
    """A repository that was made."""

    path: str
    path_bytes: str | None = None
    created: bool = True


class LockView(BaseModel):
    """A lock file."""

    name: str
    created_at: str
    age_s: float


class ProcessView(BaseModel):
    """A git process."""

    pid: int
    command: str


class LockList(BaseModel):
    """The locks of a repository, and the git processes that work in it."""

    items: list[LockView]
    next_cursor: str | None
    processes: list[ProcessView]


class UnlockedView(BaseModel):
    """The locks that were taken away."""

    removed: list[str]
