"""Choosing some hunks of a difference, and making a patch of them that `git apply` takes.

The patch is made of git's own bytes: only places in `@@` lines are counted anew for the hunks that were left out, as git looks
for a hunk where its line says, and would find like lines elsewhere. A hunk is content and nothing else: a change of mode, and a
rename that is to be undone, are left out, as they belong to the whole file.
"""

from collections.abc import Mapping, Set

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import path_bytes, shown

from .diff_changes import Change, hunk_id, read_changes, read_position, split_patch


def select(output: bytes, wanted: Mapping[bytes, Set[str]], *, reverse: bool = False) -> bytes:
    """A patch with the hunks `wanted`, by path, of an output made with `diff_output.arguments` and not cut.

    For `git apply [--cached] --unidiff-zero --whitespace=nowarn -` in the top folder, with `--reverse` where `reverse`. The ids are
    those that `diff_output.parse` gives for the same difference; empty when none is wanted. Raises `WorkspaceError`:
    `hunk_not_found` with the `path` and the `hunk` that is not there any more, `git_output_invalid`.
    """
    changes = {change.path: change for change in read_changes(output, cut=False)[0]}
    for path, ids in wanted.items():
        there = {hunk_id(path, hunk) for hunk in _hunks(changes.get(path))}
        if missing := sorted(ids - there):
            raise _not_found(path, missing[0])
    return b"".join(_patch(change, wanted.get(path, set()), reverse) for path, change in changes.items())


def _hunks(change: Change | None) -> list[bytes]:
    return [hunk for patch in change.patches for hunk in split_patch(patch)[1]] if change else []


def _not_found(path: bytes, hunk: str) -> WorkspaceError:
    encoded = path_bytes(path)
    data = {"path": shown(path), "hunk": hunk} | ({"path_bytes": encoded} if encoded else {})
    return WorkspaceError("hunk_not_found", f"{shown(path)!r} has no such hunk any more.", **data)


def _patch(change: Change, ids: Set[str], reverse: bool) -> bytes:
    pieces = []
    for patch in change.patches:
        head, hunks = split_patch(patch)
        chosen = [hunk for hunk in hunks if hunk_id(change.path, hunk) in ids]
        if chosen:
            pieces.append(_head(head, renamed=change.old_path is not None, reverse=reverse))
            pieces += _placed(chosen, reverse)
    return b"".join(pieces)


def _head(head: bytes, *, renamed: bool, reverse: bool) -> bytes:
    """What stands before the hunks, of their content alone."""
    lines = [line for line in head.splitlines(keepends=True) if not line.startswith((b"old mode ", b"new mode "))]
    if not (renamed and reverse):
        return b"".join(lines)
    # the hunk is taken back from the file of the new name, which stays
    new = lines[-1].removeprefix(b"+++ ")
    old = new.replace(b"b/", b"a/", 1)
    return b"diff --git %b %b--- %b+++ %b" % (old.rstrip(b"\t\n"), new.rstrip(b"\t\n") + b"\n", old, new)


def _placed(hunks: list[bytes], reverse: bool) -> list[bytes]:
    """The hunks with the places that they have when the others aren't there."""
    placed = []
    grown = 0  # lines that the hunks before add to the side that is there
    for hunk in hunks:
        header, _, body = hunk.partition(b"\n")
        place = read_position(header)
        old, new = (place.old_start, place.old_lines), (place.new_start, place.new_lines)
        there, made = (new, old) if reverse else (old, new)
        start = _before(*there) + grown
        # Git looks first where the side that is made begins, also when that has no lines and so names the line before, where a like
        # line may be. As if it had lines, it names the place itself.
        made = start + 1 if start or made[1] else 0, made[1]
        grown += made[1] - there[1]
        old, new = (made, there) if reverse else (there, made)
        placed.append(b"@@ -%b +%b @@%b\n" % (_side(*old), _side(*new), header.split(b" @@", 1)[1]) + body)
    return placed


def _before(start: int, lines: int) -> int:
    """How many lines stand before a hunk: a side without lines names the last of them."""
    return start - 1 if lines else start


def _side(start: int, lines: int) -> bytes:
    return b"%d" % start if lines == 1 else b"%d,%d" % (start, lines)
