"""The general WebSocket: live events of the workspace to one client, numbered for it, narrowed to what it wants."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from workspace_runtime.events.board import LiveSubscription, Missed
from workspace_runtime.events.hub import frame_ws

from .client_socket import ClientSocket, Receive, Send
from .live import Narrowing, numbered
from .live_protocol import LiveClientFrame, WatchFrame
from .protocol import PingFrame

_frames: TypeAdapter[LiveClientFrame] = TypeAdapter(LiveClientFrame)
# What is taken from the board at once.
TAKE_BYTES = 128 * 1024


class LiveSocket(ClientSocket[LiveClientFrame]):
    """One accepted connection. `run` returns when it is over."""

    def __init__(
        self,
        subscription: LiveSubscription,
        narrowing: Narrowing,
        scope: Mapping[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        super().__init__(_frames, scope, receive, send)
        self._subscription = subscription
        self._narrowing = narrowing
        self._seq = 0
        subscription.wake = self._pump

    def _leave(self) -> None:
        self._subscription.close()

    async def _write(self) -> None:
        missed = False
        while True:
            for event in await self._subscription.start_anew(missed=missed):
                await self._until_writable()
                if self._narrowing.admits(event):
                    self._seq += 1
                    self._connection.write_frames(frame_ws(0, numbered(self._seq, event.data)))
            self._live = True
            self._pump()
            while self._live:
                self._look.clear()
                if self._subscription.over:
                    await self._close(1012, "shutting_down")
                    return
                await self._look.wait()
            missed = True
            await self._until_writable()

    def _pump(self) -> None:
        if not self._live:
            return
        connection, narrowing = self._connection, self._narrowing
        try:
            while not connection.writes_paused:
                events = self._subscription.take(TAKE_BYTES)
                if not events:
                    break
                frames = []
                for event in events:
                    if narrowing.admits(event):
                        self._seq += 1
                        frames.append(frame_ws(0, numbered(self._seq, event.data)))
                if frames:
                    connection.write_frames(b"".join(frames))
        except Missed:
            self._live = False
        if not self._live or self._subscription.over:
            self._look.set()

    async def _act(self, frame: LiveClientFrame) -> dict[str, Any]:
        match frame:
            case PingFrame():
                return {"type": "pong", "request_id": frame.request_id}
            case WatchFrame():
                self._narrowing = Narrowing(frame.wanted())
                return {"type": "ack", "request_id": frame.request_id}
