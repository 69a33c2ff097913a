"""Commits: made, and the facts from which a message can be written."""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import shown

from .configuration import Settings
from .lists import operation
from .log import log
from .objects import look
from .prepared import prepared_message
from .repository import Repository
from .revisions import head
from .staging import FROM_INPUT, listed
from .work import Work

_PERSON = re.compile(r"[^<>\x00-\x1f\x7f]+")


async def commit(
    work: Work,
    *,
    message: str | None,
    author: tuple[str, str] | None = None,
    every: bool = False,
    paths: Sequence[bytes] = (),
    amend: bool = False,
    signoff: bool = False,
) -> dict[str, Any]:
    """Record the index, `every` change of tracked files, or only these `paths`. Answers the new commit as the log has it.

    Without a `message` git's own is taken, where it has one: of the commit that is amended, or of the merge that is under way.
    Raises `nothing_to_commit`, `merge_conflict`, `identity_missing`, `hook_refused` and others.
    """
    repository = work.repository
    flags: list[str] = []
    if amend:
        if await work.ask(head, repository) is None:
            raise WorkspaceError("nothing_to_commit", "There is no commit yet that could be amended.")
        if message is None:
            flags = ["--no-edit"]
    elif message is None:
        message, flags = await work.ask(_message, repository)
    arguments = ["commit", "--quiet"]
    committer: Settings = []
    if author is not None:
        name, email = author
        if not (_PERSON.fullmatch(name.strip()) and _PERSON.fullmatch(email.strip())):
            raise WorkspaceError("identity_invalid", "author: name and email must be one line of text without < and >.")
        arguments.append(f"--author={name.strip()} <{email.strip()}>")
        # where git knows nobody else, the author has also committed it; what the environment says of the committer goes before
        known = repository.configuration
        committer = [
            (key, value.strip())
            for key, value in (("user.name", name), ("user.email", email))
            if known.last(key) is None
        ]
    arguments += [flag for flag, wanted in (("--all", every), ("--amend", amend), ("--signoff", signoff)) if wanted]
    arguments += flags
    async with contextlib.AsyncExitStack() as stack:
        if message is not None:
            arguments.append(f"--file={await stack.enter_async_context(work.message(message))}")
        if paths:
            arguments += ["--only", *FROM_INPUT]
        try:
            await work.git(arguments, input=listed(repository, paths), settings=committer)
        except WorkspaceError as fault:
            if fault.code == "file_not_found" and paths:
                raise await work.ask(_unknown, repository, paths, fault) from None
            raise
    after = await work.ask(head, repository)
    if after is None:
        raise WorkspaceError("nothing_to_commit", "There was nothing to commit.")
    found = await work.ask(log, repository, ref=after, path=None, author=None, q=None, limit=1, cursor=None)
    return {"oid": after, "commit": found["items"][0]}


def _unknown(repository: Repository, paths: Sequence[bytes], fault: WorkspaceError) -> WorkspaceError:
    """The refusal of paths that git does not know; of one that is there, what to do about it. Blocks."""
    for path in paths:
        told = repository.run(["ls-files", "-z", "--error-unmatch", *repository.paths([path])])
        if told.status != 0:
            there = look(repository, repository.to_git(path)) is not None
            what = "is not tracked by git: stage it first." if there else "is not there, and git knows no such file."
            return WorkspaceError("file_not_found", f"{shown(path)!r} {what}", path=shown(path), **fault.data)
    return fault


def _message(repository: Repository) -> tuple[str | None, list[str]]:
    """The message that git has for what is under way, and how git is told to take it otherwise. Blocks. Raises `message_missing`."""
    text = prepared_message(repository) if operation(repository) is not None else None
    if text is None:
        raise WorkspaceError("message_missing", "A commit needs a message.")
    try:
        return text.decode(), []
    except UnicodeDecodeError:  # in an encoding of the user's: git has to read it by itself, and takes all comments out
        return None, ["--no-edit", "--cleanup=strip"]
