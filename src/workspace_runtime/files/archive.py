"""Packs a folder for a download, as zip or tar.gz, while it is sent.

The invariant: an archive that ends is whole and right; whatever goes wrong in the middle raises, so that the download is seen to
be cut. No link is followed, and no FIFO, device or socket is opened: they are left out, links are kept as links. Memory does not
grow with the size of a file; with their number only by the names of the open folders, and in a zip by some 40 bytes a file.

Both formats are written here, on the standard library's `zlib` and `tarfile.TarInfo`, because its writers keep an object of half
a kilobyte and more for each entry until the end, and its zip writer refuses names that are not UTF-8.
"""

import errno
import os
import stat
import struct
import time
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from tarfile import BLOCKSIZE, DIRTYPE, GNU_FORMAT, RECORDSIZE, REGTYPE, SYMTYPE, TarInfo
from typing import Literal, Protocol

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.files.stopping import IsStopped, check
from workspace_runtime.files.temporary import is_temporary
from workspace_runtime.paths import WorkspaceRoot, is_utf8, refusal, reopen, shown

PIECE = 128 * 1024
SMALL = 64 * 1024
MAX_SKIPPED = 1024 * 1024  # of the list of what was left out
MAX_AGAIN = 16  # looks at a name that is another kind of thing each time
LEVEL = 1  # the disk and the network wait for the compressor; higher levels cost much more time than they save bytes

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Where there is no O_PATH, the look before has shown a regular file.
_HOLD = (getattr(os, "O_PATH", 0) or os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) | os.O_NOFOLLOW | os.O_CLOEXEC


def pack(
    root: WorkspaceRoot, path: bytes, kind: Literal["zip", "tar.gz"], *, stopped: IsStopped, skip: bool = False
) -> Generator[bytes, None, None]:
    """The bytes of an archive of the folder at `path` (a path from the root; empty for the root), in pieces of 64 to 256 KiB.

    Blocks; may be driven from changing threads, one at a time, and must be run to the end or closed. Entries are named
    `<folder's name>/...`, sorted, with modes and times; `.git` and files that are being written are left out, and so is what
    disappears before it is reached. `skip`: what may not be read is left out too, and named in a text file beside the folder. Nothing is opened before the first piece is asked for.

    Raises at any piece: `WorkspaceError` for what can't be read or became shorter meanwhile (`not_a_directory` and
    `file_not_found` only with the first), and `Stopped` once `stopped()` is true.
    """
    writer: _Writer = _Zip() if kind == "zip" else _TarGz()
    buffer = bytearray()
    for data in _archive(root, path, writer, stopped, skip=skip):
        buffer += data
        if len(buffer) >= SMALL:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)


def _archive(root: WorkspaceRoot, path: bytes, writer: "_Writer", stopped: IsStopped, *, skip: bool) -> Iterator[bytes]:
    try:
        for entry in _entries(root, path, _Skipped() if skip else None):
            yield from writer.header(entry)
            for data in entry.data():
                check(stopped)
                yield from writer.data(data)
            yield from writer.footer(entry)
            check(stopped)
    except OSError as fault:
        raise refusal(fault, path) from fault
    yield from writer.end()


# --- what is there ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Entry:
    """One thing to pack. `name` is its path in the archive; `file` a descriptor to read from, for a regular file."""

    name: bytes
    status: os.stat_result
    target: bytes = b""
    file: int = -1

    @property
    def size(self) -> int:
        """Of its content: what the file had when it was opened, whatever it has later."""
        return self.status.st_size if self.file >= 0 else 0

    def data(self) -> Iterator[bytes]:
        """Exactly `size` bytes. Raises `WorkspaceError` where there are fewer now."""
        left = self.size
        while left:
            try:
                data = os.read(self.file, min(left, PIECE))
            except OSError as fault:
                raise refusal(fault, self.name) from fault
            if not data:
                raise WorkspaceError("file_busy", f"{shown(self.name)!r} became shorter while it was packed.")
            left -= len(data)
            yield data


@dataclass(slots=True)
class _Level:
    """A folder on the way down: its identity, its path in the archive, and the names still to do, the next one last."""

    identity: tuple[int, int]
    name: bytes
    names: list[str]


