"""The workspace's root, and the one gate through which a client's path goes.

A path is bytes relative to the root, without empty, `.` or `..` segments; the root itself is `b""`. What a path names is found
by the kernel below the root's descriptor (`openat2` with `RESOLVE_BENEATH`), so that no link, also one swapped in meanwhile,
leads out. Where that call is missing, and for absolute links that lead back inside, a walk does the same step by step: every
folder is opened without following links, relative to the one before. Changes are made by name in an open folder (a `Place`).

Nothing here ever opens a FIFO, a device or a socket: a file is first held by a descriptor that can't read (`O_PATH`), looked
at, and only then opened through it.
"""

import contextlib
import ctypes
import errno
import functools
import logging
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from . import openat2
from .errors import WorkspaceError
from .mounts import REMOTE, file_system_type, mount_id, real_path

logger = logging.getLogger(__name__)

MAX_LINKS = 40
MAX_PATH = 4095  # bytes that the kernel takes at once

_O_PATH = getattr(os, "O_PATH", 0)
# Where there is no O_PATH, a folder is opened for reading; a file never before it was looked at.
_FOLDER = (_O_PATH or os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def parse(raw: bytes) -> bytes:
    """A client's path (percent-decoded bytes) as a path below the root; one trailing `/` is taken away.

    Raises `WorkspaceError` (`path_invalid`) for an absolute path, a NUL, and an empty, `.` or `..` segment.
    """
    path = raw.removesuffix(b"/")
    if not path or b"\0" in path or len(path) > MAX_PATH or not _SEGMENTS.isdisjoint(path.split(b"/")):
        if raw.startswith(b"/"):
            detail = "must be relative to the workspace root"
        elif b"\0" in path:
            detail = "holds a NUL byte"
        elif len(path) > MAX_PATH:
            raise WorkspaceError("path_invalid", f"A path may have {MAX_PATH} bytes at most.")
        elif not raw:
            detail = "is empty; name something below the workspace root"
        else:
            detail = "has an empty, '.' or '..' segment"
        # of what may be an address nothing is told: it may hold a password
        told = "The path" if b"://" in raw else f"The path {shown(raw)!r}"
        raise WorkspaceError("path_invalid", f"{told} {detail}.")
    return path


_SEGMENTS = frozenset({b"", b".", b".."})


def shown(path: bytes) -> str:
    """The path as text; bytes that are not UTF-8 show as U+FFFD."""
    return path.decode("utf-8", "replace")


def as_text(path: str | bytes) -> str:
    """A path as the `os` functions give it (bytes, or text with surrogates), as text that can be sent."""
    return shown(os.fsencode(path))


def is_utf8(path: bytes) -> bool:
    """Whether these bytes are UTF-8."""
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True


def path_bytes(path: bytes) -> str | None:
    """The percent-encoded path where it is not UTF-8, so that a client can name it; else None."""
    return None if is_utf8(path) else quote(path)


def from_path_bytes(text: str) -> bytes:
    """The bytes of a `path_bytes`, not yet checked by `parse`."""
    return unquote_to_bytes(text)


def etag_of(status: os.stat_result) -> str:
    """A file's strong validator (RFC 9110, 8.8.3): a new one with each change that the disk can tell apart.

    Whoever changes a file may set its time of modification back (`cp -p`, `tar`), but not the kernel's own time of change.
    """
    return f'"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}-{status.st_ctime_ns:x}"'


def mounted(path: str, doing: str = "deleted") -> WorkspaceError:
    """The refusal (`file_busy`) of what would go through a mount point: its path as shown, and what was not done."""
    return WorkspaceError("file_busy", f"{path!r} is a mount point: unmount it first. Nothing was {doing}.", path=path)


def refusal(fault: OSError, path: bytes, *, making: bool = False) -> WorkspaceError:
    """What the system refused, in our own words. `path` is the one that the client named; `making`: it was to be made."""
    known = _REFUSALS.get(fault.errno or 0)
    if making and fault.errno == errno.ENOTDIR:
        known = "not_a_directory", "A part of the path is a file, not a folder."
    if known is None:
        logger.error("%r failed", path, exc_info=fault)
    code, words = known or ("file_failed", "The system could not do it.")
    return WorkspaceError(code, f"{shown(path)!r}: {words}" if path else words, path=shown(path))


_REFUSALS = {
    errno.ENOENT: ("file_not_found", "There is no such file or folder."),
    errno.ENOTDIR: ("file_not_found", "A part of the path is a file, not a folder."),
    errno.ESTALE: ("file_not_found", "It was removed meanwhile."),
    errno.EISDIR: ("is_directory", "It is a directory."),
    errno.EACCES: ("permission_denied", "The server's user may not do this."),
    errno.EPERM: ("permission_denied", "The server's user may not do this."),
    errno.EROFS: ("permission_denied", "The file system can only be read."),
    errno.ENAMETOOLONG: ("path_invalid", "A name has 255 bytes at most, a path 4,095."),
    errno.EILSEQ: ("path_invalid", "The file system does not take this name."),
    errno.EINVAL: ("path_invalid", "The file system does not take this."),
    errno.ELOOP: ("link_loop", "The links lead in a circle, or too far."),
    errno.EXDEV: ("path_outside", "It leads out of the workspace."),
    errno.ENOTEMPTY: ("directory_not_empty", "The directory is not empty."),
    errno.EEXIST: ("file_exists", "There is one of this name."),
    errno.ENOSPC: ("disk_full", "The disk is full."),
    errno.EDQUOT: ("disk_full", "The quota is used up."),
    errno.EFBIG: ("disk_full", "The file system can't hold a file this large."),
    errno.EBUSY: ("file_busy", "It is in use, such as a mount point."),
    errno.ETXTBSY: ("file_busy", "It is a program that runs."),
    errno.ENXIO: ("not_a_file", "It is no regular file."),
    errno.EMFILE: ("too_many_files", "The server has too many files open."),
    errno.ENFILE: ("too_many_files", "The machine has too many files open."),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A name in an open folder: what the `*at` calls want. `path` is the real path from the root, all links followed.

    `folder` is open only as long as the context that gave it. `name` is `b"."` where the path is the folder itself.
    """

    folder: int
    name: bytes
    path: bytes

    def status(self) -> os.stat_result | None:
        """What is there now, links not followed; None when there is nothing."""
        try:
            return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return None


class WorkspaceRoot:
    """The real root folder of the workspace. Its methods may be called from any thread."""

    def __init__(self, root: Path, *, walk_only: bool = False) -> None:
        """`walk_only`: do without `openat2`, as on systems that lack it."""
        self.path = root.resolve()
        self._bytes = os.fsencode(self.path)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._quick_fd = ctypes.c_long(self.fd)
        self._lock = threading.Lock()
        with contextlib.suppress(OSError):  # no /proc here
            own_descriptors()
        # whether the kernel keeps paths inside, and not our walk
        self.kernel = not walk_only and openat2.works(self.fd)
        self._know()

    def _know(self) -> None:
        status = os.fstat(self.fd)
        self._identity = status.st_dev, status.st_ino
        # the device on which a look that does not wait is possible, or None
        self.quick_device = None if file_system_type(self._bytes).startswith(REMOTE) else status.st_dev

    def close(self) -> None:
        """Let go of the root."""
        os.close(self.fd)

    def follow(self) -> int:
        """The descriptor of the root as it is now: where another folder lies at its path, that one is the root from now on.

        A root that was moved away, with nothing at its path, stays the root until there is one: so nobody, git neither, ever
        works in two.
        """
        try:
            status = os.stat(self._bytes)
        except OSError:
            return self.fd
        if (status.st_dev, status.st_ino) != self._identity:
            with self._lock, contextlib.suppress(OSError):
                fresh = os.open(self._bytes, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                os.dup2(fresh, self.fd, inheritable=False)
                os.close(fresh)
                self._know()
        return self.fd

    @property
    def gone(self) -> bool:
        """Whether the root was removed, and none was made in its place."""
        return not os.fstat(self.follow()).st_nlink

    # --- what is there ------------------------------------------------------------------------------------------------

    def hold(self, path: bytes) -> int:
        """A descriptor of what the path names, links followed: to be looked at, and not read. The caller closes it.

        Raises `OSError`: `EXDEV` where a link leads out.
        """
        root = self.follow()
        if not path:
            return os.dup(root)
        if self.kernel:
            try:
                return openat2.hold(root, path)
            except OSError as fault:
                # an absolute link may still lead inside; EAGAIN: a folder was moved while `..` of a link was followed
                if fault.errno not in (errno.EXDEV, errno.EAGAIN):
                    raise
        with self._walk(path, follow=True) as place:
            if _O_PATH:
                return os.open(place.name, _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.folder)
            status = os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
            return os.open(place.name, _READ | os.O_NOFOLLOW, dir_fd=place.folder)

    def hold_quickly(self, path: bytes) -> int:
        """As `hold`, for the event loop: never waits for a disk. Raises `BlockingIOError` where it would."""
        if self.quick_device is not None and self.kernel:
            self.follow()  # the way to the root is in the kernel's memory as long as it is open
            found = openat2.hold_cached(self._quick_fd, path)
            if found >= 0:
                return found
        raise BlockingIOError

    def open_file(self, path: bytes) -> tuple[int, os.stat_result]:
        """A regular file, open for reading, and its status; links are followed. The caller closes it.

        Raises `OSError`, and `WorkspaceError`: `is_directory`, `not_a_file`.
        """
        held = self.hold(path)
        try:
            return reopen(held, path)
        finally:
            os.close(held)

    def open_folder(self, path: bytes) -> int:
        """A folder, open for reading; links are followed. The caller closes it.

        Raises `OSError`, and `WorkspaceError`: `not_a_directory`.
        """
        held = self.hold(path)
        try:
            if not stat.S_ISDIR(os.fstat(held).st_mode):
                raise WorkspaceError("not_a_directory", f"{shown(path)!r} is no directory.", path=shown(path))
            return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=held)
        finally:
            os.close(held)

    def folder(self, path: str) -> str:
        """A folder a client named, for an agent to work in: relative to the root, `.` or empty for the root itself.

        Links are followed; where they lead must lie inside. Returns the path as given, tidied. Raises `WorkspaceError`
        (`path_invalid`, `path_outside`).
        """
        if path in ("", ".", "./"):
            return "."
        try:
            relative = parse(path.encode())
            held = self.hold(relative)
        except UnicodeEncodeError:
            raise WorkspaceError("path_invalid", "The path is no text that can be encoded.") from None
        except OSError as fault:
            if fault.errno == errno.EXDEV:
                raise WorkspaceError("path_outside", f"{path!r} leads out of the workspace.") from None
            raise WorkspaceError("path_invalid", f"{path!r} is no folder of the workspace.") from None
        try:
            if not stat.S_ISDIR(os.fstat(held).st_mode):
                raise WorkspaceError("path_invalid", f"{path!r} is no folder of the workspace.")
        finally:
            os.close(held)
        return path.removesuffix("/")

    # --- where to make a change ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def place(self, path: bytes, *, follow: bool = False, make: bool = False) -> Iterator[Place]:
        """The open folder that holds, or would hold, what the path names, and the name in it.

        `follow`: where the last name is a link, the place it leads to. `make`: folders on the way that are missing are
        made. Raises `OSError`, and `WorkspaceError` (`link_dangling`) where a link on the way leads to nothing.
        """
        above, _, name = path.rpartition(b"/")
        folder = self._make_folders(above) if make else self._hold_folder(above)
        try:
            real = self.real(folder, above)
            place = Place(folder, name, real + b"/" + name if real else name)
            status = place.status() if follow else None
            if status is None or not stat.S_ISLNK(status.st_mode):
                yield place
                return
        finally:
            os.close(folder)
        with contextlib.ExitStack() as stack:
            try:
                place = stack.enter_context(self._walk(path, follow=True))
                missing = place.status() is None
            except FileNotFoundError:
                missing = True
            if missing:
                raise dangling(path)
            yield place

    def _hold_folder(self, path: bytes) -> int:
        """As `hold`, for a folder. `ENOTDIR` where it is none."""
        held = self.hold(path)
        if stat.S_ISDIR(os.fstat(held).st_mode):
            return held
        os.close(held)
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _make_folders(self, path: bytes) -> int:
        """As `_hold_folder`, with what is missing made."""
        missing: list[bytes] = []
        while True:
            try:
                held = self._hold_folder(path)
                break
            except FileNotFoundError:
                above, _, name = path.rpartition(b"/")
                missing.append(name)
                path = above
        for name in reversed(missing):
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=held)
            finally:
                os.close(held)
            path = path + b"/" + name if path else name
            try:
                held = self._hold_folder(path)
            except FileNotFoundError:
                raise dangling(path) from None
        return held

    def real(self, folder: int, path: bytes) -> bytes:
        """The path of an open folder with all links followed, as far as the kernel tells; else the path itself."""
        real = real_path(folder)
        if real is None:
            return path
        if real == self._bytes:
            return b""
        prefix = self._bytes.rstrip(b"/") + b"/"
        return real[len(prefix) :] if real.startswith(prefix) else path

    # --- the walk -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _walk(self, path: bytes, *, follow: bool) -> Iterator[Place]:
        """As `place`, without the kernel's help: no step follows a link by itself, `..` goes back to a folder that is held."""
        held = [os.dup(self.follow())]
        names: list[bytes] = []
        try:
            todo = path.split(b"/")[::-1]
            links = 0
            last = b"."
            while todo:
                part = todo.pop()
                if part in (b"", b"."):
                    continue
                if part == b"..":
                    if len(held) == 1:
                        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                    os.close(held.pop())
                    names.pop()
                    continue
                is_last = _SKIPPED.issuperset(todo)
                try:
                    mode = os.stat(part, dir_fd=held[-1], follow_symlinks=False).st_mode
                except FileNotFoundError:
                    if not is_last:
                        raise
                    mode = 0
                if stat.S_ISLNK(mode) and (follow or not is_last):
                    links += 1
                    if links > MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    target = os.readlink(part, dir_fd=held[-1])
                    if target.startswith(b"/"):
                        target = self._inside(target)
                        while len(held) > 1:
                            os.close(held.pop())
                        names.clear()
                    todo += target.split(b"/")[::-1]
                elif is_last:
                    last = part
                    names.append(part)
                    break
                else:
                    held.append(os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=held[-1]))
                    names.append(part)
            yield Place(held[-1], last, b"/".join(names))
        finally:
            for folder in held:
                os.close(folder)

    def _inside(self, target: bytes) -> bytes:
        """An absolute link's target relative to the root. Raises `OSError` (`EXDEV`) where it lies outside."""
        prefix = self._bytes.rstrip(b"/") + b"/"
        for candidate in (target, os.path.realpath(target)):
            if candidate == self._bytes:
                return b"."
            if candidate.startswith(prefix):
                return candidate[len(prefix) :]
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


_SKIPPED = frozenset({b"", b"."})


def dangling(path: bytes) -> WorkspaceError:
    """The refusal for a link that leads to nothing, where something was to be made."""
    detail = f"{shown(path)!r} is a link to something that does not exist."
    return WorkspaceError("link_dangling", detail, path=shown(path))


def reopen(held: int, path: bytes) -> tuple[int, os.stat_result]:
    """Open for reading what `hold` gave, when it is a regular file. Returns descriptor and status; the caller closes both.

    Raises `OSError`, and `WorkspaceError`: `is_directory`, `not_a_file`.
    """
    status = os.fstat(held)
    if stat.S_ISREG(status.st_mode):
        return open_held(held), status
    if stat.S_ISDIR(status.st_mode):
        raise WorkspaceError("is_directory", f"{shown(path)!r} is a directory.", path=shown(path))
    raise WorkspaceError("not_a_file", f"{shown(path)!r} is {kind_of(status.st_mode)}, no file.", path=shown(path))


def open_held(held: int) -> int:
    """A descriptor for reading of the regular file that `hold` gave. Raises `OSError`."""
    if _O_PATH:
        return os.open(b"%d" % held, _READ, dir_fd=own_descriptors())
    return os.dup(held)


@functools.cache
def own_descriptors() -> int:
    """The folder of this process's descriptors, held open: a third quicker than by its path."""
    return os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def step_into(folder: int, name: bytes) -> int:
    """A folder in an open folder, open for reading, never through a link and never into another mount. The caller closes it.

    Raises `OSError`: `EXDEV` where something is mounted there.
    """
    if _can_step():
        return openat2.step(folder, name)
    opened = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    if mount_id(opened) != mount_id(folder) or os.fstat(opened).st_dev != os.fstat(folder).st_dev:
        os.close(opened)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return opened


@functools.cache
def _can_step() -> bool:
    folder = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return openat2.works(folder)
    finally:
        os.close(folder)


def kind_of(mode: int) -> str:
    """What a mode says it is, for a sentence."""
    kinds = {
        stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link", stat.S_IFDIR: "a directory",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFREG: "a file",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "something else")
