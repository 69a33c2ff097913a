"""Taking git's output of a difference apart: its records, and the counts and patches that belong to each.

In that output (`--raw --numstat --patch -z`, git-diff(1)) the records and counts hold names as they are, ended by NUL; the patches
hold them quoted, with one exception: `* Unmerged path NAME`, where a name may hold newlines and so look like a patch of another file.
Therefore patches are not found by looking for their first line, but by going through the records in order, each of which says how
its patch must begin. The lines inside a patch can't deceive: each begins with a character that no first line has.
"""

import hashlib
import itertools
import re
from dataclasses import dataclass, field

from workspace_runtime.errors import WorkspaceError

SUBMODULE = b"160000"  # the mode of a link to a commit of another repository


@dataclass(slots=True)
class Change:
    """One record of the output, and what else the output holds of it.

    `patches`: the bytes from `diff --git` on; two where a file became another kind of thing, none where there is nothing to show.
    `counts`: lines added and deleted; None where git counted none, or where they were cut away.
    """

    status: str
    path: bytes
    old_path: bytes | None
    old_mode: bytes
    new_mode: bytes
    old_oid: bytes
    new_oid: bytes
    similarity: int | None
    counts: tuple[int, int] | None = None
    binary: bool = False
    patches: list[bytes] = field(default_factory=list)
    cut: bool = False


def read_changes(output: bytes, *, cut: bool) -> tuple[list[Change], bool]:
    """The records of an output in order, with their counts and patches, and whether all the records are there.

    A path with a conflict stands once, with no patch. Raises `WorkspaceError` (`git_output_invalid`).
    """
    changes, start, complete = _records(output, cut)
    start, counted = _counts(output, start, changes, cut)
    if not counted:
        _cut_from(changes, 0)
    elif start < len(output) or cut:
        _patches(output, start, changes, cut)
    unmerged = {change.path for change in changes if change.status == "unmerged"}
    # a conflict may be told of twice: as such, and as the difference from our side
    kept = [change for change in changes if change.status == "unmerged" or change.path not in unmerged]
    return kept, complete


def split_patch(patch: bytes) -> tuple[bytes, list[bytes]]:
    """A patch of a file as what stands before its hunks, and its hunks, each from its `@@` on."""
    places = []
    found = patch.find(b"\n@@ ")
    while found >= 0:
        places.append(found + 1)
        found = patch.find(b"\n@@ ", found + 1)
    places.append(len(patch))
    return patch[: places[0]], [patch[start:end] for start, end in itertools.pairwise(places)]


def hunk_id(path: bytes, hunk: bytes) -> str:
    """What names a hunk: the same as long as its lines, its place and its file's path are the same."""
    digest = hashlib.blake2b(hunk, digest_size=12)
    digest.update(b"\0" + path)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Position:
    """Where a hunk stands, from its `@@ -a,b +c,d @@`, and the text after that. Starts count from 1; 0 is before the first line."""

    old_start: int
    old_lines: int
    new_start: int
    new_lines: int
    section: bytes


def read_position(header: bytes) -> Position:
    """A hunk's first line read. Raises `WorkspaceError` (`git_output_invalid`)."""
    found = _POSITION.fullmatch(header)
    if found is None:
        raise unreadable("a hunk's header")
    old, old_lines, new, new_lines, section = found.groups()
    return Position(int(old), int(old_lines or 1), int(new), int(new_lines or 1), section)


def unreadable(what: str) -> WorkspaceError:
    """The refusal of an output that is none of git's."""
    return WorkspaceError("git_output_invalid", f"Git told of a difference what can't be read: {what}.")


# --- records --------------------------------------------------------------------------------------------------------------

_STATUS = {
    b"A": "added",
    b"C": "copied",
    b"D": "deleted",
    b"M": "modified",
    b"R": "renamed",
    b"T": "type_changed",
    b"U": "unmerged",
}
_POSITION = re.compile(rb"@@ -([0-9]{1,18})(?:,([0-9]{1,18}))? \+([0-9]{1,18})(?:,([0-9]{1,18}))? @@ ?(.*)", re.DOTALL)
_UNUSUAL = re.compile(rb'[\x00-\x1f"\\\x7f-\xff]')
_CONTROL = re.compile(rb'[\x00-\x1f"\\\x7f]')
_LETTERS = dict(zip(b'\a\b\t\n\v\f\r"\\', b'abtnvfr"\\', strict=True))
_BOUNDARY = re.compile(rb"\n(?=diff --git |\* Unmerged path )")
_COMMIT = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?\0")
_RECORD = re.compile(
    rb":([0-7]{6}) ([0-7]{6}) ([0-9a-f]{40}|[0-9a-f]{64}) ([0-9a-f]{40}|[0-9a-f]{64}) ([ACDMRTU])([0-9]{0,3})\0"
    rb"([^\0]+)\0"
)
# of a merge: as many modes and ids as there are sides, and that of the result
_MERGED = re.compile(rb"::+((?:[0-7]{6} ){2,})((?:[0-9a-f]{40,64} ){2,})[A-Z]{2,}\0([^\0]+)\0")
_COUNT = re.compile(rb"(?:([0-9]{1,18})\t([0-9]{1,18})|-\t-)\t(?:([^\0]+)\0|\0[^\0]+\0([^\0]+)\0)")
_NAME = re.compile(rb"([^\0]+)\0")


