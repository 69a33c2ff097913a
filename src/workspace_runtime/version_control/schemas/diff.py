"""The shapes of a difference, as the documentation shows them. Answers are made by `diff_output`, not by these."""

from typing import Literal

from pydantic import BaseModel, Field

from .history import CommitFactsView, UnderWayView
from .views import HeadView

Status = Literal["added", "deleted", "modified", "renamed", "copied", "type_changed", "unmerged"]
Kind = Literal["context", "add", "delete"]


class DiffLineView(BaseModel):
    """A line of a hunk."""

    type: Kind
    content: str = Field(description="Without the newline. Bytes that are not UTF-8 show as U+FFFD.")
    old_line: int | None = Field(description="Its number on the old side, from 1; null for a line that was added.")
    new_line: int | None = Field(description="Its number on the new side, from 1; null for a line that was deleted.")
    no_newline: bool = Field(default=False, description="Only where the file ends with this line, without a newline.")


class DiffSegmentView(BaseModel):
    """Words of a line that are of one kind."""

    type: Kind
    content: str


class DiffWordLineView(BaseModel):
    """A line of a word diff: both sides laid over each other."""

    segments: list[DiffSegmentView]


class DiffHunkView(BaseModel):
    """Changes that stand together, with the lines around them."""

    id: str | None = Field(
        default=None,
        description="Names it for stage, unstage and discard, as long as it is the same. None in a word diff.",
    )
    header: str = Field(description="The whole first line.", examples=["@@ -1,4 +1,5 @@ def main():"])
    section: str = Field(description="What git tells of where it stands, often the function's first line.")
    old_start: int
    old_lines: int
    new_start: int
    new_lines: int
    lines: list[DiffLineView] | list[DiffWordLineView]


class DiffFileView(BaseModel):
    """A file that differs."""

    path: str = Field(description="Bytes that are not UTF-8 show as U+FFFD.")
    path_bytes: str | None = Field(default=None, description="The path percent-encoded, where it is not UTF-8.")
    old_path: str | None = Field(description="Only of a file that was renamed or copied.")
    old_path_bytes: str | None = Field(default=None, description="The same for the old path.")
    status: Status
    old_mode: str | None = Field(examples=["100644"])
    new_mode: str | None = Field(examples=["100755"])
    old_oid: str | None
    new_oid: str | None = Field(description="Null also for a file that git has not stored, as in the working tree.")
    similarity: int | None = Field(description="Percent; of a rename or a copy.")
    binary: bool
    additions: int | None = Field(description="Lines; null for a binary file and for a conflict.")
    deletions: int | None
    submodule: bool
    truncated: bool = Field(description="The patch is larger than the limits: it has hunks, but none are here.")
    hunks: list[DiffHunkView]


class DiffView(BaseModel):
    """A difference."""

    etag: str
    target: str
    from_: str | None = Field(alias="from", description="The commit on the old side; null for the index.")
    to: str | None = Field(description="The commit on the new side; null for the index or the working tree.")
    files: list[DiffFileView]
    additions: int
    deletions: int
    complete: bool = Field(description="False: there was too much, and more files differ than are listed.")


class ShowView(BaseModel):
    """A commit with its difference from its first parent."""

    etag: str
    commit: CommitFactsView
    files: list[DiffFileView]
    additions: int
    deletions: int
    complete: bool


class DraftView(BaseModel):
    """Facts for a commit message."""

    head: HeadView
    operation: UnderWayView | None
    files: list[DiffFileView] = Field(description="What is staged. Hunks beyond a bound are left out: `truncated`.")
    additions: int
    deletions: int
    complete: bool
    recent: list[str] = Field(description="Subjects of the last commits.")
    prepared: str | None = Field(description="The message that git has for the merge or squash under way.")
