"""The state of a working tree: one git process when nothing has changed, and never an answer from memory.

What makes it fast is git's own (`index_copy.py`), so whatever any program has changed is seen. Two things are our own: what has
changed inside of submodules (`submodules.py`), and the counts of lines (`counts.py`).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import WorkspaceRoot, path_bytes, shown

from .answers import tagged_json
from .configuration import Settings
from .counts import Count, Counts
from .discovery import Known, find
from .git import Argument, succeeded
from .index_copy import IndexCopy
from .lists import operation
from .plain_files import must_be_a_file
from .refs import short
from .repository import Repository
from .revisions import current_branch, head
from .status_output import CHANGES, CONFLICTS, Change, Parsed, parse
from .submodules import UNCACHED, Find, not_looking_inside, submodules, with_dirt
from .untracked_cache import UnreadableError, folders

Untracked = Literal["all", "normal", "no"]
MAX_FILES = 10_000
_CACHED: Settings = [
    ("core.untrackedCache", "true"),
    ("status.showUntrackedFiles", "all"),
    ("core.splitIndex", "false"),  # the part that is shared would be written into the repository
    ("index.threads", "true"),  # so git also writes where the entries end, and reads them in parts at a time
]


class Status:
    """The state of one repository's working tree. Used by one thread at a time."""

    def __init__(self, root: WorkspaceRoot, known: Known, folder: Path, git_dir: bytes) -> None:
        self._copy = IndexCopy(folder, git_dir)
        self._counts = Counts()
        self._checked: object = None
        self._find: Find = lambda path, stop: find(root, path, known, stop)
        self._modules: tuple[object, list[bytes]] = (None, [])

    def read(self, repository: Repository, *, untracked: Untracked = "all", ignored: bool = False) -> tuple[bytes, str]:
        """The state as JSON, and its entity tag. Blocks. Raises as `Repository.read`."""
        if repository.bare:
            return tagged_json(_bare(repository))
        flags, inside = not_looking_inside(repository)
        question = [
            "status", "--porcelain=v2", "-z", "--branch", "--show-stash", "--ahead-behind", "--find-renames", *flags,
            f"--untracked-files={untracked}", *(["--ignored=matching"] if ignored else []), *repository.limits,
        ]  # fmt: skip
        # only the usual question may write what it has found out: another one would take that away
        usual = untracked == "all" and not ignored and not repository.prefix
        for name in (
            b".gitignore",
            b".gitattributes",
        ):  # in other folders they are looked for when git keeps us waiting
            must_be_a_file(os.path.join(repository.top, name))
        parsed = self._asked_with_copy(repository, question, inside, keep=usual)
        env = {"GIT_INDEX_FILE": str(self._copy.path)} if parsed is not None else {}
        if parsed is None:
            parsed = _asked(repository, question, [*UNCACHED, *inside], {})
        modules = self._modules_of(repository)
        changes = with_dirt(repository, modules, parsed.changes, self._find) if modules else parsed.changes
        counts = self._counts.of(repository, changes[:MAX_FILES], env, parsed.oid)
        return tagged_json(_body(repository, parsed, changes, counts))

    def _asked_with_copy(
        self, repository: Repository, question: Sequence[Argument], inside: Settings, *, keep: bool
    ) -> Parsed | None:
        """What git says of the copy of the index; None where there can be none, or git can't work with it (a full disk)."""
        copy = self._copy
        env = {"GIT_INDEX_FILE": str(copy.path), "GIT_OPTIONAL_LOCKS": "1" if keep else "0"}
        try:
            if not self._prepared(repository, env):
                return None
            parsed = _asked(repository, question, [*_CACHED, *inside], env)
            # a folder that changes has git write its cache again: where the copy is as it was, none has
            sure = copy.fresh or (keep and copy.look() == self._checked)
            if (not sure and self._is_mistaken(repository)) or _are_gone(repository, parsed.changes):
                copy.forget()
                if not self._prepared(repository, env):
                    return None
                parsed = _asked(repository, question, [*_CACHED, *inside], env)
        except WorkspaceError as fault:
            if fault.code != "git_failed":
                raise
            copy.forget()
            return None
        self._checked = copy.look() if keep else None
        return parsed

    def _prepared(self, repository: Repository, env: dict[str, str]) -> bool:
        """Whether there is a copy to ask, with no cache in it but what our own runs have found out.

        Another git's cache may be older than it looks: those that do not go by it pass it on with the index, and by the new time of
        that a folder that has changed in the same second counts as unchanged.
        """
        if not self._copy.refresh(repository.configuration.entries):
            return False
        if not (self._copy.fresh and self._copy.has_cache):
            return True
        return succeeded(repository.run(["update-index", "--no-untracked-cache"], settings=_CACHED[1:], env=env))

    def _is_mistaken(self, repository: Repository) -> bool:
        """Whether git may go by its cache into a folder that has become a repository of its own."""
        try:
            found = folders(self._copy.path)
        except UnreadableError:
            return True
        top = os.open(repository.top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            inner = [folder for folder in found if os.access(folder + b"/.git", os.F_OK, dir_fd=top)]
        finally:
            os.close(top)
        # into one with files that are tracked git goes anyway
        return any(not repository.read(["ls-files", "-z", "--", folder]) for folder in inner)

    def _modules_of(self, repository: Repository) -> list[bytes]:
        """The submodules: as they were, where the index is."""
        index = self._copy.copied
        if index is not None and not self._copy.may_have_submodules:
            return []
        if index is None or index != self._modules[0]:
            self._modules = index, submodules(repository)
        return self._modules[1]

    def forget(self) -> None:
        """Remove what is kept on the disk."""
        self._copy.forget()


def _asked(repository: Repository, command: Sequence[Argument], settings: Settings, env: dict[str, str]) -> Parsed:
    output = repository.run(command, settings=settings, env=env)
    if not succeeded(output):
        raise repository.failed(output)
    if output.cut:
        raise WorkspaceError("git_output_too_large", "Too much has changed: leave the untracked files out.")
    return parse(output.out)


def _are_gone(repository: Repository, changes: list[Change]) -> bool:
    """Whether a folder that git tells as another repository is none any more."""
    return any(
        change.code == "??"
        and change.path.endswith(b"/")
        and not os.path.lexists(os.path.join(repository.top, change.path, b".git"))
        for change in changes
    )


# --- the answer -----------------------------------------------------------------------------------------------------------------


def _body(repository: Repository, parsed: Parsed, changes: list[Change], counts: dict[bytes, Count]) -> dict[str, Any]:
    upstream = None
    if parsed.upstream is not None:
        gone = parsed.ahead is None and parsed.oid is not None
        upstream = {
            "ref": _upstream(repository, parsed.upstream, parsed.branch),
            "ahead": parsed.ahead,
            "behind": parsed.behind,
            "gone": gone,
        }
    head = {"branch": parsed.branch, "oid": parsed.oid, "detached": parsed.branch is None, "unborn": parsed.oid is None}
    files = []
    for change in changes:
        if (path := repository.from_git(change.path)) is not None:
            files.append(_file(repository, change, path, counts.get(change.path, Count())))
    return {
        **_facts(repository),
        "head": head,
        "upstream": upstream,
        "operation": operation(repository),
        "stash_count": parsed.stash_count,
        "files": files[:MAX_FILES],
        "file_count": len(files),
        "truncated": len(files) > MAX_FILES,
    }


def _upstream(repository: Repository, ref: str, branch: str | None) -> str:
    """The upstream's name as the list of branches has it. git puts a part of the full name before one that another ref has too."""
    if branch is None or not ref.startswith(("heads/", "remotes/")):
        return ref
    full = repository.read(["for-each-ref", "--format=%(upstream)", f"refs/heads/{branch}"])
    return short(full.decode("utf-8", "replace").strip()) or ref


def _facts(repository: Repository) -> dict[str, Any]:
    facts: dict[str, Any] = {"root": shown(repository.root)}
    if encoded := path_bytes(repository.root):
        facts["root_bytes"] = encoded
    return {
        **facts,
        "bare": repository.bare,
        "read_only": not repository.writable,
        "shallow": os.path.exists(os.path.join(repository.common_dir, b"shallow")),
        "sparse": repository.configuration.flag("core.sparsecheckout"),
    }


def _file(repository: Repository, change: Change, path: bytes, count: Count) -> dict[str, Any]:
    conflict = CONFLICTS.get(change.code)
    alone = change.code in ("??", "!!")
    file: dict[str, Any] = {
        "path": shown(path),
        "old_path": None,
        "index": None if alone or conflict else CHANGES[change.code[0]],
        "worktree": None if conflict else CHANGES[change.code[1]],
        "conflict": conflict,
        "additions": count.additions,
        "deletions": count.deletions,
        "binary": count.binary,
        "submodule": _submodule(change.submodule),
    }
    if encoded := path_bytes(path):
        file["path_bytes"] = encoded
    if change.old_path is not None and (old := repository.from_git(change.old_path)) is not None:
        file["old_path"] = shown(old)
        if encoded := path_bytes(old):
            file["old_path_bytes"] = encoded
    return file


def _submodule(letters: str | None) -> dict[str, bool] | None:
    if letters is None:
        return None
    return {"commit_changed": "C" in letters, "modified": "M" in letters, "untracked": "U" in letters}


def _bare(repository: Repository) -> dict[str, Any]:
    """A bare repository: it has branches, and no files."""
    parsed = Parsed(oid=head(repository), branch=current_branch(repository))
    return _body(repository, parsed, [], {})