def _first_lines(change: Change) -> tuple[bytes, ...]:
    """How a change's patch may begin. Names with unusual bytes are in double quotes; what is one says `core.quotePath`."""
    old, new = b"a/" + (change.old_path or change.path), b"b/" + change.path
    lines = (b"diff --git %b %b\n" % (_quoted(old, rule), _quoted(new, rule)) for rule in (_UNUSUAL, _CONTROL))
    return tuple(lines)


def _quoted(name: bytes, rule: re.Pattern[bytes]) -> bytes:
    return b'"' + rule.sub(_escape, name) + b'"' if rule.search(name) else name


def _escape(found: re.Match[bytes]) -> bytes:
    byte = found[0][0]
    letter = _LETTERS.get(byte)
    return b"\\%c" % letter if letter else b"\\%03o" % byte


def _records(output: bytes, cut: bool) -> tuple[list[Change], int, bool]:
    """The records, where they end, and whether none is cut."""
    changes = []
    commit = _COMMIT.match(output)  # of `git diff-tree` of one commit
    at = commit.end() if commit else 0
    while output.startswith(b":", at):
        if found := _RECORD.match(output, at):
            old_mode, new_mode, old_oid, new_oid, letter, score, path = found.groups()
            old_path, end = None, found.end()
            if letter in b"RC":
                second = _NAME.match(output, end)
                if second is None:
                    break
                old_path, path, end = path, second[1], second.end()
            similarity = int(score) if score else None
            changes.append(Change(_STATUS[letter], path, old_path, old_mode, new_mode, old_oid, new_oid, similarity))
            at = end
        elif found := _MERGED.match(output, at):
            modes, oids = found[1].split(), found[2].split()
            changes.append(Change("unmerged", found[3], None, modes[0], modes[-1], oids[0], oids[-1], None))
            at = found.end()
        else:
            break
    whole = not output.startswith(b":", at) and not (cut and (at == len(output) or not changes))
    if not whole and not cut:
        raise unreadable("a record")
    return changes, at, whole


def _counts(output: bytes, at: int, changes: list[Change], cut: bool) -> tuple[int, bool]:
    """Give the changes their counts. Where the patches begin, and whether all counts are there."""
    counts: dict[bytes, tuple[int, int] | None] = {}
    while found := _COUNT.match(output, at):
        added, deleted, path, new_path = found.groups()
        counts[path or new_path] = None if added is None else (int(added), int(deleted))
        at = found.end()
    whole = (at == len(output) and not cut) or output.startswith(b"\0", at)
    if not whole and not cut:
        raise unreadable("a count of lines")
    for change in changes:
        # with white space ignored, git leaves out files that are the same but for it
        if change.status != "unmerged":
            change.counts = counts.get(change.path, (0, 0) if whole else None)
            change.binary = change.counts is None and change.path in counts
    return at + 1, whole


def _patches(output: bytes, at: int, changes: list[Change], cut: bool) -> None:
    """Give the changes their patches."""
    end, last = len(output), -1
    for index, change in enumerate(changes):
        if change.status == "unmerged":
            mark = b"* Unmerged path " + change.path + b"\n"
            if output.startswith(mark, at):
                at, last = at + len(mark), index
            continue
        first = _first_lines(change)
        while output.startswith(first, at):
            boundary = _BOUNDARY.search(output, at)
            stop = boundary.end() if boundary else end
            change.patches.append(output[at:stop])
            at, last = stop, index
    if cut:
        # also the last one that has something: what its next patch begins with may be cut
        _cut_from(changes, max(last, 0))
    elif at != end:
        raise unreadable("a patch")


def _cut_from(changes: list[Change], index: int) -> None:
    for change in changes[index:]:
        change.cut = True
