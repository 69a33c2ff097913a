"""What else a repository has going: stashes, worktrees, and the operation that is under way.

An operation is known by the files that git itself looks for (`wt_status_get_state` in git's wt-status.c). They are read as hostile
ones: regular files only, and no more of them than the beginning.
"""

import os
import re
from typing import Any

from workspace_runtime.paths import path_bytes, shown

from . import cursors
from .objects import beginning, text, when
from .plain_files import line_of
from .prepared import prepared_message
from .refs import relative
from .repository import Repository
from .revisions import exists

_STASH = re.compile(r"(?:WIP on|On) (.+?): (.*)", re.DOTALL)
_ID = re.compile(rb"[0-9a-f]{40}([0-9a-f]{24})?")
_PICKING = {b"pick": "cherry-pick", b"p": "cherry-pick", b"revert": "revert"}
_MAX_MESSAGE = 8192


def stashes(repository: Repository, *, limit: int = 50, cursor: str | None = None) -> dict[str, Any]:
    """A page of the stashes, the latest first: `all_stashes`, and where it goes on, whatever is put away meanwhile. Blocks.

    Raises `cursor_invalid`, also where the last one of the page before is gone.
    """
    bound = cursors.binding("stash", repository.git_dir)
    listed = all_stashes(repository)
    start = 0
    if cursor is not None:
        index, oid = cursors.decode_name(cursor, bound)
        # one may be in the list twice
        places = [stash["index"] for stash in listed if stash["oid"].encode() == oid]
        if not places:
            raise cursors.invalid()
        start = min(places, key=lambda place: abs(place - index)) + 1
    page = cursors.fitting(listed[start : start + limit], lambda stash: len(stash["message"]))
    more = start + len(page) < len(listed)
    after = cursors.encode_name(bound, page[-1]["oid"].encode(), page[-1]["index"]) if more else None
    return {"items": page, "next_cursor": after}


def all_stashes(repository: Repository) -> list[dict[str, Any]]:
    """The stashes, the latest first: `index, oid, message, branch, created_at, base, untracked`. Blocks.

    `base` is the commit that it was made on, `branch` the branch that was checked out; `untracked`: it has files that git did not
    know; `truncated`: the message is longer. Raises as `Repository.read`.
    """
    # the reflog's text is what `git stash list` shows
    arguments = ["log", "-g", "-z", "--no-show-signature", "--no-color", "--no-notes", "--no-mailmap", "--no-decorate"]
    arguments += ["--format=tformat:%H%x00%P%x00%ct%x00%gs", "refs/stash", "--"]
    if not exists(repository, "refs/stash"):
        return []
    fields = repository.read(arguments).split(b"\0")
    found = []
    for index, at in enumerate(range(0, len(fields) - 4, 4)):
        oid, parents, seconds, subject = fields[at : at + 4]
        words, cut = beginning(subject)
        told = _STASH.fullmatch(words)
        branch = told[1] if told else None
        found.append(
            {
                "index": index,
                "oid": text(oid),
                "message": told[2] if told else words,
                "branch": None if branch == "(no branch)" else branch,
                "created_at": when(seconds),
                "base": next(iter(text(parents).split()), None),
                "untracked": len(parents.split()) > 2,
                **({"truncated": True} if cut else {}),
            }
        )
    return found


def worktrees(
    repository: Repository, workspace: bytes, *, limit: int = 50, cursor: str | None = None
) -> dict[str, Any]:
    """A page of `all_worktrees`, the main one first, then by their places. Blocks. Raises `cursor_invalid`."""
    bound = cursors.binding("worktrees", repository.common_dir)
    listed = [(int(not tree["main"]), place, tree) for place, tree in all_worktrees(repository, workspace).items()]
    listed.sort(key=lambda row: row[:2])
    page, after = cursors.page(listed, lambda row: row[:2], bound, limit, cursor, lambda row: _weight(row[2]))
    return {"items": [tree for _, _, tree in page], "next_cursor": after}


def _weight(tree: dict[str, Any]) -> int:
    return sum(len(value) for value in tree.values() if isinstance(value, str))


