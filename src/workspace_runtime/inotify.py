"""The kernel's queue of changes (inotify(7)), by the library's binding of the three calls.

The `Inotify` class of `asyncinotify` makes a Path, a Mask and an Event object of every raw event, maps descriptors to the path of
registration, and has no flag for non-blocking. Bursts of tens of thousands of events and moved folders want neither.
"""

import os
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any

try:
    from asyncinotify import _ffi

    _libc: Any = _ffi.libc
except (ImportError, AttributeError):  # no Linux: everything is polled
    _libc = None

MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x2, 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
UNMOUNT, Q_OVERFLOW, IGNORED, ONLYDIR, EXCL_UNLINK = 0x2000, 0x4000, 0x8000, 0x01000000, 0x04000000
CHANGES = MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | ONLYDIR | EXCL_UNLINK
_EVENT = struct.Struct("=iIII")
_MAX_WAITING = 64 * 1024 * 1024  # bytes of events that were read and not yet looked at


class Inotify:
    """The kernel's queue of events. Raises `OSError` where there are no more instances."""

    def __init__(self) -> None:
        self.fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self.overflowed = False

    def close(self) -> None:
        """Let go of the queue and of all watches."""
        os.close(self.fd)

    def add(self, held: int, mask: int = CHANGES) -> int:
        """Watch an open folder; its descriptor, the same one if it is watched already. Raises `OSError`."""
        added: int = _libc.inotify_add_watch(self.fd, b"/proc/self/fd/%d" % held, mask)
        return added

    def remove(self, wd: int) -> None:
        """Watch it no longer."""
        try:
            _libc.inotify_rm_watch(self.fd, wd)
        except OSError:
            return  # it went with its folder

    def drain(self) -> None:
        """Take over what the kernel has, so that its queue does not run full while something long is done."""
        for _ in range(64):  # whoever writes without end does not hold us here
            try:
                chunk = os.read(self.fd, 256 * 1024)
            except (BlockingIOError, InterruptedError):
                return
            self._bytes += len(chunk)
            if self._bytes > _MAX_WAITING:
                self.overflowed = True
                return
            self._waiting.append(chunk)

    def events(self) -> Iterator[tuple[int, int, int, bytes]]:
        """What was drained: watch descriptor, mask, cookie, name."""
        while self._waiting:
            chunk = self._waiting.popleft()
            self._bytes -= len(chunk)
            at, end = 0, len(chunk)
            while at < end:
                wd, mask, cookie, length = _EVENT.unpack_from(chunk, at)
                at += 16 + length
                yield wd, mask, cookie, chunk[at - length : at].rstrip(b"\0")


def new_inotify() -> Inotify | None:
    """A queue, None where there is none to be had."""
    if _libc is None:
        return None
    try:
        return Inotify()
    except OSError:
        return None
