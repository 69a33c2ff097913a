"""Submodules: which there are, and what has changed inside of them.

git would look into them by itself, and run the filters that their configurations name. So each is looked at by a run with its own
settings. Of their commits, which the index has, git tells without a look inside.
"""

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from workspace_runtime.errors import WorkspaceError

from .configuration import Settings
from .diff_changes import SUBMODULE
from .git import READ_SECONDS, Argument, Stop
from .index_copy import BINARY_SUBMODULE, is_split
from .plain_files import open_file
from .repository import Repository
from .status_output import Change, parse

MAX_SUBMODULES = 1000  # that one answer looks into, also those in others
_DEPTH = 4
# Of a cache that is not our own copy's nobody knows what has become of its folders.
UNCACHED: Settings = [("core.untrackedCache", "false")]
_DESCRIBED = re.compile(rb"submodule\.(.*)\.(path|ignore)", re.DOTALL)
_PIECE = 1024 * 1024

# Finds the repository that a path of the workspace lies in, and the path below its root: `discovery.find`.
Find = Callable[[bytes, Stop], tuple[Repository, bytes]]


def submodules(repository: Repository) -> list[bytes]:
    """The submodules that the index has, also those that no file describes, as git names them. Blocks. Raises as `Repository.read`."""
    if not _may_have_any(repository.git_dir):
        return []
    entries = repository.read(["ls-files", "--stage", "--sparse", "-z", *repository.limits]).split(b"\0")
    return list(dict.fromkeys(entry.partition(b"\t")[2] for entry in entries if entry.startswith(SUBMODULE)))


def _may_have_any(git_dir: bytes) -> bool:
    """Whether an index has the mode of a submodule anywhere. False is sure, True is not."""
    if is_split(git_dir):
        return True
    opened = open_file(os.path.join(git_dir, b"index"))
    if opened is None:
        return False
    with opened as file:
        end = b""
        while piece := file.read(_PIECE):
            if BINARY_SUBMODULE in end + piece:
                return True
            end = piece[-len(BINARY_SUBMODULE) :]
    return False


def with_dirt(repository: Repository, modules: list[bytes], changes: list[Change], find: Find) -> list[Change]:
    """The changes of a repository with what has changed inside of these submodules. Blocks. Raises `git_timeout`."""
    looks = _Looks(find, MAX_SUBMODULES, time.monotonic() + READ_SECONDS)
    by_path = {change.path: at for at, change in enumerate(changes)}
    changes = list(changes)
    for path, modified, untracked in looks.all(repository, modules):
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


@dataclass(slots=True)
class _Looks:
    """How many looks an answer has left, and until when."""

    find: Find
    left: int
    end: float

    def all(
        self, repository: Repository, modules: Iterable[bytes], depth: int = _DEPTH
    ) -> Iterator[tuple[bytes, bool, bool]]:
        """What `dirt` says of each, as far as it is not to be ignored."""
        ignored = ignored_by(repository)
        for path in modules:
            ignore = ignored.of(path) or "none"
            if ignore not in ("all", "dirty"):
                modified, untracked = self.dirt(repository, path, depth)
                yield path, modified, untracked and ignore != "untracked"

    def dirt(self, repository: Repository, path: bytes, depth: int) -> tuple[bool, bool]:
        """Whether something tracked has changed in a submodule, and whether it has untracked files."""
        inner = repository.from_git(path)
        if inner is None or depth == 0 or self.left == 0:
            return False, False
        if time.monotonic() > self.end:
            raise WorkspaceError("git_timeout", "The submodules took too long.")
        self.left -= 1
        place = b"/".join(part for part in (repository.root, inner) if part)
        try:
            module, rest = self.find(place, repository.stop)
        except WorkspaceError:
            return False, False
        if rest or module.root != place or module.bare:
            return False, False  # not checked out
        flags, settings = not_looking_inside(module)
        arguments = ["status", "--porcelain=v2", "-z", "--untracked-files=normal", *flags]
        changes = parse(module.run(arguments, settings=[*UNCACHED, *settings]).out).changes
        untracked = any(change.code == "??" for change in changes)
        modified = any(change.code != "??" for change in changes)
        for _, *nested in self.all(module, submodules(module), depth - 1):
            modified |= any(nested)
        return modified, untracked


def dirty(repository: Repository, modules: Sequence[bytes], find: Find) -> list[bytes]:
    """Those of these submodules that `git diff` tells as changed inside: with untracked files alone only where it is told to. Blocks.

    Raises `git_timeout`."""
    looks = _Looks(find, MAX_SUBMODULES, time.monotonic() + READ_SECONDS)
    ignored = ignored_by(repository)
    return [
        path
        for path, modified, untracked in looks.all(repository, modules)
        if modified or (untracked and ignored.of(path) == "none")
    ]


# --- what is to be ignored --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ignored:
    """How much of which submodule is to be ignored: by its name, and the others (None: nobody has said)."""

    names: dict[bytes, bytes]
    values: dict[bytes, str]
    others: str | None

    def of(self, path: bytes) -> str | None:
        """`all`, `dirty`, `untracked`, `none`; None where nobody has said."""
        name = self.names.get(path)
        return self.values.get(name, self.others) if name is not None else self.others


def ignored_by(repository: Repository) -> Ignored:
    """What the configuration and `.gitmodules` say (gitmodules(5), `ignore`; git-config(1), `diff.ignoreSubmodules`). Blocks."""
    own = repository.configuration
    file = os.path.join(repository.top, b".gitmodules")
    listed = b""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.lstat(file).st_mode):
            pattern = r"^submodule\..*\.(path|ignore)$"
            listed = repository.run(["config", "-z", "--file", file, "--get-regexp", pattern]).out
    names: dict[bytes, bytes] = {}
    values: dict[bytes, str] = {}
    for entry in listed.split(b"\0"):
        key, _, value = entry.partition(b"\n")
        found = _DESCRIBED.fullmatch(key)
        if found and found[2] == b"path":
            names[value] = found[1]
        elif found:
            values[found[1]] = value.decode("utf-8", "replace")
    for name in names.values():
        if (said := own.last(f"submodule.{os.fsdecode(name)}.ignore")) is not None:
            values[name] = said
    return Ignored(names, values, own.last("diff.ignoresubmodules"))


def not_looking_inside(repository: Repository) -> tuple[list[Argument], Settings]:
    """The flags and settings under which git ignores what is to be ignored, and looks into no submodule: that would run the filters
    that their own configurations name. Blocks."""
    ignored = ignored_by(repository)
    if ignored.others != "all" and "all" not in ignored.values.values():
        # for all of them alike; what `.gitmodules` says is not read then, where one wrong word has git end
        return ["--ignore-submodules=dirty"], []
    settings: Settings = [("diff.ignoreSubmodules", "all" if ignored.others == "all" else "dirty")]
    settings += [
        (f"submodule.{os.fsdecode(name)}.ignore", "dirty")
        for name, value in ignored.values.items()
        if value not in ("all", "dirty")
    ]
    return [], settings
