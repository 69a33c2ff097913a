"""What goes into the next commit: files and hunks into the index, out of it, and changes of the working tree undone."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import shown

from .diff_changes import SUBMODULE, read_changes
from .diff_output import CONFIG
from .diff_output import arguments as diff_arguments
from .explaining import refuse_hidden
from .git import Argument
from .hunks import select
from .mounted import cleaned, refuse_removed
from .obstacles import contents, in_way, intended, refuse, remove_empty
from .overlays import for_reads
from .repository import Repository, portions
from .revisions import head
from .submodules import not_looking_inside
from .work import Work

FROM_INPUT = ("--pathspec-from-file=-", "--pathspec-file-nul")
_EXCEPT = b":(top,exclude,literal)"


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
    """Put files (changed, new or deleted), or some hunks of files, into the index. `force`: also what is ignored, or outside of a
    sparse checkout. Answers what git has warned of, such as that a repository in this one is staged as a link to a commit alone."""
    linked = await work.ask(_linked, work.repository) if every or paths else []
    warnings: list[str] = []
    if every:
        warnings = (await work.git(["add", "--all", "--", ".", *(_EXCEPT + path for path in linked)])).warnings
    if paths:
        for path in paths:
            if b".git" in path.split(b"/"):  # git would take it, and do nothing
                raise _unknown(path)
            _must_be_ours(path, linked)
        await work.ask(_must_not_be_of_another, work.repository, paths)
        within = [tree for tree in linked if any(not path or tree.startswith(path + b"/") for path in paths)]
        chosen = listed(work.repository, paths) + b"".join(_EXCEPT + tree + b"\0" for tree in within)
        if not force and work.repository.configuration.flag("core.sparsecheckout"):
            # of what lies outside git tells when it has staged the others
            await work.git(["add", "--all", "--dry-run", *FROM_INPUT], input=chosen)
        command = ["add", "--all", *(["--force", "--sparse"] if force else []), *FROM_INPUT]
        warnings = (await work.git(command, input=chosen)).warnings
    if hunks.of:
        await _apply(work, hunks, ["--cached"])
    return {"warnings": warnings} if warnings else {}


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
    """Bring files, or some hunks of files, back to what the index has. `untracked`: delete those that git does not know.

    A submodule is another repository's: 409 where it is named, or lies in a folder that is. Raises `file_busy` before anything is changed
    where something is mounted in what would be deleted, and `local_changes_in_way` for a named file that git would pass over by its mark.
    """
    repository = work.repository
    if every or paths:
        found = await work.ask(_sorted, repository, paths)
        await work.ask(refuse_hidden, repository, paths)
        if paths and not untracked:
            _refuse_untracked([*found.new, *found.intended, *found.blocked.values()])
        if untracked:
            await work.ask(_must_not_be_mounted, repository, paths, found)
        if found.changed:
            await work.git(["restore", "--worktree", *FROM_INPUT], input=listed(repository, found.changed))
        if untracked:
            await _delete(work, found)
    if hunks.of:
        added = await work.ask(intended, repository, list(hunks.of))
        if not untracked:
            _refuse_untracked([path for name in added if (path := repository.from_git(name)) is not None])
        await _apply(work, hunks, [], reverse=True)
    return {}


def _refuse_untracked(paths: Sequence[bytes]) -> None:
    if paths:
        raise WorkspaceError(
            "path_untracked",
            f"{shown(paths[0])!r} is not tracked by git, so it would be deleted: say untracked to do that.",
            paths=[shown(path) for path in dict.fromkeys(paths)],
        )


def _must_not_be_mounted(repository: Repository, paths: Sequence[bytes], found: "_Found") -> None:
    """Raises `file_busy` where something is mounted in what `_delete` would delete. Blocks."""

    def removed() -> list[bytes]:
        named = [repository.to_git(path) for path in (*found.intended, *found.blocked.values())]
        parts = portions([repository.to_git(path) for path in found.new])
        return [*named, *(name for part in parts for name in cleaned(repository, part))]

    refuse_removed(repository, [repository.to_git(path) for path in paths], removed)


async def _delete(work: Work, found: "_Found") -> None:
    """Delete what git does not know, but for what is ignored and for other repositories, and bring back what it stood in place of.
    Raises `local_changes_in_way` where something of that stands there still."""
    repository = work.repository
    if found.intended:
        await work.git(
            ["rm", "--quiet", "--force", "--ignore-unmatch", *FROM_INPUT], input=listed(repository, found.intended)
        )
    folders = list(dict.fromkeys(found.blocked.values()))
    # in a folder that stands in place of a file git looks for nothing by itself
    inside = await work.ask(contents, repository.top, [repository.to_git(path) for path in folders])
    for part in portions([*map(repository.to_git, found.new), *inside]):
        await work.git(["clean", "--force", "--quiet", "-d", "--", *map(_literal, part)])
    if found.blocked:
        await work.ask(remove_empty, repository.top, [repository.to_git(path) for path in folders])
        left = await work.ask(in_way, repository, [repository.to_git(path) for path in found.blocked])
        free = [path for path in found.blocked if repository.to_git(path) not in left]
        if free:
            await work.git(["restore", "--worktree", *FROM_INPUT], input=listed(repository, free))
        refuse(repository, left.values())


async def _apply(work: Work, hunks: Hunks, how: Sequence[str], *, staged: bool = False, reverse: bool = False) -> None:
    """Apply hunks of the difference that is there now, or take them back."""
    repository = work.repository
    patch = await work.ask(_patch, repository, hunks, staged=staged, reverse=reverse)
    back = ["--reverse"] if reverse else []
    flags = ["--unidiff-zero", "--whitespace=nowarn", "--no-ignore-whitespace"]
    await work.git(["apply", *how, *back, *flags, "-"], input=patch)


def _patch(repository: Repository, hunks: Hunks, *, staged: bool, reverse: bool) -> bytes:
    """A patch of the hunks, from the difference that the client has read. Blocks. Raises `hunk_not_found`, `hunk_filtered`, and
    `path_invalid` for the commit of a submodule that is to be undone."""
    wanted = {repository.to_git(path): ids for path, ids in hunks.of.items()}
    quiet, of_submodules = not_looking_inside(repository)
    command: list[Argument] = ["diff", *quiet, *(["--cached"] if staged else [])]
    settings = [*CONFIG.items(), *of_submodules]
    # among all files, or git does not see what was renamed; their content may be more than one answer holds
    flags = [flag for flag in diff_arguments(patch=False) if flag != "--numstat"]
    records = read_changes(repository.read([*command, *flags], settings=settings), cut=False)[0]
    changes = [change for change in records if change.path in wanted]
    if not staged:
        _must_not_be_filtered(repository, [change.path for change in changes])
        for change in changes:
            if reverse and SUBMODULE in (change.old_mode, change.new_mode):
                raise _submodule(change.path)
    names = [name for change in changes for name in (change.path, change.old_path) if name is not None]
    limits: list[Argument] = ["--", *names] if len(list(portions(names))) == 1 else []
    flags = diff_arguments(context=hunks.context)
    output = repository.read([*command, *flags, *limits], settings=settings) if names else b""
    return select(output, wanted, reverse=reverse)


def _must_not_be_filtered(repository: Repository, names: Sequence[bytes]) -> None:
    """Raises `hunk_filtered` for a file that a filter changes which runs in writes alone, so that its content in the difference is
    not what git would put into the index. Blocks."""
    if not repository.trusted:  # it does not run at all
        return
    blanked = {key for key, _ in for_reads(repository.configuration, repository.top)}
    if not any(key.startswith("filter.") for key in blanked):
        return
    for part in portions(names):
        fields = repository.read(["check-attr", "-z", "filter", "--", *part]).split(b"\0")
        for name, value in zip(fields[0:-1:3], fields[2::3], strict=False):
            driver = f"filter.{os.fsdecode(value)}"
            if f"{driver}.clean" in blanked or f"{driver}.process" in blanked:
                raise WorkspaceError(
                    "hunk_filtered",
                    f"{shown(name)!r} goes through {driver} of the repository's own configuration, which is not in the difference.",
                    path=shown(name),
                )


def _must_not_be_of_another(repository: Repository, paths: Sequence[bytes]) -> None:
    """Raises `path_invalid` for what lies in another repository: git would do nothing, or nothing that can be understood. Blocks."""
    for path in paths:
        above = repository.to_git(path)
        while above := os.path.dirname(above):
            if os.path.lexists(os.path.join(repository.top, above, b".git")):
                if not any(_told(repository, [*_TRACKED, "--cached", "--others"], [path])):
                    raise _owned(path, "repository", above)
                break


def _submodule(name: bytes) -> WorkspaceError:
    return WorkspaceError(
        "path_invalid",
        f"{shown(name)!r} is a submodule: name it as path, and check out there what it shall have.",
        path=shown(name),
    )


def _must_be_ours(path: bytes, linked: Sequence[bytes]) -> None:
    """Raises `WorkspaceError` (`path_invalid`) for what lies in a linked working tree, and for that tree itself."""
    for tree in linked:
        if (path + b"/").startswith(tree + b"/"):
            raise _owned(path, "linked working tree", tree)


def _owned(path: bytes, kind: str, owner: bytes) -> WorkspaceError:
    return WorkspaceError(
        "path_invalid",
        f"{shown(path)!r} belongs to the {kind} {shown(owner)!r}: name that one as path, and stage it there.",
    )


def _linked(repository: Repository) -> list[bytes]:
    """The linked working trees that lie in this one, relative to it: somebody else's work, never staged as a submodule. Blocks."""
    if not os.path.isdir(os.path.join(repository.common_dir, b"worktrees")):
        return []
    top = repository.top + b"/"
    return [place[len(top) :] for place in repository.trees() if place.startswith(top)]


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


