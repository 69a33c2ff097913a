"""Events as `text/event-stream`: the same cursors as the WebSockets', pulled by one task a connection."""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from workspace_runtime.events.board import LiveSubscription, Missed
from workspace_runtime.events.hub import Lagged, Stream, Subscription, TooFarBehind, frame_sse

from .live import Narrowing, numbered
from .reading import Reading

HEARTBEAT_S = 15.0
HEAD_SCOPE = "workspace_runtime.head"
TAKE_BYTES = 128 * 1024

_STILL_HERE = b": still here\n\n"


class ServerSentEvents(Response):
    """An ASGI response that streams what `chunks` gives until the client goes or there is no more."""

    def __init__(self) -> None:
        super().__init__(media_type="text/event-stream")

    @abstractmethod
    def chunks(self) -> AsyncGenerator[bytes, None]:
        """Whole events and comments. Closed when the client has gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        # nginx would hold events back until its buffer is full
        headers.append((b"x-accel-buffering", b"no"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope.get(HEAD_SCOPE):
            await send({"type": "http.response.body", "body": b""})
            return
        gone = asyncio.get_running_loop().create_task(_disconnected(receive))
        body = asyncio.get_running_loop().create_task(self._body(send))
        try:
            await asyncio.wait((gone, body), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, body):
                task.cancel()
            results = await asyncio.gather(gone, body, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _body(self, send: Send) -> None:
        # the comment lets the client know that it is connected before the first event
        await send({"type": "http.response.body", "body": b": connected\n\n", "more_body": True})
        chunks = self.chunks()
        try:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            await chunks.aclose()
        await send({"type": "http.response.body", "body": b""})


async def _more_within(more: asyncio.Event) -> bool:
    """Wait until there is more; False when a heartbeat is due."""
    try:
        async with asyncio.timeout(HEARTBEAT_S):
            await more.wait()
    except TimeoutError:
        return False
    return True


class EventStream(ServerSentEvents):
    """A session's events. Ends with the session, or when the client is too far behind: it comes again with its
    `Last-Event-ID`, and is told that history was trimmed."""

    def __init__(self, stream: Stream, reading: Reading) -> None:
        super().__init__()
        self._stream = stream
        self._reading = reading

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """See the class."""
        more = asyncio.Event()
        stream, reading = self._stream, self._reading
        cursor = Subscription(stream, after=reading.after, types=reading.types, framing="sse", wake=more.set)
        try:
            while True:
                async for chunk in cursor.replay():
                    yield chunk
                try:
                    while True:
                        more.clear()
                        while (live := cursor.follow()) is not None:
                            yield live
                        if stream.ended or stream.removed:
                            return
                        if not await _more_within(more):
                            yield _STILL_HERE
                except Lagged:
                    continue
        except TooFarBehind:
            return
        finally:
            cursor.close()


class WorkspaceEventStream(ServerSentEvents):
    """The workspace's live events, as the general WebSocket tells them. Ends when the server stops."""

    def __init__(self, subscription: LiveSubscription, narrowing: Narrowing, more: asyncio.Event) -> None:
        """`more` is what the subscription's `wake` sets."""
        super().__init__()
        self._subscription = subscription
        self._narrowing = narrowing
        self._more = more

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._subscription.close()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """See the class."""
        subscription, narrowing = self._subscription, self._narrowing
        seq = 0
        events = await subscription.start_anew(missed=False)
        while not subscription.over:
            frames = []
            for event in events:
                if narrowing.admits(event):
                    seq += 1
                    frames.append(frame_sse(0, numbered(seq, event.data)))
            if frames:
                yield b"".join(frames)
            self._more.clear()
            try:
                events = subscription.take(TAKE_BYTES)
                if not events and not await _more_within(self._more):
                    yield _STILL_HERE
            except Missed:
                events = await subscription.start_anew(missed=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
