"""The door to the bytes of files: plain ASGI, since a framework would cost more than the work itself.

It serves `/api/v1/files/{path}` (GET, HEAD, PUT, DELETE) and the upload. The path is taken from the bytes of the request's
target, percent-decoded once, and goes through the gate alone. Small files that the kernel has in memory are read on the event
loop by calls that can't wait; all else runs in threads. Whatever is large passes in pieces, as fast as the other side takes it.

What a file holds never runs in our origin: every answer with a file's bytes is sandboxed by its content security policy, and its
type is not guessed at.
"""

import asyncio
import contextlib
import errno
import functools
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import orjson

from workspace_runtime.conditions import Conditions, byte_range, conditions, http_date, read_status
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.media import media_type
from workspace_runtime.paths import etag_of, open_held, parse, path_bytes, refusal, shown
from workspace_runtime.queries import headers_of, invalid, query_of, query_path

from .archive import pack
from .as_json import Form, ShorterError, form_of, pieces, read_all
from .changes import delete
from .requests import (
    CutError,
    Headers,
    Receive,
    Scope,
    Send,
    body_in_pieces,
    content_of,
    flag,
    length_of,
    listening,
    refuse_partial,
    too_large,
    wants_json,
    whole_body,
)  # fmt: skip
from .room import Files
from .stopping import Stopped
from .times import timestamp
from .upload import Upload, boundary_of
from .writing import Replacement, Written

logger = logging.getLogger(__name__)

PREFIX = b"/api/v1/files/"
UPLOAD = b"/api/v1/files/upload"
# A file up to this size is read on the loop when the kernel has it, and a body up to it written by one call.
SMALL_BYTES = 64 * 1024
PIECE_BYTES = 256 * 1024

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


