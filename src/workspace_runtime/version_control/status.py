"""The state of a working tree: one git process when nothing has changed, and never an answer from memory.

What makes it fast is git's own (`index_copy.py`), so whatever any program has changed is seen. Two things are our own: submodules are
looked at by runs with their own settings, since git would run the filters that they name, and lines are counted (`counts.py`).
"""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import WorkspaceRoot, path_bytes, shown

from .answers import tagged_json
from .configuration import Settings
from .counts import Count, Counts
from .discovery import Known, find
from .failures import failure
from .git import Argument, succeeded
from .index_copy import IndexCopy
from .lists import operation
from .repository import Repository
from .revisions import current_branch, head
from .status_output import CHANGES, CONFLICTS, Change, Parsed, parse

Untracked = Literal["all", "normal", "no"]
MAX_FILES = 10_000
MAX_SUBMODULES = 100
_DEPTH = 4
_CACHED: Settings = [
    ("core.untrackedCache", "true"),
    ("status.showUntrackedFiles", "all"),
    ("core.splitIndex", "false"),  # the part that is shared would be written into the repository
]
_MODULE = re.compile(rb"submodule\.(.*)\.(path|ignore)", re.DOTALL)


class Status:
    """The state of one repository's working tree. Used by one thread at a time."""

    def __init__(self, root: WorkspaceRoot, known: Known, folder: Path, git_dir: bytes) -> None:
        self._root = root
        self._known = known
        self._copy = IndexCopy(folder, git_dir)
        self._counts = Counts()

    def read(self, repository: Repository, *, untracked: Untracked = "all", ignored: bool = False) -> tuple[bytes, str]:
        """The state as JSON, and its entity tag. Blocks. Raises as `Repository.read`."""
        if repository.bare:
            return tagged_json(_bare(repository))
        cached = self._copy.refresh(repository.configuration.entries)
        env = {"GIT_INDEX_FILE": str(self._copy.path)} if cached else {}
        # only the usual question may write what it has found out: another one would take that away
        keeps = cached and untracked == "all" and not ignored and not repository.prefix
        arguments = ["status", "--porcelain=v2", "-z", "--branch", "--show-stash", "--ahead-behind", "--find-renames"]
        arguments += [
            f"--untracked-files={untracked}",
            "--ignore-submodules=dirty",
            *(["--ignored=matching"] if ignored else []),
        ]
        settings = _CACHED if cached else []
        command = [*arguments, *repository.limits]
        env["GIT_OPTIONAL_LOCKS"] = "1" if keeps else "0"
        parsed = _asked(repository, command, settings, env)
        if cached and _has_other_repositories(repository, parsed.changes):
            self._copy.forget()
            self._copy.refresh(repository.configuration.entries)
            parsed = _asked(repository, command, settings, env)
        changes = self._with_submodules(repository, parsed.changes)
        counts = self._counts.of(repository, changes[:MAX_FILES], env, parsed.oid)
        return tagged_json(_body(repository, parsed, changes, counts))

    def forget(self) -> None:
        """Remove what is kept on the disk."""
        self._copy.forget()

    # --- submodules -----------------------------------------------------------------------------------------------------

    def _with_submodules(self, repository: Repository, changes: list[Change]) -> list[Change]:
        """The changes with what has changed inside of submodules."""
        modules = self._modules(repository)
        if not modules:
            return changes
        by_path = {change.path: at for at, change in enumerate(changes)}
        changes = list(changes)
        for path, ignore in modules.items():
            modified, untracked = self._dirt(repository, path, _DEPTH)
            modified &= ignore not in ("all", "dirty")
            untracked &= ignore not in ("all", "dirty", "untracked")
            if not (modified or untracked):
                continue
            letters = ("M" if modified else ".") + ("U" if untracked else ".")
            at = by_path.get(path)
            if at is None:
                changes.append(Change(path, ".M", None, "S." + letters))
            else:
                old = changes[at]
                state = (old.submodule or "S...")[:2] + letters
                code = old.code[0] + "M" if old.code[1] == "." else old.code
                changes[at] = Change(path, code, old.old_path, state, old.ids)
        return changes

    def _modules(self, repository: Repository) -> dict[bytes, str]:
        """The submodules by path, with how much of them is to be ignored (gitmodules(5))."""
        file = os.path.join(repository.top, b".gitmodules")
        try:
            if not stat.S_ISREG(os.lstat(file).st_mode):
                return {}
        except OSError:
            return {}
        listed = repository.run(["config", "-z", "--file", file, "--get-regexp", r"^submodule\..*\.(path|ignore)$"]).out
        paths: dict[bytes, bytes] = {}
        ignored: dict[bytes, str] = {}
        for entry in listed.split(b"\0"):
            key, _, value = entry.partition(b"\n")
            found = _MODULE.fullmatch(key)
            if found and found[2] == b"path":
                paths[found[1]] = value
            elif found:
                ignored[found[1]] = value.decode("utf-8", "replace")
        own = repository.configuration
        return {
            path: own.last(f"submodule.{os.fsdecode(name)}.ignore") or ignored.get(name, "none")
            for name, path in list(paths.items())[:MAX_SUBMODULES]
            if repository.from_git(path) is not None
        }

    def _dirt(self, repository: Repository, path: bytes, depth: int) -> tuple[bool, bool]:
        """Whether something tracked has changed in a submodule, and whether it has untracked files."""
        inner = repository.from_git(path)
        if inner is None or depth == 0:
            return False, False
        place = b"/".join(part for part in (repository.root, inner) if part)
        try:
            module, rest = find(self._root, place, self._known, repository.stop)
        except WorkspaceError:
            return False, False
        if rest or module.root != place or module.bare:
            return False, False  # not checked out
        arguments = ["status", "--porcelain=v2", "-z", "--untracked-files=normal", "--ignore-submodules=dirty"]
        changes = parse(module.run(arguments).out).changes
        untracked = any(change.code == "??" for change in changes)
        modified = any(change.code != "??" for change in changes)
        for nested in self._modules(module):
            below = self._dirt(module, nested, depth - 1)
            modified |= any(below)
        return modified, untracked


def _asked(repository: Repository, command: Sequence[Argument], settings: Settings, env: dict[str, str]) -> Parsed:
    output = repository.run(command, settings=settings, env=env)
    if not succeeded(output):
        raise failure(output.err)
    if output.cut:
        raise WorkspaceError("git_output_too_large", "Too much has changed: leave the untracked files out.")
    return parse(output.out)


def _has_other_repositories(repository: Repository, changes: list[Change]) -> bool:
    """Whether an untracked folder has become a repository of its own, or is none any more: git's cache does not see that."""
    folders: set[bytes] = set()
    for change in changes:
        if change.code != "??":
            continue
        if change.path.endswith(b"/"):
            if not os.path.lexists(os.path.join(repository.top, change.path, b".git")):
                return True
            continue
        folder = os.path.dirname(change.path)
        while folder and folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
    return any(os.path.lexists(os.path.join(repository.top, folder, b".git")) for folder in folders)


# --- the answer -----------------------------------------------------------------------------------------------------------------


def _body(repository: Repository, parsed: Parsed, changes: list[Change], counts: dict[bytes, Count]) -> dict[str, Any]:
    upstream = None
    if parsed.upstream is not None:
        gone = parsed.ahead is None and parsed.oid is not None
        upstream = {"ref": parsed.upstream, "ahead": parsed.ahead, "behind": parsed.behind, "gone": gone}
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
