"""Reading the small files of a repository's folder by ourselves: never one that would keep us waiting, never more than a little."""

import os
import stat
from typing import BinaryIO

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import kind_of, shown

_MAX_TEXT = 8192
_MAX_LOOKED = 500_000
_IN_EVERY_FOLDER = frozenset({b".gitignore", b".gitattributes", b".gitmodules", b".mailmap"})


def must_be_a_file(path: bytes) -> None:
    """Raises `WorkspaceError` (`repository_invalid`) where this is something that git would wait for, such as a FIFO."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise invalid(path, f"is {kind_of(mode)}")


def must_not_wait(top: bytes) -> None:
    """Raises `repository_invalid` where a file that git looks for in every folder of a working tree is one that it would wait for.

    Looks at all folders, up to a number of names: for when git keeps us waiting. Blocks.
    """
    left = _MAX_LOOKED
    for above, folders, names in os.walk(top):
        left -= len(folders) + len(names)
        if b".git" in folders:
            folders.remove(b".git")
        for name in _IN_EVERY_FOLDER.intersection(names):
            must_be_a_file(os.path.join(above, name))
        if left < 0:
            break


def open_file(path: bytes) -> BinaryIO | None:
    """A file opened to be read; None where there is none that can be read, or none that ever ends. Never waits."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(opened).st_mode):
            return os.fdopen(opened, "rb", buffering=0)
    except OSError:
        return None
    os.close(opened)
    return None


def line_of(path: bytes, most: int = _MAX_TEXT) -> bytes | None:
    """The text of a file, at `most` so many bytes, without the end of its last line; None where there is none. Never waits."""
    opened = open_file(path)
    if opened is None:
        return None
    with opened as file:
        try:
            return file.read(most).rstrip(b"\r\n")
        except OSError:
            return None


def invalid(path: bytes, what: str) -> WorkspaceError:
    """The refusal for a file of a repository that is not as it must be."""
    name = b"/".join(path.split(b"/")[-2:])
    return WorkspaceError("repository_invalid", f"{shown(name)!r} of the repository {what}.")
