"""What a client sends to change a repository. Left out, each field means what git would do."""

from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator

from workspace_runtime.bodies import Body, Piece
from workspace_runtime.paths import from_path_bytes, parse

MAX_PATHS = 10_000
Path = Annotated[str, Field(max_length=8192)]
Paths = Annotated[list[Path], Field(max_length=MAX_PATHS)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Message = Annotated[str, Field(max_length=1_000_000, pattern=r"^[^\x00]*$")]
_BYTES = "More paths, percent-encoded: for names that are not UTF-8."


def _parsed(text: str) -> bytes:
    try:
        return parse(text.encode())
    except UnicodeEncodeError:
        return parse(b"")


class PathsBody(Body):
    """Some files, relative to the repository's `root`. A path is a name, never a pattern; that of a folder means all in it."""

    paths: Paths = Field(default=[])
    paths_bytes: Paths = Field(default=[], description=_BYTES)

    def wanted(self) -> list[bytes]:
        """The paths. Raises `path_invalid`."""
        return [*map(_parsed, self.paths), *(parse(from_path_bytes(path)) for path in self.paths_bytes)]


class HunksOf(Piece):
    """Hunks of one file."""

    path: Path | None = None
    path_bytes: Path | None = None
    ids: list[Annotated[str, Field(max_length=100)]] = Field(min_length=1, max_length=MAX_PATHS)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.path_bytes is None):
            raise ValueError("give path, or path_bytes")
        return self

    def wanted(self) -> bytes:
        """The path. Raises `path_invalid`."""
        return parse(from_path_bytes(self.path_bytes)) if self.path_bytes is not None else _parsed(self.path or "")


class SelectionBody(PathsBody):
    """Files, hunks of files (their ids are those of the diff), or all."""

    all: bool = Field(default=False, description="Everything that has changed.")
    hunks: list[HunksOf] = Field(default=[], max_length=MAX_PATHS)
    context: int = Field(
        default=3, ge=0, le=100_000, description="The `context` of the diff that the hunks' ids are from."
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.all or self.paths or self.paths_bytes or self.hunks):
            raise ValueError("say what: paths, hunks, or all")
        if self.all and (self.paths or self.paths_bytes or self.hunks):
            raise ValueError("all goes without paths and hunks")
        return self

    def wanted_hunks(self) -> dict[bytes, set[str]]:
        """The ids of hunks by path. Raises `path_invalid`."""
        found: dict[bytes, set[str]] = {}
        for piece in self.hunks:
            found.setdefault(piece.wanted(), set()).update(piece.ids)
        return found


class StageBody(SelectionBody):
    """What to put into the index."""

    force: bool = Field(default=False, description="Also what git ignores.")


class DiscardBody(SelectionBody):
    """Which changes of the working tree to undo."""

    untracked: bool = Field(default=False, description="Delete files that git does not know; else they are refused.")


class Person(Piece):
    """Who wrote it."""

    name: Annotated[str, Field(min_length=1, max_length=500)]
    email: Annotated[str, Field(min_length=1, max_length=500)]


class CommitBody(PathsBody):
    """A commit."""

    message: Message | None = Field(default=None, description="May be left out for `amend`, and to conclude a merge.")
    author: Person | None = Field(default=None, description="Left out: the user's own identity.")
    all: bool = Field(default=False, description="Also all changes of tracked files that are not staged.")
    amend: bool = Field(default=False, description="In place of the last commit.")
    signoff: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.all and (self.paths or self.paths_bytes):
            raise ValueError("all goes without paths")
        if self.message is not None and not self.message.strip():
            raise ValueError("message: must not be empty")
        return self


class RemoteBody(Body):
    """Another repository, and how to be let in: without a token by the user's own helper or SSH agent."""

    remote: Name | None = Field(default=None, description="A configured remote. Left out: the one that git would take.")
    username: Name | None = Field(default=None, description="Beside a token; most hosts take any.")
    token: SecretStr | None = Field(
        default=None,
        description="A token or password for this call and for the remote's host alone. Never kept, logged or told.",
    )

    @property
    def secret(self) -> str | None:
        """The token."""
        return self.token.get_secret_value() if self.token is not None else None


class PushBody(RemoteBody):
    """A push."""

    branch: Name | None = None
    set_upstream: bool = False
    force_with_lease: bool | Name = Field(
        default=False, description="Replace what is there, if it is still what was fetched last, or this commit."
    )


class PullBody(RemoteBody):
    """A pull."""

    branch: Name | None = None
    mode: Literal["ff-only", "rebase", "merge"] | None = None
    autostash: bool | None = None


