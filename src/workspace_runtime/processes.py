"""Child processes: started through the keeper, read with back pressure, and ended with everything they started.

`spawn` gives a `Child`: one command with pipes, under a keeper of its own (see `keeper`), so that its whole process tree ends
when it does, when `Child.end` is called, or when this process is gone. For commands that a library starts, `keeper_wrapper`
makes an executable that does the same, and `end_tree` ends what came of it.

Pipes are read only when somebody asks: a child that floods is slowed by its own pipe and costs no memory here. Its errors are
always drained, and their tail is kept. Exits are seen by pidfd, so neither the loop's child watcher nor a thread is needed.

Cancellation: what starts a process and what ends one finishes its work when it is cancelled, and is bounded.
"""

import asyncio
import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from . import config, keeper

LINE_LIMIT = 64 * 1024 * 1024
STDERR_TAIL = 64 * 1024
# The longest grace that `Child.end` gives, twice: with what the keeper may need, all of it stays within 10 s.
MAX_GRACE_S = 1.5
SWEEP_GIVE_UP_S = 1.0
# How long a process that begins another program may show no environment.
EXEC_S = 0.1
_READ_SIZE = 256 * 1024
# imported, not run as a script: so its bytecode is cached, which saves a third of its start
_BOOT = "import sys; sys.path.append(sys.argv.pop(1)); import keeper; keeper.main(sys.argv[1:])"


class LineTooLong(Exception):
    """A child wrote a line longer than `LINE_LIMIT`."""


# --- through the keeper -----------------------------------------------------------------------------------------------


def keeper_command() -> list[str]:
    """The start of a command line that runs a command under a keeper: `--parent PID`, `--` and the command follow."""
    return [sys.executable, "-I", "-S", "-c", _BOOT, os.path.dirname(os.path.abspath(keeper.__file__))]


def keeper_wrapper(executable: str, folder: Path, without: Sequence[str] = ()) -> Path:
    """An executable file in `folder` that runs `executable` under a keeper, with the arguments it is given.

    For libraries that start an agent themselves and only take a path. Made once, atomically; the same one is given again.
    `without` names variables that it takes out of the environment first.
    The process that starts it is the one whose death ends everything. Writes files: call it in a thread.
    Raises `OSError` when the folder can't be written.
    """
    content = (
        "#!/bin/sh\n"
        f"# Runs {shlex.quote(os.path.basename(executable))} so that nothing it starts outlives the server.\n"
        + (f"unset {shlex.join(sorted(without))}\n" if without else "")
        + f'exec {shlex.join(keeper_command())} --parent "$PPID" -- {shlex.quote(executable)} "$@"\n'
    )
    data = os.fsencode(content)
    path = folder / f"{os.path.basename(executable)}-{hashlib.sha256(data).hexdigest()[:12]}"
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == data and path.stat().st_mode & 0o777 == 0o700:
            return path
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file, name = tempfile.mkstemp(prefix=".", dir=folder)
    try:
        with open(file, "wb") as writer:
            writer.write(data)
            os.fchmod(writer.fileno(), 0o700)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path


