"""Tells when something of a repository's folders changes: what kind of thing, never what exactly (`layout.py`).

Invariant: once `follow` has returned, every later change in one of the folders followed is told, at least once. Nothing is told
only because git looked. One thread has the kernel's queue (inotify(7)) and all the looks at the disk; where there are no watches to
be had, and on file systems that do not tell of others' changes, it looks at all names of the folder every second or less often.

After a folder has come or gone, all watches of its repository are set anew: those that stand stay as they are, so it is cheap, and
there is no tree to be kept right while things move.
"""

import asyncio
import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Container, Iterable

from workspace_runtime.inotify import (
    ATTRIB,
    CLOSE_WRITE,
    CREATE,
    DELETE,
    EXCL_UNLINK,
    MODIFY,
    MOVED_FROM,
    MOVED_TO,
    ONLYDIR,
    Q_OVERFLOW,
    Inotify,
    new_inotify,
)
from workspace_runtime.mounts import REMOTE, file_system_type

from .layout import ALL, Followed, Kept, Role, Snapshot, difference, meaning, snapshot, walk

logger = logging.getLogger(__name__)

_MOVE_SELF, _MASK_ADD, _ISDIR = 0x800, 0x20000000, 0x40000000
# one folder may have several roles: what is asked for one is not taken from another
_MASK = CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | _MOVE_SELF | ONLYDIR | EXCL_UNLINK | _MASK_ADD
_MASK_OF_FILES = _MASK | MODIFY | ATTRIB
_O_PATH = getattr(os, "O_PATH", 0)
_FOLDER = (_O_PATH or os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A repository with more folders than this, of refs nearly all, is looked at instead.
MAX_FOLDERS = 4000
POLL_S = 1.0
_SHARE = 20  # looks take at most this part of the time
_REBUILD_S = 1.0

# Called on the loop: one of those that are followed, and flags of `layout`.
Told = Callable[[Followed, int], None]


class FolderWatch:
    """See the module. Its methods are for the event loop."""

    def __init__(self, told: Told, *, force_polling: bool = False) -> None:
        self._work = _Work(asyncio.get_running_loop(), told, force_polling)

    async def follow(self, wished: Iterable[Followed], anew: Iterable[Followed] = ()) -> None:
        """From now on these, by real absolute paths; they need not be there. Returns when the watches stand.

        `anew`: those of which something may be another folder now than when it was watched.
        """
        await self._work.wish(frozenset(wished), anew)

    async def stop(self) -> None:
        """Let go of everything; nothing is told after. Safe to call twice."""
        self._work.stop()
        await self._work.ended.wait()
        await asyncio.to_thread(self._work.thread.join)


class _Work:
    """The thread, and what it is told to do."""

    def __init__(self, loop: asyncio.AbstractEventLoop, told: Told, force_polling: bool) -> None:
        self.ended = asyncio.Event()
        self._loop, self._told, self._force_polling = loop, told, force_polling
        self._stopped = False
        self._lock = threading.Lock()
        self._wished: frozenset[Followed] = frozenset()
        self._anew: set[Followed] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.thread = threading.Thread(target=self._run, name="git-watch", daemon=True)
        self.thread.start()

    async def wish(self, wished: frozenset[Followed], anew: Iterable[Followed]) -> None:
        """Have these watched, and wait for it."""
        stands = self._loop.create_future()
        with self._lock:
            self._wished = wished
            self._anew.update(anew)
            self._waiting.append(stands)
        self._wake()
        await stands

    def stop(self) -> None:
        """Have the thread end soon. Does nothing when it has."""
        self._stopped = True
        self._wake()

    def _wake(self) -> None:
        if not self.ended.is_set():
            with contextlib.suppress(BlockingIOError):  # it is awake as it is
                os.write(self._wake_write, b"x")

    def _call(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(function)

    def _tell(self, flags: dict[Followed, int]) -> None:
        def told() -> None:
            if not self._stopped:
                for followed, of in flags.items():
                    self._told(followed, of)

        self._call(told)

    # --- the thread -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        watches = None
        try:
            while not self._stopped:
                try:
                    if watches is None:
                        watches = _Watches(None if self._force_polling else new_inotify())
                        watches.follow(self._wished, ())
                        self._tell(dict.fromkeys(self._wished, ALL))
                    self._turn(watches)
                except (
                    Exception
                ):  # the edge of the thread: a fault of ours must not mean that changes are missed from now on
                    logger.exception("watching repositories failed; all of them are looked at again")
                    if watches is not None:
                        watches.close()
                    watches = None
                    self._wait(None, time.monotonic() + _REBUILD_S)
        finally:
            if watches is not None:
                watches.close()
            self._call(self._end)

    def _end(self) -> None:
        self.ended.set()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._stand(self._waiting)

    def _turn(self, watches: "_Watches") -> None:
        with self._lock:
            wished, waiting, self._waiting = self._wished, self._waiting, []
            anew, self._anew = self._anew, set()
        if waiting:
            try:
                watches.follow(wished, anew)
            finally:
                self._call(lambda: self._stand(waiting))
        self._wait(watches, watches.due)
        flags = watches.changes()
        if flags:
            self._tell(flags)

    @staticmethod
    def _stand(waiting: "list[asyncio.Future[None]]") -> None:
        for stands in waiting:
            if not stands.done():
                stands.set_result(None)

    def _wait(self, watches: "_Watches | None", until: float | None) -> None:
        """Wait for a wish, the end, a time, or (with watches) an event."""
        waiter = select.poll()
        waiter.register(self._wake_read, select.POLLIN)
        if watches is not None and watches.inotify is not None:
            waiter.register(watches.inotify.fd, select.POLLIN)
        if not self._stopped:
            waiter.poll(None if until is None else max(0.0, until - time.monotonic()) * 1000)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)


class _Watches:
    """What is watched and looked at for all repositories. Used by one thread."""

    def __init__(self, inotify: Inotify | None) -> None:
        self.inotify = inotify
        self._roles: dict[Followed, dict[int, set[Role]]] = {}  # by the kernel's descriptor
        self._snapshots: dict[Followed, Snapshot] = {}
        self._look_at = 0.0

    def close(self) -> None:
        """Let go of everything."""
        if self.inotify is not None:
            self.inotify.close()

    @property
    def due(self) -> float | None:
        """When to look again at what can't be watched."""
        return self._look_at if self._snapshots else None

    def follow(self, wished: frozenset[Followed], anew: Container[Followed]) -> None:
        """Watch these and no others."""
        for gone in self._roles.keys() - wished:
            self._let_go(self._roles.pop(gone))
        for gone in self._snapshots.keys() - wished:
            del self._snapshots[gone]
        for followed in wished:
            if followed in anew or followed not in self._roles:
                self._arm(followed)

    def _arm(self, followed: Followed) -> None:
        """Watch all that is there of one now."""
        before = self._roles.get(followed, {})
        roles: dict[int, set[Role]] = {}
        # for those that were there already the same descriptor comes again
        self._roles[followed] = roles
        place = followed.top if isinstance(followed, Kept) else followed
        watched = self.inotify is not None and not file_system_type(place).startswith(REMOTE)
        if watched:
            try:
                walk(followed, lambda path, role: self._add(roles, path, role))
            except _NoneLeft:
                watched = False
        if watched:
            self._snapshots.pop(followed, None)
        else:
            roles.clear()
            if not self._snapshots:
                self._look_at = time.monotonic() + POLL_S
            self._snapshots.setdefault(followed, snapshot(followed))
        self._let_go(before)

    def _add(self, roles: dict[int, set[Role]], path: bytes, role: Role) -> bool:
        try:
            held = os.open(path, _FOLDER)
        except OSError:
            return False
        try:
            assert self.inotify is not None
            wd = self.inotify.add(held, _MASK_OF_FILES if role is Role.KEPT else _MASK)
        except PermissionError:
            return False
        except OSError:
            raise _NoneLeft from None
        finally:
            os.close(held)
        roles.setdefault(wd, set()).add(role)
        if len(roles) > MAX_FOLDERS:
            raise _NoneLeft
        return True

    def _let_go(self, wds: Iterable[int]) -> None:
        for wd in wds:
            if self.inotify is not None and not any(wd in roles for roles in self._roles.values()):
                self.inotify.remove(wd)

    def changes(self) -> dict[Followed, int]:
        """What has happened since, by what is followed. When this returns, what is new is watched too."""
        flags: dict[Followed, int] = {}
        again: set[Followed] = set()
        if self.inotify is not None:
            self.inotify.drain()
            for wd, mask, _, name in self.inotify.events():
                if mask & Q_OVERFLOW:
                    self.inotify.overflowed = True
                for followed, roles in self._roles.items():
                    for role in roles.get(wd, ()):
                        # without a name it is the folder itself that went
                        what = meaning(role, name, followed) if name else ALL
                        if what:
                            flags[followed] = flags.get(followed, 0) | what
                            if mask & _ISDIR or not name or role is Role.ABOVE:
                                again.add(followed)
            if self.inotify.overflowed:
                self.inotify.overflowed = False
                flags, again = dict.fromkeys(self._roles, ALL), {*self._roles}
        for followed in again:
            self._arm(followed)
        for followed, what in self._looks().items():
            flags[followed] = flags.get(followed, 0) | what
        return flags

    def _looks(self) -> dict[Followed, int]:
        began = time.monotonic()
        if not self._snapshots or began < self._look_at:
            return {}
        flags = {}
        for followed, before in self._snapshots.items():
            self._snapshots[followed] = now = snapshot(followed)
            what = difference(followed, before, now)
            if what:
                flags[followed] = what
        ended = time.monotonic()
        self._look_at = ended + max(POLL_S, _SHARE * (ended - began))
        return flags


class _NoneLeft(Exception):
    """There are no watches left, or there are too many folders."""
