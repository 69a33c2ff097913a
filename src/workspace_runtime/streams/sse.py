"""Events as `text/event-stream`: the same cursors as the WebSockets', pulled by one task a connection."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.types import Receive, Scope, Send

from workspace_runtime.events.board import LiveSubscription, Missed
from workspace_runtime.events.hub import Lagged, Stream, Subscription, TooFarBehind, frame_sse
from workspace_runtime.sse import STILL_HERE, ServerSentEvents, more_within

from .live import Narrowing, numbered
from .reading import Reading

TAKE_BYTES = 128 * 1024


class EventStream(ServerSentEvents):
    """A session's events. Ends with the session, when the server stops, or when the client is too far behind: it comes again with its
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
                        if stream.over:
                            return
                        if not await more_within(more):
                            yield STILL_HERE
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
                if not events and not await more_within(self._more):
                    yield STILL_HERE
            except Missed:
                events = await subscription.start_anew(missed=True)
