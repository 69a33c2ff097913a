"""Unpacks an uploaded archive: zip, and tar plain or compressed by gzip, bzip2 or xz, known by its content and not by its name.

The invariant: only regular files and folders come out, under paths that `paths.parse` takes and that name no `.git`, through a
sink that the caller gives; what is anything else is refused, entry by entry. Memory is bounded whatever the archive says of
itself, and the limits count the bytes that really came out.

Own readers, because those of the standard library hold all of a zip's directory and all of a tar's long names in memory, and
follow a chain of tar headers by recursion. A zip is read by its directory, as every common tool does; of a tar only names, sizes
and the executable bit are used. Sparse files are refused.
"""

import bz2
import lzma
import re
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, Protocol

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.files.archive import Stopped
from workspace_runtime.files.temporary import is_temporary
from workspace_runtime.paths import kind_of, parse, refusal, shown

PIECE = 64 * 1024
# A ratio says little before this much has come out.
RATIO_FROM = 8 * 1024 * 1024
MAX_PATH = 4095
# All paths and reasons that are returned, together.
MAX_HELD = 16 * 1024 * 1024
# One tar header with more about the next entry, and how many of them an entry may have.
MAX_TAR_HEADER = 1024 * 1024
MAX_TAR_HEADERS = 16
# How many compressed streams in a row, and one more for each 4 KiB: each costs time.
MAX_STREAMS = 1000
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

    def __init__(self, code: str, detail: str, extracted: "list[Extracted]") -> None:
        super().__init__(code, detail)
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


def extract(source: BinaryIO, name: str, write: Sink, limits: Limits, stopped: Callable[[], bool]) -> list[Extracted]:
    """Unpack the archive in `source` (open for reading, seekable) into `write`. Blocks. `name` is for sentences alone.

    Returns what became of each entry, in the archive's order; a path that was written more than once is there once. Raises
    `ArchiveError`, which has that list up to there, and `Stopped` once `stopped()` is true.
    """
    source.seek(0)
    kind = _kind(source.read(tarfile.BLOCKSIZE))
    source.seek(0)
    work = _Work(name, write, limits, stopped)
    if kind is None:
        raise work.invalid("it is neither zip nor tar")
    if kind == "zip":
        for member in _Zip(source, work).members():
            work.take(member)
    else:
        stream = _Stream(source, kind, work)
        for member in _tar_members(stream, work):
            work.take(member)
        stream.finish()
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


@dataclass(slots=True)
class _Member:
    """One entry, as either format gives it. `pieces` is its content; what is not taken of it, the format skips itself."""

    path: bytes
    kind: str  # "file", "folder", or in words what else it is
    executable: bool = False
    pieces: Iterator[bytes] = field(default_factory=lambda: iter(()))


@dataclass(slots=True)
class _Work:
    """What both formats share: the limits, the sink, and the list of what became of the entries."""

    name: str
    sink: Sink
    limits: Limits
    stopped: Callable[[], bool]
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
        if self.stopped():
            raise Stopped
        self._produced += count
        if self._produced > max(RATIO_FROM, self.limits.max_ratio * self.consumed):
            raise self.too_large(f"it unpacks to more than {self.limits.max_ratio} times its size")

    def count_content(self, count: int) -> None:
        """Count bytes of files, and of headers that may be long."""
        self._content += count
        if self._content > self.limits.max_bytes:
            raise self.too_large(f"it unpacks to more than {self.limits.max_bytes} bytes")

    def take(self, member: _Member) -> None:
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
        except ArchiveError:
            raise
        except WorkspaceError as fault:
            self._sink_failed(path, fault)
        except OSError as fault:
            self._sink_failed(path, refusal(fault, path))
        else:
            self._wrote(path, is_folder=member.kind == "folder")

    def _count(self, path: bytes) -> None:
        if self.stopped():
            raise Stopped
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


def _checked(member: _Member) -> tuple[bytes, str]:
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


# --- what is compressed -----------------------------------------------------------------------------------------------


