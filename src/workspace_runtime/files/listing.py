"""What a folder holds, a page at a time.

A page of a large folder costs one pass over the names and a look at the entries of the page alone: what is held is as long as
the page. The cursor is the place of the page's last entry in the order, so that a page goes on rightly although entries came and
went meanwhile.
"""

import base64
import contextlib
import functools
import heapq
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import MAX_PATH, WorkspaceRoot, as_text, path_bytes, refusal, shown

from .ignored import Rules, root_rules
from .temporary import is_temporary
from .times import timestamp

Order = Literal["name", "-name", "size", "-size", "modified_at", "-modified_at"]
# Deeper than any path that a client could name.
MAX_DEPTH = 2048
# A page of very long paths or targets ends before its limit, so that it stays below this.
MAX_PAGE_BYTES = 16 * 1024 * 1024
# How many bytes an item may take for each of its path and its target, and what it takes beside: JSON escapes a byte by six.
_PATH_WEIGHT, _TARGET_WEIGHT, _ITEM_WEIGHT = 13, 6, 2000


@dataclass(frozen=True, slots=True)
class Listing:
    """What a client asks for. `path` is `b""` for the root; `depth` counts levels below it, 1 is the folder alone."""

    path: bytes = b""
    depth: int = 1
    hidden: bool = True
    ignored: bool = True
    order: Order = "name"
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Entries as JSON objects, and the cursor of the next page, None at the end."""

    items: list[dict[str, Any]]
    next_cursor: str | None


def list_folder(root: WorkspaceRoot, wanted: Listing) -> Page:
    """One page. Blocking. Raises `WorkspaceError`: `file_not_found`, `not_a_directory`, `cursor_invalid`, …"""
    try:
        folder = root.open_folder(wanted.path)
    except OSError as fault:
        raise refusal(fault, wanted.path) from None
    try:
        try:
            rules = None if wanted.ignored else _rules_of(root, wanted.path)
        except OSError as fault:
            raise refusal(fault, wanted.path) from None
        if wanted.depth == 1:
            return _flat(folder, rules, wanted)
        return _tree(root, folder, rules, wanted)
    finally:
        os.close(folder)


def entry(prefix: bytes, name: str, status: os.stat_result, folder: int) -> dict[str, Any]:
    """An entry as the API tells it. `name` as `os.scandir` gives it, in the open `folder`; its path is `prefix` and it."""
    kind, mode = _kind_and_mode(status.st_mode)
    nanoseconds, size = status.st_mtime_ns, status.st_size
    found: dict[str, Any] = {
        "name": name,
        "path": "",
        "type": kind,
        "size": size,
        "modified_at": timestamp(nanoseconds),
        "mode": mode,
        "etag": f'"{nanoseconds:x}-{size:x}-{status.st_ino:x}-{status.st_ctime_ns:x}"'
        if kind == "file"
        else None,  # as etag_of, without the call
        "target": None,
    }
    if name.isascii() and prefix.isascii():
        found["path"] = prefix.decode() + name
    else:
        path = prefix + os.fsencode(name)
        found["path"] = shown(path)
        if encoded := path_bytes(path):
            found |= {"name": as_text(name), "path_bytes": encoded}
    if kind == "symlink":
        with contextlib.suppress(OSError):  # gone meanwhile
            found["target"] = as_text(os.readlink(name, dir_fd=folder))
    return found


@functools.lru_cache(maxsize=1024)
def _kind_and_mode(mode: int) -> tuple[str, str]:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
    return kinds.get(stat.S_IFMT(mode), "other"), f"{stat.S_IMODE(mode):04o}"


def _rules_of(root: WorkspaceRoot, path: bytes) -> Rules:
    """The rules that hold in a folder: those of the root and of the folders on the way."""
    rules = root_rules(root)
    above = b""
    for part in path.split(b"/") if path else ():
        above = above + b"/" + part if above else part
        folder = root.open_folder(above)
        try:
            rules = rules.below(os.fsdecode(part), folder)
        finally:
            os.close(folder)
    return rules


def _names(folder: int, rules: Rules | None, *, hidden: bool) -> Iterator[os.DirEntry[str]]:
    """The entries that are to be listed. `.git` never is, nor what is being written."""
    with os.scandir(folder) as found:
        for item in found:
            if item.name[0] == "." and (not hidden or item.name == ".git" or is_temporary(item.name)):
                continue
            if rules is None or not rules.ignores(item.name, is_dir=item.is_dir(follow_symlinks=False)):
                yield item


# --- one folder -----------------------------------------------------------------------------------------------------------

# where an entry stands in the order: directories first, then the figure, then the name
_Key = tuple[bool, int, str]
_Row = tuple[bool, int, str, os.DirEntry[str]]


def _flat(folder: int, rules: Rules | None, wanted: Listing) -> Page:
    after = _flat_cursor(wanted)
    rows = _rows(folder, rules, wanted)
    if wanted.order.startswith("-"):
        if after is not None:
            rows = (row for row in rows if _is_before(row, after))
        # directories come first this way, too
        first = heapq.nlargest(wanted.limit + 1, rows, key=lambda row: (not row[0], *row[1:3]))
    else:
        if after is not None:
            rows = (row for row in rows if row[:3] > after)
        first = heapq.nsmallest(wanted.limit + 1, rows)
    prefix = wanted.path + b"/" if wanted.path else b""
    items: list[dict[str, Any]] = []
    # a half for names and the path above all of them, a half for the targets
    limit = min(wanted.limit, max(1, MAX_PAGE_BYTES // 2 // (_PATH_WEIGHT * len(prefix) + 3 * _ITEM_WEIGHT)))
    room = MAX_PAGE_BYTES // 2
    for count, row in enumerate(first[:limit], 1):
        try:
            status = row[3].stat(follow_symlinks=False)
        except OSError:
            continue  # gone meanwhile
        item = entry(prefix, row[2], status, folder)
        items.append(item)
        if item["target"]:
            room -= _TARGET_WEIGHT * len(item["target"])
            if room < 0:
                limit = count
                break
    if len(first) <= limit:
        return Page(items, None)
    below, figure, name, _ = first[limit - 1]
    return Page(items, _encode_cursor([wanted.order, below, figure, _pack(name)]))


def _rows(folder: int, rules: Rules | None, wanted: Listing) -> Iterator[_Row]:
    names = _names(folder, rules, hidden=wanted.hidden)
    order = wanted.order.removeprefix("-")
    if order == "name":
        return ((not item.is_dir(follow_symlinks=False), 0, item.name, item) for item in names)
    return _rows_by_figure(names, order)


def _rows_by_figure(names: Iterable[os.DirEntry[str]], order: str) -> Iterator[_Row]:
    for item in names:
        try:
            status = item.stat(follow_symlinks=False)
        except OSError:
            continue  # gone meanwhile
        figure = status.st_size if order == "size" else status.st_mtime_ns
        yield not item.is_dir(follow_symlinks=False), figure, item.name, item


def _is_before(row: _Row, last: _Key) -> bool:
    """Whether a row comes after the last one in an order that goes down."""
    return row[1:3] < last[1:] if row[0] == last[0] else row[0] > last[0]


def _flat_cursor(wanted: Listing) -> _Key | None:
    match _decode_cursor(wanted.cursor):
        case None:
            return None
        case [str(order), bool(below), int(figure), str(name)] if order == wanted.order:
            try:
                return below, figure, _unpack(name)
            except ValueError:
                raise _bad_cursor() from None
        case _:
            raise _bad_cursor()


# --- a tree -----------------------------------------------------------------------------------------------------------------

# where an entry stands in a tree: for each name on the way whether it is no directory, and the name
_Spot = tuple[tuple[bool, str], ...]


def _tree(root: WorkspaceRoot, folder: int, rules: Rules | None, wanted: Listing) -> Page:
    """A folder's entries, each directory followed by what is in it. Only what a page may need of a folder is held."""
    if wanted.order != "name":
        raise WorkspaceError("validation_failed", "sort: a recursive list is sorted by name.")
    after = _tree_cursor(wanted)
    items: list[dict[str, Any]] = []
    last: _Spot = ()
    room = MAX_PAGE_BYTES
    todo: list[tuple[_Spot, Rules | None]] = _below(folder, (), rules, after, wanted)
    while todo:
        spot, inside = todo.pop()
        path = b"/".join((*filter(None, (wanted.path,)), *(os.fsencode(name) for _, name in spot)))
        if len(path) > MAX_PATH:
            continue  # nobody could name it
        if spot > after:
            if len(items) == wanted.limit or room < 0:
                # all names on the way but the last are directories'
                return Page(
                    items, _encode_cursor([wanted.order, last[-1][0], _pack("/".join(name for _, name in last))])
                )
            try:
                with root.place(path) as place:
                    status = os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
                    above = path[: len(path) - len(place.name)]
                    item = entry(above, spot[-1][1], status, place.folder)
                    items.append(item)
                    room -= _PATH_WEIGHT * len(path) + _TARGET_WEIGHT * len(item["target"] or "") + _ITEM_WEIGHT
            except (OSError, WorkspaceError):
                continue  # gone meanwhile
            last = spot
        if spot[-1][0] or len(spot) >= min(wanted.depth, MAX_DEPTH):
            continue
        try:
            opened = root.open_folder(path)
        except (OSError, WorkspaceError):
            continue  # gone, or not ours to read
        try:
            todo += _below(opened, spot, inside.below(spot[-1][1], opened) if inside else None, after, wanted)
        finally:
            os.close(opened)
    return Page(items, None)


