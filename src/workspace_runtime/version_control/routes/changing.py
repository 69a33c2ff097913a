"""The doors that change a repository here. Each waits for its turn: one writer at a time."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from workspace_runtime.queries import query_of, query_path

from .. import commits, conflicts, locks, merging, staging, stashing, switching, worktrees
from ..schemas import bodies, history, views
from ..work import Work
from .door import Encoded, Where, changed, room

router = APIRouter()
Named = Annotated[str, Path(max_length=1000)]


@router.post("/stage", response_model=views.StagedView, summary="Stage")
async def version_control_stage(
    request: Request, body: bodies.StageBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Put files (changed, new or deleted) or hunks into the index."""
    paths, hunks = body.wanted(), staging.Hunks(body.wanted_hunks(), body.context)
    return await changed(
        request, "stage", lambda work: staging.stage(work, paths=paths, hunks=hunks, every=body.all, force=body.force)
    )


@router.post("/unstage", response_model=views.DoneView, summary="Unstage")
async def version_control_unstage(
    request: Request, body: bodies.SelectionBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Take files or hunks out of the index; the working tree stays."""
    paths, hunks = body.wanted(), staging.Hunks(body.wanted_hunks(), body.context)
    return await changed(
        request, "unstage", lambda work: staging.unstage(work, paths=paths, hunks=hunks, every=body.all)
    )


@router.post("/discard", response_model=views.DoneView, summary="Discard changes")
async def version_control_discard(
    request: Request, body: bodies.DiscardBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Bring files or hunks of the working tree back to what the index has. There is no way back."""
    paths, hunks = body.wanted(), staging.Hunks(body.wanted_hunks(), body.context)
    return await changed(
        request,
        "discard",
        lambda work: staging.discard(work, paths=paths, hunks=hunks, every=body.all, untracked=body.untracked),
    )


@router.post("/commit", response_model=views.CommittedView, summary="Commit")
async def version_control_commit(
    request: Request, body: bodies.CommitBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Record what is staged. Hooks run as git would run them; one that refuses is 409 `hook_refused` with its words."""
    paths = body.wanted()
    author = (body.author.name, body.author.email) if body.author else None
    return await changed(
        request,
        "commit",
        lambda work: commits.commit(
            work,
            message=body.message,
            author=author,
            every=body.all,
            paths=paths,
            amend=body.amend,
            signoff=body.signoff,
        ),
    )


@router.post("/checkout", response_model=views.CheckoutView, summary="Switch branches")
async def version_control_checkout(
    request: Request, body: bodies.CheckoutBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Switch to a branch, one that only a remote has too, or to any revision."""
    return await changed(
        request,
        "checkout",
        lambda work: switching.checkout(
            work,
            branch=body.branch,
            create=body.create,
            start_point=body.start_point,
            detach=body.detach,
            local_changes=body.local_changes,
        ),
    )


# --- branches and tags --------------------------------------------------------------------------------------------------------


@router.post("/branches", status_code=201, response_model=views.NamedView, summary="Make a branch")
async def version_control_create_branch(
    request: Request, body: bodies.BranchBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Make a branch without switching to it."""
    return await changed(
        request,
        "create_branch",
        lambda work: switching.create_branch(work, name=body.name, start_point=body.start_point),
        201,
        worktree=False,
    )


@router.post("/branches/rename", response_model=views.NamedView, summary="Rename a branch")
async def version_control_rename_branch(
    request: Request, body: bodies.RenameBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Give a branch another name."""
    return await changed(
        request,
        "rename_branch",
        lambda work: switching.rename_branch(work, name=body.name, new_name=body.new_name),
        worktree=False,
    )


@router.delete("/branches/{name:path}", response_model=views.DoneView, summary="Delete a branch")
async def version_control_delete_branch(
    request: Request,
    name: Named,
    path: Where = "",
    path_bytes: Encoded = None,
    force: Annotated[bool, Query(description="Also where its commits are on no other branch.")] = False,
) -> Response:
    """Delete a local branch."""
    return await changed(
        request, "delete_branch", lambda work: switching.delete_branch(work, name=name, force=force), worktree=False
    )


@router.post("/tags", status_code=201, response_model=views.NamedView, summary="Make a tag")
async def version_control_create_tag(
    request: Request, body: bodies.TagBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Make a tag; with a message an annotated one."""
    return await changed(
        request,
        "create_tag",
        lambda work: switching.create_tag(work, name=body.name, ref=body.ref, message=body.message, force=body.force),
        201,
        worktree=False,
    )


@router.delete("/tags/{name:path}", response_model=views.DoneView, summary="Delete a tag")
async def version_control_delete_tag(
    request: Request, name: Named, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Delete a tag."""
    return await changed(request, "delete_tag", lambda work: switching.delete_tag(work, name=name), worktree=False)


# --- stash ------------------------------------------------------------------------------------------------------------------


@router.post("/stash", status_code=201, response_model=views.StashedView, summary="Stash changes")
async def version_control_stash(
    request: Request, body: bodies.StashBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Put changes away."""
    paths = body.wanted()
    return await changed(
        request,
        "stash",
        lambda work: stashing.push(
            work,
            message=body.message,
            include_untracked=body.include_untracked,
            keep_index=body.keep_index,
            staged=body.staged,
            paths=paths,
        ),
        201,
    )


Stash = Annotated[str, Path(max_length=100, description="Its place in the list, or surer its id: places move.")]


@router.post("/stash/{stash}/apply", response_model=views.StashedView, summary="Apply a stash")
async def version_control_apply_stash(
    request: Request, stash: Stash, body: bodies.ApplyBody | None = None, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Bring a stash back, and keep it."""
    index = body is not None and body.index
    return await changed(request, "apply_stash", lambda work: stashing.apply(work, name=stash, index=index, pop=False))


@router.post("/stash/{stash}/pop", response_model=views.StashedView, summary="Pop a stash")
async def version_control_pop_stash(
    request: Request, stash: Stash, body: bodies.ApplyBody | None = None, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Bring a stash back, and forget it; a conflict keeps it."""
    index = body is not None and body.index
    return await changed(request, "pop_stash", lambda work: stashing.apply(work, name=stash, index=index, pop=True))


@router.delete("/stash/{stash}", response_model=views.StashedView, summary="Drop a stash")
async def version_control_drop_stash(
    request: Request, stash: Stash, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Forget a stash."""
    return await changed(request, "drop_stash", lambda work: stashing.drop(work, name=stash))


# --- merge, rebase, conflicts -------------------------------------------------------------------------------------------------


@router.post("/merge", response_model=views.MergeView, summary="Merge")
async def version_control_merge(
    request: Request, body: bodies.MergeBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Merge a revision into the current branch. Conflicts are 409 `merge_conflict`: resolve them, then continue or abort."""
    return await changed(
        request, "merge", lambda work: merging.merge(work, ref=body.ref, mode=body.mode, message=body.message)
    )


@router.post("/rebase", response_model=views.MergeView, summary="Rebase")
async def version_control_rebase(
    request: Request, body: bodies.RebaseBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Put the current branch's commits onto a revision. Conflicts are 409 `merge_conflict`."""
    return await changed(request, "rebase", lambda work: merging.rebase(work, onto=body.onto, autostash=body.autostash))


@router.post("/conflicts/resolve", response_model=history.ConflictList, summary="Resolve conflicts")
async def version_control_resolve(
    request: Request, body: bodies.ResolveBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Settle files by one side, or by what stands in the working tree now. Answers the conflicts that are left."""
    paths = body.wanted()
    return await changed(request, "resolve", lambda work: conflicts.resolve_conflicts(work, paths=paths, use=body.use))


# --- worktrees, locks -----------------------------------------------------------------------------------------------------------


@router.post("/worktrees", status_code=201, response_model=views.WorktreeMade, summary="Add a working tree")
async def version_control_add_worktree(
    request: Request, body: bodies.WorktreeBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Add a linked working tree: one agent, one tree."""
    root = room(request).root
    target = bodies.workspace_path(body.worktree, body.worktree_bytes)
    return await changed(
        request,
        "add_worktree",
        lambda work: worktrees.add(
            work,
            root,
            path=target,
            branch=body.branch,
            create=body.create,
            start_point=body.start_point,
            detach=body.detach,
            force=body.force,
        ),
        201,
        worktree=False,
    )


@router.delete("/worktrees", response_model=views.DoneView, summary="Remove a working tree")
async def version_control_remove_worktree(
    request: Request,
    worktree: Annotated[str, Query(max_length=8192, description="Its folder, relative to the workspace's root.")] = "",
    worktree_bytes: Annotated[str | None, Query(max_length=16384)] = None,
    path: Where = "",
    path_bytes: Encoded = None,
    force: Annotated[bool, Query(description="Also with changes, which are lost.")] = False,
) -> Response:
    """Remove a linked working tree with its folder; its branch stays."""
    root = room(request).root
    target = query_path(query_of(request.scope), "worktree")
    return await changed(
        request, "remove_worktree", lambda work: worktrees.remove(work, root, path=target, force=force), worktree=False
    )


@router.post("/unlock", response_model=views.UnlockedView, summary="Clear lock files")
async def version_control_unlock(
    request: Request, body: bodies.UnlockBody | None = None, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Take away the locks that a killed git has left. Refused while a git is at work in the repository, unless forced."""
    force = body is not None and body.force

    async def clear(work: Work) -> dict[str, Any]:
        return await work.ask(locks.clear, work.repository, force=force)

    return await changed(request, "unlock", clear, worktree=False)


# last, since it would fit others too
@router.post("/{kind}/{step}", response_model=views.StepView, summary="Continue, skip or abort")
async def version_control_proceed(
    request: Request, kind: merging.Kind, step: merging.Step, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Go on with the merge, rebase, cherry-pick or the like that is under way, skip the commit it stopped at, or undo all of it."""
    return await changed(request, f"{kind}_{step}", lambda work: merging.proceed(work, kind=kind, step=step))
