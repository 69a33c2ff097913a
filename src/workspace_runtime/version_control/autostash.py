"""An autostash that its git did not bring back: found, and put into the list of stashes, where it can be seen.

git takes changes out of the working tree before a merge, pull or rebase (`--autostash`), and until it brings them back only a file
names them: `MERGE_AUTOSTASH`, or `autostash` in the folder of a rebase. Where git was ended in between, nothing shows them, and the
next autostash would take their place. While a merge waits to be concluded the file belongs there: git reads it when that is done.
"""

import contextlib
import os
import re

from .plain_files import line_of
from .repository import Repository
from .revisions import exists

_OID = re.compile(rb"[0-9a-f]{40}([0-9a-f]{24})?")
_MERGE = b"MERGE_AUTOSTASH"
_REBASES = (b"rebase-merge", b"rebase-apply")


def left(repository: Repository) -> bool:
    """Whether there may be one that nobody waits for. Looks at names alone: for each write. Blocks."""
    return bool(_merges(repository, squash=True) or _rebases(repository))


def rescue(repository: Repository, *, squash: bool, rebase: bool = True) -> str | None:
    """Put what `left` has found into the list of stashes; the id of the stash, None where there is none. Blocks.

    `squash`: also the one that a squashed merge keeps for its commit. `rebase`: those of a rebase too, unless one may be beginning just now. Raises as
    `Repository.read`: then it is where it was.
    """
    found = None
    if _merges(repository, squash=squash) and (oid := _named(repository, _MERGE)):
        store(repository, oid)
        _forget(repository, _MERGE)
        found = oid
    for folder in _rebases(repository) if rebase else ():
        if oid := _named(repository, folder + b"/autostash"):
            store(repository, oid)
            _forget(repository, folder + b"/autostash")
            with contextlib.suppress(OSError):  # else it is no more than begun, and nothing could end it
                os.rmdir(os.path.join(repository.git_dir, folder))
            found = oid
    return found


def of_merge(repository: Repository) -> str | None:
    """The autostash of the merge that is under way, put into the list of stashes as well. Blocks.

    For `git merge --abort`, which forgets its name before it has brought it back.
    """
    oid = _named(repository, _MERGE)
    if oid:
        store(repository, oid)
    return oid


def store(repository: Repository, oid: str) -> None:
    """Put a stash into the list, as its first, with the message it was made with; harmless where it is there. Blocks.

    No hook runs: it is done for work that has ended, perhaps because a hook hung. Raises as `Repository.read`.
    """
    if oid not in [id for id, _ in entries(repository)]:
        message = repository.read(["log", "-1", "--no-show-signature", "--no-notes", "--format=%s", oid, "--"]).rstrip(
            b"\n"
        )
        repository.read(["stash", "store", "--quiet", b"--message=" + message, oid])


def entries(repository: Repository) -> list[tuple[str, str]]:
    """The list of stashes: id and message (as the reflog has it) of each, the latest first. Blocks."""
    if not exists(repository, "refs/stash"):
        return []
    how = ["--no-show-signature", "--no-color", "--no-notes", "--no-decorate", "--format=tformat:%H%x00%gs"]
    fields = repository.read(["log", "-g", "-z", *how, "refs/stash", "--"]).split(b"\0")
    texts = [field.decode("utf-8", "replace") for field in fields]
    return list(zip(texts[0:-1:2], texts[1::2], strict=False))


def _merges(repository: Repository, *, squash: bool) -> bool:
    return (
        _there(repository, _MERGE)
        and not _there(repository, b"MERGE_HEAD")
        and (squash or not _there(repository, b"SQUASH_MSG"))
    )


def _rebases(repository: Repository) -> list[bytes]:
    """The folders of rebases that have begun with nothing but an autostash: git can neither go on nor abort."""
    return [
        folder
        for folder in _REBASES
        if _there(repository, folder + b"/autostash") and not _there(repository, folder + b"/head-name")
    ]


def _there(repository: Repository, name: bytes) -> bool:
    return os.path.lexists(os.path.join(repository.git_dir, name))


def _named(repository: Repository, name: bytes) -> str | None:
    """The stash that a file names; None for what is no stash, which is a commit with two parents or three."""
    line = line_of(os.path.join(repository.git_dir, name)) or b""
    if not _OID.fullmatch(line):
        return None
    oid = line.decode()
    is_one = repository.run(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{oid}^2^{{commit}}"]).status == 0
    return oid if is_one else None


def _forget(repository: Repository, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(repository.git_dir, name))
