"""Who wrote which line.

git tells of groups of lines (`--incremental`, git-blame(1)), in the order in which it finds them out, without their text. Of a commit
only the id is taken from there: names come from the history, since blame can't leave the mailmap aside.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import as_text, path_bytes, shown

from .configuration import Settings
from .git import Argument, Output
from .objects import commits_named, directory, look, missing, tree_entry
from .plain_files import must_be_a_file
from .quoting import unquoted
from .refs import relative
from .repository import Repository
from .revisions import head, resolve

# git's own words for a whole file of lines that each are another commit's.
MAX_OUTPUT = 16 * 1024 * 1024
# What configuration could change, set back to git's own default. Names are not taken from here: no mailmap need be read for them.
_DEFAULTS: Settings = [("blame.showRoot", "false"), ("mailmap.file", os.devnull), ("mailmap.blob", "")]
_IGNORED = re.compile("blame\\.ignorerevsfile")
_GROUP = re.compile(rb"([0-9a-f]{40}|[0-9a-f]{64}) (\d+) (\d+) (\d+)")
_TOO_SHORT = re.compile(r"has only (\d+) lines?")


@dataclass(slots=True)
class _Group:
    oid: bytes
    original: int
    line: int
    count: int
    facts: dict[bytes, bytes] = field(default_factory=dict)  # the lines that follow: their first word, and the rest


def blame(
    repository: Repository, path: bytes, *, ref: str | None = None, start: int | None = None, end: int | None = None
) -> dict[str, Any]:
    """Which commits the lines `start` to `end` (from 1, both included) of a file come from. Blocks.

    Without `ref` the file as the working tree has it; lines that are not committed have the `oid` null. A group of `lines` has an
    `original_path` where its file had another name then. `boundary`: git could not look further back. Commits that the repository
    says are to be ignored (`blame.ignoreRevsFile`) are, where that is a file of its own.

    Raises `WorkspaceError`: `file_not_found`, `is_directory`, `not_a_file`, `validation_failed` for lines that the file does not
    have, `ref_not_found`, `repository_invalid`, `git_output_too_large`, `git_timeout`, and as `Repository.run`.
    """
    if not path:
        raise directory(path)
    if ref is None:
        repository.need_worktree()
    oid = None if ref is None else resolve(repository, ref)
    name = repository.to_git(path)
    _must_not_wait(repository, name)
    arguments: list[Argument] = ["blame", "--incremental", "--no-textconv", *_range(start, end)]
    arguments += [*([oid] if oid else []), "--", name]
    output = repository.run(arguments, settings=_DEFAULTS, limit=MAX_OUTPUT)
    if output.cut:
        raise WorkspaceError(
            "git_output_too_large", "The file has too many lines for one answer: ask for fewer of them."
        )
    if output.status != 0:
        raise _refusal(repository, path, oid, output)
    groups = _joined(sorted(_groups(output.out), key=lambda group: group.line))
    return {
        "path": shown(path),
        **_encoded("path", path),
        "ref": oid,
        "commits": _commits(repository, groups),
        "lines": [_line(repository, path, group) for group in groups],
    }


def _range(start: int | None, end: int | None) -> list[str]:
    if start is None and end is None:
        return []
    first = 1 if start is None else start
    if first < 1 or (end is not None and end < first):
        raise WorkspaceError(
            "validation_failed", "start, end: lines count from 1, and the end is not before the start."
        )
    return [f"-L{first},{'' if end is None else end}"]


def _must_not_wait(repository: Repository, name: bytes) -> None:
    """Raises `repository_invalid` where git would open something that is no file, and so wait for ever, or would read another's."""
    for own in (True, False):
        for entry in repository.configuration.matching(_IGNORED, own=own):
            # can't be taken back by another setting: git reads all that are named
            named = os.path.expanduser(os.fsencode(entry.value or ""))
            listed = os.path.realpath(os.path.join(repository.top, named))
            if entry.value and not os.path.isfile(listed):
                raise WorkspaceError(
                    "repository_invalid",
                    f"{as_text(entry.value)!r} (blame.ignoreRevsFile) is not there, or no file: git can't tell who wrote a line without it."
                    " Make it, or take the setting out.",
                )
            if entry.value and own and relative(listed, repository.top) is None:
                raise WorkspaceError(
                    "repository_invalid", f"{as_text(entry.value)!r} (blame.ignoreRevsFile) is no file of it."
                )
    parts = name.split(b"/")
    must_be_a_file(os.path.join(repository.top, b".mailmap"))
    for depth in range(len(parts)):
        must_be_a_file(os.path.join(repository.top, *parts[:depth], b".gitattributes"))


