"""git's own account of a run (trace2, api-trace2(7)): which hook refused, what git itself said, and which filters it started.

What comes on a run's standard error may have been printed by a hook, a filter or any other program that git has started, in git's own
words too. Of the account only git is the author.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

# What a git starts of its own accord as a part of its work, as trace2 names it. A git that a hook started, or the one at the other
# side of a push, is somebody else's.
_PARTS = re.compile(
    r"(pull/)?(merge|rebase|fetch)|((pull/)?rebase|cherry-pick|revert)/(commit|am|merge)|fetch/fetch"
    r"|((pull/)?fetch|clone|push)/(remote-https?|(remote-https?/)?(send-pack|fetch-pack|index-pack|unpack-objects))"
    r"|stash/[a-z-]+|worktree/(branch|reset)|bisect/[a-z-]+"
)


@dataclass(slots=True)
class Account:
    """`refused`: the hooks that ended with another status than 0, in that order; `errors`: what git itself said, without the word that
    stands before it on standard error; `filters`: the commands of the processes that filter."""

    refused: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)
    hooks: bool = False  # some ran


def read(trace: bytes) -> Account:
    """The account in what git wrote to `GIT_TRACE2_EVENT`: a JSON object a line, of this git and of those that it or a hook started."""
    account = Account()
    names: dict[tuple[str, int], str] = {}
    for sid, event in _ours(trace):
        kind = event.get("event")
        if kind == "child_start" and event.get("child_class") == "hook":
            name = str(event.get("hook_name", "hook"))
            account.hooks = True
            # only there it can stop anything (githooks(5))
            if name != "reference-transaction" or event["argv"][-1] == "prepared":
                names[sid, event["child_id"]] = name
        elif kind == "child_start" and event.get("child_class") == "subprocess":
            account.filters.append(str(event["argv"][-1]))
        elif kind == "child_exit" and event.get("code") and (sid, event.get("child_id")) in names:
            account.refused.append(names[sid, event["child_id"]])
        elif kind == "error" and event.get("msg"):
            account.errors.append(str(event["msg"]))
    return account


def _ours(trace: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of this git, and of those that are a part of its work."""
    ours: set[str] = set()
    for line in trace.splitlines():
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:  # cut by the end of the process
            continue
        sid = str(event.get("sid", "/"))
        if event.get("event") == "cmd_name" and _PARTS.fullmatch(str(event.get("hierarchy"))):
            ours.add(sid)
        if "/" not in sid or sid in ours:
            yield sid, event
