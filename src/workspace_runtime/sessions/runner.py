"""The runner: owns a session's driver, from its start to the end of its process tree.

All that is done to a driver goes through one mailbox, which one task works through in order. A second task takes the agent's
events, in the agent's order, and is slowed when the log is. A driver that is dropped is gone with its whole process tree before
the next one starts, and no event of it is taken any more.
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.log import EventLog
from workspace_runtime.logs import told

from .drivers.base import Agent, AgentEvent, AgentStartError, Driver, DriverSpec
from .intake import Intake

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0

Order = Callable[[], Coroutine[Any, Any, None]]


class Slots(Protocol):
    """The places for running agents, shared by all sessions."""

    async def claim(self, runner: "AgentRunner") -> None:
        """Take a place, putting an idle session's agent to rest if need be. Raises `too_many_agents`."""

    def release(self, runner: "AgentRunner") -> None:
        """Give the place back. Safe without one."""

    def changed(self) -> None:
        """What an agent is doing may have changed: who waits for a place looks again."""


class AgentRunner:
    """One session's agent process, or none. `take` gets each event; `lost` is called when the process is given up, for whatever
    reason, and `gone` after it when the agent ended by itself. `spec` waits for the disk, and is called in a thread."""

    def __init__(
        self,
        session_id: str,
        agent: Agent,
        slots: Slots,
        log: EventLog,
        spec: Callable[[], DriverSpec],
        take: Callable[[AgentEvent], None],
        lost: Callable[[], None],
        gone: Callable[[], None],
    ) -> None:
        self.session_id = session_id
        self.agent = agent
        self.driver: Driver | None = None
        self._slots = slots
        self._log = log
        self._spec = spec
        self._take = take
        self._lost = lost
        self._gone = gone
        self._mailbox: asyncio.Queue[tuple[Order, contextvars.Context]] = asyncio.Queue()
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
        # in the context of who posts it, so that the log knows whose request it is
        self._mailbox.put_nowait((order, contextvars.copy_context()))

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
        try:
            spec = await asyncio.to_thread(self._spec)
        except BaseException:
            self._slots.release(self)
            raise
        driver = self.agent.driver(spec)
        began = time.monotonic()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await driver.start()
        except BaseException as fault:
            await asyncio.shield(self.spawn(self._close_driver(driver)))
            code = fault.code if isinstance(fault, AgentStartError) else type(fault).__name__
            logger.warning("agent did not start", extra=self._told(code=code))
            if isinstance(fault, TimeoutError):
                detail = f"The agent did not start within {START_TIMEOUT_S:.0f} s."
                raise AgentStartError("agent_error", detail) from None
            raise
        logger.info("agent started", extra=self._told(took_s=round(time.monotonic() - began, 3)))
        self.driver = driver
        self._reader = self.spawn(self._read(driver))
        try:
            await self._catch_up(driver, spec)
        except AgentStartError:
            await self.drop()
            raise
        return driver

    async def _catch_up(self, driver: Driver, spec: DriverSpec) -> None:
        """Tell the agent what was changed while it started."""
        now = await asyncio.to_thread(self._spec)
        changed = {
            name: getattr(now, name) if getattr(now, name) != getattr(spec, name) else None
            for name in ("model", "effort", "permission_mode")
        }
        if any(value is not None for value in changed.values()):
            await driver.configure(**changed)

    async def drop(self, *, at_once: bool = False) -> None:
        """End the agent's process tree, whatever it is doing; `at_once` without grace. The next `ensure` starts another."""
        order = self._order
        if order is not None and order is not asyncio.current_task():
            order.cancel()
            await asyncio.gather(order, return_exceptions=True)
        driver, self.driver = self.driver, None
        reader, self._reader = self._reader, None
        if driver is not None:
            self._closing = self.spawn(self._close_driver(driver, at_once))
            self._lost()
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

    async def _close_driver(self, driver: Driver, at_once: bool = False) -> None:
        try:
            await driver.close(at_once=at_once)
        except Exception:  # the edge of the agent: whatever it did, its place is free again
            logger.exception("session %s: the agent's driver did not close cleanly", self.session_id)
        self._slots.release(self)
        logger.info("agent ended", extra=self._told(exit_status=driver.exit_status))

    def _told(self, **more: Any) -> Mapping[str, Any]:
        return told(session_id=self.session_id, agent=self.agent.id, **more)

    async def _work(self) -> None:
        while True:
            # as arguments, so that while it waits for the next one, nothing of an order is held: a prompt may be large
            await self._do(*await self._mailbox.get())

    async def _do(self, order: Order, context: contextvars.Context) -> None:
        self._order = asyncio.get_running_loop().create_task(order(), context=context)
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
            self._slots.changed()

    async def _read(self, driver: Driver) -> None:
        try:
            intake = Intake()
            async for said in driver.events():
                if driver is not self.driver:
                    return
                event = intake.take(said)
                if event is not None:
                    self._take(event)
                    self._slots.changed()
                await self._log.room()
        except Exception:  # the edge of the agent: a message we can't read ends it, not the server
            logger.exception("session %s: the agent's events can't be read", self.session_id)
        if driver is self.driver:
            logger.warning("agent ended by itself", extra=self._told())
            await self.drop()
            self._gone()
