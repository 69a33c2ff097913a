"""What git does not know, and what it would destroy all the same by writing files in its place.

git takes care of untracked files, but not everywhere: it takes ignored ones as if nobody needed them, a forced switch takes all, and
to bring a file back it removes the folder that stands there, or the file that stands where its folder was. So whoever is about to
have git write files asks here first.
"""

import contextlib
import os
import stat
from collections.abc import Iterable
from functools import cached_property

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import shown

from .diff_changes import SUBMODULE
from .repository import Repository, portions

MAX_NAMED = 1000


def in_way(repository: Repository, names: Iterable[bytes]) -> dict[bytes, bytes]:
    """Of these names (git's), that git would write: those where something stands that the index does not have, with that. Blocks."""
    tree = _Tree(repository)
    return {name: found for name in names if (found := tree.obstacle(name)) is not None}


def must_be_free(repository: Repository, after: str, *, before: str | None, merged: bool = False) -> None:
    """Raises `local_changes_in_way` where files that differ from commit `before` to `after` have something in their way. Blocks.

    `before` None: all files of `after`, and git is to be forced. Else, where all that is in the way is untracked but not ignored, git
    refuses by itself, and knows more of what it would overwrite. `merged`: only what has changed on the way from their common base to
    `after` counts, which is what a merge writes.
    """
    found = list(in_way(repository, _written(repository, before, after, merged=merged)).values())
    if before is None or set(found) - _untracked(repository, found):
        refuse(repository, found)


def refuse(repository: Repository, found: Iterable[bytes]) -> None:
    """Raises `local_changes_in_way` where there is any."""
    paths = [shown(path) for name in dict.fromkeys(found) if (path := repository.from_git(name)) is not None]
    if paths:
        raise WorkspaceError(
            "local_changes_in_way",
            f"{paths[0]!r} is not tracked here, perhaps ignored, and would be lost: move or remove it first.",
            paths=paths[:MAX_NAMED],
        )


def must_be_as_staged(repository: Repository, names: Iterable[bytes]) -> None:
    """Raises `local_changes_in_way` where something of these names, or in them, has changes that are not staged. Blocks."""
    command = ["diff", "--name-only", "-z", "--no-renames", "--no-ext-diff", "--ignore-submodules=dirty", "--"]
    changed = [
        name for part in portions(list(names)) for name in repository.read([*command, *part]).split(b"\0") if name
    ]
    refuse(repository, changed)


def intended(repository: Repository, paths: Iterable[bytes] = ()) -> list[bytes]:
    """The files (of these paths of the client's) that the index has a name for and no content: `git add --intent-to-add`. Blocks."""
    command = [
        "diff",
        "--name-only",
        "-z",
        "--diff-filter=A",
        "--no-renames",
        "--no-ext-diff",
        "--ignore-submodules=all",
    ]
    return [name for name in repository.read([*command, *repository.paths(list(paths))]).split(b"\0") if name]


def contents(top: bytes, folders: Iterable[bytes]) -> list[bytes]:
    """The files in these folders of the working tree, but for those of repositories in them. Blocks."""
    found = []
    for folder in folders:
        for above, below, names in os.walk(os.path.join(top, folder)):
            if b".git" in (*below, *names):
                below.clear()
                continue
            links = [name for name in below if os.path.islink(os.path.join(above, name))]
            found += [os.path.join(above, name)[len(top) + 1 :] for name in (*names, *links)]
    return found


def remove_empty(top: bytes, folders: Iterable[bytes]) -> None:
    """Remove the folders of which there is nothing left. Blocks."""
    for folder in folders:
        if not os.path.islink(os.path.join(top, folder)):
            for above, _, _ in os.walk(os.path.join(top, folder), topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(above)


def _untracked(repository: Repository, names: list[bytes]) -> set[bytes]:
    """Those of these names that are untracked files, and not ignored."""
    command = ["ls-files", "-z", "--others", "--exclude-standard", "--"]
    return {name for part in portions(names) for name in repository.read([*command, *part]).split(b"\0")}


def _written(repository: Repository, before: str | None, after: str, *, merged: bool) -> list[bytes]:
    if before is None:
        listing = repository.read(["ls-tree", "-r", "-z", "--full-tree", after])
        rows = (row.partition(b"\t") for row in listing.split(b"\0") if row)
        return [name for facts, _, name in rows if not facts.startswith(SUBMODULE)]
    command = ["diff-tree", "-r", "-z", "--no-renames", "--diff-filter=d"]
    output = repository.run([*command, "--merge-base", before, after, "--"]) if merged else None
    # with no base, or with several, all that differs
    listing = output.out if output and output.status == 0 else repository.read([*command, before, after, "--"])
    fields = listing.split(b"\0")
    # git-diff-tree(1), raw output format: `:mode mode id id status`, and the name
    return [
        name for facts, name in zip(fields[0:-1:2], fields[1::2], strict=False) if facts.split(b" ")[1] != SUBMODULE
    ]


class _Tree:
    """The working tree beside the index, looked at once."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._kinds: dict[bytes, int | None] = {}

    @cached_property
    def _modes(self) -> dict[bytes, bytes]:
        """What the index has: modes by name."""
        rows = (
            row.partition(b"\t") for row in self._repository.read(["ls-files", "--stage", "-z"]).split(b"\0") if row
        )
        return {name: facts[:6] for facts, _, name in rows}

    def obstacle(self, name: bytes) -> bytes | None:
        """What git does not know and would have to remove to write this file."""
        at = -1
        while (at := name.find(b"/", at + 1)) >= 0:
            kind = self._kind(name[:at])
            if kind is None:
                return None
            if not stat.S_ISDIR(kind):
                return None if name[:at] in self._modes else name[:at]
        kind = self._kind(name)
        if kind is None:
            return None
        if not stat.S_ISDIR(kind):
            return None if name in self._modes else name
        return name if self._modes.get(name) != SUBMODULE and self._has_more(name) else None

    def _kind(self, name: bytes) -> int | None:
        if name not in self._kinds:
            try:
                self._kinds[name] = os.lstat(os.path.join(self._repository.top, name)).st_mode
            except OSError:
                self._kinds[name] = None
        return self._kinds[name]

    def _has_more(self, folder: bytes) -> bool:
        """Whether a folder has anything that the index does not have."""
        start = len(self._repository.top) + 1
        for above, folders, names in os.walk(os.path.join(self._repository.top, folder)):
            links = [name for name in folders if os.path.islink(os.path.join(above, name))]
            if any(os.path.join(above, name)[start:] not in self._modes for name in [*names, *links]):
                return True
        return False
