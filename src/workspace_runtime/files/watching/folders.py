"""The tree of folders that are watched: what of each is known to have been told, and what may have changed since.

Invariant: `Folder.names` holds what clients were told (or have listed), never more; everything that may differ from it has a
mark in `Tree.marks`, a pending move, or is covered by a re-list. So events of the kernel are hints only: what is told is the
difference between what was told and what a look at the disk shows. Which order writers do things in does not matter.

A folder is the kernel's watch descriptor, not its path: it keeps it when it is moved, and a new folder of the same name gets
another one. Paths are made from the chain of parents when they are needed, so that a move costs the same for any size.

A folder is watched through its descriptor (`/proc/self/fd/N`), which `WorkspaceRoot.hold` opened below the root and of which the
kernel confirmed that it lies at that path: no link that is swapped in leads anywhere else. No descriptor stays open.
"""

import errno
import os
import stat
import time
from dataclasses import dataclass
from typing import Protocol

from workspace_runtime.files.ignored import Rules, root_rules
from workspace_runtime.files.temporary import is_temporary
from workspace_runtime.inotify import (
    ATTRIB,
    CHANGES,
    CLOSE_WRITE,
    CREATE,
    DELETE,
    IGNORED,
    MODIFY,
    MOVED_FROM,
    MOVED_TO,
    ONLYDIR,
    Q_OVERFLOW,
    UNMOUNT,
    new_inotify,
)
from workspace_runtime.mounts import REMOTE, file_system_type
from workspace_runtime.paths import WorkspaceRoot

# What a mark says may have happened to a name. From `WAITED` on it counts how often its telling was put off.
CREATED, GONE, LEFT, ARRIVED, CONTENT, WRITTEN, CLOSED, WAITED = 1, 2, 4, 8, 16, 32, 64, 128
REPLACED = CREATED | GONE | LEFT | ARRIVED  # what is there may be another one
MAX_WAITS = 4
MOVE_S = 0.05  # how long the second half of a move may take: the kernel tells both at once

_MARK_OF = {
    MODIFY: WRITTEN, ATTRIB: CONTENT, CLOSE_WRITE: CLOSED, CREATE: CREATED, DELETE: GONE, MOVED_FROM: LEFT,
    MOVED_TO: ARRIVED,
}  # fmt: skip
_MARKED = sum(_MARK_OF)
_NONE_LEFT = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_GIT, _GITIGNORE, _EXCLUDE = b".git", b".gitignore", b".git/info/exclude"
_TEMPORARY = b".workspace-runtime-"


class Folder:
    """A folder that is watched or polled. `names`: what was told of it; a file is None, a folder not looked into `SHUT`."""

    __slots__ = ("inode", "name", "names", "origin", "parent", "rules", "wd")

    def __init__(self, parent: "Folder | None", name: bytes) -> None:
        self.parent = parent
        self.name = name
        self.names: dict[bytes, Folder | None] = {}
        self.wd = -1  # of the kernel; -1 when polled
        self.inode = (0, 0)
        self.origin: bytes | None = None  # the path it was told at, while its move is not told
        self.rules: Rules = _NO_RULES

    def told_path(self) -> bytes:
        """The path that clients know it by."""
        parts = []
        folder = self
        while folder.origin is None and folder.parent is not None:
            parts.append(folder.name)
            folder = folder.parent
        if folder.origin is not None:
            parts.append(folder.origin)
        return b"/".join(reversed(parts))


_NO_RULES = Rules("", ())
SHUT = Folder(None, b"")


@dataclass(slots=True)
class Moving:
    """Something on its way from one name to another. `origin`: the path it was told at, None if it never was."""

    origin: bytes | None
    folder: Folder | None
    since: float


class Teller(Protocol):
    """Where the tree's findings go."""

    def created(self, path: bytes, status: os.stat_result, moved_from: bytes | None = None) -> None:
        """There is something new."""

    def resync(self, paths: list[bytes]) -> None:
        """What these folders hold must be listed again."""

    @property
    def stopped(self) -> bool:
        """Whether all work is in vain."""


