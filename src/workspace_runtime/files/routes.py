"""The HTTP doors of the files: lists, changes of names and searches; and the documents of what `door.py` answers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request, Response
from starlette.types import Receive, Scope, Send

from workspace_runtime.bodies import Limit, raw
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import as_text, path_bytes, shown
from workspace_runtime.queries import query_of, query_path

from . import schemas
from .changes import make_folder
from .content_search import ContentQuery
from .content_search import search as search_lines
from .index import Snapshot
from .listing import MAX_DEPTH, MAX_PAGE_BYTES, Listing, list_folder
from .quick_open import Match
from .quick_open import search as quick_open
from .requests import listening
from .room import Files
from .transfers import AcrossError, copy, move, move_across

router = APIRouter(prefix="/api/v1", tags=["Files"])

Encoded = Annotated[
    str | None, Query(max_length=16384, description="`path` percent-encoded once more: for names that are not UTF-8.")
]
Skip = Annotated[
    bool,
    Query(description="With `archive`: leave out what may not be read, and name it in a text file beside the folder."),
]
IfMatch = "`If-Match` with the etag that was read changes it only if it is still the same; else 412."


def _files(request: Request) -> Files:
    files: Files = request.app.state.files
    return files


def _path(request: Request) -> bytes:
    """The path of the query, as its bytes are: the framework's own reading loses what is not UTF-8."""
    return query_path(query_of(request.scope))


_ARCHIVES: dict[str, Any] = {
    kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("application/zip", "application/gzip")
}


@router.get(
    "/files", response_model=schemas.EntryPage, summary="List a folder", responses={200: {"content": _ARCHIVES}}
)
async def list_files(
    request: Request,
    path: Annotated[str, Query(max_length=8192, description="The folder; empty for the root.")] = "",
    path_bytes: Encoded = None,
    recursive: Annotated[bool, Query(description="All levels: each folder is followed by what is in it.")] = False,
    depth: Annotated[
        int | None, Query(ge=1, le=MAX_DEPTH, description="How many levels; 1 is the folder alone.")
    ] = None,
    hidden: Annotated[bool, Query(description="Also names that begin with a dot.")] = True,
    ignored: Annotated[
        bool | None,
        Query(description="Also what git ignores. Left out: true, and false when several levels are listed."),
    ] = None,
    sort: Literal["name", "-name", "size", "-size", "modified_at", "-modified_at"] = "name",
    limit: Limit = 50,
    cursor: Annotated[str | None, Query(max_length=16384, description="`next_cursor` of the page before.")] = None,
    archive: Annotated[
        Literal["zip", "tar.gz"] | None,
        Query(description="Downloads the folder instead; the door of the files does it."),
    ] = None,
    skip: Skip = False,
) -> Response:
    """What a folder holds, directories first. `.git` is never listed."""
    levels = depth or (MAX_DEPTH if recursive else 1)
    wanted = Listing(
        path=_path(request),
        depth=levels,
        hidden=hidden,
        ignored=ignored if ignored is not None else levels == 1,
        order=sort,
        limit=limit,
        cursor=cursor,
    )
    return raw(await _files(request).counting(_list, _files(request), wanted))


def _list(files: Files, wanted: Listing) -> bytes:
    page = list_folder(files.root, wanted)
    body = {"path": shown(wanted.path), "items": page.items, "next_cursor": page.next_cursor}
    return orjson.dumps(body, option=orjson.OPT_UTC_Z)


@router.post(
    "/files/mkdir",
    status_code=201,
    response_model=schemas.FolderView,
    responses={200: {"model": schemas.FolderView, "description": "It is there already."}},
    summary="Make a folder",
)
async def make_directory(request: Request, body: schemas.FolderBody) -> Response:
    """Make a folder and those on the way to it. 200 where it is there already."""
    path = body.wanted()
    created = await _files(request).short(make_folder, _files(request).root, path)
    return raw(orjson.dumps({"path": shown(path), "created": created}), 201 if created else 200)


