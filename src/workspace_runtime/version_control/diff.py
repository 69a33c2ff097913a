"""Differences: of the working tree, of the index, between revisions, and of one commit."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import from_path_bytes, path_bytes, shown

from .answers import tagged_json
from .credentials import tellable
from .diff_output import CONFIG, arguments, dirty_submodule, parse, parse_words
from .git import Argument, succeeded
from .objects import commit_facts
from .repository import Repository
from .revisions import checked, empty_tree, head, resolve
from .submodules import Find, dirty, not_looking_inside, submodules

MAX_BYTES = 20 * 1024 * 1024
MAX_FILE_BYTES = 1024 * 1024
MAX_FILE_LINES = 20_000
# Of all files: a line is some 100 bytes more as data.
MAX_LINES = 200_000
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


def diff(repository: Repository, asked: Diff, find: Find) -> tuple[bytes, str]:
    """The difference as JSON, and its entity tag. Blocks. Raises `ref_not_found` and others. `find`: finds submodules."""
    command, sides = _command(repository, asked)
    found = files_of(repository, command, asked)
    if sides["to"] is None and "--cached" not in command:
        _add_dirty(repository, asked, found["files"], find)
    return tagged_json({"target": tellable(asked.target), **sides, **found})


def _add_dirty(repository: Repository, asked: Diff, files: list[dict[str, Any]], find: Find) -> None:
    """The submodules that are changed inside alone, as git tells them; it is not asked, as it would run their filters. Blocks."""
    modules = submodules(repository)
    if asked.paths:
        meant = tuple(repository.to_git(path) + b"/" for path in asked.paths)
        modules = [path for path in modules if (path + b"/").startswith(meant)]
    known = {(file["path"], file.get("path_bytes")) for file in files}
    for name in dirty(repository, modules, find) if modules else []:
        path = repository.from_git(name)
        if path is not None and (shown(path), path_bytes(path)) not in known:
            oid = repository.read(["ls-files", "--stage", "-z", "--", name]).split(b" ")[1].decode()
            files.append(dirty_submodule(path, oid, hunks=not (asked.stat or asked.words)))
    # in git's order
    files.sort(key=lambda file: from_path_bytes(file["path_bytes"]) if "path_bytes" in file else file["path"].encode())


def diff_text(repository: Repository, asked: Diff) -> bytes:
    """The difference as text that `git apply` takes. Blocks. Raises `git_output_too_large`."""
    command, _ = _command(repository, asked)
    flags = [
        flag
        for flag in arguments(context=asked.context, ignore_whitespace=asked.ignore_whitespace)
        if flag not in ("--raw", "--numstat", "-z")
    ]
    quiet, settings = not_looking_inside(repository)
    wanted = [command[0], *flags, *quiet, "--binary", "--full-index", *command[1:], *repository.paths(asked.paths)]
    return repository.read(wanted, settings=[*CONFIG.items(), *settings])


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
    quiet, settings = not_looking_inside(repository)
    limited = [command[0], *flags, *quiet, *command[1:], *repository.paths(asked.paths)]
    output = repository.run(limited, limit=MAX_BYTES, settings=[*CONFIG.items(), *settings])
    if not succeeded(output):
        raise repository.failed(output)
    read = parse_words if asked.words else parse
    found = read(
        output.out, cut=output.cut, max_file_bytes=MAX_FILE_BYTES, max_file_lines=MAX_FILE_LINES, max_lines=MAX_LINES
    )
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
                raise WorkspaceError(
                    "ref_not_found", f"{tellable(target)!r}: the two have no commit in common.", ref=tellable(target)
                )
            old = bases.out.decode().split()[0]
        return ["diff", old, new], {"from": old, "to": new}
    repository.need_worktree()
    oid = resolve(repository, target, field="target")
    return ["diff", oid], {"from": oid, "to": None}
