"""What a piece of work has at hand: git as a writer, under a keeper, so that cancelling it ends all that it and its hooks started."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.processes import finish, spawn

from . import account, autostash
from .configuration import Settings
from .credentials import Credentials, askpass_script, environment, redact
from .explaining import explained
from .failures import failure
from .git import MOMENT_S, TOO_MANY, WARNED, Argument, Output, Stop, program, too_many
from .locks import processes
from .operations import Operation
from .plain_files import must_not_wait
from .progress import ProgressReader
from .repository import Repository

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

MAX_WRITTEN = 16 * 1024 * 1024
LOCK_PATIENCE_S = 1.0
_TAIL = 4096
# Of these the status is that of post-checkout, which runs when all is done (githooks(5)).
_ENDING_AS_THEIR_HOOK = ("switch", "checkout", "clone", "worktree")
# They take changes away for a while, and so make git's note of an earlier such case anew.
_TAKING_AWAY = ("merge", "pull", "rebase")
_BRINGING_BACK = (*_TAKING_AWAY, "commit")
Blocking = Callable[..., Any]


class Work:
    """One operation on one repository. `blocking` runs what blocks in a thread; `scratch` is a private folder of the server's."""

    def __init__(self, repository: Repository, operation: Operation, scratch: Path, blocking: Blocking) -> None:
        self.repository = repository
        self.operation = operation
        self.scratch = scratch
        self._blocking = blocking

    async def ask(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A reading call, in a thread."""
        result: T = await self._blocking(call, *args, **kwargs)
        return result

    async def at_last(self, call: Callable[Concatenate[Repository, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A call that must be made whatever becomes of the work: it gets the repository, and runs to its end also when this is
        cancelled. It must be bounded, as each run of git in it is."""
        repository = dataclasses.replace(self.repository, stop=Stop())
        result: list[T] = []

        async def run() -> None:
            result.append(await asyncio.to_thread(call, repository, *args, **kwargs))

        await finish(run())
        return result[0]

    @contextlib.asynccontextmanager
    async def message(self, text: str) -> AsyncIterator[str]:
        """The path of a file with this text, for as long as the context is open: not every git command reads one from its input."""
        file = self.scratch / f"message-{self.operation.id}"
        try:
            with storing():
                await self.ask(file.write_bytes, text.encode())
            yield str(file)
        finally:
            file.unlink(missing_ok=True)

    async def git(
        self,
        arguments: Sequence[Argument],
        *,
        input: bytes = b"",
        ok: Container[int] = (0,),
        settings: Settings = [],  # noqa: B006 - never changed
        env: Mapping[str, str] | None = None,
        credentials: Credentials | None = None,
        cwd: bytes | None = None,
        network: bool = False,
    ) -> Output:
        """Run a git command that changes something. `ok`: the statuses that count as success. `network`: it speaks with another
        repository.

        Raises `WorkspaceError`: `hook_refused`, what `failures` knows, `git_failed`, `storage_unavailable`. Cancelled, it ends all
        that was started. What git had taken out of the working tree for a while, and did not bring back, is a stash then, and its
        id `stash` in the error.
        """
        if cwd is None:  # else there is no repository yet
            await self.ask(self._take_care, arguments[0] in _TAKING_AWAY)
        try:
            return await self._git(arguments, input, ok, settings, env or {}, credentials, cwd, network)
        except WorkspaceError as fault:
            if arguments[0] in _BRINGING_BACK and (stash := await self._rescued(squash=False)):
                fault.data["stash"] = stash
            raise
        except asyncio.CancelledError:
            if arguments[0] in _BRINGING_BACK and (stash := await self._rescued(squash=True)):
                self.operation.notes["stash"] = stash
            raise

    def _take_care(self, takes_away: bool) -> None:
        """Put an autostash that an earlier git has left into the list of stashes, before this one does away with it. Blocks."""
        if not autostash.left(self.repository):
            return
        others = bool(processes(self.repository))  # theirs, perhaps, and they are about to bring it back
        if takes_away or not others:
            try:
                stash = autostash.rescue(self.repository, squash=takes_away, rebase=not others)
            except WorkspaceError:
                if takes_away:
                    raise
                logger.warning("an autostash could not be saved yet", exc_info=True)
            else:
                if stash is not None:
                    logger.warning("an autostash that git had left is a stash now: %s", stash)

    async def _rescued(self, *, squash: bool) -> str | None:
        """The stash that an autostash which is left has become."""

        def rescue(repository: Repository) -> str | None:
            return autostash.rescue(repository, squash=squash) if autostash.left(repository) else None

        try:
            return await self.at_last(rescue)
        except WorkspaceError:  # it stays where it is, until the next write
            logger.warning("an autostash could not be saved yet", exc_info=True)
            return None

    async def _git(
        self, arguments: Sequence[Argument], input: bytes, ok: Container[int], settings: Settings, env: Mapping[str, str],
        credentials: Credentials | None, cwd: bytes | None, network: bool,
    ) -> Output:  # fmt: skip
        output, trace = await self._run(arguments, input, settings, env, credentials, cwd, network)
        if output.status == 0 and not WARNED.search(output.err):
            return output
        told = account.read(trace)
        output = dataclasses.replace(output, said=[redact(words, credentials) for words in told.errors])
        if output.status == 0:
            return output
        refused = told.refused
        if "post-checkout" in refused and arguments[0] in _ENDING_AS_THEIR_HOOK:
            return output  # what the hook comes after is done
        hook = next((name for name in reversed(refused) if not name.startswith("post-")), None)
        if hook is None and output.status in ok:
            return output
        # of conflicts git tells on its standard output
        fault = failure(
            output.err,
            out=output.out[-_TAIL:].decode("utf-8", "replace"),
            credentials=credentials,
            hook=hook,
            account=told if trace else None,
            network=network or self.repository.partial,
        )
        raise await self.ask(explained, self.repository, fault, told)

    async def _run(
        self, arguments: Sequence[Argument], input: bytes, settings: Settings, env: Mapping[str, str],
        credentials: Credentials | None, cwd: bytes | None, network: bool,
    ) -> tuple[Output, bytes]:  # fmt: skip
        trace = self.scratch / f"trace-{secrets.token_hex(8)}"
        # with a token for this call no helper is asked, and none learns it
        alone: Settings = [("credential.helper", ""), ("http.sslVerify", "true")] if credentials is not None else []
        with storing():
            script = await asyncio.to_thread(askpass_script, self.scratch)
        environ = {
            **self.repository.environment_for_writes(network=network, settings=[*alone, *settings]),
            **environment(credentials, script),
            "GIT_TRACE2_EVENT": str(trace),
            "GIT_TRACE2_EVENT_NESTING": "1",
            **env,
        }
        reader = ProgressReader()
        looking: asyncio.Task[WorkspaceError | None] | None = None

        def errors(piece: bytes) -> None:
            if reader.feed(piece) and reader.current is not None:
                self.operation.tell_progress(dataclasses.asdict(reader.current))

        await self.ask(_wait_for_others, self.repository.git_dir)
        command = [program(), *(os.fsdecode(argument) for argument in arguments)]
        with storing():
            await asyncio.to_thread(
                os.close, os.open(trace, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            )
        try:
            folder = Path(os.fsdecode(cwd if cwd is not None else self.repository.top))
            child = await spawn(command, cwd=folder, env=environ, on_errors=errors)
            try:
                feeding = asyncio.create_task(_feed(child.write, child.close_stdin, input))
                if cwd is None and not self.repository.bare:
                    looking = asyncio.create_task(self._look(child.pid))
                written = bytearray()
                while piece := await child.read():
                    if len(written) < MAX_WRITTEN:
                        written += piece
                status = await child.wait()
                await feeding
                if looking is not None and looking.done() and (fault := looking.result()) is not None:
                    raise fault
            except asyncio.CancelledError:
                if child.returncode is None:  # it has had the end of its input, and would be waited for in vain
                    os.kill(child.pid, signal.SIGTERM)
                raise
            finally:
                if looking is not None:
                    looking.cancel()
                await child.end()
            told = await asyncio.to_thread(trace.read_bytes)
        except OSError as fault:
            if fault.errno in TOO_MANY:
                raise too_many() from None
            raise WorkspaceError("git_unavailable", f"git can't be started: {fault.strerror}.") from None
        finally:
            trace.unlink(missing_ok=True)
        reader.finish()
        return Output(status, bytes(written), redact("\n".join(reader.messages), credentials)), told

    async def _look(self, pid: int) -> WorkspaceError | None:
        """After a moment, look whether git waits for something that will never come: then it is ended, and that is the refusal."""
        await asyncio.sleep(MOMENT_S)
        try:
            await asyncio.to_thread(must_not_wait, self.repository.top)
        except WorkspaceError as fault:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            return fault
        return None


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """Raises `WorkspaceError` (`storage_unavailable`) for an `OSError` of the state folder."""
    try:
        yield
    except OSError as fault:
        if fault.errno in TOO_MANY:
            raise too_many() from None
        raise WorkspaceError("storage_unavailable", f"The state folder can't be written: {fault.strerror}.") from None


def _wait_for_others(git_dir: bytes) -> None:
    """Wait a moment for another program's git that is changing the index just now: it takes no longer, or it was killed. Blocks."""
    end = time.monotonic() + LOCK_PATIENCE_S
    while os.path.lexists(os.path.join(git_dir, b"index.lock")) and time.monotonic() < end:
        time.sleep(0.02)


async def _feed(write: Callable[[bytes], Any], close: Callable[[], None], data: bytes) -> None:
    try:
        if data:
            await write(data)
    except BrokenPipeError:
        pass  # it did not want all of it
    finally:
        close()
