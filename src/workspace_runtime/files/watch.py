"""Tells every change of the workspace, whoever made it: one event for each real change and path within a short window.

Invariant: a client that lists the workspace after `start`, applies every `Change` in order, and lists again what `resync` names,
has at each quiet moment what is on the disk. Nothing is missed silently: where the kernel lost events, or something could
not be looked at, all is looked at again and a `resync` of the root is told.

One thread reads the kernel's events, looks at the disk and walks new folders; the event loop gets ready batches. Events only mark
names. Some 20 ms after the first mark, each marked name is looked at and compared with what was told of it, so that a file
written in steps, or replaced by a rename, is one change. A file that changed within the last tick of the kernel's clock is
looked at once more a little later: else two changes could look like one, or one like two. So is, for some rounds, a file whose
writer has not closed it, and a name that was removed: many writers make it again at once.

A queue that runs full, in order: the loop takes batches too slowly (`_Teller` waits), so the kernel's queue is not emptied,
overflows, and ends in a `resync`.
"""

import asyncio
import contextlib
import functools
import logging
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from workspace_runtime.paths import WorkspaceRoot, etag_of

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
from .polling import Poller

_log = logging.getLogger(__name__)

WINDOW_S = 0.02
BATCH = 1000
MAX_BATCHES = 32  # that the loop has not taken yet
ROOT_S = 1.0  # how often the root itself is looked for: its removal is no event while it is held open
REBUILD_S = 1.0  # at most so often is everything looked at again
JUST_WRITTEN_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one path, as a look at the disk showed it."""

    path: bytes  # relative to the root
    event_type: Literal["created", "modified", "deleted"]
    is_dir: bool
    size: int | None  # None for folders, and when deleted
    modified_ns: int | None  # None when deleted
    etag: str | None  # as the read gives it; None for all but regular files, and when deleted
    moved_from: bytes | None = None


Changed = Callable[[Sequence[Change]], None]
Resync = Callable[[Sequence[bytes]], None]


class Watcher:
    """Watches the workspace between `start` and `stop`. Its methods are for the event loop."""

    def __init__(
        self,
        root: WorkspaceRoot,
        changed: Changed,
        resync: Resync,
        *,
        max_watches: int | None = None,
        force_polling: bool = False,
        poll_s: float = 1.0,
    ) -> None:
        """`changed` gets batches of at most 1,000 and `resync` folders to list again (`b""`: all), on the loop, in order.

        `max_watches`: of the kernel; folders beyond are polled, as are all with `force_polling`, every `poll_s` or less often.
        """
        self._root = root
        self._changed, self._resync = changed, resync
        self._max_watches, self._force_polling, self._poll_s = max_watches, force_polling, poll_s
        self._work: _Work | None = None

    async def start(self) -> None:
        """Returns when all watches stand: every change that begins after is told. A `stop` meanwhile ends it early.

        Raises `RuntimeError` if it was started and not stopped. Cancelled, it leaves the work to `stop`.
        """
        if self._work is not None:
            raise RuntimeError("the watcher was started already")
        teller = _Teller(asyncio.get_running_loop(), self._changed, self._resync)
        self._work = work = _Work(self._root, teller, self._max_watches, self._force_polling, self._poll_s)
        work.thread.start()
        await work.ready.wait()

    async def stop(self) -> None:
        """Let go of everything; nothing is told after. Does nothing if it was not started. Safe to be called twice."""
        work = self._work
        if work is None:
            return
        work.stop()
        await work.ended.wait()
        work.thread.join()  # it has nothing left to do
        if self._work is work:
            self._work = None

    @property
    def watched(self) -> int:
        """How many folders the kernel watches for us."""
        return 0 if self._work is None or self._work.tree is None else len(self._work.tree.watched)

    @property
    def polled(self) -> int:
        """How many folders are looked at in turn instead."""
        return 0 if self._work is None or self._work.tree is None else len(self._work.tree.polled)


class _Stopped(Exception):
    """The work is to end now."""


class _Teller:
    """Gathers changes in the thread and hands them to the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, changed: Changed, resync: Resync) -> None:
        self.stopped = False
        self.loop = loop
        self._changed, self._resync = changed, resync
        self._batch: list[Change] = []
        self._free = threading.Semaphore(MAX_BATCHES)

    def created(self, path: bytes, status: os.stat_result, moved_from: bytes | None = None) -> None:
        """There is something new."""
        self._there("created", path, status, moved_from)

    def modified(self, path: bytes, status: os.stat_result, moved_from: bytes | None = None) -> None:
        """A file has another content, or anything other attributes."""
        self._there("modified", path, status, moved_from)

    def deleted(self, path: bytes, *, is_dir: bool) -> None:
        """Something is gone, with all that was below it."""
        self._add(Change(path, "deleted", is_dir, None, None, None))

    def resync(self, paths: list[bytes]) -> None:
        """What these folders hold must be listed again."""
        self.flush()
        self._hand(functools.partial(self._resync, paths))

    def flush(self) -> None:
        """Hand over what was gathered."""
        if self._batch:
            batch, self._batch = self._batch, []
            self._hand(functools.partial(self._changed, batch))

    def _there(
        self, event_type: Literal["created", "modified"], path: bytes, status: os.stat_result, moved_from: bytes | None
    ) -> None:
        is_dir = stat.S_ISDIR(status.st_mode)
        etag = etag_of(status) if stat.S_ISREG(status.st_mode) else None
        size = None if is_dir else status.st_size
        self._add(Change(path, event_type, is_dir, size, status.st_mtime_ns, etag, moved_from))

    def _add(self, change: Change) -> None:
        self._batch.append(change)
        if len(self._batch) >= BATCH:
            self.flush()

    def _hand(self, take: Callable[[], None]) -> None:
        while not self._free.acquire(timeout=0.1):
            if self.stopped:
                raise _Stopped
        self.call(self._take, take)

    def _take(self, take: Callable[[], None]) -> None:
        self._free.release()
        if not self.stopped:
            take()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Have the loop call it. A loop that is closed ends the work."""
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self.stopped = True


class _Work:
    """The thread, from one start to the stop."""

    def __init__(
        self, root: WorkspaceRoot, tell: _Teller, max_watches: int | None, force_polling: bool, poll_s: float
    ) -> None:
        self.ready, self.ended = asyncio.Event(), asyncio.Event()
        self.tree: Tree | None = None
        self.thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._root, self._tell = root, tell
        self._new_tree = functools.partial(Tree, root, tell, max_watches=max_watches, force_polling=force_polling)
        self._poll_s = poll_s
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def stop(self) -> None:
        """Have the thread end soon. Does nothing when it has."""
        self._tell.stopped = True
        if not self.ended.is_set():
            os.write(self._wake_write, b"x")

    def _run(self) -> None:
        try:
            first = True
            while not self._tell.stopped:
                self._rounds(first)
                first = False
        except _Stopped:
            pass
        finally:
            self._tell.call(self._end)

    def _end(self) -> None:
        os.close(self._wake_read)
        os.close(self._wake_write)
        self.ready.set()
        self.ended.set()

    def _rounds(self, first: bool) -> None:
        """Look at everything, then follow what happens, until all has to be looked at again."""
        began = time.monotonic()
        try:
            self.tree = tree = self._new_tree()
            try:
                if not self._is_gone(tree):
                    tree.walk(tree.top, quiet=True)
                if first:
                    self._tell.call(self.ready.set)
                else:
                    self._tell.resync([b""])
                self._follow(tree)
            finally:
                self.tree = None
                tree.close()
        except _Stopped:
            raise
        except Exception:  # the edge of the thread: a fault of ours must not mean that changes are missed from now on
            _log.exception("watching the workspace failed; all of it is looked at again")
        self._wait(began + REBUILD_S, None)

    def _is_gone(self, tree: Tree) -> bool:
        """Whether the root was removed, or is another folder than the one that is watched."""
        status = os.fstat(self._root.fd)
        same = tree.top.inode in ((0, 0), (status.st_dev, status.st_ino))
        return not status.st_nlink or not same or tree.top_lost

    def _follow(self, tree: Tree) -> None:
        """Tell changes until something is lost, the root is gone, or the end."""
        poller = Poller(tree, self._poll_s)
        flush_at: float | None = None
        settler = _Settler(tree, self._tell)
        check_at = 0.0
        while not self._tell.stopped and not tree.lost:
            now = time.monotonic()
            if now >= check_at:
                check_at = now + ROOT_S
                tree.recent.turn()
                if self._is_gone(tree):
                    self._await_root(tree)
                    return
            # once something is marked, more events may pile up: they are taken together
            until = min(check_at, poller.due) if tree.polled else check_at
            self._wait(min(until, flush_at or until), tree if flush_at is None else None)
            tree.take_events()
            poller.step()
            now = time.monotonic()
            if flush_at is None and settler.wanted:
                flush_at = now + WINDOW_S
            elif flush_at is not None and now >= flush_at and not tree.lost and not tree.top_lost:
                settler.settle()
                flush_at = time.monotonic() + WINDOW_S if settler.wanted else None
            if tree.top_lost:
                check_at = 0.0

    def _wait(self, until: float, tree: Tree | None) -> None:
        """Wait for a time, the end, or (with a tree) an event."""
        waiter = select.poll()
        waiter.register(self._wake_read, select.POLLIN)
        if tree is not None and tree.inotify is not None:
            waiter.register(tree.inotify.fd, select.POLLIN)
        if not self._tell.stopped:
            waiter.poll(max(0.0, until - time.monotonic()) * 1000)

    def _await_root(self, tree: Tree) -> None:
        """Tell that all is gone, and wait until the root is there again."""
        for name, entry in tree.top.names.items():
            self._tell.deleted(name, is_dir=entry is not None)
        self._tell.flush()
        tree.top.names.clear()
        tree.close()
        while not self._tell.stopped:
            with contextlib.suppress(OSError):
                os.close(self._root.hold(b""))  # takes the new one if there is one
            if os.fstat(self._root.fd).st_nlink:
                return
            self._wait(time.monotonic() + ROOT_S, None)


class _Settler:
    """Compares what is marked with the disk, and tells the difference."""

    def __init__(self, tree: Tree, tell: _Teller) -> None:
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
        places = [(place, folder) for folder in list(tree.marks) if (place := tree.place(folder)) is not None]
        places.sort(key=lambda found: found[0])
        for (_, path), folder in places:
            marks = tree.marks.pop(folder, None)
            if marks and tree.place(folder) is not None:
                self._settle_folder(folder, path, marks)
        tree.marks = {folder: marks for folder, marks in tree.marks.items() if tree.is_kept(folder)}
        self._tell.flush()
        self._moves_open = tree.end_moves()

    def _settle_folder(self, folder: Folder, path: bytes, marks: dict[bytes, int]) -> None:
        held = self._tree.hold(folder)
        if held is None:  # it is gone or on its way: the folder above has or gets a mark
            for name, mark in marks.items():
                if mark < MAX_WAITS * WAITED:
                    self._tree.mark(folder, name, mark + WAITED)
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
            if moving is not None and moving.origin == path and not mark & (CREATED | CONTENT | WRITTEN):
                return  # moved away and back
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
        tree.walk(child, quiet=False)

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
