"""The stash: changes put away, and brought back. One is named by its place, or surer by its id, since places move."""

from collections.abc import Sequence
from typing import Any

from workspace_runtime.errors import WorkspaceError

from .lists import stashes
from .repository import Repository
from .staging import FROM_INPUT, listed
from .work import Work

_NOTHING = b"No local changes to save"


async def put_away(work: Work, arguments: Sequence[str], paths: Sequence[bytes] = ()) -> bool:
    """Make a stash by `git stash push`; whether there was something for it. Its words tell: the list does not get longer by a stash
    that equals the last one, made in the same second."""
    from_input = FROM_INPUT if paths else ()
    output = await work.git(["stash", "push", *arguments, *from_input], input=listed(work.repository, paths))
    return _NOTHING not in output.out


async def push(
    work: Work, *, message: str | None, include_untracked: bool, keep_index: bool, staged: bool, paths: Sequence[bytes]
) -> dict[str, Any]:
    """Put changes away: all, those of `paths`, or only the `staged` ones. Raises `nothing_to_stash`."""
    flags = (("--include-untracked", include_untracked), ("--keep-index", keep_index), ("--staged", staged))
    arguments = [flag for flag, wanted in flags if wanted]
    if message:
        arguments.append(f"--message={message}")
    if not await put_away(work, arguments, paths):
        raise WorkspaceError("nothing_to_stash", "There are no such changes to put away.")
    made = (await work.ask(stashes, work.repository))["items"]
    if not made:  # git had other words for it
        raise WorkspaceError("nothing_to_stash", "There are no such changes to put away.")
    return {"stash": made[0]}


async def apply(work: Work, *, name: str, index: bool, pop: bool) -> dict[str, Any]:
    """Bring a stash back; with `index` what was staged is staged again; `pop` drops it afterwards. Raises `merge_conflict`,
    `local_changes_in_way`: then the stash is kept."""
    found = await work.ask(_find, work.repository, name)
    how = ["pop" if pop else "apply", *(["--index"] if index else [])]
    await work.git(["stash", *how, "--quiet", f"stash@{{{found['index']}}}"])
    return {"stash": found}


async def drop(work: Work, *, name: str) -> dict[str, Any]:
    """Forget a stash."""
    found = await work.ask(_find, work.repository, name)
    await work.git(["stash", "drop", "--quiet", f"stash@{{{found['index']}}}"])
    return {"stash": found}


def _find(repository: Repository, name: str) -> dict[str, Any]:
    """A stash by its place or id. Blocks. Raises `stash_not_found`."""
    for stash in stashes(repository)["items"]:
        if name in (str(stash["index"]), stash["oid"]):
            found: dict[str, Any] = stash
            return found
    raise WorkspaceError("stash_not_found", f"There is no stash {name!r}: list them, places move when one goes.")
