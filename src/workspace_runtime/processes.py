"""Child processes: started through the keeper, talked to by lines, ended with all that they started."""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from . import keeper

# How much of a child's standard error is kept, to tell why it died.
STDERR_BYTES = 64 * 1024
# A line longer than this is no message of any agent.
MAX_LINE_BYTES = 64 * 1024 * 1024
# What is read ahead of the reader, at most twice this: the child is slowed by its own pipe beyond it.
READ_BYTES = 128 * 1024
KILL_WAIT_S = 5.0


def keeper_command(command: Sequence[str]) -> list[str]:
    """The command that runs `command` through a keeper."""
    folder = os.path.dirname(os.path.abspath(keeper.__file__))
    # imported, not run as a script: so its compiled form is used, which saves milliseconds at every start
    start = f"import sys; sys.path.insert(0, {folder!r}); import keeper; keeper._main(sys.argv[1:])"
    return [sys.executable, "-I", "-S", "-c", start, "--", *command]


def keeper_wrapper(executable: str, folder: Path) -> Path:
    """An executable file in `folder` that runs `executable` through a keeper, for libraries that take a path and no more.

    Made once, and again when its content would differ.
    """
    command = " ".join(shlex.quote(part) for part in keeper_command([executable]))
    content = f'#!/bin/sh\nexec {command} "$@"\n'
    path = folder / f"keep-{os.path.basename(executable)}"
    try:
        if path.read_text() == content and os.access(path, os.X_OK):
            return path
    except (OSError, UnicodeDecodeError):
        pass
    descriptor, temporary = tempfile.mkstemp(prefix=path.name, dir=folder)  # two sessions may start at once
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
        os.fchmod(descriptor, 0o700)
    os.replace(temporary, path)
    return path


async def gone(pid: int, timeout_s: float) -> bool:
    """Wait until a child has ended (reaped or not); whether it has, within `timeout_s`."""
    loop = asyncio.get_running_loop()
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except (AttributeError, OSError):  # no pidfd here: ask again and again
        return await _gone_polled(pid, timeout_s)
    ended = asyncio.Event()
    try:
        loop.add_reader(descriptor, ended.set)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await ended.wait()
        return ended.is_set()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _gone_polled(pid: int, timeout_s: float) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while loop.time() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:  # noqa: ASYNC230  # never waits
            if file.read().rpartition(b")")[2].split()[0] == b"Z":
                return True
        await asyncio.sleep(0.02)
    return False


async def end_tree(pid: int, grace_s: float) -> None:
    """End a keeper's command and all that it started: asked first, killed after `grace_s`. Bounded; returns when the keeper
    has ended, which is when nothing of its tree is left."""
    if _signal(pid, signal.SIGTERM if grace_s > 0 else signal.SIGQUIT) and await gone(
        pid, max(grace_s, KILL_WAIT_S / 2)
    ):
        return
    if not _signal(pid, signal.SIGQUIT) or await gone(pid, KILL_WAIT_S / 2):
        return
    # the keeper itself hangs: its command dies with it, the rest falls to the server's keeper
    _signal(pid, signal.SIGKILL)
    await gone(pid, KILL_WAIT_S)


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


class Child:
    """A command that runs through a keeper, with pipes to its standard input and output. Made by `spawn`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._errors: deque[bytes] = deque()
        self._error_size = 0
        self._drain = asyncio.get_running_loop().create_task(self._drain_errors())

    @property
    def pid(self) -> int:
        """The keeper's process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The command's exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    async def write(self, data: bytes) -> None:
        """Write to the command's standard input. Raises `BrokenPipeError` or `ConnectionResetError` when it has ended."""
        if self._process.stdin is None or self._process.stdin.is_closing():
            raise BrokenPipeError("the command has ended")
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def lines(self) -> AsyncIterator[list[bytes]]:
        """The command's output in whole lines, as many at once as have come. Pulled: unread output stays in the pipe.

        Raises `ValueError` for a line over `MAX_LINE_BYTES`.
        """
        stdout = self._process.stdout
        if stdout is None:
            return
        rest: list[bytes] = []
        size = 0
        while data := await stdout.read(READ_BYTES):
            head, newline, tail = data.rpartition(b"\n")
            if not newline:
                rest.append(data)
                size += len(data)
                if size > MAX_LINE_BYTES:
                    raise ValueError(f"a line of over {MAX_LINE_BYTES} bytes")
                continue
            yield b"".join([*rest, head]).split(b"\n")
            rest, size = ([tail], len(tail)) if tail else ([], 0)

    def errors(self) -> str:
        """The end of what the command wrote to standard error."""
        return b"".join(self._errors)[-STDERR_BYTES:].decode(errors="replace")

    async def _drain_errors(self) -> None:
        stderr = self._process.stderr
        if stderr is None:
            return
        while data := await stderr.read(16 * 1024):
            self._errors.append(data)
            self._error_size += len(data)
            while self._error_size - len(self._errors[0]) > STDERR_BYTES:
                self._error_size -= len(self._errors.popleft())

    async def end(self, grace_s: float) -> None:
        """End the command with all that it started, in `grace_s` + 10 s at most. Finished also when cancelled."""
        task = asyncio.get_running_loop().create_task(self._end(grace_s))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise

    async def _end(self, grace_s: float) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.returncode is None:
            await end_tree(self.pid, grace_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_WAIT_S):
                await self._process.wait()
                await self._drain
        self._drain.cancel()
        transport = self._process._transport  # type: ignore[attr-defined]  # asyncio closes the pipes only with it
        transport.close()


async def spawn(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Child:
    """Start a command through the keeper. Raises `OSError` when the keeper can't be started; a command that can't be ends with
    status 127."""
    process = await asyncio.create_subprocess_exec(
        *keeper_command(command),
        cwd=cwd,
        env=dict(env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=READ_BYTES,
    )
    return Child(process)
