"""The shapes of what is told of the history: for the documentation, since the answers themselves are plain data.

Times are RFC 3339 in UTC, null where git has one that no calendar has. Ids are full.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

_ENCODED = "There where the path is not UTF-8: it, percent-encoded."
Encoded = Annotated[str | None, Field(description=_ENCODED)]
Truncated = Annotated[
    Literal[True] | None, Field(description="There where the message is longer than 1 MiB: this is its beginning.")
]
NextCursor = Annotated[str | None, Field(description="The cursor of the next page, null at the end.")]


class PersonView(BaseModel):
    """Who did something, as it was recorded, and when."""

    name: str
    email: str
    date: str | None


class RefView(BaseModel):
    """A name that a commit has."""

    name: str = Field(examples=["main"])
    type: Literal["branch", "remote", "tag", "head", "other"] = Field(description="`head`: what is checked out.")
    full: str = Field(examples=["refs/heads/main"])


class CommitView(BaseModel):
    """A commit. The branch that is checked out is the first of its refs."""

    oid: str
    parents: list[str]
    author: PersonView
    committer: PersonView
    subject: str = Field(description="The first paragraph of the message, as one line.")
    body: str = Field(description="The rest of the message.")
    refs: list[RefView]
    truncated: Truncated = None


class CommitPage(BaseModel):
    """A page of the history."""

    items: list[CommitView]
    next_cursor: NextCursor


class CommitFactsView(CommitView):
    """A commit, and the id of its tree."""

    tree: str


class BranchUpstreamView(BaseModel):
    """The branch that a local one follows."""

    ref: str = Field(examples=["origin/main"])
    remote: str = Field(description="The remote's name; `.` for a branch of this repository.")
    gone: bool = Field(description="It is configured, but not there.")


class BranchView(BaseModel):
    """A branch, local or of a remote."""

    name: str = Field(examples=["main", "origin/main"])
    full: str = Field(examples=["refs/heads/main"])
    oid: str
    current: bool
    remote: bool
    upstream: BranchUpstreamView | None
    ahead: int | None = Field(description="Commits that the upstream lacks; null without one.")
    behind: int | None = Field(description="Commits that only the upstream has; null without one.")
    committed_at: str | None
    subject: str | None = Field(
        description="Of its last commit, as the time and the author; null where that is missing."
    )
    author_name: str | None
    checked_out: bool = Field(description="In this working tree or in another one.")
    worktree: str | None = Field(description="The other working tree of the workspace that has it checked out.")
    worktree_bytes: Encoded = None


class BranchPage(BaseModel):
    """A page of branches, by name, local ones first."""

    items: list[BranchView]
    next_cursor: NextCursor


class TagView(BaseModel):
    """A tag. One without a `tag_oid` is only a name."""

    name: str
    oid: str = Field(description="What it leads to in the end, through other tags.")
    type: Literal["commit", "tree", "blob"] | None = Field(description="Of that; null where it is missing.")
    tag_oid: str | None
    message: str | None
    tagger: PersonView | None
    created_at: str | None = Field(description="When it was made; without a `tag_oid` when its commit was.")
    truncated: Truncated = None


class TagPage(BaseModel):
    """A page of tags, the latest made first."""

    items: list[TagView]
    next_cursor: NextCursor


class RemoteView(BaseModel):
    """A remote of the configuration, its addresses without what may be a secret: the user, what a query says, the fragment."""

    name: str
    url: str
    push_url: str


class RemoteList(BaseModel):
    """The remotes, by name."""

    items: list[RemoteView]
    next_cursor: NextCursor


class PreviousView(BaseModel):
    """The file before a commit changed it."""

    oid: str
    path: str
    path_bytes: Encoded = None


class BlamedCommitView(BaseModel):
    """What is told of a commit that lines come from; null what git can't read."""

    author: PersonView | None
    committer: PersonView | None
    subject: str | None
    previous: PreviousView | None
    boundary: bool = Field(description="git could not look further back.")


class BlamedLinesView(BaseModel):
    """Lines that come from one commit, one after the other."""

    oid: str | None = Field(description="Null: not committed.")
    line: int = Field(description="The number of the first, from 1.")
    count: int
    original_line: int = Field(description="The number that the first had in that commit.")
    original_path: str | None = Field(default=None, description="There where the file had another name then.")
    original_path_bytes: Encoded = None


class BlameView(BaseModel):
    """Who wrote which line."""

    path: str
    path_bytes: Encoded = None
    ref: str | None = Field(description="The commit; null for the working tree.")
    commits: dict[str, BlamedCommitView]
    lines: list[BlamedLinesView]


class StashView(BaseModel):
    """Changes that were put away."""

    index: int
    oid: str
    message: str
    branch: str | None = Field(description="The branch that was checked out.")
    created_at: str | None
    base: str | None = Field(description="The commit that was checked out.")
    untracked: bool = Field(description="It has files that git did not know.")
    truncated: Truncated = None


class StashList(BaseModel):
    """The stashes, the latest first."""

    items: list[StashView]
    next_cursor: NextCursor


class WorktreeView(BaseModel):
    """A working tree of a repository."""

    path: str | None = Field(description="Relative to the workspace; null outside of it.")
    path_bytes: Encoded = None
    head: str | None = Field(description="Null before the first commit, and for a bare repository.")
    branch: str | None
    detached: bool
    bare: bool
    locked: bool
    lock_reason: str | None
    prunable: str | None = Field(description="Why git would forget it.")
    main: bool
    current: bool


class WorktreeList(BaseModel):
    """The working trees, the main one first."""

    items: list[WorktreeView]
    next_cursor: NextCursor


class SideView(BaseModel):
    """A file as one side of a merge has it."""

    oid: str
    mode: str = Field(examples=["100644"])


class ConflictView(BaseModel):
    """A file that a merge left to be resolved. A side is null where the file was not there."""

    path: str
    path_bytes: Encoded = None
    kind: Literal[
        "both_modified",
        "both_added",
        "deleted_by_us",
        "deleted_by_them",
        "added_by_us",
        "added_by_them",
        "both_deleted",
    ]
    base: SideView | None
    ours: SideView | None
    theirs: SideView | None
    exists: bool = Field(description="The working tree has it.")
    original_path: str | None = Field(
        description="The name that it stands for, where git put it beside that: the other side has something of another kind there."
    )
    original_path_bytes: Encoded = None


class ConflictList(BaseModel):
    """The files in conflict, by path."""

    items: list[ConflictView]
    next_cursor: NextCursor


class UnderWayView(BaseModel):
    """What is under way in a repository."""

    kind: Literal["merge", "rebase", "am", "cherry-pick", "revert", "bisect"]
    head_name: str | None = Field(description="The branch that it is done to; null where none was checked out.")
    onto: str | None
    oid: str | None = Field(description="The commit that is being applied or merged.")
    step: int | None
    total: int | None
    message: str | None = Field(description="What the commit would say.")
