"""Which folders of a repository are looked at to learn that something of it has changed, and what a name in one of them tells.

The layout is git's (gitrepository-layout(5)). All here is a hint: what a name is taken to mean decides what is read again, and what
is told is the difference between two readings. So a name that is not known counts, and only what git writes without a change of
state (locks, FETCH_HEAD, messages of past commits, objects) is silent.
"""

import os
import stat
from collections.abc import Callable, Iterator
from enum import IntEnum

# What may have changed: what belongs to one working tree, what its linked ones share, a ref, or the repository's place itself.
OWN, SHARED, REFS, PLACE = 1, 2, 4, 8
ALL = OWN | SHARED | REFS | PLACE

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


def meaning(role: Role, name: bytes, folder: bytes) -> int:
    """What a change of this name says of the repository's `folder`: nothing, or some of the flags above."""
    if name.endswith(b".lock"):  # git never names a ref so (git-check-ref-format(1))
        return 0
    match role:
        case Role.ABOVE:
            return ALL if name == os.path.basename(folder) else 0
        case Role.TOP:
            return _of_top(name)
        case Role.INFO:
            return SHARED
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
        case Role.STATE | Role.MODULES:
            return OWN


def _of_top(name: bytes) -> int:
    if name in _SILENT or name.startswith((b"tmp_", b"fsmonitor--", b"sharedindex.")):
        return 0
    if name in _REFS:
        return REFS
    if name == b"config":  # it says also whether there is a working tree, and where
        return SHARED | PLACE
    return SHARED if name in _SHARED else OWN


# Has a folder watched, or looked at; false: it is not there.
Add = Callable[[bytes, Role], bool]


def walk(folder: bytes, add: Add) -> None:
    """Call `add` for each folder that tells something of a repository's `folder`. Blocks.

    What is in a folder is looked up after `add`: nothing that is made meanwhile is missed. Links below are not followed.
    """
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
            if add(at, Role.MODULE):
                add(os.path.join(at, b"logs"), Role.MODULE_LOGS)
                todo.append(os.path.join(at, b"modules"))
        elif add(at, Role.MODULES):
            todo += folders_in(at)


def folders_in(folder: bytes) -> Iterator[bytes]:
    """The folders in a folder, no links."""
    try:
        with os.scandir(folder) as entries:
            yield from [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return


Snapshot = dict[tuple[Role, bytes], tuple[int, int, int]]


def snapshot(folder: bytes) -> Snapshot:
    """All that tells something, as it looks now: for where nobody tells of changes. Blocks."""
    seen: Snapshot = {}

    def add(path: bytes, role: Role) -> bool:
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if meaning(role, entry.name, folder):
                        _look(seen, role, entry)
        except OSError:
            return False
        return True

    walk(folder, add)
    return seen


def difference(folder: bytes, one: Snapshot, other: Snapshot) -> int:
    """What may have changed between two snapshots."""
    flags = 0
    for role, path in {key for key, _ in one.items() ^ other.items()}:
        flags |= meaning(role, os.path.basename(path), folder)
    return flags


def _look(seen: Snapshot, role: Role, entry: "os.DirEntry[bytes]") -> None:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return
    # of a folder what is in it is looked at by itself, where it tells something
    times = (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_mtime_ns, status.st_size)
    seen[role, entry.path] = (*times, status.st_ino)
