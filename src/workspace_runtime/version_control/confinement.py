"""What a repository consists of must lie in the workspace: links and lists that lead out of it are refused.

A link in a repository's folder would have git read, or write, a file of somebody else. Before every run the folder itself is looked
at, with the places below it that git reads in every command; before a write all that is in it, but for the objects, which have no
names that a client could choose. Hooks may be links: they are programs, and run only where the repository is trusted.
"""

import os
import stat
from collections.abc import Iterator

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import kind_of

from .plain_files import invalid, open_file

# Below the folder itself: where a link would lead git astray also in a read.
_DEEPER = (
    b"info/exclude", b"info/attributes", b"info/sparse-checkout", b"info/grafts", b"objects/info", b"objects/info/alternates",
    b"objects/info/commit-graph", b"objects/pack", b"refs/heads", b"refs/remotes", b"refs/tags", b"logs/HEAD", b"logs/refs",
)  # fmt: skip
_NOT_ENTERED = frozenset({b"objects", b"lfs"})
_MAX_LOOKED = 500_000
_MAX_ALTERNATES = 5  # git itself follows five (object-file.c, link_alt_odb_entries)
_MAX_LIST = 1024 * 1024


def is_below(path: bytes, folder: bytes) -> bool:
    """Whether a real path is this folder, or lies in it."""
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def outside() -> WorkspaceError:
    """The refusal."""
    return WorkspaceError(
        "repository_outside_workspace", "The repository or its working tree lies outside the workspace."
    )


def must_stay(folder: bytes, workspace: bytes) -> None:
    """Raises `WorkspaceError`: `repository_outside_workspace` where something that git reads in a repository's folder is a link out of
    the workspace, `repository_invalid` where it is something that git would wait for. Blocks."""
    for entry in _entries(folder):
        if entry.name != b"hooks":
            _must_be_plain(entry, workspace)
    for name in _DEEPER:
        path = os.path.join(folder, name)
        if os.path.islink(path):
            _must_lead_inside(path, workspace)


def all_must_stay(folder: bytes, workspace: bytes) -> None:
    """The same for all that git may write in a repository's folder. Blocks."""
    must_stay(folder, workspace)
    todo = [entry.path for entry in _entries(folder) if _is_entered(entry, folder) and entry.name != b"hooks"]
    left = _MAX_LOOKED
    while todo:
        for entry in _entries(todo.pop()):
            if not left:
                raise WorkspaceError(
                    "repository_invalid",
                    f"The repository's folder has more than {_MAX_LOOKED:,} names beside its objects, too many to look at before a change:"
                    " pack its refs (git pack-refs --all), and expire its logs.",
                )
            left -= 1
            _must_be_plain(entry, workspace)
            if _is_entered(entry, folder):
                todo.append(entry.path)


def _is_entered(entry: "os.DirEntry[bytes]", folder: bytes) -> bool:
    """Whether this is a folder to look into. Among the refs and their logs any name may be that of a branch."""
    if not entry.is_dir(follow_symlinks=False):
        return False
    above = os.path.dirname(entry.path)[len(folder) :] + b"/"
    return b"/refs/" in above or b"/logs/" in above or os.path.basename(above[:-1]) not in _NOT_ENTERED


def alternates_must_stay(objects: bytes, workspace: bytes, depth: int = _MAX_ALTERNATES) -> None:
    """Raises `repository_outside_workspace` where objects are also read from a folder out of the workspace (gitrepository-layout(5),
    objects/info/alternates). Blocks."""
    opened = open_file(os.path.join(objects, b"info/alternates"))
    if opened is None:
        return
    with opened as file:
        lines = file.read(_MAX_LIST).split(b"\n")
    for line in lines:
        if not line or line.startswith(b"#"):
            continue
        other = os.path.realpath(os.path.join(objects, line))
        if line.startswith(b'"') or depth == 0 or not is_below(other, workspace):
            raise outside()
        alternates_must_stay(other, workspace, depth - 1)


def _entries(folder: bytes) -> Iterator["os.DirEntry[bytes]"]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        return


def _must_be_plain(entry: "os.DirEntry[bytes]", workspace: bytes) -> None:
    if entry.is_symlink():
        _must_lead_inside(entry.path, workspace)
    elif not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
        _must_end(entry.path)


def _must_lead_inside(path: bytes, workspace: bytes) -> None:
    if not is_below(os.path.realpath(path), workspace):
        raise outside()
    _must_end(path)


def _must_end(path: bytes) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    # git's own watcher has a socket there, and a socket can't be opened
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISSOCK(mode)):
        raise invalid(path, f"is {kind_of(mode)}")
