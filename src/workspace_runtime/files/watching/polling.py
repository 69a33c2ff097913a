"""Looks at folders that the kernel can't watch: those of other machines' disks, and those beyond the limit of watches.

Invariant: a difference to the last look becomes a mark in the tree, as an event of the kernel would; what is told is decided
there. So polling knows no rules of its own, and tells no moves: a move is a `deleted` and a `created`.

The work is done in slices of some milliseconds with pauses of many times that in between, so that it costs a small part of a core
however many folders there are, and the folders that are watched do not wait. The price: many folders are seen late.
"""

import os
import time

from .folders import CLOSED, CONTENT, CREATED, GONE, Folder, Tree, signature

SLICE_S = 0.005
SHARE = 0.05  # of a core
ASTRAY_S = 3.0


class Poller:
    """Looks at the tree's polled folders, one slice a call. Used by the tree's thread."""

    def __init__(self, tree: Tree, poll_s: float) -> None:
        self._tree = tree
        self._poll_s = poll_s
        self._todo: list[Folder] = []
        self._astray: dict[Folder, float] = {}
        self._began = time.monotonic()
        self.due = self._began + poll_s

    def step(self) -> None:
        """Look at some folders, if it is time."""
        began = time.monotonic()
        if began < self.due:
            return
        if not self._todo:
            self._todo = list(self._tree.polled)
            self._began = began
        while self._todo and time.monotonic() - began < SLICE_S:
            folder = self._todo.pop()
            if folder in self._tree.polled:
                self._look(folder)
        now = time.monotonic()
        self.due = now + (now - began) * (1 / SHARE - 1)
        if not self._todo:
            self.due = max(self.due, self._began + self._poll_s)

    def _is_astray(self, folder: Folder) -> bool:
        """Whether a folder has been in the tree no more for a while: another one took its place. A move is over much sooner."""
        if self._tree.is_kept(folder):
            self._astray.pop(folder, None)
            return False
        now = time.monotonic()
        return now - self._astray.setdefault(folder, now) > ASTRAY_S and self._astray.pop(folder) is not None

    def _look(self, folder: Folder) -> None:
        if self._is_astray(folder):
            self._tree.discard(folder)
            return
        held = self._tree.hold(folder)
        if held is None:
            return  # the folder above will show why
        try:
            status = os.fstat(held)
            if folder.parent is not None and folder.inode != (status.st_dev, status.st_ino):
                self._tree.mark(folder.parent, folder.name, CREATED)  # another one has its place
                return
            before = self._tree.polled[folder]
            self._tree.watch(folder, held, adopt=False)  # there may be watches again
            now = _snapshot(held)
        except OSError:
            return
        finally:
            os.close(held)
        if folder in self._tree.polled:
            self._tree.polled[folder] = now
        for name, seen in now.items():
            if name not in before:
                self._tree.mark(folder, name, CREATED | CLOSED)
            elif before[name] != seen:
                # a folder that differs may be another one
                self._tree.mark(folder, name, CREATED | CONTENT | CLOSED)
        for name in before.keys() - now.keys():
            # should it be back by then, no event will tell what it is now
            self._tree.mark(folder, name, GONE | CONTENT | CLOSED)


def _snapshot(held: int) -> dict[bytes, int]:
    """What an open folder holds. The file of git's rules that lies deeper is looked at from here."""
    opened = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=held)
    try:
        names = [os.fsencode(name) for name in os.listdir(opened)]
    finally:
        os.close(opened)
    if b".git" in names:
        names.append(b".git/info/exclude")
    found = {}
    for name in names:
        try:
            found[name] = signature(os.stat(name, dir_fd=held, follow_symlinks=False))
        except OSError:
            continue
    return found
