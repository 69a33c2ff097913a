"""Moves and copies. Where a rename can't move (to another file system), it is copied, flushed, and only then removed.

The invariant: at each moment what is moved is whole at one of the two places. Nothing is merged, no link is followed, and of what
is removed nothing differs from what was copied.
"""

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, field

from workspace_runtime.conditions import NO_CONDITIONS, Conditions
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import Place, WorkspaceRoot, etag_of, kind_of, shown

from .changes import make_folder, refusing, rename, status_of
from .removal import mounted_at, refuse_mounts, remove_tree
from .stopping import IsStopped, check, never
from .temporary import is_temporary
from .writing import Writer, flush_folder

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class AcrossError(Exception):
    """The two places lie on different file systems."""


def move(root: WorkspaceRoot, source: bytes, target: bytes, *, overwrite: bool = False) -> bool:
    """Move or rename; True where something was replaced. A folder replaces an empty one alone: nothing is merged.

    Raises `AcrossError` where it takes `move_across`, and `WorkspaceError`: `file_not_found`, `file_exists`, `is_directory`,
    `not_a_directory`, `directory_not_empty`, `into_itself`, `file_busy`, …
    """
    with refusing(source), root.place(source) as start:
        moved = status_of(start)
        with refusing(target):
            _check_apart(root, start, moved, source, target)
        with refusing(target, making=True), root.place(target, make=True) as end:
            old = end.status()
            if old is not None and start.path == end.path:
                return False
            _check_replaced(moved, old, target, overwrite=overwrite)
            if old is not None and (old.st_dev, old.st_ino) == (moved.st_dev, moved.st_ino) and moved.st_nlink > 1:
                # two names of one file: to rename them does nothing (rename(2))
                os.unlink(start.name, dir_fd=start.folder)
                flush_folder(start.folder)
                return True
            try:
                rename(start, end, exclusive=not overwrite)
            except OSError as fault:
                if fault.errno == errno.EINVAL:
                    raise _into_itself(source) from None
                if fault.errno == errno.EXDEV:
                    _refuse_mount_point(start)
                    raise AcrossError from None
                if fault.errno == errno.EBUSY:
                    _refuse_mount_point(start)
                raise
            flush_folder(end.folder)
            flush_folder(start.folder)
    return old is not None


def _refuse_mount_point(start: Place) -> None:
    """What is a mount point itself is not moved away; one with a mount point below it can be renamed."""
    if start.path in mounted_at(start)[:1]:
        refuse_mounts(start, "moved")


def move_across(
    writer: Writer, source: bytes, target: bytes, *, overwrite: bool = False, stopped: IsStopped = never
) -> bool:
    """As `move`, to another file system: what is there is copied with its owner, times and attributes, and then removed.

    Raises `WorkspaceError` as `move` and `copy`; then nothing was removed, unless it has `partial: true`.
    """
    root = writer.root
    with refusing(source), root.place(source) as start:
        moved = status_of(start)
        refuse_mounts(start, "moved")
        with refusing(target, making=True), root.place(target, make=True) as end:
            old = end.status()
            _check_replaced(moved, old, target, overwrite=overwrite)
            if old is not None and stat.S_ISDIR(moved.st_mode):
                os.rmdir(end.name, dir_fd=end.folder)
        copying = _Copying(writer, stopped, keep=True)
        copying.run(source, target, moved, overwrite=overwrite)
        if stat.S_ISDIR(moved.st_mode):
            remove_tree(start, stopped, copying.copied)
        else:
            if etag_of(status_of(start)) != copying.copied[start.name]:
                raise WorkspaceError(
                    "file_busy", f"{shown(source)!r} was changed while it was moved: both are there now."
                )
            os.unlink(start.name, dir_fd=start.folder)
        flush_folder(start.folder)
    return old is not None


