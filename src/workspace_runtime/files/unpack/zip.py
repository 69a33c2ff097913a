"""The entries of a zip file, by its directory. Read record by record: the standard library's reader holds all of it in memory."""

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from workspace_runtime.paths import is_utf8, kind_of, shown

from .compression import PIECE, ZIP_DECOMPRESSORS, decompress_piece, read_exactly
from .work import MAX_PATH, Member, Work

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_U32 = 0xFFFF_FFFF
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_UTF8_NAME = 0x0800
# FAT, HPFS, NTFS (as the format has it, and as Info-ZIP writes it) and VFAT: a backslash can only be a separator
_FROM_DOS = (0, 6, 10, 11, 14)
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


class Zip:
    """A zip file, by its directory (PKWARE's APPNOTE, 4.3.12)."""

    def __init__(self, source: BinaryIO, work: Work) -> None:
        self._source = source
        self._work = work
        self._length = source.seek(0, 2)
        self._range = 0, 0  # of the directory
        self._slashes: bool | None = None

    def members(self) -> Iterator[Member]:
        """The entries, in the directory's order."""
        packed = 0
        for entry in self._entries(*self._directory()):
            # Entries that share bytes are how a small zip unpacks to a huge one without a high ratio anywhere.
            packed += entry.packed
            if packed > self._length:
                raise self._work.invalid("entries in it overlap")
            yield Member(entry.path, entry.kind, entry.executable, self._content(entry))

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
            fields = _END64.unpack(read_exactly(self._source, _END64.size, self._work))
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
        self._range = at, end
        while at < end:
            self._source.seek(at)
            record = _ENTRY.unpack(read_exactly(self._source, _ENTRY.size, self._work))
            if record[0] != b"PK\1\2":
                raise self._work.invalid("its directory is damaged")
            name, extra = (read_exactly(self._source, length, self._work) for length in record[10:12])
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
        if b"\\" in name and not self._has_slashes():
            name = name.replace(b"\\", b"/")
        mode = attributes >> 16
        kind = _zip_kind(name, mode, attributes, method)
        return _ZipEntry(name, kind, bool(mode & stat.S_IXUSR), method, crc, packed, size, offset)

    def _has_slashes(self) -> bool:
        """Whether any name has a slash. Where none has, backslashes are what parts the names, whatever system is said to have made
        it: so older .NET packs (the format knows slashes alone)."""
        if self._slashes is None:
            self._slashes = False
            at, end = self._range
            while at < end and not self._slashes:
                self._source.seek(at)
                record = _ENTRY.unpack(read_exactly(self._source, _ENTRY.size, self._work))
                self._slashes = b"/" in read_exactly(self._source, record[10], self._work)
                at += _ENTRY.size + sum(record[10:13])
        return self._slashes

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
        decompressor = ZIP_DECOMPRESSORS[entry.method]()
        self._seek(entry.offset)
        local = _LOCAL.unpack(read_exactly(self._source, _LOCAL.size, self._work))
        if local[0] != b"PK\3\4":
            raise self._work.invalid("its directory is damaged")
        self._seek(entry.offset + _LOCAL.size + local[9] + local[10])
        left = entry.packed
        while not decompressor.eof and (left or not decompressor.needs_input):
            data = b""
            if decompressor.needs_input:
                data = read_exactly(self._source, min(left, PIECE), self._work)
                left -= len(data)
                self._work.consumed += len(data)
            found = decompress_piece(self._work, decompressor, data)
            if found:
                yield found

    def _seek(self, offset: int) -> None:
        if offset > self._length:
            raise self._work.invalid("it ends too early")
        self._source.seek(offset)


def _zip_name(name: bytes, flags: int, system: int) -> bytes:
    """The path in UTF-8. Without the flag it should be code page 437; but many write UTF-8, or on Unix any bytes, as they are."""
    if not flags & _UTF8_NAME and not is_utf8(name) and system != _FROM_UNIX:
        name = name.decode("cp437").encode()
    return name.replace(b"\\", b"/") if system in _FROM_DOS else name


def _zip_kind(name: bytes, mode: int, attributes: int, method: int) -> str:
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return kind_of(mode)
    if name.endswith(b"/") or stat.S_ISDIR(mode) or attributes & 0x10:
        return "folder"
    return "file" if method in ZIP_DECOMPRESSORS else "compressed in a way that is not known here"