def agent_environment(environ: Mapping[str, str], extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What an agent gets to see of `environ`: all but our own settings, the token among them. `extra` is laid over it."""
    ours = config.kept_from_children() | {keeper.MARK}
    return {name: value for name, value in environ.items() if name not in ours} | dict(extra or {})


async def end_tree(pid: int, grace_s: float) -> None:
    """End a keeper that this process started, and everything below it; returns when nothing is left.

    The command gets SIGTERM and `grace_s`, then all that is left is killed; at once where that is 0. Harmless when it has ended already.
    Takes `grace_s` and 6 s at most, and finishes when it is cancelled.
    """
    await finish(_end_tree(pid, grace_s))


async def _end_tree(pid: int, grace_s: float) -> None:
    if not await asyncio.to_thread(_is_child, pid):  # ended, by its own will or by a SIGKILL that left the tree to us
        await asyncio.to_thread(_sweep, pid, True)
        return
    if grace_s > 0:
        _send(pid, signal.SIGTERM)
    if not (grace_s > 0 and await exited(pid, grace_s)):
        _send(pid, signal.SIGQUIT)
        if not await exited(pid, keeper.GIVE_UP_S + 0.5):
            _send(pid, signal.SIGKILL)
            await exited(pid, 0.5)
    await asyncio.to_thread(_sweep, pid, False)


def _sweep(pid: int, ask: bool) -> None:
    """Kill what a killed keeper left: whatever carries its mark. `ask` the server's keeper for what does not."""
    give_up = time.monotonic() + SWEEP_GIVE_UP_S
    clear = time.monotonic() + EXEC_S
    mark = f"{keeper.MARK}={pid}".encode()
    while not _alive(pid) and time.monotonic() < give_up:
        marked, unclear = _marked(mark)
        if not marked and (not unclear or time.monotonic() > clear):
            break
        for process in marked:
            _send(process, signal.SIGSTOP)
        for process in {*marked, *_marked(mark)[0]} if marked else ():
            _send(process, signal.SIGKILL)
        if marked:
            ask, clear = True, time.monotonic() + EXEC_S
        time.sleep(0.002)
    if ask and (above := keeper.server_keeper()):
        _send(above, keeper.SWEEP)


def _marked(mark: bytes) -> tuple[list[int], bool]:
    """The living processes that have `mark` in their environment, and whether some may have it that show none just now."""
    found: list[int] = []
    unclear = False
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            environ = _environ(entry)
            if mark in environ.split(b"\0"):  # a zombie's is empty
                found.append(int(entry))
            elif not environ:
                # in the middle of an exec it is empty for a moment; a zombie and a thread of the kernel have no program
                os.readlink(f"/proc/{entry}/exe")
                unclear = True
    return found, unclear


def _environ(entry: str) -> bytes:
    with open(f"/proc/{entry}/environ", "rb", buffering=0) as file:
        return file.readall()


def _alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return file.read(512).rpartition(b") ")[2][:1] not in (b"Z", b"X", b"")
    except OSError:
        return False


def _is_child(pid: int) -> bool:
    """Whether `pid` is a child of this process, so that it can't have been given to another process."""
    if not os.path.isdir("/proc/self"):
        return True
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(512).rpartition(b") ")[2].split(None, 2)
    except OSError:
        return False
    return fields[0] not in (b"Z", b"X") and int(fields[1]) == os.getpid()


def _send(pid: int, signo: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, signo)


# --- waiting ----------------------------------------------------------------------------------------------------------


async def finish(work: Coroutine[Any, Any, None] | asyncio.Task[None]) -> None:
    """Run `work` to its end, also when cancelled meanwhile; the cancellation is passed on afterwards."""
    task = work if isinstance(work, asyncio.Task) else asyncio.create_task(work)
    own = asyncio.current_task()
    assert own is not None
    asked, cancelled = own.cancelling(), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:  # of this task, also in the instant in which the work ends; or of the work
            cancelled = own.cancelling() > asked
    task.result()
    if cancelled:
        raise asyncio.CancelledError


async def exited(pid: int, timeout_s: float | None) -> bool:
    """Wait until a process has ended (it may still be a zombie); false when `timeout_s` passed."""
    try:
        async with asyncio.timeout(timeout_s):
            try:
                file = os.pidfd_open(pid)
            except ProcessLookupError:
                return True
            except (AttributeError, OSError):  # no pidfd here (macOS, some sandboxes)
                while _alive(pid):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.02)
                return True
            try:
                await _ready(file)
            finally:
                os.close(file)
            return True
    except TimeoutError:
        return False


