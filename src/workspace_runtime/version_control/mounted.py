"""What is mounted in a working tree. git deletes through it as if it were its own, so whoever is about to have git delete folders asks here
first: nothing that is mounted is ever emptied.
"""

import os
from collections.abc import Collection

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.mounts import mount_points
from workspace_runtime.paths import shown

from .repository import Repository

# Folders as one, also empty ones.
_UNKNOWN = ("--others", "--exclude-standard", "--directory")


def refuse_untracked(repository: Repository, names: Collection[bytes] = ()) -> None:
    """Raises `file_busy`, with the mount point's path, where something is mounted at one of these names (git's; none: anywhere) or below
    it, and git takes it for files that it does not know: not where it ignores them, or another repository has them. Blocks."""
    wanted = {name.rstrip(b"/") for name in names} - {b""}
    for point in _inside(repository):
        parts = point.split(b"/")
        if wanted and not any(b"/".join(parts[:count]) in wanted for count in range(1, len(parts) + 1)):
            continue
        if repository.run(["ls-files", *_UNKNOWN, "--", point], limit=1).out:
            path = repository.from_git(point)
            raise _busy(shown(point if path is None else path))


def refuse_in(folder: bytes) -> None:
    """Raises `file_busy` where something is mounted in a folder, or the folder itself is a mount point. `folder`: absolute. Blocks."""
    found = mount_points(os.path.realpath(folder))
    if found:
        raise _busy(shown(found[0]))


def _inside(repository: Repository) -> list[bytes]:
    """The names (git's) of what is mounted below the top of the working tree."""
    top = os.path.realpath(repository.top)
    return [os.path.relpath(point, top) for point in mount_points(top) if point != top]


def _busy(path: str) -> WorkspaceError:
    return WorkspaceError("file_busy", f"{path!r} is a mount point: unmount it first. Nothing was deleted.", path=path)