@router.post("/files/move", response_model=schemas.MoveView, summary="Move or rename")
async def move_file(request: Request, body: schemas.MoveBody) -> Response:
    """Move a file, a link or a folder. With `overwrite` a file or an empty folder is replaced; nothing is ever merged."""
    source, target = body.wanted()
    files = _files(request)
    try:
        replaced = await files.short(move, files.root, source, target, overwrite=body.overwrite)
    except AcrossError:
        replaced = await files.long(
            move_across, files.writer, source, target, overwrite=body.overwrite, stopped=files.stopped
        )
    return raw(orjson.dumps({"path": shown(target), "replaced": replaced}))


@router.post(
    "/files/copy",
    status_code=201,
    response_model=schemas.MoveView,
    responses={200: {"model": schemas.MoveView, "description": "It replaced a file."}},
    summary="Copy",
)
async def copy_file(request: Request, body: schemas.MoveBody) -> Response:
    """Copy a file, a link (as a link), or a folder with all in it. 200 where a file was replaced."""
    source, target = body.wanted()
    files = _files(request)
    replaced = await files.long(copy, files.writer, source, target, overwrite=body.overwrite, stopped=files.stopped)
    return raw(orjson.dumps({"path": shown(target), "replaced": replaced}), 200 if replaced else 201)


# --- searching --------------------------------------------------------------------------------------------------------------


@router.get("/search/files", response_model=schemas.FoundPaths, tags=["Search"], summary="Find files by name")
async def search_files(
    request: Request,
    q: Annotated[str, Query(max_length=500, description="Letters of the path, in order; words in any order.")] = "",
    kind: Literal["file", "directory", "any"] = "file",
    limit: Limit = 50,
) -> Response:
    """The paths that fit best, as an editor's quick-open finds them. What git ignores is left out. Never stale. Where the best are
    very long there are fewer than `limit`."""
    files = _files(request)

    def find() -> bytes:
        snapshot: Snapshot = files.index.refresh()
        found = quick_open(snapshot, q, kind=kind, limit=limit)
        items, size = [], 0
        for match in found:
            items.append(_found(match))
            size += 13 * len(match.path) + 6 * len(match.positions) + 200  # at most, however it is escaped
            if size > MAX_PAGE_BYTES:
                break
        return orjson.dumps({"items": items, "next_cursor": None})

    return raw(await files.counting(find))


def _found(match: Match) -> dict[str, object]:
    path = as_text(match.path)
    found: dict[str, object] = {
        "path": path,
        "name": path.rpartition("/")[2],
        "type": "directory" if match.is_dir else "file",
        "score": match.score,
        "positions": match.positions,
    }
    if encoded := path_bytes(match.path.encode("utf-8", "surrogateescape")):
        found["path_bytes"] = encoded
    return found


@router.get(
    "/search/content",
    tags=["Search"],
    summary="Find lines by what they hold",
    response_class=Response,
    responses={
        200: {
            "description": "A JSON object a line: matches (and lines around them) as they are found, at last a summary.",
            "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
        }
    },
)
async def search_content(
    request: Request,
    q: Annotated[str, Query(min_length=1, max_length=4096, description="The text, or with `regex` the pattern.")],
    regex: Annotated[bool, Query(description="`q` is a regular expression, in ripgrep's own syntax.")] = False,
    case: Annotated[
        Literal["smart", "sensitive", "insensitive"], Query(description="smart: as `q` has capitals.")
    ] = "smart",
    word: Annotated[bool, Query(description="Only whole words.")] = False,
    glob: Annotated[
        list[str] | None, Query(max_length=100, description="Only such files; with `!` in front, not these.")
    ] = None,
    path: Annotated[str, Query(max_length=8192, description="A file or folder; empty for all.")] = "",
    path_bytes: Encoded = None,
    hidden: bool = True,
    ignored: Annotated[bool, Query(description="Also in what git ignores.")] = False,
    context: Annotated[int, Query(ge=0, le=10, description="Lines around each match.")] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000, description="How many matches at most.")] = 1000,
) -> Response:
    """Searches with ripgrep, and sends what it finds while it searches (`application/x-ndjson`). It ends with a `summary`, at the
    limit, or with the client; an answer without a summary was cut."""
    query = ContentQuery(
        q=q, regex=regex, case=case, word=word, globs=glob or [], path=_path(request), hidden=hidden, ignored=ignored,
        context=context, limit=limit,
    )  # fmt: skip
    return LineStream(search_lines(_files(request).root, query))


