"""A difference as data: git's output becomes files with hunks, as JSON objects.

One process tells records, counts and patches (`arguments`), so that they are of the same moment. Nothing here runs a program. What
is no output of git with these flags is refused, never guessed at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workspace_runtime.paths import path_bytes, shown

from .diff_changes import SUBMODULE, Change, Position, hunk_id, read_changes, read_position, split_patch, unreadable

# What only configuration can switch back. For the environment of each process (GIT_CONFIG_COUNT, git(1)).
CONFIG = {
    "core.bigFileThreshold": "512m",
    "diff.autoRefreshIndex": "true",
    "diff.suppressBlankEmpty": "false",
}
# Names and numbers are whole, all else is a word of its own. By what it is not, so that letters beyond ASCII are in it everywhere.
_WORD = "([^[:space:][:punct:]]|_)+|[^[:space:]]"
_FLAGS = (
    "--raw",
    "--numstat",
    "-z",
    "--no-abbrev",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-relative",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--submodule=short",
    "--find-renames",
    "-l1000",
    "--indent-heuristic",
    "--inter-hunk-context=0",
    "-O/dev/null",
)


def arguments(
    *, context: int = 3, patch: bool = True, ignore_whitespace: bool = False, words: bool = False
) -> list[str]:
    """The flags after `git diff` or `git diff-tree -r --root` that make an output for `parse`, whatever is configured.

    `context`: lines around a change. Without `patch` there are records and counts alone. `ignore_whitespace`: lines that differ in
    white space alone are the same; hunks of such an output can't be applied. `words`: the output is for `parse_words`.
    The process needs the configuration `CONFIG`, and must not have GIT_DIFF_OPTS, which git puts above `context`. In the C locale
    a word diff shows bytes that are not UTF-8; in one of UTF-8 they count as white space, whose changes it leaves out.
    """
    flags = [*_FLAGS]
    if patch:
        flags += ["--patch", f"-U{context}"]
    if ignore_whitespace:
        flags.append("-w")
    if words:
        flags += ["--word-diff=porcelain", f"--word-diff-regex={_WORD}"]
    return flags


@dataclass(frozen=True, slots=True)
class DiffOutput:
    """Files as JSON objects, in git's order; `complete` is False where the output was cut, so that there may be more files."""

    files: list[dict[str, Any]]
    complete: bool


def parse(output: bytes, *, cut: bool, max_file_bytes: int, max_file_lines: int, max_lines: int = 10**9) -> DiffOutput:
    """The files of an output made with `arguments`; `cut`: its end is missing, as its process was stopped.

    A file: `path, old_path, status, old_mode, new_mode, old_oid, new_oid, similarity, binary, additions, deletions, submodule,
    truncated, hunks`, and `path_bytes`, `old_path_bytes` where these are not UTF-8. `additions` and `deletions` are null where git
    counts none (binary, unmerged) and where they were cut away. A file whose patch is cut, or longer than the limits (its bytes,
    its lines, or what is left of `max_lines` for all files), is `truncated` and has no hunks.

    A hunk: `id, header, section, old_start, old_lines, new_start, new_lines, lines`. A line: `type (context | add | delete), content,
    old_line, new_line`, and `no_newline` where the file ends without one. Raises `WorkspaceError` (`git_output_invalid`).
    """
    return _files(output, cut, max_file_bytes, max_file_lines, max_lines, _hunk)


def parse_words(
    output: bytes, *, cut: bool, max_file_bytes: int, max_file_lines: int, max_lines: int = 10**9
) -> DiffOutput:
    """As `parse`, of an output made with `words`. A line is `{segments: [{type, content}]}`; hunks have no `id`.

    The lines are those of both sides laid over each other (git-diff(1), `--word-diff=porcelain`); that white space alone
    changed is not told.
    """
    return _files(output, cut, max_file_bytes, max_file_lines, max_lines, _word_hunk)


def _files(
    output: bytes, cut: bool, max_bytes: int, max_lines: int, left: int, read: Callable[[bytes, bytes], dict[str, Any]]
) -> DiffOutput:
    changes, complete = read_changes(output, cut=cut)
    files = []
    for change in changes:
        found = _file(change)
        size, lines = sum(map(len, change.patches)), sum(patch.count(b"\n") for patch in change.patches)
        if size > max_bytes or lines > min(max_lines, left):
            found["truncated"] = True
        elif not change.cut:
            left -= lines
            found["hunks"] = [read(change.path, hunk) for patch in change.patches for hunk in split_patch(patch)[1]]
        files.append(found)
    return DiffOutput(files, complete)


