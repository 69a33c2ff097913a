"""Tells every change of the workspace, whoever made it: one event for each real change and path within a short window.

Invariant: a client that lists the workspace after `start`, applies every `Change` in order, and lists again what `resync` names,
has at each quiet moment what is on the disk. Nothing is missed silently: where the kernel lost events, or something could
not be looked at, or something was mounted or unmounted, all is looked at again and a `resync` of the root is told. So it is where
another folder was put at the root's path.

One thread reads the kernel's events, looks at the disk and walks new folders; the event loop gets ready batches. Events only mark
names. Some 20 ms after the first mark, each marked name is looked at and compared with what was told of it, so that a file
written in steps, or replaced by a rename, is one change. A file that changed within the last tick of the kernel's clock is
looked at once more a little later: else two changes could look like one, or one like two. So is, for some rounds, a file whose
writer has not closed it, and a name that was removed: many writers make it again at once.

A queue that runs full, in order: the loop takes batches too slowly (`Teller` waits), so the kernel's queue is not emptied,
overflows, and ends in a `resync`.
"""

import asyncio
import functools
import logging
import os
import select
import threading
import time

from workspace_runtime.mounts import MountTable
from workspace_runtime.paths import WorkspaceRoot

from .watching.folders import Tree
from .watching.polling import Poller
from .watching.settling import Settler
from .watching.telling import Changed, Repositories, Resync, Stopped, Teller

_log = logging.getLogger(__name__)

WINDOW_S = 0.02
ROOT_S = 1.0  # how often the root itself is looked for: its removal, or its exchange, is no event while it is held open
REBUILD_S = 1.0  # at most so often is everything looked at again


class Watcher:
    """Watches the workspace between `start` and `stop`. Its methods are for the event loop."""

    def __init__(
        self,
        root: WorkspaceRoot,
        changed: Changed,
        resync: Resync,
        *,
        repositories: Repositories = lambda _: None,
        max_watches: int | None = None,
        force_polling: bool = False,
        poll_s: float = 1.0,
    ) -> None:
        """`changed` gets batches of at most 1,000 and `resync` folders to list again (`b""`: all), on the loop, in order;
        `repositories` folders whose `.git` came, went or changed, of which nothing else is told.

        `max_watches`: of the kernel; folders beyond are polled, as are all with `force_polling`, every `poll_s` or less often.
        """
        self._root = root
        self._changed, self._resync, self._repositories = changed, resync, repositories
        self._max_watches, self._force_polling, self._poll_s = max_watches, force_polling, poll_s
        self._work: _Work | None = None

    async def start(self) -> None:
        """Returns when all watches stand: every change that begins after is told. A `stop` meanwhile ends it early.

        Raises `RuntimeError` if it was started and not stopped. Cancelled, it leaves the work to `stop`.
        """
        if self._work is not None:
            raise RuntimeError("the watcher was started already")
        teller = Teller(asyncio.get_running_loop(), self._changed, self._resync, self._repositories)
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


class _Work:
    """The thread, from one start to the stop."""

    def __init__(
        self, root: WorkspaceRoot, tell: Teller, max_watches: int | None, force_polling: bool, poll_s: float
    ) -> None:
        self.ready, self.ended = asyncio.Event(), asyncio.Event()
        self.tree: Tree | None = None
        self.thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._root, self._tell = root, tell
        self._new_tree = functools.partial(Tree, root, tell, max_watches=max_watches, force_polling=force_polling)
        self._poll_s = poll_s
        self._mounts = MountTable()
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
        except Stopped:
            pass
        finally:
            self._tell.call(self._end)

    def _end(self) -> None:
        self._mounts.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self.ready.set()
        self.ended.set()

    def _rounds(self, first: bool) -> None:
        """Look at everything, then follow what happens, until all has to be looked at again."""
        began = time.monotonic()
        try:
            self._mounts.changed(os.fsencode(self._root.path))  # from here on
            self._root.follow()
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
        except Stopped:
            raise
        except Exception:  # the edge of the thread: a fault of ours must not mean that changes are missed from now on
            _log.exception("watching the workspace failed; all of it is looked at again")
        self._wait(began + REBUILD_S, None)

    def _is_gone(self, tree: Tree) -> bool:
        """Whether the root was removed, or is another folder than the one that is watched."""
        gone = self._root.gone
        status = os.fstat(self._root.fd)
        same = tree.top.inode in ((0, 0), (status.st_dev, status.st_ino))
        return gone or not same or tree.top_lost

    def _follow(self, tree: Tree) -> None:
        """Tell changes until something is lost, the root is gone, or the end."""
        poller = Poller(tree, self._poll_s)
        flush_at: float | None = None
        settler = Settler(tree, self._tell)
        check_at = 0.0
        while not self._tell.stopped and not tree.lost:
            now = time.monotonic()
            if now >= check_at:
                check_at = now + ROOT_S
                tree.look_again(tree.recent.turn())
                if self._is_gone(tree):
                    self._await_root(tree)
                    return
            # once something is marked, more events may pile up: they are taken together
            until = min(check_at, poller.due) if tree.polled else check_at
            self._wait(min(until, flush_at or until), tree, events=flush_at is None)
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

    def _wait(self, until: float, tree: Tree | None, *, events: bool = True) -> None:
        """Wait for a time, the end, or (with a tree) an event or a mount."""
        waiter = select.poll()
        waiter.register(self._wake_read, select.POLLIN)
        if tree is not None:
            self._mounts.register(waiter)
            if events and tree.inotify is not None:
                waiter.register(tree.inotify.fd, select.POLLIN)
        if self._tell.stopped:
            return
        woken = waiter.poll(max(0.0, until - time.monotonic()) * 1000)
        if tree is not None and any(event & select.POLLPRI for _, event in woken):
            tree.lost |= self._mounts.changed(os.fsencode(self._root.path))

    def _await_root(self, tree: Tree) -> None:
        """Tell that all is gone, and wait until the root is there again."""
        for name, entry in tree.top.names.items():
            self._tell.deleted(name, is_dir=entry is not None)
        self._tell.flush()
        tree.top.names.clear()
        tree.close()
        while not self._tell.stopped:
            if not self._root.gone:
                return
            self._wait(time.monotonic() + ROOT_S, None)
