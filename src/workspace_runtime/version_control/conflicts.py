"""Files that a merge left to be resolved: which they are, and settling them.

Where the two sides have different kinds of things at one name (a file and a link, a file and a folder), git puts one of them beside it,
as `name~HEAD` or `name~branch`. That stands for a side of `name`, so settling either puts the side that is chosen at its own name, and
takes what stood beside it away.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import path_bytes, shown

from . import cursors
from .diff_changes import SUBMODULE
from .objects import look, text
from .obstacles import in_way, must_be_as_staged, refuse
from .plain_files import line_of
from .repository import Repository, portions
from .revisions import head
from .staging import FROM_INPUT, listed
from .work import Work

Side = Literal["ours", "theirs", "base", "worktree"]
# A side of a file: `oid, mode`. By the stages that the index has of it: 1 the common base, 2 ours, 3 theirs (git-status(1), unmerged).
Stages = dict[str, dict[str, str]]
_CONFLICTS = {
    "123": "both_modified",
    "23": "both_added",
    "13": "deleted_by_us",
    "12": "deleted_by_them",
    "2": "added_by_us",
    "3": "added_by_them",
    "1": "both_deleted",
}
_SIDES = {"base": "1", "ours": "2", "theirs": "3"}
_THEIRS = (b"MERGE_HEAD", b"CHERRY_PICK_HEAD", b"REBASE_HEAD")
ANSWERED = 1000


def conflicts(repository: Repository, *, limit: int = 50, cursor: str | None = None) -> dict[str, Any]:
    """A page of the files with conflicts, by path: `path, kind, base, ours, theirs, exists, original_path`. Blocks.

    A side is `oid, mode`, null where the file was not there; `exists`: the working tree has it; `original_path`: of what git put beside
    it, the name that it stands for. Raises `repository_bare`, `cursor_invalid`, and as `Repository.read`.
    """
    repository.need_worktree()
    bound = cursors.binding("conflicts", repository.git_dir)
    sides = unmerged(repository)
    page, after = cursors.page(sorted(sides), lambda name: (0, name), bound, limit, cursor, len)
    own = own_names(repository, {name: sides[name] for name in page}, sides)
    return {"items": [_conflict(repository, name, sides[name], own.get(name)) for name in page], "next_cursor": after}


def unmerged(repository: Repository) -> dict[bytes, Stages]:
    """The stages of each file with a conflict, by git's name for it, of those that are the workspace's. Blocks."""
    sides: dict[bytes, Stages] = {}
    for line in repository.read(["ls-files", "-u", "-z", "--full-name", *repository.limits]).split(b"\0")[:-1]:
        words, _, name = line.partition(b"\t")
        parts = text(words).split()
        if len(parts) != 3 or parts[2] not in _SIDES.values():
            raise WorkspaceError("git_output_invalid", "git's list of conflicts can't be read.")
        mode, oid, stage = parts
        if repository.from_git(name) is not None:
            sides.setdefault(name, {})[stage] = {"oid": oid, "mode": mode}
    return sides


def _conflict(repository: Repository, name: bytes, stages: Stages, own: bytes | None) -> dict[str, Any]:
    path = repository.from_git(name) or b""
    conflict: dict[str, Any] = {"path": shown(path), "kind": _CONFLICTS["".join(sorted(stages))]}
    if encoded := path_bytes(path):
        conflict["path_bytes"] = encoded
    conflict |= {side: stages.get(stage) for side, stage in _SIDES.items()}
    conflict |= {"exists": look(repository, name) is not None, "original_path": None}
    if own is not None and (original := repository.from_git(own)) is not None:
        conflict["original_path"] = shown(original)
        if encoded := path_bytes(original):
            conflict["original_path_bytes"] = encoded
    return conflict


def own_names(repository: Repository, names: Iterable[bytes], sides: dict[bytes, Stages]) -> dict[bytes, bytes]:
    """Of these names with conflicts those that git put beside their place, with the names of the places. Blocks.

    git does not record it (merge-ort.c, `unique_path`): it is one where neither side has such a name, but there is the one before the
    `~`, and our side of it is what stands here.
    """
    maybe = [(name, own) for name in names if not {"1", "2", "3"} <= set(sides[name]) for own in _before_tildes(name)]
    commit = head(repository) if maybe else None
    if commit is None:
        return {}
    wanted = {name for pair in maybe for name in pair}
    ours = _in_tree(repository, commit, wanted)
    lines = (line_of(os.path.join(repository.git_dir, name)) for name in _THEIRS)
    oid = next((line.decode("ascii", "replace") for line in lines if line), "")
    theirs = _in_tree(repository, oid, wanted) if oid.isalnum() else None
    found: dict[bytes, bytes] = {}
    for name, own in maybe:
        if name in found or name in ours or (theirs is not None and name in theirs):
            continue
        mine, others = sides[name].get("2"), sides[name].get("3")
        if mine is not None:
            fits = ours.get(own) == (mine["mode"], mine["oid"])
        else:
            fits = others is not None and own in ours
            # of a stash and a revert there is no commit to look at
            fits &= theirs is None or others is None or theirs.get(own) == (others["mode"], others["oid"])
        if fits:
            found[name] = own
    return found


def _before_tildes(name: bytes) -> list[bytes]:
    """What git may have called `name` before, the longest first: names and labels of sides may have a `~` of their own."""
    last = name.rpartition(b"/")[2]
    start = len(name) - len(last)
    return [name[: start + at] for at in range(len(last) - 1, 0, -1) if last[at : at + 1] == b"~"]


def _in_tree(repository: Repository, commit: str, names: Iterable[bytes]) -> dict[bytes, tuple[str, str]]:
    """Mode and id of what a commit has by these names."""
    found = {}
    for part in portions(sorted(names)):
        output = repository.run(["ls-tree", "-z", "--full-tree", commit, "--", *part])
        for line in output.out.split(b"\0")[:-1]:
            words, _, name = line.partition(b"\t")
            mode, _, oid = text(words).split(" ")
            found[name] = mode, oid
    return found


# --- settling them ----------------------------------------------------------------------------------------------------------------


async def resolve_conflicts(work: Work, *, paths: Sequence[bytes], use: Side) -> dict[str, Any]:
    """Settle conflicts: take one side whole, or what stands in the working tree (`worktree`), and put it into the index.

    A side that has no such file deletes it. Of a submodule the index alone takes the side: its folder stays as it is, as after a merge
    without conflicts. Answers the first conflicts that are left. Raises `conflict_not_found`, and `local_changes_in_way` where the side
    is a file, and a folder with other changes stands in its place.
    """
    repository = work.repository
    chosen = await work.ask(_chosen, repository, paths)
    if use == "worktree":
        names = [path for name in chosen if (path := repository.from_git(name)) is not None]
        await work.git(["add", "--all", "--force", "--sparse", *FROM_INPUT], input=listed(repository, names))
        return await work.ask(conflicts, repository, limit=ANSWERED)
    settled = await work.ask(_settled, repository, chosen, _SIDES[use])
    await work.ask(_must_have_room, repository, settled.written)
    if settled.records:
        await work.git(["update-index", "-z", "--index-info"], input=b"".join(settled.records))
    if settled.gone:
        gone = [path for name in settled.gone if (path := repository.from_git(name)) is not None]
        await work.git(["rm", "--quiet", "--force", "--sparse", *FROM_INPUT], input=listed(repository, gone))
    if settled.written:
        names_read = b"".join(name + b"\0" for name in settled.written)
        await work.git(["checkout-index", "--force", "-z", "--stdin"], input=names_read)
    return await work.ask(conflicts, repository, limit=ANSWERED)


class _Settled:
    """What is to be done, by git's names. `records`: lines for the index; `written`, `gone`: files of the working tree."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.written: list[bytes] = []
        self.gone: list[bytes] = []

    def take(self, name: bytes, side: dict[str, str]) -> None:
        """The index has this side."""
        # the stage is taken by its id: `checkout` has no flag for the base, and does not move a submodule
        self.records.append(f"{side['mode']} {side['oid']} 0\t".encode() + name + b"\0")
        if side["mode"] != SUBMODULE.decode():
            self.written.append(name)

    def leave(self, name: bytes, stages: Stages) -> None:
        """The index has it no more, nor has the working tree."""
        if any(
            side["mode"] == SUBMODULE.decode() for side in stages.values()
        ):  # `git rm` would delete the other repository
            oid = next(iter(stages.values()))["oid"]
            self.records.append(b"0 %b 0\t%b\0" % (b"0" * len(oid), name))
        else:
            self.gone.append(name)


