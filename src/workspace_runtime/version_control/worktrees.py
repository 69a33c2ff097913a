"""Linked working trees: one for each agent that shall work by itself. They lie inside the workspace."""

import os
import stat
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import WorkspaceRoot, path_bytes, refusal, shown

from .lists import worktrees
from .revisions import branch_name, resolve
from .switching import exists, start_of
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

    Without a branch git makes one with the folder's name. Raises `file_exists`, `branch_checked_out`, `ref_not_found`, `ref_exists`.
    """
    repository = work.repository

    def prepared() -> tuple[bytes, list[str]]:
        _named(path)
        target = new_folder(root, path)
        if create:
            branch_name(repository, branch or "")
            if exists(repository, f"refs/heads/{branch}"):
                raise WorkspaceError("ref_exists", f"There is a branch {branch!r} already.", ref=branch)
            return target, [
                "-b",
                str(branch),
                "--",
                os.fsdecode(target),
                *(start_of(repository, start_point) or ["HEAD"]),
            ]
        if detach:
            return target, ["--detach", "--", os.fsdecode(target), resolve(repository, branch or start_point or "HEAD")]
        if branch is None:
            return target, ["--", os.fsdecode(target)]
        branch_name(repository, branch)
        if not exists(repository, f"refs/heads/{branch}"):
            raise WorkspaceError("ref_not_found", f"There is no branch {branch!r}: say create to make it.", ref=branch)
        return target, ["--", os.fsdecode(target), branch]

    target, arguments = await work.ask(prepared)
    await work.git(["worktree", "add", *(["--force"] if force else []), *arguments])
    found = await work.ask(worktrees, repository, os.fsencode(root.path))
    name = target[len(os.fsencode(root.path)) :].lstrip(b"/")
    return {"worktree": next((item for item in found["items"] if _is_named(item, name)), None)}


def _named(path: bytes) -> None:
    if not path:
        raise WorkspaceError("path_invalid", "worktree: name a folder below the workspace's root.")


def _is_named(item: dict[str, Any], path: bytes) -> bool:
    return (item["path"], item.get("path_bytes")) == (shown(path), path_bytes(path))


async def remove(work: Work, root: WorkspaceRoot, *, path: bytes, force: bool = False) -> dict[str, Any]:
    """Remove a linked working tree; with `force` also one with changes. One whose folder is gone is forgotten.

    Raises `worktree_not_found`, `worktree_not_clean`.
    """
    repository = work.repository
    target = os.path.join(os.fsencode(root.path), path)

    def known() -> bool:
        _named(path)
        found = worktrees(repository, os.fsencode(root.path))
        return any(_is_named(item, path) and not item["main"] for item in found["items"])

    if not await work.ask(known):
        raise WorkspaceError("worktree_not_found", f"{shown(path)!r} is no linked working tree of this repository.")
    await work.git(["worktree", "remove", *(["--force"] if force else []), "--", target])
    return {}


def new_folder(root: WorkspaceRoot, path: bytes) -> bytes:
    """The absolute real path of a folder of the workspace that is not there, or is empty. Blocks.

    Folders on the way are made. Raises `WorkspaceError`: `file_exists`, `path_invalid`, `path_outside` and the like.
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
            return top
        with root.place(path, make=True) as place:
            status = place.status()
            if status is not None and not (stat.S_ISDIR(status.st_mode) and _is_empty(place.folder, place.name)):
                raise WorkspaceError(
                    "file_exists", f"{shown(path)!r} is there already, and not an empty folder.", path=shown(path)
                )
            return os.path.join(top, place.path)
    except OSError as fault:
        raise refusal(fault, path, making=True) from None


def _is_empty(folder: int, name: bytes) -> bool:
    opened = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        return not os.listdir(opened)
    finally:
        os.close(opened)
