"""Where a list goes on: the cursors of the history and of the refs.

A cursor is opaque text that holds all that the next page needs, so that the server keeps nothing, and what is added meanwhile shifts
no page. It is bound to the question that it answers: another question with it is refused.

The place in a history is its *frontier*: the commits that git's walk has come upon but not shown (git-log(1): the newest by commit
date is shown next). A walk from there goes on as the whole one would, at no cost for what lies before. Only what was shown can come
again: in order of date this needs the date of the last commit shown, so those with that date are noted too. Where dates are out of
order, or there is too much to note, the place is the count of what was shown, from where the history began: slower, and exact.
"""

import base64
import dataclasses
import hashlib
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from workspace_runtime.errors import WorkspaceError

from .objects import DATE, OID, PARENTS, Fields

T = TypeVar("T")

# Of what people wrote, on one page: it ends before it has more, and the next one goes on.
MAX_BYTES = 4 * 1024 * 1024
MAX_FRONTIER = 200
MAX_SAME = 50
# Dates that git's walk and its text agree on: beyond, its commit-graph cuts them.
_DATE = re.compile(rb"[0-9]{1,10}")
_NO_DATE = 2**33
_HEAD = struct.Struct(">6sIQBHHHH")
_BINDING = 6


@dataclass(frozen=True, slots=True)
class Place:
    """How far a history was shown. Ids are full; without a frontier the count alone says it."""

    binding: bytes
    starts: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    count: int = 0
    frontier: tuple[str, ...] = ()
    date: int = _NO_DATE  # of the last commit shown
    same: tuple[str, ...] = ()  # those shown with that date


def binding(*question: str | bytes | None) -> bytes:
    """What a cursor is bound to: a digest of the question's parts."""
    digest = hashlib.blake2b(digest_size=_BINDING)
    for part in question:
        raw = b"" if part is None else part.encode(errors="surrogatepass") if isinstance(part, str) else part
        digest.update(b"%d:%d:%s" % (part is None, len(raw), raw))
    return digest.digest()


def unseen(place: Place, found: Sequence[Fields], wanted: int) -> list[Fields] | None:
    """Of what a walk from the frontier found, the first `wanted` commits that were not shown; None where dates are out of order."""
    last = place.date
    fresh: list[Fields] = []
    for fields in found:
        date = _date(fields)
        if date > last:
            return None
        last = date
        if fields[OID].decode() not in place.same:
            fresh.append(fields)
            if len(fresh) == wanted:
                break
    return fresh


def after(place: Place, page: Sequence[Fields]) -> Place:
    """The place when these commits were shown, too. Without a frontier it stays without one."""
    count = place.count + len(page)
    if not place.frontier or not page:
        return dataclasses.replace(place, count=count)
    shown = {fields[OID].decode() for fields in page}
    # in the order in which git's walk came upon them: it shows the first of those with one date first
    waiting = dict.fromkeys(oid for oid in place.frontier if oid not in shown)
    for fields in page:
        waiting.update(dict.fromkeys(oid for oid in fields[PARENTS].decode().split() if oid not in shown))
    date = _date(page[-1])
    same = tuple(fields[OID].decode() for fields in page if _date(fields) == date)
    if date == place.date:
        same = (*place.same, *same)
    if len(waiting) > MAX_FRONTIER or len(same) > MAX_SAME:
        return Place(place.binding, place.starts, place.excluded, count)
    return Place(place.binding, place.starts, place.excluded, count, tuple(waiting), date, same)


def by_count(place: Place) -> Place:
    """The same place, told by the count alone."""
    return Place(place.binding, place.starts, place.excluded, place.count)


def _date(fields: Fields) -> int:
    """The date that git's walk goes by, in seconds; later than any where it can't be told."""
    date = int(fields[DATE]) if _DATE.fullmatch(fields[DATE]) else _NO_DATE
    return date if date < _NO_DATE else _NO_DATE + 1


# --- as text ----------------------------------------------------------------------------------------------------------------


def encode_place(place: Place) -> str:
    """The cursor of a place: a head of fixed size (`_HEAD`), then the ids as bytes."""
    lists = (place.starts, place.excluded, place.frontier, place.same)
    size = len(place.starts[0]) // 2
    head = _HEAD.pack(place.binding, place.count, place.date, size, *map(len, lists))
    return _encode(head + bytes.fromhex("".join(oid for ids in lists for oid in ids)))


_MOST = 2**40  # commits


def decode_place(cursor: str, bound_to: bytes) -> Place:
    """The place of a cursor. Raises `cursor_invalid`, also where it belongs to another question."""
    raw = _decode(cursor)
    try:
        bound, count, date, size, *lengths = _HEAD.unpack_from(raw)
    except struct.error:
        raise invalid() from None
    if (
        bound != bound_to
        or count > _MOST
        or size not in (20, 32)
        or not lengths[0]
        or len(raw) != _HEAD.size + size * sum(lengths)
    ):
        raise invalid()
    ids = iter([raw[at : at + size].hex() for at in range(_HEAD.size, len(raw), size)])
    starts, excluded, frontier, same = (tuple(next(ids) for _ in range(length)) for length in lengths)
    return Place(bound, starts, excluded, count, frontier, date, same)


def encode_name(bound_to: bytes, name: bytes, figure: int = 0) -> str:
    """The cursor of a list that is sorted by a figure and a name: those of the last item shown."""
    return _encode(bound_to + struct.pack(">q", figure) + name)


def decode_name(cursor: str, bound_to: bytes) -> tuple[int, bytes]:
    """The figure and the name of a cursor. Raises `cursor_invalid`."""
    raw = _decode(cursor)
    if len(raw) <= _BINDING + 8 or raw[:_BINDING] != bound_to:
        raise invalid()
    return struct.unpack_from(">q", raw, _BINDING)[0], raw[_BINDING + 8 :]


def page(
    items: Sequence[T],
    key: Callable[[T], tuple[int, bytes]],
    bound: bytes,
    limit: int,
    cursor: str | None,
    weigh: Callable[[T], int],
) -> tuple[list[T], str | None]:
    """The next of items that are sorted by their keys, a figure and a name that no other has, and the cursor of those after them.

    `weigh` says how many bytes of text an item holds, about: see `fitting`.
    """
    if cursor is not None:
        last = decode_name(cursor, bound)
        items = [item for item in items if key(item) > last]
    found = fitting(items[:limit], weigh)
    if len(items) <= len(found):
        return found, None
    figure, name = key(found[-1])
    return found, encode_name(bound, name, figure)


def fitting(items: Iterable[T], weigh: Callable[[T], int]) -> list[T]:
    """The first of these items that a page has room for: up to `MAX_BYTES` of their texts, and at least one."""
    found: list[T] = []
    left = MAX_BYTES
    for item in items:
        left -= weigh(item)
        if found and left < 0:
            break
        found.append(item)
    return found


def invalid() -> WorkspaceError:
    """What a cursor that is none of ours, or none any more, is answered with."""
    return WorkspaceError("cursor_invalid", "The cursor is not one that this list gave, or what it names is gone.")


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(cursor: str) -> bytes:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise invalid() from None
