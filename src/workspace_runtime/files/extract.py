"""Unpacks an uploaded archive: zip, and tar plain or compressed by gzip, bzip2 or xz, known by its content and not by its name.

The invariant: only regular files and folders come out, under paths that `paths.parse` takes and that name no `.git`, through a
sink that the caller gives; what is anything else is refused, entry by entry. Memory is bounded whatever the archive says of
itself, and the limits count the bytes that really came out.

Own readers, because those of the standard library hold all of a zip's directory and all of a tar's long names in memory, and
follow a chain of tar headers by recursion. A zip is read by its directory, as every common tool does; of a tar only names, sizes
and the executable bit are used. Sparse files are refused.
"""

import bz2
import itertools
import lzma
import re
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, Protocol

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.files.archive import Stopped
from workspace_runtime.files.temporary import is_temporary
from workspace_runtime.paths import parse, refusal, shown

PIECE = 64 * 1024
# A ratio says little before this much has come out.
RATIO_FROM = 8 * 1024 * 1024
MAX_PATH = 4095
# All paths that are reported, together: they are held until the end.
MAX_PATHS = 16 * 1024 * 1024
# One tar header with more about the next entry, and how many of them an entry may have.
MAX_TAR_HEADER = 1024 * 1024
MAX_TAR_HEADERS = 16
# xz from -0 to -7; what -8 and -9 make wants more.
MAX_XZ_MEMORY = 24 * 1024 * 1024


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

    def __init__(self, fault: WorkspaceError, extracted: list[Extracted]) -> None:
        super().__init__(fault.code, fault.detail, **fault.data)
        self.extracted = extracted


def is_archive(head: bytes) -> bool:
    """Whether a file that begins with these bytes (512, or all of it) looks like one that `extract` can unpack.

    What gzip or xz packed is looked into: it must begin like a tar.
    """
    kind = _kind(head)
    if kind not in ("gzip", "xz"):
        return kind is not None
    try:
        inside = _DECOMPRESSORS[kind]().decompress(head, tarfile.BLOCKSIZE)
    except _DECOMPRESSION_ERRORS:
        return False
    return len(inside) < tarfile.BLOCKSIZE or _is_tar(inside)


def extract(
    source: BinaryIO, name: str, write: Sink, limits: Limits, stopped: Callable[[], bool]
) -> list[Extracted]:
    """Unpack the archive in `source` (open for reading, seekable) into `write`. Blocks. `name` is for sentences alone.

    Returns what became of each entry, in the archive's order, a path that was written more than once only once. Raises
    `ArchiveError`, which has that list up to there, and `Stopped` once `stopped()` is true.
    """
    source.seek(0)
    kind = _kind(source.read(tarfile.BLOCKSIZE))
    work = _Work(name, write, limits, stopped)
    try:
        if kind is None:
            raise work.invalid("it is neither zip nor tar")
        if kind == "zip":
            _extract_zip(source, work)
        else:
            _extract_tar(source, kind, work)
    except WorkspaceError as fault:
        raise ArchiveError(fault, work.extracted) from fault
    return work.extracted


def _kind(head: bytes) -> str | None:
    for kind, magic in _MAGIC.items():
        if head.startswith(magic):
            return kind
    return "tar" if _is_tar(head) else None


_MAGIC: dict[str, tuple[bytes, ...]] = {
    "zip": (b"PK\3\4", b"PK\5\6"),
    "gzip": (b"\x1f\x8b\x08",),
    "bzip2": tuple(b"BZh%d" % level for level in range(1, 10)),
    "xz": (b"\xfd7zXZ\0",),
}


# --- the work of one archive ------------------------------------------------------------------------------------------


class _SinkError(Exception):
    """An entry can't be written; the archive goes on."""


@dataclass(slots=True)
class _Work:
    """What is common to both formats: limits, the sink, and the list of what became of the entries."""

    name: str
    sink: Sink
    limits: Limits
    stopped: Callable[[], bool]
    extracted: list[Extracted] = field(default_factory=list)
    consumed: int = 0
    _produced: int = 0
    _content: int = 0
    _entries: int = 0
    _paths: int = 0
    _written: set[bytes] = field(default_factory=set)

    def invalid(self, reason: str) -> WorkspaceError:
        """The error for an archive that can't be read."""
        return WorkspaceError("archive_invalid", f"{self.name!r} can't be unpacked: {reason}.")

    def too_large(self, reason: str) -> WorkspaceError:
        """The error for an archive beyond the limits."""
        return WorkspaceError("archive_too_large", f"{self.name!r} was not unpacked to the end: {reason}.")

    def came_out(self, count: int) -> None:
        """Count bytes that were decompressed."""
        if self.stopped():
            raise Stopped
        self._produced += count
        if self._produced > max(RATIO_FROM, self.limits.max_ratio * self.consumed):
            raise self.too_large(f"it unpacks to more than {self.limits.max_ratio} times its size")

    def content(self, count: int) -> None:
        """Count bytes of content."""
        self._content += count
        if self._content > self.limits.max_bytes:
            raise self.too_large(f"it unpacks to more than {self.limits.max_bytes} bytes")

    def entry(self, path: bytes) -> None:
        """Count an entry."""
        if self.stopped():
            raise Stopped
        self._entries += 1
        if self._entries > self.limits.max_entries:
            raise self.too_large(f"it has more than {self.limits.max_entries} entries")
        self._paths += min(len(path), MAX_PATH)
        if self._paths > MAX_PATHS:
            raise self.too_large(f"the paths in it are longer than {MAX_PATHS} bytes together")

    def refuse(self, path: bytes, reason: str) -> None:
        """Note that an entry does not come out."""
        self.extracted.append(Extracted(path[:MAX_PATH], "refused", reason))

    def folder(self, raw: bytes) -> None:
        """Make a folder; that of the archive's own top is there already."""
        path = self._path(raw) if raw.strip(b"./") or b".." in raw or raw.startswith(b"/") else None
        if path is None:
            return
        try:
            self.sink.folder(path)
        except (WorkspaceError, OSError) as fault:
            self._sink_failed(fault, path)
        else:
            self._note(path, is_folder=True)

    def file(self, raw: bytes, executable: bool, pieces: Iterator[bytes]) -> None:
        """Write a file. Its pieces are taken to the end only where it is one that may come out."""
        path = self._path(raw)
        if path is None:
            return
        try:
            with self._guarded(path):
                target = self.sink.file(path, executable)
                writer = target.__enter__()
        except _SinkError:
            return
