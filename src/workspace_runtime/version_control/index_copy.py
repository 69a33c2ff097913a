"""A copy of a repository's index that is ours, so that a read may keep in it what it found out.

git remembers in the index which files it has looked at, and which folders hold nothing untracked: the next status needs half the
time. To keep that in the repository's own index would be a write, and take its lock from somebody who works. So a status runs on a
copy, outside of the workspace, made anew whenever the index has changed; git's own rules decide what of it still holds, so it is
never stale.
"""

import contextlib
import hashlib
import os
import stat
from pathlib import Path

_CHECKSUM = 32  # the index ends with its own hash


class IndexCopy:
    """The copy for one repository. Used by one thread at a time."""

    def __init__(self, folder: Path, git_dir: bytes) -> None:
        self.path = folder / f"index-{hashlib.sha256(git_dir).hexdigest()[:24]}"
        self._source = os.path.join(git_dir, b"index")
        self._git_dir = git_dir
        self._copied: tuple[int, int, int, int, bytes] | None = None
        self._settings: object = None

    def refresh(self, settings: object) -> bool:
        """Make the copy anew where the index has changed, or the `settings` by which files were found unchanged. False: it can't be
        used here, ask git without it. Blocks."""
        if settings != self._settings:
            self._settings = settings
            self._copied = None
        try:
            if any(name.startswith(b"sharedindex.") for name in os.listdir(self._git_dir)):
                return False  # of a split index we have but a part
            with contextlib.suppress(FileNotFoundError):  # left by a git that was killed; nobody else uses it
                os.unlink(f"{self.path}.lock")
            opened = os.open(self._source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:  # nothing was ever added
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            self._copied = None
            return True
        except OSError:
            return False
        try:
            return self._copy(opened)
        except OSError:
            return False
        finally:
            os.close(opened)

    def forget(self) -> None:
        """Remove the copy; the next one is made anew."""
        self._copied = None
        self.path.unlink(missing_ok=True)

    def _copy(self, opened: int) -> bool:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            return False
        end = os.pread(opened, _CHECKSUM, max(0, status.st_size - _CHECKSUM))
        seen = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, end)
        if seen == self._copied and self.path.exists():
            return True
        self._copied = None
        fresh = f"{self.path}.new"
        with open(fresh, "wb") as target, open(opened, "rb", closefd=False) as source:
            while piece := source.read(1024 * 1024):
                target.write(piece)
        # git tells by this time which files may have changed in the same moment as the index was written
        os.utime(fresh, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.replace(fresh, self.path)
        self._copied = seen
        return True
