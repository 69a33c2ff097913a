"""The agent-session WebSocket: one session's events to one client, and the client's frames to the session."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.hub import Lagged, Subscription, TooFarBehind, frame_ws
from workspace_runtime.events.model import encode
from workspace_runtime.sessions.manager import Session, SessionManager, digest
from workspace_runtime.sessions.schemas import prompt_to_parts

from .protocol import ClientFrame, InterruptFrame, PermissionFrame, PingFrame, PromptFrame
from .reading import Reading
from .socket import EXTENSION, SocketProtocol

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_frames: TypeAdapter[ClientFrame] = TypeAdapter(ClientFrame)


class SessionSocket:
    """One accepted connection. `run` returns when it is over."""

    def __init__(
        self,
        manager: SessionManager,
        session: Session,
        reading: Reading,
        scope: Mapping[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        self._manager = manager
        self._session = session
        self._reading = reading
        self._receive = receive
        self._send = send
        self._connection: SocketProtocol = scope["extensions"][EXTENSION]
        self._subscription = Subscription(
            session.stream, after=reading.after, types=reading.types, framing="ws", wake=self._pump
        )
        self._live = False
        self._look = asyncio.Event()  # something happened that the pump can't do: lagged, ended, or writable again

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
            self._subscription.close()
            for task in (writer, reader):
                task.cancel()
            results = await asyncio.gather(writer, reader, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    # --- events to the client -----------------------------------------------------------------------------------------

    async def _write(self) -> None:
        stream = self._session.stream
        if self._reading.chosen:
            session = self._manager.view(self._session)
            await self._say({"type": "session", "session": session, "replay_to": stream.head})
        ready_said = not self._reading.chosen
        while True:
            try:
                async for chunk in self._subscription.replay():
                    await self._until_writable()
                    self._connection.write_frames(chunk)
            except TooFarBehind as fault:
                await self._close(1013, "too_far_behind")
                raise ConnectionError(f"first kept event: {fault.args[0]}") from None
            if not ready_said:
                ready_said = True
                await self._say({"type": "ready", "seq": self._subscription.seq})
            self._live = True
            self._pump()
            while self._live:
                self._look.clear()
                if self._ended():
                    await self._close(1000, "session_terminated")
                    return
                await self._look.wait()

    def _pump(self) -> None:
        """Write what is new, as far as the client takes it. Called whenever something was published; never waits."""
        if not self._live:
            return
        connection, subscription = self._connection, self._subscription
        try:
            while not connection.writes_paused:
                chunk = subscription.follow()
                if chunk is None:
                    break
                connection.write_frames(chunk)
        except Lagged:
            self._live = False
        if not self._live or self._session.stream.ended or self._session.stream.removed:
            self._look.set()

    def _writable(self) -> None:
        self._look.set()
        self._pump()

    def _ended(self) -> bool:
        """Whether the session is over and the client has all of it."""
        if not (self._session.stream.ended or self._session.stream.removed) or self._connection.writes_paused:
            return False
        self._pump()
        return self._live and not self._connection.writes_paused

    async def _until_writable(self) -> None:
        while self._connection.writes_paused:
            self._look.clear()
            await self._look.wait()

    async def _say(self, message: Mapping[str, Any]) -> None:
        await self._until_writable()
        self._connection.write_frames(frame_ws(0, encode(message)))

    async def _close(self, code: int, reason: str) -> None:
        await self._send({"type": "websocket.close", "code": code, "reason": reason})

    # --- frames from the client ---------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return
            await self._say(await self._answer(message.get("text")))

    async def _answer(self, text: str | None) -> dict[str, Any]:
        request_id = None
        try:
            try:
                value = orjson.loads(text or "")
            except orjson.JSONDecodeError:
                raise WorkspaceError("frame_invalid", "A frame is one JSON object in a text message.") from None
            if isinstance(value, dict) and isinstance(value.get("request_id"), str):
                request_id = value["request_id"]
            return await self._act(_parse(value))
        except WorkspaceError as fault:
            data = {name: value for name, value in fault.data.items() if name != "errors"}
            return {"type": "rejected", "request_id": request_id, "code": fault.code, "error": fault.detail, **data}

    async def _act(self, frame: ClientFrame) -> dict[str, Any]:
        session_id = self._session.record.id
        match frame:
            case PingFrame():
                return {"type": "pong", "request_id": frame.request_id}
            case PromptFrame():
                body = frame.model_dump(mode="json", exclude={"type", "request_id"})
                receipt = await self._manager.prompt(
                    session_id,
                    prompt_to_parts(frame.prompt),
                    delivery=frame.delivery,
                    client_message_id=frame.client_message_id,
                    digest=digest(body),
                )
                return {"type": "ack", "request_id": frame.request_id, **receipt.view()}
            case PermissionFrame():
                await self._manager.answer_permission(session_id, frame.permission_id, frame.plain())
                return {"type": "ack", "request_id": frame.request_id, "permission_id": frame.permission_id}
            case InterruptFrame():
                stopped = await self._session.actor.interrupt(drop_queue=frame.queue == "drop")
                return {
                    "type": "ack",
                    "request_id": frame.request_id,
                    "turn_id": stopped["turn_id"] if stopped else None,
                }


def _parse(value: Any) -> ClientFrame:
    """A frame, checked. Raises `frame_invalid` with what is wrong."""
    try:
        return _frames.validate_python(value)
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the frame"
        raise WorkspaceError("frame_invalid", f"{where}: {first['msg']}") from None
