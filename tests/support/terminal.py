"""A command in a terminal of its own: what a person sees, and types."""

import contextlib
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

COMMAND = [sys.executable, "-m", "workspace_runtime"]
TIMEOUT_S = 45.0


class Terminal:
    """A running command whose standard streams, and whose keyboard, are a terminal."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor
        self._seen = b""
        self._told = 0

    def until(self, words: str) -> str:
        """Wait until something new holds these words; gives all that was seen."""
        deadline = time.monotonic() + TIMEOUT_S
        while words.encode() not in self._seen[self._told :]:
            assert self._read(deadline), f"it ended before {words!r}: {self.text}"
        self._told = self._seen.index(words.encode(), self._told) + len(words.encode())
        return self.text

    def type(self, keys: str) -> None:
        """Press these keys."""
        os.write(self._descriptor, keys.encode())

    def end(self) -> int:
        """Wait for its end; the exit status."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._read(deadline):
            pass
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        return status

    @property
    def text(self) -> str:
        """All that was seen."""
        return self._seen.decode(errors="replace").replace("\r\n", "\n")

    def _read(self, deadline: float) -> bool:
        while not select.select([self._descriptor], [], [], 0.1)[0]:
            assert time.monotonic() < deadline, f"nothing more came: {self.text}"
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # nobody has the other side open any more
            return False
        self._seen += data
        return bool(data)

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._descriptor)


@contextlib.contextmanager
def terminal(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Iterator[Terminal]:
    """The command in a new terminal; killed at the end, if it still runs."""
    pid, descriptor = pty.fork()
    if pid == 0:
        try:
            os.chdir(cwd)
            os.execvpe(command[0], list(command), dict(env))
        finally:
            os._exit(127)
    made = Terminal(pid, descriptor)
    try:
        yield made
    finally:
        made.close()


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a person's shell has."""
    return {
        "PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "TERM": "xterm", "DEMO_WORD_DELAY_S": "0", **more,
    }  # fmt: skip
