"""The runner: owns a session's driver, from its start to the end of its process tree.

All that is done to a driver goes through one mailbox, which one task works through in order. A second task takes the agent's
events, in the agent's order, and is slowed when the log is. A driver that is dropped is gone with its whole process tree before
the next one starts, and no event of it is taken any more.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.log import EventLog

from .drivers.base import Agent, AgentEvent, AgentStartError, Driver, DriverSpec

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0

Order = Callable[[], Coroutine[Any, Any, None]]


class Slots(Protocol):
    """The places for running agents, shared by all sessions."""

    async def claim(self, runner: "AgentRunner") -> None:
        """Take a place, putting an idle session's agent to rest if need be. Raises `too_many_agents`."""

    def release(self, runner: "AgentRunner") -> None:
        """Give the place back. Safe without one."""


class AgentRunner:
    """One session's agent process, or none. `take` gets each event; `gone` is called when the agent ended by itself."""

    def __init__(
        self,
        session_id: str,
        agent: Agent,
        slots: Slots,
        log: EventLog,
        spec: Callable[[], DriverSpec],
        take: Callable[[AgentEvent], None],
        gone: Callable[[], None],
    ) -> None:
        self.session_id = session_id
        self.agent = agent
        self.driver: Driver | None = None
        self._slots = slots
        self._log = log
        self._spec = spec
        self._take = take
        self._gone = gone
        self._mailbox: asyncio.Queue[Order] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._order: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.closed = False
        self.spawn(self._work())

    @property
    def idle(self) -> bool:
        """Whether nothing is being done to the agent, nor waits to be."""
        return self._mailbox.empty() and self._order is None

    def post(self, order: Order) -> None:
        """Put an order into the mailbox. When it raises, the agent is ended, and `gone` called."""
        self._mailbox.put_nowait(order)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside the mailbox, until `close` at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def ensure(self) -> Driver:
        """The running driver; started if there is none. For orders alone. Raises `AgentStartError`."""
        if self.driver is not None:
            return self.driver
        if self._closing is not None:  # the one before must be gone first
            await asyncio.shield(self._closing)
        if self.closed:
            raise AgentStartError("agent_died", "The session was ended while its agent started.")
        try:
            await self._slots.claim(self)
        except WorkspaceError as fault:
            raise AgentStartError("agent_error", fault.detail, retryable=True) from None
        spec = self._spec()
        driver = self.agent.driver(spec)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await driver.start()
        except BaseException as fault:
            await asyncio.shield(self.spawn(self._close_driver(driver)))
            if isinstance(fault, TimeoutError):
                detail = f"The agent did not start within {START_TIMEOUT_S:.0f} s."
                raise AgentStartError("agent_error", detail) from None
            raise
        self.driver = driver
        self._reader = self.spawn(self._read(driver))
        await self._catch_up(driver, spec)
        return driver

    async def _catch_up(self, driver: Driver, spec: DriverSpec) -> None:
        """Tell the agent what was changed while it started."""
        now = self._spec()
        changed = {
            name: getattr(now, name) if getattr(now, name) != getattr(spec, name) else None
            for name in ("model", "effort", "permission_mode")
        }
        if any(value is not None for value in changed.values()):
            await driver.configure(**changed)

    async def drop(self) -> None:
        """End the agent's process tree, whatever it is doing. The next `ensure` starts another."""
        order = self._order
        if order is not None and order is not asyncio.current_task():
            order.cancel()
            await asyncio.gather(order, return_exceptions=True)
        driver, self.driver = self.driver, None
        reader, self._reader = self._reader, None
        if driver is not None:
            self._closing = self.spawn(self._close_driver(driver))
        if self._closing is not None:
            await asyncio.shield(self._closing)
        if reader is not None and reader is not asyncio.current_task():
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def close(self) -> None:
        """End all tasks; `drop` first."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _close_driver(self, driver: Driver) -> None:
        try:
            await driver.close()
        except Exception:  # the edge of the agent: whatever it did, its place is free again
            logger.exception("session %s: the agent's driver did not close cleanly", self.session_id)
        self._slots.release(self)

    async def _work(self) -> None:
        while True:
            order = await self._mailbox.get()
            self._order = asyncio.get_running_loop().create_task(order())
            try:
                await asyncio.shield(self._order)
            except asyncio.CancelledError:
                if not self._order.cancelled():  # it is this task that is cancelled
                    self._order.cancel()
                    raise
            except Exception:  # the edge of the agent: the session must live on
                logger.exception("session %s: an order to the agent failed", self.session_id)
                await self.drop()
                self._gone()
            finally:
                self._order = None

    async def _read(self, driver: Driver) -> None:
        try:
            async for event in driver.events():
                if driver is not self.driver:
                    return
                self._take(event)
                await self._log.room()
        except Exception:  # the edge of the agent: a message we can't read ends it, not the server
            logger.exception("session %s: the agent's events can't be read", self.session_id)
        if driver is self.driver:
            await self.drop()
            self._gone()
