"""What a request to the files says beside its target: flags, and bodies in pieces."""

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.queries import invalid

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

PIECE_BYTES = 1024 * 1024


def flag(query: Mapping[str, str], name: str) -> bool:
    """A yes or no of the query. Raises 422."""
    word = query.get(name, "false").lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise invalid(name, "must be true or false")


def wants_json(query: Mapping[str, str]) -> bool:
    """Whether the JSON form is asked for."""
    form = query.get("format")
    if form not in (None, "json", "raw"):
        raise invalid("format", "must be json or left out")
    return form == "json"


def length_of(scope: Scope) -> int | None:
    """The body's length as it is announced, None where it is not."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return None


# By these a client says that it sends a part of a file (RFC 9110, 14.5, and the draft of resumable uploads), unless with these values.
_PARTIAL = {"content-range": None, "upload-offset": "0", "upload-complete": "?1", "upload-incomplete": "?0"}


def refuse_partial(headers: Mapping[str, str]) -> None:
    """Refuse a body that is said to be a part of the file, or not its bytes as they are: it would be taken for the whole.

    Raises `partial_content_refused`, `content_encoding_refused`.
    """
    for name, whole in _PARTIAL.items():
        if headers.get(name, whole) != whole:
            detail = f"{name} says that the body is a part of the file. Send the whole file, without that header."
            raise WorkspaceError("partial_content_refused", detail)
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        detail = f"The body is said to be encoded as {encoding!r}. Send the file's bytes as they are."
        raise WorkspaceError("content_encoding_refused", detail)


def too_large(limit: int) -> WorkspaceError:
    """A 413."""
    return WorkspaceError("body_too_large", f"A body may have {limit} bytes here at most.", limit=limit)


class CutError(Exception):
    """The request or the answer ended before it was whole; nothing more can be said on this connection."""


async def body_in_pieces(receive: Receive, limit: int) -> AsyncIterator[bytearray]:
    """A request's body in large pieces.

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
            raise too_large(limit)
        piece += body
        if len(piece) >= PIECE_BYTES or (piece and not more):
            yield piece
            piece = bytearray()


async def whole_body(receive: Receive, length: int | None, limit: int) -> bytearray:
    """A request's whole body. Raises as `body_in_pieces`."""
    if length is not None and length > limit:
        raise too_large(limit)
    body = bytearray()
    async for piece in body_in_pieces(receive, limit):
        body += piece
    return body


def content_of(body: bytearray) -> tuple[bytes, int | None]:
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
