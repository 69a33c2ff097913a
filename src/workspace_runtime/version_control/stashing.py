"""The stash: changes put away, and brought back. One is named by its place, or surer by its id, since places move.

git forgets a stash by its place alone, and any program may make another one at any moment. So a stash is known by its id here from
the first look on, and after git has forgotten one it is looked which one that was.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import shown
from workspace_runtime.processes import finish

from .autostash import entries, store
from .credentials import tellable
from .git import succeeded
from .lists import all_stashes, operation
from .mounted import cleaned, refuse_removed
from .obstacles import MAX_NAMED, in_way, intended, must_be_free
from .repository import Repository, portions
from .revisions import head
from .staging import FROM_INPUT, listed
from .stops import stopped_by_conflicts
from .work import Work

_NOTHING = b"No local changes to save"
_UNTRACKED = "--include-untracked"
_CHANGED = ("ls-files", "-z", "--full-name", "--modified", "--deleted")
_MAX_LOOKED_AT = 1024 * 1024
_DROPPED = re.compile(rb"\(([0-9a-f]{40,64})\)\s*$")
# What `git reset --hard` forgets, which is how git empties the working tree.
_ENDED_BY_IT = ("merge", "cherry-pick", "revert")
_TRIES = 8
_FORGETTING_S = 20.0


async def put_away(
    work: Work, arguments: Sequence[str], *, message: str | None = None, paths: Sequence[bytes] = ()
) -> str | None:
    """Make a stash by `git stash push`: its id, None where there was nothing for it, or is no commit yet.

    Where that fails or is cancelled, the stash may have been made: its id is `stash` in the error then. Raises `file_busy` before anything
    is changed where something is mounted in what git would delete.
    """
    if await work.ask(head, work.repository) is None:
        return None
    if _UNTRACKED in arguments and not await work.ask(_has_untracked, work.repository, paths):
        arguments = [flag for flag in arguments if flag != _UNTRACKED]
    await work.ask(_must_not_be_mounted, work.repository, arguments, paths)
    before = await work.ask(entries, work.repository)
    told = [f"--message={message}"] if message else []
    from_input = FROM_INPUT if paths else ()
    try:
        output = await work.git(["stash", "push", *arguments, *told, *from_input], input=listed(work.repository, paths))
        if _NOTHING in output.out:
            return None
        # one that equals the latest, made in the same second, is the latest
        made = await work.ask(_made, work.repository, before, message) or await work.ask(_latest, work.repository)
    except WorkspaceError as fault:
        if stash := await work.at_last(_made, before, message):
            fault.data["stash"] = stash
        if fault.code in ("git_failed", "local_changes_in_way") and (
            names := await work.ask(intended, work.repository)
        ):
            raise _intended(work.repository, names, fault) from None
        raise
    except asyncio.CancelledError:
        if stash := await work.at_last(_made, before, message):
            work.operation.notes["stash"] = stash
        raise
    work.operation.notes["stash"] = made  # from here on it must be told of, also if what follows is cancelled
    return made


def _intended(repository: Repository, names: Sequence[bytes], fault: WorkspaceError) -> WorkspaceError:
    """The refusal of a stash that git can't make, since the index has names without a content."""
    paths = [shown(path) for name in names if (path := repository.from_git(name)) is not None]
    return WorkspaceError(
        "path_intended",
        f"{', '.join(map(repr, paths[:3]))}: only announced (git add --intent-to-add), which no stash can hold. Stage it whole, or unstage it.",
        **{**fault.data, "paths": paths[:MAX_NAMED]},
    )


def _has_untracked(repository: Repository, paths: Sequence[bytes]) -> bool:
    """Whether there are untracked files (of these paths) that git would put away. Blocks.

    For another repository in the working tree, which stays where it is, git would make a stash without anything in it.
    """
    for part in portions(paths) if paths else [[]]:
        command = ["ls-files", "-z", "--others", "--exclude-standard", *repository.paths(part)]
        output = repository.run(command, limit=_MAX_LOOKED_AT)
        if not succeeded(output):
            raise repository.failed(output)
        if output.cut or any(name and not name.endswith(b"/") for name in output.out.split(b"\0")):
            return True
    return False


def _must_not_be_mounted(repository: Repository, arguments: Sequence[str], paths: Sequence[bytes]) -> None:
    """Raises `file_busy` where something is mounted in what git deletes after it has made such a stash: untracked files, and what stands
    in the place of files with changes. Blocks."""
    within = [repository.to_git(path) for path in paths]

    def removed() -> list[bytes]:
        found: list[bytes] = []
        for part in portions(within) if within else [[]]:
            if _UNTRACKED in arguments:
                found += cleaned(repository, part)
            if "--staged" not in arguments:
                changed = repository.read([*_CHANGED, "--", *part]).split(b"\0")
                found += in_way(repository, filter(None, changed)).values()
        return found

    refuse_removed(repository, within, removed)


