"""Many new files at once, as an archive brings them: what costs the most, the flush, is done once for many.

The invariant is that of a single file: none has its name before its content is on the disk. So files wait, whole and without a name,
until there are enough; then all that is dirty on their disk is flushed by one call (syncfs(2)), and each gets its name. At the end the
same call makes the names durable. Where there is no such call, each is flushed by itself.
"""

import contextlib
import ctypes
import errno
import os
import resource
from collections.abc import Callable

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import refusal

from .writing import Replacement, Written, flush_folder

# Each takes two descriptors while it waits, and four batches may be under way: they take half of all at most.
MAX_FILES = max(16, min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16))
MAX_BYTES = 64 * 1024 * 1024
FEW = 4  # so few are flushed each by itself: the disk may have much else to write


def _load() -> "ctypes._NamedFuncPointer | None":
    try:
        call = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int,)
    call(-1)
    return None if ctypes.get_errno() == errno.ENOSYS else call


_syncfs = _load()


def _flush_disk(opened: int) -> None:
    """Flush all that is dirty on the disk of an open file. Raises `OSError`."""
    assert _syncfs is not None
    if _syncfs(opened) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Batch:
    """See the module. `add` files, then `finish`; `close` in any case, which gives up what has no name yet."""

    def __init__(
        self, written: Callable[[Replacement, Written], None], refused: Callable[[bytes, WorkspaceError], None]
    ) -> None:
        """`written` and `refused` are told what became of each, in order."""
        self._written, self._refused = written, refused
        self._waiting: list[Replacement] = []
        self._paths: set[bytes] = set()
        self._bytes = 0
        self._disks: dict[int, int] = {}  # by device: an open file on it

    def add(self, new: Replacement) -> None:
        """Take over a file whose content is whole. Raises `WorkspaceError` for what fails for all, such as a full disk."""
        self._waiting.append(new)
        self._paths.add(new.path)
        self._bytes += new.size
        try:
            new.end()
        except OSError as fault:
            raise refusal(fault, new.path) from None
        if len(self._waiting) >= MAX_FILES or self._bytes >= MAX_BYTES:
            self.flush()

    def holds(self, path: bytes) -> bool:
        """Whether a file for this path waits for its name."""
        return path in self._paths

    def flush(self) -> None:
        """Give all that wait their names. Raises as `add`."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        self._paths.clear()
        together = _syncfs is not None and len(waiting) > FEW
        try:
            if together:
                self._flush_contents(waiting)
            for new in waiting:
                try:
                    written = new.commit_flushed() if together else new.commit()
                except WorkspaceError as fault:
                    if fault.status >= 500:
                        raise
                    self._refused(new.path, fault)
                else:
                    self._written(new, written)
        finally:
            for new in waiting:
                new.close()

    def _flush_contents(self, waiting: list[Replacement]) -> None:
        devices = set()
        try:
            for new in waiting:
                device = os.fstat(new.file).st_dev
                devices.add(device)
                if device not in self._disks:
                    self._disks[device] = os.dup(new.file)
            for device in devices:
                _flush_disk(self._disks[device])
        except OSError as fault:
            raise refusal(fault, waiting[0].path) from None

    def touched(self, folder: int) -> None:
        """In an open folder a name was made that is to be durable at the end. Raises `OSError`."""
        if _syncfs is None:
            flush_folder(folder)
            return
        device = os.fstat(folder).st_dev
        if device not in self._disks:
            with contextlib.suppress(OSError):  # where it may not be read, the system flushes it in its own time
                self._disks[device] = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)

    def finish(self) -> None:
        """All was added: give the rest their names, and make all durable. Raises as `add`."""
        self.flush()
        try:
            for opened in self._disks.values():
                _flush_disk(opened)
        except OSError as fault:
            raise refusal(fault, b"") from None

    def close(self) -> None:
        """Give up what waits."""
        for new in self._waiting:
            new.close()
        self._waiting = []
        for opened in self._disks.values():
            with contextlib.suppress(OSError):
                os.close(opened)
        self._disks = {}
