"""What a commit message can be written from: an agent, or a person, gets the facts in one answer."""

from typing import Any

from .diff import Diff, files_of
from .lists import operation
from .log import log
from .prepared import prepared_message
from .repository import Repository
from .revisions import empty_tree, head
from .switching import where

_RECENT = 10
MAX_PATCH = 256 * 1024
_LINE = 1  # its end


def draft(repository: Repository) -> dict[str, Any]:
    """The facts of the commit to come: `head`, `operation`, staged `files` with their hunks, the subjects of `recent` commits (their
    style is the project's), and the message that git has `prepared` for a merge. Blocks."""
    repository.need_worktree()
    oid = head(repository)
    staged = files_of(repository, ["diff", "--cached", oid or empty_tree(repository)], Diff(target="index"))
    size = 0
    for file in staged["files"]:
        size += sum(len(line["content"]) + _LINE for hunk in file["hunks"] for line in hunk["lines"])
        if size > MAX_PATCH:
            file["hunks"], file["truncated"] = [], True
    prepared = prepared_message(repository)
    recent = log(repository, ref=None, path=None, author=None, q=None, limit=_RECENT, cursor=None)
    return {
        **where(repository),
        "operation": operation(repository),
        **staged,
        "recent": [commit["subject"] for commit in recent["items"]],
        "prepared": prepared.decode("utf-8", "replace") if prepared else None,
    }
