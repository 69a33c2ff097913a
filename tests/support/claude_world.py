"""A real server with the real Claude Code behind it, whose model is scripted on loopback: what end-to-end tests drive."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pydantic import TypeAdapter

from support.claude_home import ClaudeHome
from support.model_server import ModelServer
from support.server import ServerProcess, create, eventually, history, session_of
from workspace_runtime.streams.protocol import StoredEvent

EVENT: TypeAdapter[object] = TypeAdapter(StoredEvent)
SESSIONS = "/api/v1/agent-sessions"


@dataclass
class World:
    """A server with a Claude home of its own, its model, and a client."""

    server: ServerProcess
    home: ClaudeHome
    model: ModelServer
    client: httpx.Client
    sessions: list[str] = field(default_factory=list)

    @property
    def workspace(self) -> Path:
        return self.server.workspace

    def create(self, prompt: Any = None, **body: Any) -> str:
        body |= {"agent": "claude"} | ({"prompt": prompt} if prompt is not None else {})
        self.sessions.append(str(create(self.client, **body)["id"]))
        return self.sessions[-1]

    def send(self, session: str, prompt: str, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"{SESSIONS}/{session}/messages", json={"prompt": prompt, **body})
        assert answer.status_code == 202, answer.text
        receipt: dict[str, Any] = answer.json()
        return receipt

    def idle(self, session: str, turns: int = 1) -> list[dict[str, Any]]:
        """All events once so many turns are done."""
        eventually(lambda: len(history(self.client, session, "?events=done")) >= turns, timeout=90)
        eventually(lambda: session_of(self.client, session)["status"] in ("idle", "failed"))
        events = history(self.client, session)
        for event in events:
            EVENT.validate_python(event)
        return events

    def pending(self, session: str, number: int = 1) -> dict[str, Any]:
        path = f"{SESSIONS}/{session}/permissions"
        found: dict[str, Any] = eventually(
            lambda: (items := self.client.get(path).json()["items"]) and len(items) == number and items[-1], timeout=60
        )
        return found

    def answer(self, session: str, permission: dict[str, Any], **answer: Any) -> None:
        reply = self.client.post(f"{SESSIONS}/{session}/permissions/{permission['id']}", json=answer)
        assert reply.status_code == 200, reply.text
