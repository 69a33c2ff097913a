"""The agent-session WebSocket: one session's events to one client, and the client's frames to the session."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from workspace_runtime.events.hub import Lagged, Subscription, TooFarBehind
from workspace_runtime.sessions.keys import digest
from workspace_runtime.sessions.manager import Session, SessionManager
from workspace_runtime.sessions.schemas import prompt_to_parts

from .client_socket import ClientSocket, Receive, Send
from .protocol import ClientFrame, InterruptFrame, PermissionFrame, PingFrame, PromptFrame
from .reading import Reading

_frames: TypeAdapter[ClientFrame] = TypeAdapter(ClientFrame)


class SessionSocket(ClientSocket[ClientFrame]):
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
        super().__init__(_frames, scope, receive, send)
        self._manager = manager
        self._session = session
        self._reading = reading
        self._subscription = Subscription(
            session.stream, after=reading.after, types=reading.types, framing="ws", wake=self._pump
        )

    def _leave(self) -> None:
        self._subscription.close()

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
                    await self._close(*((1012, "shutting_down") if stream.closed else (1000, "session_terminated")))
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
        if not self._live or self._session.stream.over:
            self._look.set()

    def _ended(self) -> bool:
        """Whether the session, or the server, is over and the client has all of it."""
        if not self._session.stream.over or self._connection.writes_paused:
            return False
        self._pump()
        return self._live and not self._connection.writes_paused

    # --- frames from the client ---------------------------------------------------------------------------------------

    async def _act(self, frame: ClientFrame) -> dict[str, Any]:
        session_id = self._session.record.id
        match frame:
            case PingFrame():
                return {"type": "pong", "request_id": frame.request_id}
            case PromptFrame():
                body = frame.model_dump(mode="json", exclude={"type", "request_id", "client_message_id"})
                receipt = await self._manager.prompt(
                    session_id,
                    prompt_to_parts(frame.prompt),
                    delivery=frame.delivery,
                    client_message_id=frame.client_message_id,
                    digest=digest(body),  # as over HTTP: a retry may take the other way
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