def _below(
    folder: int, above: _Spot, rules: Rules | None, after: _Spot, wanted: Listing
) -> list[tuple[_Spot, Rules | None]]:
    """What an open folder adds to a page, the first entry last."""
    depth = len(above)
    on_way = after[:depth] == above
    floor = after[depth] if on_way and depth < len(after) else None
    names = (
        (not item.is_dir(follow_symlinks=False), item.name) for item in _names(folder, rules, hidden=wanted.hidden)
    )
    # the floor itself is on the way to the cursor, or is the cursor: its folder may hold more
    fit = (name for name in names if floor is None or name >= floor)
    return [((*above, name), rules) for name in heapq.nsmallest(wanted.limit + 2, fit)[::-1]]


def _tree_cursor(wanted: Listing) -> _Spot:
    match _decode_cursor(wanted.cursor):
        case None:
            return ()
        case [str(order), bool(below), str(packed)] if order == wanted.order:
            try:
                *above, name = _unpack(packed).split("/")
            except ValueError:
                raise _bad_cursor() from None
            return (*((False, part) for part in above), (below, name))
        case _:
            raise _bad_cursor()


# --- cursors ----------------------------------------------------------------------------------------------------------------


def _pack(name: str) -> str:
    return base64.b64encode(os.fsencode(name)).decode()


def _unpack(name: str) -> str:
    return os.fsdecode(base64.b64decode(name, validate=True))


def _encode_cursor(value: list[Any]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(value)).decode().rstrip("=")


def _decode_cursor(cursor: str | None) -> list[Any] | None:
    if cursor is None:
        return None
    try:
        value = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        raise _bad_cursor() from None
    if not isinstance(value, list):
        raise _bad_cursor()
    return value


def _bad_cursor() -> WorkspaceError:
    return WorkspaceError("cursor_invalid", "The cursor is not one that this list gave.")
