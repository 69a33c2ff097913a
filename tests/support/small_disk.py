"""A server whose disk is small, to be filled up: a file system of its own, mounted where nobody else sees it. Needs root.

As a program (`small_disk.py FOLDER SIZE COMMAND...`) this file mounts FOLDER, in a mount namespace of its own, unless it is given one
(`--join PID`), and becomes the command.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.server import ServerProcess

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


class SmallDisk:
    """A small disk at `folder`, for as long as its holder lives. What it holds is seen by `inside` (a path for this process)."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, os.path.abspath(__file__), "hold", str(folder), size]
        self._holder = subprocess.Popen(command, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.read(1) == b"x"
        self.pid = self._holder.pid
        self.inside = Path(f"/proc/{self.pid}/root{folder}")

    def fill(self) -> None:
        """Leave no room, not for one byte."""
        with (self.inside / "fill").open("ab", buffering=0) as file:
            for size in (65536, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        """Take away what `fill` has put there."""
        (self.inside / "fill").unlink()

    def close(self) -> None:
        """Let it go, with all that it holds."""
        self._holder.communicate()


class ServerOnSmallDisk(ServerProcess):
    """A server that sees the small disk. What of it lies there is `disk.folder` and below."""

    def __init__(self, disk: SmallDisk, folder: Path, workspace: Path, state: Path, *arguments: str) -> None:
        super().__init__(folder, *arguments)
        self.disk, self.workspace, self.state = disk, workspace, state

    def start(self) -> "ServerOnSmallDisk":
        """Start, and wait until it serves."""
        command = [sys.executable, "-m", "workspace_runtime", "serve", str(self.workspace), "--port", "0"]
        command += ["--state-path", str(self.state), *self.arguments]
        join = [sys.executable, os.path.abspath(__file__), "join", str(self.disk.pid)]
        self.output.clear()
        self.process = subprocess.Popen(
            join + command,
            cwd=self.folder,
            env=self.env | _environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.await_serving(self.process)
        return self


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "PATH": os.environ["PATH"]}


def _must(done: int, what: str) -> None:
    if done != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.argv[1] == "join":
        namespace = os.open(f"/proc/{sys.argv[2]}/ns/mnt", os.O_RDONLY)
        _must(libc.setns(namespace, _CLONE_NEWNS), "setns")
        del os.environ["PYTHONPATH"]
        os.execvp(sys.argv[3], sys.argv[3:])
    _must(libc.unshare(_CLONE_NEWNS), "unshare")
    _must(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "making mounts private")
    _must(libc.mount(b"tmpfs", os.fsencode(sys.argv[2]), b"tmpfs", 0, f"size={sys.argv[3]}".encode()), "mounting")
    os.write(1, b"x")
    os.read(0, 1)


if __name__ == "__main__":
    _main()
