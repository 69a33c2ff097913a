"""A new content for a file, so that every reader sees the old or the new one whole, whatever happens.

The content is written into a file without a name on the same disk, flushed, and then named: a new file at once, one that replaces
another under a name of our own for the instant before it is renamed over the old one; then the folder is flushed. A crash leaves the
old file, and at most such a name, which the next start removes. (Where the file system knows no files without names, it has
that name from the beginning.) Conditions (`If-Match`) are looked at again right before the rename, under one lock: of many writers
with the same condition exactly one wins.

What the old file had is kept: its mode, owner and extended attributes. Where they can't be, or the system refuses the rename (of a
mount point, in a folder of somebody else's), the content is written into the file itself (`in_place.py`). A link inside the
workspace is followed, and stays. A file of several names (hard links) is one file fewer afterwards: the others keep the old content.
"""

import contextlib
import errno
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from workspace_runtime.conditions import NO_CONDITIONS, Conditions
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import Place, WorkspaceRoot, etag_of, kind_of, own_descriptors, refusal, shown

from .in_place import write_in_place
from .temporary import Temporaries

OnConflict = Literal["overwrite", "rename", "reject"]
Result = Literal["created", "replaced", "renamed"]
MAX_RENAMES = 1000
COPY_BYTES = 1024 * 1024
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
# Copied to the new file; what belongs to the content's old identity (capabilities) is not.
_KEPT_ATTRIBUTES = ("user.", "system.posix_acl")
# Of a folder, or of a file that may not be replaced: it may still be written.
_NOT_HERE = (errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: the path (another one where it was renamed), its size in bytes, and its new validator."""

    path: bytes
    size: int
    etag: str
    result: Result
    mode: int
    in_place: bool = False


class Writer:
    """Writes files below one root. Its methods block, and may be called from any thread."""

    def __init__(self, root: WorkspaceRoot, temporaries: Temporaries) -> None:
        self.root = root
        self._temporaries = temporaries
        self._commits = threading.Lock()
        self._last_ns = 0

    def begin(
        self,
        path: bytes,
        conditions: Conditions = NO_CONDITIONS,
        *,
        on_conflict: OnConflict = "overwrite",
        mode: int | None = None,
        executable: bool = False,
        like: int | None = None,
    ) -> "Replacement":
        """Start a new content for `path`. Folders on the way are made when it is committed, not before.

        `mode` is that of the new file, else the old one's, else what the umask leaves; `like` an open file whose owner, times and
        attributes it gets instead of an old one's. Raises `WorkspaceError`: `precondition_failed`, `file_exists`, `is_directory`,
        `not_a_file`, `link_dangling`, `permission_denied`, …
        """
        try:
            folder, old = self._look(path, conditions, on_conflict)
        except OSError as fault:
            raise refusal(fault, path, making=True) from None
        return Replacement(self, path, folder, conditions, on_conflict, old, mode, executable, like)

    def link(self, path: bytes, leads_to: bytes, *, overwrite: bool) -> None:
        """Make a symbolic link; with `overwrite` it replaces a file or a link in one step. Raises `OSError`."""
        with self.root.place(path, make=True) as place:
            if not overwrite or place.status() is None:
                os.symlink(leads_to, place.name, dir_fd=place.folder)
            else:
                folder = place.path.rpartition(b"/")[0]
                name = self._temporaries.begin(folder)
                try:
                    os.symlink(leads_to, name, dir_fd=place.folder)
                    os.rename(name, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=place.folder)
                    raise
                finally:
                    self._temporaries.end(folder, name)
            flush_folder(place.folder)

    def _look(
        self, path: bytes, conditions: Conditions, on_conflict: OnConflict
    ) -> tuple[Place, os.stat_result | None]:
        """Refuse what can be known before a byte was written. Gives the folder to write in, and the old file's status."""
        above = path
        while True:
            try:
                with self.root.place(above, follow=above == path and on_conflict == "overwrite") as place:
                    old = place.status() if above == path else None
                    if above == path:
                        check_target(place, old, path, conditions, on_conflict)
                    if on_conflict == "rename":
                        old = None  # another name will be found, and nothing replaced
                    return Place(os.dup(place.folder), b"", place.path.rpartition(b"/")[0]), old
            except FileNotFoundError:
                if b"/" not in above:
                    raise
                conditions.check(None, shown(path), None)
                above = above.rpartition(b"/")[0]

    def next_ns(self) -> int:
        """Now, and later than ever before: so that no two contents of ours have the same validator."""
        with self._commits:
            self._last_ns = max(time.time_ns(), self._last_ns + 1)
            return self._last_ns


def check_target(
    place: Place, old: os.stat_result | None, path: bytes, conditions: Conditions, on_conflict: OnConflict
) -> None:
    """Raise `WorkspaceError` where `place` can't get a new content."""
    name = shown(path)
    if old is None:
        conditions.check(None, name, None)
        return
    if on_conflict == "rename":
        return
    if stat.S_ISDIR(old.st_mode):
        raise WorkspaceError("is_directory", f"{name!r} is a directory.", path=name)
    if on_conflict == "reject":
        raise WorkspaceError("file_exists", f"{name!r}: There is one of this name.", path=name)
    if not stat.S_ISREG(old.st_mode):
        raise WorkspaceError("not_a_file", f"{name!r} is {kind_of(old.st_mode)}, no file.", path=name)
    conditions.check(etag_of(old), name, old.st_mtime)
    if not os.access(place.name, os.W_OK, dir_fd=place.folder, effective_ids=True, follow_symlinks=False):
        raise WorkspaceError("permission_denied", f"{name!r} may not be written.", path=name)


class Replacement:
    """A content on its way. `write` it, then `commit`; `close` in any case, which gives up what was not committed."""

    def __init__(
        self,
        writer: Writer,
        path: bytes,
        folder: Place,
        conditions: Conditions,
        on_conflict: OnConflict,
        old: os.stat_result | None,
        mode: int | None,
        executable: bool,
        like: int | None,
    ) -> None:
        self._writer = writer
        self._path = path
        self._folder = folder
        self._conditions = conditions
        self._on_conflict: OnConflict = on_conflict
        self._mode = mode
        self._like = like
        self._name = b""
        self._apart = False  # it lies in the state folder, and can only be written into the file that is there
        self._file = -1
        self._size = 0
        self._moment = 0
        # what will replace a file is private until it has that one's mode; a new one gets what the umask leaves
        start = 0o600 if old is not None or mode is not None else 0o777 if executable else 0o666
        try:
            try:
                self._file = self._open(start)
            except OSError as fault:
                if old is None or fault.errno not in _NOT_HERE:
                    raise
                self._forget()
                self._file, self._apart = writer._temporaries.spool(), True
        except OSError as fault:
            self.close()
            raise refusal(fault, path, making=True) from None

    def _open(self, mode: int) -> int:
        folder = self._folder.folder
        with contextlib.suppress(AttributeError, OSError):  # not on this system, or not on this disk
            own_descriptors()
            return os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode, dir_fd=folder)
        self._name = self._writer._temporaries.begin(self._folder.path)
        return os.open(
            self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder
        )

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. Raises `WorkspaceError`: `disk_full`, `file_failed`."""
        view = memoryview(data)
        try:
            while view:
                done = os.write(self._file, view)
                self._size += done
                view = view[done:]
        except OSError as fault:
            raise refusal(fault, self._path) from None

    def copy_from(self, source: int, check: Callable[[], None]) -> None:
        """Append all of an open file; the kernel copies, without a way through this process where it can. `check` is called
        before each piece, and may raise."""
        while True:
            check()
            try:
                done = os.copy_file_range(source, self._file, COPY_BYTES)
            except OSError as fault:
                # across file systems, or one that can't
                if fault.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                    raise refusal(fault, self._path) from None
                break
            self._size += done
            if not done:
                return
        while data := os.read(source, COPY_BYTES):
            check()
            self.write(data)

    def commit(self) -> Written:
        """Give the file its name. Raises `WorkspaceError`, as `Writer.begin`; then the old file is unchanged."""
        try:
            self.end()
            os.fsync(self._file)
            return self._place_at(self._path)
        except OSError as fault:
            raise refusal(fault, self._path, making=True) from None

    def end(self) -> None:
        """The content is whole. Raises `OSError`."""
        self._moment = moment = self._writer.next_ns()
        os.utime(self._file, ns=(moment, moment))

    def commit_flushed(self) -> Written:
        """As `commit`, after `end`, where somebody else has flushed the content, and will flush the name."""
        try:
            return self._place_at(self._path, flush=False)
        except OSError as fault:
            raise refusal(fault, self._path, making=True) from None

    @property
    def path(self) -> bytes:
        """Where it is to be, as a path from the root."""
        return self._path

    @property
    def file(self) -> int:
        """The open file that the content is in."""
        return self._file

    def _place_at(self, path: bytes, *, flush: bool = True) -> Written:
        on_conflict = self._on_conflict
        for number in range(MAX_RENAMES):
            wanted = path if not number else numbered(path, number)
            with self._writer.root.place(wanted, follow=on_conflict == "overwrite", make=True) as place:
                with self._writer._commits:
                    old = place.status()
                    if old is not None and on_conflict == "rename":
                        continue
                    check_target(place, old, wanted, self._conditions, on_conflict)
                    result: Result = "replaced" if old is not None else "renamed" if number else "created"
                    try:
                        written = self._put(place, old)
                    except FileExistsError:  # made by somebody else in this instant
                        if on_conflict == "rename":
                            continue
                        old, result = place.status(), "replaced"
                        check_target(place, old, wanted, self._conditions, on_conflict)
                        written = self._put(place, old)
                if written is None and flush:
                    self._flush(place, inherited=old is not None or self._mode is not None)
                status = written or os.fstat(self._file)
                mode = stat.S_IMODE(status.st_mode)
                return Written(wanted, status.st_size, etag_of(status), result, mode, in_place=written is not None)
        raise WorkspaceError("file_exists", f"{shown(path)!r}: There are {MAX_RENAMES} of this name.")

    def _put(self, place: Place, old: os.stat_result | None) -> os.stat_result | None:
        """Have the place hold the new content: None where this file has taken it, else the status of the file that was there."""
        try:
            if self._apart:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._inherit(place, old)
            self._rename(place, exclusive=old is None)
        except OSError as fault:
            if old is None or self._like is not None or fault.errno not in _NOT_HERE:
                raise
            self._forget()
            return write_in_place(place, old, self._file, mode=self._mode, moment=self._moment)
        return None

    def _inherit(self, place: Place, old: os.stat_result | None) -> None:
        """Give the new file what the old one had, or what it is to be like. Raises `OSError` where that is not possible."""
        if self._mode is not None:
            os.fchmod(self._file, self._mode & 0o777)
        kept = os.fstat(self._like) if self._like is not None else old
        if kept is None:
            return
        own = os.fstat(self._file)
        if (own.st_uid, own.st_gid) != (kept.st_uid, kept.st_gid):
            os.fchown(self._file, kept.st_uid, kept.st_gid)  # only root may give files away
        self._copy_attributes(self._like if self._like is not None else _held(place) + place.name)
        if self._mode is None:
            # set-user-id is never passed on to a new content, as no write would
            os.fchmod(self._file, stat.S_IMODE(kept.st_mode) & 0o1777)
        if self._like is not None:
            os.utime(self._file, ns=(kept.st_atime_ns, kept.st_mtime_ns))

    def _copy_attributes(self, source: int | bytes) -> None:
        if not hasattr(os, "listxattr"):
            return
        try:
            kept = _attributes(source)
        except OSError:
            return  # a file system without any, or no /proc
        for name in _attributes(self._file).keys() - kept.keys():
            os.removexattr(self._file, name)  # what the folder gives to new files
        for name, value in kept.items():
            try:
                os.setxattr(self._file, name, value)
            except OSError as fault:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM)) from fault

    def _rename(self, place: Place, *, exclusive: bool) -> None:
        """Give it the place's name. `exclusive`: raises `FileExistsError` where there is something."""
        if os.fstat(place.folder).st_dev != os.fstat(self._folder.folder).st_dev:
            # only where a folder on the way was exchanged since the beginning
            raise WorkspaceError("file_busy", f"{shown(self._path)!r}: A folder on the way has changed. Try again.")
        if exclusive:
            try:
                self._link(place.folder, place.name)
            except FileExistsError:
                raise
            except OSError as fault:
                # a file system without hard links: between this look and the rename somebody may still come
                if not self._name or fault.errno not in _NO_LINKS:
                    raise
                if place.status() is not None:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            else:
                self._forget()
                return
        if not self._name:
            self._name = self._writer._temporaries.begin(self._folder.path)
            self._link(self._folder.folder, self._name)
        os.rename(self._name, place.name, src_dir_fd=self._folder.folder, dst_dir_fd=place.folder)
        self._noted_no_more()

    def _link(self, folder: int, name: bytes) -> None:
        """Give the file one more name. Raises `OSError`: `FileExistsError`, …"""
        if self._name and self._name != name:
            os.link(self._name, name, src_dir_fd=self._folder.folder, dst_dir_fd=folder, follow_symlinks=False)
        else:
            os.link(b"%d" % self._file, name, src_dir_fd=own_descriptors(), dst_dir_fd=folder, follow_symlinks=True)

    def _flush(self, place: Place, *, inherited: bool) -> None:
        """Make the new name durable, and those of folders that were made for it."""
        if inherited:
            os.fsync(self._file)
        flush_folder(place.folder)
        real = self._folder.path
        above = place.path.rpartition(b"/")[0]
        while above and above != real:
            above = above.rpartition(b"/")[0]
            with contextlib.suppress(OSError, WorkspaceError):
                opened = self._writer.root.open_folder(above)
                try:
                    os.fsync(opened)
                finally:
                    os.close(opened)

    def _forget(self) -> None:
        """Remove our own name, if it has one."""
        if not self._name:
            return
        with contextlib.suppress(OSError):
            os.unlink(self._name, dir_fd=self._folder.folder)
        self._noted_no_more()

    def _noted_no_more(self) -> None:
        self._writer._temporaries.end(self._folder.path, self._name)
        self._name = b""

    def close(self) -> None:
        """Give up what was not committed. Safe to call twice."""
        if self._name:
            self._forget()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._folder.folder >= 0:
            os.close(self._folder.folder)
            self._folder = Place(-1, b"", b"")

    @property
    def size(self) -> int:
        """The bytes written so far."""
        return self._size


