"""Finding processes by a marker, to see whether any is left; and a small way to daemonize in every manner."""

import contextlib
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE_S = 20.0


def marker() -> str:
    """A word that no other process has."""
    return f"wr-test-{uuid.uuid4().hex}"


@contextlib.contextmanager
def marking() -> Iterator[str]:
    """A marker; what still has it at the end, because the test failed, is killed."""
    mark = marker()
    try:
        yield mark
    finally:
        for pid in marked(mark):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def marked(mark: str) -> list[int]:
    """The living processes, but for this one, with `mark` in their command line, environment or folder."""
    sought = mark.encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            state = _read(f"/proc/{name}/stat").rpartition(b") ")[2][:1]
            if state in (b"Z", b"X"):
                continue
            if (
                sought in _read(f"/proc/{name}/cmdline")
                or sought in _read(f"/proc/{name}/environ")
                or sought in os.readlink(f"/proc/{name}/cwd".encode())
            ):
                found.append(int(name))
    return found


def told(pids: list[int]) -> str:
    """What the processes are, for a failed test."""
    lines = []
    for pid in pids:
        with contextlib.suppress(OSError):
            lines.append(f"{pid}: {_read(f'/proc/{pid}/cmdline').replace(bytes(1), b' ').decode(errors='replace')}")
    return "\n".join(lines)


def wait_for(condition: Callable[[], Any], timeout: float = PATIENCE_S) -> Any:
    """The condition's value once it is true; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.005)
    return value


def assert_gone(mark: str, timeout: float = 5.0) -> None:
    """No process with the mark is left within `timeout` seconds: the product promises 5."""
    deadline = time.monotonic() + timeout
    while left := marked(mark):
        assert time.monotonic() < deadline, f"left after {timeout} s:\n{told(left)}"
        time.sleep(0.005)


def child_of(pid: int, mark: str = "") -> int:
    """The process id of the living child of a process, with `mark`: a keeper's command, for instance."""
    for child in marked(mark):
        with contextlib.suppress(OSError):
            if int(_read(f"/proc/{child}/stat").rpartition(b") ")[2].split()[1]) == pid:
                return child
    raise LookupError(f"{pid} has no child")


def open_files() -> set[str]:
    """What this process has open, by descriptor and target."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found


def watches(pid: int) -> int:
    """How many of a process's open files are watches for changes of files (inotify(7))."""
    found = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += "inotify" in os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def daemons(mark: str) -> dict[str, str]:
    """Shell commands, to be followed by more, that each leave one process with `mark` behind, which does not want to be found."""
    script = (
        "import os, time\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        "os.chdir('/')\n"
        "os.closerange(0, 64)\n"
        "time.sleep(1000)\n"
    )
    wait = f"sh -c 'sleep 1000; : {mark}'"
    return {
        "background": f"{wait} &",
        "own session": f"setsid {wait} &",
        "forked twice": f"( setsid {wait} & ) &",
        "cleared": f"env -i setsid /bin/{wait} &",
        "stubborn": f"setsid sh -c 'trap \"\" TERM HUP INT; sleep 1000; sleep 1000; : {mark}' &",
        "stopped": f"{wait} & kill -STOP $!;",
        "a real daemon": f'env -i {sys.executable} -I -S -c "{script}" {mark};',
    }
