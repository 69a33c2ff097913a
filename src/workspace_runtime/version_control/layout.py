"""Which folders of a repository are looked at to learn that something of it has changed, and what a name in one of them tells.

Files of the working tree are told by the board's topic `files`, but for what git ignores: what it tracks there all the same is looked
at here, and so is the repository of a submodule that lies in the working tree.

The layout is git's (gitrepository-layout(5)). All here is a hint: what a name is taken to mean decides what is read again, and what
is told is the difference between two readings. So a name that is not known counts, and only what git writes without a change of
state (locks, FETCH_HEAD, messages of past commits, objects) is silent.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

# What may have changed: what belongs to one working tree, what its linked ones share, a ref, the repository's place itself, or which
# files it tracks and which it ignores.
OWN, SHARED, REFS, PLACE, TRACKED = 1, 2, 4, 8, 16
ALL = OWN | SHARED | REFS | PLACE | TRACKED

MAX_MODULES = 100
_SILENT = frozenset({
    b"FETCH_HEAD", b"ORIG_HEAD", b"COMMIT_EDITMSG", b"TAG_EDITMSG", b"description", b"branches", b"hooks", b"objects", b"worktrees",
    b"lfs", b"gc.pid", b"gc.log",
})  # fmt: skip
_SHARED = frozenset({b"shallow", b"info", b"logs"})
_REFS = frozenset({b"packed-refs", b"refs", b"reftable"})


class Role(IntEnum):
    """What a folder is to a repository's folder."""

    ABOVE = 0  # the folder that it lies in
    TOP = 1  # itself
    STATE = 2  # what is under way: rebase-merge/ and the like
    INFO = 3
    LOGS = 4
    LOGS_REFS = 5  # where git keeps the list of stashes
    REFERENCES = 6
    MODULES = 7  # where the repositories of submodules lie
    MODULE = 8
    MODULE_LOGS = 9
    KEPT = 10  # of the working tree


@dataclass(frozen=True, slots=True)
class Kept:
    """What is tracked of a working tree and told by nobody else. `folders`: those it lies in, from the top on, absolute; `names`: its
    own and those of the folders; `modules`: submodules that may have their repository in them, absolute."""

    top: bytes
    folders: tuple[bytes, ...]
    names: frozenset[bytes]
    modules: tuple[bytes, ...]


# What is followed: a repository's folder, or a part of a working tree.
Followed = bytes | Kept


def kept(top: bytes, files: Iterable[bytes], modules: Iterable[bytes]) -> Kept | None:
    """These files and submodules of the working tree at `top`, by their paths in it; None where there are none."""
    folders, names = {top}, set()
    modules = tuple(modules)[:MAX_MODULES]
    for path in (*files, *(module + b"/.git" for module in modules)):
        parts = path.split(b"/")
        names.update(parts)
        at = top
        for part in parts[:-1]:
            at = at + b"/" + part
            folders.add(at)
    found = Kept(top, tuple(sorted(folders)), frozenset(names), tuple(top + b"/" + module for module in modules))
    return found if names else None


def meaning(role: Role, name: bytes, followed: Followed) -> int:
    """What a change of this name says of what is followed: nothing, or some of the flags above."""
    if isinstance(followed, Kept) and role is Role.KEPT:
        return OWN if name in followed.names else 0
    if name.endswith(b".lock"):  # git never names a ref so (git-check-ref-format(1))
        return 0
    match role:
        case Role.ABOVE:
            return ALL if isinstance(followed, bytes) and name == os.path.basename(followed) else 0
        case Role.TOP:
            return _of_top(name)
        case Role.INFO:
            return SHARED | PLACE  # what is ignored, also in linked working trees
        case Role.LOGS:
            return SHARED if name == b"refs" else 0
        case Role.LOGS_REFS:
            return SHARED if name == b"stash" else 0
        case Role.REFERENCES:
            return REFS
        case Role.MODULE:
            return OWN if name in (b"HEAD", b"index", b"logs", b"modules") else 0
        case Role.MODULE_LOGS:
            return OWN if name == b"HEAD" else 0
        case Role.STATE | Role.MODULES | Role.KEPT:
            return OWN