class _Skipped:
    """What was left out since it may not be read: one line each, in a file in memory."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._bytes = self._more = 0

    def add(self, name: bytes) -> None:
        """Note a path."""
        self._bytes += len(name)
        if self._bytes > MAX_SKIPPED:
            self._more += 1
        else:
            self._lines.append(name)

    def entry(self, top: bytes) -> _Entry | None:
        """The list, beside the archive's top folder; None where nothing was left out. Its file is to be closed."""
        if not self._lines and not self._more:
            return None
        more = [b"and %d more" % self._more] if self._more else []
        file = os.memfd_create("left-out", os.MFD_CLOEXEC)
        os.fchmod(file, 0o644)
        with open(file, "r+b", closefd=False) as text:
            text.write(b"Left out, since it may not be read:\n" + b"\n".join([*self._lines, *more]) + b"\n")
        os.lseek(file, 0, os.SEEK_SET)
        return _Entry(top + b".left-out.txt", os.fstat(file), file=file)


def _entries(root: WorkspaceRoot, path: bytes, skipped: _Skipped | None) -> Iterator[_Entry]:
    """The folder and all below it, parents first. An entry's file is open until the next one is asked for.

    Only one folder is open at a time, so that the depth of a tree is not bounded by the number of descriptors. The way back up
    is `..`, and must lead to the very folder that the way down came from.
    """
    name = path.rpartition(b"/")[2] or os.fsencode(root.path.name) or b"workspace"
    here = root.open_folder(path)
    levels: list[_Level] = []
    again = 0
    top = name
    try:
        yield _enter(levels, here, name)
        while levels:
            level = levels[-1]
            if not level.names:
                levels.pop()
                if levels:
                    here = _swap(here, _open_above(here, levels[-1]))
                continue
            each = level.names.pop()
            try:
                status = os.stat(each, dir_fd=here, follow_symlinks=False)
                name = level.name + b"/" + os.fsencode(each)
                if stat.S_ISDIR(status.st_mode):
                    here = _swap(here, os.open(each, _FOLDER, dir_fd=here))
                    yield _enter(levels, here, name)
                    continue
                entry = _entry(each, here, name, status)
            except FileNotFoundError:
                continue  # it is as if it had never been there
            except (OSError, WorkspaceError) as fault:
                if _is_other_kind(fault) and again < MAX_AGAIN:
                    again += 1
                    level.names.append(each)  # between two looks at it: it is what it is now
                    continue
                if skipped is None or not isinstance(fault, PermissionError):
                    raise _told(fault, name) from fault
                skipped.add(name)
                continue
            again = 0
            if entry is not None:
                yield from _open_entry(entry)
        if skipped is not None and (entry := skipped.entry(top)) is not None:
            yield from _open_entry(entry)
    finally:
        os.close(here)


def _open_entry(entry: _Entry) -> Iterator[_Entry]:
    try:
        yield entry
    finally:
        if entry.file >= 0:
            os.close(entry.file)


def _is_other_kind(fault: OSError | WorkspaceError) -> bool:
    """Whether something was not of the kind any more that it was at the look before."""
    if isinstance(fault, OSError):
        return fault.errno in (errno.ENOTDIR, errno.ELOOP, errno.EINVAL)
    return fault.code in ("is_directory", "not_a_file")


def _told(fault: OSError | WorkspaceError, name: bytes) -> WorkspaceError:
    if isinstance(fault, WorkspaceError):
        return fault
    error = refusal(fault, name)
    if isinstance(fault, PermissionError):
        detail = error.detail + " Add skip=true to leave out what may not be read."
        return WorkspaceError(error.code, detail, **error.data)
    return error


def _enter(levels: list[_Level], folder: int, name: bytes) -> _Entry:
    """Note that an open folder is the one we are in now."""
    status = os.fstat(folder)
    names = [each for each in os.listdir(folder) if each != ".git" and not is_temporary(each)]
    names.sort(reverse=True)
    levels.append(_Level((status.st_dev, status.st_ino), name, names))
    return _Entry(name + b"/", status)


