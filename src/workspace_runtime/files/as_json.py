"""A file's content as the inside of a JSON string, made in pieces: no size of a file takes more than one piece of memory.

JSON writes a control character in six bytes. What would so become more than about twice its size is hardly a text, and is given in
base64, as is what is not UTF-8. Which it is, and how long, is found by going through the file once; a second time makes the pieces.
"""

import base64
import codecs
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import orjson

# Small, so that the thread that makes one soon gives way to the event loop; base64 needs a multiple of three.
PIECE_BYTES = 3 * 64 * 1024
# What escaping may add to a text, besides its own size.
SPARE_BYTES = 64 * 1024


class ShorterError(Exception):
    """The file became shorter while it was read."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a content is given, and how many bytes that takes within the quotes."""

    encoding: Literal["utf-8", "base64"]
    length: int


def form_of(opened: int, size: int) -> Form:
    """Read an open file of `size` bytes. Raises `ShorterError` and `OSError`."""
    length = 0
    try:
        for piece in pieces(opened, size, "utf-8"):
            length += len(piece)
            if length > 2 * size + SPARE_BYTES:
                break
        else:
            return Form("utf-8", length)
    except UnicodeDecodeError:
        pass
    return Form("base64", (size + 2) // 3 * 4)


def pieces(opened: int, size: int, encoding: Literal["utf-8", "base64"]) -> Iterator[bytes]:
    """The content within the quotes. Raises `ShorterError`, `UnicodeDecodeError` and `OSError`."""
    encode: Callable[[bytes], bytes] = base64.b64encode if encoding == "base64" else _Text().encode
    start = 0
    while start < size:
        data = read_all(opened, start, min(PIECE_BYTES, size - start))
        start += len(data)
        yield encode(data)
    if encoding == "utf-8":
        yield encode(b"")


class _Text:
    """Escapes a text that comes in pieces, which may end within a letter; the last piece is empty."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def encode(self, data: bytes) -> bytes:
        return orjson.dumps(self._decoder.decode(data, final=not data))[1:-1]


def read_all(opened: int, start: int, size: int) -> bytes:
    """A part of an open file, all of it. Raises `ShorterError` and `OSError`."""
    data = b""
    while len(data) < size:
        more = os.pread(opened, size - len(data), start + len(data))
        if not more:
            raise ShorterError
        data = data + more if data else more
    return data