class Recent:
    """What was told in the last seconds, as short signatures: an event that came before the look is no second change."""

    KEEP_S = 2.2  # longer than a file that was closed counts as just written

    def __init__(self) -> None:
        self._now: dict[Folder, dict[bytes, int]] = {}
        self._before: dict[Folder, dict[bytes, int]] = {}
        self._turned = time.monotonic()

    def add(self, folder: Folder, name: bytes, status: os.stat_result) -> None:
        """Note what was told. A file that may change again without the disk showing it is not noted."""
        if not is_young(status):
            self._now.setdefault(folder, {})[name] = signature(status)

    def holds(self, folder: Folder, name: bytes, status: os.stat_result) -> bool:
        """Whether exactly this was told."""
        wanted = signature(status)
        return any(told.get(folder, _NOTHING).get(name) == wanted for told in (self._now, self._before))

    def turn(self) -> "dict[Folder, dict[bytes, int]]":
        """Forget what is old, and give it: what was told of it, to be looked at a last time."""
        old: dict[Folder, dict[bytes, int]] = {}
        if (self._now or self._before) and time.monotonic() - self._turned > self.KEEP_S:
            old, self._before, self._now, self._turned = self._before, self._now, {}, time.monotonic()
        return old


_NOTHING: dict[bytes, int] = {}


def signature(status: os.stat_result) -> int:
    """A number that differs when a file's content or attributes do; for a folder when it is another one, or its mode differs."""
    if stat.S_ISDIR(status.st_mode):
        return hash((status.st_ino, status.st_mode))
    return hash((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode))


def is_young(status: os.stat_result) -> bool:
    """Whether the next change may get the same time: the kernel's clock goes in steps of up to 10 ms."""
    return not stat.S_ISDIR(status.st_mode) and 0 <= time.time_ns() - status.st_ctime_ns < 12_000_000


