"""Nothing that is mounted in a working tree is deleted: git itself goes through mount points, and empties what is mounted there.

So whoever is about to have git delete what it does not know, or a whole folder, asks here first. Where git only takes away or replaces
files that it tracks, a mount is no matter: that is an ordinary change of these files.
"""

import os
from collections.abc import Callable, Iterable, Sequence

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.mounts import is_below, mount_points
from workspace_runtime.paths import mounted, shown

from .git import Argument
from .quoting import unquoted
from .repository import Repository

_REMOVED = b"Would remove "


def refuse_below(folder: bytes, name: Callable[[bytes], bytes | None]) -> None:
    """Raises `file_busy` where something is mounted at this absolute path, or below it; `name` gives the path that a mount point is
    told by, None for one that is told by its absolute path. Blocks."""
    for point in mount_points(os.path.realpath(folder)):
        raise _busy(point, name(point))


def refuse_removed(repository: Repository, within: Sequence[bytes], removed: Callable[[], Iterable[bytes]]) -> None:
    """Raises `file_busy` where something is mounted in what is going to be removed, or what is going to be removed lies in something
    mounted that no path of the client's goes into. Blocks.

    `within`: git's names that the client has given, none for all. `removed`: git's names of what will be removed with all in it; asked
    only where there are mounts. Raises what it raises.
    """
    top = repository.top.rstrip(b"/")
    points = [point[len(top) + 1 :] for point in mount_points(repository.top) if point != repository.top]
    if not points:
        return
    going = list(dict.fromkeys(removed()))
    for point in points:
        reached = not within or any(not path or (is_below(point, path) and point != path) for path in within)
        if any(is_below(point, path) or (reached and is_below(path, point)) for path in going):
            raise _busy(os.path.join(top, point), repository.from_git(point))


def cleaned(repository: Repository, names: Sequence[bytes]) -> list[bytes]:
    """What `git clean -d` would remove of these names, all where there are none, by git's names: files and whole folders. Ignored files and other repositories stay. Blocks."""
    command: list[Argument] = ["clean", "--dry-run", "-d", "--", *names]
    lines = repository.read(command, settings=[("core.quotePath", "false")]).split(b"\n")
    removed = (unquoted(line.removeprefix(_REMOVED)) for line in lines if line.startswith(_REMOVED))
    return [name.rstrip(b"/") for name in removed]


def _busy(point: bytes, name: bytes | None) -> WorkspaceError:
    return mounted(shown(point if name is None else name))
