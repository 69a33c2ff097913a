"""The work of unpacking one archive: where entries go, the limits, and what became of each entry."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.files.stopping import IsStopped, Stopped, check
from workspace_runtime.files.temporary import is_temporary
from workspace_runtime.paths import parse, refusal

# A ratio says little before this much has come out.
RATIO_FROM = 8 * 1024 * 1024
MAX_PATH = 4095
# All paths and reasons that are returned, together.
MAX_HELD = 16 * 1024 * 1024


class Writer(Protocol):
    """A file that is being written."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes, all of them."""


class Sink(Protocol):
    """Where entries go. `WorkspaceError` and `OSError` from it refuse the entry, or stop it all when the disk is full.

    Folders above a path are not given on their own: the sink makes them. A path may come again; the later one replaces it.
    """

    def folder(self, path: bytes) -> None:
        """Make a folder; one that is there already is fine."""

    def file(self, path: bytes, executable: bool) -> AbstractContextManager[Writer]:
        """A file to be written: put in place at a clean exit, forgotten at an exception."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """What became of an entry. `path` is as the archive has it where it was refused, cut to 4,095 bytes."""

    path: bytes
    result: Literal["written", "refused"]
    reason: str | None = None
    is_folder: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may hold.

    `max_bytes`: all content that must be unpacked, also of what is refused. `max_entries`: all entries. `max_ratio`: how many
    times more may come out than went in, counted for the whole archive once 8 MiB have come out.
    """

    max_bytes: int
    max_entries: int
    max_ratio: int


class ArchiveError(WorkspaceError):
    """Unpacking ended early: `archive_invalid`, `archive_too_large`, or what stopped the sink, such as `disk_full`.

    `extracted` is what had become of the entries before. What was written stays.
    """

    def __init__(self, code: str, detail: str, extracted: "list[Extracted]") -> None:
        super().__init__(code, detail)
        self.extracted = extracted


@dataclass(slots=True)
class Member:
    """One entry, as either format gives it. `pieces` is its content; what is not taken of it, the format skips itself."""

    path: bytes
    kind: str  # "file", "folder", or in words what else it is
    executable: bool = False
    pieces: Iterator[bytes] = field(default_factory=lambda: iter(()))


@dataclass(slots=True)
class Work:
    """What both formats share: the limits, the sink, and the list of what became of the entries."""

    name: str
    sink: Sink
    limits: Limits
    stopped: IsStopped
    extracted: list[Extracted] = field(default_factory=list)
    consumed: int = 0
    _produced: int = 0
    _content: int = 0
    _entries: int = 0
    _held: int = 0
    _written: set[bytes] = field(default_factory=set)

    def invalid(self, reason: str) -> ArchiveError:
        """The error for an archive that can't be read."""
        return ArchiveError("archive_invalid", f"{self.name!r} can't be unpacked: {reason}.", self.extracted)

    def too_large(self, reason: str) -> ArchiveError:
        """The error for an archive beyond the limits."""
        return ArchiveError("archive_too_large", f"{self.name!r} was not unpacked: {reason}.", self.extracted)

    def came_out(self, count: int) -> None:
        """Count bytes that were decompressed, of whatever kind."""
        check(self.stopped)
        self._produced += count
        if self._produced > max(RATIO_FROM, self.limits.max_ratio * self.consumed):
            raise self.too_large(f"it unpacks to more than {self.limits.max_ratio} times its size")

    def count_content(self, count: int) -> None:
        """Count bytes of files, and of headers that may be long."""
        self._content += count
        if self._content > self.limits.max_bytes:
            raise self.too_large(f"it unpacks to more than {self.limits.max_bytes} bytes")

    def take(self, member: Member) -> None:
        """Give one entry to the sink, or refuse it."""
        self._count(member.path)
        if member.kind == "folder" and _TOP.fullmatch(member.path):
            return  # the archive's own top, which is there already
        path, reason = _checked(member)
        if reason:
            self._refuse(member.path, reason)
            return
        try:
            if member.kind == "folder":
                self.sink.folder(path)
            else:
                with self.sink.file(path, member.executable) as target:
                    for piece in member.pieces:
                        target.write(piece)
        except (ArchiveError, Stopped):
            raise
        except WorkspaceError as fault:
            self._sink_failed(path, fault)
        except OSError as fault:
            self._sink_failed(path, refusal(fault, path))
        else:
            self._wrote(path, is_folder=member.kind == "folder")

    def _count(self, path: bytes) -> None:
        check(self.stopped)
        self._entries += 1
        if self._entries > self.limits.max_entries:
            raise self.too_large(f"it has more than {self.limits.max_entries} entries")
        self._hold(min(len(path), MAX_PATH))

    def _hold(self, count: int) -> None:
        self._held += count
        if self._held > MAX_HELD:
            raise self.too_large("there are too many long paths in it")

    def _wrote(self, path: bytes, *, is_folder: bool) -> None:
        if path not in self._written:
            self._written.add(path)
            self.extracted.append(Extracted(path, "written", None, is_folder))

    def _refuse(self, path: bytes, reason: str) -> None:
        self._hold(len(reason))
        self.extracted.append(Extracted(path[:MAX_PATH], "refused", reason))

    def _sink_failed(self, path: bytes, fault: WorkspaceError) -> None:
        """What fails for this entry alone refuses it; a full disk, and the like, would fail for the rest as well."""
        if fault.status >= 500:
            raise ArchiveError(fault.code, fault.detail, self.extracted) from fault
        self._refuse(path, fault.detail)


def _checked(member: Member) -> tuple[bytes, str]:
    """The path that an entry comes out at, and the reason why it may not, if there is one."""
    if member.kind not in ("file", "folder"):
        return b"", f"It is {member.kind}."
    if len(member.path) > MAX_PATH:
        return b"", "The path is too long."
    try:
        path = parse(_HERE.sub(b"", member.path))
    except WorkspaceError:
        return b"", "The path is absolute, or has a NUL byte or an empty, '.' or '..' segment."
    parts = path.split(b"/")
    if _DRIVE.match(path):
        return b"", "The path names a drive."
    if any(part.lower() == b".git" for part in parts):
        return b"", "An archive may not bring a .git."
    if any(map(is_temporary, parts)):
        return b"", "The name is one that the server keeps for itself."
    return path, ""


_TOP = re.compile(rb"(?:\./)+|\.")
_HERE = re.compile(rb"\A(?:\./)+")
_DRIVE = re.compile(rb"[A-Za-z]:(?:[/\\]|$)")