def _entry(name: str, folder: int, path: bytes, status: os.stat_result) -> _Entry | None:
    """A link or a file; None for what is left out."""
    if stat.S_ISLNK(status.st_mode):
        return _Entry(path, status, target=os.fsencode(os.readlink(name, dir_fd=folder)))
    if not stat.S_ISREG(status.st_mode):
        return None
    held = os.open(name, _HOLD, dir_fd=folder)
    try:
        file, status = reopen(held, path)
    finally:
        os.close(held)
    return _Entry(path, status, file=file)


def _open_above(folder: int, above: _Level) -> int:
    found = os.open("..", _FOLDER, dir_fd=folder)
    status = os.fstat(found)
    if (status.st_dev, status.st_ino) != above.identity:
        os.close(found)
        raise WorkspaceError("file_busy", f"A folder in {shown(above.name)!r} was moved while it was packed.")
    return found


def _swap(old: int, new: int) -> int:
    os.close(old)
    return new


# --- formats ----------------------------------------------------------------------------------------------------------


class _Writer(Protocol):
    """A format. For each entry `header`, then `data` for each piece of a file, then `footer`; at last `end`."""

    def header(self, entry: _Entry) -> Iterator[bytes]: ...

    def data(self, data: bytes) -> Iterator[bytes]: ...

    def footer(self, entry: _Entry) -> Iterator[bytes]: ...

    def end(self) -> Iterator[bytes]: ...


@dataclass(slots=True)
class _TarGz:
    """GNU's tar format: its long names are plain bytes, which every `tar` gives back exactly, UTF-8 or not."""

    _written: int = 0
    _gzip: "zlib._Compress" = field(default_factory=lambda: zlib.compressobj(LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS))

    def header(self, entry: _Entry) -> Iterator[bytes]:
        """The entry's block, with more before it where a name is long."""
        info = TarInfo(_escaped(entry.name))
        info.mode = stat.S_IMODE(entry.status.st_mode)
        info.mtime = int(entry.status.st_mtime)
        info.size = entry.size
        info.linkname = _escaped(entry.target)
        info.type = REGTYPE if entry.file >= 0 else SYMTYPE if entry.target else DIRTYPE
        yield from self.data(info.tobuf(GNU_FORMAT, "utf-8", "surrogateescape"))

    def data(self, data: bytes) -> Iterator[bytes]:
        """Compressed bytes, as far as there are some yet."""
        self._written += len(data)
        yield self._gzip.compress(data)

    def footer(self, entry: _Entry) -> Iterator[bytes]:
        """Zeros up to the next block."""
        yield from self.data(bytes(-entry.size % BLOCKSIZE))

    def end(self) -> Iterator[bytes]:
        """Two blocks of zeros, and more up to a whole record."""
        yield from self.data(bytes(2 * BLOCKSIZE))
        yield from self.data(bytes(-self._written % RECORDSIZE))
        yield self._gzip.flush()