def _made(repository: Repository, before: list[tuple[str, str]], message: str | None) -> str | None:
    """The stash that is in the list since then, and has this message. Blocks."""
    known = {oid for oid, _ in before}
    wanted = " ".join(message.split()) if message else None
    for oid, told in entries(repository):
        words = " ".join(told.split())
        if oid not in known and (words.startswith("WIP on ") if wanted is None else words.endswith(f": {wanted}")):
            return oid
    return None


def _latest(repository: Repository) -> str | None:
    return next((oid for oid, _ in entries(repository)), None)


async def push(
    work: Work, *, message: str | None, include_untracked: bool, keep_index: bool, staged: bool, paths: Sequence[bytes]
) -> dict[str, Any]:
    """Put changes away: all, those of `paths`, or only the `staged` ones. Raises `nothing_to_stash`, and `operation_in_progress`
    where git would forget the merge (or the like) that is under way."""
    if not paths:
        under_way = await work.ask(operation, work.repository)
        if under_way is not None and under_way["kind"] in _ENDED_BY_IT:
            raise in_progress(under_way)
    flags = ((_UNTRACKED, include_untracked), ("--keep-index", keep_index), ("--staged", staged))
    arguments = [flag for flag, wanted in flags if wanted]
    oid = await put_away(work, arguments, message=message, paths=paths)
    made = await work.ask(all_stashes, work.repository)
    found = next((stash for stash in made if stash["oid"] == oid), None)
    if oid is None or found is None:
        raise WorkspaceError("nothing_to_stash", "There are no such changes to put away.")
    return {"stash": found}


def in_progress(under_way: dict[str, Any]) -> WorkspaceError:
    """The refusal of what would end, or needs the end of, what is under way."""
    return WorkspaceError(
        "operation_in_progress", f"A {under_way['kind']} is under way: continue or abort it first.", operation=under_way
    )


async def apply(work: Work, *, name: str, index: bool, pop: bool) -> dict[str, Any]:
    """Bring a stash back; with `index` what was staged is staged again; `pop` drops it afterwards. Raises `merge_conflict`,
    `local_changes_in_way`: then the stash is kept."""
    found = await work.ask(_find, work.repository, name)
    await bring_back(work, found["oid"], index=index, pop=pop)
    return {"stash": found}


async def bring_back(work: Work, oid: str, *, index: bool, pop: bool = True) -> None:
    """Apply the stash with this id, and with `pop` forget it when that is done."""
    await work.ask(must_be_free, work.repository, oid, before=f"{oid}^1")
    await stopped_by_conflicts(work, ["stash", "apply", *(["--index"] if index else []), "--quiet", oid])
    if pop:
        await forget(work, oid)


async def drop(work: Work, *, name: str) -> dict[str, Any]:
    """Forget a stash."""
    found = await work.ask(_find, work.repository, name)
    if not await forget(work, found["oid"]):
        raise _missing(name)
    return {"stash": found}


async def forget(work: Work, oid: str) -> bool:
    """Take the stash with this id out of the list, and no other; whether it was there. What has begun is ended when this is
    cancelled."""
    result: list[bool] = []

    async def run() -> None:
        try:
            async with asyncio.timeout(_FORGETTING_S):
                result.append(await _forget(work, oid))
        except TimeoutError:
            raise WorkspaceError("git_timeout", "The stash could not be forgotten in time: look at the list.") from None

    await finish(run())
    return result[0]


async def _forget(work: Work, oid: str) -> bool:
    for _ in range(_TRIES):
        before = [id for id, _ in await work.at_last(entries)]
        if oid not in before:
            return False
        output = await work.git(["stash", "drop", f"refs/stash@{{{before.index(oid)}}}"])
        told = _DROPPED.search(output.out)
        after = [id for id, _ in await work.at_last(entries)]
        # git looks up the id, and then the place: it may tell of one and have dropped another
        right = told is not None and told[1].decode() == oid and after.count(oid) < before.count(oid)
        if right:
            return True
        wrong = [id for id in before if id not in after and id != oid]
        for lost in dict.fromkeys([*([told[1].decode()] if told else []), *wrong]):
            if lost != oid:
                await work.at_last(store, lost)
    raise WorkspaceError("repository_locked", "Others change the stashes all the time: try again.")


def _find(repository: Repository, name: str) -> dict[str, Any]:
    """A stash by its place or id. Blocks. Raises `stash_not_found`."""
    for stash in all_stashes(repository):
        if name in (str(stash["index"]), stash["oid"]):
            return stash
    raise _missing(name)


def _missing(name: str) -> WorkspaceError:
    return WorkspaceError(
        "stash_not_found", f"There is no stash {tellable(name)!r}: list them, places move when one goes."
    )
