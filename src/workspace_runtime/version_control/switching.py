"""Branches and tags: switched to, made, renamed, deleted."""

from typing import Any, Literal

from workspace_runtime.errors import WorkspaceError

from .lists import operation
from .obstacles import intended, must_be_free, refuse
from .repository import Repository
from .revisions import alone, branch_name, checked, current_branch, exists, full_name, head, resolve, tag_name
from .stashing import bring_back, in_progress, put_away
from .work import Work

LocalChanges = Literal["keep", "stash", "discard"]


async def checkout(
    work: Work,
    *,
    branch: str,
    create: bool = False,
    start_point: str | None = None,
    detach: bool = False,
    local_changes: LocalChanges = "keep",
) -> dict[str, Any]:
    """Switch to a branch (also to one that only a remote has, which is then made), or to any other revision, which detaches HEAD.

    `local_changes`: `keep` carries them over, as git does, which refuses where they are in the way; `stash` puts them, untracked
    files too, into a stash that stays; `discard` drops those of tracked files. What git does not know, ignored files too, is
    never replaced: then it is 409 `local_changes_in_way`. An error of a stash that stays has its id as `stash`.
    """
    repository = work.repository
    arguments, revision = await work.ask(
        _target, repository, branch, create=create, start_point=start_point, detach=detach
    )
    if not arguments:
        return {**(await work.ask(where, repository)), "stash": None}
    how = ["--discard-changes"] if local_changes == "discard" else []
    stash = None
    if local_changes == "stash":
        stash = await _put_away(work, branch)
    elif local_changes == "discard":
        await work.ask(_must_keep, repository, revision)
    try:
        output = await work.git(["switch", "--quiet", "--no-progress", "--no-overwrite-ignore", *how, *arguments])
    except WorkspaceError as fault:
        if stash is not None:
            try:
                await bring_back(work, stash, index=True)
            except WorkspaceError:  # it is kept then: whoever asked must know of it
                fault.data["stash"] = stash
        raise
    warned = {"warnings": output.warnings} if output.warnings else {}
    return {**(await work.ask(where, repository)), "stash": stash, **warned}


def where(repository: Repository) -> dict[str, Any]:
    """What is checked out. Blocks."""
    name = current_branch(repository)
    oid = head(repository)
    return {"head": {"branch": name, "oid": oid, "detached": name is None, "unborn": oid is None}}


async def _put_away(work: Work, branch: str) -> str | None:
    """Stash all changes; the stash's id, None where there were none. Not where git would refuse to switch afterwards: of a merge
    nothing would be left."""
    under_way = await work.ask(operation, work.repository)
    if under_way is not None:
        raise in_progress(under_way)
    return await put_away(work, ["--include-untracked"], message=f"Before switching to {branch}")


def _must_keep(repository: Repository, target: str) -> None:
    """Refuse to drop what git does not know, which a forced switch does without a word. Blocks. Raises `local_changes_in_way`."""
    if target != "HEAD" or head(repository) is not None:
        must_be_free(repository, resolve(repository, target, field="branch"), before=None)
    refuse(repository, intended(repository))


def _target(
    repository: Repository, branch: str, *, create: bool, start_point: str | None, detach: bool
) -> tuple[list[str], str]:
    """The arguments of `git switch`, none for the unborn branch that is checked out, and the revision that they lead to. Blocks."""
    if create:
        branch_name(repository, branch)
        if exists(repository, f"refs/heads/{branch}"):
            raise WorkspaceError("ref_exists", f"There is a branch {branch!r} already.", ref=branch)
        return ["--create", branch, *start_of(repository, start_point)], start_point or "HEAD"
    checked(branch, "branch")
    if detach:
        return ["--detach", alone(oid := resolve(repository, branch, field="branch"))], oid
    if exists(repository, f"refs/heads/{branch}"):
        return [branch], f"refs/heads/{branch}"
    if branch == current_branch(repository):
        return [], branch
    if branch != "HEAD":  # a remote's is no branch of its own
        names = repository.read(["remote"]).decode("utf-8", "surrogateescape").split("\n")
        refs = [ref for name in names if name and exists(repository, ref := f"refs/remotes/{name}/{branch}")]
        if len(refs) == 1:
            # what `--guess` does, but also where a tag has that name, or it looks like an id
            return ["--create", branch, "--track", refs[0]], refs[0]
    return ["--detach", alone(oid := resolve(repository, branch, field="branch"))], oid


