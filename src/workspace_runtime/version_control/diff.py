"""Differences: of the working tree, of the index, between revisions, and of one commit."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import from_path_bytes, path_bytes, shown

from .answers import tagged_json
from .diff_output import CONFIG, arguments, parse, parse_words
from .failures import failure
from .git import Argument, succeeded
from .objects import commit_facts
from .repository import Repository
from .revisions import checked, empty_tree, head, resolve

MAX_BYTES = 20 * 1024 * 1024
MAX_FILE_BYTES = 1024 * 1024
MAX_FILE_LINES = 20_000
MAX_CONTEXT = 100_000
_RANGE = re.compile(r"(.*?)(\.\.\.?)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Diff:
    """What is asked. `target`: `worktree` (against the index), `index` (against the last commit), `A..B`, `A...B` (B against where
    they part), or a revision (the working tree against it). No `paths` means all."""

    target: str = "worktree"
    paths: Sequence[bytes] = ()
    stat: bool = False
    context: int = 3
    ignore_whitespace: bool = False
    words: bool = False


def diff(repository: Repository, asked: Diff) -> tuple[bytes, str]:
    """The difference as JSON, and its entity tag. Blocks. Raises `ref_not_found` and others."""
    command, sides = _command(repository, asked)
    return tagged_json({"target": asked.target, **sides, **files_of(repository, command, asked)})


def diff_text(repository: Repository, asked: Diff) -> bytes:
    """The difference as text that `git apply` takes. Blocks. Raises `git_output_too_large`."""
    command, _ = _command(repository, asked)
    flags = [
        flag
        for flag in arguments(context=asked.context, ignore_whitespace=asked.ignore_whitespace)
        if flag not in ("--raw", "--numstat", "-z")
    ]
    wanted = [command[0], *flags, "--binary", "--full-index", *command[1:], *repository.paths(asked.paths)]
    return repository.read(wanted, settings=list(CONFIG.items()))


def show(repository: Repository, ref: str, asked: Diff) -> tuple[bytes, str]:
    """A commit, and its difference from its (first) parent. Blocks."""
    oid = resolve(repository, ref)
    facts = commit_facts(repository, oid)
    parents = facts["parents"]
    command: list[str] = ["diff", parents[0] if parents else empty_tree(repository), oid]
    return tagged_json({"commit": facts, **files_of(repository, command, asked)})


def files_of(repository: Repository, command: Sequence[Argument], asked: Diff) -> dict[str, Any]:
    """The files of a difference that a git command makes, with their sums. Blocks."""
    flags = arguments(
        context=asked.context, patch=not asked.stat, ignore_whitespace=asked.ignore_whitespace, words=asked.words
    )
    limited = [command[0], *flags, *command[1:], *repository.paths(asked.paths)]
    output = repository.run(limited, limit=MAX_BYTES, settings=list(CONFIG.items()))
    if not succeeded(output):
        raise failure(output.err)
    read = parse_words if asked.words else parse
    found = read(output.out, cut=output.cut, max_file_bytes=MAX_FILE_BYTES, max_file_lines=MAX_FILE_LINES)
    files = [file for file in found.files if _localized(repository, file)]
    return {
        "files": files,
        "additions": sum(file["additions"] or 0 for file in files),
        "deletions": sum(file["deletions"] or 0 for file in files),
        "complete": found.complete,
    }


def _localized(repository: Repository, file: dict[str, Any]) -> bool:
    """Name a file as the client does; whether it is one of the workspace's."""
    if not repository.prefix:
        return True
    for name in ("path", "old_path"):
        encoded = file.pop(f"{name}_bytes", None)
        if file[name] is None:
            continue
        inner = repository.from_git(from_path_bytes(encoded) if encoded else file[name].encode())
        if inner is None and name == "path":
            return False
        file[name] = shown(inner) if inner is not None else None
        if inner is not None and (encoded := path_bytes(inner)):
            file[f"{name}_bytes"] = encoded
    return True


def _command(repository: Repository, asked: Diff) -> tuple[list[str], dict[str, str | None]]:
    """The git command with ids alone, and what is compared: null for the index and the working tree. Blocks."""
    target = asked.target
    if target == "worktree":
        repository.need_worktree()
        return ["diff"], {"from": None, "to": None}
    if target == "index":
        repository.need_worktree()
        base = head(repository)
        return ["diff", "--cached", base or empty_tree(repository)], {"from": base, "to": None}
    checked(target, "target")
    if found := _RANGE.fullmatch(target):
        old = resolve(repository, found[1] or "HEAD", field="target")
        new = resolve(repository, found[3] or "HEAD", field="target")
        if found[2] == "...":
            bases = repository.run(["merge-base", old, new])
            if bases.status != 0:
                raise WorkspaceError("ref_not_found", f"{target!r}: the two have no commit in common.", ref=target)
            old = bases.out.decode().split()[0]
        return ["diff", old, new], {"from": old, "to": new}
    repository.need_worktree()
    oid = resolve(repository, target, field="target")
    return ["diff", oid], {"from": oid, "to": None}
