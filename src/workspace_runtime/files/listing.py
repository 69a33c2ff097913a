"""What a folder holds, a page at a time.

A page of a large folder costs one pass over the names and a look at the entries of the page alone: what is held is as long as
the page. The cursor is the place of the page's last entry in the order, so that a page goes on rightly although entries came and
went meanwhile.
"""

import base64
import contextlib
import heapq
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import WorkspaceRoot, as_text, etag_of, path_bytes, refusal, shown

from .ignored import Rules, root_rules
from .temporary import is_temporary
from .times import timestamp

Order = Literal["name", "-name", "size", "-size", "modified_at", "-modified_at"]
# Deeper than any path that a client could name.
MAX_DEPTH = 2048


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
        rules = None if wanted.ignored else _rules_of(root, wanted.path)
        if wanted.depth == 1:
            return _flat(folder, rules, wanted)
        return _tree(root, folder, rules, wanted)
    finally:
        os.close(folder)


def entry(path: bytes, name: str, status: os.stat_result, folder: int) -> dict[str, Any]:
    """An entry as the API tells it. `name` as `os.scandir` gives it, in the open `folder`; `path` is its own."""
    mode = status.st_mode
    kind = (
        "file"
        if stat.S_ISREG(mode)
        else "directory"
        if stat.S_ISDIR(mode)
        else "symlink"
        if stat.S_ISLNK(mode)
        else "other"
    )
    found: dict[str, Any] = {
        "name": name,
        "path": path,
        "type": kind,
        "size": status.st_size,
        "modified_at": timestamp(status.st_mtime_ns),
        "mode": f"{mode & 0o7777:04o}",
        "etag": etag_of(status) if kind == "file" else None,
        "target": None,
    }
    try:
        found["path"] = path.decode()
    except UnicodeDecodeError:
        found |= {"name": as_text(name), "path": shown(path), "path_bytes": path_bytes(path)}
    if kind == "symlink":
        with contextlib.suppress(OSError):  # gone meanwhile
            found["target"] = as_text(os.readlink(name, dir_fd=folder))
    return found


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
            name = item.name
            if name[0] == "." and (not hidden or name == ".git" or is_temporary(name)):
                continue
            if rules is not None and rules.ignores(name, is_dir=item.is_dir(follow_symlinks=False)):
                continue
            yield item


# --- one folder -----------------------------------------------------------------------------------------------------------

# where an entry stands in the order: directories first, then the figure, then the name
_Key = tuple[bool, int, str]


def _flat(folder: int, rules: Rules | None, wanted: Listing) -> Page:
    order = wanted.order.removeprefix("-")
    down = wanted.order.startswith("-")
    after = _flat_cursor(wanted)
    found = (
        (key, item)
        for item in _names(folder, rules, hidden=wanted.hidden)
        if (key := _key(item, order)) is not None and (after is None or _is_after(key, after, down=down))
    )
    first = (
        _largest(found, wanted.limit + 1) if down else heapq.nsmallest(wanted.limit + 1, found, key=lambda row: row[0])
    )
    prefix = wanted.path + b"/" if wanted.path else b""
    items = []
    for _, item in first[: wanted.limit]:
        try:
            status = item.stat(follow_symlinks=False)
        except OSError:
            continue  # gone meanwhile
        items.append(entry(prefix + os.fsencode(item.name), item.name, status, folder))
    if len(first) <= wanted.limit:
        return Page(items, None)
    below, figure, name = first[wanted.limit - 1][0]
    return Page(items, _encode_cursor([wanted.order, below, figure, _pack(name)]))


def _key(item: os.DirEntry[str], order: str) -> _Key | None:
    below = not item.is_dir(follow_symlinks=False)
    if order == "name":
        return below, 0, item.name
    try:
        status = item.stat(follow_symlinks=False)
    except OSError:
        return None
    return below, status.st_size if order == "size" else status.st_mtime_ns, item.name


def _is_after(key: _Key, last: _Key, *, down: bool) -> bool:
    if key[0] != last[0]:
        return key[0] > last[0]
    return key[1:] < last[1:] if down else key[1:] > last[1:]


def _largest(found: Iterable[tuple[_Key, os.DirEntry[str]]], count: int) -> list[tuple[_Key, os.DirEntry[str]]]:
    return heapq.nlargest(count, found, key=lambda row: (not row[0][0], *row[0][1:]))


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
    todo: list[tuple[_Spot, Rules | None]] = _below(folder, (), rules, after, wanted)
    while todo:
        spot, inside = todo.pop()
        path = b"/".join((*filter(None, (wanted.path,)), *(os.fsencode(name) for _, name in spot)))
        if spot > after:
            if len(items) == wanted.limit:
                return Page(items, _encode_cursor([wanted.order, *([below, _pack(name)] for below, name in last)]))
            try:
                with root.place(path) as place:
                    status = os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
                    items.append(entry(path, spot[-1][1], status, place.folder))
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
        case [str(order), *parts] if order == wanted.order and parts:
            try:
                return tuple((bool(below), _unpack(name)) for below, name in parts)
            except (ValueError, TypeError):
                raise _bad_cursor() from None
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
