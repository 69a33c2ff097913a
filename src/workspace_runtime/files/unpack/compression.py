"""What is compressed, piece by piece and counted, so that no bomb fills memory or disk."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from .work import Work

PIECE = 64 * 1024
# How many compressed streams in a row, and one more for each 4 KiB: each costs time.
MAX_STREAMS = 1000
# xz from -0 to -7; what -8 and -9 make wants more.
MAX_XZ_MEMORY = 24 * 1024 * 1024

MAGIC: dict[str, tuple[bytes, ...]] = {
    "zip": (b"PK\3\4", b"PK\5\6"),
    "gzip": (b"\x1f\x8b\x08",),
    "bzip2": tuple(b"BZh%d" % level for level in range(1, 10)),
    "xz": (b"\xfd7zXZ\0",),
}


class Decompressor(Protocol):
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


DECOMPRESSORS: dict[str, Callable[[], Decompressor]] = {
    "tar": _Plain,
    "gzip": lambda: _Zlib(16 + zlib.MAX_WBITS),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY),
}
ERRORS = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)
ZIP_DECOMPRESSORS: dict[int, Callable[[], Decompressor]] = {
    0: _Plain,
    8: lambda: _Zlib(-zlib.MAX_WBITS),
    12: bz2.BZ2Decompressor,
}


def decompress_piece(work: Work, decompressor: Decompressor, data: bytes) -> bytes:
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


def read_exactly(source: BinaryIO, count: int, work: Work) -> bytes:
    """Exactly so many bytes of the archive. Raises where it ends before."""
    data = source.read(count)
    if len(data) < count:
        raise work.invalid("it ends too early")
    return data


class Stream:
    """The bytes of a tar, decompressed: a few streams in a row count as one, as `gzip` has it."""

    def __init__(self, source: BinaryIO, kind: str, work: Work) -> None:
        self._source = source
        self._kind = kind
        self._work = work
        self._decompressor = DECOMPRESSORS[kind]()
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
            return decompress_piece(self._work, decompressor, b"")
        data = self._take()
        found = decompress_piece(self._work, decompressor, data)
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
        if not rest.startswith(MAGIC[self._kind]):
            self._ended = True
            return b""
        self._decompressor = DECOMPRESSORS[self._kind]()
        return decompress_piece(self._work, self._decompressor, rest)

    def _take(self) -> bytes:
        data = self._source.read(PIECE)
        self._work.consumed += len(data)
        return data
