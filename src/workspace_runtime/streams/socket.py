"""The WebSocket connection: uvicorn's, with a way to its transport.

Events are framed once for all subscribers, so they must not pass through a per-connection encoder: the ASGI application finds
the connection in the scope's extensions and writes whole frames to the transport itself. A frame written so stands between two
frames of uvicorn's own (pings, the close), never inside one.
"""

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

# How long a refused client may go on sending before its connection is cut.
LINGER_S = 5.0
EXTENSION = "workspace_runtime.socket"


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol class for WebSockets (`ws=`)."""

    on_writable: Callable[[], None] | None = None  # called also when the connection is over: who waits must look again
    _discards = False

    def handle_connect(self, event: Any) -> None:
        """Put the connection into the scope that the application is about to get."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            extensions: dict[str, object] = self.scope["extensions"]  # type: ignore[assignment]
            extensions[EXTENSION] = self

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if not self._discards:
            super().data_received(data)

    def handle_parser_exception(self) -> None:
        """A frame is too large or malformed: send the close frame, and read on for a while without looking.

        Closing at once would reset the connection while the client still sends, and it would lose the close frame.
        """
        if self.conn.close_sent is None:
            return
        code, reason = self.conn.close_sent.code, self.conn.close_sent.reason
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._discards = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.close)

    @property
    def writes_paused(self) -> bool:
        """Whether the transport's buffer is above its high-water mark, or gone: write no more now."""
        return not self.writable.is_set() or self.transport.is_closing()

    @property
    def over(self) -> bool:
        """Whether nothing that is written any more will reach the client."""
        return self.transport.is_closing()

    def write_frames(self, frames: bytes) -> None:
        """Write whole frames. Only while `writes_paused` is false, so that the buffer stays bounded."""
        if not self.transport.is_closing() and not self.close_sent:
            self.transport.write(frames)

    def resume_writing(self) -> None:
        """The buffer is below its low-water mark."""
        super().resume_writing()
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        super().connection_lost(exc)
        self._look_again()

    def shutdown(self) -> None:
        """The server stops."""
        super().shutdown()
        self._look_again()

    def _look_again(self) -> None:
        if self.on_writable is not None:
            self.on_writable()
