"""One session's actor: it alone owns the session's driver, and decides what happens next.

All of a session's state changes happen here, on the event loop, between two awaits: a request or an agent's event changes the
record, emits events and commits both at once. What has to be waited for (starting the agent, handing it a prompt, answering
it) is put into the actor's mailbox, which one task works through in order. A second task takes the agent's events in the
agent's order and is slowed when the log is.

Invariants: at most one turn runs; each turn ends by exactly one `done`, whatever ends it; when a driver is dropped its whole
process tree is gone before the next one starts.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.log import Batch, Statement
from workspace_runtime.events.model import new_id, now

from .drivers import base
from .drivers.base import Agent, AgentStartError, Driver, DriverSpec, StopReason
from .journal import Journal
from .model import (
    TITLE_CHARACTERS,
    Delivery,
    JsonObject,
    Permission,
    QueuedPrompt,
    SessionRecord,
    Status,
    ToolRun,
    Turn,
    preview,
    prompt_text,
    usage_json,
)
from .permissions import Answer, By, already, ask, decide
from .store import remove_prompt, save_permission, save_prompt

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 32
# An interrupt is answered within 3 s: this long the agent may take, then its process is ended.
INTERRUPT_GRACE_S = 2.0
START_TIMEOUT_S = 60.0
# How long an agent may take over an order that it answers at once (a changed mode, an answer) before it counts as dead.
ORDER_TIMEOUT_S = 10.0
AGENT_FAILED = "The agent stopped unexpectedly. The next prompt starts it again and goes on with the conversation."
SERVER_RESTARTED = "The server was stopped while this turn ran. The next prompt goes on with the conversation."


class Slots(Protocol):
    """The places for running agents, shared by all sessions."""

    async def claim(self, actor: "SessionActor") -> None:
        """Take a place, putting an idle session's agent to rest if need be. Raises `too_many_agents`."""

    def release(self, actor: "SessionActor") -> None:
        """Give the place back. Safe without one."""


