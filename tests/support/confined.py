"""A server that can't harm the machine, for tests that attack it.

Run as root it gets a mount namespace of its own in which all but its folder can only be read, and keeps only the capabilities
that have to do with the owners and modes of files; its memory is limited. Run as another user it is started as always, but for
the limit: that user's own rights are the fence then.

As a program (`confined.py FOLDER COMMAND...`) this file fences itself in and becomes the command.
"""

import contextlib
import ctypes
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from support.server import ServerProcess

MEMORY_BYTES = 6 * 1024**3  # of addresses: threads reserve much more than they use
_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MOUNT_SETATTR = 442  # the same number on every architecture
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_READ_ONLY = 1
_CAPBSET_DROP, _NO_NEW_PRIVS = 24, 38
_KEPT_CAPABILITIES = 6  # CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, KILL


class ConfinedServer(ServerProcess):
    """As `ServerProcess`, but fenced in."""

    def start(self) -> "ConfinedServer":
        """Start, and wait until it serves."""
        command = [sys.executable, "-m", "workspace_runtime", "serve", str(self.workspace), "--port", "0"]
        command += ["--state-path", str(self.state), *self.arguments]
        self.state.mkdir(exist_ok=True)
        self.env |= {"TMPDIR": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        fence = [sys.executable, os.path.abspath(__file__), str(self.folder)]
        environment = self.env | {"PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}
        self.process = subprocess.Popen(
            fence + command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.await_serving(self.process)
        return self


@contextlib.contextmanager
def confined(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[ConfinedServer]:
    """A confined server for as long as the context is open."""
    server = ConfinedServer(folder, *arguments, env=env).start()
    try:
        yield server
    finally:
        server.stop()


def fence_in(folder: str) -> None:
    """Take from this process, for good, what it does not need to serve below `folder`."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)

    def must(done: int, what: str) -> None:
        if done != 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    here = os.fsencode(os.path.realpath(folder))
    must(libc.unshare(_CLONE_NEWNS), "unshare")
    must(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "making mounts private")
    must(libc.mount(here, here, None, _MS_BIND, None), "binding the folder")
    for path, recursive, put, clear in ((b"/", _AT_RECURSIVE, _READ_ONLY, 0), (here, 0, 0, _READ_ONLY)):
        attributes = struct.pack("=QQQQ", put, clear, 0, 0)
        must(libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, path, recursive, attributes, len(attributes)), "mount_setattr")
    number = _KEPT_CAPABILITIES
    while libc.prctl(_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    must(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    os.chdir(here)


if __name__ == "__main__":
    fence_in(sys.argv[1])
    del os.environ["PYTHONPATH"]
    os.execvp(sys.argv[2], sys.argv[2:])
