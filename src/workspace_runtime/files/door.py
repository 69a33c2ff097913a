"""The door to the bytes of files: plain ASGI, since a framework would cost more than the work itself.

It serves `/api/v1/files/{path}` (GET, HEAD, PUT, DELETE) and the upload. The path is taken from the bytes of the request's
target, percent-decoded once, and goes through the gate alone. Small files that the kernel has in memory are read on the event
loop by calls that can't wait; all else runs in threads. Whatever is large passes in pieces, as fast as the other side takes it.

What a file holds never runs in our origin: every answer with a file's bytes is sandboxed by its content security policy, and its
type is not guessed at.
"""

import asyncio
import base64
import binascii
import contextlib
import errno
import functools
import logging
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_to_bytes

import orjson

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import etag_of, open_held, parse, path_bytes, refusal, shown

from .archive import Stopped, pack
from .changes import delete
from .conditions import Conditions, byte_range, conditions, http_date, read_status
from .media import media_type
from .room import Files
from .times import timestamp
from .upload import Upload, boundary_of
from .writing import Replacement, Written

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

PREFIX = b"/api/v1/files/"
UPLOAD = b"/api/v1/files/upload"
# A file up to this size is read on the loop when the kernel has it, and a body up to it written by one call.
SMALL_BYTES = 64 * 1024
PIECE_BYTES = 256 * 1024
WRITE_BYTES = 1024 * 1024

