"""Changes of names: make a folder, rename, delete. Each is made by name in an open folder, and never follows a last link."""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator

from workspace_runtime.conditions import NO_CONDITIONS, Conditions
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import Place, WorkspaceRoot, dangling, etag_of, refusal, shown

from .removal import refuse_mounts, remove_tree
from .stopping import IsStopped, never
from .writing import flush_folder

_RENAME_NOREPLACE = 1
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def refusing(path: bytes, *, making: bool = False) -> Iterator[None]:
    """What the system refuses meanwhile, in our own words."""
    try:
        yield
    except OSError as fault:
        raise refusal(fault, path, making=making) from None


def status_of(place: Place) -> os.stat_result:
    """What is at a place. Raises `OSError` when there is nothing."""
    return os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)


def make_folder(root: WorkspaceRoot, path: bytes, flush: Callable[[int], None] = flush_folder) -> bool:
    """Make a folder and those on the way to it; False where it is there already. `flush` makes the names in a folder durable.

    Raises `WorkspaceError`: `file_exists` where something else has the name, `link_dangling`, `permission_denied`, …
    """
    with refusing(path, making=True), root.place(path, make=True) as place:
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
        flush(place.folder)
    return True


def delete(
    root: WorkspaceRoot,
    path: bytes,
    conditions: Conditions = NO_CONDITIONS,
    *,
    recursive: bool = False,
    stopped: IsStopped = never,
) -> None:
    """Delete a file, a link (never what it leads to), or with `recursive` a folder and all in it, but for what is mounted there.

    Raises `WorkspaceError`: `file_not_found`, `is_directory`, `precondition_failed`, `permission_denied`, …
    """
    with refusing(path), root.place(path) as place:
        status = status_of(place)
        folder = stat.S_ISDIR(status.st_mode)
        conditions.check(None if folder else etag_of(status), shown(path), status.st_mtime)
        if folder and not recursive:
            raise WorkspaceError(
                "is_directory", f"{shown(path)!r} is a directory: add recursive=true.", path=shown(path)
            )
        if folder:
            remove_tree(place, stopped)
        else:
            try:
                os.unlink(place.name, dir_fd=place.folder)
            except OSError as fault:
                if fault.errno == errno.EBUSY:
                    refuse_mounts(place, "deleted")
                raise
        flush_folder(place.folder)


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
