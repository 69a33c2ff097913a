"""Changes on their way from the watcher's thread to the event loop, in batches and in order."""

import asyncio
import functools
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from workspace_runtime.paths import etag_of

BATCH = 200
MAX_BATCHES = 160  # that the loop has not taken yet


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
Repositories = Callable[[Sequence[bytes]], None]


class Stopped(Exception):
    """The work is to end now."""


class Teller:
    """Gathers changes in the thread and hands them to the loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, changed: Changed, resync: Resync, repositories: Repositories
    ) -> None:
        self.stopped = False
        self.loop = loop
        self._changed, self._resync, self._repositories = changed, resync, repositories
        self._batch: list[Change] = []
        self._free = threading.Semaphore(MAX_BATCHES)
        self._handed: deque[Callable[[], None]] = deque()
        self._goes_on = False  # whether the loop takes the next one by itself

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

    def repositories(self, paths: list[bytes]) -> None:
        """In these folders a repository may have come or gone: no change of a file, but git sees what is in them otherwise."""
        self._hand(functools.partial(self._repositories, paths))

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
                raise Stopped
        self._handed.append(take)
        self.call(self._take)

    def _take(self) -> None:
        """Take one batch in each turn of the loop, however many are there, so that it serves others in between."""
        if not self._goes_on:
            self._take_one()

    def _take_one(self) -> None:
        self._goes_on = False
        if not self._handed:
            return
        take = self._handed.popleft()
        self._free.release()
        if self._handed:
            self._goes_on = True
            self.loop.call_soon(self._take_one)
        if not self.stopped:
            take()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Have the loop call it. A loop that is closed ends the work."""
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self.stopped = True
