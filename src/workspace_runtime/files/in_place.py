"""Writes a new content into a file that is there, for where no other file may take its place: a file that is a mount point, one of
another owner, one in a folder that may not be written.

The content is whole on our side before the first byte is written, and room for it is taken first: so a client that leaves and a full
disk change nothing. A reader may see a part of both contents, and a crash may leave it; the file is flushed at the end.
"""

import contextlib
import errno
import os
import stat

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import Place, etag_of, own_descriptors, refusal, shown

COPY_BYTES = 1024 * 1024
_CANT_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


def write_in_place(place: Place, old: os.stat_result, source: int, *, mode: int | None, moment: int) -> os.stat_result:
    """Give the file at `place`, which must be the one of `old`, the content of the open file `source`; its new status.

    `mode` is its new mode, None for the old one; `moment` the time of change where it may be set. Raises `OSError`, and
    `WorkspaceError`: `file_busy` where the file was exchanged; what failed in the middle has `partial: true`.
    """
    opened = _open(place, old)
    try:
        if mode is not None:
            if mode != stat.S_IMODE(old.st_mode):
                os.fchmod(opened, mode)
        elif old.st_mode & (stat.S_ISUID | stat.S_ISGID):
            with contextlib.suppress(OSError):  # the kernel takes them away when another user writes
                os.fchmod(opened, stat.S_IMODE(old.st_mode) & 0o1777)
        size = os.fstat(source).st_size
        _take_room(opened, old.st_size, size)
        try:
            copy_content(source, opened)
            os.ftruncate(opened, size)
            os.fsync(opened)
        except OSError as fault:
            error = refusal(fault, place.path)
            error.detail += " Its content is not whole now: write it again."
            error.data["partial"] = True
            raise error from None
        with contextlib.suppress(OSError):  # only its owner may
            os.utime(opened, ns=(moment, moment))
        return os.fstat(opened)
    finally:
        os.close(opened)


def _open(place: Place, old: os.stat_result) -> int:
    """The file, open for writing. It is looked at before it is opened, so that it is no FIFO or device by now."""
    held = os.open(place.name, getattr(os, "O_PATH", os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.folder)
    try:
        if etag_of(os.fstat(held)) != etag_of(old):
            raise WorkspaceError("file_busy", f"{shown(place.path)!r} was changed meanwhile. Try again.")
        return os.open(b"%d" % held, os.O_RDWR | os.O_CLOEXEC, dir_fd=own_descriptors())
    except PermissionError:  # it may be written, and not read
        return os.open(b"%d" % held, os.O_WRONLY | os.O_CLOEXEC, dir_fd=own_descriptors())
    finally:
        os.close(held)


def _take_room(opened: int, before: int, size: int) -> None:
    if size <= before:
        return
    try:
        os.posix_fallocate(opened, before, size - before)
    except OSError as fault:
        if fault.errno not in _CANT_COPY:
            with contextlib.suppress(OSError):
                os.ftruncate(opened, before)
            raise


def copy_content(source: int, target: int) -> None:
    """Write all of one open file, from its start, into another one from its start. Raises `OSError`."""
    at = 0
    with contextlib.suppress(AttributeError):
        try:
            while done := os.copy_file_range(source, target, COPY_BYTES, at, at):
                at += done
            return
        except OSError as fault:
            if fault.errno not in _CANT_COPY:
                raise
    while data := os.pread(source, COPY_BYTES, at):
        done = 0
        while done < len(data):
            done += os.pwrite(target, memoryview(data)[done:], at + done)
        at += len(data)
