"""The doors that only read."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from workspace_runtime.bodies import Limit
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.media import media_type

from .. import blame as blaming
from .. import lists, objects, refs
from ..conflicts import conflicts
from ..diff import MAX_CONTEXT, Diff, diff, diff_text, show
from ..draft import draft
from ..locks import locks
from ..log import log
from ..repository import Repository
from ..schemas import diff as diff_views
from ..schemas import history, views
from ..schemas.bodies import workspace_path
from .door import Cursor, Encoded, Where, answer, room, tagged, where

router = APIRouter()
Ref = Annotated[str | None, Query(max_length=1000, description="A revision: a branch, a tag, an id, HEAD~2, ….")]
Words = Annotated[str | None, Query(max_length=1000)]
_SANDBOX = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"


@router.get("/status", response_model=views.StatusView, summary="Git status")
async def version_control_status(
    request: Request,
    path: Where = "",
    path_bytes: Encoded = None,
    untracked: Annotated[
        Literal["all", "normal", "no"], Query(description="normal: a new folder is one entry.")
    ] = "all",
    ignored: Annotated[bool, Query(description="Also what git ignores.")] = False,
) -> Response:
    """The state of the repository: never an answer from memory, and quick when nothing has changed. `If-None-Match` is honoured."""
    body, etag = await room(request).status(where(request), untracked=untracked, ignored=ignored)
    return tagged(request, body, etag)


@router.get("/log", response_model=history.CommitPage, summary="Git log")
async def version_control_log(
    request: Request,
    ref: Annotated[
        str | None, Query(max_length=1000, description="A revision, `A..B` or `A...B`; left out, HEAD.")
    ] = None,
    path: Annotated[
        str, Query(max_length=8192, description="A repository's folder; a file or folder in it: its own history.")
    ] = "",
    path_bytes: Encoded = None,
    author: Words = None,
    q: Annotated[str | None, Query(max_length=1000, description="Text of the message, or an id.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Commits, the newest first. A cursor goes on where its page ended, whatever is committed meanwhile."""

    def read(repository: Repository, inner: bytes) -> dict[str, object]:
        return log(repository, ref=ref, path=inner or None, author=author, q=q, limit=limit, cursor=cursor)

    return answer(await room(request).reading(read, where(request), ("log", ref, author, q, limit, cursor)))


