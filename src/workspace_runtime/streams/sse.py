"""A session's events as `text/event-stream`: the same cursor as the WebSocket's, pulled by one task a connection."""

import asyncio
from collections.abc import AsyncIterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from workspace_runtime.events.hub import Lagged, Stream, Subscription, TooFarBehind

from .reading import Reading

HEARTBEAT_S = 15.0
HEAD_SCOPE = "workspace_runtime.head"


class EventStream(Response):
    """An ASGI response that streams a session's events until the client goes or the session is over."""

    def __init__(self, stream: Stream, reading: Reading) -> None:
        super().__init__(media_type="text/event-stream")
        self._stream = stream
        self._reading = reading

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Ends when the client has gone, the session has ended, or the client is too far behind."""
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
        try:
            async for chunk in self._chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TooFarBehind:
            pass  # the client comes again with its Last-Event-ID, and is told that history was trimmed
        await send({"type": "http.response.body", "body": b""})

    async def _chunks(self) -> AsyncIterator[bytes]:
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
                        try:
                            async with asyncio.timeout(HEARTBEAT_S):
                                await more.wait()
                        except TimeoutError:
                            yield b": still here\n\n"
                except Lagged:
                    continue
        finally:
            cursor.close()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
