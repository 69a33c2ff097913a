"""Linked working trees: one for each agent that shall work by itself. They lie inside the workspace."""

import asyncio
import contextlib
import os
import stat
from collections.abc import Sequence
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.mounts import mount_points
from workspace_runtime.paths import WorkspaceRoot, path_bytes, refusal, shown

from .lists import all_worktrees
from .mounted import refuse_below
from .refs import relative
from .repository import Repository
from .revisions import alone, branch_name, exists, resolve
from .switching import start_of
from .work import Work


async def add(
    work: Work,
    root: WorkspaceRoot,
    *,
    path: bytes,
    branch: str | None,
    create: bool = False,
    start_point: str | None = None,
    detach: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Make a working tree in a new or empty folder of the workspace: of a branch that is there, of a new one (`create`), or detached.

    Without a branch git makes one with the folder's name. Failed or cancelled, nothing that was made is left. Raises `file_exists`,
    `branch_checked_out`, `ref_not_found`, `ref_exists`.
    """
    repository = work.repository
    if start_point is not None and branch is None and not detach:
        # named a commit alone, git would make no branch
        branch, create = os.fsdecode(path.rpartition(b"/")[2]), True

    def prepared() -> tuple[list[str], list[str]]:
        _named(path)
        if create:
            branch_name(repository, branch or "")
            if exists(repository, f"refs/heads/{branch}"):
                raise WorkspaceError("ref_exists", f"There is a branch {branch!r} already.", ref=branch)
            return ["-b", str(branch)], start_of(repository, start_point) or ["HEAD"]
        if detach:
            return ["--detach"], [alone(resolve(repository, branch or start_point or "HEAD"))]
        if branch is None:
            return [], []
        branch_name(repository, branch)
        if not exists(repository, f"refs/heads/{branch}"):
            raise WorkspaceError("ref_not_found", f"There is no branch {branch!r}: say create to make it.", ref=branch)
        return [], [branch]

    how, start = await work.ask(prepared)
    made = branch if create else None if branch or detach else os.fsdecode(path.rpartition(b"/")[2])
    if made is not None and await work.ask(exists, repository, f"refs/heads/{made}"):
        made = None
    target, folders = await work.ask(new_folder, root, path)
    known = await work.ask(repository.trees)
    command = ["worktree", "add", *(["--force"] if force else []), *how, "--", os.fsdecode(target), *start]
    try:
        await work.git(command)
    except (WorkspaceError, asyncio.CancelledError):
        await work.at_last(_undo, target, folders, made, known)
        raise
    found = await work.ask(all_worktrees, repository, os.fsencode(root.path))
    return {"worktree": found.get(target)}


def _undo(
    repository: Repository, target: bytes, folders: Sequence[bytes], branch: str | None, before: Sequence[bytes]
) -> None:
    """Take back what an `add` that has not come to its end has made: the working tree, its `branch`, and `folders` on the way. Blocks.

    What was there `before` stays, and a branch with commits that are on no other.
    """
    with contextlib.suppress(WorkspaceError):
        # what somebody has mounted in it meanwhile would be emptied
        is_ours = all(point == target for point in mount_points(target))
        if is_ours and target not in before and target in repository.trees():
            repository.run(["worktree", "remove", "--force", "--force", "--", target])
        if branch is not None and exists(repository, ref := f"refs/heads/{branch}"):
            own = repository.run(["rev-list", "--max-count=1", ref, "--not", f"--exclude={ref}", "--all", "--"])
            if own.status == 0 and not own.out:
                repository.run(["branch", "--delete", "--force", "--quiet", "--", branch])
    remove_made(folders)


def _named(path: bytes) -> None:
    if not path:
        raise WorkspaceError("path_invalid", "worktree: name a folder below the workspace's root.")


def _is_named(item: dict[str, Any], path: bytes) -> bool:
    return (item["path"], item.get("path_bytes")) == (shown(path), path_bytes(path))


async def remove(work: Work, root: WorkspaceRoot, *, path: bytes, force: bool = False) -> dict[str, Any]:
    """Remove a linked working tree; with `force` also one with changes. One whose folder is gone is forgotten.

    Raises `worktree_not_found`, `worktree_not_clean`, and `file_busy` where something is mounted in it: git would empty that.
    """
    repository = work.repository
    target = os.path.join(os.fsencode(root.path), path)

    def known() -> bool:
        _named(path)
        found = all_worktrees(repository, os.fsencode(root.path))
        return any(_is_named(item, path) and not item["main"] for item in found.values())

    if not await work.ask(known):
        raise WorkspaceError("worktree_not_found", f"{shown(path)!r} is no linked working tree of this repository.")
    await work.ask(refuse_below, target, lambda point: relative(point, os.fsencode(root.path)))
    await work.git(["worktree", "remove", *(["--force"] if force else []), "--", target])
    return {}


def new_folder(root: WorkspaceRoot, path: bytes) -> tuple[bytes, list[bytes]]:
    """The absolute real path of a folder of the workspace that is not there, or is empty, and the folders on the way that were made,
    the innermost first. Blocks.

    Raises `WorkspaceError`: `file_exists`, `path_invalid`, `path_outside` and the like.
    """
    if b".git" in path.split(b"/"):
        raise WorkspaceError(
            "path_invalid", f"{shown(path)!r} would lie in the folder that a repository keeps its own in."
        )
    top = os.fsencode(root.path)
    try:
        if not path:
            if os.listdir(top):
                raise WorkspaceError("file_exists", "The workspace is not empty: name a folder in it.", path="")
            return top, []
        missing = _missing(top, path)
        with root.place(path, make=True) as place:
            status = place.status()
            if status is not None and not (stat.S_ISDIR(status.st_mode) and _is_empty(place.folder, place.name)):
                raise WorkspaceError(
                    "file_exists", f"{shown(path)!r} is there already, and not an empty folder.", path=shown(path)
                )
            target = os.path.join(top, place.path)
            made = [target]
            for _ in range(missing):
                made.append(os.path.dirname(made[-1]))
            return target, made[1:]
    except OSError as fault:
        raise refusal(fault, path, making=True) from None


def _missing(top: bytes, path: bytes) -> int:
    """How many folders on the way are not there."""
    above = path.split(b"/")[:-1]
    there = next((at for at in range(len(above), 0, -1) if os.path.exists(os.path.join(top, *above[:at]))), 0)
    return len(above) - there


def remove_made(folders: Sequence[bytes]) -> None:
    """Remove the folders that `new_folder` has made, up to the first that is not empty. Blocks."""
    with contextlib.suppress(OSError):
        for folder in folders:
            os.rmdir(folder)


def _is_empty(folder: int, name: bytes) -> bool:
    opened = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        return not os.listdir(opened)
    finally:
        os.close(opened)
