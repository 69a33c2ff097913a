"""What goes into the next commit: files and hunks into the index, out of it, and changes of the working tree undone."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import shown

from .diff_output import CONFIG
from .diff_output import arguments as diff_arguments
from .git import Argument
from .hunks import select
from .repository import Repository, portions
from .revisions import head
from .work import Work

FROM_INPUT = ("--pathspec-from-file=-", "--pathspec-file-nul")


@dataclass(frozen=True, slots=True)
class Hunks:
    """Hunks by file, by their ids in a difference with so many lines of `context`."""

    of: Mapping[bytes, set[str]]
    context: int = 3


def listed(repository: Repository, paths: Sequence[bytes]) -> bytes:
    """Paths as git reads them from its input: each a name, whatever it looks like."""
    return b"".join(_literal(repository.to_git(path)) + b"\0" for path in paths)


def _literal(name: bytes) -> bytes:
    return b":(top,literal)" + name


async def stage(
    work: Work, *, paths: Sequence[bytes], hunks: Hunks, every: bool = False, force: bool = False
) -> dict[str, Any]:
    """Put files (changed, new or deleted), or some hunks of files, into the index. `force`: also what is ignored."""
    if every:
        linked = await work.ask(_linked, work.repository)
        await work.git(["add", "--all", "--", ".", *(b":(top,exclude,literal)" + path for path in linked)])
    if paths:
        for path in paths:
            if b".git" in path.split(b"/"):  # git would take it, and do nothing
                raise _unknown(path)
        await work.git(
            ["add", "--all", *(["--force"] if force else []), *FROM_INPUT], input=listed(work.repository, paths)
        )
    if hunks.of:
        await _apply(work, hunks, ["--cached"])
    return {}


async def unstage(work: Work, *, paths: Sequence[bytes], hunks: Hunks, every: bool = False) -> dict[str, Any]:
    """Take files, or some hunks of files, out of the index again. The working tree stays as it is."""
    if every or paths:
        repository = work.repository
        await work.ask(_must_be_known, repository, paths)
        unborn = await work.ask(head, repository) is None
        command = ["rm", "--cached", "--force", "-r", "--quiet", "--ignore-unmatch"] if unborn else ["reset", "--quiet"]
        if every:
            await work.git([*command, "--", "."])  # without a path, reset would also forget a merge
        else:
            await work.git([*command, *FROM_INPUT], input=listed(repository, paths))
    if hunks.of:
        await _apply(work, hunks, ["--cached"], staged=True, reverse=True)
    return {}


async def discard(
    work: Work, *, paths: Sequence[bytes], hunks: Hunks, every: bool = False, untracked: bool = False
) -> dict[str, Any]:
    """Bring files, or some hunks of files, back to what the index has. `untracked`: delete those that git does not know."""
    repository = work.repository
    if every or paths:
        tracked, new = await work.ask(_sorted, repository, paths)
        if new and paths and not untracked:
            raise WorkspaceError(
                "path_untracked",
                f"{shown(new[0])!r} is not tracked by git, so it would be deleted: say untracked to do that.",
                paths=[shown(path) for path in new],
            )
        if tracked:
            await work.git(["restore", "--worktree", *FROM_INPUT], input=listed(repository, tracked))
        for part in portions(new) if untracked else ():
            await work.git(
                ["clean", "--force", "--quiet", "-d", "--", *(_literal(repository.to_git(path)) for path in part)]
            )
    if hunks.of:
        await _apply(work, hunks, [], reverse=True)
    return {}


async def _apply(work: Work, hunks: Hunks, how: Sequence[str], *, staged: bool = False, reverse: bool = False) -> None:
    """Apply hunks of the difference that is there now, or take them back."""
    repository = work.repository
    wanted = {repository.to_git(path): ids for path, ids in hunks.of.items()}
    # of all files, as the client has read it: limited to some, git does not see what was renamed
    command: list[Argument] = ["diff", *(["--cached"] if staged else []), *diff_arguments(context=hunks.context)]
    changes = await work.ask(repository.read, command, settings=list(CONFIG.items()))
    patch = select(changes, wanted, reverse=reverse)
    back = ["--reverse"] if reverse else []
    flags = ["--unidiff-zero", "--whitespace=nowarn", "--no-ignore-whitespace"]
    await work.git(["apply", *how, *back, *flags, "-"], input=patch)


def _linked(repository: Repository) -> list[bytes]:
    """The linked working trees that lie in this one, relative to it: somebody else's work, never staged as a submodule. Blocks."""
    top = repository.top + b"/"
    records = repository.read(["worktree", "list", "--porcelain", "-z"]).split(b"\0")
    places = (record.removeprefix(b"worktree ") for record in records if record.startswith(b"worktree "))
    return [place[len(top) :] for place in places if place.startswith(top)]


class _Names:
    """Files that git told of; a folder that it told as one ends in `/`."""

    def __init__(self, repository: Repository, told: Iterable[bytes]) -> None:
        found = (repository.from_git(name) for name in told if name)
        self.names = [name for name in dict.fromkeys(found) if name is not None]
        self._folders = {name.rstrip(b"/") for name in self.names if name.endswith(b"/")}
        self._known = {name.rstrip(b"/") for name in self.names}
        for name in list(self._known):
            while (name := os.path.dirname(name)) and name not in self._known:
                self._known.add(name)

    def have(self, path: bytes) -> bool:
        """Whether a path is one of them, has some of them in it, or lies in one."""
        if path in self._known:
            return True
        while path := os.path.dirname(path):
            if path in self._folders:
                return True
        return False


def _told(repository: Repository, command: Sequence[str], paths: Sequence[bytes]) -> list[bytes]:
    """What a command lists of these paths; of all where there are none. Blocks."""
    return [
        name
        for part in (portions(paths) if paths else [[]])
        for name in repository.read([*command, *repository.paths(part)]).split(b"\0")
    ]


_TRACKED = ("ls-files", "-z", "--full-name")


def _must_be_known(repository: Repository, paths: Sequence[bytes]) -> None:
    """Raises `WorkspaceError` (`file_not_found`) for a path that neither the index nor the last commit has. Blocks."""
    if paths:
        staged = _told(repository, ["diff", "--cached", "--name-only", "-z", "--no-renames", "--no-ext-diff"], paths)
        known = _Names(repository, staged + _told(repository, _TRACKED, paths))
        for path in paths:
            if not known.have(path):
                raise _unknown(path)


def _unknown(path: bytes) -> WorkspaceError:
    return WorkspaceError("file_not_found", f"{shown(path)!r}: git knows no such file.", path=shown(path))


def _sorted(repository: Repository, paths: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Of these paths (none: of all) those that have changes to undo, and those with something that git does not know. Blocks.

    Raises `WorkspaceError` (`file_not_found`) for a path with neither.
    """
    changed = _Names(repository, _told(repository, [*_TRACKED, "--modified", "--deleted"], paths))
    new = _Names(repository, _told(repository, [*_TRACKED, "--others", "--exclude-standard", "--directory"], paths))
    known = _Names(repository, _told(repository, _TRACKED, paths) if paths else ())
    for path in paths:
        if not (changed.have(path) or new.have(path) or known.have(path)):
            raise _unknown(path)
    return changed.names, [name.rstrip(b"/") for name in new.names]