_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_CONDITIONAL = frozenset(
    {b"range", b"if-range", b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"}
)
_SANDBOX = b"sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
_FILE_HEADERS: Headers = [
    (b"accept-ranges", b"bytes"),
    (b"cache-control", b"no-cache"),  # to be kept, and asked for again with its etag
    (b"content-security-policy", _SANDBOX),
]

_http_date = functools.lru_cache(maxsize=4096)(http_date)


class FileDoor:
    """See the module."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._root = files.root

    async def __call__(self, scope: Scope, target: bytes, more: Headers, receive: Receive, send: Send) -> int:
        """Answer a request to `/api/v1/files/…`; `target` is what follows, still encoded, `more` headers of every answer.

        Returns the status. Raises `WorkspaceError` for what is to be answered as a problem; then nothing was sent.
        """
        method: str = scope["method"]
        if method == "POST":
            return await self._upload(scope, more, receive, send)
        query = query_of(scope)
        if method in ("GET", "HEAD") and "archive" in query:
            path = parse(unquote_to_bytes(target)) if target else query_path(query)
            kind = query["archive"]
            return await send_archive(self._files, path, kind, more, receive, send, head=method == "HEAD")
        path = parse(unquote_to_bytes(target))
        if method in ("GET", "HEAD"):
            if _form(query):
                return await self._read_json(path, more, send, head=method == "HEAD")
            return await self._read(scope, path, more, receive, send, head=method == "HEAD")
        if method == "PUT":
            return await self._write(scope, path, query, more, receive, send)
        if method == "DELETE":
            recursive = _flag(query, "recursive")
            await self._files.long(delete, self._root, path, conditions(_headers(scope)), recursive=recursive)
            await send({"type": "http.response.start", "status": 204, "headers": more})
            await send({"type": "http.response.body", "body": b""})
            return 204
        raise WorkspaceError("method_not_allowed", f"{method} is not for files.", allow="GET, HEAD, PUT, DELETE")

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read(self, scope: Scope, path: bytes, more: Headers, receive: Receive, send: Send, *, head: bool) -> int:
        data: bytes | bytearray | None = None
        try:
            opened, status = self._open_quickly(path)
        except BlockingIOError:
            opened, status = await self._files.short(self._open, path)
        else:
            data = self._read_quickly(opened, status.st_size)
        try:
            size, etag, modified = status.st_size, etag_of(status), int(status.st_mtime)
            code, start, end = 200, 0, size
            headers = [
                *more,
                *_FILE_HEADERS,
                (b"content-type", media_type(path)),
                (b"etag", etag.encode()),
                (b"last-modified", _http_date(modified).encode()),
            ]
            if not _CONDITIONAL.isdisjoint([name for name, _ in scope["headers"]]):
                asked = _headers(scope)
                code = read_status(asked, etag, modified)
                if code == 412:
                    raise WorkspaceError("precondition_failed", f"{shown(path)!r} has changed.", etag=etag)
                if code == 304:
                    await send({"type": "http.response.start", "status": 304, "headers": headers})
                    await send({"type": "http.response.body", "body": b""})
                    return 304
                part = byte_range(asked, size, etag, modified)
                if part is not None:
                    code, (start, end) = 206, part
                    headers.append((b"content-range", b"bytes %d-%d/%d" % (start, end - 1, size)))
            headers.append((b"content-length", b"%d" % (end - start)))
            if data is None and not head and end - start <= SMALL_BYTES:
                data = await self._files.short(_read_part, opened, start, end, path)
            elif data is not None and end - start < size:
                data = data[start:end]
            await send({"type": "http.response.start", "status": code, "headers": headers})
            if head or data is not None:
                await send({"type": "http.response.body", "body": b"" if head else data})
            else:
                await self._stream(opened, start, end, receive, send)
            return code
        finally:
            os.close(opened)

    def _open_quickly(self, path: bytes) -> tuple[int, os.stat_result]:
        """As `_open`, on the event loop: raises `BlockingIOError` unless all of it is in the kernel's memory."""
        held = self._root.hold_quickly(path)
        try:
            status = os.fstat(held)
            if not stat.S_ISREG(status.st_mode) or status.st_dev != self._root.quick_device:
                raise BlockingIOError
            try:
                return open_held(held), status
            except OSError:
                raise BlockingIOError from None
        finally:
            os.close(held)

    def _read_quickly(self, opened: int, size: int) -> bytearray | None:
        """All of a small file if that needs no waiting."""
        if not _NOWAIT or size > SMALL_BYTES:
            return None
        buffer = bytearray(size)
        try:
            return buffer if size == 0 or os.preadv(opened, (buffer,), 0, _NOWAIT) == size else None
        except OSError:
            return None

    def _open(self, path: bytes) -> tuple[int, os.stat_result]:
        try:
            return self._root.open_file(path)
        except OSError as fault:
            raise refusal(fault, path) from None

    async def _stream(self, opened: int, start: int, end: int, receive: Receive, send: Send) -> None:
        """Send a part of a file in pieces. Where the file became shorter, the answer is cut, and so seen to be."""
        async with listening(receive) as gone:
            while start < end:
                try:
                    piece = await self._piece(opened, start, min(PIECE_BYTES, end - start))
                except OSError as fault:
                    logger.error("a file could not be read to its end: %s", fault)
                    raise CutError from None
                start += len(piece)
                if gone.done() or not piece:
                    raise CutError
                await send({"type": "http.response.body", "body": piece, "more_body": start < end})

    async def _piece(self, opened: int, start: int, size: int) -> bytes | bytearray | memoryview:
        if _NOWAIT:
            buffer = bytearray(size)
            try:
                done = os.preadv(opened, (buffer,), start, _NOWAIT)
                if done:
                    return buffer if done == size else memoryview(buffer)[:done]
            except OSError as fault:
                if fault.errno not in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        return await self._files.short(os.pread, opened, size, start)

    async def _read_json(self, path: bytes, more: Headers, send: Send, *, head: bool) -> int:
        body, etag = await self._files.short(self._json_of, path)
        await _answer(send, 200, body, [*more, (b"etag", etag.encode()), (b"cache-control", b"no-cache")], head=head)
        return 200

    def _json_of(self, path: bytes) -> tuple[bytes, str]:
        opened, status = self._open(path)
        try:
            if status.st_size > self._files.max_body_bytes:
                limit = self._files.max_body_bytes
                detail = f"{shown(path)!r} has {status.st_size} bytes; as JSON {limit} are given at most."
                raise WorkspaceError("file_too_large", detail, size=status.st_size, limit=limit)
            data = _read_part(opened, 0, status.st_size, path)
        finally:
            os.close(opened)
        try:
            content, encoding = data.decode(), "utf-8"
        except UnicodeDecodeError:
            content, encoding = base64.b64encode(data).decode(), "base64"
        told = _told(path, status.st_size, etag_of(status), stat.S_IMODE(status.st_mode))
        told |= {"modified_at": timestamp(status.st_mtime_ns), "content": content, "encoding": encoding}
        return orjson.dumps(told, option=orjson.OPT_UTC_Z), etag_of(status)

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _write(
        self, scope: Scope, path: bytes, query: Mapping[str, str], more: Headers, receive: Receive, send: Send
    ) -> int:
        wanted = conditions(_headers(scope))
        length = _length(scope)
        if _form(query):
            body = await _whole(receive, length, self._files.max_body_bytes)
            content, mode = _from_json(body)
            written = await self._files.short(self._write_once, path, wanted, content, mode)
        elif length is not None and length <= SMALL_BYTES:
            body = await _whole(receive, length, SMALL_BYTES)
            written = await self._files.short(self._write_once, path, wanted, body, None)
        else:
            written = await self._write_stream(path, wanted, length, receive)
        status = 200 if written.result == "replaced" else 201
        headers = [*more, (b"etag", written.etag.encode())]
        if status == 201:
            root_path: str = scope.get("root_path", "")
            headers.append((b"location", root_path.encode() + PREFIX + quote(path).encode()))
        told = _told(written.path, written.size, written.etag, written.mode)
        await _answer(send, status, orjson.dumps(told), headers)
        return status

    def _write_once(self, path: bytes, wanted: Conditions, content: bytes | bytearray, mode: int | None) -> Written:
        new = self._files.writer.begin(path, wanted, mode=mode)
        try:
            new.write(content)
            return new.commit()
        finally:
            new.close()

    async def _write_stream(self, path: bytes, wanted: Conditions, length: int | None, receive: Receive) -> Written:
        limit = self._files.max_upload_bytes
        if length is not None and length > limit:
            raise _too_large(limit)
        files = self._files
        new: Replacement = await files.short(files.writer.begin, path, wanted)
        try:
            async for piece in _pieces(receive, limit):
                await files.short(new.write, piece)
            return await files.short(new.commit)
        finally:
            await files.short(new.close)

    async def _upload(self, scope: Scope, more: Headers, receive: Receive, send: Send) -> int:
        query = query_of(scope)
        boundary = boundary_of(_headers(scope).get("content-type", "").encode("latin-1"))
        folder = query_path(query)
        on_conflict = query.get("on_conflict", "overwrite")
        if on_conflict not in ("overwrite", "rename", "reject"):
            raise _invalid("on_conflict", "must be overwrite, rename or reject")
        length, limit = _length(scope), self._files.max_upload_bytes
        if length is not None and length > limit:
            raise _too_large(limit)
        extract = _flag(query, "extract")
        upload = Upload(self._files, boundary, folder, on_conflict=on_conflict, extract=extract)  # type: ignore[arg-type]
        run = self._files.long if extract else self._files.short
        try:
            async for piece in _pieces(receive, limit):
                await run(upload.feed, piece)
            upload.finish()
        except WorkspaceError as fault:
            if upload.items:
                fault.data["items"] = upload.items
            raise
        finally:
            await run(upload.close)
        if upload.refused:
            count = sum(item["result"] == "refused" for item in upload.items)
            detail = f"{count} of {len(upload.items)} files were refused, the others were written."
            raise WorkspaceError("upload_refused", detail, items=upload.items)
        await _answer(send, 201, orjson.dumps({"items": upload.items}), more)
        return 201


async def send_archive(
    files: Files, path: bytes, kind: str, more: Headers, receive: Receive, send: Send, *, head: bool
) -> int:
    """Answer with a folder as an archive, packed while it is sent. Raises `WorkspaceError` before anything was sent."""
    if kind not in ("zip", "tar.gz"):
        raise _invalid("archive", "must be zip or tar.gz")
    name = shown(path.rpartition(b"/")[2]) or os.path.basename(files.root.path) or "workspace"
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    disposition = f"attachment; filename=\"{plain}.{kind}\"; filename*=UTF-8''{quote(name, safe='')}.{kind}"
    headers = [
        *more,
        (b"content-type", b"application/zip" if kind == "zip" else b"application/gzip"),
        (b"content-disposition", disposition.encode()),
        (b"cache-control", b"no-store"),
    ]
    stop = asyncio.Event()
    pieces = pack(files.root, path, kind, stopped=lambda: stop.is_set() or files.stopping)  # type: ignore[arg-type]
    try:
        piece = await files.long(next, pieces, b"")
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if head:
            await send({"type": "http.response.body", "body": b""})
            return 200
        async with listening(receive) as gone:
            while piece and not gone.done():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                try:
                    piece = await files.long(next, pieces, b"")
                except (WorkspaceError, Stopped) as fault:
                    # without its end nobody takes the archive for whole
                    logger.warning("the download of %r was cut: %s", shown(path), fault)
                    raise CutError from None
        await send({"type": "http.response.body", "body": b""})
    finally:
        stop.set()
        await files.long(pieces.close)
    return 200


# --- what a request says -----------------------------------------------------------------------------------------------------


def query_of(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """The query; bytes that are not UTF-8 as surrogates."""
    raw: bytes = scope["query_string"]
    if not raw:
        return {}
    text = raw.decode("utf-8", "surrogateescape")
    return dict(parse_qsl(text, keep_blank_values=True, errors="surrogateescape"))


def query_path(query: Mapping[str, str], name: str = "path") -> bytes:
    """A path of the query (`path` or `path_bytes`), empty for the root. Raises `path_invalid`."""
    encoded = query.get(f"{name}_bytes")
    path = unquote_to_bytes(_encoded(encoded)) if encoded is not None else _encoded(query.get(name, ""))
    return parse(path) if path not in (b"", b"/", b".") else b""


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _flag(query: Mapping[str, str], name: str) -> bool:
    word = query.get(name, "false").lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise _invalid(name, "must be true or false")


def _form(query: Mapping[str, str]) -> bool:
    """Whether the JSON form is asked for."""
    form = query.get("format")
    if form not in (None, "json", "raw"):
        raise _invalid("format", "must be json or left out")
    return form == "json"


def _invalid(field: str, detail: str) -> WorkspaceError:
    errors = [{"loc": ["query", field], "msg": detail, "type": "value_error"}]
    return WorkspaceError("validation_failed", f"{field}: {detail}", errors=errors)


def _headers(scope: Scope) -> dict[str, str]:
    """The headers by name; one that came more than once as a list with commas (RFC 9110, 5.3)."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return None


def _too_large(limit: int) -> WorkspaceError:
    return WorkspaceError("body_too_large", f"A body may have {limit} bytes here at most.", limit=limit)


class CutError(Exception):
    """The request or the answer ended before it was whole; nothing more can be said on this connection."""


async def _pieces(receive: Receive, limit: int) -> AsyncIterator[bytearray]:
    """A request's body in large pieces; the next is received while the one before is used.

    Raises `CutError` when it is cut, so that half a body is never taken for a whole one.
    """
    size = 0
    piece = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CutError
        body = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(body)
        if size > limit:
            raise _too_large(limit)
        piece += body
        if len(piece) >= WRITE_BYTES or (piece and not more):
            yield piece
            piece = bytearray()


async def _whole(receive: Receive, length: int | None, limit: int) -> bytearray:
    """A request's whole body. Raises as `_pieces`."""
    if length is not None and length > limit:
        raise _too_large(limit)
    body = bytearray()
    async for piece in _pieces(receive, limit):
        body += piece
    return body


def _from_json(body: bytearray) -> tuple[bytes, int | None]:
    """Content and mode of the JSON form."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as fault:
        raise WorkspaceError("malformed_json", f"The body is not valid JSON: {fault}.") from None
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise _bad_field("content", "must be a string")
    unknown = value.keys() - {"content", "encoding", "mode"}
    if unknown:
        raise _bad_field(min(unknown), "is not a field of it; there are content, encoding and mode")
    mode = value.get("mode")
    if mode is not None and not (isinstance(mode, str) and len(mode) in (3, 4) and not mode.strip("01234567")):
        raise _bad_field("mode", "must be octal digits such as 0644")
    encoding = value.get("encoding", "utf-8")
    if encoding == "utf-8":
        content = value["content"].encode()
    elif encoding == "base64":
        try:
            content = base64.b64decode(value["content"], validate=True)
        except (binascii.Error, ValueError):
            raise _bad_field("content", "is not valid base64") from None
    else:
        raise _bad_field("encoding", "must be utf-8 or base64")
    return content, int(mode, 8) & 0o777 if mode is not None else None


def _bad_field(name: str, detail: str) -> WorkspaceError:
    errors = [{"loc": ["body", name], "msg": detail, "type": "value_error"}]
    return WorkspaceError("validation_failed", f"{name}: {detail}", errors=errors)


# --- answering --------------------------------------------------------------------------------------------------------------


def _told(path: bytes, size: int, etag: str, mode: int) -> dict[str, Any]:
    told: dict[str, Any] = {"path": shown(path), "size": size, "etag": etag, "mode": f"{mode:04o}"}
    if encoded := path_bytes(path):
        told["path_bytes"] = encoded
    return told


def _read_part(opened: int, start: int, end: int, path: bytes) -> bytes:
    """A part of an open file, all of it or none. Raises `WorkspaceError`: `file_busy` where it became shorter."""
    pieces = []
    while start < end:
        try:
            piece = os.pread(opened, min(end - start, 2**30), start)
        except OSError as fault:
            raise refusal(fault, path) from None
        if not piece:
            raise WorkspaceError("file_busy", f"{shown(path)!r} became shorter while it was read.", path=shown(path))
        pieces.append(piece)
        start += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _answer(send: Send, status: int, body: bytes, headers: Headers, *, head: bool = False) -> None:
    length = (b"content-length", b"%d" % len(body))
    headers = [*headers, (b"content-type", b"application/json"), length]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})


@contextlib.asynccontextmanager
async def listening(receive: Receive) -> AsyncIterator[asyncio.Task[None]]:
    """A task that is done once the client has gone: `send` does not tell."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task = asyncio.get_running_loop().create_task(gone())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