@functools.lru_cache(maxsize=4096)
def _last_modified(seconds: int) -> bytes:
    return http_date(seconds).encode()


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
        if method == "GET" and not scope["query_string"]:  # the common one
            return await self._read(scope, parse(unquote_to_bytes(target)), more, receive, send, head=False)
        if method == "POST":
            return await self._upload(scope, more, receive, send)
        query = query_of(scope)
        if method in ("GET", "HEAD") and "archive" in query:
            path = parse(unquote_to_bytes(target)) if target else query_path(query)
            kind = query["archive"]
            skip, head = flag(query, "skip"), method == "HEAD"
            return await send_archive(self._files, path, kind, more, receive, send, head=head, skip=skip)
        path = parse(unquote_to_bytes(target))
        if method in ("GET", "HEAD"):
            if wants_json(query):
                return await self._read_json(scope, path, more, receive, send, head=method == "HEAD")
            return await self._read(scope, path, more, receive, send, head=method == "HEAD")
        if method == "PUT":
            return await self._write(scope, path, query, more, receive, send)
        if method == "DELETE":
            recursive = flag(query, "recursive")
            wanted, stopped = conditions(headers_of(scope)), self._files.stopped
            await self._files.long(delete, self._root, path, wanted, recursive=recursive, stopped=stopped)
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
            size, modified = status.st_size, int(status.st_mtime)
            etag = etag_of(status)
            code, start, end = 200, 0, size
            headers = [
                *more,
                *_FILE_HEADERS,
                (b"content-type", media_type(path)),
                (b"etag", etag.encode()),
                (b"last-modified", _last_modified(modified)),
            ]
            if not _CONDITIONAL.isdisjoint([name for name, _ in scope["headers"]]):
                asked = headers_of(scope)
                code = read_status(asked, etag, modified)
                if code == 412:
                    raise _changed(path, etag)
                if code == 304:
                    await _not_modified(send, headers)
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

    async def _read_json(
        self, scope: Scope, path: bytes, more: Headers, receive: Receive, send: Send, *, head: bool
    ) -> int:
        opened, status = await self._files.short(self._open, path)
        try:
            size, etag = status.st_size, etag_of(status)
            if size > (limit := self._files.max_body_bytes):
                detail = f"{shown(path)!r} has {size} bytes; as JSON {limit} are given at most."
                raise WorkspaceError("file_too_large", detail, size=size, limit=limit)
            headers = [*more, (b"etag", etag.encode()), (b"cache-control", b"no-cache")]
            code = read_status(headers_of(scope), etag, int(status.st_mtime))
            if code == 412:
                raise _changed(path, etag)
            if code == 304:
                await _not_modified(send, headers)
                return 304
            told = _told(path, size, etag, stat.S_IMODE(status.st_mode)) | {
                "modified_at": timestamp(status.st_mtime_ns)
            }
            start = orjson.dumps(told, option=orjson.OPT_UTC_Z)[:-1] + b',"content":"'
            if size <= SMALL_BYTES:
                body = start + await self._files.short(_rest_of_json, opened, size, path)
                await _answer(send, 200, body, headers, head=head)
                return 200
            form = await self._files.measuring(_form_of, opened, size, path)
            end = _end_of_json(form)
            length = (b"content-length", b"%d" % (len(start) + form.length + len(end)))
            headers = [*headers, (b"content-type", b"application/json"), length]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if head:
                await send({"type": "http.response.body", "body": b""})
            else:
                await send({"type": "http.response.body", "body": start, "more_body": True})
                await self._stream_json(opened, status, form, receive, send)
                await send({"type": "http.response.body", "body": end})
            return 200
        finally:
            os.close(opened)

    async def _stream_json(self, opened: int, status: os.stat_result, form: Form, receive: Receive, send: Send) -> None:
        """Send a content within its quotes. Where the file was changed meanwhile, the answer is cut, and so seen to be."""
        made = pieces(opened, status.st_size, form.encoding)
        left = form.length
        async with listening(receive) as gone:
            while left:
                try:
                    piece = await self._files.short(next, made, b"")
                except (OSError, UnicodeDecodeError, ShorterError) as fault:
                    logger.warning("a file could not be read to its end: %r", fault)
                    raise CutError from None
                left -= len(piece)
                if gone.done() or left < 0 or not piece:
                    raise CutError
                if not left and _content_moment(os.fstat(opened)) != _content_moment(status):
                    raise CutError
                await send({"type": "http.response.body", "body": piece, "more_body": True})

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _write(
        self, scope: Scope, path: bytes, query: Mapping[str, str], more: Headers, receive: Receive, send: Send
    ) -> int:
        headers_sent = headers_of(scope)
        refuse_partial(headers_sent)
        wanted = conditions(headers_sent)
        length = length_of(scope)
        if wants_json(query):
            body = await whole_body(receive, length, self._files.max_body_bytes)
            content, mode = content_of(body)
            written = await self._files.short(self._write_once, path, wanted, content, mode)
        elif length is not None and length <= SMALL_BYTES:
            body = await whole_body(receive, length, SMALL_BYTES)
            written = await self._files.short(self._write_once, path, wanted, body, None)
        else:
            written = await self._write_stream(path, wanted, length, receive)
        status = 200 if written.result == "replaced" else 201
        headers = [*more, (b"etag", written.etag.encode())]
        if status == 201:
            root_path: str = scope.get("root_path", "")
            headers.append((b"location", root_path.encode() + PREFIX + quote(path).encode()))
        told = _told(written.path, written.size, written.etag, written.mode)
        if written.in_place:
            told["in_place"] = True
        await _answer(send, status, orjson.dumps(told), headers)
        return status

    def _write_once(self, path: bytes, wanted: Conditions, content: bytes | bytearray, mode: int | None) -> Written:
        with contextlib.closing(self._files.writer.begin(path, wanted, mode=mode)) as new:
            new.write(content)
            return new.commit()

    async def _write_stream(self, path: bytes, wanted: Conditions, length: int | None, receive: Receive) -> Written:
        limit = self._files.max_upload_bytes
        if length is not None and length > limit:
            raise too_large(limit)
        files = self._files
        new: Replacement = await files.short(files.writer.begin, path, wanted)
        try:
            async for piece in body_in_pieces(receive, limit):
                await files.short(new.write, piece)
            return await files.short(new.commit)
        finally:
            await files.short(new.close)

    async def _upload(self, scope: Scope, more: Headers, receive: Receive, send: Send) -> int:
        query = query_of(scope)
        headers_sent = headers_of(scope)
        refuse_partial(headers_sent)
        boundary = boundary_of(headers_sent.get("content-type", "").encode("latin-1"))
        folder = query_path(query)
        on_conflict = query.get("on_conflict", "overwrite")
        if on_conflict not in ("overwrite", "rename", "reject"):
            raise invalid("on_conflict", "must be overwrite, rename or reject")
        length, limit = length_of(scope), self._files.max_upload_bytes
        if length is not None and length > limit:
            raise too_large(limit)
        extract = flag(query, "extract")
        upload = Upload(self._files, boundary, folder, on_conflict=on_conflict, extract=extract)  # type: ignore[arg-type]
        try:
            async for piece in body_in_pieces(receive, limit):
                await self._files.short(upload.feed, piece)
            upload.finish()
            if extract:
                await self._unpack(upload, receive)
        except WorkspaceError as fault:
            if upload.items:
                fault.data |= upload.answer()
            raise
        finally:
            await self._files.short(upload.close)
        if upload.refused:
            detail = f"{upload.refused} of {upload.count} files were refused, the others were written."
            raise WorkspaceError("upload_refused", detail, **upload.answer())
        await _answer(send, 201, orjson.dumps(upload.answer()), more)
        return 201

    async def _unpack(self, upload: Upload, receive: Receive) -> None:
        """Unpack until the end, or until the client has gone: then the next entry is the last."""
        async with listening(receive) as gone:
            try:
                await self._files.long(upload.unpack, lambda: gone.done() or self._files.stopped())
            except Stopped:
                if gone.done():
                    raise CutError from None
                raise


