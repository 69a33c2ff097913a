"""Branches, tags and remotes.

A list has two steps: the names of all, which git has at hand, and what is told of those on the page alone, since that costs a look at
objects and, for how far a branch is from its upstream, a walk through the history.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import path_bytes, shown

from . import cursors
from .credentials import safe_url, tellable
from .objects import MAX_MESSAGE, beginning, commits_named, is_remote_head, person, text, when
from .repository import Repository

_HEADS, _REMOTES, _TAGS = "refs/heads/", "refs/remotes/", "refs/tags/"
_BRANCH = ("%(refname)", "%(objectname)", "%(symref)", "%(HEAD)", "%(upstream)", "%(upstream:remotename)", "%(worktreepath)")  # fmt: skip
_TAG = ("%(refname)", "%(objectname)", "%(objecttype)", "%(taggername)", "%(taggeremail:trim)", "%(taggerdate:unix)", "%(creatordate:unix)")  # fmt: skip
# Of tags alone: what a ref leads to may have a long message, too.
_MESSAGE = tuple(
    f"%(if:equals=tag)%(objecttype)%(then)%({field})%(end)" for field in ("contents", "contents:signature")
)
_HEADER = 64 * 1024
_AHEAD = re.compile(rb"(?:ahead (\d+))?(?:, )?(?:behind (\d+))?")
_URL = re.compile(r"remote\.(.+)\.(url|pushurl)", re.DOTALL)


def branches(
    repository: Repository,
    *,
    remote: bool | None = None,
    q: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    """A page of branches by name, local ones first: `{"items", "next_cursor"}`. Blocks.

    `remote`: only those of remotes, or only local ones; `q`: a part of the name, whatever its case. A branch without a commit yet is
    none. `worktree` is the path, relative to the workspace, of another working tree that has the branch checked out; `checked_out`
    also tells of one outside the workspace, and of this one.

    Raises `WorkspaceError`: `cursor_invalid`, and as `Repository.read`.
    """
    bound = cursors.binding("branches", repository.git_dir, str(remote), q)
    where = {None: [_HEADS, _REMOTES], False: [_HEADS], True: [_REMOTES]}[remote]
    listed = [row for row in _listed(repository, _BRANCH, where) if not (row[2] and is_remote_head(text(row[0])))]
    listed = sorted((row for row in listed if _fits(row[0], q)), key=_by_name)
    if cursor is not None:
        last = _by_name([cursors.decode_name(cursor, bound)[1]])
        listed = [row for row in listed if _by_name(row) > last]
    page = listed[:limit]
    commits = commits_named(repository, {row[1].decode() for row in page})
    tracking = _tracking(repository, [row[0] for row in page if row[4]])
    more = len(listed) > limit
    return {
        "items": [_branch(repository, row, commits.get(row[1].decode()), tracking.get(row[0])) for row in page],
        "next_cursor": cursors.encode_name(bound, page[-1][0]) if more else None,
    }


def tags(repository: Repository, *, q: str | None = None, limit: int = 50, cursor: str | None = None) -> dict[str, Any]:
    """A page of tags, the latest made first: `{"items", "next_cursor"}`. Blocks. `oid` and `type` are what a tag leads to in the end.

    Raises as `branches`.
    """
    bound = cursors.binding("tags", repository.git_dir, q)
    named = _listed(repository, ("%(refname)", "%(creatordate:unix)", "%(objecttype)", "%(objectsize)"), [_TAGS])
    # of what a tag without a message leads to, the size does not count
    sizes = {row[0]: int(row[3]) if row[2] == b"tag" and row[3].isdigit() else 0 for row in named}
    listed = sorted((-_seconds(row[1]), row[0]) for row in named if _fits(row[0], q))
    if cursor is not None:
        last = cursors.decode_name(cursor, bound)
        listed = [row for row in listed if row > last]
    page = cursors.fitting(listed[:limit], lambda row: min(sizes[row[1]], MAX_MESSAGE))
    long = {name for _, name in page if sizes[name] > MAX_MESSAGE + _HEADER}
    found = {
        row[0]: row for row in _told(repository, (*_TAG, *_MESSAGE), [name for _, name in page if name not in long])
    }
    found |= {row[0]: [*row, _begun(repository, row[1]), b""] for row in _told(repository, _TAG, sorted(long))}
    facts = [found[name] for _, name in page if name in found]  # one may be gone meanwhile
    peeled = _peeled(repository, [row[1] for row in facts if row[2] == b"tag"])
    return {
        "items": [_tag(row, *peeled.get(row[1], (text(row[1]), text(row[2])))) for row in facts],
        "next_cursor": cursors.encode_name(bound, page[-1][1], page[-1][0]) if len(listed) > len(page) else None,
    }


def remotes(repository: Repository, *, limit: int = 50, cursor: str | None = None) -> dict[str, Any]:
    """A page of the remotes of the configuration, by name: `name, url, push_url`, the secrets in their URLs taken out.

    Raises `cursor_invalid`.
    """
    found: dict[str, dict[str, str]] = {}
    for entry in repository.configuration.entries:
        name = _URL.fullmatch(entry.key)
        if name and entry.value:
            # of several the first is where git fetches from
            found.setdefault(name[1], {}).setdefault(name[2], safe_url(os.fsencode(entry.value)))
    listed = sorted((os.fsencode(name), urls) for name, urls in found.items() if "url" in urls)
    bound = cursors.binding("remotes", repository.git_dir)
    page, after = cursors.page(
        listed, lambda row: (0, row[0]), bound, limit, cursor, lambda row: 2 * sum(map(len, row[1].values()))
    )
    items = [
        {"name": tellable(shown(name)), "url": urls["url"], "push_url": urls.get("pushurl", urls["url"])}
        for name, urls in page
    ]
    return {"items": items, "next_cursor": after}


def _told(repository: Repository, fields: Sequence[str], names: Sequence[bytes]) -> list[list[bytes]]:
    return _listed(repository, fields, names) if names else []


def _begun(repository: Repository, oid: bytes) -> bytes:
    """The beginning of a long tag's message, longer than is told of it."""
    output = repository.run(["cat-file", "-p", oid], limit=MAX_MESSAGE + _HEADER)
    if not output.cut and output.status != 0:
        raise repository.failed(output)
    return output.out.partition(b"\n\n")[2]


