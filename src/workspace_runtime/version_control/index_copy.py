"""A copy of a repository's index that is ours, so that a read may keep in it what it found out.

git remembers in the index which files it has looked at, and which folders hold nothing untracked: the next status needs half the
time. To keep that in the repository's own index would be a write, and take its lock from somebody who works. So a status runs on a
copy, outside of the workspace, made anew whenever the index has changed; git's own rules decide what of it still holds, so it is
never stale.
"""

import contextlib
import hashlib
import os
import re
import stat
from pathlib import Path

_CHECKSUM = 32  # the index ends with its own hash
_MAX_INDEX = 256 * 1024 * 1024
_PIECE = 4 * 1024 * 1024
# How git's untracked cache begins in an index: its size, that of the next word, and where it was made.
_CACHE = re.compile(rb"UNTR.{4}.{1,4}Location /", re.DOTALL)
_TAIL = 32  # that is longer than what is looked for
# The mode of a submodule, as an entry of every version of the format has it (gitformat-index(5), "Index entry").
BINARY_SUBMODULE = b"\0\0\xe0\0"


def is_split(git_dir: bytes) -> bool:
    """Whether a repository's index has a part that stands elsewhere (git-update-index(1), "Split index"). Blocks."""
    return any(name.startswith(b"sharedindex.") for name in os.listdir(git_dir))


class IndexCopy:
    """The copy for one repository. Used by one thread at a time."""

    def __init__(self, folder: Path, git_dir: bytes) -> None:
        self.path = folder / f"index-{hashlib.sha256(git_dir).hexdigest()[:24]}"
        self._source = os.path.join(git_dir, b"index")
        self._git_dir = git_dir
        # what tells one index from another; None: there is no copy
        self.copied: tuple[int, int, int, int, bytes] | None = None
        self._settings: object = None
        self.fresh = False  # git has not looked at it yet
        self.has_cache = False  # git's untracked cache was in it when it was made
        self.may_have_submodules = False  # false is sure, true is not

    def refresh(self, settings: object) -> bool:
        """Make the copy anew where the index has changed, or the `settings` by which files were found unchanged. False: it can't be
        used here, ask git without it. Blocks."""
        if settings != self._settings:
            self._settings = settings
            self.copied = None
        try:
            if is_split(self._git_dir):
                return False  # of a split index we have but a part
            with contextlib.suppress(FileNotFoundError):  # left by a git that was killed; nobody else uses it
                os.unlink(f"{self.path}.lock")
            opened = os.open(self._source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:  # nothing was ever added
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            self.copied, self.fresh, self.has_cache = None, True, False
            return True
        except OSError:
            return False
        try:
            return self._copy(opened)
        except OSError:
            return False
        finally:
            os.close(opened)

    def look(self) -> tuple[int, int, int] | None:
        """What tells that git has written the copy again; None where there is none."""
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def forget(self) -> None:
        """Remove the copy; the next one is made anew."""
        self.copied = None
        self.path.unlink(missing_ok=True)

    def _copy(self, opened: int) -> bool:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_INDEX or os.pread(opened, 4, 0) != b"DIRC":
            return False
        end = os.pread(opened, _CHECKSUM, max(0, status.st_size - _CHECKSUM))
        seen = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, end)
        self.fresh = seen != self.copied or not self.path.exists()
        if not self.fresh:
            return True
        self.copied = None
        self.has_cache = self.may_have_submodules = False
        fresh = f"{self.path}.new"
        try:
            with open(fresh, "wb") as target, open(opened, "rb", closefd=False) as source:
                tail = b""
                while piece := source.read(_PIECE):
                    target.write(piece)
                    border = tail + piece[:_TAIL]
                    self.has_cache |= any(_CACHE.search(part) for part in (piece, border))
                    self.may_have_submodules |= BINARY_SUBMODULE in piece or BINARY_SUBMODULE in border
                    tail = piece[-_TAIL:]
            # git tells by this time which files may have changed in the same moment as the index was written
            os.utime(fresh, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.replace(fresh, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise
        self.copied = seen
        return True