def _settled(repository: Repository, chosen: Iterable[bytes], stage: str) -> _Settled:
    sides = unmerged(repository)
    own = own_names(repository, sides, sides)
    settled = _Settled()
    for place in dict.fromkeys(own.get(name, name) for name in chosen):
        beside = [name for name, of in own.items() if of == place]
        members = [name for name in (*beside, place) if name in sides]
        side = next((sides[name][stage] for name in members if stage in sides[name]), None)
        for name in members:
            if name != place or side is None:
                settled.leave(name, sides[name])
        if side is not None:
            settled.take(place, side)
    return settled


def _must_have_room(repository: Repository, names: Iterable[bytes]) -> None:
    """Raises `local_changes_in_way` where a folder stands in a file's place that has more in it than the index, or other things. Blocks."""
    folders = [
        name
        for name in names
        if os.path.isdir(there := os.path.join(repository.top, name)) and not os.path.islink(there)
    ]
    if folders:
        refuse(repository, in_way(repository, folders).values())
        must_be_as_staged(repository, folders)


def _chosen(repository: Repository, paths: Sequence[bytes]) -> list[bytes]:
    """The names with conflicts that these paths mean: files, and those in folders. Blocks."""
    sides = unmerged(repository)
    own = own_names(repository, sides, sides)
    wanted = [repository.to_git(path) for path in paths]
    known = set(sides) | set(own.values())
    for name in list(known):
        while name := os.path.dirname(name):
            known.add(name)
    for path, name in zip(paths, wanted, strict=True):
        if name not in known:
            raise WorkspaceError("conflict_not_found", f"{shown(path)!r} has no conflict.", path=shown(path))
    meant = set(wanted)
    return [name for name in sides if not meant.isdisjoint(_above(name)) or own.get(name) in meant]


def _above(name: bytes) -> Iterable[bytes]:
    while name:
        yield name
        name = os.path.dirname(name)