async def _ready(file: int) -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.add_reader(file, _wake, future)
    try:
        await future
    finally:
        loop.remove_reader(file)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Pipe:
    """One end of a pipe, non-blocking; waits by the loop, keeps nothing. Used by one task at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._waiter: asyncio.Future[None] | None = None
        os.set_blocking(file.fileno(), False)

    @property
    def closed(self) -> bool:
        return self._file.closed

    async def read(self, size: int) -> bytes:
        """What is there, at least one byte; b"" at the end of the stream, or once closed."""
        while not self._file.closed:
            try:
                return os.read(self._file.fileno(), size)
            except BlockingIOError:
                await self._wait(write=False)
        return b""

    async def write(self, data: bytearray) -> None:
        """Write all of `data`, and take from it what has been written. Raises `BrokenPipeError`."""
        while data:
            if self._file.closed:
                raise BrokenPipeError
            try:
                del data[: os.write(self._file.fileno(), data)]
            except BlockingIOError:
                await self._wait(write=True)

    async def _wait(self, *, write: bool) -> None:
        loop = asyncio.get_running_loop()
        file = self._file.fileno()
        waiter = self._waiter = loop.create_future()
        if write:
            loop.add_writer(file, _wake, waiter)
        else:
            loop.add_reader(file, _wake, waiter)
        try:
            await waiter
        finally:
            if not self._file.closed:
                (loop.remove_writer if write else loop.remove_reader)(file)
            self._waiter = None

    def close(self) -> None:
        """Close it; whoever waits is woken. Safe to call twice."""
        if self._file.closed:
            return
        if self._waiter is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._file.fileno())
            loop.remove_writer(self._file.fileno())
            _wake(self._waiter)
        self._file.close()


# --- a child ----------------------------------------------------------------------------------------------------------


class Child:
    """A command that runs under a keeper. Made by `spawn`; whoever has one must call `end`.

    `pid` is the keeper's. One task reads, any task writes.
    """

    def __init__(self, process: subprocess.Popen[bytes], on_errors: Callable[[bytes], None] | None = None) -> None:
        self.pid = process.pid
        self._on_errors = on_errors
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        self._stdin = _Pipe(process.stdin)  # type: ignore[arg-type]  # typeshed's IO[bytes], unbuffered here
        self._stdout = _Pipe(process.stdout)  # type: ignore[arg-type]
        self._stderr = _Pipe(process.stderr) if process.stderr is not None else None  # type: ignore[arg-type]
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._unwritten = bytearray()
        self._writing = asyncio.Lock()
        self._errors = bytearray()
        self._drain = asyncio.create_task(self._drain_errors())
        self._watch = asyncio.create_task(self._watch_exit())
        self._ending: asyncio.Task[None] | None = None

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    @property
    def stderr_tail(self) -> str:
        """The end of what the command wrote to its standard error, at most `STDERR_TAIL` bytes."""
        return self._errors[-STDERR_TAIL:].decode(errors="replace")

    async def write(self, data: bytes) -> None:
        """Write to the command's standard input. Raises `BrokenPipeError` when it has closed it or is gone.

        When cancelled, the rest goes out with the next write, so that no message is ever cut.
        """
        self._unwritten += data
        async with self._writing:
            await self._stdin.write(self._unwritten)

    def close_stdin(self) -> None:
        """Tell the command that nothing more comes."""
        self._stdin.close()

    async def read_lines(self) -> list[bytes]:
        """The lines that are there, without their ends, at least one; [] at the end of the output.

        The output ends when nothing of the tree holds it any more. A last line without an end is given too. May be
        cancelled without loss. Raises `LineTooLong`.
        """
        while True:
            chunk = await self._stdout.read(_READ_SIZE)
            if not chunk:
                rest, self._partial, self._partial_size = b"".join(self._partial), [], 0
                return [rest] if rest else []
            end = chunk.rfind(b"\n")
            if end < 0:
                self._partial.append(chunk)
                self._partial_size += len(chunk)
                if self._partial_size > LINE_LIMIT:
                    raise LineTooLong(f"A line is longer than {LINE_LIMIT} bytes.")
                continue
            lines = b"".join([*self._partial, chunk[:end]]).split(b"\n")
            self._partial = [chunk[end + 1 :]]
            self._partial_size = len(self._partial[0])
            return lines

    async def read(self) -> bytes:
        """What is there of the output, at least one byte; b"" at its end. As `read_lines`, for output that has no lines."""
        return await self._stdout.read(_READ_SIZE)

    async def wait(self) -> int:
        """Wait until the command and everything it started has ended; the exit status, negative for a signal."""
        await asyncio.shield(self._watch)
        assert self._process.returncode is not None
        return self._process.returncode

    async def end(self, grace_s: float = MAX_GRACE_S) -> None:
        """End the command and everything it started, within 10 s, and let go of the pipes.

        It has `grace_s` to end by itself after the end of its input, and again after SIGTERM. Safe to call twice, also
        at once; finishes when cancelled.
        """
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(max(0.0, min(grace_s, MAX_GRACE_S))))
        await finish(self._ending)

    async def _end(self, grace_s: float) -> None:
        self._stdin.close()
        if self._process.returncode is None:
            if not (grace_s and await exited(self.pid, grace_s)):
                await _end_tree(self.pid, grace_s)
            await asyncio.wait([self._watch], timeout=0.5)
        await asyncio.wait([self._drain], timeout=0.5)
        self._drain.cancel()
        self._watch.cancel()
        await asyncio.gather(self._drain, self._watch, return_exceptions=True)
        for pipe in (self._stdout, self._stderr):
            if pipe is not None:
                pipe.close()

    async def _watch_exit(self) -> None:
        await exited(self.pid, None)
        # it is a zombie by now, so this can't wait
        if self._process.wait() == -signal.SIGKILL:  # the command, or the keeper itself: then its tree is left to us
            await asyncio.to_thread(_sweep, self.pid, True)

    async def _drain_errors(self) -> None:
        while self._stderr is not None and (chunk := await self._stderr.read(_READ_SIZE)):
            if self._on_errors is not None:
                self._on_errors(chunk)
            self._errors += chunk
            if len(self._errors) > 4 * STDERR_TAIL:
                del self._errors[:-STDERR_TAIL]


async def spawn(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stderr: Literal["tail", "pass"] = "tail",
    on_errors: Callable[[bytes], None] | None = None,
) -> Child:
    """Start a command under a keeper, with pipes for its standard input and output.

    Its standard error is drained into `Child.stderr_tail`, or passed on to ours; `on_errors` gets it piece by piece as well. When
    cancelled, nothing is left running.
    Raises `FileNotFoundError` for an unknown command or folder, `OSError` when it can't be started.
    """
    start = asyncio.create_task(asyncio.to_thread(_start, list(argv), cwd, dict(env), stderr))
    try:
        return Child(await asyncio.shield(start), on_errors)
    except asyncio.CancelledError:
        if not start.cancelled():
            await finish(_abandon(start))
        raise


async def _abandon(start: asyncio.Task[subprocess.Popen[bytes]]) -> None:
    with contextlib.suppress(OSError):
        await Child(await start).end(0)


def _start(argv: list[str], cwd: Path, env: dict[str, str], stderr: str) -> subprocess.Popen[bytes]:
    program = argv[0] if os.path.dirname(argv[0]) else shutil.which(argv[0], path=env.get("PATH", os.defpath))
    if program is None or not os.path.exists(os.path.join(cwd, program)):
        raise FileNotFoundError(2, "No such command", argv[0])
    return subprocess.Popen(
        [*keeper_command(), "--parent", str(os.getpid()), "--", program, *argv[1:]],
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if stderr == "tail" else None,
        bufsize=0,
    )
