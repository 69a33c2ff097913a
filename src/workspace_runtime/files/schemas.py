"""The shapes of the file API: what a client sends and gets."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workspace_runtime.bodies import Body
from workspace_runtime.paths import from_path_bytes, parse

_ENCODED = "The path percent-encoded, instead of the other, for a name that is not UTF-8."
_IN_PLACE = "There where no new file could take the old one's place: its content was written over."
Path = Annotated[str, Field(max_length=8192)]


def _path(text: str | None, encoded: str | None) -> bytes:
    return parse(from_path_bytes(encoded) if encoded is not None else (text or "").encode())


class FolderBody(Body):
    """A folder to be made."""

    path: Path | None = None
    path_bytes: Path | None = Field(default=None, description=_ENCODED)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.path_bytes is None):
            raise ValueError("give path, or path_bytes")
        return self

    def wanted(self) -> bytes:
        """The path. Raises `path_invalid`."""
        return _path(self.path, self.path_bytes)


class MoveBody(Body):
    """From where to where."""

    model_config = ConfigDict(populate_by_name=True)

    source: Path | None = Field(default=None, alias="from")
    source_bytes: Path | None = Field(default=None, alias="from_bytes", description=_ENCODED)
    target: Path | None = Field(default=None, alias="to")
    target_bytes: Path | None = Field(default=None, alias="to_bytes", description=_ENCODED)
    overwrite: bool = Field(default=False, description="Replace a file, or an empty folder, that is there.")

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.source is None) == (self.source_bytes is None) or (self.target is None) == (self.target_bytes is None):
            raise ValueError("give from (or from_bytes) and to (or to_bytes)")
        return self

    def wanted(self) -> tuple[bytes, bytes]:
        """The two paths. Raises `path_invalid`."""
        return _path(self.source, self.source_bytes), _path(self.target, self.target_bytes)


class EntryView(BaseModel):
    """One thing in a folder."""

    name: str = Field(description="Bytes that are not UTF-8 show as U+FFFD.")
    path: str
    path_bytes: str | None = Field(default=None, description="There where the path is not UTF-8: it, percent-encoded.")
    type: Literal["file", "directory", "symlink", "other"]
    size: int
    modified_at: str | None
    mode: str = Field(examples=["0644"])
    etag: str | None = Field(description="Of a file, as reading it gives.")
    target: str | None = Field(description="Of a symlink: where it leads, as it is written in it.")


class EntryPage(BaseModel):
    """A page of a list."""

    path: str
    items: list[EntryView]
    next_cursor: str | None


class WrittenView(BaseModel):
    """A file that was written."""

    path: str
    path_bytes: str | None = None
    size: int
    etag: str
    mode: str
    in_place: Literal[True] | None = Field(default=None, description=_IN_PLACE)


class ContentView(BaseModel):
    """A file with what it holds."""

    path: str
    path_bytes: str | None = None
    size: int
    etag: str
    mode: str
    modified_at: str | None
    content: str
    encoding: Literal["utf-8", "base64"]


class ContentBody(Body):
    """What a file shall hold."""

    content: str
    encoding: Literal["utf-8", "base64"] = "utf-8"
    mode: str | None = Field(default=None, examples=["0755"], description="Left out: the old file's, or the usual.")


class UploadItem(BaseModel):
    """What became of one file of an upload."""

    path: str
    path_bytes: str | None = None
    size: int | None
    etag: str | None
    result: Literal["created", "replaced", "renamed", "kept", "refused"] = Field(
        description="kept: a folder of an archive that was there already."
    )
    is_dir: Literal[True] | None = Field(default=None, description="There for a folder of an archive.")
    in_place: Literal[True] | None = Field(default=None, description=_IN_PLACE)
    code: str | None = Field(default=None, description="Of a refused one.")
    error: str | None = None


class UploadView(BaseModel):
    """What became of an upload."""

    items: list[UploadItem]
    left_out: int | None = Field(default=None, description="How many further items do not fit into the answer.")


class FolderView(BaseModel):
    """A folder that is there now."""

    path: str
    created: bool


class MoveView(BaseModel):
    """What was moved or copied."""

    path: str
    replaced: bool


class FoundPath(BaseModel):
    """A path that fits, the best first."""

    path: str
    path_bytes: str | None = None
    name: str
    type: Literal["file", "directory"]
    score: float
    positions: list[int] = Field(description="The characters of `path` that fit, counted in code points.")


class FoundPaths(BaseModel):
    """The best of what fits. There are no further pages: a longer query finds what is missing."""

    items: list[FoundPath]
    next_cursor: None = None


class MatchLine(BaseModel):
    """A line that fits, or one around it."""

    type: Literal["match", "context"]
    path: str
    path_bytes: str | None = None
    line: int
    column: int | None = Field(default=None, description="Of the first match, from 1, in code points.")
    text: str
    ranges: list[tuple[int, int]] | None = Field(default=None, description="Start and end in `text`, in code points.")
    truncated: Literal[True] | None = Field(default=None, description="`text` is a part of a very long line.")


class SearchSummary(BaseModel):
    """The last line of a search."""

    type: Literal["summary"]
    matches: int
    files: int
    limit_reached: bool
    reason: Literal["matches", "size", "time", "memory"] | None = Field(
        default=None,
        description="Which limit was reached: `limit`, the size of the answer, the time, or the memory of the search, which holds "
        "all matches of a line at once.",
    )
    elapsed_ms: int
