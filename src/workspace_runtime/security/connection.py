"""The HTTP connection: uvicorn's, with a look at the peer before a byte is read, and bounds that its parser lacks.

What holds here, for every connection:

- The peer's verdict stands before the first byte is read, and travels in the `state` of each of its scopes.
- A message's head and trailers are bounded in bytes, number and time, and so are the requests that wait behind another.
- A message whose end is in doubt is refused as a whole, answered with a problem document, and nothing after it is read: so no
  request can hide in another's body.

The parser (llhttp, strict) refuses `Content-Length` beside `Transfer-Encoding`, doubled lengths and broken chunks itself. The
rest is here. The common request pays for a few comparisons; timers are armed only where a head comes in pieces.
"""

import asyncio
import secrets
from typing import NoReturn

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from workspace_runtime.config import Config
from workspace_runtime.errors import PROBLEMS
from workspace_runtime.problems import MEDIA_TYPE, problem

from .peers import Peers, allowed_uids

# In `scope["state"]`: True when the kernel says that the peer may connect. Whatever else is there, or nothing: it may not.
PEER_STATE = "workspace_runtime.peer"
# In `scope["state"]`: host and port of an absolute-form target, which are checked like the Host header.
TARGET_STATE = "workspace_runtime.target"

_FIXED = b"connection: close\r\nx-content-type-options: nosniff\r\ncross-origin-resource-policy: same-origin\r\n"


