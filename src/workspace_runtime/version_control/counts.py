"""How many lines of a changed file were added and deleted since the last commit, and remembered for as long as both sides stay.

git counts all at once, but only what is not known yet. What is known is kept by the ids that git itself tells of both sides, by the
look of the file where its content has no id, and by what decides how it is read: the configuration and the files with attributes.
"""

import os
import re
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from .git import Argument, succeeded
from .repository import Repository, portions
from .revisions import empty_tree, head
from .status_output import CONFLICTS, Change

MAX_COUNTED = 1000
_KEPT = 20_000
# A file that was written this short a time before we looked may be written again without another time.
_RACY_NS = 50_000_000
_RECENT = object()


@dataclass(frozen=True, slots=True)
class Count:
    """Lines; None for a binary file."""

    additions: int | None = None
    deletions: int | None = None
    binary: bool = False


_Key = tuple[object, ...]


class Counts:
    """The counts of one repository. Used by one thread at a time."""

    def __init__(self) -> None:
        self._known: OrderedDict[_Key, Count] = OrderedDict()
        self._settings: object = None

    def of(
        self, repository: Repository, changes: Sequence[Change], env: dict[str, str], oid: str | None
    ) -> dict[bytes, Count]:
        """The counts by path, of those that can be counted: not of what is untracked, a submodule, or beyond `MAX_COUNTED`. Blocks.

        `env` names the index that is asked, `oid` is the commit that is compared with."""
        wanted = [change for change in changes if change.code[0] not in "?!" and not change.submodule][:MAX_COUNTED]
        if self._settings != repository.configuration.entries:
            self._settings = repository.configuration.entries
            self._known.clear()
        looks = _Looks(repository)
        keys = {change.path: _key(change, looks) for change in wanted}
        found: dict[bytes, Count] = {}
        missing: list[Change] = []
        for change in wanted:
            key = keys[change.path]
            known = self._known.get(key) if key is not None else None
            if known is None:
                missing.append(change)
                if change.code not in CONFLICTS:
                    # git has nothing to count where the working tree has undone what is staged
                    found[change.path] = Count(0, 0)
            else:
                found[change.path] = known
        groups: dict[tuple[_Sides, bool], list[Change]] = {}
        for change in missing:
            groups.setdefault((_sides(change), change.old_path is not None), []).append(change)
        base = oid
        for (sides, renamed), changes in groups.items():
            if sides != "worktree" and base is None:
                base = head(repository) or empty_tree(repository)
            # what the status tells as renamed is compared with its old name, and nothing else: so a count does not depend on its company
            how = [
                *(["--cached"] if sides == "index" else []),
                "--find-renames" if renamed else "--no-renames",
                "--ignore-submodules=all",
                *([base] if sides != "worktree" and base is not None else []),
            ]
            for part in portions(_names(changes)):
                found.update(_count(repository, how, part, env))
        looks = _Looks(repository)
        for change in missing:
            key = keys[change.path]
            # what was written meanwhile may be counted, but not be kept
            if key is not None and change.path in found and key == _key(change, looks):
                self._known[key] = found[change.path]
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found


class _Looks:
    """How files look now. Used for one answer."""

    def __init__(self, repository: Repository) -> None:
        self._top = repository.top
        self._now = time.time_ns()
        self._attributes: dict[bytes, _Key] = {}
        named = repository.configuration.last("core.attributesfile")
        base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        users = os.path.expanduser(named) if named else f"{base}/git/attributes"
        own = os.path.join(repository.common_dir, b"info/attributes")
        self._shared = tuple(self.of(path, follow=True) for path in (own, os.fsencode(users)))

    def of(self, path: bytes, *, follow: bool = False) -> object:
        """What tells a change of a file; None where there is none, `_RECENT` where it can't be told yet."""
        try:
            status = os.stat(os.path.join(self._top, path), follow_symlinks=follow)
        except OSError:
            return None
        if self._now - max(status.st_mtime_ns, status.st_ctime_ns) < _RACY_NS:
            return _RECENT
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino

    def of_attributes(self, path: bytes) -> _Key:
        """The same of all files that may give attributes to a path (gitattributes(5))."""
        looks = self._shared
        for end in (0, *(slash.start() for slash in re.finditer(b"/", path))):
            folder = path[:end]
            known = self._attributes.get(folder)
            if known is None:
                known = self._attributes[folder] = (*looks, self.of(os.path.join(folder, b".gitattributes")))
            looks = known
        return looks


def _key(change: Change, looks: _Looks) -> _Key | None:
    """What the count depends on; None where that can't be told."""
    # also of a file that is as the index has it: it may have been written since git looked
    key = (
        change.path,
        change.old_path,
        change.code,
        change.ids,
        looks.of(change.path),
        *looks.of_attributes(change.path),
    )
    return None if _RECENT in key else key


# Where a file differs: between the last commit and the index, between the index and the working tree, or at both places.
_Sides = Literal["index", "worktree", "both"]


def _sides(change: Change) -> _Sides:
    """By which comparison a file is counted. git compares the last commit with the working tree in a way that takes longer the more
    files there are, and that is needed only where both sides of the index differ."""
    if change.code in CONFLICTS or change.code[1] in "AR":
        return "both"
    if change.code[1] == ".":
        return "index"
    return "worktree" if change.code[0] == "." else "both"


def _names(changes: Sequence[Change]) -> list[bytes]:
    return [path for change in changes for path in (change.old_path, change.path) if path is not None]


def _count(
    repository: Repository, how: Sequence[str], paths: Sequence[bytes], env: dict[str, str]
) -> Iterator[tuple[bytes, Count]]:
    """`git diff --numstat -z` (git-diff(1), "--numstat"): counts and path; of a rename an empty path, then the old and the new one."""
    plain = ["--no-color", "--no-ext-diff", "--no-textconv", "--no-relative"]
    arguments: list[Argument] = ["diff", "--numstat", "-z", *plain, *how, "--", *paths]
    output = repository.run(arguments, env=env)
    if not succeeded(output):
        raise repository.failed(output)
    fields = iter(output.out.split(b"\0"))
    for record in fields:
        parts = record.split(b"\t", 2)
        if len(parts) != 3:
            continue
        added, deleted, path = parts
        if not path:
            next(fields, b"")
            path = next(fields, b"")
        if added == b"-":
            yield path, Count(binary=True)
        else:
            yield path, Count(int(added), int(deleted))
