"""A driver that does what its test says: for the actor's own tests, where the agent's words must be exact."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from workspace_runtime.sessions.drivers import base
from workspace_runtime.sessions.drivers.base import AgentEvent, AgentInfo, Capabilities, DriverSpec, PromptPart


class ScriptedDriver:
    """Records what it is told, and says what `say` puts in."""

    def __init__(self, agent: "ScriptedAgent", spec: DriverSpec) -> None:
        self.agent = agent
        self.spec = spec
        self.told: list[object] = []
        self.closed = False
        self.held: list[str] = []
        self.close_gate: asyncio.Event | None = None
        self.exit_status: int | None = None
        self._events: asyncio.Queue[AgentEvent | None] = asyncio.Queue()

    def say(self, *events: AgentEvent) -> None:
        """The agent says these."""
        for event in events:
            self._events.put_nowait(event)

    def die(self) -> None:
        """The agent's process ends."""
        self._events.put_nowait(None)

    async def start(self) -> None:
        self.agent.started.append(self)
        if self.agent.start_gate is not None:
            await self.agent.start_gate.wait()
        if self.agent.start_error is not None:
            raise self.agent.start_error

    async def events(self) -> AsyncIterator[AgentEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    async def prompt(self, parts: Sequence[PromptPart]) -> None:
        self.told.append(tuple(parts))
        if self.agent.on_prompt is not None:
            self.agent.on_prompt(self, parts)

    async def steer(self, prompt: str, parts: Sequence[PromptPart]) -> None:
        self.told.append(("steer", tuple(parts)))
        self.held.append(prompt)

    async def interrupt(self) -> None:
        self.told.append("interrupt")
        if self.agent.obeys_interrupt:
            self.say(base.TurnEnded("interrupted"))

    async def answer(self, request: str, answer: base.PermissionAnswer) -> None:
        self.told.append((request, answer))
        if self.agent.on_answer is not None:
            self.agent.on_answer(self, request, answer)

    async def configure(self, *, model: str | None, effort: str | None, permission_mode: str | None) -> None:
        self.told.append(("configure", model, effort, permission_mode))

    async def close(self, *, at_once: bool = False) -> None:
        self.closed = True
        if self.close_gate is not None:
            await self.close_gate.wait()
        self.die()


class ScriptedAgent:
    """The kind of agent that makes scripted drivers."""

    id = "scripted"

    def __init__(self) -> None:
        self.started: list[ScriptedDriver] = []
        self.forgotten: list[str] = []
        self.on_prompt: Callable[[ScriptedDriver, Sequence[PromptPart]], None] | None = None
        self.on_answer: Callable[[ScriptedDriver, str, base.PermissionAnswer], None] | None = None
        self.start_error: base.AgentStartError | None = None
        self.start_gate: asyncio.Event | None = None
        self.obeys_interrupt = True
        self.capabilities = Capabilities(steer=True, resume=True, fork=True)

    async def info(self) -> AgentInfo:
        return AgentInfo(self.id, "Scripted", True, "1", True, "", self.capabilities)

    def check(self, *, model: str | None, effort: str | None, permission_mode: str | None) -> None:
        return None

    def conversation(self, native_session_id: str) -> str:
        return native_session_id

    def driver(self, spec: DriverSpec) -> ScriptedDriver:
        return ScriptedDriver(self, spec)

    async def forget(self, native_session_id: str) -> None:
        self.forgotten.append(native_session_id)
