"""The entry: the outermost ASGI application, which every request and WebSocket passes.

It gives each request its id, asks the gate who may connect, bounds the body, adds the headers that every answer has, and turns
refusals into problem documents or close codes. The hot paths (health, one session) are answered here from bytes that are
already made; all other HTTP goes to FastAPI.
"""

import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

from starlette.exceptions import HTTPException

from . import logs
from .config import Config
from .errors import WorkspaceError
from .events.board import Board
from .files.door import PREFIX as FILES_PREFIX
from .files.door import UPLOAD, FileDoor
from .files.requests import CutError
from .logs import told
from .problems import MAX_REASON, MEDIA_TYPE, problem
from .security.cors import Cors
from .security.gate import Access, Gate
from .sessions.manager import SessionManager
from .sse import HEAD_SCOPE
from .streams.live import Narrowing, topics_of
from .streams.live_socket import LiveSocket
from .streams.reading import reading
from .streams.session_socket import SessionSocket
from .system.health import Health

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("workspace_runtime.access")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
SESSION_PREFIX = "/api/v1/agent-sessions/"
SOCKET_PREFIX = "/api/v1/ws/agent-sessions/"
LIVE_SOCKETS = ("/api/v1/ws", "/api/v1/ws/")
FILES = "/api/v1/files"
# Refused before the upgrade, with an HTTP status; all else is told by a close code, which a page can read.
REFUSED_ON_UPGRADE = frozenset({"bad_host", "host_refused", "origin_refused", "peer_refused", "headers_too_large"})

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_FIXED: Headers = [(b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin")]
# ReDoc's script names a logo on another host: the pages load nothing but what we serve.
_PAGE_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    b" font-src 'self' data:; worker-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def _loggable(path: str) -> str:
    """The path of a request as it may be logged: of an address in it, that may hold a password, only its beginning."""
    scheme, mark, _ = path.partition("://")
    return f"{scheme}{mark}..." if mark else path


class Api(Protocol):
    """The ASGI application behind the entry."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""


class Entry:
    """See the module."""

    def __init__(
        self,
        config: Config,
        gate: Gate,
        cors: Cors,
        manager: SessionManager,
        files: FileDoor,
        board: Board,
        health: Health,
        api: Api,
    ) -> None:
        self._root = config.root_path
        self._max_body = config.max_body_bytes
        self._log_access = config.access_log
        self._gate = gate
        self._cors = cors
        self._manager = manager
        self._files = files
        self._files_prefixes = (self._root.encode() + FILES_PREFIX, FILES_PREFIX)
        self._board = board
        self._health = health
        self._api = api
        self._run_id = secrets.token_hex(4).encode()
        self._counter = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request or WebSocket."""
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            return  # lifespan: the server's own process starts and stops the parts
        path: str = scope["path"]
        if self._root and path.startswith(self._root) and path[len(self._root) : len(self._root) + 1] in ("", "/"):
            path = path[len(self._root) :] or "/"  # a proxy that does not take the prefix away
        request_id = b""
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                request_id = value
        request_id = request_id or b"%b-%x" % (self._run_id, next(self._counter))
        logs.request_id.set(request_id.decode())
        if kind == "websocket":
            await self._websocket(scope, path, request_id, receive, send)
        else:
            await self._http(scope, path, request_id, receive, send)

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    async def _http(self, scope: Scope, path: str, request_id: bytes, receive: Receive, send: Send) -> None:
        method: str = scope["method"]
        started = time.monotonic() if self._log_access else 0.0
        more: Headers = [*_FIXED, (b"x-request-id", request_id)]
        if self._cors.active:
            more = [*self._cors.headers(scope), *more]
        status = 0
        try:
            access = self._gate.admit(scope, path)
            if path in HEALTH_PATHS and method in ("GET", "HEAD"):
                status, body = self._health.answer(path, stranger=access.stranger)
                await _answer(send, status, body, more, head=method == "HEAD")
            elif access.by == "preflight":
                status = 204
                await _answer(send, status, b"", [*more, *self._cors.preflight(scope)], content_type=None)
            elif method in ("GET", "HEAD") and path.startswith(SESSION_PREFIX) and path.find("/", 23) < 0:
                status = 200
                session = self._manager.get(path[23:])
                await _answer(send, status, self._manager.view_bytes(session), more, head=method == "HEAD")
            elif path.startswith(FILES) and (target := self._file_target(scope, path)) is not None:
                scope["root_path"] = self._root
                status = await self._files(scope, target, more, receive, send)
            else:
                status = await self._forward(
                    scope, path.rstrip("/") if path == FILES + "/" else path, request_id, more, receive, send
                )
        except CutError:
            status = 499  # for the log alone: nobody is there to be answered, or the answer has begun, and is cut
        except WorkspaceError as fault:
            status = fault.status
            await self._refuse(fault, request_id, more, send, head=method == "HEAD")
        except Exception:  # the edge: nothing was sent yet, or whoever had begun would have said that it is cut
            status = 500
            logger.exception("request failed", extra=told(path=_loggable(path)))
            unknown = WorkspaceError("internal_error", "Something went wrong in the server.")
            await self._refuse(unknown, request_id, more, send, head=method == "HEAD")
        if self._log_access:
            took = round((time.monotonic() - started) * 1000, 1)
            access_logger.info("request", extra=told(method=method, path=_loggable(path), status=status, took_ms=took))

    def _file_target(self, scope: Scope, path: str) -> bytes | None:
        """What a request to the files names, still encoded; None where the framework answers: lists, and changes of names."""
        raw: bytes = scope["raw_path"]
        method: str = scope["method"]
        if method == "GET" and raw.startswith(FILES_PREFIX) and len(raw) > len(FILES_PREFIX):
            return raw[len(FILES_PREFIX) :]  # the common one
        if path in (FILES, FILES + "/"):
            listed = method in ("GET", "HEAD") and b"archive=" not in scope["query_string"]
            return None if listed or (path == FILES and method not in ("GET", "HEAD")) else b""
        for prefix in self._files_prefixes:
            if raw.startswith(prefix):
                target = raw[len(prefix) :]
                return target if method != "POST" or FILES_PREFIX + target == UPLOAD else None
        return None

    async def _refuse(
        self, fault: WorkspaceError, request_id: bytes, more: Headers, send: Send, *, head: bool = False
    ) -> None:
        body = problem(fault.code, fault.detail, request_id.decode(), fault.data)
        if fault.status == 401:
            more = [*more, (b"www-authenticate", b'Bearer realm="workspace-runtime"')]
        if "allow" in fault.data:
            more = [*more, (b"allow", fault.data["allow"].encode())]
        if fault.code == "range_not_satisfiable":
            more = [*more, (b"content-range", b"bytes */%d" % fault.data["size"])]
        await _answer(send, fault.status, body, more, content_type=MEDIA_TYPE.encode(), head=head)

    async def _forward(
        self, scope: Scope, path: str, request_id: bytes, more: Headers, receive: Receive, send: Send
    ) -> int:
        """Hand a request to FastAPI: HEAD as GET without its body, the body bounded, the fixed headers added."""
        head = scope["method"] == "HEAD"
        if head:
            scope = {**scope, "method": "GET", HEAD_SCOPE: True}
        scope["root_path"] = self._root
        scope["path"] = self._root + path
        scope["request_id"] = request_id.decode()
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._max_body:
                raise self._too_large()
        size = 0
        status = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > self._max_body:
                    raise HTTPException(413, self._too_large().detail)
            return message

        async def completed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), *more]
                if path in ("/docs", "/redoc"):
                    headers.append((b"content-security-policy", _PAGE_POLICY))
                message = {**message, "headers": headers}
            elif head:
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._api(scope, bounded, completed)
        except Exception:  # the edge: FastAPI has answered 500 without the exception's text, and raised it again
            logger.exception("request failed", extra=told(path=_loggable(path)))
            if not status:
                raise WorkspaceError("internal_error", "Something went wrong in the server.") from None
        return status

    def _too_large(self) -> WorkspaceError:
        return WorkspaceError(
            "body_too_large", f"A body may have {self._max_body} bytes at most.", limit=self._max_body
        )

    # --- WebSockets ---------------------------------------------------------------------------------------------------

    async def _websocket(self, scope: Scope, path: str, request_id: bytes, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        more: Headers = [*_FIXED, (b"x-request-id", request_id)]
        access: Access | None = None
        try:
            access = self._gate.admit(scope, path)
            if path in LIVE_SOCKETS:
                await self._live_socket(scope, access, more, receive, send)
                return
            if not path.startswith(SOCKET_PREFIX) or "/" in path[len(SOCKET_PREFIX) :]:
                raise WorkspaceError("not_found", f"There is no WebSocket at {path}.")
            session = self._manager.get(unquote(path[len(SOCKET_PREFIX) :]))
            query = _query(scope)
            wanted = await reading(session.stream, query)
        except WorkspaceError as fault:
            await self._refuse_socket(fault, access, request_id, more, send)
            return
        await send({"type": "websocket.accept", "subprotocol": access.subprotocol, "headers": more})
        await SessionSocket(self._manager, session, wanted, scope, receive, send).run()

    async def _live_socket(self, scope: Scope, access: Access, more: Headers, receive: Receive, send: Send) -> None:
        """Answer the upgrade once every topic stands, so that no change after it is missed."""
        topics = topics_of(self._board, _query(scope))
        subscription = await self._board.subscribe(topics, lambda: None)
        try:
            await send({"type": "websocket.accept", "subprotocol": access.subprotocol, "headers": more})
            await LiveSocket(subscription, Narrowing(), scope, receive, send).run()
        finally:
            subscription.close()

    async def _refuse_socket(
        self, fault: WorkspaceError, access: Access | None, request_id: bytes, more: Headers, send: Send
    ) -> None:
        if fault.code in REFUSED_ON_UPGRADE:
            body = problem(fault.code, fault.detail, request_id.decode(), fault.data)
            headers = [*more, (b"content-type", MEDIA_TYPE.encode())]
            await send({"type": "websocket.http.response.start", "status": fault.status, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": body})
            return
        subprotocol = access.subprotocol if access is not None else fault.data.get("subprotocol")
        await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": more})
        await send({"type": "websocket.close", "code": 4000 + fault.status, "reason": fault.code[:MAX_REASON]})


def _query(scope: Scope) -> dict[str, str]:
    return dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))


async def _answer(
    send: Send,
    status: int,
    body: bytes,
    more: Headers,
    *,
    content_type: bytes | None = b"application/json",
    head: bool = False,
) -> None:
    headers: Headers = [*more]
    if content_type is not None:
        headers += [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})