class LineStream(Response):
    """JSON lines as they come. When the client goes, the search ends."""

    media_type = "application/x-ndjson"

    def __init__(self, lines: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. What is wrong with the query shows before the first line, and is raised then."""
        headers = [
            (b"content-type", b"application/x-ndjson"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        started = False
        try:
            async with listening(receive) as gone:
                while (block := await self._next(gone)) is not None:
                    if not started:
                        started = True
                        await send({"type": "http.response.start", "status": 200, "headers": headers})
                    await send({"type": "http.response.body", "body": block, "more_body": True})
                if not gone.done():
                    await send({"type": "http.response.body", "body": b""})
        finally:
            await self._lines.aclose()

    async def _next(self, gone: asyncio.Task[None]) -> bytes | None:
        """The next lines, None at the end and when the client has gone."""
        block = asyncio.get_running_loop().create_task(anext(self._lines, None))
        await asyncio.wait((block, gone), return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            block.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await block
            return None
        return block.result()


# --- what door.py answers: here for the documents alone -----------------------------------------------------------------------

_BYTES = {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}


def _elsewhere() -> Response:
    raise WorkspaceError("not_found", "The door of the files answers this.")


@router.get(
    "/files/{path:path}",
    summary="Read a file",
    response_class=Response,
    responses={
        200: {"description": "The bytes; with `format=json` an object.", "content": {
            **_BYTES["content"], "application/json": {"schema": schemas.ContentView.model_json_schema()},
        }},
        206: {"description": "The range that was asked for.", **_BYTES},
        304: {"description": "Unchanged since the etag or time that was sent."},
    },
)  # fmt: skip
async def read_file(
    path: str,
    format: Annotated[
        Literal["json"] | None, Query(description="An object with the content, instead of the bytes.")
    ] = None,
    archive: Annotated[Literal["zip", "tar.gz"] | None, Query(description="Downloads a folder.")] = None,
    skip: Skip = False,
) -> Response:
    """The file's bytes, whatever `Accept` says, with `ETag`, `Last-Modified`, `Range` and conditions."""
    return _elsewhere()


@router.put(
    "/files/{path:path}",
    response_model=schemas.WrittenView,
    summary="Write a file",
    responses={
        201: {"model": schemas.WrittenView, "description": "It is new."},
        200: {"description": "It was replaced."},
    },
    openapi_extra={
        "requestBody": {
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                "application/json": {"schema": schemas.ContentBody.model_json_schema()},
            }
        }
    },
)
async def write_file(
    path: str,
    format: Annotated[Literal["json"] | None, Query(description="The body is an object with the content.")] = None,
) -> Response:
    """The body is the content, whatever `Content-Type` says. Every reader sees the old or the new file whole; what this answers
    is on the disk. Folders on the way are made, mode and owner kept, a link is followed. `If-Match` with the etag that was read,
    or `If-None-Match: *`, makes sure that nobody else's change is lost: else 412."""
    return _elsewhere()


@router.delete("/files/{path:path}", status_code=204, summary="Delete a file or folder")
async def delete_file(
    path: str, recursive: Annotated[bool, Query(description="Also a folder, and all in it.")] = False
) -> Response:
    """Delete a file, a link (never what it leads to), or a folder. `If-Match` is honoured."""
    return _elsewhere()


@router.post(
    "/files/upload",
    status_code=201,
    response_model=schemas.UploadView,
    summary="Upload files",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
                }
            },
        }
    },
)
async def upload_files(
    path: Annotated[str, Query(max_length=8192, description="The folder that the names are below.")] = "",
    path_bytes: Encoded = None,
    on_conflict: Annotated[
        Literal["overwrite", "rename", "reject"], Query(description="What happens where there is one of this name.")
    ] = "overwrite",
    extract: Annotated[bool, Query(description="Unpack the archives (zip, tar, tar.gz, tar.bz2, tar.xz).")] = False,
) -> Response:
    """Any part with a filename becomes a file; a filename may name folders on the way. Each is written whole or not at all.
    Where some are refused the answer is 409 `upload_refused` with the same `items`, and the others stand."""
    return _elsewhere()
