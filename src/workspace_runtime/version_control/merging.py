"""Merges and rebases, and what goes on with one that conflicts have stopped."""

import asyncio
import os
from typing import Any, Literal

from workspace_runtime.errors import WorkspaceError

from . import autostash
from .configuration import Settings
from .lists import operation
from .mounted import refuse_removed
from .obstacles import in_way, must_be_free
from .plain_files import open_file
from .prepared import prepared_message
from .repository import Repository
from .revisions import full_name, head, resolve
from .stashing import forget
from .stops import left_behind, stopped_by_conflicts
from .switching import where
from .work import Work

_MAX_TODO = 16 * 1024 * 1024
# of a message that a person would see in an editor: nothing is added to it, and nothing taken out
_AS_IT_IS: Settings = [("commit.cleanup", "whitespace"), ("commit.status", "false")]
_BROUGHT_BACK = "Applied autostash."
Fast = Literal["ff", "ff-only", "no-ff", "squash"]
Kind = Literal["merge", "rebase", "am", "cherry-pick", "revert", "bisect"]
Step = Literal["continue", "abort", "skip"]


async def merge(work: Work, *, ref: str, mode: Fast | None = None, message: str | None = None) -> dict[str, Any]:
    """Merge a revision into what is checked out. A conflict is 409 `merge_conflict`: the merge is then under way."""
    repository = work.repository
    oid = await work.ask(resolve, repository, ref)
    before = await work.ask(head, repository)
    await work.ask(must_be_free, repository, oid, before=before, merged=True)
    name = await work.ask(_name, repository, ref, oid)
    arguments = ["merge", "--quiet", "--no-edit", *([f"--{mode}"] if mode else [])]
    if mode == "squash":
        left = await stopped_by_conflicts(work, [*arguments, name])
    else:
        if message is None:  # the list of commits that is configured is in it
            arguments.append("--no-log")
            message = await work.ask(_message, repository, ref, oid)
        async with work.message(message) as file:
            left = await stopped_by_conflicts(work, [*arguments, f"--file={file}", name])
    return {**(await work.ask(where, repository)), "before": before, **left}


def _name(repository: Repository, ref: str, oid: str) -> str:
    """What git is told to merge: a branch by its name, which git writes beside the lines that conflict; all else by the id. Blocks.

    git looks up the name once more. What comes to the branch in that moment is merged as well, as in a terminal.
    """
    full = full_name(repository, ref, oid)
    is_branch = full.startswith(("refs/heads/", "refs/remotes/")) and (full == ref or full.endswith(f"/{ref}"))
    return ref if is_branch and ref != "FETCH_HEAD" else oid


def _message(repository: Repository, ref: str, oid: str) -> str:
    """The message that git itself would give a merge of this name, since it only sees an id. Blocks."""
    full = full_name(repository, ref, oid)
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
    left = await stopped_by_conflicts(work, ["rebase", "--quiet", *stash, oid])
    return {**(await work.ask(where, repository)), "before": before, **left}


async def proceed(work: Work, *, kind: Kind, step: Step) -> dict[str, Any]:
    """Go on with what is under way, skip the commit that it stopped at, or undo it. Raises `operation_not_under_way`."""
    repository = work.repository
    under_way = await work.ask(operation, repository)
    if under_way is None or under_way["kind"] != kind:
        what = f"a {under_way['kind']} is" if under_way else "nothing is"
        raise WorkspaceError("not_under_way", f"No {kind} is under way: {what}.", operation=under_way)
    if step != "continue":
        await work.ask(refuse_removed, repository, [], lambda: _replaced(repository))
    if (kind, step) == ("bisect", "abort"):
        left = await left_behind(work, await work.git(["bisect", "reset"]))
    elif kind == "bisect" or (kind, step) == ("merge", "skip"):
        raise WorkspaceError("step_not_possible", f"A {kind} has no {step}.")
    elif (kind, step) == ("merge", "abort"):
        left = await _abort_merge(work)
    elif step == "abort":
        left = await left_behind(work, await work.git([kind, "--abort"]))
    else:
        if kind == "rebase" and not work.repository.trusted and await work.ask(_runs_commands, repository):
            raise WorkspaceError(
                "step_not_possible", "The rebase has commands to run, and the repository is not trusted."
            )
        left = await _go_on(work, kind, step)
    return {**(await work.ask(where, repository)), "operation": await work.ask(operation, repository), **left}


