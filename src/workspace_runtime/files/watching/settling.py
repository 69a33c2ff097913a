"""Compares what is marked with the disk, and tells the difference to what was told before."""

import os
import stat
import time

from .folders import (
    ARRIVED,
    CLOSED,
    CONTENT,
    CREATED,
    GONE,
    MAX_WAITS,
    REPLACED,
    SHUT,
    WAITED,
    WRITTEN,
    Folder,
    Moving,
    Tree,
    is_young,
    join,
)
from .telling import Teller

JUST_WRITTEN_NS = 2_000_000_000


class Settler:
    """Compares what is marked with the disk, and tells the difference."""

    def __init__(self, tree: Tree, tell: Teller) -> None:
        self._tree = tree
        self._tell = tell
        self._moves_open = False

    @property
    def wanted(self) -> bool:
        """Whether there is something to settle."""
        return bool(self._tree.marks or self._tree.stale or self._moves_open)

    def settle(self) -> None:
        """Settle all marks. Folders come before what is below them, so that this may have gone with them."""
        tree = self._tree
        if tree.stale:
            tree.refresh_rules()
        if tree.repositories:
            repositories, tree.repositories = tree.repositories, set()
            found = [place[1] for folder in repositories if (place := tree.place(folder)) is not None]
            self._tell.repositories(found)
        places = [(place, folder) for folder in list(tree.marks) if (place := tree.place(folder)) is not None]
        places.sort(key=lambda found: found[0])
        for _, folder in places:
            marks = tree.marks.pop(folder, None)
            place = tree.place(folder)  # by now it may have been found at another one
            if marks and place is not None:
                self._settle_folder(folder, place[1], marks)
        tree.marks = {folder: marks for folder, marks in tree.marks.items() if tree.is_kept(folder)}
        self._tell.flush()
        self._moves_open = tree.end_moves()

    def _settle_folder(self, folder: Folder, path: bytes, marks: dict[bytes, int]) -> None:
        held = self._tree.hold(folder)
        if held is None:  # it is gone or on its way: the folder above has or gets a mark
            for name, mark in marks.items():
                if mark >= MAX_WAITS * WAITED and folder.parent is not None:
                    self._tree.mark(folder.parent, folder.name, CREATED)
                self._tree.mark(folder, name, min(mark + WAITED, mark % WAITED + MAX_WAITS * WAITED))
            return
        try:
            for count, (name, mark) in enumerate(marks.items()):
                if count % 256 == 255 and self._tree.inotify is not None:
                    self._tree.inotify.drain()
                self._settle_name(folder, held, join(path, name), name, mark)
        finally:
            os.close(held)

    def _settle_name(self, folder: Folder, held: int, path: bytes, name: bytes, mark: int) -> None:
        tree = self._tree
        moving = tree.arrivals.get(folder, _NO_MOVES).pop(name, None)
        try:
            status = os.stat(name, dir_fd=held, follow_symlinks=False)
        except FileNotFoundError:
            status = None
        except OSError:
            return  # the folder may not be searched: then nobody can see what is in it
        if status is None and mark & GONE and mark < WAITED and name in folder.names:
            tree.mark(folder, name, mark + WAITED)  # many writers remove a file and make it again
            if moving is not None:
                tree.arrive(folder, name, moving)
            return
        tree.looked(folder, name, status)
        is_dir = status is not None and stat.S_ISDIR(status.st_mode)
        if moving is not None and moving.folder is not None and not is_dir:
            tree.lose(moving)  # it has moved on
        if name in folder.names and (status is None or is_dir is not (folder.names[name] is not None)):
            self._deleted(folder, name, path)
        if status is None:
            return
        if is_dir:
            self._settle_dir(folder, name, path, status, mark, moving)
        else:
            self._settle_file(folder, name, path, status, mark, moving)

    def _deleted(self, folder: Folder, name: bytes, path: bytes) -> None:
        self._tell.deleted(path, is_dir=folder.names[name] is not None)
        self._tree.forget(folder, name)

    def _settle_file(
        self, folder: Folder, name: bytes, path: bytes, status: os.stat_result, mark: int, moving: Moving | None
    ) -> None:
        tree = self._tree
        known = name in folder.names
        if known:
            if tree.recent.holds(folder, name, status):
                return
            # only closed after writing: memory that is mapped is written without events
            written = mark & CLOSED and time.time_ns() - status.st_mtime_ns < JUST_WRITTEN_NS
            if not written and not mark & (CREATED | ARRIVED | CONTENT | WRITTEN):
                return
        if (is_young(status) or _is_open(status, mark)) and mark < MAX_WAITS * WAITED:
            if moving is not None:
                tree.arrive(folder, name, moving)
            tree.mark(folder, name, mark + WAITED)
            return
        folder.names[name] = None
        tree.recent.add(folder, name, status)
        origin = moving.origin if moving is not None and moving.origin != path else None
        (self._tell.modified if known else self._tell.created)(path, status, origin)

    def _settle_dir(
        self, folder: Folder, name: bytes, path: bytes, status: os.stat_result, mark: int, moving: Moving | None
    ) -> None:
        tree = self._tree
        if name in folder.names:
            if self._is_known(folder, name, path, status, mark, moving):
                if mark & CONTENT:
                    self._tell.modified(path, status)
                    self._look_again(folder, name)
                return
            self._deleted(folder, name, path)
        origin = moving.origin if moving is not None and moving.origin != path else None
        if folder.rules.ignores(os.fsdecode(name), is_dir=True):
            if moving is not None and moving.folder is not None:
                tree.discard(moving.folder)
            folder.names[name] = SHUT
            tree.recent.add(folder, name, status)
            self._tell.created(path, status, origin)
            return
        child = moving.folder if moving is not None and moving.folder is not None else Folder(folder, name)
        child.parent, child.name, child.origin = folder, name, origin
        folder.names[name] = child
        tree.walk(child, quiet=False, waits=mark // WAITED)

    def _is_known(
        self, folder: Folder, name: bytes, path: bytes, status: os.stat_result, mark: int, moving: Moving | None
    ) -> bool:
        """Whether the folder that is there is the one that was told."""
        tree = self._tree
        if not mark & REPLACED:
            return True
        entry = folder.names[name]
        if entry is SHUT and moving is not None and moving.folder is not None and moving.origin == path:
            entry = moving.folder
            entry.parent, entry.name, entry.origin = folder, name, None
            folder.names[name] = entry  # moved away and back
        if entry is None or entry is SHUT:
            return tree.recent.holds(folder, name, status)
        held = tree.hold(entry)
        if held is None:
            return False
        try:
            return tree.is_same(entry, held)
        finally:
            os.close(held)

    def _look_again(self, folder: Folder, name: bytes) -> None:
        """A folder that could not be read may be readable now."""
        if folder.names[name] is SHUT and not folder.rules.ignores(os.fsdecode(name), is_dir=True):
            child = folder.names[name] = Folder(folder, name)
            self._tree.walk(child, quiet=True)
            if folder.names.get(name) is child:
                self._tell.resync([child.told_path()])


def _is_open(status: os.stat_result, mark: int) -> bool:
    """Whether whoever writes a file has not closed it yet, and will soon write more."""
    return bool(
        mark & (CREATED | WRITTEN) and not mark & CLOSED and stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    )


_NO_MOVES: dict[bytes, Moving] = {}
