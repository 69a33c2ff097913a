"""A second reading of a working tree's state, by git's plumbing on a copy of the index: nothing of `git status` is in it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

from support.version_control import Case

WORDS = {"M": "modified", "T": "type_changed", "A": "added", "D": "deleted", "R": "renamed", "C": "copied"}
KINDS = {
    "123": "both_modified", "23": "both_added", "13": "deleted_by_us", "12": "deleted_by_them", "2": "added_by_us", "3": "added_by_them",
    "1": "both_deleted",
}  # fmt: skip
# Path, old path, index, working tree, conflict.
Entry = tuple[bytes, bytes | None, str | None, str | None, str | None]
Counted = dict[bytes, tuple[int | None, int | None]]


def as_told(status: dict[str, Any]) -> tuple[set[Entry], Counted]:
    """What the API says: entries, and the counts of what was neither renamed nor has a conflict."""
    entries: set[Entry] = set()
    counts: Counted = {}
    for file in status["files"]:
        path, old = (_name(file, field) for field in ("path", "old_path"))
        assert path is not None
        entry = (path, old, file["index"], file["worktree"], file["conflict"])
        assert entry not in entries, "told twice"
        entries.add(entry)
        if old is None and file["conflict"] is None and file["worktree"] != "untracked":
            counts[path] = (file["additions"], file["deletions"])
    return entries, counts


def _name(file: dict[str, Any], field: str) -> bytes | None:
    encoded = file.get(f"{field}_bytes")
    if encoded is not None:
        return unquote_to_bytes(encoded)
    return file[field].encode() if file[field] is not None else None


def as_read(case: Case) -> tuple[set[Entry], Counted, set[bytes]]:
    """What plumbing says; and the files of which git's status itself says too little.

    Those were deleted, and resemble one that has a conflict: looking for renames, git pairs the two, and forgets the deletion.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "index")
        source = case.folder / ".git/index"
        if source.exists():
            shutil.copy2(source, copy)
        env = {"GIT_INDEX_FILE": copy, "GIT_LITERAL_PATHSPECS": "1"}

        def git(*args: str) -> list[bytes]:
            return case.host.box.git(case.folder, *args, env=env).split(b"\0")[:-1]

        case.host.box.git(case.folder, "update-index", "-q", "--refresh", env=env, check=False)
        base = (
            "HEAD"
            if case.attempt("rev-parse", "-q", "--verify", "HEAD") == 0
            else case.git("hash-object", "-t", "tree", "--stdin")
        )
        stages: dict[bytes, str] = {}
        for record in git("ls-files", "-u", "-z"):
            facts, _, path = record.partition(b"\t")
            stages[path] = stages.get(path, "") + facts[-1:].decode()
        how = ("--raw", "-z", "-M", "--ita-invisible-in-index")
        staged = dict(_changes(git("diff-index", "--cached", *how, base), stages))
        work = dict(_changes(git("diff-files", *how), stages))
        entries: set[Entry] = {(path, None, None, None, KINDS["".join(sorted(kind))]) for path, kind in stages.items()}
        for path in {*staged, *work}:
            index, worktree = staged.get(path), work.get(path)
            old = (index and index[1]) or (worktree and worktree[1]) or None
            entries.add((path, old, index[0] if index else None, worktree[0] if worktree else None, None))
        entries |= {(path, None, None, "untracked", None) for path in git("ls-files", "-o", "-z", "--exclude-standard")}
        seen = set(git("diff-files", "--raw", "-z", "--no-renames", "--diff-filter=D")[1::2])
        hidden = seen - work.keys() - stages.keys() - {old for _, old in work.values() if old}
        return entries, dict(_counts(git("diff", base, "--numstat", "-z", "--no-renames", "--no-ext-diff"))), hidden


def _changes(fields: list[bytes], unmerged: dict[bytes, str]) -> Iterator[tuple[bytes, tuple[str, bytes | None]]]:
    """Records of `--raw -z`: path, then what has become of it and from where."""
    rest = iter(fields)
    for record in rest:
        letter = record.split(b" ")[4][:1].decode()
        path, old = next(rest), None
        if letter in "RC":
            path, old = next(rest), path
        # a `U` of one that has no conflict: see `as_read`
        if path not in unmerged and letter != "U":
            yield path, (WORDS[letter], old)


def _counts(fields: list[bytes]) -> Iterator[tuple[bytes, tuple[int | None, int | None]]]:
    rest = iter(fields)
    for record in rest:
        added, deleted, path = record.split(b"\t", 2)
        if not path:
            next(rest), next(rest)
        elif added == b"-":
            yield path, (None, None)
        else:
            yield path, (int(added), int(deleted))