async def send_archive(
    files: Files, path: bytes, kind: str, more: Headers, receive: Receive, send: Send, *, head: bool, skip: bool
) -> int:
    """Answer with a folder as an archive, packed while it is sent. Raises `WorkspaceError` before anything was sent."""
    if kind not in ("zip", "tar.gz"):
        raise invalid("archive", "must be zip or tar.gz")
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
    stopped = lambda: stop.is_set() or files.stopped()  # noqa: E731
    pieces = pack(files.root, path, kind, stopped=stopped, skip=skip)  # type: ignore[arg-type]
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
                except WorkspaceError as fault:
                    # without its end nobody takes the archive for whole
                    logger.warning("the download of %r was cut: %s", shown(path), fault)
                    raise CutError from None
        await send({"type": "http.response.body", "body": b""})
    finally:
        stop.set()
        await files.long(pieces.close)
    return 200


# --- answering --------------------------------------------------------------------------------------------------------------


def _told(path: bytes, size: int, etag: str, mode: int) -> dict[str, Any]:
    told: dict[str, Any] = {"path": shown(path), "size": size, "etag": etag, "mode": f"{mode:04o}"}
    if encoded := path_bytes(path):
        told["path_bytes"] = encoded
    return told


@contextlib.contextmanager
def _reading(path: bytes) -> Iterator[None]:
    """What may go wrong while a file is read, as `WorkspaceError`: `file_busy` where it was changed meanwhile."""
    try:
        yield
    except (ShorterError, UnicodeDecodeError):
        raise WorkspaceError("file_busy", f"{shown(path)!r} was changed while it was read.", path=shown(path)) from None
    except OSError as fault:
        raise refusal(fault, path) from None


def _read_part(opened: int, start: int, end: int, path: bytes) -> bytes:
    """A part of an open file, all of it or none. Raises as `_reading`."""
    with _reading(path):
        return read_all(opened, start, end - start)


def _form_of(opened: int, size: int, path: bytes) -> Form:
    """As `form_of`. Raises as `_reading`."""
    with _reading(path):
        return form_of(opened, size)


def _rest_of_json(opened: int, size: int, path: bytes) -> bytes:
    """All of a small file's content within its quotes, and what follows. Raises as `_reading`."""
    with _reading(path):
        form = form_of(opened, size)
        return b"".join(pieces(opened, size, form.encoding)) + _end_of_json(form)


def _content_moment(status: os.stat_result) -> tuple[int, int]:
    """What changes with the content, and not when the file is replaced or renamed, as its etag does."""
    return status.st_mtime_ns, status.st_size


def _end_of_json(form: Form) -> bytes:
    return b'","encoding":"%b"}' % form.encoding.encode()


def _changed(path: bytes, etag: str) -> WorkspaceError:
    return WorkspaceError("precondition_failed", f"{shown(path)!r} has changed.", path=shown(path), etag=etag)


async def _not_modified(send: Send, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": 304, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _answer(send: Send, status: int, body: bytes, headers: Headers, *, head: bool = False) -> None:
    length = (b"content-length", b"%d" % len(body))
    headers = [*headers, (b"content-type", b"application/json"), length]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})
