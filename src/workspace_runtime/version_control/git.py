"""One run of the git command: its environment, its bounds, and its end.

A run never waits for a person (no terminal, no editor, no pager), speaks English, takes paths as they are, and has a limit for
its output and its time. What the repository's own configuration could make it do is taken out by the settings that come with each
run (`configuration.py`): in the environment, since a name with `=` in it can't be overridden by an argument.

Reads run here, in the thread that wants their answer; what changes a repository runs under a keeper (`work.py`).
"""

import contextlib
import errno
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from workspace_runtime import config, keeper
from workspace_runtime.errors import WorkspaceError

Argument = str | bytes

# What one answer of git may have before it is cut.
MAX_OUTPUT = 64 * 1024 * 1024
READ_SECONDS = 20.0
# After so long it is looked whether git waits for something that will never come.
MOMENT_S = 1.0
_STDERR = 64 * 1024
_MAX_WARNINGS = 100
# What git says of what it could not do, or what a program says that it has started.
WARNED = re.compile(r"^(?:warning|error): (.*)", re.MULTILINE)
_PIECE = 256 * 1024

_PLAIN = {
    "LC_ALL": "C.UTF-8",
    "LANGUAGE": "en",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_PAGER": "cat",
    "GIT_EDITOR": ":",
    "GIT_SEQUENCE_EDITOR": ":",
    "GIT_PROGRESS_DELAY": "0",
    "GIT_ASKPASS": "",  # set but empty: nobody is asked, and no program of the repository's choice either
}
# By these git finds the user's own settings and itself.
_FOR_READS = (
    "PATH", "HOME", "XDG_CONFIG_HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "GIT_EXEC_PATH", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM", "SSH_AUTH_SOCK",
)  # fmt: skip
# What users set for git itself; any other GIT_ variable would say which repository is meant, or is git's own between its processes.
_FOR_WRITES = (
    "GIT_AUTHOR_", "GIT_COMMITTER_", "GIT_SSH", "GIT_SSL_", "GIT_CONFIG_", "GIT_PROXY_", "GIT_HTTP_", "GIT_EXEC_PATH", "GIT_TEMPLATE_DIR",
)  # fmt: skip
# git looks for a name in several places, and where two have it some commands refuse, even one that is given in full: with this the
# first place counts, which is that of the full name.
FULL_NAMES = ("core.warnAmbiguousRefs", "false")
# Words are told in UTF-8, and git puts them so into the messages that it makes itself.
WORDS = ("i18n.logOutputEncoding", "UTF-8")
# Laid over every read, whatever is configured.
READS = (
    ("core.fsmonitor", "false"),
    ("core.hooksPath", os.devnull),
    ("core.sshCommand", "ssh"),
    ("credential.helper", ""),
    ("protocol.ext.allow", "never"),
    ("log.showSignature", "false"),
    ("commit.gpgSign", "false"),
    ("core.quotePath", "false"),
    FULL_NAMES,
    WORDS,
    ("core.alternateRefsCommand", "true"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
)
# `file` runs upload-pack here, as the other repository says.
READ_PROTOCOLS, NETWORK_PROTOCOLS = "https:http:ssh", "https:http:ssh:file"


# The system lets nothing more be opened.
TOO_MANY = (errno.EMFILE, errno.ENFILE)


def too_many() -> WorkspaceError:
    """The refusal for an `OSError` of `TOO_MANY`."""
    return WorkspaceError("too_many_files", "Too many files are open: try again in a moment.")


@dataclass(frozen=True, slots=True)
class Output:
    """What came of a run. `cut`: there was more than `limit`, and it was stopped. `said`: of a write, what git itself said in `err`, and
    no program that it started."""

    status: int
    out: bytes
    err: str
    cut: bool = False
    said: Sequence[str] = ()

    @property
    def warnings(self) -> list[str]:
        """What git could not do although it has done the rest, in its words, without the word before them."""
        own = {words.split("\n")[0] for words in self.said}
        return [words for words in WARNED.findall(self.err) if words in own][-_MAX_WARNINGS:]


class Stop:
    """Lets another thread end what runs now and what would run next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def set(self) -> None:
        """Stop. May be called more than once."""
        with self._lock:
            self.stopped = True
            if self._process is not None:
                _kill(self._process)

    @contextlib.contextmanager
    def holding(self, process: "subprocess.Popen[bytes]") -> Iterator[None]:
        """While the context is open, `set` kills this process."""
        with self._lock:
            self._process = process
            if self.stopped:
                _kill(process)
        try:
            yield
        finally:
            with self._lock:
                self._process = None


class StoppedError(Exception):
    """Nobody wants the answer any more."""


def program() -> str:
    """Where git is. Raises `WorkspaceError` (`git_unavailable`)."""
    found = shutil.which("git")
    if found is None:
        raise WorkspaceError("git_unavailable", "The program git is not installed.")
    return found


def read_environment(settings: Sequence[tuple[str, str]], ceiling: bytes) -> dict[str, str]:
    """The environment of a read. `READS` and `settings` are laid over all configuration; no repository is looked for above `ceiling`."""
    environment = {name: os.environ[name] for name in _FOR_READS if name in os.environ}
    environment |= _PLAIN
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    environment["GIT_LITERAL_PATHSPECS"] = "1"
    environment["GIT_ALLOW_PROTOCOL"] = READ_PROTOCOLS
    environment["GIT_CEILING_DIRECTORIES"] = os.fsdecode(ceiling)
    return with_settings(environment, [*READS, *settings])


def write_environment(settings: Sequence[tuple[str, str]], ceiling: bytes, *, network: bool) -> dict[str, str]:
    """The environment of what changes a repository: the user's own, so that hooks find what they need, without our settings.

    `network`: it speaks with another repository, which may lie on this machine."""
    ours = config.kept_from_children() | {keeper.MARK}
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {*ours, "COLUMNS"} and (not name.startswith("GIT_") or name.startswith(_FOR_WRITES))
    }
    environment |= _PLAIN
    # for git alone: what its hooks do with it would differ from what they do elsewhere, so paths say of themselves that they are literal
    environment.pop("GIT_LITERAL_PATHSPECS", None)
    environment["GIT_ALLOW_PROTOCOL"] = NETWORK_PROTOCOLS if network else READ_PROTOCOLS
    environment["GIT_CEILING_DIRECTORIES"] = os.fsdecode(ceiling)
    return with_settings(environment, settings)


def with_settings(environment: Mapping[str, str], settings: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The environment with more settings of git's configuration, after those that it brings already (git-config(1), GIT_CONFIG_COUNT)."""
    changed = dict(environment)
    given = changed.get("GIT_CONFIG_COUNT", "")
    count = int(given) if given.isdecimal() else 0
    for key, value in settings:
        changed[f"GIT_CONFIG_KEY_{count}"] = key
        changed[f"GIT_CONFIG_VALUE_{count}"] = value
        count += 1
    changed["GIT_CONFIG_COUNT"] = str(count)
    return changed


def run(
    arguments: Sequence[Argument],
    *,
    cwd: bytes,
    env: Mapping[str, str],
    stop: Stop,
    input: bytes | None = None,
    limit: int = MAX_OUTPUT,
    seconds: float = READ_SECONDS,
    look: Callable[[], None] | None = None,
) -> Output:
    """Run git and wait for its end. Blocks: for a thread. `look` is called when git has said nothing for a moment, and may raise.

    Raises `WorkspaceError` (`git_unavailable`; `git_timeout` when `seconds` have passed), and `StoppedError`.
    """
    if stop.stopped:
        raise StoppedError
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(_scratch())
        source: IO[bytes] | int = subprocess.DEVNULL
        if input is not None:
            source = stack.enter_context(_scratch())
            source.write(input)
            source.seek(0)
        try:
            process = stack.enter_context(
                subprocess.Popen(
                    [program(), *arguments],
                    cwd=cwd,
                    env=env,
                    stdin=source,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    bufsize=0,
                    start_new_session=True,
                    close_fds=False,  # none of ours is inherited
                )
            )
        except OSError as fault:
            if fault.errno in TOO_MANY:
                raise
            raise WorkspaceError("git_unavailable", f"git can't be started: {fault.strerror}.") from None
        assert process.stdout is not None
        with stop.holding(process):
            try:
                out, cut = _read(process.stdout.fileno(), limit, deadline, look)
                if cut:
                    _kill(process)
                status = process.wait(max(0.1, deadline - time.monotonic()))
            except (TimeoutError, subprocess.TimeoutExpired):
                _kill(process)
                raise WorkspaceError(
                    "git_timeout", f"git did not answer within {seconds:g} s, and was stopped."
                ) from None
            except BaseException:
                _kill(process)
                raise
        if stop.stopped:
            raise StoppedError
        errors.seek(0, os.SEEK_END)
        errors.seek(max(0, errors.tell() - _STDERR))
        return Output(status, out, errors.read().decode(errors="replace"), cut)


def _read(file: int, limit: int, deadline: float, look: Callable[[], None] | None) -> tuple[bytes, bool]:
    """All of a pipe up to `limit` bytes, and whether there was more. Raises `TimeoutError`."""
    poll = select.poll()
    poll.register(file, select.POLLIN | select.POLLHUP)
    pieces: list[bytes] = []
    size = 0
    while True:
        left = deadline - time.monotonic()
        if look is not None and not poll.poll(min(left, MOMENT_S) * 1000):
            look()
            look = None
            continue
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError
        piece = os.read(file, _PIECE)
        if not piece:
            return b"".join(pieces), False
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            return b"".join(pieces)[:limit], True


def _scratch() -> IO[bytes]:
    """A file without a name, in memory where the system has that: it never fills up as a pipe does."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("git", os.MFD_CLOEXEC), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def succeeded(output: Output, ok: Container[int] = (0,)) -> bool:
    """Whether a run ended as wanted; one that was cut did."""
    return output.cut or output.status in ok
