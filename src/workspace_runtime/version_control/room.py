"""The repositories of one workspace: the parts of this room put together, the threads that reads run on, and the turns of writers.

A read that many ask for at once is run once. Whoever asks joins a run that has not begun yet, never one that has: so what one gets
is never older than the question. A burst of questions is waited for a moment, so that it becomes one run.
"""

import asyncio
import functools
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote_to_bytes
from weakref import WeakValueDictionary

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import WorkspaceRoot, shown
from workspace_runtime.threads import done

from .cloning import remove
from .confinement import all_must_stay, is_below
from .discovery import Known, find
from .git import TOO_MANY, Stop, StoppedError, too_many
from .operations import Operation, Operations
from .repository import Repository
from .status import Status, Untracked
from .submodules import Find
from .work import Work

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Read = Callable[[Repository, bytes], T]
Write = Callable[[Work], Awaitable[dict[str, Any]]]

THREADS, THREADS_EACH = 8, 4
MAX_STATUSES = 100
# How long a question waits for others like it: for as long as they keep coming, and not longer.
QUIET_S = 0.001
GATHER_S = 0.02


@dataclass(slots=True, eq=False)
class _Run:
    """One run that some wait for."""

    task: "asyncio.Task[Any] | None" = None
    askers: int = 0


@dataclass(slots=True)
class _Question:
    """The runs of one question: one at most that works, and one at most that is to come."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    coming: _Run | None = None
    runs: int = 0


class VersionControl:
    """See the module. `state` is the folder of the server's own state, `scratch` one for what lives as long as the server.

    `trusted`: in writes, the programs that a repository's own configuration names (hooks, filters, merge drivers) run.
    """

    def __init__(self, root: WorkspaceRoot, state: Path, scratch: Path, *, trusted: bool) -> None:
        self.root = root
        self.root_bytes = os.fsencode(root.path)
        self._trusted = trusted
        self._scratch = scratch
        self._indexes = state / "git"
        self._indexes.mkdir(mode=0o700, exist_ok=True)
        # of a server that was killed: what its gits were called with, and messages
        for left in (*scratch.glob("trace-*"), *scratch.glob("message-*")):
            left.unlink(missing_ok=True)
        self._executor = ThreadPoolExecutor(THREADS, "git")
        self._known = Known(trusted=trusted)
        for (
            left
        ) in self._indexes.iterdir():  # of repositories that may be gone; one that is asked for again is made anew
            left.unlink(missing_ok=True)
        self._turns: WeakValueDictionary[bytes, asyncio.Semaphore] = WeakValueDictionary()
        self._questions: dict[Hashable, _Question] = {}
        self._statuses: OrderedDict[tuple[bytes, bytes], tuple[Status, threading.Lock]] = OrderedDict()
        self._statuses_lock = threading.Lock()
        self._stops: set[Stop] = set()
        self._closing = False
        self.find_module: Find = lambda path, stop: find(self.root, path, self._known, stop)
        self.operations = Operations(state / "operations", lambda operation: self.told(operation))
        self.told: Callable[[Operation], None] = lambda _: None
        # called, in any thread, with the root of each repository that is read
        self.noticed: Callable[[bytes], None] = lambda _: None
        for leftover in self.operations.load():
            logger.info("half a clone of a server that was killed is removed: %s", leftover)
            remove(unquote_to_bytes(leftover))

    # --- reading --------------------------------------------------------------------------------------------------------

    async def reading(self, call: Read[T], path: bytes, key: Hashable = None) -> T:
        """What `call` finds in the repository that `path` lies in; it also gets the path below the repository's root. Runs in a thread.

        With a `key`, which says all that the answer depends on, those who ask at once share one run. Raises what `find` and the
        call raise, and `shutting_down`.
        """
        if key is None:
            return await self._read(call, path)
        question = self._questions.setdefault((key, path), _Question())
        run = question.coming
        if run is None:
            run = question.coming = _Run()
            question.runs += 1
            run.task = asyncio.get_running_loop().create_task(self._answer((key, path), question, run, call, path))
        run.askers += 1
        assert run.task is not None
        try:
            result: T = await asyncio.shield(run.task)
            return result
        finally:
            run.askers -= 1
            if not run.askers and not run.task.done():
                run.task.cancel()
                if question.coming is run:
                    question.coming = None

    async def _answer(self, key: Hashable, question: _Question, run: _Run, call: Read[T], path: bytes) -> T:
        try:
            async with question.lock:
                await self._gathered(run)
                question.coming = None  # from here on it is too late to join
                return await self._read(call, path)
        finally:
            if question.coming is run:
                question.coming = None
            question.runs -= 1
            if not question.runs:
                self._questions.pop(key, None)

    async def _gathered(self, run: _Run) -> None:
        """Wait until nobody has joined for a moment."""
        loop = asyncio.get_running_loop()
        end = loop.time() + GATHER_S
        askers = 0
        while askers != run.askers and loop.time() < end:
            askers = run.askers
            await asyncio.sleep(QUIET_S)

    async def _read(self, call: Read[T], path: bytes) -> T:
        stop = Stop()
        repository, inner = await self._blocking(stop, find, self.root, path, self._known, stop)
        if not repository.away:
            self.noticed(repository.root)
        # so that a repository at which git hangs can't take all threads
        turns = self._turns.setdefault(repository.git_dir, asyncio.Semaphore(THREADS_EACH))
        async with turns:
            return await self._blocking(stop, call, repository, inner)

    async def _blocking(self, stop: Stop, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking call in a thread. Cancelled, it has git stopped, and returns when the thread is free again."""
        if self._closing:
            raise WorkspaceError("shutting_down", "The server is stopping.")
        self._stops.add(stop)
        work = asyncio.get_running_loop().run_in_executor(self._executor, functools.partial(call, *args, **kwargs))
        try:
            return await done(work, stop.set)
        except StoppedError:
            raise WorkspaceError("shutting_down", "The server is stopping.") from None
        except OSError as fault:
            if fault.errno in TOO_MANY:
                raise too_many() from None
            raise
        finally:
            self._stops.discard(stop)

    async def status(self, path: bytes, *, untracked: Untracked = "all", ignored: bool = False) -> tuple[bytes, str]:
        """The state of the working tree that `path` lies in, as JSON, and its entity tag."""

        def read(repository: Repository, _: bytes) -> tuple[bytes, str]:
            status, lock = self._status_of(repository)
            with lock:
                return status.read(repository, untracked=untracked, ignored=ignored)

        return await self.reading(read, path, ("status", untracked, ignored))

    def _status_of(self, repository: Repository) -> tuple[Status, threading.Lock]:
        key = (repository.git_dir, repository.top)
        with self._statuses_lock:
            found = self._statuses.get(key)
            if found is None:
                status = Status(self.root, self._known, self._indexes, repository.git_dir)
                found = self._statuses[key] = (status, threading.Lock())
            self._statuses.move_to_end(key)
            while len(self._statuses) > MAX_STATUSES:
                self._statuses.popitem(last=False)[1][0].forget()
            return found

    async def find(self, path: bytes) -> Repository:
        """The repository that a path lies in."""
        return await self.reading(lambda repository, _: repository, path)

    def _to_write(self, repository: Repository, _: bytes) -> Repository:
        """The repository, if nothing in it leads a write out of the workspace."""
        for folder in {repository.git_dir, repository.common_dir}:
            if is_below(folder, self.root_bytes):
                all_must_stay(folder, self.root_bytes)
        return repository

    # --- writing --------------------------------------------------------------------------------------------------------

    async def begin(
        self, kind: str, path: bytes, call: Write, *, kept: bool = False, patient: bool = False, worktree: bool = True
    ) -> Operation:
        """Start `call` as an operation on the repository that `path` lies in, once those before it are done. `kept`: its result
        survives a restart. `patient`: it waits for its turn as long as it takes. `worktree`: it needs a working tree.

        Raises at once where the repository can't be written.
        """
        repository = await self.find(path)
        repository.need_write()
        if worktree:
            repository.need_worktree()

        async def run(operation: Operation) -> dict[str, Any]:
            # looked for again: what was before it in line may have changed the configuration
            now = await self.reading(self._to_write, path)
            if now.places != repository.places:
                raise WorkspaceError(
                    "repository_moved", "While this waited for its turn, another repository took this one's place."
                )
            return await call(self.work(now, operation))

        return await self.operations.begin(
            kind, shown(repository.root), repository.common_dir, run, kept=kept, patient=patient
        )

    async def begin_new(self, kind: str, path: bytes, call: Write, *, kept: bool = False) -> Operation:
        """As `begin`, for work that makes a repository at `path`: git runs in the workspace's root, with the user's settings alone."""

        def nowhere() -> Repository:
            top = self.root_bytes
            user = self._known.configuration(b"/", b"/", b"/")
            return Repository(top, top, top, path, configuration=user, stop=stop, trusted=self._trusted)

        stop = Stop()

        async def run(operation: Operation) -> dict[str, Any]:
            return await call(self.work(await self._blocking(stop, nowhere), operation))

        return await self.operations.begin(kind, shown(path), b"new:" + path, run, kept=kept)

    def work(self, repository: Repository, operation: Operation) -> Work:
        """What an operation on this repository has at hand."""
        blocking = functools.partial(self._blocking, repository.stop)
        return Work(repository, operation, self._scratch, blocking)

    async def change(self, kind: str, path: bytes, call: Write, *, worktree: bool = True) -> dict[str, Any]:
        """As `begin`, and wait for the result. When this is cancelled the operation goes on."""
        return await self.operations.result(await self.begin(kind, path, call, worktree=worktree))

    async def close(self) -> None:
        """End all operations and reads, and let go of the threads."""
        await self.operations.close()
        self._closing = True
        for stop in list(self._stops):
            stop.set()
        await asyncio.to_thread(self._executor.shutdown)
