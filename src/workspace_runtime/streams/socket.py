"""The WebSocket connection: uvicorn's, with a way to its transport.

Events are framed once for all subscribers, so they must not pass through a per-connection encoder: the ASGI application finds
the connection in the scope's extensions and writes whole frames to the transport itself. A frame written so stands between two
frames of uvicorn's own (pings, the close), never inside one.
"""

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

EXTENSION = "workspace_runtime.socket"


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol class for WebSockets (`ws=`)."""

    on_writable: Callable[[], None] | None = None

    def handle_connect(self, event: Any) -> None:
        """Put the connection into the scope that the application is about to get."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            extensions: dict[str, object] = self.scope["extensions"]  # type: ignore[assignment]
            extensions[EXTENSION] = self

    @property
    def writes_paused(self) -> bool:
        """Whether the transport's buffer is above its high-water mark, or gone: write no more now."""
        return not self.writable.is_set() or self.transport.is_closing()

    def write_frames(self, frames: bytes) -> None:
        """Write whole frames. Only while `writes_paused` is false, so that the buffer stays bounded."""
        if not self.transport.is_closing() and not self.close_sent:
            self.transport.write(frames)

    def resume_writing(self) -> None:
        """The buffer is below its low-water mark."""
        super().resume_writing()
        if self.on_writable is not None:
            self.on_writable()
