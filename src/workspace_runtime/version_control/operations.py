"""What changes a repository, one at a time: each such piece of work is an operation, which can be waited for, watched and cancelled.

Writers of one repository take turns, in the order they came; readers never wait for them. An operation runs in a task of its own, so
it goes on when its client has gone, and its result is kept: of those that speak with other machines over restarts as well, each in a
file of the state folder. One that the end of the server cut short says so afterwards.
"""

import asyncio
import contextlib
import datetime
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.processes import finish

from . import cursors
from .credentials import tellable
from .git import TOO_MANY, too_many

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Call = Callable[["Operation"], Awaitable[dict[str, Any]]]

MAX_KEPT = 100
# Bytes of one in a list or a frame, and characters of what its error says there.
MAX_BRIEF = 64 * 1024
MAX_DETAIL = 2000
# How many may wait for one repository, and how long a client that waits for the answer stands in line.
MAX_QUEUED = 32
PATIENCE_S = 60.0
# Progress is told this often at most.
PROGRESS_S = 0.25
ENDED = ("succeeded", "failed", "cancelled")
_ID = re.compile(r"op_[0-9a-f]{24}")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(slots=True, eq=False)
class Operation:
    """One piece of work, and what came of it. `root`: the repository's folder in the workspace."""

    kind: str
    root: str
    kept: bool = False
    id: str = field(
        default_factory=lambda: f"op_{time.time_ns():016x}{secrets.token_hex(4)}"
    )  # sorted they are in order
    status: State = "queued"
    created_at: str = field(default_factory=_now)
    started_at: str | None = None
    ended_at: str | None = None
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: WorkspaceError | None = None
    leftovers: list[str] = field(
        default_factory=list
    )  # absolute paths, percent-encoded, that must go if the work does not end well
    notes: dict[str, Any] = field(default_factory=dict)  # what must be told if it is cancelled
    _task: "asyncio.Task[None] | None" = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _told_at: float = 0.0
    _timer: asyncio.TimerHandle | None = None
    _told: Callable[["Operation"], None] = lambda _: None

    def brief(self) -> bytes:
        """The operation as JSON in a list or a frame: without its result, and of an error with its code and detail alone, where these
        are long. `truncated` says it then: `GET` of the operation has all of it."""
        view = self.view()
        data = orjson.dumps(view, default=str)
        if len(data) <= MAX_BRIEF:
            return data
        error = self.error and _problem(WorkspaceError(self.error.code, self.error.detail[:MAX_DETAIL]))
        return orjson.dumps({**view, "result": None, "error": error, "truncated": True}, default=str)

    def view(self) -> dict[str, Any]:
        """The whole operation as clients see it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "root": self.root,
            "status": self.status,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "progress": self.progress,
            "result": self.result,
            "error": _problem(self.error) if self.error is not None else None,
            "truncated": False,
        }

    def tell_progress(self, progress: dict[str, Any]) -> None:
        """The work has come this far. Told to who watches, a few times a second at most."""
        self.progress = progress
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._told_at + PROGRESS_S), self.tell)

    def tell(self) -> None:
        """Wake who watches."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._told_at = asyncio.get_running_loop().time()
        self._changed.set()
        self._changed = asyncio.Event()
        self._told(self)

    async def watch(self) -> AsyncIterator[bytes]:
        """The operation (see `brief`) now and after each change, up to its end."""
        while True:
            changed = self._changed
            yield self.brief()
            if self.status in ENDED:
                return
            await changed.wait()


def _newest_first(operation: Operation) -> tuple[int, bytes]:
    return -int(operation.id[3:19], 16), operation.id.encode()


def _problem(error: WorkspaceError) -> dict[str, Any]:
    return {**error.data, "code": error.code, "detail": error.detail, "status": error.status}