class FetchBody(RemoteBody):
    """A fetch."""

    all: bool = Field(default=False, description="From every remote.")
    prune: bool = Field(default=False, description="Forget branches that the remote no longer has.")


class CloneBody(Body):
    """A clone."""

    url: Name = Field(description="https, http, ssh, user@host:path, file:// or an absolute path.")
    path: Path | None = Field(
        default=None, description="A new or empty folder of the workspace. Left out: the repository's name."
    )
    path_bytes: Path | None = None
    branch: Name | None = None
    depth: Annotated[int, Field(ge=1, le=10**9)] | None = None
    bare: bool = False
    username: Name | None = None
    token: SecretStr | None = None

    @property
    def secret(self) -> str | None:
        """The token."""
        return self.token.get_secret_value() if self.token is not None else None


class InitBody(Body):
    """A new repository."""

    path: Path | None = Field(default=None, description="A folder of the workspace. Left out: its root.")
    path_bytes: Path | None = None
    initial_branch: Name | None = None
    bare: bool = False


def workspace_path(path: str | None, encoded: str | None) -> bytes:
    """A path of the workspace; empty for the root. Raises `path_invalid`."""
    if encoded is not None:
        return parse(from_path_bytes(encoded))
    return _parsed(path) if path not in (None, "", ".", "/") else b""


class CheckoutBody(Body):
    """What to switch to."""

    branch: Name = Field(description="A branch, or any revision: that detaches HEAD.")
    create: bool = Field(default=False, description="Make the branch.")
    start_point: Name | None = Field(default=None, description="Where a new branch begins. Left out: here.")
    detach: bool = False
    local_changes: Literal["keep", "stash", "discard"] = Field(
        default="keep",
        description="keep carries them over, or refuses; stash puts them into a stash that stays; discard drops them.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.create and self.detach:
            raise ValueError("create goes without detach")
        if self.start_point is not None and not self.create:
            raise ValueError("start_point needs create")
        return self


class BranchBody(Body):
    """A new branch."""

    name: Name
    start_point: Name | None = None


class RenameBody(Body):
    """Another name for a branch."""

    name: Name
    new_name: Name


class TagBody(Body):
    """A new tag."""

    name: Name
    ref: Name | None = Field(default=None, description="Left out: HEAD.")
    message: Message | None = Field(default=None, description="Makes an annotated tag.")
    force: bool = Field(default=False, description="Move a tag that is there.")


class StashBody(PathsBody):
    """What to put away."""

    message: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")] | None = None
    include_untracked: bool = False
    keep_index: bool = Field(default=False, description="What is staged stays staged as well.")
    staged: bool = Field(default=False, description="Only what is staged.")


class ApplyBody(Body):
    """How a stash is brought back."""

    index: bool = Field(default=False, description="What was staged is staged again.")


class MergeBody(Body):
    """A merge."""

    ref: Name
    mode: Literal["ff", "ff-only", "no-ff", "squash"] | None = None
    message: Message | None = None


class RebaseBody(Body):
    """A rebase."""

    onto: Name
    autostash: bool | None = None


class ResolveBody(PathsBody):
    """How conflicts are settled."""

    use: Literal["ours", "theirs", "base", "worktree"] = Field(
        description="One side whole, or what stands in the working tree now. A side without the file deletes it."
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.paths or self.paths_bytes):
            raise ValueError("say which paths")
        return self


class WorktreeBody(Body):
    """A linked working tree."""

    worktree: Path | None = Field(default=None, description="A new or empty folder, relative to the workspace's root.")
    worktree_bytes: Path | None = None
    branch: Name | None = Field(default=None, description="Left out: a new one with the folder's name.")
    create: bool = Field(default=False, description="Make the branch.")
    start_point: Name | None = Field(
        default=None, description="Where a new branch, or the detached HEAD, begins. Left out: HEAD."
    )
    detach: bool = False
    force: bool = Field(default=False, description="Also a branch that is checked out elsewhere.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.worktree is None) == (self.worktree_bytes is None):
            raise ValueError("give worktree, or worktree_bytes")
        if self.create and (self.detach or self.branch is None):
            raise ValueError("create needs a branch, and goes without detach")
        if self.start_point is not None and self.branch is not None and not self.create:
            raise ValueError("start_point is where a new branch begins: say create, or name no branch")
        return self


class NewRemoteBody(Body):
    """A remote."""

    name: Name
    url: Name


class RemoteChangeBody(Body):
    """What to change of a remote."""

    new_name: Name | None = None
    url: Name | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.new_name is None and self.url is None:
            raise ValueError("give new_name, url, or both")
        return self


class UnlockBody(Body):
    """How locks are cleared."""

    force: bool = Field(default=False, description="Even where a git is at work.")