def dirty_submodule(path: bytes, oid: str, *, hunks: bool) -> dict[str, Any]:
    """A submodule with changes inside alone, as git tells it: a hunk of its own words, that can't be staged and has no id."""
    mode, raw = SUBMODULE, oid.encode()
    found = _file(Change("modified", path, None, mode, mode, raw, raw, None, (0, 0)))
    if hunks:
        word = f"Subproject commit {oid}"
        found["hunks"] = [
            {
                "id": None,
                "header": "@@ -1 +1 @@",
                "section": "",
                "old_start": 1,
                "old_lines": 1,
                "new_start": 1,
                "new_lines": 1,
                "lines": [
                    {"type": "delete", "content": word, "old_line": 1, "new_line": None},
                    {"type": "add", "content": f"{word}-dirty", "old_line": None, "new_line": 1},
                ],
            }
        ]
    return found


def _file(change: Change) -> dict[str, Any]:
    added, deleted = change.counts or (None, None)
    found: dict[str, Any] = {
        "path": shown(change.path),
        "old_path": None,
        "status": change.status,
        "old_mode": _or_none(change.old_mode),
        "new_mode": _or_none(change.new_mode),
        "old_oid": _or_none(change.old_oid),
        "new_oid": _or_none(change.new_oid),
        "similarity": change.similarity,
        "binary": change.binary,
        "additions": added,
        "deletions": deleted,
        "submodule": b"160000" in (change.old_mode, change.new_mode),
        "truncated": change.cut,
        "hunks": [],
    }
    if encoded := path_bytes(change.path):
        found["path_bytes"] = encoded
    if change.old_path is not None:
        found["old_path"] = shown(change.old_path)
        if encoded := path_bytes(change.old_path):
            found["old_path_bytes"] = encoded
    return found


def _or_none(figure: bytes) -> str | None:
    """A mode or an id; what is all zeros means that there is none."""
    return figure.decode() if figure.strip(b"0") else None


def _head(raw: bytes) -> tuple[Position, dict[str, Any], list[str]]:
    """A hunk's place, its JSON object with no lines yet, and its lines as text."""
    header, _, body = raw.partition(b"\n")
    place = read_position(header)
    found = {
        "header": shown(header),
        "section": shown(place.section),
        "old_start": place.old_start,
        "old_lines": place.old_lines,
        "new_start": place.new_start,
        "new_lines": place.new_lines,
    }
    # decoded at once: a broken character never takes the end of its line along
    return place, found, body.removesuffix(b"\n").decode("utf-8", "replace").split("\n") if body else []


def _hunk(path: bytes, raw: bytes) -> dict[str, Any]:
    place, found, rows = _head(raw)
    old, new = place.old_start, place.new_start
    lines: list[dict[str, Any]] = []
    add = lines.append
    for row in rows:
        mark, content = row[:1], row[1:]
        if mark == " ":
            add({"type": "context", "content": content, "old_line": old, "new_line": new})
            old += 1
            new += 1
        elif mark == "+":
            add({"type": "add", "content": content, "old_line": None, "new_line": new})
            new += 1
        elif mark == "-":
            add({"type": "delete", "content": content, "old_line": old, "new_line": None})
            old += 1
        elif mark == "\\" and lines:
            lines[-1]["no_newline"] = True
        else:
            raise unreadable("a line of a hunk")
    if old - place.old_start != place.old_lines or new - place.new_start != place.new_lines:
        raise unreadable("a hunk with other lines than it says")
    return {"id": hunk_id(path, raw), **found, "lines": lines}


_SEGMENTS = {" ": "context", "+": "add", "-": "delete"}


def _word_hunk(path: bytes, raw: bytes) -> dict[str, Any]:
    _, found, rows = _head(raw)
    lines: list[dict[str, Any]] = []
    segments: list[dict[str, str]] = []
    for row in rows:
        mark = row[:1]
        if row == "~":
            lines.append({"segments": segments})
            segments = []
        elif mark in _SEGMENTS:
            if row != mark:  # git marks an empty line as a space alone
                segments.append({"type": _SEGMENTS[mark], "content": row[1:]})
        elif mark != "\\":
            raise unreadable("a word of a hunk")
    if segments:
        lines.append({"segments": segments})
    return {**found, "lines": lines}
