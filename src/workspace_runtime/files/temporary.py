"""The names of files that are being written, and the journal by which a start removes what a crash left of them.

A new content is written beside the file it will replace, under a name of our own, and renamed. Before such a name is made, its
path is noted in a journal of the state folder; a start that finds notes removes what still has one of these names. Nothing else
is ever removed: the name must be of our form, be in the journal, and be a regular file or a link.
"""

import contextlib
import os
import re
import secrets
import stat
import tempfile
import threading
from pathlib import Path

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import WorkspaceRoot

_NAME = re.compile(rb"\.workspace-runtime-[0-9a-f]{16}\.tmp")


def is_temporary(name: str | bytes) -> bool:
    """Whether a name is one of a file that is being written: it is neither listed, searched nor told."""
    return _NAME.fullmatch(os.fsencode(name)) is not None


class Temporaries:
    """The names in use. Its methods may be called from any thread."""

    def __init__(self, journal: Path) -> None:
        self._lock = threading.Lock()
        self._used: set[bytes] = set()
        self._apart = journal.parent
        self._file = os.open(journal, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def begin(self, folder: bytes) -> bytes:
        """A new name for a file in `folder` (a path from the root), noted in the journal."""
        name = b".workspace-runtime-%b.tmp" % secrets.token_hex(8).encode()
        path = folder + b"/" + name if folder else name
        with self._lock:
            os.write(self._file, path + b"\0")
            self._used.add(path)
        return name

    def end(self, folder: bytes, name: bytes) -> None:
        """The file has its own name now, or is gone."""
        with self._lock:
            self._used.discard(folder + b"/" + name if folder else name)
            if not self._used:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, 0)

    def spool(self) -> int:
        """A file without a name in the state folder, open for reading and writing: it goes with its descriptor, also in a crash."""
        with tempfile.TemporaryFile(dir=self._apart) as file:
            return os.dup(file.fileno())

    def clean(self, root: WorkspaceRoot) -> int:
        """Remove what a crash left, and forget the notes. Called once, at the start; how many were removed."""
        with open(self._file, "rb", closefd=False) as journal:
            journal.seek(0)
            notes = journal.read()
        removed = 0
        for path in notes.split(b"\0")[:-1]:  # the last may be half a note, of a file that was not made yet
            if not is_temporary(path.rpartition(b"/")[2]):
                continue
            with contextlib.suppress(OSError, WorkspaceError), root.place(path) as place:
                status = place.status()
                if status is not None and (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                    os.unlink(place.name, dir_fd=place.folder)
                    removed += 1
        os.ftruncate(self._file, 0)
        return removed

    def close(self) -> None:
        """Let go of the journal."""
        os.close(self._file)