class _Decompressor(Protocol):
    """What `bz2` and `lzma` give. `decompress` gives at most so many bytes, and keeps the rest for the next call."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Zlib:
    """The same of `zlib`."""

    def __init__(self, wbits: int) -> None:
        self._zlib = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        found = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        # zlib may hold more bytes of output although it took all of its input
        self.needs_input = len(found) < max_length
        return found


class _Plain:
    """Bytes that are not compressed."""

    eof = False
    needs_input = True
    unused_data = b""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return data


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "tar": _Plain,
    "gzip": lambda: _Zlib(16 + zlib.MAX_WBITS),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY),
}
_DECOMPRESSION_ERRORS = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)
_ZIP_DECOMPRESSORS: dict[int, Callable[[], _Decompressor]] = {
    0: _Plain,
    8: lambda: _Zlib(-zlib.MAX_WBITS),
    12: bz2.BZ2Decompressor,
}


def _decompress(work: _Work, decompressor: _Decompressor, data: bytes) -> bytes:
    """The next bytes, counted."""
    try:
        found = decompressor.decompress(data, PIECE)
    except lzma.LZMAError as fault:
        if "limit" in str(fault):
            raise work.invalid("it needs too much memory; pack it with xz -6, or with gzip") from None
        raise work.invalid("the compressed data is damaged") from None
    except (zlib.error, OSError, EOFError, ValueError):
        raise work.invalid("the compressed data is damaged") from None
    work.came_out(len(found))
    return found


def _read(source: BinaryIO, count: int, work: _Work) -> bytes:
    """Exactly so many bytes of the archive. Raises where it ends before."""
    data = source.read(count)
    if len(data) < count:
        raise work.invalid("it ends too early")
    return data


# --- tar --------------------------------------------------------------------------------------------------------------


class _Stream:
    """The bytes of a tar, decompressed: a few streams in a row count as one, as `gzip` has it."""

    def __init__(self, source: BinaryIO, kind: str, work: _Work) -> None:
        self._source = source
        self._kind = kind
        self._work = work
        self._decompressor = _DECOMPRESSORS[kind]()
        self._ready = b""
        self._ended = False
        self._streams = 1

    def piece(self, limit: int) -> bytes:
        """At least one byte and at most `limit`; none at the end."""
        while not self._ready and not self._ended:
            self._ready = self._next()
        piece, self._ready = self._ready[:limit], self._ready[limit:]
        return piece

    def pieces(self, count: int) -> Iterator[bytes]:
        """So many bytes, by pieces. Raises where the stream ends before."""
        while count:
            piece = self.piece(count)
            if not piece:
                raise self._work.invalid("it ends too early")
            count -= len(piece)
            yield piece

    def read(self, count: int) -> bytes:
        """So many bytes at once."""
        return b"".join(self.pieces(count))

    def finish(self) -> None:
        """Read to the end, so that its checksum is compared."""
        while self.piece(PIECE):
            pass

    def _next(self) -> bytes:
        decompressor = self._decompressor
        if decompressor.eof:
            return self._next_stream(decompressor.unused_data)
        if not decompressor.needs_input:
            return _decompress(self._work, decompressor, b"")
        data = self._take()
        found = _decompress(self._work, decompressor, data)
        if not data and not found and not decompressor.eof:
            if self._kind != "tar":
                raise self._work.invalid("it ends too early")
            self._ended = True
        return found

    def _next_stream(self, rest: bytes) -> bytes:
        """Go on with a stream that follows; anything else that follows is left, as `tar` does."""
        if len(rest) < 8:  # too few to tell
            rest += self._take()
        self._streams += 1
        if self._streams > MAX_STREAMS + self._work.consumed // 4096:
            raise self._work.invalid("it is cut into too many pieces")
        if not rest.startswith(_MAGIC[self._kind]):
            self._ended = True
            return b""
        self._decompressor = _DECOMPRESSORS[self._kind]()
        return _decompress(self._work, self._decompressor, rest)

    def _take(self) -> bytes:
        data = self._source.read(PIECE)
        self._work.consumed += len(data)
        return data


_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.DIRTYPE: "folder",
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "a sparse file, which is not unpacked here",
}
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
)


@dataclass(slots=True)
class _Header:
    """A tar block, with what the blocks before it said of the same entry."""

    info: tarfile.TarInfo
    path: bytes
    size: int
    sparse: bool = False


def _is_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _tar_members(stream: _Stream, work: _Work) -> Iterator[_Member]:
    """The entries, up to the block of zeros that ends a tar."""
    while (header := _tar_header(stream, work)) is not None:
        info = header.info
        kind = _KINDS.get(info.type, "of a kind that is not unpacked here")
        if header.sparse:
            kind = _KINDS[tarfile.GNUTYPE_SPARSE]
        elif kind == "file" and header.path.endswith(b"/"):
            kind = "folder"
        size = 0 if info.type in _WITHOUT_CONTENT else header.size
        content = _Counted(stream, size, work)
        yield _Member(header.path, kind, bool(info.mode & stat.S_IXUSR), content)
        for _ in content:
            pass  # what was not taken
        stream.read(-size % tarfile.BLOCKSIZE)


class _Counted:
    """An entry's content, which can be left and gone on with."""

    def __init__(self, stream: _Stream, size: int, work: _Work) -> None:
        self._pieces = stream.pieces(size)
        self._work = work

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self._pieces)
        self._work.count_content(len(piece))
        return piece


