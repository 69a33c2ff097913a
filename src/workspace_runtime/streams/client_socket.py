"""What both WebSockets share: one accepted connection with a writer and a reader, and frames answered to their sender alone."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Generic, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.hub import frame_ws
from workspace_runtime.events.model import encode

from .protocol import MAX_REQUEST_ID
from .socket import EXTENSION, SocketProtocol

logger = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Frame = TypeVar("Frame")


class ClientSocket(ABC, Generic[Frame]):
    """One accepted connection. `run` returns when it is over."""

    def __init__(self, frames: TypeAdapter[Frame], scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self._frames = frames
        self._receive = receive
        self._send = send
        self._connection: SocketProtocol = scope["extensions"][EXTENSION]
        self._live = False  # whether `_pump` may write: the writer has done what comes first
        self._look = asyncio.Event()  # something happened that the pump can't do

    @abstractmethod
    async def _write(self) -> None:
        """Send events until the connection is over for us."""

    @abstractmethod
    def _pump(self) -> None:
        """Write what is new, as far as the client takes it. Called whenever something was published; never waits."""

    @abstractmethod
    async def _act(self, frame: Frame) -> dict[str, Any]:
        """Do what a frame asks for; the answer to its sender. Raises `WorkspaceError` to reject it."""

    @abstractmethod
    def _leave(self) -> None:
        """Let go of the subscription."""

    async def run(self) -> None:
        """Send events and take frames until either side closes."""
        self._connection.on_writable = self._writable
        writer = asyncio.get_running_loop().create_task(self._write())
        reader = asyncio.get_running_loop().create_task(self._read())
        try:
            await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connection.on_writable = None
            self._live = False
            self._leave()
            for task in (writer, reader):
                task.cancel()
            results = await asyncio.gather(writer, reader, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _writable(self) -> None:
        self._look.set()
        self._pump()

    async def _until_writable(self, *, or_over: bool = False) -> None:
        while self._connection.writes_paused and not (or_over and self._connection.over):
            self._look.clear()
            await self._look.wait()

    async def _say(self, message: Mapping[str, Any]) -> None:
        await self._until_writable()
        self._connection.write_frames(frame_ws(0, encode(message)))

    async def _close(self, code: int, reason: str) -> None:
        await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return
            answer = await self._answer(message)
            # Not by `_say`: a connection that is over takes nothing more, and that it is over is told here alone, by a message
            # behind those that came before.
            await self._until_writable(or_over=True)
            self._connection.write_frames(frame_ws(0, encode(answer)))

    async def _answer(self, message: MutableMapping[str, Any]) -> dict[str, Any]:
        """Do what a frame asks for; its answer. The message is emptied: a large frame is held once, and not until the next comes."""
        request_id = None
        try:
            value = _json_of(message)
            if isinstance(value, dict) and isinstance(value.get("request_id"), str):
                request_id = value["request_id"][:MAX_REQUEST_ID]
            frame = self._parse(value)
            del value
            return await self._act(frame)
        except WorkspaceError as fault:
            data = {name: value for name, value in fault.data.items() if name != "errors"}
            return {"type": "rejected", "request_id": request_id, "code": fault.code, "error": fault.detail, **data}
        except Exception:  # the edge of a frame: a fault of ours is no reason to lose the connection
            logger.exception("a frame of a client failed")
            detail = "The server failed at this: its log says more."
            return {"type": "rejected", "request_id": request_id, "code": "internal_error", "error": detail}

    def _parse(self, value: Any) -> Frame:
        """A frame, checked. Raises `frame_invalid` with what is wrong."""
        try:
            return self._frames.validate_python(value)
        except ValidationError as fault:
            first = fault.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the frame"
            raise WorkspaceError("frame_invalid", f"{where}: {first['msg']}") from None


def _json_of(message: MutableMapping[str, Any]) -> Any:
    """The value of a text message, which is taken out of it. Raises `frame_invalid`."""
    try:
        return orjson.loads(message.pop("text", None) or "")
    except orjson.JSONDecodeError:
        raise WorkspaceError("frame_invalid", "A frame is one JSON object in a text message.") from None
