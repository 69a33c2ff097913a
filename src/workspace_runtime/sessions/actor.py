"""One session's actor: decides what happens next.

All of a session's state changes happen here, on the event loop, between two awaits: a request or an agent's event changes the
record, emits events and commits both at once (`recorder`). What has to be waited for, because it concerns the agent's process,
goes into the runner's mailbox (`runner`).

Invariants: at most one turn runs; each turn ends by exactly one `done`, whatever ends it, within 3 s of being asked to; after a stop
nothing runs until the next prompt. What the agent was steered with stays in the queue, as `held`, until it takes it in: so it is lost by
nothing, and is the first to come after a stop.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import orjson

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.log import Batch, Statement, StreamBroken
from workspace_runtime.paths import WorkspaceRoot

from . import prompt_files
from .drivers import base
from .drivers.base import Agent, AgentStartError, DriverSpec, StopReason
from .journal import Journal
from .model import (
    SERVER_RESTARTED,
    TITLE_CHARACTERS,
    Delivery,
    JsonObject,
    Permission,
    QueuedPrompt,
    SessionRecord,
    Turn,
    preview,
    prompt_text,
)
from .permissions import Answer, By, already, decide
from .recorder import Recorder
from .runner import AgentRunner, Slots
from .store import remove_prompt, save_prompt, trim_session

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 32
# An interrupt is answered within 3 s: this long the agent may take, then its process is ended.
INTERRUPT_GRACE_S = 2.0
# How long after a stop an agent may take to tell that its timers are ended.
TIMERS_END_S = 0.5
# How long an agent may take over an order that it answers at once (a changed mode, an answer) before it counts as dead.
ORDER_TIMEOUT_S = 10.0
# How long the end of the server waits for the disk, so that clients see how their turns ended.
CLOSE_COMMIT_S = 2.0
AGENT_FAILED = "The agent stopped unexpectedly. The next prompt starts it again and goes on with the conversation."
PAUSING: frozenset[StopReason] = frozenset({"interrupted", "error", "agent_died", "server_restarted"})


class SessionActor:
    """See the module. Made once for each session; `close` ends it with its agent."""

    def __init__(
        self,
        record: SessionRecord,
        agent: Agent,
        journal: Journal,
        slots: Slots,
        root: WorkspaceRoot,
        queue: Sequence[tuple[float, QueuedPrompt]] = (),
        history_max_events: int = 0,
    ) -> None:
        self.record = record
        self.agent = agent
        self.journal = journal
        self.queue: list[tuple[float, QueuedPrompt]] = list(queue)
        self.recorder = Recorder(record, journal, self.queue)
        self.runner = AgentRunner(
            record.id, agent, slots, journal.log, self._spec, self._take, self._agent_lost, self._agent_gone
        )
        self.idle_since = time.monotonic()
        self._root = root
        self._history_max_events = history_max_events
        self._session_rules: list[str] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._ending: asyncio.Task[None] | None = None
        self._closed = False

    # --- what the doors ask -------------------------------------------------------------------------------------------

    @property
    def turn(self) -> Turn | None:
        """The running turn."""
        return self.recorder.turn

    @property
    def permissions(self) -> dict[str, Permission]:
        """The running turn's permissions, answered or not, by their ids."""
        return self.recorder.permissions

    @property
    def restable(self) -> bool:
        """Whether the agent could be put to rest: it runs, and has nothing to do."""
        return self.runner.driver is not None and self.at_work is None and self.runner.idle

    @property
    def at_work(self) -> str | None:
        """What keeps the agent, in words; None where nothing does, or it is only being started ahead."""
        if self.queue and not self.record.queue_paused:
            return "a prompt that waits"
        return self.recorder.at_work

    def start(self) -> None:
        """Start the agent ahead of the first prompt."""
        self.runner.post(self._start_ahead)

    def submit(
        self, prompt: QueuedPrompt, delivery: Delivery, also: Callable[[int], Sequence[Statement]] = lambda place: ()
    ) -> tuple[int, Batch]:
        """Take a prompt: begin its turn, or queue it.

        Returns its place in the queue (0: it begins now, or the agent is to take it into the running turn) and the batch that
        makes it durable, together with the statements that `also` gives for that place. Raises `session_terminated` and
        `queue_full`.
        """
        self._check_alive()
        turn = self.turn
        if self.record.title is None:
            self.record.title = preview(prompt_text(prompt.parts), TITLE_CHARACTERS) or None
        if len(self.queue) >= QUEUE_LIMIT:
            raise WorkspaceError("queue_full", f"{QUEUE_LIMIT} prompts wait already.", limit=QUEUE_LIMIT)
        if delivery == "steer" and turn is not None and turn.sent and not turn.stop_as:
            position = self._hold(prompt)
            self.journal.also(*also(0), save_prompt(self.record.id, position, prompt))
            self.recorder.tell_queue()
            batch = self.recorder.commit(waited=True)
            self.runner.post(partial(self._steer, turn, prompt, batch))
            return 0, batch
        self.record.queue_paused = False
        if delivery == "interrupt":
            position, place = (self.queue[0][0] - 1 if self.queue else 0.0), 1
            self.queue.insert(0, (position, prompt))
        else:
            position, place = (self.queue[-1][0] + 1 if self.queue else 0.0), len(self.queue) + 1
            self.queue.append((position, prompt))
        if turn is None and place == 1 and not self._held:
            self.journal.also(*also(0))
            batch_or_none = self._begin_next()
            if batch_or_none is None:
                raise WorkspaceError("shutting_down", "The server is stopping; nothing was changed.")
            return 0, batch_or_none
        self.journal.also(*also(place), save_prompt(self.record.id, position, prompt))
        prompt.waited = True
        self.recorder.tell_queue()
        batch = self.recorder.commit(waited=True)
        if turn is None:
            if delivery == "interrupt" and self._held:
                self._take_back()
                self.runner.post(self._halt)
            self._begin_next()
        elif delivery == "interrupt":
            self.runner.spawn(self._stop(turn, turn.end_as("interrupted", pause=False)))
        return place, batch

    def _hold(self, prompt: QueuedPrompt) -> float:
        """Put a prompt that the agent is to take in before all that waits, and behind what it holds already."""
        place = len(self._held)
        before = self.queue[place - 1][0] if place else None
        behind = self.queue[place][0] if place < len(self.queue) else None
        if before is None:
            position = 0.0 if behind is None else behind - 1
        else:
            position = before + 1 if behind is None else (before + behind) / 2
        prompt.held = prompt.waited = True
        self.queue.insert(place, (position, prompt))
        return position

    @property
    def _held(self) -> list[QueuedPrompt]:
        """What the agent was steered with and has not taken in: always the first of the queue."""
        return [prompt for _, prompt in self.queue if prompt.held]

    def _take_back(self) -> None:
        """The agent will take in nothing of what it holds: it waits with the rest, or goes if that was wanted."""
        for prompt in self._held:
            prompt.held = False
        self.recorder.drop_queue("cancelled", only_dropped=True)

    async def interrupt(self, *, drop_queue: bool = False) -> JsonObject | None:
        """Stop the running turn; None when there is none. Returns when its `done` is durable."""
        turn, driver = self.turn, self.runner.driver
        if drop_queue:
            self.recorder.drop_queue("cancelled")
        if turn is not None:
            await self._stop(turn, turn.end_as("interrupted"))
        elif driver is not None and (self._held or self.record.background):  # it is about to begin, or sub-agents work
            self._take_back()
            self._pause()
            self.recorder.commit()
            with contextlib.suppress(Exception):  # one that can't be stopped now ends when it is to begin a turn
                async with asyncio.timeout(INTERRUPT_GRACE_S):
                    await driver.interrupt()
        if self._timers_wait:
            self.runner.spawn(self._end_timers())
        await self._settle(state=drop_queue)
        return {"turn_id": turn.id, "stop_reason": turn.stop_as} if turn is not None else None

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
        if told.interrupt and self.turn is not None:
            self.turn.end_as("interrupted")
        self._stop_timer(permission)
        self.recorder.resolve(permission, told.decision, by, option_id=option.id if option else None, scope=told.scope)
        self.recorder.go_on()
        batch = self.recorder.commit(waited=True)
        self.runner.post(partial(self._tell_answer, permission, told, batch))
        await self.journal.log.settled(batch)
        return permission

    async def change(self, changes: JsonObject) -> None:
        """Change `title`, `labels`, `model`, `effort`, `permission_mode`; the last three also in the running agent."""
        settings = {name: changes.get(name) for name in ("model", "effort", "permission_mode")}
        if any(value is not None for value in settings.values()):
            self._check_alive()
            self.agent.check(**settings)
            await self._configure(settings)
            self._check_there()
        for name, value in changes.items():
            setattr(self.record, name, value)
        self.record.chosen_model = changes.get("model", self.record.chosen_model)
        self.recorder.tell_session()
        await self.journal.log.settled(self.recorder.commit(waited=True))

    async def _configure(self, settings: Mapping[str, str | None]) -> None:
        driver = self.runner.driver
        if driver is None:
            return
        try:
            async with asyncio.timeout(ORDER_TIMEOUT_S):
                await driver.configure(**settings)
        except TimeoutError:
            detail = "The agent did not take the change in time. Nothing was changed: try again, or interrupt it."
            raise WorkspaceError("session_active", detail) from None
        except OSError:  # it has just ended: the next process is started with the change
            logger.info("session %s: the agent ended while it was changed", self.record.id)

    async def terminate(self) -> None:
        """End the agent and its process tree; the history stays. Returns when all of it is durable. Safe to call twice."""
        if self._ending is None and self.record.status != "terminated":
            self._ending = self.runner.spawn(self._terminate())
        await self.ended()

    async def ended(self) -> None:
        """Wait for the end of the agent where the session is being terminated. Raises `shutting_down` where the server ends first."""
        ending = self._ending
        if ending is not None:
            await asyncio.wait([ending])
            if ending.cancelled():
                raise WorkspaceError("shutting_down", "The server is stopping: the session's agent ends with it.")
            ending.result()

    async def _terminate(self) -> None:
        if self.turn is not None:
            self.turn.stop_as = "terminated"
        self._take_back()  # the agent ends, whatever it holds
        self.recorder.drop_queue("terminated")
        await self.runner.drop()
        self._end_turn("terminated")
        self.recorder.set_status("terminated")
        self._session_rules.clear()
        await self._settle()

    async def reopen(self) -> None:
        """Make a terminated session idle again; its agent starts with the next prompt."""
        await self.ended()
        self._check_there()
        if self.record.status == "terminated":
            self._ending = None
            self.record.error = None
            self.recorder.set_status("idle")
            await self.journal.log.settled(self.recorder.commit(waited=True))

    async def rest(self) -> None:
        """End the idle agent's process; the next prompt resumes it."""
        await self.runner.drop()

    async def close(self) -> None:
        """The server ends: end the agent and its turn (`server_restarted`). What is queued stays, paused."""
        self._closed = self.runner.closed = True
        turn = self.turn
        await self.runner.drop()
        if turn is not None and turn is self.turn:
            self.recorder.fail("server_restarted", SERVER_RESTARTED, retryable=True)
            self._end_turn("server_restarted")
        batch = self.recorder.commit(waited=True, state=False)
        with contextlib.suppress(WorkspaceError):  # the disk takes no writes: the next start closes the turn instead
            await self.journal.log.settled(batch, timeout_s=CLOSE_COMMIT_S)
        if self._ending is not None:  # somebody waits for it
            await asyncio.wait([self._ending], timeout=CLOSE_COMMIT_S)
        for timer in self._timers.values():
            timer.cancel()
        await self.runner.close()

    async def abandon(self) -> None:
        """Something could not be stored: end the agent and all tasks, and say nothing more. Another actor goes on."""
        self._closed = self.runner.closed = True
        for timer in self._timers.values():
            timer.cancel()
        await self.runner.drop()
        if self._ending is not None:  # somebody waits for it, and must not be cancelled with it
            await asyncio.wait([self._ending])
        await self.runner.close()

    # --- turns --------------------------------------------------------------------------------------------------------

    def _begin_next(self) -> Batch | None:
        """Begin the turn of the next prompt that waits, where nothing stands in its way."""
        blocked = self.turn is not None or not self.queue or self.record.queue_paused or self._closed
        if blocked or self._ending is not None or self._held:  # what the agent holds it begins by itself
            return None
        _, prompt = self.queue.pop(0)
        turn = Turn(prompt.turn_id, "user", prompt=prompt)
        self.journal.also(remove_prompt(self.record.id, prompt.turn_id))
        self.recorder.open_turn(turn)
        self.recorder.say_prompt(prompt, turn.id)
        self.recorder.set_status("running" if self.runner.driver is not None else "starting")
        if prompt.waited:
            self.recorder.tell_queue()
        batch = self.recorder.commit(waited=True)
        self.runner.post(partial(self._deliver, turn, batch))
        return batch

    def _end_turn(
        self, reason: StopReason, usage: base.Usage | None = None, cost: float | None = None, *, pause: bool = True
    ) -> None:
        """End the running turn, if there is one, and begin the next."""
        turn = self.turn
        if turn is None:
            return
        denied = self.recorder.end_turn(reason, usage, cost)
        for permission in denied:
            self._stop_timer(permission)
        if reason in PAUSING or turn.stop_as is not None:
            if self._held and turn.stop_as is None:  # nobody told the agent yet that it is to stop
                self.runner.post(self._halt)
            self._take_back()
        if pause and reason in PAUSING:
            self._pause()
        self.idle_since = time.monotonic()
        batch = self.recorder.commit(waited=bool(denied))
        for permission in denied:
            told = base.PermissionAnswer("deny", message="The turn has ended.")
            self.runner.post(partial(self._tell_answer, permission, told, batch))
        turn.over.set()
        excess = self.journal.last_seq - self.journal.stream.first - self._history_max_events
        if self._history_max_events and excess > 0 and not self._closed:
            self.runner.post(self._trim)
        self._begin_next()

    def _pause(self) -> None:
        """The queue waits until somebody goes on."""
        if self.queue:
            self.record.queue_paused = True
            self.recorder.tell_queue()

    async def _stop(self, turn: Turn, reason: StopReason) -> None:
        """Stop a turn within 3 s: by asking the agent, else by ending its process. Its `end_as` was called before."""
        if turn is not self.turn:
            return
        driver = self.runner.driver
        if not turn.sent or driver is None:  # the agent never heard of it
            self._end_turn(reason, pause=turn.pause)
            return
        try:
            async with asyncio.timeout(INTERRUPT_GRACE_S):
                await driver.interrupt()
                await turn.over.wait()
        except Exception as fault:
            if not isinstance(fault, TimeoutError):
                logger.warning("session %s: the agent can't be interrupted (%r): it is ended", self.record.id, fault)
            await self.runner.drop(at_once=True)
            if turn is self.turn:
                self._end_turn(reason, pause=turn.pause)

    # --- orders to the agent ------------------------------------------------------------------------------------------

    async def _start_ahead(self) -> None:
        if self.record.status != "starting":  # terminated, or a prompt was quicker
            return
        try:
            await self.runner.ensure()
        except AgentStartError as fault:
            self._start_failed(fault)
        else:
            if self.turn is None and self.record.status == "starting":
                self.record.error = None
                self.recorder.set_status("idle")
                self.recorder.commit()

    def _spec(self) -> DriverSpec:
        """What the agent is started with now. Its folder is looked at anew. Waits for the disk. Raises `AgentStartError`."""
        record = self.record
        try:
            self._root.folder(record.cwd)
        except WorkspaceError as fault:
            detail = f"{fault.detail} The session can't go on there: put the folder back, or start another session."
            raise AgentStartError("agent_error", detail) from None
        # as it is now: a link that is put in its place later leads the agent nowhere else
        cwd = Path(os.path.realpath(self._root.path / record.cwd))
        return DriverSpec(
            session_id=record.id,
            root=self._root.path,
            cwd=cwd,
            env=record.env,
            model=record.chosen_model,
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
        if fault.conversation_lost:
            self.record.native_session_id = self.record.resume_native_id = None
            self.recorder.tell_session()
        self.recorder.fail(fault.code, fault.message, retryable=fault.retryable)
        self.record.error = {"code": fault.code, "error": fault.message}
        if self.record.status != "terminated" and fault.code != "agent_auth_required":
            self.recorder.set_status("failed")
        self._end_turn("error")
        self.recorder.commit()

    async def _deliver(self, turn: Turn, batch: Batch) -> None:
        await self.journal.log.settled(batch)
        if turn is not self.turn:
            return
        try:
            driver = await self.runner.ensure()
        except AgentStartError as fault:
            if turn is self.turn:
                self._start_failed(fault)
            return
        if turn is not self.turn or turn.prompt is None:  # stopped meanwhile
            if self.turn is None and self.record.status == "starting":
                self.recorder.set_status("idle")
                self.recorder.commit()
            return
        parts = await asyncio.to_thread(prompt_files.with_contents, self._root, turn.prompt.parts)
        if turn is not self.turn or turn.stop_as is not None:  # stopped meanwhile
            return
        self.record.error = None
        self.recorder.set_status("running")
        self.recorder.commit()
        turn.sent = True  # from here on an interrupt asks the agent: it must find the prompt before it
        await driver.prompt(parts)

    async def _steer(self, turn: Turn, prompt: QueuedPrompt, batch: Batch) -> None:
        await self.journal.log.settled(batch)
        parts = await asyncio.to_thread(prompt_files.with_contents, self._root, prompt.parts)
        driver = self.runner.driver
        if not prompt.held or turn.stop_as is not None:  # stopped meanwhile
            return
        if turn is self.turn and driver is not None:
            await driver.steer(prompt.turn_id, parts)
        else:  # too late: it is a turn of its own
            prompt.held = False
            self._begin_next()

    async def _halt(self) -> None:
        """The turn failed, and nothing was to follow it: what the agent was steered with it must not begin by itself."""
        driver, turn = self.runner.driver, self.turn
        if driver is None:
            return
        if turn is not None and turn.sent:  # it was quicker
            await self._stop(turn, turn.end_as("interrupted"))
            return
        async with asyncio.timeout(ORDER_TIMEOUT_S):
            await driver.interrupt()

    @property
    def _timers_wait(self) -> bool:
        """Whether the agent is to begin a turn by itself at some time, and none runs now."""
        return self.turn is None and any(task["kind"] == "timer" for task in self.record.background)

    async def _end_timers(self) -> None:
        """After a stop. An agent that does not end its timers by itself would ask the model again: its process is ended instead, and
        the next prompt goes on with the conversation."""
        await asyncio.sleep(TIMERS_END_S)
        if self._timers_wait:
            await self.runner.drop()

    async def _tell_answer(self, permission: Permission, told: base.PermissionAnswer, batch: Batch) -> None:
        await self.journal.log.settled(batch)
        if self.runner.driver is not None:
            async with asyncio.timeout(ORDER_TIMEOUT_S):
                await self.runner.driver.answer(permission.request, told)
        if told.interrupt and self.turn is not None:  # also what it holds, and what works beside the turn
            await self._stop(self.turn, self.turn.end_as("interrupted"))

    async def _trim(self) -> None:
        """Remove the oldest turns, whole, that are more than what is kept."""
        stream = self.journal.stream
        keep = self.journal.last_seq - self._history_max_events
        start = await self.journal.log.turn_start(stream.key, 1, before=keep + 1)
        if start > stream.first:
            (row,) = await self.journal.log.read(stream.key, after=start - 1, upto=start)
            stream.first = start  # first, so that no reader takes the gap for the beginning
            at = orjson.loads(row.data)["timestamp"]
            await self.journal.log.commit(Batch(statements=trim_session(self.record, start, at)))
            self.journal.refresh()

    # --- what the agent says ------------------------------------------------------------------------------------------

    def _agent_lost(self) -> None:
        """The agent's process is no longer ours, for whatever reason: with it goes what it did in the background."""
        if self.journal.broken:
            return
        before = self.journal.last_seq
        self._take_back()
        self.recorder.agent_lost()
        if self.journal.last_seq != before:
            self.recorder.commit()

    def _agent_gone(self) -> None:
        turn = self.turn
        if turn is None:
            self._pause()
            if self.record.status == "starting":
                self.recorder.set_status("idle")
            self.recorder.commit()
            return
        if turn.stop_as is None and not turn.failed:
            self.recorder.fail("agent_died", AGENT_FAILED, retryable=True)
        self._end_turn(turn.stop_as or "agent_died", pause=turn.pause)

    def _take(self, event: base.AgentEvent) -> None:
        match event:
            case base.TurnEnded(reason, usage, cost):
                if self.turn is not None:
                    self._end_turn(self.turn.stop_as or reason, usage, cost, pause=self.turn.pause)
            case base.PromptTaken(name):
                self._taken(name)
            case base.PromptReturned(name):
                for prompt in self._held:
                    prompt.held = prompt.turn_id != name
                self._begin_next()
            case base.PermissionAsked():
                permission = self.recorder.ask(event)
                if self.record.permission_timeout_s is not None:
                    loop = asyncio.get_running_loop()
                    timer = loop.call_later(self.record.permission_timeout_s, self._expire, permission)
                    self._timers[permission.id] = timer
            case _:
                self.recorder.take(event)

    def _taken(self, name: str) -> None:
        """The agent took in what it was steered with: into the running turn, or as a turn that begins now."""
        place = next(
            (place for place, (_, prompt) in enumerate(self.queue) if prompt.held and prompt.turn_id == name), None
        )
        if place is None:  # taken back, or dropped, meanwhile
            return
        _, prompt = self.queue.pop(place)
        self.journal.also(remove_prompt(self.record.id, prompt.turn_id))
        if self.turn is None:
            self.recorder.open_turn(Turn(prompt.turn_id, "user", prompt=prompt, sent=True))
            self.recorder.set_status("running")
        else:
            self.turn.taken.append(prompt.turn_id)
        self.recorder.say_prompt(prompt, self.recorder.turn_id or prompt.turn_id)
        self.recorder.tell_queue()
        self.recorder.commit()

    # --- permissions --------------------------------------------------------------------------------------------------

    def _stop_timer(self, permission: Permission) -> None:
        timer = self._timers.pop(permission.id, None)
        if timer is not None:
            timer.cancel()

    def _expire(self, permission: Permission) -> None:
        message = f"Nobody answered within {self.record.permission_timeout_s:g} s."
        self.runner.spawn(self._expired(permission, message))

    async def _expired(self, permission: Permission, message: str) -> None:
        with contextlib.suppress(WorkspaceError):  # answered, or its turn ended, in the same instant
            await self.answer(permission.id, Answer(decision="deny", message=message), "timeout")

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _check_there(self) -> None:
        """To be asked again after each wait, since the session may have been removed in it."""
        if self.journal.stream.removed:
            raise WorkspaceError("session_not_found", f"There is no session {self.record.id!r} here.")

    def _check_alive(self) -> None:
        self._check_there()
        if self.record.status == "terminated" or self._ending is not None:
            raise WorkspaceError("session_terminated", f"Session {self.record.id} is terminated: reopen it first.")
        if self.journal.broken:
            raise StreamBroken

    async def _settle(self, *, state: bool = True) -> None:
        """Make all that was said so far durable, with the record if it changed since its last commit (`state`)."""
        await self.journal.log.settled(self.recorder.commit(waited=True, state=state))