def _refusal(repository: Repository, path: bytes, oid: str | None, output: Output) -> WorkspaceError:
    if short := _TOO_SHORT.search(output.err):
        return WorkspaceError("validation_failed", f"start: the file has {short[1]} lines.")
    if oid is not None:
        found = tree_entry(repository, path, oid)
        if found is None:
            return missing(path, "in that revision")
        return directory(path) if found[1] != "blob" else repository.failed(output)
    there = look(repository, repository.to_git(path))
    if there is None:
        return missing(path, "in the working tree")
    if stat.S_ISDIR(there.st_mode):
        return directory(path)
    if not stat.S_ISREG(there.st_mode) and not stat.S_ISLNK(there.st_mode):
        return WorkspaceError("not_a_file", f"{shown(path)!r} is no regular file.")
    if head(repository) is None:
        return WorkspaceError("ref_not_found", "There is no commit yet.", ref="HEAD")
    return missing(path, "that git tracks") if "no such path" in output.err else repository.failed(output)


# --- what git tells -----------------------------------------------------------------------------------------------------------


def _groups(output: bytes) -> Iterator[_Group]:
    """The groups of lines. Each ends in its file's name. Raises `git_output_invalid` for what can't be read."""
    group: _Group | None = None
    for line in output.split(b"\n")[:-1]:
        if group is None:
            begins = _GROUP.fullmatch(line)
            if begins is None:
                raise WorkspaceError("git_output_invalid", "git's account of the lines can't be read.")
            group = _Group(begins[1], int(begins[2]), int(begins[3]), int(begins[4]))
            continue
        word, _, rest = line.partition(b" ")
        if word in (b"previous", b"boundary", b"filename"):
            group.facts[word] = rest
        if word == b"filename":
            yield group
            group = None


def _joined(groups: list[_Group]) -> list[_Group]:
    """The groups in order, those that go on where the one before ends made one with it."""
    joined: list[_Group] = []
    for group in groups:
        last = joined[-1] if joined else None
        if (
            last is not None
            and (last.oid, last.facts[b"filename"]) == (group.oid, group.facts[b"filename"])
            and (last.line + last.count, last.original + last.count) == (group.line, group.original)
        ):
            last.count += group.count
            last.facts |= group.facts
        else:
            joined.append(group)
    return joined


def _commits(repository: Repository, groups: list[_Group]) -> dict[str, Any]:
    facts: dict[str, dict[bytes, bytes]] = {}
    for group in groups:
        if group.oid.strip(b"0"):
            # what is the commit's own stands in the first of its groups alone
            facts.setdefault(group.oid.decode(), {}).update(group.facts)
    found = commits_named(repository, facts)
    told = {}
    for oid, lines in facts.items():
        named = found.get(oid)
        told[oid] = {
            "author": named["author"] if named else None,
            "committer": named["committer"] if named else None,
            "subject": named["subject"] if named else None,
            "previous": _previous(repository, lines.get(b"previous", b"")),
            "boundary": b"boundary" in lines,
        }
    return told


def _previous(repository: Repository, fact: bytes) -> dict[str, Any] | None:
    oid, _, name = fact.partition(b" ")
    path = repository.from_git(unquoted(name)) if name else None
    return {"oid": oid.decode(), "path": shown(path), **_encoded("path", path)} if path is not None else None


def _line(repository: Repository, path: bytes, group: _Group) -> dict[str, Any]:
    committed = bool(group.oid.strip(b"0"))
    line: dict[str, Any] = {
        "oid": group.oid.decode() if committed else None,
        "line": group.line,
        "count": group.count,
        "original_line": group.original,
    }
    original = repository.from_git(unquoted(group.facts[b"filename"]))
    if original is not None and original != path:
        line |= {"original_path": shown(original), **_encoded("original_path", original)}
    return line


def _encoded(name: str, path: bytes) -> dict[str, str]:
    encoded = path_bytes(path)
    return {} if encoded is None else {f"{name}_bytes": encoded}
