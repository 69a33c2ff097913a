"""New repositories: made empty, or got from elsewhere.

A clone is made under a name of our own beside its place, and gets its place by one rename when it is whole: nobody ever sees half of
one. If it is cancelled or fails, nothing is left; if the server is killed, the next start removes it (`Operation.leftovers`).
"""

import asyncio
import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.mounts import mount_points
from workspace_runtime.paths import WorkspaceRoot, path_bytes, refusal, shown
from workspace_runtime.processes import finish

from .credentials import Credentials, carries_password, check_url, without_rest
from .operations import Operations
from .remotes import bound
from .revisions import branch_name, checked
from .work import Work
from .worktrees import new_folder, remove_made

_LEFTOVER = re.compile(rb"\.workspace-runtime-[0-9a-f]{16}\.tmp")
_NAME = re.compile(r"([^/:\\]+?)(?:/?\.git)?/*$")
_BEFORE_HOST = re.compile(r"^[^/]*://(?:[^/]*@)?")


async def init(
    work: Work, root: WorkspaceRoot, *, path: bytes, initial_branch: str | None, bare: bool
) -> dict[str, Any]:
    """Make a repository in a folder of the workspace, which is made where it is not there. Harmless where there is one already:
    `created` says it."""
    how = []
    if initial_branch is not None:
        name = await work.ask(branch_name, work.repository, initial_branch, field="initial_branch")
        how.append(f"--initial-branch={name}")
    folder = await work.ask(_folder, root, path)
    entry = os.path.join(folder, b"HEAD" if bare else b".git")
    before = await work.ask(os.path.lexists, entry)
    # a link, or a file that names a folder elsewhere: git would write there
    if before and not bare and not await work.ask(_is_folder, entry):
        return {**_named(path), "created": False}
    await work.git(["init", "--quiet", *how, *(["--bare"] if bare else [])], cwd=folder)
    return {**_named(path), "created": not before}


def _named(path: bytes) -> dict[str, Any]:
    encoded = path_bytes(path)
    return {"path": shown(path), **({"path_bytes": encoded} if encoded else {})}


def _is_folder(path: bytes) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


def _folder(root: WorkspaceRoot, path: bytes) -> bytes:
    """The real place of a folder of the workspace, made where it is not there. Blocks."""
    top = os.fsencode(root.path)
    if b".git" in path.split(b"/"):
        raise WorkspaceError("path_invalid", "A repository can't be made in the folder of another.")
    try:
        if not path:
            return top
        with root.place(path, follow=True, make=True) as place:
            with contextlib.suppress(FileExistsError):
                os.mkdir(place.name, dir_fd=place.folder)
            status = place.status()
            if status is not None and not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return os.path.join(top, place.path)
    except OSError as fault:
        raise refusal(fault, path, making=True) from None


async def clone(
    work: Work,
    operations: Operations,
    root: WorkspaceRoot,
    *,
    url: str,
    path: bytes,
    branch: str | None,
    depth: int | None,
    bare: bool,
    username: str | None,
    token: str | None,
) -> dict[str, Any]:
    """Get a repository into a new or empty folder of the workspace. `token`: for this call, and this host alone."""
    credentials = prepared(url, username, token)
    branch = checked(branch, "branch") if branch else None
    target, folders = await work.ask(new_folder, root, path)
    above = os.path.dirname(target) if path else target
    temporary = os.path.join(above, b".workspace-runtime-%b.tmp" % secrets.token_hex(8).encode())
    work.operation.leftovers.append(quote(temporary))
    how = [f"--branch={branch}"] if branch else []
    how += [f"--depth={depth}"] if depth else []
    how += ["--bare"] if bare else []
    try:
        await operations.note(work.operation)
        await work.git(
            [
                "clone",
                "--progress",
                "--no-recurse-submodules",
                "--upload-pack=git-upload-pack",
                *how,
                "--",
                url,
                temporary,
            ],
            credentials=credentials,
            cwd=os.fsencode(root.path),
            network=True,
        )
        await work.ask(_put_in_place, temporary, target, path)
    except WorkspaceError as fault:
        if output := fault.data.get("output"):
            fault.data["output"] = output.replace(os.fsdecode(temporary), shown(path))
        raise
    finally:
        await finish(asyncio.to_thread(_tidy, temporary, folders))
    return _named(path)


def prepared(url: str, username: str | None, token: str | None) -> Credentials | None:
    """Check what a clone is asked with. Raises `WorkspaceError` (`remote_url_refused`, `credentials_invalid`)."""
    check_url(url)
    if carries_password(url):
        raise WorkspaceError(
            "remote_url_refused",
            "The address holds a password, which git would write into the repository: give it as a token.",
        )
    return bound(url, username, token)


def folder_name(url: str) -> str:
    """The folder that a clone goes to where none is named, nearly as git chooses it: the last part of the address without `.git`. A
    query and a fragment count for nothing: they may be a secret."""
    url = without_rest(url)
    found = _NAME.search(_BEFORE_HOST.sub("", url).rstrip("/"))
    name = found[1] if found else ""
    if name in ("", ".", ".."):
        raise WorkspaceError("path_invalid", "The address has no name for a folder: give a path.")
    return name


def _put_in_place(temporary: bytes, target: bytes, path: bytes) -> None:
    try:
        if not path:
            _fill(os.path.dirname(temporary), temporary)
            return
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(target)  # an empty one; anything else makes the rename fail
        os.rename(temporary, target)
    except OSError as fault:
        raise refusal(fault, path, making=True) from None


def _fill(root: bytes, temporary: bytes) -> None:
    """Move what was cloned into the workspace's root, which can't be replaced itself; what makes it a repository comes last."""
    if os.listdir(root) != [os.path.basename(temporary)]:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    for name in sorted(os.listdir(temporary), key=lambda name: name in (b".git", b"HEAD")):
        os.rename(os.path.join(temporary, name), os.path.join(root, name))


def _tidy(temporary: bytes, folders: Sequence[bytes]) -> None:
    remove(temporary)
    remove_made(folders)


def remove(path: bytes) -> None:
    """Remove what a clone that did not end well has left; all of it stays where somebody has mounted something in it. Blocks."""
    if _LEFTOVER.fullmatch(os.path.basename(path)) and not mount_points(path):
        shutil.rmtree(path, ignore_errors=True)
