"""The entries of a tar. Of the standard library only the reading of one header block is used: its reader holds all long names in
memory, whatever size they claim, and follows a chain of headers by recursion."""

import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from .compression import Stream
from .work import Member, Work

# One tar header with more about the next entry, and how many of them an entry may have.
MAX_TAR_HEADER = 1024 * 1024
MAX_TAR_HEADERS = 16

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


def is_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def tar_members(stream: Stream, work: Work) -> Iterator[Member]:
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
        yield Member(header.path, kind, bool(info.mode & stat.S_IXUSR), content)
        for _ in content:
            pass  # what was not taken
        stream.read(-size % tarfile.BLOCKSIZE)


class _Counted:
    """An entry's content, which can be left and gone on with."""

    def __init__(self, stream: Stream, size: int, work: Work) -> None:
        self._pieces = stream.pieces(size)
        self._work = work

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self._pieces)
        self._work.count_content(len(piece))
        return piece


def _tar_header(stream: Stream, work: Work) -> _Header | None:
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


def _tar_info(block: bytes, work: Work) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise work.invalid("a header in it is damaged") from None
    if info.size < 0:
        raise work.invalid("an entry's size is negative")
    return info


def _tar_text(stream: Stream, size: int, work: Work) -> bytes:
    """What a header of names says: it is held in memory, so that its size is bounded."""
    if size > MAX_TAR_HEADER:
        raise work.invalid("a header in it is too long")
    work.count_content(size)
    text = stream.read(size)
    stream.read(-size % tarfile.BLOCKSIZE)
    return text


def _pax(text: bytes, work: Work) -> dict[bytes, bytes]:
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
    stream: Stream, block: bytes, info: tarfile.TarInfo, path: bytes | None, pax: dict[bytes, bytes], work: Work
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
