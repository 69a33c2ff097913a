"""The HTTP connection: uvicorn's, with a look at the peer before a byte is read, and bounds that its parser lacks."""

import asyncio
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from workspace_runtime.config import Config
from workspace_runtime.problems import MEDIA_TYPE, problem

from .peers import Peers, allowed_uids

# Set in the scope of each request and WebSocket of a peer that may not connect.
REFUSED_SCOPE = "workspace_runtime.peer_refused"
# The host of an absolute-form target, which is checked like the Host header.
TARGET_SCOPE = "workspace_runtime.target_host"

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
HEAD_TIMEOUT_S = 30.0
# What one read may bring beyond the bound before it is seen.
_SLACK_BYTES = 256 * 1024


class _HeadTooLargeError(Exception):
    """Raised in the parser's callback to stop it."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol class for HTTP (`http=`). Made by `http_protocol`, which sets whom to let in."""

    peers: Peers | None = None
    uids: frozenset[int] = frozenset()

    _refused = False
    _too_large = False
    _in_head = True
    _head_size = 0
    _quiet = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Find out whose the peer is, while nothing was read."""
        super().connection_made(transport)
        if self.peers is not None:
            local, peer = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
            uid = self.peers.uid(local, peer) if local and peer else None
            self._refused = uid is None or uid not in self.uids
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes from the peer: bounded where the parser would keep them without telling (a long header, long trailers)."""
        self._quiet += len(data)
        super().data_received(data)
        if self.transport.is_closing() or self.parser is None:
            return
        if self._quiet > MAX_HEAD_BYTES + _SLACK_BYTES:
            self._too_large = True
            self.send_400_response("")
        elif self._in_head and self._quiet and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_late)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = True
        self._head_size = 0
        if self._refused:
            cast(dict[str, Any], self.scope)[REFUSED_SCOPE] = True

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self._grow(len(name) + len(value) + 4)
        if len(self.headers) >= MAX_HEADERS:
            self._too_large = True
            raise _HeadTooLargeError
        if self._in_head:  # a trailer is counted, and dropped: it must not change the request's headers
            super().on_header(name, value)

    def _grow(self, size: int) -> None:
        self._head_size += size
        if self._head_size > MAX_HEAD_BYTES:
            self._too_large = True
            raise _HeadTooLargeError

    def on_headers_complete(self) -> None:
        """The request's head is whole."""
        self._in_head = False
        self._quiet = 0
        self._stop_timer()
        if not self.url.startswith(b"/"):
            target = httptools.parse_url(self.url)
            host = target.host or b""
            cast(dict[str, Any], self.scope)[TARGET_SCOPE] = b"[%b]" % host if b":" in host else host
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the request's body."""
        self._quiet = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._quiet = 0
        self._in_head = True
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to the WebSocket's protocol, with what is known of the peer."""
        self._stop_timer()
        super().handle_websocket_upgrade()
        scope: dict[str, Any] | None = getattr(self.transport.get_protocol(), "scope", None)
        if scope is not None and self._refused:
            scope[REFUSED_SCOPE] = True

    def send_400_response(self, msg: str) -> None:
        """The parser refused: say so as a problem document, and close."""
        if self.transport.is_closing():
            return
        code = "headers_too_large" if self._too_large else "malformed_request"
        detail = (
            f"Headers may have {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} lines."
            if self._too_large
            else "This is no HTTP."
        )
        body = problem(code, detail, "")
        head = STATUS_LINE[431 if self._too_large else 400] + (
            b"content-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (MEDIA_TYPE.encode(), len(body))
        )
        self.transport.write(head + body)
        self.transport.close()

    def _head_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def http_protocol(config: Config) -> type[GuardedProtocol]:
    """The protocol class for these settings: on loopback without a token, peers are looked up."""
    if not config.loopback or config.token is not None:
        return GuardedProtocol
    found = Peers()
    return type(
        "PeerCheckedProtocol", (GuardedProtocol,), {"peers": found, "uids": allowed_uids(config.allowed_peer_uids)}
    )