def start_of(repository: Repository, start_point: str | None) -> list[str]:
    """Where a new branch begins: a branch of a remote by its full name, so that it is tracked as git would; else an id."""
    if start_point is None:
        return []
    oid = resolve(repository, start_point, field="start_point")
    full = full_name(repository, start_point, oid)
    return [full] if full.startswith(("refs/remotes/", "refs/heads/")) and exists(repository, full) else [alone(oid)]


async def create_branch(work: Work, *, name: str, start_point: str | None = None) -> dict[str, Any]:
    """Make a branch, and stay where we are. Raises `ref_exists`, `ref_not_found`, `ref_invalid`."""
    repository = work.repository

    def prepared() -> list[str]:
        branch_name(repository, name, field="name")
        if exists(repository, f"refs/heads/{name}"):
            raise WorkspaceError("ref_exists", f"There is a branch {name!r} already.", ref=name)
        return start_of(repository, start_point)

    await work.git(["branch", name, *(await work.ask(prepared))])
    return {"name": name, "oid": await work.ask(resolve, repository, f"refs/heads/{name}")}


async def rename_branch(work: Work, *, name: str, new_name: str) -> dict[str, Any]:
    """Give a branch another name. Raises `ref_exists`, `ref_not_found`, `ref_invalid`."""
    repository = work.repository

    def check() -> None:
        branch_name(repository, name, field="name")
        branch_name(repository, new_name, field="new_name")
        if not (exists(repository, f"refs/heads/{name}") or current_branch(repository) == name):
            raise WorkspaceError("ref_not_found", f"There is no branch {name!r}.", ref=name)
        if exists(repository, f"refs/heads/{new_name}"):
            raise WorkspaceError("ref_exists", f"There is a branch {new_name!r} already.", ref=new_name)

    await work.ask(check)
    await work.git(["branch", "--move", name, new_name])
    return {"name": new_name}


async def delete_branch(work: Work, *, name: str, force: bool = False) -> dict[str, Any]:
    """Delete a branch; with `force` also one whose commits are on no other. Raises `branch_not_merged`, `branch_checked_out`."""
    repository = work.repository

    def check() -> None:
        branch_name(repository, name, field="name")
        if not exists(repository, f"refs/heads/{name}"):
            raise WorkspaceError("ref_not_found", f"There is no branch {name!r}.", ref=name)

    await work.ask(check)
    await work.git(["branch", "--delete", *(["--force"] if force else []), name])
    return {}


async def create_tag(
    work: Work, *, name: str, ref: str | None = None, message: str | None = None, force: bool = False
) -> dict[str, Any]:
    """Make a tag; with a `message` one that is an object of its own. `force` moves one that is there."""
    repository = work.repository

    def prepared() -> str:
        tag_name(repository, name)
        if not force and exists(repository, f"refs/tags/{name}"):
            raise WorkspaceError("ref_exists", f"There is a tag {name!r} already.", ref=name)
        return resolve(repository, ref or "HEAD", "object")

    oid = await work.ask(prepared)
    how = ["--force"] if force else []
    if message is not None:
        how += ["--annotate", "--cleanup=whitespace", "--file=-"]
    await work.git(["tag", *how, name, oid], input=(message or "").encode())
    return {"name": name, "oid": oid}


async def delete_tag(work: Work, *, name: str) -> dict[str, Any]:
    """Delete a tag. Raises `ref_not_found`."""
    repository = work.repository

    def check() -> None:
        tag_name(repository, name)
        if not exists(repository, f"refs/tags/{name}"):
            raise WorkspaceError("ref_not_found", f"There is no tag {name!r}.", ref=name)

    await work.ask(check)
    await work.git(["tag", "--delete", name])
    return {}
