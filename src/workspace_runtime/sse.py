"""Answers as `text/event-stream`: one task a connection writes, and ends when the client has gone."""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

HEARTBEAT_S = 15.0
HEAD_SCOPE = "workspace_runtime.head"
STILL_HERE = b": still here\n\n"


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


async def more_within(more: asyncio.Event) -> bool:
    """Wait until there is more; False when a heartbeat is due."""
    try:
        async with asyncio.timeout(HEARTBEAT_S):
            await more.wait()
    except TimeoutError:
        return False
    return True


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