def _held(place: Place) -> bytes:
    return b"/proc/self/fd/%d/" % place.folder


def _attributes(file: int | bytes) -> dict[str, bytes]:
    """The attributes that are kept, of an open file or a path (a link is not followed). Raises `OSError`."""
    follow = isinstance(file, int)
    names = [name for name in os.listxattr(file, follow_symlinks=follow) if name.startswith(_KEPT_ATTRIBUTES)]
    return {name: os.getxattr(file, name, follow_symlinks=follow) for name in names}


def flush_folder(folder: int) -> None:
    """Make the names in an open folder durable; where it may not be read, the system does so in its own time."""
    try:
        opened = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return
    try:
        os.fsync(opened)
    except OSError as fault:
        if fault.errno != errno.EINVAL:  # a file system that can't
            raise
    finally:
        os.close(opened)


def numbered(path: bytes, number: int) -> bytes:
    """`a/name.txt` as `a/name (1).txt`, and that as `a/name (2).txt`, the way browsers and file managers do."""
    above, separator, name = path.rpartition(b"/")
    stem, dot, suffix = name.rpartition(b".")
    if not stem:
        stem, dot, suffix = name, b"", b""
    if (found := _NUMBERED.fullmatch(stem)) is not None:
        stem, number = found[1], int(found[2]) + number
    return above + separator + stem + b" (%d)" % number + dot + suffix


_NUMBERED = re.compile(rb"(.+) \(([1-9][0-9]{0,8})\)", re.DOTALL)