def all_worktrees(repository: Repository, workspace: bytes) -> dict[bytes, dict[str, Any]]:
    """The working trees of a repository by their places. `workspace`: the workspace's root, absolute and real. Blocks.

    `path` is relative to the workspace, null outside of it; `current`: the one that is asked. `head` is null before the first commit
    and where there is no working tree (`bare`); `prunable` says why git would forget it, else null. Raises as `Repository.read`.
    """
    listed = repository.read(["worktree", "list", "--porcelain", "-z"])
    found: dict[bytes, dict[str, Any]] = {}
    for record in listed.split(b"\0\0"):
        facts = dict(_fact(line) for line in record.split(b"\0") if line)
        if b"worktree" not in facts:
            continue
        place = os.path.realpath(facts[b"worktree"])
        path = relative(place, workspace)
        oid = facts.get(b"HEAD", b"")
        tree: dict[str, Any] = {
            "path": None if path is None else shown(path),
            "head": text(oid) if oid.strip(b"0") else None,
            "branch": text(facts[b"branch"]).removeprefix("refs/heads/") if b"branch" in facts else None,
            "detached": b"detached" in facts,
            "bare": b"bare" in facts,
            "locked": b"locked" in facts,
            "lock_reason": text(facts[b"locked"]) or None if b"locked" in facts else None,
            "prunable": text(facts[b"prunable"]) if b"prunable" in facts else None,
            "main": not found,
            "current": place == repository.top or (b"bare" in facts and place == repository.git_dir),
        }
        if path is not None and (encoded := path_bytes(path)):
            tree["path_bytes"] = encoded
        found[place] = tree
    return found


def operation(repository: Repository) -> dict[str, Any] | None:
    """What is under way: `kind, head_name, onto, oid, step, total, message`; None when nothing is. Reads files alone.

    `kind`: `merge`, `rebase`, `am`, `cherry-pick`, `revert` or `bisect`. `head_name`: the branch that it is done to, null when HEAD
    was detached; `oid`: the commit that is being applied or merged; `message`: what its commit would say, at most 8 KB of it.
    """
    git_dir = repository.git_dir
    if os.path.isdir(os.path.join(git_dir, b"rebase-merge")):
        return _rebase(
            git_dir, b"rebase-merge/", step=b"msgnum", total=b"end", applied=b"stopped-sha", message=b"message"
        )
    if os.path.isdir(os.path.join(git_dir, b"rebase-apply")):
        applying = os.path.exists(os.path.join(git_dir, b"rebase-apply/applying"))
        told = _rebase(
            git_dir, b"rebase-apply/", step=b"next", total=b"last", applied=b"original-commit", message=b"final-commit"
        )
        return told | {"kind": "am", "head_name": _branch(git_dir)} if applying else told
    for name, kind in ((b"MERGE_HEAD", "merge"), (b"CHERRY_PICK_HEAD", "cherry-pick"), (b"REVERT_HEAD", "revert")):
        oid = _oid(git_dir, name)
        if oid is not None:
            message = prepared_message(repository)
            words = text(message[:_MAX_MESSAGE]) if message else None
            return _told(kind, head_name=_branch(git_dir), oid=oid, message=words)
    todo = (line_of(os.path.join(git_dir, b"sequencer/todo")) or b"").split()
    if todo and todo[0] in _PICKING:  # between two of several, one committed and the next not begun
        return _told(_PICKING[todo[0]], head_name=_branch(git_dir), onto=_oid(git_dir, b"sequencer/head"))
    if os.path.exists(os.path.join(git_dir, b"BISECT_LOG")):
        began = _text(git_dir, b"BISECT_START")
        return _told("bisect", head_name=None if began is None or _ID.fullmatch(began.encode()) else began)
    return None


def _rebase(
    git_dir: bytes, folder: bytes, *, step: bytes, total: bytes, applied: bytes, message: bytes
) -> dict[str, Any]:
    name = _text(git_dir, folder + b"head-name") or ""
    return _told(
        "rebase",
        head_name=name.removeprefix("refs/heads/") if name.startswith("refs/") else None,
        onto=_oid(git_dir, folder + b"onto"),
        oid=_oid(git_dir, folder + applied),
        step=_number(git_dir, folder + step),
        total=_number(git_dir, folder + total),
        message=_text(git_dir, folder + message),
    )


def _told(
    kind: str,
    *,
    head_name: str | None,
    onto: str | None = None,
    oid: str | None = None,
    step: int | None = None,
    total: int | None = None,
    message: str | None = None,
) -> dict[str, Any]:
    return {
        "kind": kind,
        "head_name": head_name,
        "onto": onto,
        "oid": oid,
        "step": step,
        "total": total,
        "message": message,
    }


def _branch(git_dir: bytes) -> str | None:
    line = _text(git_dir, b"HEAD") or ""
    name = line.removeprefix("ref:").strip()
    return name.removeprefix("refs/heads/") if line.startswith("ref:") else None


def _text(git_dir: bytes, name: bytes) -> str | None:
    line = line_of(os.path.join(git_dir, name))
    return text(line) if line else None


def _oid(git_dir: bytes, name: bytes) -> str | None:
    """The id that a file begins with: one of several, where there are more."""
    found = _ID.match(line_of(os.path.join(git_dir, name)) or b"")
    return found[0].decode() if found else None


def _number(git_dir: bytes, name: bytes) -> int | None:
    line = line_of(os.path.join(git_dir, name)) or b""
    return int(line) if re.fullmatch(rb"[0-9]{1,9}", line) else None


def _fact(line: bytes) -> tuple[bytes, bytes]:
    word, _, rest = line.partition(b" ")
    return word, rest
