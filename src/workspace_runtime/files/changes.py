"""Changes of names: make a folder, move, copy, delete. Each is made by name in an open folder, and never follows a last link."""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator

from workspace_runtime.conditions import NO_CONDITIONS, Conditions
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import Place, WorkspaceRoot, dangling, etag_of, kind_of, refusal, shown

from .stopping import IsStopped, check, never
from .temporary import is_temporary
from .writing import Writer, flush_folder

_RENAME_NOREPLACE = 1
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def _refusing(path: bytes, *, making: bool = False) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise refusal(fault, path, making=making) from None


def status_of(place: Place) -> os.stat_result:
    """What is at a place. Raises `OSError` when there is nothing."""
    return os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)


def make_folder(root: WorkspaceRoot, path: bytes) -> bool:
    """Make a folder and those on the way to it; False where it is there already.

    Raises `WorkspaceError`: `file_exists` where something else has the name, `link_dangling`, `permission_denied`, …
    """
    with _refusing(path, making=True), root.place(path, make=True) as place:
        try:
            os.mkdir(place.name, dir_fd=place.folder)
        except FileExistsError:
            try:
                held = root.hold(path)
            except (FileNotFoundError, NotADirectoryError):
                raise dangling(path) from None
            try:
                if stat.S_ISDIR(os.fstat(held).st_mode):
                    return False
            finally:
                os.close(held)
            raise
        flush_folder(place.folder)
    return True


def delete(
    root: WorkspaceRoot,
    path: bytes,
    conditions: Conditions = NO_CONDITIONS,
    *,
    recursive: bool = False,
    stopped: IsStopped = never,
) -> None:
    """Delete a file, a link (never what it leads to), or with `recursive` a folder and all in it.

    Raises `WorkspaceError`: `file_not_found`, `is_directory`, `precondition_failed`, `permission_denied`, …
    """
    with _refusing(path), root.place(path) as place:
        status = status_of(place)
        folder = stat.S_ISDIR(status.st_mode)
        conditions.check(None if folder else etag_of(status), shown(path))
        if folder and not recursive:
            raise WorkspaceError(
                "is_directory", f"{shown(path)!r} is a directory: add recursive=true.", path=shown(path)
            )
        if folder:
            _remove_tree(place, stopped)
        else:
            os.unlink(place.name, dir_fd=place.folder)
        flush_folder(place.folder)


def _remove_tree(place: Place, stopped: IsStopped) -> None:
    """Remove a folder and all in it. No link is followed; one descriptor is open at a time, so that no depth is too deep.

    Going up, the parent must be the one that was left: or somebody moves folders about, and `file_busy` says so.
    """
    here = os.open(place.name, _DIRECTORY, dir_fd=place.folder)
    above: list[tuple[tuple[int, int], list[bytes], bytes]] = []  # a parent: which, what is left in it, where we went
    try:
        left = _remove_files(here)
        while left or above:
            check(stopped)
            if left:
                inner = left.pop()
                below = os.open(inner, _DIRECTORY, dir_fd=here)
                above.append((_identity(here), left, inner))
                os.close(here)
                here = below
                left = _remove_files(here)
                continue
            identity, left, done = above.pop()
            parent = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = parent
            if _identity(here) != identity:
                raise WorkspaceError("file_busy", "A folder was moved while it was deleted. Try again.")
            os.rmdir(done, dir_fd=here)
    finally:
        os.close(here)
    os.rmdir(place.name, dir_fd=place.folder)


def _identity(folder: int) -> tuple[int, int]:
    status = os.fstat(folder)
    return status.st_dev, status.st_ino


def _remove_files(folder: int) -> list[bytes]:
    """Remove what is no folder from an open folder; the names of the folders in it."""
    folders = []
    with os.scandir(folder) as found:
        for item in found:
            name = os.fsencode(item.name)
            if item.is_dir(follow_symlinks=False):
                folders.append(name)
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
    return folders


def move(root: WorkspaceRoot, source: bytes, target: bytes, *, overwrite: bool = False) -> bool:
    """Move or rename; True where something was replaced. A folder replaces an empty one alone: nothing is merged.

    Raises `WorkspaceError`: `file_not_found`, `file_exists`, `is_directory`, `not_a_directory`, `directory_not_empty`,
    `into_itself`, …
    """
    with _refusing(source), root.place(source) as start:
        moved = status_of(start)
        with _refusing(target):
            _check_apart(root, start, moved, source, target)
        with _refusing(target, making=True), root.place(target, make=True) as end:
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
                if fault.errno != errno.EXDEV:
                    raise
                raise WorkspaceError(
                    "not_supported", "The two places lie on different file systems: copy, then delete."
                ) from None
            flush_folder(end.folder)
            flush_folder(start.folder)
    return old is not None


def rename(start: Place, end: Place, *, exclusive: bool) -> None:
    """Rename; `exclusive` raises `FileExistsError` where there is something, in one step where the system can."""
    if exclusive and _exclusive_rename is not None:
        done = _exclusive_rename(start.folder, start.name, end.folder, end.name, _RENAME_NOREPLACE)
        if done == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
    if exclusive and end.status() is not None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    os.rename(start.name, end.name, src_dir_fd=start.folder, dst_dir_fd=end.folder)


