"""The folders that git keeps in mind in an index: where its untracked cache goes without a look at what has become of them.

git takes a folder with a `.git` of its own for another repository, but only when it meets the folder anew: once it has a folder in
its cache it does not ask again. Whoever relies on the cache must, so here is where it goes. Formats: gitformat-index(5), "Untracked
cache" and "End of Index Entry", which is there where `index.threads` is set; varints as in git's varint.c.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

_STAT_BYTES = 36
_HASHES = (20, 32)


class UnreadableError(Exception):
    """The index is not as its format says."""


def folders(index: Path) -> list[bytes]:
    """The folders in the untracked cache of an index file, relative to the top and without the top itself; none where it has no cache.

    Blocks. Raises `UnreadableError`, also where the end of the entries is not told.
    """
    try:
        with open(index, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for hash_bytes in _HASHES:
                found = _extensions_of(data, hash_bytes)
                if found is not None:
                    cache = found.get(b"UNTR")
                    return _read(cache, hash_bytes) if cache is not None else []
            if data.find(b"UNTR") < 0:
                return []
    except FileNotFoundError:
        return []
    except (OSError, IndexError, ValueError, struct.error):
        pass
    raise UnreadableError


def _extensions_of(index: mmap.mmap, hash_bytes: int) -> dict[bytes, bytes] | None:
    """The extensions by their signatures; None where the end of the entries is not told with hashes of this length."""
    end = len(index) - hash_bytes
    last = end - (8 + 4 + hash_bytes)
    if last < 12 or index[last : last + 4] != b"EOIE" or struct.unpack_from(">I", index, last + 4)[0] != 4 + hash_bytes:
        return None
    at = struct.unpack_from(">I", index, last + 8)[0]
    found: dict[bytes, bytes] = {}
    while at < end:
        size = struct.unpack_from(">I", index, at + 4)[0]
        found[index[at : at + 4]] = index[at + 8 : at + 8 + size]
        at += 8 + size
    return found


@dataclass(slots=True)
class _Reader:
    data: bytes
    at: int = 0

    def number(self) -> int:
        byte = self.data[self.at]
        self.at += 1
        value = byte & 127
        while byte & 128:
            byte = self.data[self.at]
            self.at += 1
            value = ((value + 1) << 7) + (byte & 127)
        return value

    def text(self) -> bytes:
        end = self.data.index(b"\0", self.at)
        found = self.data[self.at : end]
        self.at = end + 1
        return found


def _read(cache: bytes, hash_bytes: int) -> list[bytes]:
    reader = _Reader(cache)
    environment = reader.number()
    reader.at += environment + 2 * _STAT_BYTES + 4 + 2 * hash_bytes
    reader.text()  # the name of the files with rules
    if not reader.number():
        return []
    found: list[bytes] = []
    # what is above, and how many folders are still to come in it
    above: list[tuple[bytes, int]] = [(b"", 1)]
    while above:
        prefix, left = above.pop()
        if not left:
            continue
        above.append((prefix, left - 1))
        untracked, below = reader.number(), reader.number()
        path = prefix + reader.text()
        for _ in range(untracked):
            reader.text()
        if path:
            found.append(path)
        above.append((path + b"/" if path else b"", below))
    return found
