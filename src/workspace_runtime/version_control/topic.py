"""The topic `git`: what has changed of the repositories' state, whoever changed it, and how operations of ours go on.

What is told is the difference between two readings of a repository: the state that `status` answers, and all refs. Changes on the
disk (of git's folders by `folder_watch.py`, of files by the board's own topic `files`) only say when to read. So a program that just
looks, or that packs what is there, tells nothing, and one change is one event however many files it writes.

Invariant: after a change there is a reading that began after it. A repository is read by one task, so never twice at once; it waits
until things are quiet, though not for long, and rests the longer the longer a reading takes. An idle repository is not read at all.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.board import Board, LiveEvent, LiveSubscription, Missed, Publish
from workspace_runtime.paths import path_bytes, shown
from workspace_runtime.processes import finish

from .facts import CHANGES, Facts, Reading
from .folder_watch import FolderWatch
from .layout import ALL, OWN, PLACE, REFS, SHARED, TRACKED, Followed, Kept
from .operations import Operation
from .room import VersionControl

logger = logging.getLogger(__name__)

MAX_REPOSITORIES = 20
# A repository is read when nothing has happened for so long and git holds no lock, or after so long in any case.
QUIET_S = 0.05
SETTLE_S = 0.5
_LOCK_S = 0.01
# Between the begins of two readings lies this, and this many times what the last one took.
REST_S, REST_TIMES = 0.3, 5
# How many repositories are read at once, and how long the first subscriber waits for their first readings.
READINGS = 2
START_S = 5.0
# After a reading that failed.
RETRY_S = 5.0
# Files in a folder that git ignores are told by nobody: a repository there is read again and again, for at most this part of the time.
UNSEEN_S, UNSEEN_TIMES = 2.0, 20
# So often is a repository looked for whose place changes all the time.
_PLACES = 5
_TAKE_BYTES = 128 * 1024


@dataclass(slots=True, eq=False)
class _Followed:
    """A repository that is followed. `root`: its folder in the workspace. `told`: what clients know of it; None: not yet anything."""

    root: bytes
    reading: Reading
    told: Facts | None = None
    flags: int = ALL  # what may have changed since the last reading began
    first: float = 0.0  # when that began, and when it was seen last
    last: float = 0.0
    marked: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None
    timer: asyncio.TimerHandle | None = None
    silent: bool = False  # its first reading is not told: who listens begins after it
    known: asyncio.Event = field(default_factory=asyncio.Event)


class GitTopic:
    """See the module. Follows the repository of the workspace's root, and those that requests have named.

    `board` gives the board that this topic is on. `force_polling`: as where the kernel does not tell of changes.
    """

    name = "git"
    by_default = False

    def __init__(self, room: VersionControl, board: Callable[[], Board], *, force_polling: bool = False) -> None:
        self._room = room
        self._board = board
        self._force_polling = force_polling
        self._roots: dict[bytes, None] = {b"": None}
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._publish: Publish | None = None
        self._watch: FolderWatch | None = None
        self._files: LiveSubscription | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._followed: dict[bytes, _Followed] = {}
        self._readings = asyncio.Semaphore(READINGS)
        room.told = self._operation_changed
        room.noticed = self._noticed

    async def start(self, publish: Publish) -> None:
        """Returns when the watches stand and each repository was read once (the slow ones are told of later)."""
        self._loop = asyncio.get_running_loop()
        self._publish = publish
        try:
            self._watch = FolderWatch(self._moved, force_polling=self._force_polling)
            heard = asyncio.Event()
            self._files = await self._board().subscribe(frozenset({"files"}), heard.set)
            self._hearing = self._loop.create_task(self._hear(self._files, heard))
            with self._lock:
                roots = list(self._roots)
            begun = [self._take_up(root, silent=True) for root in roots]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(START_S):
                    for followed in begun:
                        await followed.known.wait()
            for followed in begun:
                followed.silent = False
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Follow nothing more, and end the readings."""
        self._publish = None
        hearing, self._hearing = self._hearing, None
        if hearing is not None:
            hearing.cancel()
        ending = [hearing] + [self._drop(root) for root in list(self._followed)]
        if self._files is not None:
            self._files.close()
            self._files = None
        watch, self._watch = self._watch, None

        async def ended() -> None:
            await asyncio.gather(*(task for task in ending if task is not None), return_exceptions=True)
            if watch is not None:
                await watch.stop()

        await finish(ended())

    async def greeting(self, *, missed: bool) -> Sequence[LiveEvent]:
        """Nothing to who begins: it reads what it shows. All repositories, with all that can change, to who has missed events."""
        if not missed:
            return []
        return [_changed(one.root, one.told, CHANGES) for one in self._followed.values() if one.told is not None]

    def _operation_changed(self, operation: Operation) -> None:
        if self._publish is not None:
            self._publish([LiveEvent(b'{"type":"git_operation","operation":%b}' % operation.brief())])

    # --- which repositories -------------------------------------------------------------------------------------------------

    def _noticed(self, root: bytes) -> None:
        """A request has named a repository. Called in any thread."""
        if root in self._roots:
            return
        with self._lock:
            self._roots[root] = None
            dropped = [oldest for oldest in list(self._roots)[1:] if len(self._roots) > MAX_REPOSITORIES][:1]
            for oldest in dropped:
                del self._roots[oldest]
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._exchange, dropped, root)

    def _exchange(self, dropped: Sequence[bytes], root: bytes) -> None:
        if self._publish is None:
            return
        for oldest in dropped:
            self._drop(oldest)
        if root not in self._followed:
            # what it was when the client read it is not known any more: so the first reading is told
            self._take_up(root, silent=False)

    def _take_up(self, root: bytes, *, silent: bool) -> _Followed:
        followed = self._followed[root] = _Followed(root, Reading(self._room, root), silent=silent)
        followed.marked.set()
        assert self._loop is not None
        followed.task = self._loop.create_task(self._follow(followed))
        return followed

    def _drop(self, root: bytes) -> "asyncio.Task[None] | None":
        followed = self._followed.pop(root, None)
        if followed is None or followed.task is None:
            return None
        if followed.timer is not None:
            followed.timer.cancel()
        followed.task.cancel()
        return followed.task

    # --- when something may have changed --------------------------------------------------------------------------------------

    def _mark(self, followed: _Followed, flags: int) -> None:
        assert self._loop is not None
        followed.last = self._loop.time()
        if not followed.marked.is_set():
            followed.first = followed.last
            followed.marked.set()
        followed.flags |= flags

    def _moved(self, what: Followed, flags: int) -> None:
        for followed in self._followed.values():
            if what in followed.reading.followed:
                # of a linked working tree the main repository's own index and HEAD are none of its business
                own = isinstance(what, Kept) or what in followed.reading.own
                mine = flags if own else flags & (SHARED | REFS | PLACE)
                if mine:
                    self._mark(followed, mine)

    async def _hear(self, files: LiveSubscription, heard: asyncio.Event) -> None:
        while True:
            await heard.wait()
            heard.clear()
            try:
                events: Sequence[LiveEvent] = files.take(_TAKE_BYTES)
            except Missed:
                events = await files.start_anew(missed=True)
            for event in events:
                self._file_changed(event)
            if events:
                heard.set()
                await asyncio.sleep(0)

    def _file_changed(self, event: LiveEvent) -> None:
        path = event.path or b""
        for followed in self._followed.values():
            root = followed.root
            if path == root or not path or root.startswith(path + b"/"):
                # the folder itself, or one above it: perhaps the repository is gone, or there again
                if event.deep or root:
                    self._mark(followed, ALL)
            elif not root or path.startswith(root + b"/"):
                rules = event.deep or os.path.basename(path) == b".gitignore"
                self._mark(followed, OWN | TRACKED if rules else OWN)

    def repositories_moved(self, folders: Sequence[bytes]) -> None:
        """To be called when in these folders a repository may have come or gone: to those around it what is there counts otherwise."""
        if self._publish is None:
            return
        for followed in self._followed.values():
            root = followed.root
            if any(folder != root and (not root or folder.startswith(root + b"/")) for folder in folders):
                self._mark(followed, OWN)

    # --- what has changed -----------------------------------------------------------------------------------------------------

    async def _follow(self, followed: _Followed) -> None:
        """The whole life of a repository that is followed: the edge of its task."""
        loop = asyncio.get_running_loop()
        while True:
            await followed.marked.wait()
            if followed.known.is_set():
                await self._settled(followed)
            async with self._readings:
                began = loop.time()
                flags, followed.flags = followed.flags, 0
                followed.marked.clear()
                try:
                    facts = await self._read(followed, flags)
                except WorkspaceError as fault:
                    if fault.code == "shutting_down":
                        return
                    logger.info("the repository in %r could not be read: %s", shown(followed.root), fault.detail)
                    facts = Facts.unknown(followed.told)
                except Exception:  # the edge: other repositories are followed on
                    logger.exception("the repository in %r could not be read", shown(followed.root))
                    facts = Facts.unknown(followed.told)
                took = loop.time() - began
            self._tell(followed, facts)
            if followed.timer is not None:
                followed.timer.cancel()
            if facts.failed:
                followed.timer = loop.call_later(RETRY_S, self._mark, followed, ALL)
            elif followed.reading.unseen:
                followed.timer = loop.call_later(max(UNSEEN_S, UNSEEN_TIMES * took), self._mark, followed, OWN)
            await asyncio.sleep(max(REST_S, REST_TIMES * took) - took)

    async def _read(self, followed: _Followed, flags: int) -> Facts:
        reading = followed.reading
        if flags & PLACE or followed.told is None:
            flags |= REFS | TRACKED
        if flags & (REFS | TRACKED):
            for _ in range(_PLACES):
                before = reading.followed
                if flags & REFS:
                    await reading.find()
                if flags & TRACKED:
                    await reading.find_kept()
                if not flags & PLACE and reading.followed == before:
                    break
                # it is looked at once more when the watches stand
                flags &= ~PLACE
                await self._rewatch(reading)
        return await reading.facts()

    async def _rewatch(self, reading: Reading) -> None:
        assert self._watch is not None
        wished = {followed for one in self._followed.values() for followed in one.reading.followed}
        await self._watch.follow(wished, reading.followed)

    async def _settled(self, followed: _Followed) -> None:
        """Wait until whoever changes the repository has done so."""
        loop = asyncio.get_running_loop()
        end = followed.first + SETTLE_S
        while (now := loop.time()) < end:
            quiet = followed.last + QUIET_S
            if now >= quiet:
                if not await asyncio.to_thread(_is_locked, followed.reading.own):
                    return
                quiet = now + _LOCK_S
            await asyncio.sleep(min(quiet, end) - now)

    def _tell(self, followed: _Followed, facts: Facts) -> None:
        before, followed.told = followed.told, facts
        followed.known.set()
        changed = facts.changed(before)
        if changed and not (before is None and followed.silent) and self._publish is not None:
            self._publish([_changed(followed.root, facts, changed)])


def _is_locked(folders: Sequence[bytes]) -> bool:
    """Whether a git is in the middle of changing the index: it holds this lock until all that belongs together is written."""
    return any(os.path.lexists(os.path.join(folder, b"index.lock")) for folder in folders)


def _changed(root: bytes, facts: Facts | None, changed: Sequence[str]) -> LiveEvent:
    body = {
        "type": "git_changed",
        "root": shown(root),
        "changed": changed,
        "head": facts.head if facts is not None else None,
        "status_etag": facts.etag if facts is not None else None,
    }
    if encoded := path_bytes(root):
        body["root_bytes"] = encoded
    # without a path: who narrowed the files that it hears of still wants to know of their repository
    return LiveEvent(orjson.dumps(body))