@dataclass(frozen=True, slots=True)
class _Found:
    """What there is to discard. `changed`: files with changes to undo. `blocked`: those in whose place something stands that git does
    not know, with that. `intended`: the index has their names alone. `new`: git does not know them, files or folders."""

    changed: list[bytes]
    blocked: dict[bytes, bytes]
    intended: list[bytes]
    new: list[bytes]


def _sorted(repository: Repository, paths: Sequence[bytes]) -> _Found:
    """What of these paths (none: of all) there is to discard. Blocks.

    Raises `WorkspaceError`: `file_not_found` for a path with nothing of it that git does not know either, `path_invalid` for a submodule.
    """
    changed = _Names(repository, _told(repository, [*_TRACKED, "--modified", "--deleted"], paths))
    new = _Names(repository, _told(repository, [*_TRACKED, "--others", "--exclude-standard", "--directory"], paths))
    staged = [row.partition(b"\t") for row in _told(repository, [*_TRACKED, "--stage"], paths)] if paths else []
    known = _Names(repository, [name for _, _, name in staged])
    for facts, _, name in staged:
        # one whose folder is gone can be brought back
        if facts.startswith(SUBMODULE) and os.path.isdir(os.path.join(repository.top, name)):
            path = repository.from_git(name)
            if path in paths or path in changed.names:
                raise _submodule(name)
    for path in paths:
        if not (changed.have(path) or new.have(path) or known.have(path)):
            raise _unknown(path)
    added = _Names(
        repository, [name for part in (portions(paths) if paths else [[]]) for name in intended(repository, part)]
    ).names
    obstacles = in_way(repository, [repository.to_git(path) for path in changed.names])
    blocked = _Names(repository, obstacles).names
    others = {*added, *blocked}
    return _Found(
        [path for path in changed.names if path not in others],
        {
            path: found
            for path in blocked
            if (found := repository.from_git(obstacles[repository.to_git(path)])) is not None
        },
        added,
        [name.rstrip(b"/") for name in new.names],
    )