@dataclass(slots=True)
class _Line:
    """Who writes to one repository, and how many wait, that one included."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    holder: Operation | None = None
    present: int = 0


class Operations:
    """See the module. `told` is called with each change of one."""

    def __init__(self, folder: Path, told: Callable[[Operation], None] = lambda _: None) -> None:
        self._folder = folder
        self._told = told
        self._all: dict[str, Operation] = {}
        self._lines: dict[bytes, _Line] = {}
        self._closing = False

    async def begin(
        self, kind: str, root: str, line: bytes, call: Call, *, kept: bool = False, patient: bool = False
    ) -> Operation:
        """Start an operation, which waits in the `line` of its repository. `kept`: it and its result survive a restart. `patient`: it
        waits in line for as long as it takes. Raises `WorkspaceError` (`repository_busy`, `shutting_down`, `storage_unavailable`)."""
        if self._closing:
            raise WorkspaceError("shutting_down", "The server is stopping.")
        queue = self._lines.setdefault(line, _Line())
        if queue.present > MAX_QUEUED:
            raise self._busy(queue)
        operation = Operation(kind, root, kept, _told=self._told)
        self._all[operation.id] = operation
        self._forget()
        # in line before anything is waited for: the order is that of the calls, and nobody else begins the line anew
        queue.present += 1
        loop = asyncio.get_running_loop()
        saved = loop.create_task(self._save(operation))
        operation._task = loop.create_task(self._run(operation, line, queue, call, patient, saved))
        try:
            await asyncio.shield(saved)
        except WorkspaceError:
            self._all.pop(operation.id, None)
            raise
        return operation

    async def _run(
        self, operation: Operation, key: bytes, queue: _Line, call: Call, patient: bool, saved: "asyncio.Task[None]"
    ) -> None:
        """The whole life of an operation: the edge of its task."""
        try:
            async with self._turn(operation, key, queue, patient):
                await asyncio.shield(saved)
                operation.status, operation.started_at = "running", _now()
                operation.tell()
                operation.result = await call(operation)
            operation.status = "succeeded"
        except asyncio.CancelledError:
            operation.status = "failed" if self._closing else "cancelled"
            code, detail = (
                ("operation_cut", "The server was stopped.")
                if self._closing
                else ("operation_cancelled", "It was cancelled.")
            )
            operation.error = WorkspaceError(code, detail, **operation.notes)
        except WorkspaceError as fault:
            operation.status, operation.error = "failed", fault
        except Exception as fault:  # the edge: the client is told without the exception's text
            operation.status = "failed"
            if isinstance(fault, OSError) and fault.errno in TOO_MANY:
                operation.error = too_many()
            else:
                logger.exception("operation %s (%s) failed", operation.id, operation.kind)
                operation.error = WorkspaceError("internal_error", "Something went wrong in the server.")
        operation.ended_at = _now()
        operation.progress = None
        try:
            await finish(self._save(operation))
        except asyncio.CancelledError:
            pass
        except WorkspaceError as fault:
            logger.error("operation %s has ended, but: %s", operation.id, fault.detail)
        operation.tell()

    @contextlib.asynccontextmanager
    async def _turn(self, operation: Operation, key: bytes, queue: _Line, patient: bool) -> AsyncIterator[None]:
        try:
            try:
                async with asyncio.timeout(None if patient else PATIENCE_S):
                    await queue.lock.acquire()
            except TimeoutError:
                raise self._busy(queue) from None
            try:
                queue.holder = operation
                yield
            finally:
                queue.holder = None
                queue.lock.release()
        finally:
            queue.present -= 1
            if not queue.present:
                self._lines.pop(key, None)

    def _busy(self, queue: _Line) -> WorkspaceError:
        holder = queue.holder
        what = f"{holder.kind} ({holder.id}) is at work" if holder else "others wait"
        return WorkspaceError(
            "repository_busy",
            f"The repository is busy: {what}.",
            operation_id=holder.id if holder else None,
            retry_after_s=5,
        )

    async def result(self, operation: Operation) -> dict[str, Any]:
        """Wait for the end. When this is cancelled the operation goes on. Raises what it failed with."""
        if operation._task is not None:
            await asyncio.shield(operation._task)
        if operation.error is not None:
            raise operation.error
        return operation.result or {}

    async def cancel(self, operation: Operation) -> None:
        """End it, with all that it has started; returns when that is done. Harmless when it has ended."""
        task = operation._task
        if task is not None and not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
            if operation.status not in ENDED:  # it had not begun
                operation.status, operation.ended_at = "cancelled", _now()
                operation.error = WorkspaceError("operation_cancelled", "It was cancelled.")
                operation.tell()

    def get(self, id: str) -> Operation:
        """Raises `WorkspaceError` (`operation_not_found`)."""
        operation = self._all.get(id)
        if operation is None:
            raise WorkspaceError(
                "operation_not_found", f"There is no operation {tellable(id)!r}, or it is no longer kept."
            )
        return operation

    def all(self) -> list[Operation]:
        """Those that are known, the newest first."""
        return list(reversed(self._all.values()))

    def page(self, limit: int, cursor: str | None) -> dict[str, Any]:
        """A page of those that are known, the newest first: `{"items", "next_cursor"}`. Raises `cursor_invalid`."""
        bound = cursors.binding("operations")
        # an id counts up, and its operation may be forgotten meanwhile
        listed = sorted(self._all.values(), key=_newest_first)
        found, after = cursors.page(listed, _newest_first, bound, limit, cursor, lambda one: len(one.brief()))
        return {"items": [orjson.Fragment(operation.brief()) for operation in found], "next_cursor": after}

    async def close(self) -> None:
        """End all of them. Bounded by how long their processes take to end."""
        self._closing = True
        await asyncio.gather(*(self.cancel(operation) for operation in self._all.values()))

    # --- kept over restarts ---------------------------------------------------------------------------------------------

    async def _save(self, operation: Operation) -> None:
        if operation.kept:
            await asyncio.to_thread(self._write, operation)

    def note(self, operation: Operation) -> Awaitable[None]:
        """Write down what must go if the server is killed now (`leftovers`)."""
        return asyncio.to_thread(self._write, operation)

    def _write(self, operation: Operation) -> None:
        body = orjson.dumps({**operation.view(), "leftovers": operation.leftovers}, default=str)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self._folder / f"{operation.id}.new"
            opened = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(opened, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(opened)
            os.replace(fresh, self._folder / f"{operation.id}.json")
        except OSError as fault:
            if fault.errno in TOO_MANY:
                raise too_many() from None
            raise WorkspaceError(
                "storage_unavailable", f"The state folder can't be written: {fault.strerror}."
            ) from None

    def _forget(self) -> None:
        """Let go of the oldest that have ended."""
        ended = [operation for operation in self._all.values() if operation.status in ENDED]
        for operation in ended[: max(0, len(self._all) - MAX_KEPT)]:
            del self._all[operation.id]
            if operation.kept:
                with contextlib.suppress(OSError):
                    os.unlink(self._folder / f"{operation.id}.json")

    def load(self) -> list[str]:
        """Take up what an earlier server kept; returns the leftovers of work that was cut short, which must be removed. Blocks."""
        leftovers: list[str] = []
        try:
            names = sorted(os.listdir(self._folder))
        except OSError:
            return []
        found: list[Operation] = []
        for name in names:
            try:
                body = orjson.loads((self._folder / name).read_bytes())
                if not name.endswith(".json") or not _ID.fullmatch(body["id"]):
                    raise ValueError(name)
                operation = _revived(body)
            except (OSError, ValueError, KeyError, TypeError):
                with contextlib.suppress(OSError):
                    os.unlink(self._folder / name)
                continue
            found.append(operation)
            leftovers += operation.leftovers if body["status"] not in ENDED else []
        for operation in sorted(found, key=lambda one: one.id):
            self._all[operation.id] = operation
            operation._told = self._told
        self._forget()
        return leftovers


def _revived(body: dict[str, Any]) -> Operation:
    names = ("kind", "root", "id", "status", "created_at", "started_at", "ended_at", "result", "leftovers")
    operation = Operation(**{name: body[name] for name in names}, kept=True)
    error = body["error"]
    if error is not None:
        data = {name: value for name, value in error.items() if name not in ("code", "detail", "status")}
        operation.error = WorkspaceError(error["code"], error["detail"], **data)
    if operation.status not in ENDED:
        operation.status, operation.ended_at = "failed", _now()
        operation.error = WorkspaceError("operation_cut", "The server was stopped before it had ended.")
    return operation
