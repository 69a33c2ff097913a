"""Which hook refused: read from git's own account of what it started (trace2, api-trace2(7)), since a hook may print anything."""

import re

import orjson

# What a git starts of its own accord as a part of its work, as trace2 names it. A git that a hook started, or the one at the other
# side of a push, is somebody else's.
_PARTS = re.compile(r"(pull/)?(merge|rebase|fetch)|((pull/)?rebase|cherry-pick|revert)/(commit|am|merge)|fetch/fetch")


def refused_by(trace: bytes) -> list[str]:
    """The names of the hooks that ended with another status than 0, in that order.

    `trace` is what git wrote to `GIT_TRACE2_EVENT`: a JSON object a line, of this git and of those that it or a hook started.
    """
    ours: set[str] = set()
    names: dict[tuple[str, int], str] = {}
    refused = []
    for line in trace.splitlines():
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:  # cut by the end of the process
            continue
        sid = str(event.get("sid", "/"))
        if event.get("event") == "cmd_name" and _PARTS.fullmatch(str(event.get("hierarchy"))):
            ours.add(sid)
        if "/" in sid and sid not in ours:
            continue
        if event.get("event") == "child_start" and event.get("child_class") == "hook":
            name = str(event.get("hook_name", "hook"))
            # only there it can stop anything (githooks(5))
            if name != "reference-transaction" or event["argv"][-1] == "prepared":
                names[sid, event["child_id"]] = name
        elif event.get("event") == "child_exit" and event.get("code") and (sid, event.get("child_id")) in names:
            refused.append(names[sid, event["child_id"]])
    return refused
