"""What `git status --porcelain=v2 --branch --show-stash -z` says, as data (git-status(1), "Porcelain Format Version 2"). Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from workspace_runtime.errors import WorkspaceError

CHANGES = {
    ".": None, "M": "modified", "T": "type_changed", "A": "added", "D": "deleted", "R": "renamed", "C": "copied", "U": "unmerged",
    "?": "untracked", "!": "ignored",
}  # fmt: skip
CONFLICTS = {
    "DD": "both_deleted", "AU": "added_by_us", "UD": "deleted_by_them", "UA": "added_by_them", "DU": "deleted_by_us",
    "AA": "both_added", "UU": "both_modified",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """One file that differs. `code`: git's two letters, for the index and for the working tree. `ids`: what git says of the two
    sides, equal for as long as they are."""

    path: bytes
    code: str
    old_path: bytes | None = None
    submodule: str | None = None  # `S` and git's three letters
    ids: bytes = b""


@dataclass(slots=True)
class Parsed:
    """One whole output."""

    oid: str | None = None  # None: no commit yet
    branch: str | None = None  # None: detached
    upstream: str | None = None
    ahead: int | None = None
    behind: int | None = None
    stash_count: int = 0
    changes: list[Change] = field(default_factory=list)


def parse(output: bytes) -> Parsed:
    """Raises `WorkspaceError` (`git_failed`) for what it can't read."""
    parsed = Parsed()
    records = iter(output.split(b"\0"))
    try:
        for record in records:
            if record:
                _take(parsed, record, records)
    except (ValueError, IndexError, StopIteration):
        raise WorkspaceError("git_failed", "git's status can't be read.") from None
    return parsed


def _take(parsed: Parsed, record: bytes, records: Iterator[bytes]) -> None:
    kind = record[:2]
    if kind == b"1 ":
        code, submodule, ids, path = _fields(record, 8)
        parsed.changes.append(Change(path, code, None, submodule, ids))
    elif kind == b"2 ":
        code, submodule, ids, path = _fields(record, 9)
        parsed.changes.append(Change(path, code, next(records), submodule, ids))
    elif kind == b"u ":
        code, submodule, ids, path = _fields(record, 10)
        parsed.changes.append(Change(path, code, None, submodule, ids))
    elif kind in (b"? ", b"! "):
        parsed.changes.append(Change(record[2:], record[:1].decode() * 2))
    elif kind == b"# ":
        _header(parsed, record[2:].decode("utf-8", "replace"))
    else:
        raise ValueError(record)


def _fields(record: bytes, count: int) -> tuple[str, str | None, bytes, bytes]:
    """Code, submodule, ids and path of a record that has `count` fields before its path."""
    fields = record.split(b" ", count)
    submodule = fields[2].decode()
    return fields[1].decode(), None if submodule == "N..." else submodule, b" ".join(fields[3:count]), fields[count]


def _header(parsed: Parsed, line: str) -> None:
    name, _, value = line.partition(" ")
    if name == "branch.oid":
        parsed.oid = None if value == "(initial)" else value
    elif name == "branch.head":
        parsed.branch = None if value == "(detached)" else value
    elif name == "branch.upstream":
        parsed.upstream = value
    elif name == "branch.ab":
        ahead, behind = value.split(" ")
        parsed.ahead, parsed.behind = int(ahead), -int(behind)
    elif name == "stash":
        parsed.stash_count = int(value)