def copy(writer: Writer, source: bytes, target: bytes, *, overwrite: bool = False, stopped: IsStopped = never) -> bool:
    """Copy a file, a link as a link, or a folder with all in it; True where something was replaced.

    A file is replaced in one step. A folder must not be there yet; of one that fails on the way, all that was copied is taken
    away again, and what others have put into it meanwhile stays. FIFOs, devices and sockets are refused. Raises `WorkspaceError`
    as `move`, and `not_a_file`.
    """
    root = writer.root
    with refusing(source), root.place(source) as start:
        status = status_of(start)
        with refusing(target):
            _check_apart(root, start, status, source, target)
    with refusing(target, making=True):
        try:
            with root.place(target) as end:
                old = end.status()
        except (FileNotFoundError, NotADirectoryError):
            old = None  # what is wrong with it is told when it is made
        _check_replaced(status, old, target, overwrite=overwrite)
    if stat.S_ISDIR(status.st_mode) and old is not None:
        raise _exists(target, "a directory")
    _Copying(writer, stopped).run(source, target, status, overwrite=overwrite)
    return old is not None


@dataclass(slots=True)
class _Copying:
    """One copy. `keep`: owners, times and attributes too, and `copied` has the etags of what was read, by the path from the source.

    `made` has what was made, in this order: a file or link with its etag, a folder with None.
    """

    writer: Writer
    stopped: IsStopped
    keep: bool = False
    copied: dict[bytes, str] = field(default_factory=dict)
    made: list[tuple[bytes, str | None]] = field(default_factory=list)

    def run(self, source: bytes, target: bytes, status: os.stat_result, *, overwrite: bool) -> None:
        """Copy. What fails is taken away again, but for what others have put into a new folder or changed in it."""
        if not stat.S_ISDIR(status.st_mode):
            self._one(source, target, source.rpartition(b"/")[2], status, overwrite=overwrite)
            return
        self._make_folder(target)
        try:
            self._tree(source, target)
        except BaseException:
            self._take_back()
            raise

    def _make_folder(self, path: bytes) -> None:
        if not make_folder(self.writer.root, path):
            raise _exists(path, "a directory")  # somebody else was quicker, and nothing is merged
        self.made.append((path, None))

    def _take_back(self) -> None:
        """Remove what was made, where it is still the same. A folder that holds anything else stays."""
        while self.made:
            path, etag = self.made.pop()
            with contextlib.suppress(OSError, WorkspaceError), self.writer.root.place(path) as place:
                if etag is None:
                    os.rmdir(place.name, dir_fd=place.folder)
                elif etag_of(status_of(place)) == etag:
                    os.unlink(place.name, dir_fd=place.folder)
                if not self.made:
                    flush_folder(place.folder)

    def _tree(self, source: bytes, target: bytes) -> None:
        root = self.writer.root
        made = self._identity_of(target)
        todo = [b""]
        while todo:
            below = todo.pop()
            here = join(source, below)
            with refusing(here):
                folder = root.open_folder(here)
            try:
                status = os.fstat(folder)
                if (status.st_dev, status.st_ino) == made:  # the target is below, by another path: a bind mount
                    raise _into_itself(source)
                with os.scandir(folder) as found:
                    for item in found:
                        name = os.fsencode(item.name)
                        if is_temporary(name):
                            continue
                        inner = join(below, name)
                        if item.is_dir(follow_symlinks=False):
                            self._make_folder(join(target, inner))
                            todo.append(inner)
                            continue
                        with refusing(join(source, inner)):
                            one = item.stat(follow_symlinks=False)
                        self._one(join(source, inner), join(target, inner), inner, one, overwrite=False)
                self._finish_folder(join(target, below), status)
            finally:
                os.close(folder)

    def _identity_of(self, path: bytes) -> tuple[int, int]:
        with refusing(path), self.writer.root.place(path) as place:
            status = status_of(place)
            return status.st_dev, status.st_ino

    def _finish_folder(self, path: bytes, like: os.stat_result) -> None:
        with refusing(path), self.writer.root.place(path) as place:
            made = os.open(place.name, _DIRECTORY, dir_fd=place.folder)
            try:
                if self.keep and (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(made, like.st_uid, like.st_gid)
                os.fchmod(made, stat.S_IMODE(like.st_mode) | 0o700)
                if self.keep:
                    os.fsync(made)
            finally:
                os.close(made)

    def _one(self, source: bytes, target: bytes, inner: bytes, status: os.stat_result, *, overwrite: bool) -> None:
        check(self.stopped)
        if stat.S_ISLNK(status.st_mode):
            with refusing(source), self.writer.root.place(source) as start:
                leads_to = os.readlink(start.name, dir_fd=start.folder)
            self._read(inner, status)
            with refusing(target, making=True):
                self.writer.link(target, leads_to, overwrite=overwrite)
            with contextlib.suppress(OSError, WorkspaceError), self.writer.root.place(target) as end:
                self.made.append((target, etag_of(status_of(end))))
            return
        if not stat.S_ISREG(status.st_mode):
            raise WorkspaceError(
                "not_a_file", f"{shown(source)!r} is {kind_of(status.st_mode)}, no file.", path=shown(source)
            )
        with refusing(source):
            opened, status = self.writer.root.open_file(source)
        try:
            self._read(inner, status)
            self._content(opened, source, target, stat.S_IMODE(status.st_mode), overwrite=overwrite)
        finally:
            os.close(opened)

    def _read(self, inner: bytes, status: os.stat_result) -> None:
        if self.keep:
            self.copied[inner] = etag_of(status)

    def _content(self, opened: int, source: bytes, target: bytes, mode: int, *, overwrite: bool) -> None:
        conditions = NO_CONDITIONS if overwrite else Conditions(if_none_match="*")
        like = opened if self.keep else None
        try:
            with contextlib.closing(self.writer.begin(target, conditions, mode=mode, like=like)) as new:
                with refusing(source):
                    new.copy_from(opened, lambda: check(self.stopped))
                try:
                    new.commit()
                finally:  # one that fails may have its name already
                    self.made.append((target, etag_of(os.fstat(new.file))))
        except WorkspaceError as fault:
            if fault.code == "precondition_failed":
                raise _exists(target, "one") from None
            raise


def _check_apart(root: WorkspaceRoot, start: Place, moved: os.stat_result, source: bytes, target: bytes) -> None:
    """Raise `into_itself` where the target, all links followed, lies in the source."""
    if stat.S_ISLNK(moved.st_mode):
        return  # nothing lies in a link
    above, rest = target, b""
    while True:
        above, _, name = above.rpartition(b"/")
        rest = join(name, rest)
        try:
            held = root.hold(above)
        except (FileNotFoundError, NotADirectoryError):
            continue  # to be made, or told as missing later
        try:
            real = join(root.real(held, above), rest)
        finally:
            os.close(held)
        if real.startswith(start.path + b"/"):
            raise _into_itself(source)
        return


def _exists(target: bytes, what: str) -> WorkspaceError:
    return WorkspaceError("file_exists", f"{shown(target)!r}: There is {what} of this name.", path=shown(target))


def _into_itself(source: bytes) -> WorkspaceError:
    return WorkspaceError("into_itself", f"{shown(source)!r} can't be put into itself.", path=shown(source))


def _check_replaced(moved: os.stat_result, old: os.stat_result | None, target: bytes, *, overwrite: bool) -> None:
    """Refuse what can't be replaced by what is moved there."""
    if old is None:
        return
    name = shown(target)
    if not overwrite:
        raise WorkspaceError("file_exists", f"{name!r}: There is one of this name.", path=name)
    if stat.S_ISDIR(old.st_mode) and not stat.S_ISDIR(moved.st_mode):
        raise WorkspaceError("is_directory", f"{name!r} is a directory, and a file can't replace it.", path=name)
    if stat.S_ISDIR(moved.st_mode) and not stat.S_ISDIR(old.st_mode):
        raise WorkspaceError(
            "not_a_directory", f"{name!r} is no directory, and a directory can't replace it.", path=name
        )


def join(above: bytes, name: bytes) -> bytes:
    return above + b"/" + name if above and name else above or name
