"""What git says of a push, as data (git-push(1), `--porcelain`). Pure."""

import re
from typing import Any

from workspace_runtime.paths import shown

# git-push(1), OUTPUT
_FLAGS = {b" ": "fast_forward", b"+": "forced", b"-": "deleted", b"*": "new", b"!": "rejected", b"=": "up_to_date"}
_SUMMARY = re.compile(r"(\[[^\]]*\]|[0-9a-f]+\.{2,3}[0-9a-f]+)(?: \((.*)\))?")


def push_refs(porcelain: bytes) -> list[dict[str, Any]]:
    """The refs of a `git push --porcelain`, in git's order; lines that are no ref's are left out.

    Each is `{ref, local, status, summary, reason}`: `ref` is the remote's full name, `local` what was pushed (null where it was
    deleted), `status` one of `up_to_date, fast_forward, forced, new, deleted, rejected, remote_rejected`, `summary` git's word for it
    (`1a2b3c4..5d6e7f8`, `[new branch]`), `reason` git's or the remote's explanation, or null.
    """
    refs = []
    for line in porcelain.split(b"\n"):
        flag, _, rest = line.partition(b"\t")
        pair, tab, words = rest.partition(b"\t")
        source, colon, target = pair.partition(b":")
        if flag not in _FLAGS or not tab or not colon or not target:
            continue
        text = shown(words)
        found = _SUMMARY.fullmatch(text)
        summary, reason = found.groups() if found else (text, None)
        status = _FLAGS[flag]
        if status == "rejected" and summary.startswith("[remote"):
            status = "remote_rejected"
        refs.append(
            {
                "ref": shown(target),
                "local": shown(source) or None,
                "status": status,
                "summary": summary,
                "reason": reason,
            }
        )
    return refs