def _tar_header(stream: _Stream, work: _Work) -> _Header | None:
    """The next entry's header, or None at the end."""
    path: bytes | None = None
    pax: dict[bytes, bytes] = {}
    for _ in range(MAX_TAR_HEADERS):
        block = stream.read(tarfile.BLOCKSIZE)
        if not block.strip(b"\0"):
            return None
        info = _tar_info(block, work)
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            text = _tar_text(stream, info.size, work)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                path = text.partition(b"\0")[0]
        elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            pax.update(_pax(_tar_text(stream, info.size, work), work))
        elif info.type == tarfile.XGLTYPE:
            _tar_text(stream, info.size, work)  # for all entries: nothing that is used here
        else:
            return _joined(stream, block, info, path, pax, work)
    raise work.invalid("it has too many headers for one entry")


def _tar_info(block: bytes, work: _Work) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise work.invalid("a header in it is damaged") from None
    if info.size < 0:
        raise work.invalid("an entry's size is negative")
    return info


def _tar_text(stream: _Stream, size: int, work: _Work) -> bytes:
    """What a header of names says: it is held in memory, so that its size is bounded."""
    if size > MAX_TAR_HEADER:
        raise work.invalid("a header in it is too long")
    work.count_content(size)
    text = stream.read(size)
    stream.read(-size % tarfile.BLOCKSIZE)
    return text


def _pax(text: bytes, work: _Work) -> dict[bytes, bytes]:
    """The fields of a pax header: `LENGTH KEY=VALUE` and a line's end, the length counting itself."""
    fields: dict[bytes, bytes] = {}
    at = 0
    while at < len(text) and text[at]:
        space = text.find(b" ", at, at + 8)
        digits = text[at:space]
        end = at + int(digits) if space > 0 and digits.isdigit() else 0
        key, equals, value = text[space + 1 : end - 1].partition(b"=")
        if not equals or end > len(text) or text[end - 1 : end] != b"\n":
            raise work.invalid("a header in it is damaged")
        fields[key] = value
        at = end
    return fields


def _joined(
    stream: _Stream, block: bytes, info: tarfile.TarInfo, path: bytes | None, pax: dict[bytes, bytes], work: _Work
) -> _Header:
    """A header with what was said of the entry before it."""
    if path is None:
        path = block[:100].partition(b"\0")[0]
        prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
        path = prefix + b"/" + path if prefix else path
    size = info.size
    if b"size" in pax:
        digits = pax[b"size"]
        if not digits.isdigit() or len(digits) > 20:
            raise work.invalid("an entry's size is no number")
        size = int(digits)
    sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.sparse.") for key in pax)
    if info.type == tarfile.GNUTYPE_SPARSE:
        more = block[482]
        while more:
            work.count_content(tarfile.BLOCKSIZE)
            more = stream.read(tarfile.BLOCKSIZE)[504]
    return _Header(info, pax.get(b"path", path), size, sparse)


# --- zip --------------------------------------------------------------------------------------------------------------

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_U32 = 0xFFFF_FFFF
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_UTF8_NAME = 0x0800
_FROM_DOS = (0, 10, 14)  # FAT, NTFS and VFAT: a backslash can only be a separator
_FROM_UNIX = 3


@dataclass(slots=True)
class _ZipEntry:
    """A record of the directory."""

    path: bytes
    kind: str
    executable: bool
    method: int
    crc: int
    packed: int
    size: int
    offset: int


