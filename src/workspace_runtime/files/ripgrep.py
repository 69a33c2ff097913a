"""One running ripgrep.

It may read the workspace and nothing else: where the kernel has Landlock, it is confined to the root, to the system's libraries that
it is made of, and to the few files above that say what git ignores. Else somebody who exchanges a file for a link in the moment
between ripgrep's look and its opening could have it read what the link leads to.
"""

import asyncio
import contextlib
import fcntl
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TypeVar

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import WorkspaceRoot
from workspace_runtime.processes import exited, finish

from .landlock import restrict_this_thread

T = TypeVar("T")

# What ripgrep may take for its data: a match in a line of some 100 MB fits in.
MAX_MEMORY = 1024 * 1024 * 1024
# Records of one read become objects at once: many would fall out of the processor's cache, and twice the time is needed.
_READ_SIZE = 16 * 1024
_PIPE_SIZE = 1024 * 1024
# How long output is left to gather: ripgrep writes for each file, and to be woken for each costs more than to read it.
_GATHER_S = 0.003
_STDERR = 16 * 1024
_EXIT_S = 5.0
_ENVIRONMENT = ("HOME", "XDG_CONFIG_HOME")  # by these it finds the user's global rules of git
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


def program() -> str | None:
    """Where ripgrep is: beside this Python, where its package puts it, else on the PATH. None if nowhere."""
    places = (os.path.dirname(sys.executable), sysconfig.get_path("scripts"))
    return shutil.which("rg", path=os.pathsep.join(places)) or shutil.which("rg")


class Ripgrep:
    """A running ripgrep, in a session of its own: a terminal's signals do not reach it. It starts no process itself."""

    def __init__(self, process: "subprocess.Popen[bytes]", output: int, errors: IO[bytes]) -> None:
        self._process = process
        self._output = output
        self._errors = errors

    @classmethod
    async def start(
        cls, root: WorkspaceRoot, arguments: Sequence[str], held: int, *, is_file: bool, rules: Sequence[str]
    ) -> "Ripgrep":
        """Start it in the open folder `held`, or with the open file as its standard input. `rules` are files outside of the
        root that it may read. Raises `WorkspaceError` (`search_unavailable`)."""
        spawn = functools.partial(cls._spawn, root, arguments, held, is_file=is_file, rules=rules)
        spawning = asyncio.create_task(_in_new_thread(spawn))
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await finish(_end_of(spawning))
            raise

    @classmethod
    def _spawn(
        cls, root: WorkspaceRoot, arguments: Sequence[str], held: int, *, is_file: bool, rules: Sequence[str]
    ) -> "Ripgrep":
        """Runs in a thread that ends with it."""
        found = program()
        if found is None:
            raise WorkspaceError("search_unavailable", "The program rg (ripgrep) is not installed.")
        errors = _in_memory()  # closed by `end`
        with contextlib.ExitStack() as stack:
            ours, theirs = os.pipe()
            stack.callback(os.close, theirs)
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, nothing)
            os.set_blocking(ours, False)
            if sys.platform == "linux":
                with contextlib.suppress(OSError):  # the user's share of pipe memory is used up
                    fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            try:
                if can_be_confined():
                    folders = [root.fd, *stack.enter_context(_opened(_LIBRARIES))]
                    restrict_this_thread(folders, stack.enter_context(_opened([found, *rules])))
                process = subprocess.Popen(
                    [found, *arguments],
                    # the child resolves it before the descriptor is closed in it
                    cwd="/" if is_file else f"/proc/self/fd/{held}",
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    stdin=held if is_file else nothing,
                    stdout=theirs,
                    stderr=errors,
                    start_new_session=True,
                    close_fds=False,  # none of ours is inherited; to look for them would need /proc
                )
            except OSError as fault:
                os.close(ours)
                errors.close()
                raise WorkspaceError("search_unavailable", f"ripgrep can't be started: {fault.strerror}.") from None
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # ended already
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
        return cls(process, ours, errors)

    async def read(self) -> bytes:
        """What it has written, at least one byte; b"" at the end. A full pipe makes it wait."""
        while True:
            try:
                return os.read(self._output, _READ_SIZE)
            except BlockingIOError:
                await self._readable()
                await asyncio.sleep(_GATHER_S)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._output, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._output)

    def kill(self) -> None:
        """End it now."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def ended(self) -> int:
        """Wait until it has ended by itself; its status."""
        await exited(self._process.pid, None)
        return self._process.wait()

    async def end(self) -> int:
        """Kill what still runs, wait for it, and let go of everything; its status. Safe to call twice."""
        self.kill()
        if self._output >= 0:
            os.close(self._output)
            self._output = -1
        if await exited(self._process.pid, _EXIT_S):
            self._process.wait()
        return self._process.returncode if self._process.returncode is not None else -signal.SIGKILL

    def complaint(self) -> str:
        """The start of what it wrote to its standard error. Closes that: call it once, at the end."""
        with self._errors:
            self._errors.seek(0)
            return self._errors.read(_STDERR).decode(errors="replace")


def _in_memory() -> IO[bytes]:
    """A file without a name, in memory: in a read-only image no folder can be written."""
    try:
        return open(os.memfd_create("ripgrep-errors", os.MFD_CLOEXEC), "w+b")
    except (AttributeError, OSError):
        return tempfile.TemporaryFile()


async def _end_of(spawning: "asyncio.Task[Ripgrep]") -> None:
    """End a ripgrep that nobody waits for any more."""
    with contextlib.suppress(WorkspaceError):
        running = await spawning
        await running.end()
        running.complaint()


@functools.cache
def can_be_confined() -> bool:
    """Whether ripgrep still runs when it may read nothing but the system's libraries. Asked once; starts it for that."""
    answers: list[bool] = []

    def ask() -> None:
        found = program()
        try:
            with (
                _opened(_LIBRARIES) as libraries,
                _opened([found or ""]) as itself,
                open(os.devnull, "r+b") as nothing,
            ):
                restrict_this_thread(libraries, itself)
                command = [found or "", "--version"]
                done = subprocess.run(
                    command, cwd="/", env={}, stdin=nothing, stdout=nothing, stderr=nothing, timeout=10, check=False,
                    close_fds=False,
                )  # fmt: skip
                answers.append(done.returncode == 0)
        except (OSError, subprocess.SubprocessError):
            answers.append(False)

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    return answers == [True]


@contextlib.contextmanager
def _opened(paths: Sequence[str]) -> Iterator[list[int]]:
    """Descriptors of those of the paths that are there."""
    found: list[int] = []
    try:
        for path in paths:
            with contextlib.suppress(OSError):
                found.append(os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC))
        yield found
    finally:
        for opened in found:
            os.close(opened)


async def _in_new_thread(call: Callable[[], T]) -> T:
    """Run a call in a thread of its own, which ends with it."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, fault: BaseException | None) -> None:
        if not result.done():
            if fault is not None:
                result.set_exception(fault)
            else:
                result.set_result(value)  # type: ignore[arg-type]  # None only with a fault

    def run() -> None:
        try:
            value = call()
        except BaseException as fault:  # handed over whole
            loop.call_soon_threadsafe(settle, None, fault)
        else:
            loop.call_soon_threadsafe(settle, value, None)

    threading.Thread(target=run, name="ripgrep-start", daemon=True).start()
    return await result
