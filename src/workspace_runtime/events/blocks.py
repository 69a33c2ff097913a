"""Blocks that are still being written, and the deltas that show them.

A delta says where its text stands in the block, counted as a browser counts: in UTF-16 code units. Nobody gets half a character:
text is only ever cut between code points.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from .model import encode

# Characters in one delta at most: each takes 6 bytes of JSON at worst, and the envelope fits in besides (`MAX_EVENT_BYTES`).
DELTA_CHARACTERS = 64 * 1024
# So many small pieces are joined into one: a piece of one character costs far more than its character.
_PIECES = 1024


def utf16_length(text: str) -> int:
    """The length of a text in UTF-16 code units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


@dataclass(slots=True)
class OpenBlock:
    """A block being written: the type and envelope of its deltas, its text so far, and how many characters of it were shown.

    `units` is the length of the text in UTF-16 code units.
    """

    type: str
    turn_id: str | None
    parent_tool_use_id: str | None
    units: int = 0
    shown: int = 0
    _joined: list[str] = field(default_factory=list)
    _pieces: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """More text."""
        self._pieces.append(text)
        self.units += utf16_length(text)
        if len(self._pieces) >= _PIECES:
            self._joined.append("".join(self._pieces))
            self._pieces.clear()

    def content(self) -> str:
        """All of it so far, joined."""
        if self._pieces or len(self._joined) > 1:
            self._joined = ["".join((*self._joined, *self._pieces))]
            self._pieces.clear()
        return self._joined[0] if self._joined else ""


def cut(text: str) -> Iterator[str]:
    """The text in pieces that fit in a delta."""
    for start in range(0, len(text), DELTA_CHARACTERS):
        yield text[start : start + DELTA_CHARACTERS]


def deltas(session_id: str, block_id: str, block: OpenBlock, upto: int) -> Iterator[bytes]:
    """The JSON of the deltas that tell the first `upto` characters of a block, made one at a time.

    The block may grow meanwhile: nobody who reads slowly holds a text of its own.
    """
    offset = 0
    for start in range(0, upto, DELTA_CHARACTERS):
        piece = block.content()[start : min(start + DELTA_CHARACTERS, upto)]
        yield delta_json(session_id, block_id, block, offset, piece)
        offset += utf16_length(piece)


def delta_json(session_id: str, block_id: str, block: OpenBlock, offset: int, content: str) -> bytes:
    """The JSON of a live delta: `content` stands at `offset` of the block to come with this `id`."""
    body: dict[str, object] = {"id": block_id, "type": block.type, "session_id": session_id, "turn_id": block.turn_id}
    if block.parent_tool_use_id is not None:
        body["parent_tool_use_id"] = block.parent_tool_use_id
    body["offset"] = offset
    body["content"] = content
    return encode(body)
