"""The doors that reach other repositories, and the operations that such work is."""

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from workspace_runtime.bodies import Limit
from workspace_runtime.events.model import in_one_line
from workspace_runtime.sse import ServerSentEvents

from .. import cloning, remotes
from ..operations import Operation
from ..room import Write
from ..schemas import bodies, views
from .door import Cursor, Encoded, Wait, Where, answer, changed, room, told, where

router = APIRouter()
Named = Annotated[str, Path(max_length=1000)]
ACCEPTED = {202: {"model": views.OperationView, "description": "Begun: with `wait=false`."}}


async def _reaching_out(request: Request, kind: str, call: Write, *, wait: bool, worktree: bool = True) -> Response:
    """Begin work that speaks with another repository, and answer its result or, with 202, the operation."""
    operation = await room(request).begin(kind, where(request), call, kept=True, patient=not wait, worktree=worktree)
    return await told(request, operation, wait=wait)


@router.post("/push", response_model=views.PushView, responses=ACCEPTED, summary="Push")  # type: ignore[arg-type]
async def version_control_push(
    request: Request,
    body: bodies.PushBody | None = None,
    wait: Wait = True,
    path: Where = "",
    path_bytes: Encoded = None,
) -> Response:
    """Push a branch. Refused by the remote: 409 `push_rejected`, with what became of each ref."""
    asked = body or bodies.PushBody()
    return await _reaching_out(
        request,
        "push",
        lambda work: remotes.push(
            work,
            remote=asked.remote,
            branch=asked.branch,
            set_upstream=asked.set_upstream,
            force_with_lease=asked.force_with_lease,
            username=asked.username,
            token=asked.secret,
        ),
        wait=wait,
        worktree=False,
    )


@router.post("/pull", response_model=views.PullView, responses=ACCEPTED, summary="Pull")  # type: ignore[arg-type]
async def version_control_pull(
    request: Request,
    body: bodies.PullBody | None = None,
    wait: Wait = True,
    path: Where = "",
    path_bytes: Encoded = None,
) -> Response:
    """Fetch, and bring it into the current branch. Diverged and no mode said or configured: 409 `diverged`."""
    asked = body or bodies.PullBody()
    return await _reaching_out(
        request,
        "pull",
        lambda work: remotes.pull(
            work,
            remote=asked.remote,
            branch=asked.branch,
            mode=asked.mode,
            autostash=asked.autostash,
            username=asked.username,
            token=asked.secret,
        ),
        wait=wait,
    )


@router.post("/fetch", response_model=views.FetchView, responses=ACCEPTED, summary="Fetch")  # type: ignore[arg-type]
async def version_control_fetch(
    request: Request,
    body: bodies.FetchBody | None = None,
    wait: Wait = True,
    path: Where = "",
    path_bytes: Encoded = None,
) -> Response:
    """Get what is new at a remote, or at all. Answers the refs that have changed."""
    asked = body or bodies.FetchBody()
    return await _reaching_out(
        request,
        "fetch",
        lambda work: remotes.fetch(
            work, remote=asked.remote, every=asked.all, prune=asked.prune, username=asked.username, token=asked.secret
        ),
        wait=wait,
        worktree=False,
    )


@router.post(
    "/clone",
    status_code=202,
    response_model=views.OperationView,
    responses={201: {"model": views.MadeView, "description": "Done: with `wait=true`."}},
    summary="Clone",
)
async def version_control_clone(request: Request, body: bodies.CloneBody, wait: Wait = False) -> Response:
    """Get a repository into a new folder of the workspace. It appears when it is whole; cancelled, nothing is left."""
    here = room(request)
    cloning.prepared(body.url, body.username, body.secret)
    named = body.path is not None or body.path_bytes is not None
    path = bodies.workspace_path(body.path if named else cloning.folder_name(body.url), body.path_bytes)
    operation = await here.begin_new(
        "clone",
        path,
        lambda work: cloning.clone(
            work,
            here.operations,
            here.root,
            url=body.url,
            path=path,
            branch=body.branch,
            depth=body.depth,
            bare=body.bare,
            username=body.username,
            token=body.secret,
        ),
        kept=True,
    )
    return await told(request, operation, wait=wait, status=201)


@router.post(
    "/init",
    status_code=201,
    response_model=views.MadeView,
    responses={200: {"model": views.MadeView, "description": "There is one already."}},
    summary="Make a repository",
)
async def version_control_init(request: Request, body: bodies.InitBody | None = None) -> Response:
    """Make a repository in a folder of the workspace. Harmless where there is one."""
    here, asked = room(request), body or bodies.InitBody()
    path = bodies.workspace_path(asked.path, asked.path_bytes)
    operation = await here.begin_new(
        "init",
        path,
        lambda work: cloning.init(work, here.root, path=path, initial_branch=asked.initial_branch, bare=asked.bare),
    )
    made = await here.operations.result(operation)
    return answer(made, 201 if made["created"] else 200)


@router.post("/remotes", status_code=201, response_model=views.NamedView, summary="Add a remote")
async def version_control_add_remote(
    request: Request, body: bodies.NewRemoteBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Know another repository by a name."""
    return await changed(
        request, "add_remote", lambda work: remotes.add(work, name=body.name, url=body.url), 201, worktree=False
    )


@router.patch("/remotes/{name:path}", response_model=views.NamedView, summary="Change a remote")
async def version_control_change_remote(
    request: Request, name: Named, body: bodies.RemoteChangeBody, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Another address, another name, or both."""
    return await changed(
        request,
        "change_remote",
        lambda work: remotes.change(work, name=name, new_name=body.new_name, url=body.url),
        worktree=False,
    )


@router.delete("/remotes/{name:path}", response_model=views.DoneView, summary="Remove a remote")
async def version_control_remove_remote(
    request: Request, name: Named, path: Where = "", path_bytes: Encoded = None
) -> Response:
    """Forget a remote, and the branches that were fetched from it."""
    return await changed(request, "remove_remote", lambda work: remotes.forget(work, name=name), worktree=False)


# --- operations -----------------------------------------------------------------------------------------------------------------


@router.get("/operations", response_model=views.OperationList, summary="List operations")
async def version_control_operations(request: Request, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """What changes repositories now or has done so lately, the newest first. A long result is left out here: `truncated`."""
    return answer(room(request).operations.page(limit, cursor))


@router.get(
    "/operations/{operation_id}",
    response_model=views.OperationView,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    summary="One operation",
)
async def version_control_operation(request: Request, operation_id: str) -> Response:
    """The operation with its progress, and at its end its result. With `Accept: text/event-stream` it is told with each change, up to
    its end."""
    operation = room(request).operations.get(operation_id)
    if "text/event-stream" in request.headers.get("accept", ""):
        return OperationStream(operation)
    return answer(operation.view())


@router.delete("/operations/{operation_id}", response_model=views.OperationView, summary="Cancel an operation")
async def version_control_cancel(request: Request, operation_id: str) -> Response:
    """End it with all that it has started. Harmless when it has ended."""
    operations = room(request).operations
    operation = operations.get(operation_id)
    await operations.cancel(operation)
    return answer(operation.view())


class OperationStream(ServerSentEvents):
    """An operation as it goes on."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self._operation = operation

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """See the class."""
        async for data in self._operation.watch():
            yield b"data: " + in_one_line(data) + b"\n\n"