def _branch(
    repository: Repository, row: Sequence[bytes], commit: dict[str, Any] | None, tracking: bytes | None
) -> dict[str, Any]:
    full, current = text(row[0]), row[3] == b"*"
    there = _AHEAD.fullmatch(tracking) if tracking is not None else None
    elsewhere = in_workspace(repository, row[6]) if row[6] and not current else None
    branch = {
        "name": short(full),
        "full": full,
        "oid": text(row[1]),
        "current": current,
        "remote": full.startswith(_REMOTES),
        "upstream": None,
        "ahead": int(there[1] or 0) if there else None,
        "behind": int(there[2] or 0) if there else None,
        "committed_at": commit["committer"]["date"] if commit else None,
        "subject": commit["subject"] if commit else None,
        "author_name": commit["author"]["name"] if commit else None,
        "checked_out": bool(row[6]),
        "worktree": None if elsewhere is None else shown(elsewhere),
    }
    if tracking is not None:
        branch["upstream"] = {"ref": short(text(row[4])), "remote": safe_url(row[5]), "gone": tracking == b"gone"}
    if elsewhere is not None and (encoded := path_bytes(elsewhere)):
        branch["worktree_bytes"] = encoded
    return branch


def _tracking(repository: Repository, names: Sequence[bytes]) -> dict[bytes, bytes]:
    """How far branches are from their upstreams, by full name, in git's words: `ahead 1, behind 2`, `gone`, or nothing."""
    if not names:
        return {}
    return {row[0]: row[1] for row in _listed(repository, ("%(refname)", "%(upstream:track,nobracket)"), names)}


def _tag(row: Sequence[bytes], oid: str, kind: str | None) -> dict[str, Any]:
    annotated = row[2] == b"tag"
    message, cut = beginning(row[7].removesuffix(row[8]))
    return {
        "name": text(row[0]).removeprefix(_TAGS),
        "oid": oid,
        "type": kind,
        "tag_oid": text(row[1]) if annotated else None,
        "message": message.strip("\r\n") if annotated else None,
        "tagger": person(*row[3:6]) if annotated and row[5] else None,
        "created_at": when(row[6]),
        **({"truncated": True} if cut else {}),
    }


def _peeled(repository: Repository, oids: Sequence[bytes]) -> dict[bytes, tuple[str, str | None]]:
    """The id and the type of what tags lead to, through other tags; where that is not there, the tag's own id and None."""
    if not oids:
        return {}
    asked = b"".join(oid + b"^{}\n" for oid in oids)
    told = repository.read(["cat-file", "--batch-check=%(objectname) %(objecttype)"], input=asked).splitlines()
    if len(told) != len(oids):
        raise WorkspaceError("git_output_invalid", "git's list of objects can't be read.")
    found: dict[bytes, tuple[str, str | None]] = {}
    for oid, line in zip(oids, told, strict=True):
        peeled, _, kind = text(line).partition(" ")
        found[oid] = (text(oid), None) if kind == "missing" else (peeled, kind)
    return found


def _listed(repository: Repository, fields: Sequence[str], names: Sequence[str | bytes]) -> list[list[bytes]]:
    """These fields (git-for-each-ref(1)) of the refs below or with these names."""
    arguments = ["for-each-ref", "--format=" + "".join(f"{field}%00" for field in fields), *names]
    parts = repository.read(arguments).split(b"\0")
    width = len(fields)
    found = [parts[at : at + width] for at in range(0, len(parts) - 1, width)]
    for row in found:  # each ends in a line end, which the split leaves before the next
        row[0] = row[0].removeprefix(b"\n")
    if parts[-1] not in (b"", b"\n") or any(len(row) != width or not row[0].startswith(b"refs/") for row in found):
        raise WorkspaceError("git_output_invalid", "git's list of refs can't be read.")
    return found


def _by_name(row: Sequence[bytes]) -> tuple[bool, bytes]:
    return not row[0].startswith(_HEADS.encode()), row[0]


def _fits(full: bytes, q: str | None) -> bool:
    return not q or q.lower() in short(text(full)).lower()


def short(full: str) -> str:
    """A ref's name without what says of which kind it is."""
    prefix = next((prefix for prefix in (_HEADS, _REMOTES, _TAGS) if full.startswith(prefix)), "")
    return full.removeprefix(prefix)


def _seconds(raw: bytes) -> int:
    """A time of git's; 0 for an object that has none. No more than a cursor can hold."""
    return min(int(raw), 2**62) if raw.isdigit() and len(raw) < 20 else 0


def in_workspace(repository: Repository, path: bytes) -> bytes | None:
    """An absolute path relative to the workspace; None where it lies outside."""
    workspace = repository.top + b"/" + repository.prefix.rstrip(b"/") if repository.prefix else repository.top
    if repository.root:
        workspace = workspace[: -len(repository.root) - 1]
    return relative(os.path.realpath(path), workspace)


def relative(path: bytes, folder: bytes) -> bytes | None:
    """A path relative to a folder, both absolute and real: empty for the folder itself, None outside of it."""
    if path == folder:
        return b""
    below = folder.rstrip(b"/") + b"/"
    return path[len(below) :] if path.startswith(below) else None
