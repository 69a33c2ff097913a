"""Commands that conflicts may stop, or that leave conflicts behind although they have come to their end.

What git says of either differs by command and by version, so the index tells whether there are conflicts. That an autostash could not
be brought back git tells by words alone: its status is that of the command, which has done what it should.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import shown

from .autostash import entries
from .conflicts import unmerged
from .git import Output
from .lists import operation
from .repository import Repository
from .work import Work

_MAX_NAMED = 1000
_KEPT = "Your changes are safe in the stash."  # sequencer.c, `apply_save_autostash_oid`
_MESSAGE = "autostash"
_STAGED = "would be overwritten by"
_ANY = re.compile(r"^error: cannot (?:pull with )?rebase: ", re.MULTILINE)


async def stopped_by_conflicts(work: Work, arguments: Sequence[str], **how: Any) -> dict[str, Any]:
    """Run a command that conflicts may stop; answers as `left_behind`. Raises `merge_conflict` with the `files`, whatever words git
    had, and `local_changes_in_way` with the `paths`."""
    try:
        output = await work.git(arguments, **how)
    except WorkspaceError as fault:
        found = await work.ask(unmerged, work.repository)
        if not found:
            if fault.code == "local_changes_in_way" and not fault.data["paths"]:
                fault.data["paths"] = await work.ask(_in_way, work.repository, fault.data["output"])
            raise
        under_way = await work.ask(operation, work.repository)
        raise WorkspaceError(
            "merge_conflict",
            f"{len(found)} files have conflicts. "
            + ("Resolve them, then continue or abort." if under_way else "Resolve them."),
            files=_files(work.repository, found), operation=under_way, output=fault.data.get("output"),
        ) from None  # fmt: skip
    return await left_behind(work, output)


async def left_behind(work: Work, output: Output) -> dict[str, Any]:
    """What an autostash has left that a command, otherwise done, could not bring back: the id of the `stash` that has it, None where
    all is well, and the `files` with conflicts; and `warnings`, where there are any, of what git could not do."""
    warned = {"warnings": output.warnings} if output.warnings else {}
    if _KEPT not in output.err:
        return {"stash": None, "files": [], **warned}
    listed = await work.ask(entries, work.repository)
    stash = next((oid for oid, told in listed if told.endswith(_MESSAGE)), None)
    files = _files(work.repository, await work.ask(unmerged, work.repository))
    return {"stash": stash, "files": files, **warned}


def _files(repository: Repository, names: Iterable[bytes]) -> list[str]:
    return [shown(repository.from_git(name) or b"") for name in names][:_MAX_NAMED]


def _in_way(repository: Repository, words: str) -> list[str]:
    """The tracked files with changes that git means where it lists none, or all on one line with blanks between them. Blocks."""
    if not (_ANY.search(words) or _STAGED in words):
        return []
    command = [
        "diff",
        *([] if _ANY.search(words) else ["--cached"]),
        "--name-only",
        "-z",
        "--no-renames",
        "--no-ext-diff",
    ]
    output = repository.run([*command, "--ignore-submodules=dirty", "HEAD", *repository.limits])
    found = (repository.from_git(name) for name in output.out.split(b"\0") if name)
    return [shown(path) for path in found if path is not None][:_MAX_NAMED]