def _of_top(name: bytes) -> int:
    if name in _SILENT or name.startswith((b"tmp_", b"fsmonitor--", b"sharedindex.")):
        return 0
    if name in _REFS:
        return REFS
    if name == b"config":  # it says also whether there is a working tree, and where
        return SHARED | PLACE
    if name == b"index":
        return OWN | TRACKED
    return SHARED if name in _SHARED else OWN


# Has a folder watched, or looked at; false: it is not there.
Add = Callable[[bytes, Role], bool]


def walk(followed: Followed, add: Add) -> None:
    """Call `add` for each folder that tells something of what is followed. Blocks.

    What is in a folder is looked up after `add`: nothing that is made meanwhile is missed. Links below are not followed.
    """
    if isinstance(followed, Kept):
        _kept(followed, add)
    else:
        _repository(followed, add)


def _kept(followed: Kept, add: Add) -> None:
    there: set[bytes] = set()
    for folder in followed.folders:  # one comes after those above it
        if (folder == followed.top or os.path.dirname(folder) in there) and add(folder, Role.KEPT):
            there.add(folder)
    for module in followed.modules:
        if module in there:
            for nested in _module(module + b"/.git", add):
                _modules(nested, add, MAX_MODULES)


def _repository(folder: bytes, add: Add) -> None:
    add(os.path.dirname(folder), Role.ABOVE)
    if not add(folder, Role.TOP):
        return
    for name in (b"rebase-merge", b"rebase-apply", b"sequencer"):
        add(os.path.join(folder, name), Role.STATE)
    add(os.path.join(folder, b"info"), Role.INFO)
    if add(os.path.join(folder, b"logs"), Role.LOGS):
        add(os.path.join(folder, b"logs/refs"), Role.LOGS_REFS)
    for name in (b"refs", b"reftable"):
        _tree(os.path.realpath(os.path.join(folder, name)), add)
    _modules(os.path.join(folder, b"modules"), add, MAX_MODULES)


def _tree(top: bytes, add: Add) -> None:
    todo = [top]
    while todo:
        at = todo.pop()
        if add(at, Role.REFERENCES):
            todo += folders_in(at)


def _modules(top: bytes, add: Add, left: int) -> None:
    """The repositories of submodules, whose names may have slashes, and of theirs."""
    todo = [top]
    while todo and left:
        at = todo.pop()
        if os.path.lexists(os.path.join(at, b"HEAD")):
            left -= 1
            todo += _module(at, add)
        elif add(at, Role.MODULES):
            todo += folders_in(at)


def _module(folder: bytes, add: Add) -> list[bytes]:
    """The repository of a submodule. Where those of its own submodules are."""
    if not add(folder, Role.MODULE):
        return []
    add(os.path.join(folder, b"logs"), Role.MODULE_LOGS)
    return [os.path.join(folder, b"modules")]


def folders_in(folder: bytes) -> Iterator[bytes]:
    """The folders in a folder, no links."""
    try:
        with os.scandir(folder) as entries:
            yield from [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return


Snapshot = dict[tuple[Role, bytes], tuple[int, int, int, int]]


def snapshot(followed: Followed) -> Snapshot:
    """All that tells something, as it looks now: for where nobody tells of changes. Blocks."""
    seen: Snapshot = {}

    def add(path: bytes, role: Role) -> bool:
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if meaning(role, entry.name, followed):
                        _look(seen, role, entry)
        except OSError:
            return False
        return True

    walk(followed, add)
    return seen


def difference(followed: Followed, one: Snapshot, other: Snapshot) -> int:
    """What may have changed between two snapshots."""
    flags = 0
    for role, path in {key for key, _ in one.items() ^ other.items()}:
        flags |= meaning(role, os.path.basename(path), followed)
    return flags


def _look(seen: Snapshot, role: Role, entry: "os.DirEntry[bytes]") -> None:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return
    # of a folder what is in it is looked at by itself, where it tells something
    times = (0, 0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_mtime_ns, status.st_size, status.st_mode)
    seen[role, entry.path] = (*times, status.st_ino)
