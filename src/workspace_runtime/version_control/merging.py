"""Merges and rebases, and the conflicts that stop them."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Literal

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import shown

from . import autostash
from .lists import conflicts, operation
from .obstacles import must_be_free
from .plain_files import line_of
from .repository import Repository
from .revisions import full_name, head, resolve
from .staging import FROM_INPUT, listed
from .stashing import forget
from .switching import where
from .work import Work

_MAX_TODO = 16 * 1024 * 1024
_BROUGHT_BACK = "Applied autostash."
Fast = Literal["ff", "ff-only", "no-ff", "squash"]
Kind = Literal["merge", "rebase", "am", "cherry-pick", "revert", "bisect"]
Step = Literal["continue", "abort", "skip"]
Side = Literal["ours", "theirs", "base", "worktree"]


async def merge(work: Work, *, ref: str, mode: Fast | None = None, message: str | None = None) -> dict[str, Any]:
    """Merge a revision into what is checked out. A conflict is 409 `merge_conflict`: the merge is then under way."""
    repository = work.repository
    oid = await work.ask(resolve, repository, ref)
    before = await work.ask(head, repository)
    await work.ask(must_be_free, repository, oid, before=before, merged=True)
    arguments = ["merge", "--quiet", "--no-edit", *([f"--{mode}"] if mode else [])]
    if mode == "squash":
        await stopped_by_conflicts(work, [*arguments, oid])
    else:
        text = message if message is not None else await work.ask(_message, repository, ref, oid)
        async with work.message(text) as file:
            await stopped_by_conflicts(work, [*arguments, f"--file={file}", oid])
    return {**(await work.ask(where, repository)), "before": before}


def _message(repository: Repository, ref: str, oid: str) -> str:
    """The message that git itself would give a merge of this name, since it only sees an id. Blocks."""
    full = full_name(repository, ref)
    kind = "commit"
    for prefix, word in (("refs/heads/", "branch"), ("refs/remotes/", "remote-tracking branch"), ("refs/tags/", "tag")):
        if full.startswith(prefix):
            kind, ref = word, full.removeprefix(prefix)
    of = "" if kind == "commit" else " of ."
    return repository.read(["fmt-merge-msg"], input=f"{oid}\t\t{kind} '{ref}'{of}\n".encode()).decode(
        "utf-8", "replace"
    )


async def rebase(work: Work, *, onto: str, autostash: bool | None = None) -> dict[str, Any]:
    """Put the commits of what is checked out onto another revision. A conflict is 409 `merge_conflict`: the rebase waits then."""
    repository = work.repository
    oid = await work.ask(resolve, repository, onto, field="onto")
    before = await work.ask(head, repository)
    await work.ask(must_be_free, repository, oid, before=before)
    stash = [] if autostash is None else ["--autostash" if autostash else "--no-autostash"]
    await stopped_by_conflicts(work, ["rebase", "--quiet", *stash, oid])
    return {**(await work.ask(where, repository)), "before": before}


async def proceed(work: Work, *, kind: Kind, step: Step) -> dict[str, Any]:
    """Go on with what is under way, skip the commit that it stopped at, or undo it. Raises `operation_not_under_way`."""
    repository = work.repository
    under_way = await work.ask(operation, repository)
    if under_way is None or under_way["kind"] != kind:
        what = f"a {under_way['kind']} is" if under_way else "nothing is"
        raise WorkspaceError("not_under_way", f"No {kind} is under way: {what}.", operation=under_way)
    if (kind, step) == ("bisect", "abort"):
        await work.git(["bisect", "reset"])
    elif kind == "bisect" or (kind, step) == ("merge", "skip"):
        raise WorkspaceError("step_not_possible", f"A {kind} has no {step}.")
    elif (kind, step) == ("merge", "abort"):
        await _abort_merge(work)
    elif step == "abort":
        await work.git([kind, "--abort"])
    else:
        if kind == "rebase" and not work.repository.trusted and await work.ask(_has_commands, repository):
            raise WorkspaceError(
                "step_not_possible", "The rebase has commands to run, and the repository is not trusted."
            )
        await stopped_by_conflicts(work, [kind, f"--{step}"])
    return {**(await work.ask(where, repository)), "operation": await work.ask(operation, repository)}


async def _abort_merge(work: Work) -> None:
    """Undo a merge. git forgets where the changes are that it took away before the merge, and then brings them back: so they are a
    stash until that is done."""
    stash = await work.ask(autostash.of_merge, work.repository)
    try:
        output = await work.git(["merge", "--abort"])
    except WorkspaceError as fault:
        if stash is not None:
            fault.data["stash"] = stash
        raise
    except asyncio.CancelledError:
        if stash is not None:
            work.operation.notes["stash"] = stash
        raise
    if stash is not None and _BROUGHT_BACK in output.err:
        await forget(work, stash)


def _has_commands(repository: Repository) -> bool:
    """Whether what is left of a rebase runs commands (git-rebase(1), `exec`)."""
    todo = line_of(os.path.join(repository.git_dir, b"rebase-merge/git-rebase-todo"), _MAX_TODO) or b""
    return any(line.split(b" ")[0] in (b"exec", b"x") for line in todo.split(b"\n"))


async def stopped_by_conflicts(work: Work, arguments: Sequence[str], **how: Any) -> None:
    """Run a command that conflicts may stop. Raises `merge_conflict` with them, whatever words git had."""
    try:
        await work.git(arguments, **how)
    except WorkspaceError as fault:
        found = await work.ask(conflicts, work.repository)
        if not found["items"]:
            raise
        under_way = await work.ask(operation, work.repository)
        files = [item["path"] for item in found["items"]]
        raise WorkspaceError(
            "merge_conflict",
            f"{len(files)} files have conflicts. Resolve them, then continue or abort.",
            files=files[:1000], operation=under_way, output=fault.data.get("output"),
        ) from None  # fmt: skip


async def resolve_conflicts(work: Work, *, paths: Sequence[bytes], use: Side) -> dict[str, Any]:
    """Settle conflicts: take one side whole, or what stands in the working tree (`worktree`), and put it into the index.

    A side that has no such file deletes it. Raises `conflict_not_found`.
    """
    repository = work.repository
    chosen = await work.ask(_chosen, repository, paths)
    if use == "base":
        # `checkout` has no flag for it: the stage is written by its id
        for path, sides in chosen.items():
            if sides["base"] is not None:
                line = f"{sides['base']['mode']} {sides['base']['oid']} 0\t".encode() + repository.to_git(path) + b"\0"
                await work.git(["update-index", "-z", "--index-info"], input=line)
                await work.git(["checkout-index", "--force", "-z", "--stdin"], input=repository.to_git(path) + b"\0")
        gone = [path for path, sides in chosen.items() if sides["base"] is None]
    elif use == "worktree":
        gone = []
        await work.git(["add", "--all", "--force", *FROM_INPUT], input=listed(repository, list(chosen)))
    else:
        there = [path for path, sides in chosen.items() if sides[use] is not None]
        gone = [path for path, sides in chosen.items() if sides[use] is None]
        if there:
            await work.git(["checkout", "--quiet", f"--{use}", *FROM_INPUT], input=listed(repository, there))
            await work.git(["add", "--force", *FROM_INPUT], input=listed(repository, there))
    if gone:
        await work.git(["rm", "--quiet", "--force", *FROM_INPUT], input=listed(repository, gone))
    return await work.ask(conflicts, repository)


def _chosen(repository: Repository, paths: Sequence[bytes]) -> dict[bytes, dict[str, Any]]:
    """The three sides of these files. Blocks."""
    sides: dict[bytes, dict[str, Any]] = {}
    listing = repository.read(["ls-files", "--unmerged", "-z", "--full-name", *repository.paths(paths)])
    for record in listing.split(b"\0"):
        if record:
            facts, _, name = record.partition(b"\t")
            mode, oid, stage = facts.decode().split(" ")
            path = repository.from_git(name)
            if path is not None:
                side = ("base", "ours", "theirs")[int(stage) - 1]
                sides.setdefault(path, {"base": None, "ours": None, "theirs": None})[side] = {"mode": mode, "oid": oid}
    for path in paths:
        if path not in sides:
            raise WorkspaceError("conflict_not_found", f"{shown(path)!r} has no conflict.", path=shown(path))
    return sides