def _load_rename() -> "ctypes._NamedFuncPointer | None":
    """renameat2(2), where the C library has it."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return call


_exclusive_rename = _load_rename()


def copy(writer: Writer, source: bytes, target: bytes, *, overwrite: bool = False, stopped: IsStopped = never) -> bool:
    """Copy a file, a link as a link, or a folder with all in it; True where something was replaced.

    A file is replaced in one step. A folder must not be there yet; one that fails on the way is taken away again. FIFOs,
    devices and sockets are refused. Raises `WorkspaceError` as `move`, and `not_a_file`.
    """
    root = writer.root
    with _refusing(source), root.place(source) as start:
        status = status_of(start)
        with _refusing(target):
            _check_apart(root, start, status, source, target)
    with _refusing(target, making=True):
        try:
            with root.place(target) as end:
                old = end.status()
        except (FileNotFoundError, NotADirectoryError):
            old = None  # what is wrong with it is told when it is made
        _check_replaced(status, old, target, overwrite=overwrite)
        if not stat.S_ISDIR(status.st_mode):
            _copy_one(writer, source, target, status, stopped, overwrite=overwrite)
            return old is not None
        if old is not None:
            raise WorkspaceError(
                "file_exists", f"{shown(target)!r}: There is a directory of this name.", path=shown(target)
            )
        make_folder(root, target)
    try:
        _copy_tree(writer, source, target, stopped)
    except BaseException:
        with contextlib.suppress(WorkspaceError):
            delete(root, target, recursive=True)
        raise
    return False


def _copy_tree(writer: Writer, source: bytes, target: bytes, stopped: IsStopped) -> None:
    root = writer.root
    todo = [b""]
    while todo:
        below = todo.pop()
        here, there = _join(source, below), _join(target, below)
        with _refusing(here):
            folder = root.open_folder(here)
        try:
            mode = stat.S_IMODE(os.fstat(folder).st_mode)
            with os.scandir(folder) as found:
                for item in found:
                    name = os.fsencode(item.name)
                    if is_temporary(name):
                        continue
                    inner = _join(below, name)
                    if item.is_dir(follow_symlinks=False):
                        make_folder(root, _join(target, inner))
                        todo.append(inner)
                        continue
                    with _refusing(_join(source, inner)):
                        status = item.stat(follow_symlinks=False)
                    _copy_one(writer, _join(source, inner), _join(target, inner), status, stopped, overwrite=False)
        finally:
            os.close(folder)
        with _refusing(there), root.place(there) as place:
            made = os.open(place.name, _DIRECTORY, dir_fd=place.folder)
            try:
                os.fchmod(made, mode | 0o700)
            finally:
                os.close(made)


def _copy_one(
    writer: Writer, source: bytes, target: bytes, status: os.stat_result, stopped: IsStopped, *, overwrite: bool
) -> None:
    root = writer.root
    check(stopped)
    if stat.S_ISLNK(status.st_mode):
        with _refusing(source), root.place(source) as start:
            leads_to = os.readlink(start.name, dir_fd=start.folder)
        with _refusing(target, making=True):
            writer.link(target, leads_to, overwrite=overwrite)
        return
    if not stat.S_ISREG(status.st_mode):
        raise WorkspaceError(
            "not_a_file", f"{shown(source)!r} is {kind_of(status.st_mode)}, no file.", path=shown(source)
        )
    with _refusing(source):
        opened, status = root.open_file(source)
    try:
        conditions = NO_CONDITIONS if overwrite else Conditions(if_none_match="*")
        with contextlib.closing(writer.begin(target, conditions, mode=stat.S_IMODE(status.st_mode))) as new:
            with _refusing(source):
                new.copy_from(opened, lambda: check(stopped))
            new.commit()
    except WorkspaceError as fault:
        if fault.code == "precondition_failed":
            raise WorkspaceError(
                "file_exists", f"{shown(target)!r}: There is one of this name.", path=shown(target)
            ) from None
        raise
    finally:
        os.close(opened)


def _check_apart(root: WorkspaceRoot, start: Place, moved: os.stat_result, source: bytes, target: bytes) -> None:
    """Raise `into_itself` where the target, all links followed, lies in the source."""
    if stat.S_ISLNK(moved.st_mode):
        return  # nothing lies in a link
    above, rest = target, b""
    while True:
        above, _, name = above.rpartition(b"/")
        rest = _join(name, rest)
        try:
            held = root.hold(above)
        except (FileNotFoundError, NotADirectoryError):
            continue  # to be made, or told as missing later
        try:
            real = _join(root.real(held, above), rest)
        finally:
            os.close(held)
        if real.startswith(start.path + b"/"):
            raise _into_itself(source)
        return


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


def _join(above: bytes, name: bytes) -> bytes:
    return above + b"/" + name if above and name else above or name