class _RefusedError(Exception):
    """Raised in a callback to stop the parser. `code` is that of the problem document."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol class for HTTP (`http=`). Made by `http_protocol`, which sets whom to let in."""

    MAX_HEAD_BYTES = 64 * 1024  # request line, headers and trailers of one message
    MAX_HEADERS = 200
    MAX_PIPELINED = 32  # requests that wait for an earlier one's answer
    HEAD_TIMEOUT_S = 30.0  # from the connection, or the first byte of a later request, to the end of its head
    HALF_CLOSED_S = 5.0  # how long an answer may still begin after the client has said that it sends no more
    LINGER_S = 2.0  # what a refused client still sends is read and dropped so long, or it would never see the answer

    # What the WebSocket library can take; beyond it, it fails without an answer.
    MAX_SOCKET_HEADERS = 120
    MAX_SOCKET_LINE = 8000

    peers: Peers | None = None
    uids: frozenset[int] = frozenset()

    _in_head = True  # no request's head is whole yet since the last request's end
    _in_body = False
    _deaf = False  # nothing more is read
    _plain_again = False  # the request asks for a protocol that we don't speak
    _head_size = 0
    _trailers = 0
    _unseen = 0  # bytes given to the parser since it last told something
    _head_timer: asyncio.TimerHandle | None = None
    _end_timer: asyncio.TimerHandle | None = None
    _running: RequestResponseCycle | None = None  # `cycle` is the newest request, this one the one being answered
    _fresh: asyncio.Task[None] | None = None  # its task, when it came with the bytes being parsed and has not begun

    # --- the connection -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Find out whose the peer is, while nothing was read."""
        super().connection_made(transport)
        if self.peers is not None:
            self.app_state = {**self.app_state, PEER_STATE: self._peer_may_connect(self.peers)}
        self._head_timer = self.loop.call_later(self.HEAD_TIMEOUT_S, self._head_is_late)

    def _peer_may_connect(self, peers: Peers) -> bool:
        connection = self.transport.get_extra_info("socket")
        try:
            peer, local = connection.getpeername(), connection.getsockname()
            uid = peers.uid(local, peer)
            # Still connected after the look: so the pair of addresses was this connection's all the time, and not
            # given to another user's meanwhile.
            return uid is not None and uid in self.uids and connection.getpeername() == peer
        except (OSError, AttributeError):
            return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over: whoever still answers on it is told."""
        self._deaf = True
        self._stop_head_timer()
        if self._end_timer is not None:
            self._end_timer.cancel()
        self._disconnect(self._running)
        self.pipeline.clear()
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends no more. An answer that is due may still begin, for a short time; otherwise this is the end."""
        running = self._running
        waits = running is not None and not running.response_started and not self._deaf and not self._in_body
        if not waits or self.pipeline:
            return None
        assert running is not None
        running.keep_alive = False
        self._deaf = True
        self._end_timer = self.loop.call_later(self.HALF_CLOSED_S, self._end_half_closed)
        return True

    def _end_half_closed(self) -> None:
        if self._running is None or not self._running.response_started:
            self._disconnect(self._running)
            self.transport.close()

    # --- parsing ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._deaf:
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        self._unseen += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._fresh = None
            self._upgrade(data, upgrade.args[0])
        except httptools.HttpParserError as fault:
            cause = fault.__context__
            if isinstance(cause, _RefusedError):
                self._refuse(cause.code, cause.detail)
            else:
                self._refuse("malformed_request", "This is not HTTP/1.1 as the standard has it.")
        else:
            self._fresh = None
            if self._unseen > self.MAX_HEAD_BYTES:
                self._refuse("headers_too_large", self._limits())
            elif (self._unseen or self._in_head) and self._head_timer is None and self._expects_head():
                self._head_timer = self.loop.call_later(self.HEAD_TIMEOUT_S, self._head_is_late)

    def _expects_head(self) -> bool:
        """Whether a request has begun to come in, or bytes that are none, while nothing else goes on."""
        return not self._in_body and (self._in_head or self._unseen > 0)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = True
        self._head_size = 0
        self._trailers = 0

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._unseen = 0
        self._head_size += len(url)
        if self._head_size > self.MAX_HEAD_BYTES:
            self._too_large()
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or a trailer."""
        self._unseen = 0
        self._head_size += len(name) + len(value) + 4
        headers = self.headers
        if self._head_size > self.MAX_HEAD_BYTES or len(headers) + self._trailers >= self.MAX_HEADERS:
            self._too_large()
        if not self._in_head:  # a trailer is counted and dropped: it must not change the headers that were checked
            self._trailers += 1
            return
        name = name.lower()
        headers.append((name, value))
        if name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            self._malformed("The only Transfer-Encoding is chunked.")

    def on_headers_complete(self) -> None:
        """The head is whole: the request starts, if its form is right."""
        self._unseen = 0
        if self._head_timer is not None:
            self._stop_head_timer()
        if not self.url.startswith(b"/"):
            self._take_target()
        version = self.parser.get_http_version()
        if version != "1.1" and (version != "1.0" or any(name == b"transfer-encoding" for name, _ in self.headers)):
            self._malformed("This is not HTTP/1.1.")
        if self.parser.should_upgrade() and not self._should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._malformed("This is no proxy.")
            self._plain_again = True
            return
        if len(self.pipeline) >= self.MAX_PIPELINED:
            self._malformed("Too many requests at once on one connection.")
        super().on_headers_complete()
        self._in_head = False
        self._in_body = True

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._unseen = 0

    def on_body(self, body: bytes) -> None:
        """A piece of the request's body."""
        self._unseen = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._unseen = 0
        self._in_body = False
        if not self._plain_again:
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        self._fresh = task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _take_target(self) -> None:
        """Turn `http://host/path` into the path, and keep its host to be checked."""
        if self.url == b"*" and self.parser.get_method() == b"OPTIONS":
            self.url = b"/*"  # no path of ours
            return
        scheme, separator, rest = self.url.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            self._malformed("The target must be a path, or a URL with http.")
        end = min((at for at in map(rest.find, (b"/", b"?", b"#")) if at >= 0), default=len(rest))
        self.scope["state"][TARGET_STATE] = rest[:end]
        self.url = rest[end:] if rest[end : end + 1] == b"/" else b"/" + rest[end:]

    # --- upgrades -----------------------------------------------------------------------------------------------------

    def _upgrade(self, data: bytes, end: int) -> None:
        """The head asks for another protocol; `end` is where it ended in `data`."""
        if self._plain_again:
            self._serve_plainly(data[end:])
            return
        body = any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
            for name, value in self.headers
        )
        if self._is_answering() or self.scope["method"] != "GET" or self.scope["http_version"] != "1.1" or body:
            self._refuse("malformed_request", "A WebSocket begins with a GET of HTTP/1.1, without a body, and alone.")
        elif (
            len(self.headers) > self.MAX_SOCKET_HEADERS
            or len(self.url) > self.MAX_SOCKET_LINE
            or any(len(name) + len(value) > self.MAX_SOCKET_LINE for name, value in self.headers)
        ):
            self._refuse(
                "headers_too_large",
                f"A WebSocket's request may have {self.MAX_SOCKET_HEADERS} headers of {self.MAX_SOCKET_LINE} bytes.",
            )
        else:
            self._deaf = True
            self.app_state = dict(self.scope["state"])
            self.handle_websocket_upgrade()

    def _serve_plainly(self, rest: bytes) -> None:
        """Answer as if no other protocol had been offered (Java's client offers h2c with its first request, body and all).

        The parser takes everything after such a head for the other protocol's. So a new one gets the head without the
        offer, then what followed: the body stays a body, and does not become a request.
        """
        self._plain_again = False
        target = self.scope["state"].get(TARGET_STATE)
        url = self.url if target is None else b"http://" + target + self.url
        head = [self.parser.get_method(), b" ", url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name == b"connection":
                words = (word.strip() for word in value.split(b","))
                value = b", ".join(word for word in words if word.lower() not in (b"upgrade", b"http2-settings"))
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    # --- refusals and ends ---------------------------------------------------------------------------------------------

    def _refuse(self, code: str, detail: str) -> None:
        """Answer what is being received with a problem document, where that can still be, and read nothing more."""
        fresh, self._fresh = self._fresh, None
        if self._deaf or self.transport.is_closing():
            return
        self._deaf = True
        self._stop_head_timer()
        running = self._running
        if self._in_body and self.cycle is running:
            assert running is not None
            if fresh is not None:
                fresh.cancel()  # it has not begun, and never will
            self._disconnect(running)
            if running.response_started:
                self.transport.close()
                return
        elif self._is_answering():
            if self._in_body:
                self.pipeline.popleft()
            # the requests before it were whole: they are answered, then the connection ends
            assert running is not None
            (self.pipeline[0][0] if self.pipeline else running).keep_alive = False
            return
        body = problem(code, detail, secrets.token_hex(8))
        head = b"content-type: %b\r\ncontent-length: %d\r\n%b\r\n" % (MEDIA_TYPE.encode(), len(body), _FIXED)
        self.transport.write(STATUS_LINE[PROBLEMS[code].status] + head + body)
        # closed with bytes unread, the connection would be reset, and the answer lost
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._end_timer = self.loop.call_later(self.LINGER_S, self.transport.abort)

    def _is_answering(self) -> bool:
        """Whether an earlier request's answer is due."""
        return bool(self.pipeline) or (self._running is not None and not self._running.response_complete)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._is_answering():
            self._refuse("malformed_request", "")
        else:
            self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    @staticmethod
    def _disconnect(cycle: RequestResponseCycle | None) -> None:
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def _limits(self) -> str:
        return f"A request may have {self.MAX_HEADERS} headers and trailers, of {self.MAX_HEAD_BYTES} bytes together."

    def _too_large(self) -> NoReturn:
        raise _RefusedError("headers_too_large", self._limits())

    def _malformed(self, detail: str) -> NoReturn:
        raise _RefusedError("malformed_request", detail)


def http_protocol(config: Config) -> type[GuardedProtocol]:
    """The protocol class for these settings: without a token, peers are looked up."""
    if config.token is not None:
        return GuardedProtocol
    found = {"peers": Peers(), "uids": allowed_uids(config.allowed_peer_uids)}
    return type("PeerCheckedProtocol", (GuardedProtocol,), found)
