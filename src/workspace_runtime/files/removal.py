"""Removes a folder and all in it, and never what is mounted there.

The invariant: nothing below a mount point is ever removed. The table of mounts is asked before anything is; and no step goes
into another mount, should one be made meanwhile. No link is followed, and one descriptor is open at a time, so that no depth is
too deep. Going up, the parent must be the one that was left: or somebody moves folders about.
"""

import contextlib
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.mounts import mount_points, real_path
from workspace_runtime.paths import Place, etag_of, mounted, refusal, shown, step_into

from .stopping import IsStopped, check

_MOUNTED = (errno.EXDEV, errno.EBUSY)


def mounted_at(place: Place) -> list[bytes]:
    """The mount points at a place and below it, as paths from the root, the topmost first."""
    folder = real_path(place.folder)
    if folder is None:
        return []
    here = folder.rstrip(b"/") + b"/" + place.name
    return [place.path + point[len(here) :] for point in mount_points(here)]


def refuse_mounts(place: Place, doing: str) -> None:
    """Raise `file_busy` with the mount point's name where something is mounted at a place or below it; `doing` as in "deleted"."""
    found = mounted_at(place)
    if found:
        raise mounted(shown(found[0]), doing)


def remove_tree(place: Place, stopped: IsStopped, only: Mapping[bytes, str] | None = None) -> None:
    """Remove the folder at a place. `only`: the etags that all in it but folders must have, by the path from the place. Raises `WorkspaceError`: `file_busy` for mounts before anything is removed; what failed in the
    middle has `partial: true`, says so, and names where."""
    refuse_mounts(place, "deleted")
    removal = _Removal(place, only)
    try:
        removal.run(stopped)
    except OSError as fault:
        if fault.errno in _MOUNTED:
            error = WorkspaceError("file_busy", f"{shown(removal.at)!r} is a mount point.", path=shown(removal.at))
        else:
            error = refusal(fault, removal.at)
        raise removal.told(error) from None
    except WorkspaceError as fault:
        raise removal.told(fault) from None


@dataclass(slots=True)
class _Level:
    """A folder on the way down: which one, its path, and the names of the folders in it that are still to do."""

    identity: tuple[int, int]
    path: bytes
    left: list[bytes]


@dataclass(slots=True)
class _Removal:
    """One removal. `at` is what it works on, as a path from the root."""

    place: Place
    only: Mapping[bytes, str] | None
    at: bytes = b""
    removed: int = 0
    _here: int = -1
    _levels: list[_Level] = field(default_factory=list)

    def told(self, fault: WorkspaceError) -> WorkspaceError:
        """The fault, with what a client must know of what is gone already."""
        if self.removed:
            fault.detail += " A part of it is deleted already."
            fault.data["partial"] = True
        return fault

    def run(self, stopped: IsStopped) -> None:
        """Remove all of it."""
        self.at = self.place.path
        self._here = step_into(self.place.folder, self.place.name)
        try:
            self._enter(self.place.path)
            while True:
                check(stopped)
                level = self._levels[-1]
                if level.left:
                    name = level.left.pop()
                    self.at = level.path + b"/" + name
                    with contextlib.suppress(FileNotFoundError):  # somebody else was quicker
                        self._swap(step_into(self._here, name))
                        self._enter(self.at)
                    continue
                done = self._levels.pop()
                if not self._levels:
                    break
                self._swap(os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._here))
                self.at = done.path
                if _identity(self._here) != self._levels[-1].identity:
                    raise WorkspaceError(
                        "file_busy", f"{shown(done.path)!r} was moved while it was deleted.", path=shown(done.path)
                    )
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(done.path.rpartition(b"/")[2], dir_fd=self._here)
                    self.removed += 1
        finally:
            os.close(self._here)
        self.at = self.place.path
        os.rmdir(self.place.name, dir_fd=self.place.folder)

    def _swap(self, folder: int) -> None:
        os.close(self._here)
        self._here = folder

    def _enter(self, path: bytes) -> None:
        """Remove what is no folder from the open folder, and note the folders."""
        level = _Level(_identity(self._here), path, [])
        self._levels.append(level)
        with os.scandir(self._here) as found:
            for item in found:
                name = os.fsencode(item.name)
                if item.is_dir(follow_symlinks=False):
                    level.left.append(name)
                    continue
                self.at = path + b"/" + name
                with contextlib.suppress(FileNotFoundError):
                    if self.only is not None:
                        self._check(name)
                    os.unlink(name, dir_fd=self._here)
                    self.removed += 1
        self.at = path

    def _check(self, name: bytes) -> None:
        """Raise where it is not what it was."""
        assert self.only is not None
        status = os.stat(name, dir_fd=self._here, follow_symlinks=False)
        if self.only.get(self.at[len(self.place.path) + 1 :]) != etag_of(status):
            raise WorkspaceError("file_busy", f"{shown(self.at)!r} was changed meanwhile.", path=shown(self.at))


def _identity(folder: int) -> tuple[int, int]:
    status = os.fstat(folder)
    return status.st_dev, status.st_ino