class _Zip:
    """A zip file, by its directory (PKWARE's APPNOTE, 4.3.12)."""

    def __init__(self, source: BinaryIO, work: _Work) -> None:
        self._source = source
        self._work = work
        self._length = source.seek(0, 2)

    def members(self) -> Iterator[_Member]:
        """The entries, in the directory's order."""
        packed = 0
        for entry in self._entries(*self._directory()):
            # Entries that share bytes are how a small zip unpacks to a huge one without a high ratio anywhere.
            packed += entry.packed
            if packed > self._length:
                raise self._work.invalid("entries in it overlap")
            yield _Member(entry.path, entry.kind, entry.executable, self._content(entry))

    def _directory(self) -> tuple[int, int, int]:
        """Where the directory starts and ends, and how many entries it should have."""
        start = max(self._length - _END.size - 0xFFFF, 0)
        self._source.seek(start)
        tail = self._source.read(_END.size + 0xFFFF)
        at = tail.rfind(b"PK\5\6")
        if at < 0 or len(tail) - at < _END.size:
            raise self._work.invalid("it ends too early")
        _, disk, first_disk, _, count, size, offset, _ = _END.unpack_from(tail, at)
        end = start + at
        if at >= _END64_LOCATOR.size and tail[at - _END64_LOCATOR.size :].startswith(b"PK\6\7"):
            _, disk, end, _ = _END64_LOCATOR.unpack_from(tail, at - _END64_LOCATOR.size)
            self._seek(end)
            fields = _END64.unpack(_read(self._source, _END64.size, self._work))
            if fields[0] != b"PK\6\6":
                raise self._work.invalid("its directory is damaged")
            _, _, _, _, disk, first_disk, _, count, size, offset = fields
        if disk or first_disk:
            raise self._work.invalid("it is one part of several")
        if offset + size > end:
            raise self._work.invalid("its directory is damaged")
        if count > self._work.limits.max_entries:
            raise self._work.too_large(f"it has more than {self._work.limits.max_entries} entries")
        return offset, offset + size, count

    def _entries(self, at: int, end: int, count: int) -> Iterator[_ZipEntry]:
        found = 0
        while at < end:
            self._source.seek(at)
            record = _ENTRY.unpack(_read(self._source, _ENTRY.size, self._work))
            if record[0] != b"PK\1\2":
                raise self._work.invalid("its directory is damaged")
            name, extra = (_read(self._source, length, self._work) for length in record[10:12])
            at += _ENTRY.size + sum(record[10:13])
            found += 1
            yield self._entry(record, name, extra)
        if found & 0xFFFF != count & 0xFFFF:  # more than 65,535 without the 64 bit fields wrap around
            raise self._work.invalid("its directory is damaged")

    def _entry(self, record: tuple[Any, ...], name: bytes, extra: bytes) -> _ZipEntry:
        _, made_by, _, flags, method, _, _, crc, packed, size, _, _, _, _, _, attributes, offset = record
        if flags & _ENCRYPTED or method == 99:
            raise self._work.invalid("it is encrypted")
        size, packed, offset = self._wide(extra, size, packed, offset)
        name = _zip_name(name, flags, made_by >> 8)
        mode = attributes >> 16
        kind = _zip_kind(name, mode, attributes, method)
        return _ZipEntry(name, kind, bool(mode & stat.S_IXUSR), method, crc, packed, size, offset)

    def _wide(self, extra: bytes, *fields: int) -> Iterator[int]:
        """Size, packed size and offset: those that are all ones stand in the extra field, in this order."""
        wide, at = b"", 0
        while at + 4 <= len(extra) and not wide:
            kind, length = struct.unpack_from("<2H", extra, at)
            at += 4 + length
            if kind == 1:
                wide = extra[at - length : at]
        for value in fields:
            if value != _U32:
                yield value
                continue
            if len(wide) < 8:
                raise self._work.invalid("its directory is damaged")
            yield int.from_bytes(wide[:8], "little")
            wide = wide[8:]

    def _content(self, entry: _ZipEntry) -> Iterator[bytes]:
        """What an entry unpacks to, compared with its size and checksum at the end."""
        crc = size = 0
        for piece in self._unpacked(entry):
            crc = zlib.crc32(piece, crc)
            size += len(piece)
            self._work.count_content(len(piece))
            yield piece
        if crc != entry.crc or size != entry.size:
            raise self._work.invalid(f"{shown(entry.path[:MAX_PATH])!r} in it is damaged")

    def _unpacked(self, entry: _ZipEntry) -> Iterator[bytes]:
        decompressor = _ZIP_DECOMPRESSORS[entry.method]()
        self._seek(entry.offset)
        local = _LOCAL.unpack(_read(self._source, _LOCAL.size, self._work))
        if local[0] != b"PK\3\4":
            raise self._work.invalid("its directory is damaged")
        self._seek(entry.offset + _LOCAL.size + local[9] + local[10])
        left = entry.packed
        while not decompressor.eof and (left or not decompressor.needs_input):
            data = b""
            if decompressor.needs_input:
                data = _read(self._source, min(left, PIECE), self._work)
                left -= len(data)
                self._work.consumed += len(data)
            found = _decompress(self._work, decompressor, data)
            if found:
                yield found

    def _seek(self, offset: int) -> None:
        if offset > self._length:
            raise self._work.invalid("it ends too early")
        self._source.seek(offset)


def _zip_name(name: bytes, flags: int, system: int) -> bytes:
    """The path in UTF-8. Without the flag it should be code page 437; but many write UTF-8, or on Unix any bytes, as they are."""
    if not flags & _UTF8_NAME and not _is_utf8(name) and system != _FROM_UNIX:
        name = name.decode("cp437").encode()
    return name.replace(b"\\", b"/") if system in _FROM_DOS else name


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _zip_kind(name: bytes, mode: int, attributes: int, method: int) -> str:
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return kind_of(mode)
    if name.endswith(b"/") or stat.S_ISDIR(mode) or attributes & 0x10:
        return "folder"
    return "file" if method in _ZIP_DECOMPRESSORS else "compressed in a way that is not known here"
