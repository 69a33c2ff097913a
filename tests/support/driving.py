"""Driving a driver in a test: prompts in, events out, answers in between, and nothing left behind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from workspace_runtime.sessions.drivers.base import (
    AgentEvent,
    BlockEnded,
    Driver,
    PermissionAnswer,
    PermissionAsked,
    PromptPart,
    TextPart,
    ToolEnded,
    TurnEnded,
)

Answerer = Callable[[PermissionAsked], PermissionAnswer | None]
E = TypeVar("E")
PATIENCE_S = 30.0


def allow(asked: PermissionAsked) -> PermissionAnswer:
    """Allow whatever is asked, once."""
    return PermissionAnswer("allow")


class Driven:
    """A started driver whose events are collected. `answerer` answers permissions; None leaves one pending."""

    def __init__(self, driver: Driver, answerer: Answerer = allow) -> None:
        self.driver = driver
        self.answerer = answerer
        self.events: list[AgentEvent] = []
        self.over = False
        self._news = asyncio.Event()

    async def read(self) -> None:
        """Take events until they end."""
        async for event in self.driver.events():
            self.events.append(event)
            self._news.set()
            if isinstance(event, PermissionAsked) and (answer := self.answerer(event)) is not None:
                await self.driver.answer(event.request, answer)
        self.over = True
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition on the events."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def seen(self, kind: type[E], number: int = 1) -> E:
        """Wait for the nth event of a kind."""
        await self.until(lambda: len(self.all(kind)) >= number or self.over)
        return self.all(kind)[number - 1]

    async def turn(self, *prompt: str | PromptPart) -> TurnEnded:
        """Send a prompt and wait for the end of its turn."""
        ended = len(self.all(TurnEnded))
        await self.driver.prompt([TextPart(part) if isinstance(part, str) else part for part in prompt])
        return await self.seen(TurnEnded, ended + 1)

    def all(self, kind: type[E]) -> list[E]:
        """All events of a kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def texts(self) -> list[str]:
        """All texts of the agent itself so far."""
        return [e.content for e in self.all(BlockEnded) if e.kind == "text" and e.parent_tool_use_id is None]

    def outputs(self) -> list[tuple[str, str]]:
        """Status and output of all tools so far."""
        return [(event.status, event.output) for event in self.all(ToolEnded)]


@contextlib.asynccontextmanager
async def driven(driver: Driver, answerer: Answerer = allow) -> AsyncIterator[Driven]:
    """Start a driver, collect its events, close it."""
    try:
        await driver.start()
        one = Driven(driver, answerer)
        reader = asyncio.get_running_loop().create_task(one.read())
        try:
            yield one
        finally:
            await driver.close()
            async with asyncio.timeout(PATIENCE_S):
                await reader
    finally:
        await driver.close()