async def _go_on(work: Work, kind: Kind, step: Step) -> dict[str, Any]:
    """Continue or skip. The message of a commit that a conflict has stopped is recorded as it is: git would have a person edit it, and
    so takes lines out that begin like a comment."""
    repository = work.repository
    if kind == "rebase":
        as_it_is = [] if await work.ask(_puts_together, repository) else _AS_IT_IS
        return await stopped_by_conflicts(work, [kind, f"--{step}"], settings=as_it_is)
    text = await work.ask(_message_waiting, repository, kind) if step == "continue" else None
    if text is None:
        return await stopped_by_conflicts(work, [kind, f"--{step}"])
    async with work.message(text) as file:
        left = await stopped_by_conflicts(work, ["commit", "--quiet", "--cleanup=whitespace", f"--file={file}"])
    under_way = await work.ask(operation, repository)
    if kind != "merge" and under_way is not None and under_way["kind"] == kind:
        return await stopped_by_conflicts(work, [kind, "--continue"])
    return left


def _message_waiting(repository: Repository, kind: Kind) -> str | None:
    """The message of the commit that waits to be made; None where none waits, and where only git can read it. Blocks."""
    head_of = {"merge": b"MERGE_HEAD", "cherry-pick": b"CHERRY_PICK_HEAD", "revert": b"REVERT_HEAD"}.get(kind)
    if head_of is None or not os.path.lexists(os.path.join(repository.git_dir, head_of)):
        return None
    text = prepared_message(repository)
    try:
        return text.decode() if text else None
    except UnicodeDecodeError:
        return None


async def _abort_merge(work: Work) -> dict[str, Any]:
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
    return await left_behind(work, output)


def _replaced(repository: Repository) -> list[bytes]:
    """What git may delete, whole folders too, when it goes back by force: what stands in the place of a file that it would write. Blocks."""
    names = set(repository.read(["ls-files", "-z", "--full-name"]).split(b"\0"))
    for ref in ("HEAD", "ORIG_HEAD"):
        output = repository.run(["ls-tree", "-r", "-z", "--full-tree", "--name-only", ref])
        names.update(output.out.split(b"\0") if output.status == 0 and not output.cut else ())
    return list(in_way(repository, names - {b""}).values())


def _runs_commands(repository: Repository) -> bool:
    """Whether what is left of a rebase runs commands (git-rebase(1), `exec`), or may do so. Blocks."""
    words = _todo(repository)
    return words is None or not words.isdisjoint((b"exec", b"x"))


def _puts_together(repository: Repository) -> bool:
    """Whether a rebase makes one message of several: what git writes between them is to be taken out as comments. Blocks."""
    folder = os.path.join(repository.git_dir, b"rebase-merge")
    if any(os.path.lexists(os.path.join(folder, name)) for name in (b"message-squash", b"message-fixup")):
        return True
    words = _todo(repository)
    return words is None or not words.isdisjoint((b"squash", b"s", b"fixup", b"f"))


def _todo(repository: Repository) -> set[bytes] | None:
    """The commands that a rebase has still to do, each once; None where they can't be read. Blocks.

    As git reads them (sequencer.c, `parse_insn_line`): blanks may stand before a command, and a blank or a tab after it.
    """
    path = os.path.join(repository.git_dir, b"rebase-merge/git-rebase-todo")
    opened = open_file(path)
    if opened is None:
        return None if os.path.lexists(path) else set()
    with opened as file:
        text = file.read(_MAX_TODO + 1)
    if len(text) > _MAX_TODO:
        return None
    return {words[0] for line in text.split(b"\n") if (words := line.split(maxsplit=1))}