def _escaped(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


_U32 = 0xFFFF_FFFF
_UTF8_NAME = 0x0800
_SIZES_FOLLOW = 0x0008
_MADE_BY_UNIX = 3 << 8
_MODERN = 45  # the version that knows the 64 bit fields


@dataclass(slots=True)
class _Zip:
    """The zip format as PKWARE's APPNOTE describes it, without seeking back: a file's sizes follow its data.

    The central directory is kept compressed until the end.
    """

    _written: int = 0
    _entries: int = 0
    _directory_size: int = 0
    _directory: bytearray = field(default_factory=bytearray)
    _pack: "zlib._Compress" = field(default_factory=lambda: zlib.compressobj(LEVEL))
    _deflate: "zlib._Compress" = field(default_factory=lambda: _deflater())
    _crc: int = 0
    _start: int = 0
    _data_start: int = 0

    def header(self, entry: _Entry) -> Iterator[bytes]:
        """The local header; a link's target is its content."""
        if len(entry.name) > 0xFFFF:
            raise WorkspaceError("path_invalid", f"{shown(entry.name[:80])!r}...: The path is too long for a zip file.")
        self._start = self._written
        self._crc = zlib.crc32(entry.target)
        streamed = entry.file >= 0
        large = struct.pack("<HHQQ", 1, 16, 0, 0) if _is_large(entry) else b""
        extra = large + _time_extra(entry)
        size = 0 if streamed else len(entry.target)
        fields = (*_common(entry), 0 if streamed else self._crc, _U32 if large else size, _U32 if large else size)
        yield self._out(struct.pack("<4s5H3L2H", b"PK\3\4", *fields, len(entry.name), len(extra)) + entry.name + extra)
        self._data_start = self._written
        if streamed:
            self._deflate = _deflater()
        else:
            yield self._out(entry.target)

    def data(self, data: bytes) -> Iterator[bytes]:
        """Compressed bytes, as far as there are some yet."""
        self._crc = zlib.crc32(data, self._crc)
        yield self._out(self._deflate.compress(data))

    def footer(self, entry: _Entry) -> Iterator[bytes]:
        """The sizes of a file; and the entry is noted for the directory."""
        if entry.file >= 0:
            yield self._out(self._deflate.flush())
        packed = self._written - self._data_start
        size = entry.size if entry.file >= 0 else packed
        if entry.file >= 0:
            shape = "<4sLQQ" if _is_large(entry) else "<4sLLL"
            yield self._out(struct.pack(shape, b"PK\7\x08", self._crc, packed, size))
        self._note(entry, packed, size)

    def _note(self, entry: _Entry, packed: int, size: int) -> None:
        # a field that does not fit is all ones, and stands in the extra field instead
        large = b"".join(struct.pack("<Q", value) for value in (size, packed, self._start) if value >= _U32)
        extra = (struct.pack("<HH", 1, len(large)) + large if large else b"") + _time_extra(entry)
        attributes = entry.status.st_mode << 16 | (0x10 if stat.S_ISDIR(entry.status.st_mode) else 0)
        record = struct.pack(
            "<4s6H3L5H2L",
            b"PK\1\2", _MADE_BY_UNIX | _MODERN, *_common(entry), self._crc, min(packed, _U32), min(size, _U32),
            len(entry.name), len(extra), 0, 0, 0, attributes, min(self._start, _U32),
        )  # fmt: skip
        record += entry.name + extra
        self._entries += 1
        self._directory_size += len(record)
        self._directory += self._pack.compress(record)

    def end(self) -> Iterator[bytes]:
        """The central directory and where it is."""
        start = self._written
        self._directory += self._pack.flush()
        unpack = zlib.decompressobj()
        data = bytes(self._directory)
        while not unpack.eof:
            yield self._out(unpack.decompress(data, PIECE))
            data = unpack.unconsumed_tail
        count, size = self._entries, self._directory_size
        if count >= 0xFFFF or size >= _U32 or start >= _U32:
            at = self._written
            fields = (44, _MADE_BY_UNIX | _MODERN, _MODERN, 0, 0, count, count, size, start)
            yield self._out(struct.pack("<4sQ2H2L4Q", b"PK\6\6", *fields))
            yield self._out(struct.pack("<4sLQL", b"PK\6\7", 0, at, 1))
        few = min(count, 0xFFFF)
        yield self._out(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, few, few, min(size, _U32), min(start, _U32), 0))

    def _out(self, data: bytes) -> bytes:
        self._written += len(data)
        return data


def _deflater() -> "zlib._Compress":
    return zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)


def _is_large(entry: _Entry) -> bool:
    """Whether the sizes may need 64 bits: data that can't be compressed gets a little longer."""
    return entry.size > _U32 - _U32 // 64


def _common(entry: _Entry) -> tuple[int, int, int, int, int]:
    """What both headers begin with: version, flags, method, time and date (in UTC; the extra field is exact)."""
    name, streamed = entry.name, entry.file >= 0
    flags = (_SIZES_FOLLOW if streamed else 0) | (_UTF8_NAME if not name.isascii() and is_utf8(name) else 0)
    # in 1980 to 2107, the years that the format knows
    moment = time.gmtime(min(max(entry.status.st_mtime, 315532800), 4354819198))
    clock = moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2
    day = (moment.tm_year - 1980) << 9 | moment.tm_mon << 5 | moment.tm_mday
    return _MODERN if _is_large(entry) else 20, flags, zlib.DEFLATED if streamed else 0, clock, day


def _time_extra(entry: _Entry) -> bytes:
    """Info-ZIP's extended timestamp: the seconds since 1970, where they fit."""
    seconds = int(entry.status.st_mtime)
    return struct.pack("<HHBl", 0x5455, 5, 1, seconds) if -(2**31) <= seconds < 2**31 else b""