class SessionActor:
    """See the module. Made once for each session in use; `close` ends it with its agent."""

    def __init__(
        self,
        record: SessionRecord,
        agent: Agent,
        journal: Journal,
        slots: Slots,
        root: Path,
        queue: Sequence[tuple[float, QueuedPrompt]] = (),
        history_max_events: int = 0,
    ) -> None:
        self.record = record
        self.agent = agent
        self.journal = journal
        self.queue: list[tuple[float, QueuedPrompt]] = list(queue)
        self.permissions: dict[str, Permission] = {}
        self.idle_since = time.monotonic()
        self._slots = slots
        self._root = root
        self._history_max_events = history_max_events
        self._driver: Driver | None = None
        self._turn: Turn | None = None
        self._session_rules: list[str] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._mailbox: asyncio.Queue[Callable[[], Coroutine[Any, Any, None]]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._order: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
        self._spawn(self._work())

    # --- what the doors ask -------------------------------------------------------------------------------------------

    @property
    def turn(self) -> Turn | None:
        """The running turn."""
        return self._turn

    @property
    def running(self) -> bool:
        """Whether an agent process belongs to the session now."""
        return self._driver is not None

    @property
    def restable(self) -> bool:
        """Whether the agent could be put to rest: it runs, and has nothing to do."""
        return (
            self.running and self._turn is None and not self.permissions and self._mailbox.empty() and not self._order
        )

    def start(self) -> None:
        """Start the agent ahead of the first prompt."""
        self._mailbox.put_nowait(self._start_ahead)

    def submit(
        self, prompt: QueuedPrompt, delivery: Delivery, also: Callable[[int], Sequence[Statement]] = lambda place: ()
    ) -> tuple[int, Batch]:
        """Take a prompt: begin its turn, or queue it.

        Returns its place in the queue (0: it begins now, or goes into the running turn, whose id it then has) and the batch
        that makes it durable, together with the statements that `also` gives for that place. Raises `session_terminated`
        and `queue_full`.
        """
        self._check_alive()
        turn = self._turn
        if self.record.title is None:
            self.record.title = preview(prompt_text(prompt.parts), TITLE_CHARACTERS) or None
        if delivery == "steer" and turn is not None and turn.sent and not turn.stop_as:
            prompt.turn_id = turn.id
            self.journal.also(*also(0))
            self._say_prompt(prompt)
            batch = self._commit(waited=True)
            self._mailbox.put_nowait(partial(self._steer, turn, prompt, batch))
            return 0, batch
        if len(self.queue) >= QUEUE_LIMIT:
            raise WorkspaceError("queue_full", f"{QUEUE_LIMIT} prompts wait already.", limit=QUEUE_LIMIT)
        self.record.queue_paused = False
        if delivery == "interrupt":
            position, place = (self.queue[0][0] - 1 if self.queue else 0.0), 1
            self.queue.insert(0, (position, prompt))
        else:
            position, place = (self.queue[-1][0] + 1 if self.queue else 0.0), len(self.queue) + 1
            self.queue.append((position, prompt))
        if turn is None and place == 1:
            self.journal.also(*also(0))
            batch_or_none = self._begin_next()
            if batch_or_none is None:
                raise WorkspaceError("shutting_down", "The server is stopping; nothing was changed.")
            return 0, batch_or_none
        self.journal.also(*also(place), save_prompt(self.record.id, position, prompt))
        prompt.waited = True
        self._emit_queue()
        batch = self._commit(waited=True)
        if turn is None:
            self._begin_next()
        elif delivery == "interrupt":
            self._spawn(self._stop(turn, "interrupted", pause=False))
        return place, batch

    async def interrupt(self, *, drop_queue: bool = False) -> JsonObject | None:
        """Stop the running turn; None when there is none. Returns when its `done` is durable."""
        if drop_queue:
            self._drop_queue("cancelled")
        turn = self._turn
        if turn is None:
            await self._settle()
            return None
        await self._stop(turn, "interrupted")
        await self._settle()
        return {"turn_id": turn.id, "stop_reason": turn.stop_as}

    async def answer(self, permission_id: str, answer: Answer, by: By = "client") -> Permission:
        """Answer a pending permission. Raises `permission_not_found`, `permission_resolved`, `permission_answer_invalid`."""
        permission = self.permissions.get(permission_id)
        if permission is None:
            raise WorkspaceError("permission_not_found", f"No permission {permission_id!r} waits in this session.")
        if permission.resolution is not None:
            raise already(permission_id, permission.resolution)
        told, option = decide(permission, answer)
        if told.scope == "session" and told.decision == "allow" and option and option.rule:
            self._session_rules.append(option.rule)
        if told.interrupt and self._turn is not None:
            self._turn.stop_as = "interrupted"
            self._spawn(self._stop_unless_over(self._turn))
        self._resolve(permission, told.decision, by, option_id=option.id if option else None, scope=told.scope)
        self._go_on()
        batch = self._commit(waited=True)
        self._mailbox.put_nowait(partial(self._tell_answer, permission, told, batch))
        await self.journal.log.settled(batch)
        return permission

    async def change(self, changes: JsonObject) -> None:
        """Change `title`, `labels`, `model`, `effort`, `permission_mode`; the last three also in the running agent."""
        settings = {name: changes.get(name) for name in ("model", "effort", "permission_mode")}
        if any(value is not None for value in settings.values()):
            self._check_alive()
            self.agent.check(**settings)
            if self._driver is not None:
                async with asyncio.timeout(ORDER_TIMEOUT_S):
                    await self._driver.configure(**settings)
        for name, value in changes.items():
            setattr(self.record, name, value)
        self._emit_session()
        await self.journal.log.settled(self._commit(waited=True))

    async def terminate(self) -> None:
        """End the agent and its process tree; the history stays. Returns when all of it is durable. Safe to call twice."""
        if self.record.status != "terminated":
            turn = self._turn
            if turn is not None:
                turn.stop_as = "terminated"
            self._set_status("terminated")
            self._drop_queue("terminated")
            await self._drop_driver()
            if self._turn is not None:
                self._end_turn("terminated")
            self._session_rules.clear()
            await self._settle()
        self.journal.stream.ended = True
        self.journal.stream.wake_all()

    async def reopen(self) -> None:
        """Make a terminated session idle again; its agent starts with the next prompt."""
        if self.record.status == "terminated":
            self.journal.stream.ended = False
            self.record.error = None
            self._set_status("idle")
            await self.journal.log.settled(self._commit(waited=True))

    async def rest(self) -> None:
        """End the idle agent's process; the next prompt resumes it."""
        await self._drop_driver()

    async def close(self) -> None:
        """The server ends: end the agent and its turn (`server_restarted`). What is queued stays, paused."""
        self._closed = True
        turn = self._turn
        await self._drop_driver()
        if turn is not None and turn is self._turn:
            self._emit_error("server_restarted", SERVER_RESTARTED, retryable=True)
            self._end_turn("server_restarted")
        await self._settle()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- turns --------------------------------------------------------------------------------------------------------

    def _begin_next(self) -> Batch | None:
        """Begin the turn of the next prompt that waits, where nothing stands in its way."""
        blocked = self._turn is not None or not self.queue or self.record.queue_paused or self._closed
        if blocked or self.record.status == "terminated":
            return None
        _, prompt = self.queue.pop(0)
        turn = self._turn = Turn(prompt.turn_id, "user", prompt=prompt)
        self.journal.also(remove_prompt(self.record.id, prompt.turn_id))
        self._open_turn(turn)
        self._say_prompt(prompt)
        self._set_status("running" if self._driver is not None else "starting")
        if prompt.waited:
            self._emit_queue()
        batch = self._commit(waited=True)
        self._mailbox.put_nowait(partial(self._deliver, turn, batch))
        return batch

    def _open_turn(self, turn: Turn) -> None:
        self.record.turn_count += 1
        self.record.active_turn = {"id": turn.id, "started_at": now(), "tool": None}
        self.journal.emit("turn_started", {"origin": turn.origin}, turn_id=turn.id)

    def _say_prompt(self, prompt: QueuedPrompt) -> None:
        fields = {
            "prompt": self.journal.prompt_blocks(prompt.parts),
            "client_message_id": prompt.client_message_id,
            "origin": "user",
        }
        self.journal.emit("user_message", fields, turn_id=prompt.turn_id)
        self.record.last_message = {"role": "user", "text": preview(prompt_text(prompt.parts)), "at": now()}

    def _end_turn(
        self, reason: StopReason, usage: base.Usage | None = None, cost: float | None = None, *, pause: bool = True
    ) -> None:
        turn = self._turn
        if turn is None:
            return
        for block_id, block in self.journal.open_blocks():
            kind = block.type.removesuffix("_delta")
            fields = {"content": block.content(), "partial": True}
            self.journal.emit(kind, fields, turn_id=turn.id, parent=block.parent_tool_use_id, event_id=block_id)
            self.journal.end_block(block_id)
        for tool_use_id in list(turn.tools):
            self._end_tool(base.ToolEnded(tool_use_id, "", "cancelled"))
        by: By = "interrupt" if reason in ("interrupted", "terminated") else "turn_ended"
        for permission in list(self.permissions.values()):
            self._resolve(permission, "deny", by)
        usage = usage or turn.usage
        fields = {
            "stop_reason": reason,
            "usage": usage_json(usage) if usage else None,
            "cost_usd": cost,
            "duration_ms": round((time.monotonic() - turn.started) * 1000),
        }
        self.journal.emit("done", fields, turn_id=turn.id)
        self._turn = None
        self.record.active_turn = None
        self._add_usage(usage, cost)
        self.permissions.clear()
        if pause and self.queue and reason in ("interrupted", "error", "agent_died", "server_restarted"):
            self.record.queue_paused = True
            self._emit_queue()
        if self.record.status not in ("terminated", "failed"):
            self._set_status("idle")
        self.idle_since = time.monotonic()
        self._commit()
        turn.over.set()
        excess = self.journal.last_seq - self.journal.stream.first - self._history_max_events
        if self._history_max_events and excess > 0 and not self._closed:
            self._mailbox.put_nowait(self._trim)
        self._begin_next()

    async def _stop(self, turn: Turn, reason: StopReason, *, pause: bool = True) -> None:
        """Stop a turn within 3 s: by asking the agent, else by ending its process."""
        turn.stop_as = turn.stop_as or reason
        turn.pause = pause
        if turn is not self._turn:
            return
        driver = self._driver
        if not turn.sent or driver is None:  # the agent never heard of it
            self._end_turn(turn.stop_as, pause=pause)
            return
        try:
            async with asyncio.timeout(INTERRUPT_GRACE_S):
                await driver.interrupt()
                await turn.over.wait()
        except Exception as fault:
            if not isinstance(fault, TimeoutError):
                logger.warning("session %s: the agent can't be interrupted (%r): it is ended", self.record.id, fault)
            await self._drop_driver()
            if turn is self._turn:
                self._end_turn(turn.stop_as, pause=pause)

    async def _stop_unless_over(self, turn: Turn) -> None:
        """The agent was told to stop by an answer: see that it does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await turn.over.wait()
        await self._stop(turn, "interrupted")

    # --- the mailbox --------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            order = await self._mailbox.get()
            self._order = asyncio.get_running_loop().create_task(order())
            try:
                await asyncio.shield(self._order)
            except asyncio.CancelledError:
                if not self._order.cancelled():
                    self._order.cancel()
                    raise
            except Exception:  # the edge of the actor's task: the session must live on
                logger.exception("session %s: an order to the agent failed", self.record.id)
                await self._drop_driver()
                self._agent_gone()
            finally:
                self._order = None

    async def _start_ahead(self) -> None:
        try:
            await self._ensure_driver()
        except AgentStartError as fault:
            self._start_failed(fault)
        else:
            if self._turn is None and self.record.status == "starting":
                self._set_status("idle")
                self._commit()

    async def _ensure_driver(self) -> Driver:
        if self._driver is not None:
            return self._driver
        if self._closing is not None:  # the one before must be gone first
            await asyncio.shield(self._closing)
        if self.record.status == "terminated" or self._closed:
            raise AgentStartError("agent_died", "The session was ended while its agent started.")
        try:
            await self._slots.claim(self)
        except WorkspaceError as fault:
            raise AgentStartError("agent_error", fault.detail, retryable=True) from None
        driver = self.agent.driver(self._spec())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await driver.start()
        except BaseException as fault:
            await asyncio.shield(self._close_driver(driver))
            if isinstance(fault, TimeoutError):
                raise AgentStartError(
                    "agent_error", f"The agent did not start within {START_TIMEOUT_S:.0f} s."
                ) from None
            raise
        self._driver = driver
        self.record.error = None
        self._reader = self._spawn(self._read(driver))
        return driver

    def _spec(self) -> DriverSpec:
        record = self.record
        return DriverSpec(
            session_id=record.id,
            root=self._root,
            cwd=self._root / record.cwd,
            env=record.env,
            model=record.model,
            effort=record.effort,
            permission_mode=record.permission_mode,
            system_prompt=record.system_prompt,
            max_turns=record.max_turns,
            native_session_id=record.native_session_id or record.resume_native_id,
            fork=record.fork and record.native_session_id is None,
            session_rules=tuple(self._session_rules),
        )

    def _start_failed(self, fault: AgentStartError) -> None:
        """Not signed in is no failure of the session: it stays usable, and says so in the turn."""
        self._emit_error(fault.code, fault.message, retryable=fault.retryable)
        self.record.error = {"code": fault.code, "error": fault.message}
        if self.record.status != "terminated" and fault.code != "agent_auth_required":
            self._set_status("failed")
        self._end_turn("error")
        self._commit()

    async def _deliver(self, turn: Turn, batch: Batch) -> None:
        await self.journal.log.settled(batch)
        if turn is not self._turn:
            return
        try:
            driver = await self._ensure_driver()
        except AgentStartError as fault:
            if turn is self._turn:
                self._start_failed(fault)
            return
        if turn is not self._turn or turn.prompt is None:  # stopped meanwhile
            if self._turn is None and self.record.status == "starting":
                self._set_status("idle")
                self._commit()
            return
        self._set_status("running")
        self._commit()
        turn.sent = True
        await driver.prompt(turn.prompt.parts)

    async def _steer(self, turn: Turn, prompt: QueuedPrompt, batch: Batch) -> None:
        await self.journal.log.settled(batch)
        if turn is self._turn and self._driver is not None:
            await self._driver.steer(prompt.parts)

    async def _tell_answer(self, permission: Permission, told: base.PermissionAnswer, batch: Batch) -> None:
        await self.journal.log.settled(batch)
        if self._driver is not None:
            async with asyncio.timeout(ORDER_TIMEOUT_S):
                await self._driver.answer(permission.request, told)

    async def _trim(self) -> None:
        """Remove the oldest turns, whole, that are more than what is kept."""
        stream = self.journal.stream
        keep = self.journal.last_seq - self._history_max_events
        start = await self.journal.log.turn_start(stream.key, 1, before=keep + 1)
        if start > stream.first:
            stream.first = start  # first, so that no reader takes the gap for the beginning
            await self.journal.log.commit(Batch(statements=self.journal.log.trim(stream.key, start)))
            self.journal.refresh()

    async def _drop_driver(self) -> None:
        """End the agent's process tree. Afterwards no event of it is taken any more."""
        order = self._order
        if order is not None and order is not asyncio.current_task():
            order.cancel()
            await asyncio.gather(order, return_exceptions=True)
        driver, self._driver = self._driver, None
        reader, self._reader = self._reader, None
        if driver is not None:
            self._closing = self._spawn(self._close_driver(driver))
        if self._closing is not None:
            await asyncio.shield(self._closing)
        if reader is not None and reader is not asyncio.current_task():
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _close_driver(self, driver: Driver) -> None:
        try:
            await driver.close()
        except Exception:  # the edge of the agent: whatever it did, its place is free again
            logger.exception("session %s: the agent's driver did not close cleanly", self.record.id)
        self._slots.release(self)

    # --- what the agent says ------------------------------------------------------------------------------------------

    async def _read(self, driver: Driver) -> None:
        try:
            async for event in driver.events():
                if driver is not self._driver:
                    return
                self._take(event)
                await self.journal.log.room()
        except Exception:  # the edge of the agent: a message we can't read ends it, not the server
            logger.exception("session %s: the agent's events can't be read", self.record.id)
        if driver is self._driver:
            await self._drop_driver()
            self._agent_gone()

    def _agent_gone(self) -> None:
        turn = self._turn
        if turn is None:
            if self.record.status == "starting":
                self._set_status("idle")
                self._commit()
            return
        if turn.stop_as is None and not turn.failed:
            self._emit_error("agent_died", AGENT_FAILED, retryable=True)
        self._end_turn(turn.stop_as or "agent_died", pause=turn.pause)

    def _take(self, event: base.AgentEvent) -> None:
        """One event of the agent becomes events of ours."""
        match event:
            case base.BlockDelta():
                turn = self._ensure_turn()
                block_id = turn.block_ids.get(event.block) or turn.block_ids.setdefault(event.block, new_id("evt"))
                self.journal.delta(block_id, event.kind, event.text, turn_id=turn.id, parent=event.parent_tool_use_id)
                return
            case base.BlockEnded():
                self._end_block(event)
            case base.ToolCalled():
                self._call_tool(event)
            case base.ToolEnded():
                self._ensure_turn()
                self._end_tool(event)
            case base.PermissionAsked():
                self._ask(event)
            case base.PermissionWithdrawn(request):
                for permission in list(self.permissions.values()):
                    if permission.request == request and permission.resolution is None:
                        self._resolve(permission, "deny", "agent")
                self._go_on()
            case base.PlanChanged(entries):
                plan = [{"id": e.id, "content": e.content, "status": e.status, "priority": e.priority} for e in entries]
                self.record.plan = plan
                self.journal.emit("plan", {"entries": plan}, turn_id=self._turn_id)
            case base.UsageChanged(usage):
                self._take_usage(usage)
            case base.SessionChanged():
                self._take_session(event)
            case base.AgentTurnStarted():
                self._ensure_turn()
            case base.AgentError(code, message, retryable):
                self._emit_error(code, message, retryable=retryable)
            case base.TurnEnded(reason, usage, cost):
                if self._turn is not None:
                    stop_as = self._turn.stop_as
                    self._end_turn(stop_as or reason, usage, cost, pause=self._turn.pause)
                return
        text_or_tool = isinstance(event, base.BlockEnded | base.ToolCalled | base.ToolEnded | base.UsageChanged)
        self._commit(state=not text_or_tool)  # what those change of the record is found again from the events

    @property
    def _turn_id(self) -> str | None:
        return self._turn.id if self._turn is not None else None

    def _ensure_turn(self) -> Turn:
        """The running turn; where the agent speaks without one, a turn of its own begins."""
        if self._turn is None:
            self._turn = Turn(new_id("turn"), "agent", sent=True)
            self._open_turn(self._turn)
            self._set_status("running")
            self._commit()
        return self._turn

    def _end_block(self, event: base.BlockEnded) -> None:
        turn = self._ensure_turn()
        block_id = turn.block_ids.pop(event.block, None) if event.block is not None else None
        fields: JsonObject = {"content": event.content}
        if event.partial:
            fields["partial"] = True
        self.journal.emit(event.kind, fields, turn_id=turn.id, parent=event.parent_tool_use_id, event_id=block_id)
        if block_id is not None:
            self.journal.end_block(block_id)
        if event.kind == "text" and event.parent_tool_use_id is None and event.content.strip():
            self.record.last_message = {"role": "assistant", "text": preview(event.content), "at": now()}

    def _call_tool(self, event: base.ToolCalled) -> None:
        turn = self._ensure_turn()
        turn.tools[event.tool_use_id] = ToolRun(event.tool, time.monotonic(), event.parent_tool_use_id)
        if self.record.active_turn is not None:
            self.record.active_turn["tool"] = event.tool
        fields = {
            "tool": event.tool,
            "input": event.input,
            "tool_use_id": event.tool_use_id,
            "kind": event.kind,
            "title": event.title,
            "locations": [{"path": place.path, "line": place.line} for place in event.locations],
        }
        self.journal.emit("tool_use", fields, turn_id=turn.id, parent=event.parent_tool_use_id)

    def _end_tool(self, event: base.ToolEnded) -> None:
        turn = self._turn
        run = turn.tools.pop(event.tool_use_id, None) if turn is not None else None
        if turn is not None and self.record.active_turn is not None:
            self.record.active_turn["tool"] = next((tool.tool for tool in reversed(turn.tools.values())), None)
        fields: JsonObject = {
            "tool": run.tool if run else None,
            "tool_use_id": event.tool_use_id,
            "output": event.output,
            "is_error": event.status != "completed",
            "status": event.status,
            "duration_ms": round((time.monotonic() - run.started) * 1000) if run else None,
        }
        if event.images:
            fields["blocks"] = [self.journal.blob(image.mime_type, image.data) for image in event.images]
        parent = event.parent_tool_use_id or (run.parent_tool_use_id if run else None)
        self.journal.emit("tool_result", fields, turn_id=self._turn_id, parent=parent)

    def _take_usage(self, usage: base.Usage) -> None:
        if self._turn is not None:
            self._turn.usage = usage
        self._take_context(usage)
        fields = {"usage": usage_json(usage), "context": self.record.context}
        self.journal.emit("usage", fields, turn_id=self._turn_id)

    def _take_context(self, usage: base.Usage) -> None:
        if usage.context_used_tokens is not None:
            window = usage.context_window_tokens or (self.record.context or {}).get("window_tokens")
            self.record.context = {"used_tokens": usage.context_used_tokens, "window_tokens": window}

    def _add_usage(self, usage: base.Usage | None, cost: float | None) -> None:
        if usage is not None:
            self._take_context(usage)
            for name, tokens in usage_json(usage).items():
                self.record.usage[name] = self.record.usage.get(name, 0) + tokens
        self.record.cost_usd = round(self.record.cost_usd + (cost or 0.0), 9)

    def _take_session(self, event: base.SessionChanged) -> None:
        seen = False
        for name in ("native_session_id", "model", "permission_mode", "title"):
            value = getattr(event, name)
            if value is not None and value != getattr(self.record, name):
                setattr(self.record, name, value)
                seen = True
        if seen:
            self._emit_session()

    # --- permissions --------------------------------------------------------------------------------------------------

    def _ask(self, event: base.PermissionAsked) -> None:
        turn = self._ensure_turn()
        permission = ask(event, id=new_id("perm"), session_id=self.record.id, turn_id=turn.id, created_at=now())
        timeout = self.record.permission_timeout_s
        if timeout is not None:
            moment = datetime.now(UTC) + timedelta(seconds=timeout)
            permission.expires_at = moment.isoformat(timespec="milliseconds")[:-6] + "Z"
            loop = asyncio.get_running_loop()
            self._timers[permission.id] = loop.call_later(timeout, self._expire, permission)
        self.permissions[permission.id] = permission
        fields = {"permission_id": permission.id} | {
            name: value
            for name, value in permission.view().items()
            if name not in ("id", "session_id", "turn_id", "parent_tool_use_id", "status", "resolution")
        }
        self.journal.also(save_permission(permission))
        self.journal.emit("permission_request", fields, turn_id=turn.id, parent=event.parent_tool_use_id)
        self._set_status("requires_action")

    def _expire(self, permission: Permission) -> None:
        message = f"Nobody answered within {self.record.permission_timeout_s:g} s."
        self._spawn(self._expired(permission, message))

    async def _expired(self, permission: Permission, message: str) -> None:
        with contextlib.suppress(WorkspaceError):  # answered, or its turn ended, in the same instant
            await self.answer(permission.id, Answer(decision="deny", message=message), "timeout")

    def _resolve(self, permission: Permission, decision: str, by: By, **more: object) -> None:
        if permission.resolution is not None:
            return
        permission.resolution = {"decision": decision, "by": by, "at": now()}
        permission.resolution |= {name: value for name, value in more.items() if value is not None}
        timer = self._timers.pop(permission.id, None)
        if timer is not None:
            timer.cancel()
        fields = {"permission_id": permission.id, "tool_use_id": permission.tool_use_id, **permission.resolution}
        self.journal.also(save_permission(permission))
        self.journal.emit(
            "permission_resolved", fields, turn_id=permission.turn_id, parent=permission.parent_tool_use_id
        )

    def _go_on(self) -> None:
        """The turn runs again once nothing waits for an answer."""
        if self.record.status == "requires_action" and all(p.resolution for p in self.permissions.values()):
            self._set_status("running")

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _check_alive(self) -> None:
        if self.record.status == "terminated":
            raise WorkspaceError("session_terminated", f"Session {self.record.id} is terminated: reopen it first.")

    def _set_status(self, status: Status) -> None:
        if self.record.status != status:
            self.record.status = status
            self.journal.emit("status", {"status": status}, turn_id=self._turn_id)

    def _emit_error(self, code: str, message: str, *, retryable: bool) -> None:
        if self._turn is not None:
            self._turn.failed = True
        fields = {"error": message, "code": code, "retryable": retryable}
        self.journal.emit("error", fields, turn_id=self._turn_id)

    def _emit_queue(self) -> None:
        items = [
            {
                "turn_id": prompt.turn_id,
                "prompt_preview": preview(prompt_text(prompt.parts)),
                "client_message_id": prompt.client_message_id,
            }
            for _, prompt in self.queue
        ]
        self.journal.emit("queue_updated", {"items": items, "paused": self.record.queue_paused})

    def _emit_session(self) -> None:
        names = ("title", "model", "effort", "permission_mode", "labels", "native_session_id")
        session = {"id": self.record.id} | {name: getattr(self.record, name) for name in names}
        self.journal.emit("session_updated", {"session": session}, turn_id=self._turn_id)

    def _drop_queue(self, reason: StopReason) -> None:
        if not self.queue:
            return
        for _, prompt in self.queue:
            self.journal.also(remove_prompt(self.record.id, prompt.turn_id))
            fields = {"stop_reason": reason, "usage": None, "cost_usd": None, "duration_ms": 0}
            self.journal.emit("done", fields, turn_id=prompt.turn_id)
        self.queue.clear()
        self.record.queue_paused = False
        self._emit_queue()

    def _commit(self, *, waited: bool = False, state: bool = True) -> Batch:
        if state:
            record = self.record
            record.updated_at = now()
            record.queue_length = len(self.queue)
            record.pending_permissions = [p.id for p in self.permissions.values() if p.resolution is None]
        return self.journal.commit(state=state, waited=waited)

    async def _settle(self) -> None:
        """Make all that was said so far durable."""
        await self.journal.log.settled(self._commit(waited=True))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