@router.get("/branches", response_model=history.BranchPage, summary="List branches")
async def version_control_branches(
    request: Request,
    path: Where = "",
    path_bytes: Encoded = None,
    remote: Annotated[bool | None, Query(description="Only remotes' branches, or only local ones.")] = None,
    q: Annotated[str | None, Query(max_length=1000, description="A part of the name.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Local branches, then those of remotes as they were fetched."""

    def read(repository: Repository, _: bytes) -> dict[str, object]:
        return refs.branches(repository, remote=remote, q=q, limit=limit, cursor=cursor)

    return answer(await room(request).reading(read, where(request), ("branches", remote, q, limit, cursor)))


@router.get("/tags", response_model=history.TagPage, summary="List tags")
async def version_control_tags(
    request: Request,
    path: Where = "",
    path_bytes: Encoded = None,
    q: Annotated[str | None, Query(max_length=1000, description="A part of the name.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Tags, the newest first."""
    return answer(
        await room(request).reading(
            lambda repository, _: refs.tags(repository, q=q, limit=limit, cursor=cursor), where(request)
        )
    )


@router.get("/remotes", response_model=history.RemoteList, summary="List remotes")
async def version_control_remotes(
    request: Request, path: Where = "", path_bytes: Encoded = None, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """The configured remotes. Secrets in their addresses are left out."""
    return answer(
        await room(request).reading(
            lambda repository, _: refs.remotes(repository, limit=limit, cursor=cursor), where(request)
        )
    )


def _diff(
    request: Request,
    target: str,
    paths: list[str],
    paths_bytes: list[str],
    stat: bool,
    context: int,
    words: bool,
    space: bool,
) -> Diff:
    wanted = [workspace_path(name, None) for name in paths] + [workspace_path(None, name) for name in paths_bytes]
    return Diff(target, tuple(path for path in wanted if path), stat, context, space, words)


Paths = Annotated[
    list[str] | None, Query(max_length=1000, description="Only these, relative to the repository's root.")
]
Context = Annotated[int, Query(ge=0, le=MAX_CONTEXT, description="Lines around each change.")]


@router.get(
    "/diff",
    response_model=diff_views.DiffView,
    summary="Differences",
    responses={
        200: {"content": {"text/x-diff": {"schema": {"type": "string"}}}},
        304: {"description": "Unchanged since the etag that was sent."},
    },
)
async def version_control_diff(
    request: Request,
    path: Where = "",
    path_bytes: Encoded = None,
    target: Annotated[
        str,
        Query(
            max_length=2100,
            description="`worktree` (against the index), `index` (against the last commit), `A..B`, `A...B`, or a revision.",
        ),
    ] = "worktree",
    paths: Paths = None,
    paths_bytes: Paths = None,
    stat: Annotated[bool, Query(description="Counts alone, without hunks.")] = False,
    context: Context = 3,
    word_diff: Annotated[bool, Query(description="Lines in segments, by words.")] = False,
    ignore_whitespace: bool = False,
    format: Annotated[
        Literal["json", "patch"], Query(description="patch: the text, as `git apply` takes it.")
    ] = "json",
) -> Response:
    """Files with their hunks as data, or the patch as text. A file over the limits is `truncated`, its counts are right."""
    asked = _diff(request, target, paths or [], paths_bytes or [], stat, context, word_diff, ignore_whitespace)
    if format == "patch":
        text = await room(request).reading(lambda repository, _: diff_text(repository, asked), where(request))
        return _bytes(text, b"text/x-diff; charset=utf-8", None)
    body, etag = await room(request).reading(
        lambda repository, _: diff(repository, asked, room(request).find_module), where(request), ("diff", asked)
    )
    return tagged(request, body, etag)


@router.get("/show", response_model=diff_views.ShowView, summary="One commit")
async def version_control_show(
    request: Request,
    ref: Annotated[str, Query(max_length=1000)] = "HEAD",
    path: Where = "",
    path_bytes: Encoded = None,
    paths: Paths = None,
    paths_bytes: Paths = None,
    stat: bool = False,
    context: Context = 3,
    word_diff: bool = False,
    ignore_whitespace: bool = False,
) -> Response:
    """A commit with its message, and its difference from its first parent."""
    asked = _diff(request, "", paths or [], paths_bytes or [], stat, context, word_diff, ignore_whitespace)
    body, etag = await room(request).reading(
        lambda repository, _: show(repository, ref, asked), where(request), ("show", ref, asked)
    )
    return tagged(request, body, etag)


@router.get(
    "/blob",
    summary="A file of a revision",
    response_class=Response,
    responses={200: {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def version_control_blob(
    request: Request,
    path: Annotated[str, Query(max_length=8192, description="The file, relative to the workspace's root.")] = "",
    path_bytes: Encoded = None,
    ref: Annotated[
        str, Query(max_length=1000, description="A revision; or `index`, and of a conflict `base`, `ours`, `theirs`.")
    ] = "HEAD",
) -> Response:
    """The bytes as git keeps them: no filter runs."""

    def read(repository: Repository, inner: bytes) -> tuple[bytes, objects.Blob]:
        if not inner:
            raise WorkspaceError("is_directory", "Name a file: this is the repository's folder.")
        return inner, objects.blob(repository, inner, ref=ref)

    inner, blob = await room(request).reading(read, where(request))
    etag = f'"{blob.oid}"'
    tagless = tagged(request, b"", etag)
    return tagless if tagless.status_code == 304 else _bytes(blob.content, media_type(inner), etag)


def _bytes(content: bytes, kind: bytes, etag: str | None) -> Response:
    """What a repository holds, so that it never runs in our origin."""
    headers = {"Content-Type": kind.decode(), "Content-Security-Policy": _SANDBOX, "Cache-Control": "no-cache"}
    if etag is not None:
        headers["ETag"] = etag
    return Response(content, 200, headers)


@router.get("/blame", response_model=history.BlameView, summary="Who wrote each line")
async def version_control_blame(
    request: Request,
    path: Annotated[str, Query(max_length=8192, description="The file, relative to the workspace's root.")] = "",
    path_bytes: Encoded = None,
    ref: Annotated[str | None, Query(max_length=1000, description="Left out: the file as it is now.")] = None,
    start: Annotated[int | None, Query(ge=1)] = None,
    end: Annotated[int | None, Query(ge=1)] = None,
) -> Response:
    """The commit of each line."""

    def read(repository: Repository, inner: bytes) -> dict[str, object]:
        if not inner:
            raise WorkspaceError("is_directory", "Name a file: this is the repository's folder.")
        return blaming.blame(repository, inner, ref=ref, start=start, end=end)

    return answer(await room(request).reading(read, where(request)))


@router.get("/commit/draft", response_model=diff_views.DraftView, summary="Facts for a commit message")
async def version_control_draft(request: Request, path: Where = "", path_bytes: Encoded = None) -> Response:
    """What is staged, and how earlier messages were written: what an agent needs to word one."""
    return answer(await room(request).reading(lambda repository, _: draft(repository), where(request)))


@router.get("/stash", response_model=history.StashList, summary="List stashes")
async def version_control_stashes(
    request: Request, path: Where = "", path_bytes: Encoded = None, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """What was put away, the newest first."""
    return answer(
        await room(request).reading(
            lambda repository, _: lists.stashes(repository, limit=limit, cursor=cursor), where(request)
        )
    )


@router.get("/conflicts", response_model=history.ConflictList, summary="List conflicts")
async def version_control_conflicts(
    request: Request, path: Where = "", path_bytes: Encoded = None, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """Files with conflicts and the ids of their three sides; `blob` has the contents."""
    return answer(
        await room(request).reading(
            lambda repository, _: conflicts(repository, limit=limit, cursor=cursor), where(request)
        )
    )


@router.get("/worktrees", response_model=history.WorktreeList, summary="List working trees")
async def version_control_worktrees(
    request: Request, path: Where = "", path_bytes: Encoded = None, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """The main working tree and the linked ones."""
    top = room(request).root_bytes
    return answer(
        await room(request).reading(
            lambda repository, _: lists.worktrees(repository, top, limit=limit, cursor=cursor), where(request)
        )
    )


@router.get("/locks", response_model=views.LockList, summary="List lock files")
async def version_control_locks(
    request: Request, path: Where = "", path_bytes: Encoded = None, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """Locks that a git has made, perhaps one that was killed; and the git processes that work in the repository."""
    return answer(
        await room(request).reading(lambda repository, _: locks(repository, limit=limit, cursor=cursor), where(request))
    )
