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
    CLOSE_WRITE,
    CREATE,
    DELETE,
    EXCL_UNLINK,
    MOVED_FROM,
    MOVED_TO,
    ONLYDIR,
    Q_OVERFLOW,
    Inotify,
    new_inotify,
)
from workspace_runtime.paths import REMOTE, file_system_type

from .layout import ALL, Role, Snapshot, difference, meaning, snapshot, walk

logger = logging.getLogger(__name__)

_MOVE_SELF, _ISDIR = 0x800, 0x40000000
_MASK = CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | _MOVE_SELF | ONLYDIR | EXCL_UNLINK
_O_PATH = getattr(os, "O_PATH", 0)
_FOLDER = (_O_PATH or os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A repository with more folders than this, of refs nearly all, is looked at instead.
MAX_FOLDERS = 4000
POLL_S = 1.0
_SHARE = 20  # looks take at most this part of the time
_REBUILD_S = 1.0

# Called on the loop: one of the folders that are followed, and flags of `layout`.
Told = Callable[[bytes, int], None]


class FolderWatch:
    """See the module. Its methods are for the event loop."""

    def __init__(self, told: Told, *, force_polling: bool = False) -> None:
        self._work = _Work(asyncio.get_running_loop(), told, force_polling)

    async def follow(self, folders: Iterable[bytes], anew: Iterable[bytes] = ()) -> None:
        """From now on these folders, by their real absolute paths; they need not be there. Returns when the watches stand.

        `anew`: those of which something may be another folder now than when it was watched.
        """
        await self._work.wish(frozenset(folders), anew)

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
        self._wished: frozenset[bytes] = frozenset()
        self._anew: set[bytes] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.thread = threading.Thread(target=self._run, name="git-watch", daemon=True)
        self.thread.start()

    async def wish(self, folders: frozenset[bytes], anew: Iterable[bytes]) -> None:
        """Have these folders watched, and wait for it."""
        stands = self._loop.create_future()
        with self._lock:
            self._wished = folders
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

    def _tell(self, flags: dict[bytes, int]) -> None:
        def told() -> None:
            if not self._stopped:
                for folder, of in flags.items():
                    self._told(folder, of)

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
        self._roles: dict[bytes, dict[int, set[Role]]] = {}  # by repository's folder and the kernel's descriptor
        self._snapshots: dict[bytes, Snapshot] = {}
        self._look_at = 0.0

    def close(self) -> None:
        """Let go of everything."""
        if self.inotify is not None:
            self.inotify.close()

    @property
    def due(self) -> float | None:
        """When to look again at what can't be watched."""
        return self._look_at if self._snapshots else None

    def follow(self, wished: frozenset[bytes], anew: Container[bytes]) -> None:
        """Watch these and no others."""
        for gone in self._roles.keys() - wished:
            self._let_go(self._roles.pop(gone))
        for gone in self._snapshots.keys() - wished:
            del self._snapshots[gone]
        for folder in wished:
            if folder in anew or folder not in self._roles:
                self._arm(folder)

    def _arm(self, folder: bytes) -> None:
        """Watch all that is there of one repository now."""
        before = self._roles.get(folder, {})
        roles: dict[int, set[Role]] = {}
        # for those that were there already the same descriptor comes again
        self._roles[folder] = roles
        watched = self.inotify is not None and not file_system_type(folder).startswith(REMOTE)
        if watched:
            try:
                walk(folder, lambda path, role: self._add(roles, path, role))
            except _NoneLeft:
                watched = False
        if watched:
            self._snapshots.pop(folder, None)
        else:
            roles.clear()
            if not self._snapshots:
                self._look_at = time.monotonic() + POLL_S
            self._snapshots.setdefault(folder, snapshot(folder))
        self._let_go(before)

    def _add(self, roles: dict[int, set[Role]], path: bytes, role: Role) -> bool:
        try:
            held = os.open(path, _FOLDER)
        except OSError:
            return False
        try:
            assert self.inotify is not None
            wd = self.inotify.add(held, _MASK)
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

    def changes(self) -> dict[bytes, int]:
        """What has happened since, by repository's folder. When this returns, what is new is watched too."""
        flags: dict[bytes, int] = {}
        again: set[bytes] = set()
        if self.inotify is not None:
            self.inotify.drain()
            for wd, mask, _, name in self.inotify.events():
                if mask & Q_OVERFLOW:
                    self.inotify.overflowed = True
                for folder, roles in self._roles.items():
                    for role in roles.get(wd, ()):
                        # without a name it is the folder itself that went
                        what = meaning(role, name, folder) if name else ALL
                        if what:
                            flags[folder] = flags.get(folder, 0) | what
                            if mask & _ISDIR or not name or role is Role.ABOVE:
                                again.add(folder)
            if self.inotify.overflowed:
                self.inotify.overflowed = False
                flags, again = dict.fromkeys(self._roles, ALL), {*self._roles}
        for folder in again:
            self._arm(folder)
        for folder, what in self._looks().items():
            flags[folder] = flags.get(folder, 0) | what
        return flags

    def _looks(self) -> dict[bytes, int]:
        began = time.monotonic()
        if not self._snapshots or began < self._look_at:
            return {}
        flags = {}
        for folder, before in self._snapshots.items():
            self._snapshots[folder] = now = snapshot(folder)
            what = difference(folder, before, now)
            if what:
                flags[folder] = what
        ended = time.monotonic()
        self._look_at = ended + max(POLL_S, _SHARE * (ended - began))
        return flags


class _NoneLeft(Exception):
    """There are no watches left, or there are too many folders."""