class Tree:
    """All folders that are watched. Used by one thread. `close` lets go of everything."""

    def __init__(self, root: WorkspaceRoot, tell: Teller, *, max_watches: int | None, force_polling: bool) -> None:
        self.top = Folder(None, b"")
        self.marks: dict[Folder, dict[bytes, int]] = {}
        self.arrivals: dict[Folder, dict[bytes, Moving]] = {}
        self.watched: dict[int, Folder] = {}
        self.polled: dict[Folder, dict[bytes, int]] = {}
        self.stale: set[Folder] = set()  # folders whose rules must be read again
        self.repositories: set[Folder] = set()  # folders in which a repository may have come or gone
        self.recent = Recent()
        self.lost = False  # something could not be looked at: all must be looked at again
        self.top_lost = False  # the root itself was removed
        self.inotify = None if force_polling else new_inotify()
        self._root = root
        self._tell = tell
        self._max_watches = max_watches
        self._moving: dict[int, Moving] = {}  # by the kernel's cookie; below zero what is left of moves not understood
        self._rule_watches: dict[int, Folder] = {}
        self._remote: dict[int, bool] = {}  # by device
        self._base = self._real(root.fd)

    def close(self) -> None:
        """Let go of the kernel's watches."""
        if self.inotify is not None:
            self.inotify.close()
            self.inotify = None
        self.watched.clear()
        self.polled.clear()

    # --- where a folder is --------------------------------------------------------------------------------------------

    def place(self, folder: Folder) -> tuple[int, bytes] | None:
        """Depth and path of a folder; None when it is in the tree no more."""
        parts = []
        at = folder
        while at.parent is not None and at.parent.names.get(at.name) is at:
            parts.append(at.name)
            at = at.parent
        return (len(parts), b"/".join(reversed(parts))) if at is self.top else None

    def is_kept(self, folder: Folder) -> bool:
        """Whether a folder is in the tree, or on its way to another place in it."""
        at = folder
        while at.parent is not None:
            moving = self.arrivals.get(at.parent, {}).get(at.name)
            if at.parent.names.get(at.name) is not at and (moving is None or moving.folder is not at):
                return False
            at = at.parent
        return at is self.top or any(moving.folder is at for moving in self._moving.values())

    def hold(self, folder: Folder) -> int | None:
        """A descriptor of the folder, to be closed; None if it is not there, or something else is at its path."""
        place = self.place(folder)
        if place is None:
            return None
        try:
            held = self._root.hold(place[1])
        except OSError as fault:
            if fault.errno in _NONE_LEFT:
                self.lost = True
            return None
        if not self._lies_at(held, place[1]):
            self._base = self._real(self._root.fd)  # the root itself may have been moved
            if not self._lies_at(held, place[1]):
                os.close(held)
                return None
        return held

    def _lies_at(self, held: int, path: bytes) -> bool:
        """Whether the kernel says that an open folder has this path, so that no link was on the way."""
        if self._base is None:  # no /proc
            return True
        return self._real(held) == (self._base.rstrip(b"/") + b"/" + path if path else self._base)

    @staticmethod
    def _real(held: int) -> bytes | None:
        try:
            return os.readlink(b"/proc/self/fd/%d" % held)
        except OSError:
            return None

    # --- marks --------------------------------------------------------------------------------------------------------

    def mark(self, folder: Folder, name: bytes, mark: int) -> None:
        """Something may have happened to a name."""
        if name in (_GIT, _EXCLUDE):
            self.stale.add(folder)
            if name == _GIT:
                self.repositories.add(folder)
            return
        if name == _GITIGNORE:
            self.stale.add(folder)
        elif name.startswith(_TEMPORARY) and is_temporary(name):
            return
        marks = self.marks.setdefault(folder, {})
        marks[name] = marks.get(name, 0) | mark

    def looked(self, folder: Folder, name: bytes, status: os.stat_result | None) -> None:
        """What polling compares with is what is told, not what it has seen itself before that."""
        snapshot = self.polled.get(folder)
        if snapshot is not None:
            snapshot.pop(name, None)
            if status is not None:
                snapshot[name] = signature(status)

    def take_events(self) -> None:
        """Make marks of what the kernel has told."""
        if self.inotify is None:
            return
        self.inotify.drain()
        watched = self.watched
        for wd, mask, cookie, name in self.inotify.events():
            folder = watched.get(wd)
            if folder is None:
                self._other_event(wd, mask, name)
            elif not name:
                if mask & (IGNORED | UNMOUNT):
                    self._unwatched(folder)
            else:
                if mask & MOVED_FROM:
                    self._departed(folder, name, cookie)
                elif mask & MOVED_TO:
                    self._arrived(folder, name, cookie)
                self.mark(folder, name, _MARK_OF.get(mask & _MARKED, CONTENT))
        self.lost |= self.inotify.overflowed

    def _other_event(self, wd: int, mask: int, name: bytes) -> None:
        if mask & Q_OVERFLOW:
            self.lost = True
        elif wd in self._rule_watches:
            if name in (b"info", b"exclude"):
                self.stale.add(self._rule_watches[wd])
            if mask & IGNORED:
                del self._rule_watches[wd]

    def _unwatched(self, folder: Folder) -> None:
        """The kernel let go of it: it was removed, or unmounted."""
        self.watched.pop(folder.wd, None)
        folder.wd = -1
        if folder is self.top:
            self.top_lost = True
        elif folder.parent is not None:
            self.mark(folder.parent, folder.name, CREATED)

    def _departed(self, folder: Folder, name: bytes, cookie: int) -> None:
        moving = self.arrivals.get(folder, {}).pop(name, None)
        if moving is None:
            entry = folder.names.get(name)
            watched = entry is not None and entry is not SHUT
            # after one of these marks, what moves away is not what was told under this name
            told = name in folder.names and not self.marks.get(folder, {}).get(name, 0) & REPLACED
            origin = join(folder.told_path(), name) if watched or told else None
            moving = Moving(origin, entry if watched else None, 0.0)
            if watched:
                folder.names[name] = SHUT
        moving.since = time.monotonic()
        if moving.folder is not None:
            moving.folder.parent, moving.folder.origin = None, moving.origin
        self._moving[cookie] = moving

    def _arrived(self, folder: Folder, name: bytes, cookie: int) -> None:
        moving = self._moving.pop(cookie, None)
        if moving is None:
            return
        self.arrive(folder, name, moving)

    def arrive(self, folder: Folder, name: bytes, moving: Moving) -> None:
        """What moves will be found under this name. Events of what is below it come for its new path from now on."""
        if moving.folder is not None:
            moving.folder.parent, moving.folder.name = folder, name
        self.arrivals.setdefault(folder, {})[name] = moving

    def end_moves(self) -> bool:
        """Let go of what moved out of the tree; whether some moves are still open."""
        limit = time.monotonic() - MOVE_S
        for cookie, moving in list(self._moving.items()):
            if moving.since < limit:
                del self._moving[cookie]
                if moving.folder is not None:
                    self.discard(moving.folder)
        return bool(self._moving)

    def lose(self, moving: Moving) -> None:
        """Its place is not known: it is found again by its watch, or it is let go of."""
        if moving.folder is not None:
            moving.folder.parent = None
            moving.since = time.monotonic()
            self._moving[min([0, *self._moving]) - 1] = moving

    def look_again(self, told: dict[Folder, dict[bytes, int]]) -> None:
        """Mark what is no longer as it was told some seconds ago: a last look, should a change have slipped through."""
        for folder, names in told.items():
            held = self.hold(folder) if self.is_kept(folder) else None
            if held is None:
                continue
            try:
                for name, seen in names.items():
                    try:
                        status = os.stat(name, dir_fd=held, follow_symlinks=False)
                    except OSError:
                        self.mark(folder, name, GONE | CONTENT)
                        continue
                    if signature(status) != seen and not self.recent.holds(folder, name, status):
                        self.mark(folder, name, CONTENT | CLOSED)
            finally:
                os.close(held)

    # --- registering --------------------------------------------------------------------------------------------------

    def is_same(self, folder: Folder, held: int) -> bool:
        """Whether the open folder is the one that is known."""
        if folder.wd < 0 or self.inotify is None:
            status = os.fstat(held)
            return folder in self.polled and folder.inode == (status.st_dev, status.st_ino)
        try:
            return self.inotify.add(held) == folder.wd
        except OSError:
            return False

    def watch(self, folder: Folder, held: int, *, adopt: bool = True) -> bool:
        """Have the kernel watch an open folder; False when it can't, and the folder has to be polled. Raises `PermissionError`.

        `adopt`: where it is known by another path, what is known of it comes with it. Then its content has to be read.
        """
        status = os.fstat(held)
        folder.inode = (status.st_dev, status.st_ino)
        if self.inotify is None or self._is_remote(status.st_dev, held):
            return False
        if folder.wd < 0 and self._max_watches is not None and len(self.watched) >= self._max_watches:
            return False
        try:
            wd = self.inotify.add(held)
        except PermissionError:
            raise
        except OSError:
            return False
        other = self.watched.get(wd)
        if other not in (None, folder) and not (adopt and self._adopt(folder, other)):
            return False
        if folder.wd != wd:
            self._unwatch(folder)
        folder.wd = wd
        self.watched[wd] = folder
        self.polled.pop(folder, None)
        return True

    def _adopt(self, folder: Folder, other: Folder) -> bool:
        """A known folder turned up at another path, before its move was told to us. False: it is at both (a bind mount)."""
        held = self.hold(other)
        if held is not None:
            try:
                if self.inotify is not None and self.inotify.add(held) == other.wd:
                    return False
            finally:
                os.close(held)
        folder.origin = other.told_path()
        folder.names, other.names = other.names, {}
        for child in folder.names.values():
            if child is not None and child is not SHUT:
                child.parent = folder
        if other.parent is not None and other.parent.names.get(other.name) is other:
            other.parent.names[other.name] = SHUT
            self.mark(other.parent, other.name, LEFT)
        other.parent, other.wd = None, -1
        self.marks.pop(other, None)
        for moving in self.arrivals.pop(other, {}).values():
            self.lose(moving)
        return True

    def _is_remote(self, device: int, held: int) -> bool:
        remote = self._remote.get(device)
        if remote is None:
            kind = file_system_type(self._real(held) or b"")
            remote = self._remote[device] = kind.startswith(REMOTE)
        return remote

    def _unwatch(self, folder: Folder) -> None:
        if self.watched.get(folder.wd) is folder:
            del self.watched[folder.wd]
            if self.inotify is not None:
                self.inotify.remove(folder.wd)
        folder.wd = -1

    def discard(self, folder: Folder) -> None:
        """Let go of a folder and of all below it."""
        todo = [folder]
        folder.parent = None
        while todo:
            at = todo.pop()
            todo += [child for child in at.names.values() if child is not None and child is not SHUT]
            todo += [moving.folder for moving in self.arrivals.pop(at, {}).values() if moving.folder is not None]
            self._unwatch(at)
            self.polled.pop(at, None)
            self.marks.pop(at, None)
        for wd, owner in list(self._rule_watches.items()):
            if self.place(owner) is None:
                del self._rule_watches[wd]
                if self.inotify is not None:
                    self.inotify.remove(wd)

    def forget(self, folder: Folder, name: bytes) -> None:
        """A name is gone, with all below."""
        entry = folder.names.pop(name, None)
        if entry is not None and entry is not SHUT:
            self.discard(entry)

    # --- looking into folders -----------------------------------------------------------------------------------------

    def walk(self, start: Folder, *, quiet: bool, waits: int = 0) -> None:
        """Watch a folder and all below it that is not ignored, and tell what is in there, unless `quiet`.

        `waits`: how often this folder could not be entered before, for no reason that lasts.
        """
        todo = [start]
        while todo and not self._tell.stopped:
            if self.inotify is not None:
                self.inotify.drain()
            folder = todo.pop()
            self._enter(folder, quiet, todo, waits if folder is start else 0)

    def _enter(self, folder: Folder, quiet: bool, todo: list[Folder], waits: int) -> None:
        held = self.hold(folder)
        if held is None:
            self._shut(folder, quiet, waits)
            return
        try:
            # first watched, then read: what changes in between is told by an event
            watched = self.watch(folder, held)
            listing = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=held)
        except OSError as fault:
            self.lost |= fault.errno in _NONE_LEFT
            self._shut(folder, quiet, MAX_WAITS if isinstance(fault, PermissionError) else waits)
            return
        else:
            try:
                self._read(folder, held, listing, todo, quiet=quiet, watched=watched)
            finally:
                os.close(listing)
        finally:
            os.close(held)

    def _shut(self, folder: Folder, quiet: bool, waits: int) -> None:
        """A folder that can't be looked into: it is gone again, a folder above is on its way, or it is not ours to read.

        A folder above may be back at its place before its moves are taken from the queue, and then counts as never moved. So
        what is not gone for sure is looked at again, up to `MAX_WAITS` times; what still can't be read then is not ours.
        """
        parent, name, origin = folder.parent, folder.name, folder.origin
        self.discard(folder)
        if parent is None:
            return
        parent.names.pop(name, None)
        held = self.hold(parent)
        try:
            status = None if held is None else os.stat(name, dir_fd=held, follow_symlinks=False)
        except OSError:
            return
        finally:
            if held is not None:
                os.close(held)
        if waits < MAX_WAITS:
            self.mark(parent, name, CREATED | (waits + 1) * WAITED)
        elif status is not None and stat.S_ISDIR(status.st_mode):
            parent.names[name] = SHUT
            if not quiet:
                self._tell.created(self._path(parent, name), status, origin)

    def _path(self, folder: Folder, name: bytes) -> bytes:
        place = self.place(folder)
        return join(place[1] if place else b"", name)

    def _read(self, folder: Folder, held: int, listing: int, todo: list[Folder], *, quiet: bool, watched: bool) -> None:
        place = self.place(folder)
        path = place[1] if place else b""
        before, folder.names = folder.names, {}
        origin, folder.origin = folder.origin, None
        self.marks.pop(folder, None)
        arrived = self.arrivals.pop(folder, {})
        self.read_rules(folder, held)
        if not quiet and folder is not self.top:
            self._tell.created(path, os.fstat(held), origin if origin != path else None)
        snapshot: dict[bytes, int] | None = None if watched else {}
        with os.scandir(listing) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if name == _GIT or (name.startswith(_TEMPORARY) and is_temporary(name)):
                    continue
                known, old = name in before, before.pop(name, None)
                moving = arrived.pop(name, None)
                moved_from = None
                try:
                    is_dir = entry.is_dir(follow_symlinks=False)
                    if moving is not None:
                        moved_from = moving.origin
                        self.lose(moving)
                    elif known and origin is not None and is_dir is (old is not None):
                        moved_from = join(origin, name)
                    status = None if quiet and watched else os.stat(name, dir_fd=held, follow_symlinks=False)
                except OSError:
                    continue  # gone again, as an event will say
                if snapshot is not None and status is not None:
                    snapshot[name] = signature(status)
                if is_dir and not folder.rules.ignores(entry.name, is_dir=True):
                    child = old if old is not None and old is not SHUT else Folder(folder, name)
                    child.origin = moved_from
                    folder.names[name] = child
                    todo.append(child)
                    continue
                if old is not None and old is not SHUT:
                    self.discard(old)
                self._found(folder, path, name, status, moved_from, is_dir=is_dir, quiet=quiet)
        for old in before.values():
            if old is not None and old is not SHUT:
                self.discard(old)
        for moving in arrived.values():
            self.lose(moving)
        if snapshot is not None:
            self.polled[folder] = snapshot

    def _found(
        self, folder: Folder, path: bytes, name: bytes, status: os.stat_result | None, moved_from: bytes | None,
        *, is_dir: bool, quiet: bool,
    ) -> None:  # fmt: skip
        """A file, or a folder that is not looked into, of which nothing was told yet."""
        if not quiet and status is not None:
            if is_young(status):
                if moved_from is not None:
                    self.arrive(folder, name, Moving(moved_from, None, 0.0))
                self.mark(folder, name, CREATED)
                return
            self._tell.created(join(path, name), status, moved_from)
            self.recent.add(folder, name, status)
        folder.names[name] = SHUT if is_dir else None

    # --- rules --------------------------------------------------------------------------------------------------------

    def read_rules(self, folder: Folder, held: int) -> None:
        """Read the rules that hold in an open folder, and watch the files of git they come from."""
        if folder.parent is None:  # the top: other folders without one are not held
            folder.rules = root_rules(self._root)
        else:
            folder.rules = folder.parent.rules.below(os.fsdecode(folder.name), held)
        self._watch_git(folder, held)

    def _watch_git(self, folder: Folder, held: int) -> None:
        """`.git` for when `info` appears in it, `.git/info` for `exclude`: of both nothing else is heeded."""
        opened: list[int] = []
        try:
            for name in (_GIT, b"info"):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                opened.append(os.open(name, flags, dir_fd=opened[-1] if opened else held))
                if self.inotify is not None:
                    mask = CHANGES if name == b"info" else CREATE | MOVED_TO | ONLYDIR
                    self._rule_watches[self.inotify.add(opened[-1], mask)] = folder
        except OSError:
            pass  # there is none, or no watch is left
        for descriptor in opened:
            os.close(descriptor)

    def refresh_rules(self) -> None:
        """Where rules have changed: watch what is not ignored any more, and let go of what is now."""
        stale, self.stale = self.stale, set()
        for folder in stale:
            held = self.hold(folder)
            if held is None:
                continue
            before = folder.rules
            try:
                self.read_rules(folder, held)
            finally:
                os.close(held)
            if folder.rules != before:
                self._apply_rules(folder)

    def _apply_rules(self, start: Folder) -> None:
        todo: list[Folder] = [start]
        opened: list[tuple[Folder, bytes]] = []
        while todo:
            folder = todo.pop()
            for name, entry in list(folder.names.items()):
                if entry is None:
                    continue
                ignored = folder.rules.ignores(os.fsdecode(name), is_dir=True)
                if entry is SHUT:
                    if not ignored:
                        opened.append((folder, name))
                elif ignored:
                    folder.names[name] = SHUT
                    self.discard(entry)
                elif (held := self.hold(entry)) is not None:
                    self.read_rules(entry, held)
                    os.close(held)
                    todo.append(entry)
        again = []
        for folder, name in opened:
            child = folder.names[name] = Folder(folder, name)
            self.walk(child, quiet=True)
            if folder.names.get(name) is child:
                again.append(self._path(folder, name))
        if again:
            self._tell.resync(again)


def join(folder: bytes, name: bytes) -> bytes:
    """The path of a name in a folder."""
    return folder + b"/" + name if folder else name
