"""All sessions of the workspace: made, found, listed, ended, and brought back at the start."""

import asyncio
import base64
import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.hub import Stream
from workspace_runtime.events.log import Batch, EventLog, Statement
from workspace_runtime.events.model import encode, new_id, now
from workspace_runtime.paths import WorkspaceRoot

from . import store
from .actor import SessionActor
from .drivers.base import Agent, Capabilities, PromptPart
from .journal import Journal
from .model import Delivery, JsonObject, QueuedPrompt, SessionRecord, preview, prompt_text
from .permissions import Answer, already
from .recovery import needs_recovery, recover
from .runner import AgentRunner
from .store import UsedKey

# What a session's answer holds, in its order; the last ones are filled in from the stream.
_VIEW_FIELDS = (
    "id", "agent", "title", "status", "model", "effort", "permission_mode", "cwd", "labels", "created_at", "updated_at",
    "first_seq", "last_seq", "log_id", "turn_count", "active_turn", "last_message", "queue", "plan", "usage", "cost_usd",
    "context", "pending_permissions", "parent_session_id", "native_session_id", "error",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a client may say of a new session; None and empty mean the agent's own default."""

    agent: str = "claude"
    prompt: Sequence[PromptPart] | None = None
    title: str | None = None
    model: str | None = None
    effort: str | None = None
    permission_mode: str | None = None
    cwd: str = "."
    env: Mapping[str, str] = field(default_factory=dict)
    system_prompt: str | None = None
    max_turns: int | None = None
    permission_timeout_s: float | None = None
    labels: Sequence[str] = ()
    resume_session_id: str | None = None
    resume_native_id: str | None = None
    fork: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a prompt was taken: its turn, and its place in the queue (0: its turn began at once)."""

    turn_id: str
    queued: bool
    position: int

    def view(self) -> JsonObject:
        """As the API answers it."""
        return {"turn_id": self.turn_id, "queued": self.queued, "position": self.position}


@dataclass(slots=True)
class Session:
    """One session: its record, its live stream, its actor, and its answer as bytes while nothing changed.

    The record is the actor's own and may be ahead of the disk; what is answered is what its journal has published.
    """

    record: SessionRecord
    stream: Stream
    journal: Journal
    actor: SessionActor
    view: bytes | None = None


class SessionManager:
    """Made by `load`. All methods are of the event loop's thread."""

    def __init__(
        self,
        log: EventLog,
        root: WorkspaceRoot,
        agents: Iterable[Agent],
        *,
        max_running: int = 16,
        history_max_events: int = 0,
    ) -> None:
        self.log = log
        self.root = root
        self.agents = {agent.id: agent for agent in agents}
        self.max_running = max_running
        self.history_max_events = history_max_events
        self._sessions: dict[str, Session] = {}
        self._claimed: set[AgentRunner] = set()
        self._keys: dict[tuple[str, str], UsedKey] = {}
        self._keys_bound = 1024  # when to look for keys past their lifetime
        self._key_batches: dict[tuple[str, str], Batch] = {}
        self._streams = itertools.count(1)
        self._closed = False

    async def load(self) -> None:
        """Bring back all sessions, and close what a crash left open."""
        self._streams = itertools.count(await store.load_next_stream(self.log))
        self._keys = await store.load_keys(self.log)
        queues: dict[str, list[tuple[float, QueuedPrompt]]] = {}
        for session_id, position, prompt in await store.load_prompts(self.log):
            queues.setdefault(session_id, []).append((position, prompt))
        pending: dict[str, list[JsonObject]] = {}
        for permission in await store.pending_permissions(self.log):
            pending.setdefault(permission["session_id"], []).append(permission)
        for record in await store.load_sessions(self.log):
            first, head = self.log.bounds_now(record.stream)
            stream = Stream(self.log, record.id, record.stream, first=first, head=head)
            stream.ended = record.status == "terminated"
            queue = queues.get(record.id, [])
            if needs_recovery(record):
                await recover(Journal(self.log, stream, record), record, pending.get(record.id, []), len(queue))
            elif queue and not record.queue_paused:
                record.queue_paused = True
            record.queue_length = len(queue)
            if record.agent in self.agents:
                self._add(record, stream, queue)
        self.log.submit(Batch(statements=[store.drop_old_keys()]))

    def _add(self, record: SessionRecord, stream: Stream, queue: Sequence[tuple[float, QueuedPrompt]] = ()) -> Session:
        def published() -> None:
            session.view = None

        journal = Journal(self.log, stream, record, published)
        actor = SessionActor(
            record, self.agents[record.agent], journal, self, self.root.path, queue, self.history_max_events
        )
        session = Session(record, stream, journal, actor)
        self._sessions[record.id] = session
        return session

    @property
    def running(self) -> int:
        """How many agents run."""
        return len(self._claimed)

    async def close(self) -> None:
        """End all agents; their sessions stay. Nothing new is taken any more. Safe to call twice."""
        if not self._closed:
            self._closed = True
            await asyncio.gather(*(session.actor.close() for session in self._sessions.values()))

    # --- finding ------------------------------------------------------------------------------------------------------

    def get(self, session_id: str) -> Session:
        """One session. Raises `session_not_found`."""
        session = self._sessions.get(session_id)
        if session is None:
            raise WorkspaceError("session_not_found", f"There is no session {session_id[:100]!r} here.")
        return session

    def agent(self, agent_id: str) -> Agent:
        """One agent. Raises `agent_not_found`."""
        agent = self.agents.get(agent_id)
        if agent is None:
            known = ", ".join(sorted(self.agents))
            raise WorkspaceError("agent_not_found", f"There is no agent {agent_id[:100]!r}. Known are: {known}.")
        return agent

    def list(
        self,
        *,
        limit: int,
        cursor: str | None = None,
        status: str | None = None,
        agent: str | None = None,
        label: str | None = None,
        query: str | None = None,
    ) -> tuple[list[bytes], str | None]:
        """Sessions, newest first, as JSON, and the cursor of the next page. Raises `cursor_invalid`."""
        below = _decode_cursor(cursor) if cursor is not None else None
        words = query.casefold() if query else None
        items: list[bytes] = []
        last = 0
        for session in reversed(self._sessions.values()):  # made in this order, and loaded in it
            record = session.record
            if below is not None and record.stream >= below:
                continue
            if (agent and record.agent != agent) or (label and label not in record.labels):
                continue
            if words and words not in (record.title or "").casefold():
                continue
            body = self.view_bytes(session)
            if status and orjson.loads(body)["status"] != status:
                continue
            if len(items) == limit:
                return items, _encode_cursor(last)
            items.append(body)
            last = record.stream
        return items, None

    def view(self, session: Session) -> JsonObject:
        """A session as the API answers it: as of what was published last."""
        journal = session.journal
        shown = orjson.loads(journal.shown)
        view: JsonObject = {name: shown.get(name) for name in _VIEW_FIELDS}
        view["first_seq"], view["last_seq"] = session.stream.first, session.stream.head
        view["log_id"] = self.log.log_id
        view["queue"] = {"length": shown["queue_length"], "paused": shown["queue_paused"]}
        view["last_message"] = journal.shown_message
        if view["active_turn"] is not None:
            view["active_turn"]["tool"] = journal.shown_tool
        return view

    def view_bytes(self, session: Session) -> bytes:
        """The same as JSON, made again only when something was published."""
        if session.view is None:
            session.view = encode(self.view(session))
        return session.view

    # --- making and prompting -----------------------------------------------------------------------------------------

    async def create(self, new: NewSession, *, key: str | None = None, digest: str = "") -> Session:
        """Make a session, durable when this returns. `key` makes a retry with the same `digest` give the same session.

        Raises `WorkspaceError` for whatever does not fit (`agent_not_found`, `model_not_found`, `path_outside`, …).
        """
        self._check_open()
        used = await self._used("", key, digest)
        if used is not None:
            return self.get(used["session_id"])
        agent = self.agent(new.agent)
        info = await agent.info()
        if not info.installed:
            raise WorkspaceError("agent_not_installed", f"{info.name} is not installed. {info.sign_in}")
        agent.check(model=new.model, effort=new.effort, permission_mode=new.permission_mode)
        _check_capabilities(new, info.name, info.capabilities)
        cwd = self.root.folder(new.cwd)
        parent, native = self._resumed(new)
        self._check_slots()
        stamp = now()
        record = SessionRecord(
            id=new_id("ses"),
            stream=next(self._streams),
            agent=agent.id,
            created_at=stamp,
            updated_at=stamp,
            cwd=cwd,
            title=new.title or (preview(prompt_text(new.prompt), 80) if new.prompt else None) or None,
            model=new.model,
            chosen_model=new.model,
            effort=new.effort,
            permission_mode=new.permission_mode,
            labels=list(new.labels),
            parent_session_id=parent,
            resume_native_id=native,
            fork=new.fork,
            permission_timeout_s=new.permission_timeout_s,
            max_turns=new.max_turns,
            env=dict(new.env),
            system_prompt=new.system_prompt,
        )
        stream = Stream(self.log, record.id, record.stream)
        session = self._add(record, stream)
        journal = session.journal
        journal.also(store.save_next_stream(record.stream + 1))
        if key is not None:
            journal.also(self._use("", key, digest, {"session_id": record.id}))
        journal.emit("status", {"status": "starting"})
        batch = journal.commit(state=True, waited=True)
        self._pend("", key, batch)
        if new.prompt:
            turn = QueuedPrompt(new_id("turn"), new.prompt, key)
            session.actor.submit(turn, "queue")
        else:
            session.actor.start()
        await self.log.settled(batch)
        return session

    def _resumed(self, new: NewSession) -> tuple[str | None, str | None]:
        if new.resume_session_id is None:
            return None, new.resume_native_id
        source = self.get(new.resume_session_id)
        if source.record.agent != new.agent:
            detail = f"That session is one of the agent {source.record.agent}: name the same agent."
            raise WorkspaceError("not_supported", detail)
        if source.record.native_session_id is None:
            raise WorkspaceError("not_supported", "That session has no conversation yet that could be resumed.")
        if not new.fork and source.record.status != "terminated":
            detail = "That session still uses its conversation: terminate it first, or branch off with fork."
            raise WorkspaceError("session_active", detail)
        return source.record.id, source.record.native_session_id

    async def prompt(
        self,
        session_id: str,
        parts: Sequence[PromptPart],
        *,
        delivery: Delivery = "queue",
        client_message_id: str | None = None,
        digest: str = "",
    ) -> Receipt:
        """Take a prompt, durable when this returns. Raises `WorkspaceError` as `SessionActor.submit` does."""
        self._check_open()
        session = self.get(session_id)
        used = await self._used(session_id, client_message_id, digest)
        if used is not None:
            return Receipt(**used)
        if delivery == "steer":
            info = await session.actor.agent.info()
            if not info.capabilities.steer:
                raise WorkspaceError("not_supported", f"{info.name} takes nothing into a running turn.")
        if session.actor.runner not in self._claimed:
            self._check_slots()
        prompt = QueuedPrompt(new_id("turn"), parts, client_message_id)

        def remember(place: int) -> Sequence[Statement]:
            if client_message_id is None:
                return ()
            answer = Receipt(prompt.turn_id, place > 0, place).view()
            return (self._use(session_id, client_message_id, digest, answer),)

        place, batch = session.actor.submit(prompt, delivery, remember)
        self._pend(session_id, client_message_id, batch)
        await self.log.settled(batch)
        return Receipt(prompt.turn_id, place > 0, place)

    # --- ending -------------------------------------------------------------------------------------------------------

    async def terminate(self, session_id: str) -> None:
        """End a session's agent; its history stays."""
        await self.get(session_id).actor.terminate()

    async def purge(self, session_id: str) -> None:
        """End a session and remove all that is kept of it."""
        session = self.get(session_id)
        await session.actor.terminate()
        await session.actor.close()
        self._sessions.pop(session_id, None)
        for name in [name for name in self._keys if name[0] == session_id]:
            del self._keys[name]
        await self.log.commit(Batch(statements=store.remove_session(session.record)))
        session.stream.removed = True
        session.stream.wake_all()

    # --- permissions --------------------------------------------------------------------------------------------------

    def pending_permissions(self, session_id: str | None = None) -> Sequence[JsonObject]:
        """Permissions that wait, oldest first: of one session, or of all."""
        sessions = [self.get(session_id)] if session_id is not None else list(self._sessions.values())
        waiting = [p for session in sessions for p in session.actor.permissions.values() if p.resolution is None]
        return [permission.view() for permission in sorted(waiting, key=lambda p: p.created_at)]

    async def answered_permissions(
        self, session_id: str | None, *, limit: int, cursor: str | None
    ) -> tuple[Sequence[JsonObject], str | None]:
        """Answered permissions, newest first, and the cursor of the next page."""
        ids = [self.get(session_id).record.id] if session_id is not None else list(self._sessions)
        before = _decode_cursor(cursor) if cursor is not None else 0
        rows = await store.answered_permissions(self.log, ids, before, limit + 1)
        more = _encode_cursor(rows[limit - 1]["row"]) if len(rows) > limit else None
        for row in rows:
            del row["row"]
        return rows[:limit], more

    async def answer_permission(self, session_id: str, permission_id: str, answer: Answer) -> JsonObject:
        """Answer a permission. Raises `permission_not_found`, `permission_resolved`, `permission_answer_invalid`."""
        session = self.get(session_id)
        if permission_id not in session.actor.permissions:
            known = await store.find_permission(self.log, session_id, permission_id)
            if known is not None:
                raise already(permission_id, known["resolution"])
        return (await session.actor.answer(permission_id, answer)).view()

    # --- places for running agents ------------------------------------------------------------------------------------

    def _check_slots(self) -> None:
        if len(self._claimed) >= self.max_running and self._restable() is None:
            detail = f"{self.max_running} agents run already, and each has something to do."
            raise WorkspaceError("too_many_agents", detail, limit=self.max_running)

    def _check_open(self) -> None:
        if self._closed:
            raise WorkspaceError("shutting_down", "The server is stopping: nothing was changed. Try again in a moment.")

    def _restable(self) -> SessionActor | None:
        idle = [session.actor for session in self._sessions.values() if session.actor.restable]
        return min(idle, key=lambda actor: actor.idle_since, default=None)

    async def claim(self, runner: AgentRunner) -> None:
        """Take a place for an agent (see `runner.Slots`)."""
        while len(self._claimed) >= self.max_running and runner not in self._claimed:
            idle = self._restable()
            if idle is None:
                self._check_slots()
            else:
                await idle.rest()
        self._claimed.add(runner)

    def release(self, runner: AgentRunner) -> None:
        """Give a place back."""
        self._claimed.discard(runner)

    # --- used keys ----------------------------------------------------------------------------------------------------

    async def _used(self, scope: str, key: str | None, digest: str) -> Mapping[str, Any] | None:
        if key is None:
            return None
        used = self._keys.get((scope, key))
        if used is None or used.at < time.time() - store.KEY_LIFETIME_S:
            return None
        if used.digest != digest:
            detail = "This key was used for another request: nothing was done. Use a new one."
            raise WorkspaceError("idempotency_conflict", detail)
        batch = self._key_batches.get((scope, key))
        if batch is not None:  # the first request is not durable yet
            await self.log.settled(batch)
        return used.answer

    def _use(self, scope: str, key: str, digest: str, answer: JsonObject) -> Statement:
        moment = time.time()
        if len(self._keys) >= self._keys_bound:
            self._keys = {name: used for name, used in self._keys.items() if used.at >= moment - store.KEY_LIFETIME_S}
            self._keys_bound = max(1024, 2 * len(self._keys))
        used = self._keys[scope, key] = UsedKey(digest, answer, moment)
        return store.save_key(scope, key, used)

    def _pend(self, scope: str, key: str | None, batch: Batch) -> None:
        if key is None or batch.done is None:
            return
        self._key_batches[scope, key] = batch
        batch.done.add_done_callback(lambda _: self._key_batches.pop((scope, key), None))


def digest(body: bytes | Any) -> str:
    """A digest of a request's body, to tell a retry from another request with the same key."""
    data = body if isinstance(body, bytes) else json.dumps(body, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def _check_capabilities(new: NewSession, name: str, can: Capabilities) -> None:
    wanted = {
        "system_prompt": new.system_prompt is not None,
        "max_turns": new.max_turns is not None,
        "fork": new.fork,
        "resume": new.resume_native_id is not None or new.resume_session_id is not None,
    }
    for capability, asked in wanted.items():
        if asked and not getattr(can, capability):
            raise WorkspaceError("not_supported", f"{name} does not support {capability}.", capability=capability)


def _encode_cursor(value: int) -> str:
    return base64.urlsafe_b64encode(b"%d" % value).decode().rstrip("=")


def _decode_cursor(cursor: str) -> int:
    try:
        value = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        raise WorkspaceError("cursor_invalid", "Use next_cursor exactly as it was given.") from None
    if _encode_cursor(value) != cursor:
        raise WorkspaceError("cursor_invalid", "Use next_cursor exactly as it was given.")
    return value
