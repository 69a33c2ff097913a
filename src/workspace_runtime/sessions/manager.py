"""All sessions of the workspace: made, found, listed, ended, and brought back at the start."""

import asyncio
import base64
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.hub import Stream
from workspace_runtime.events.log import Batch, EventLog, Statement, unavailable
from workspace_runtime.events.model import encode, new_id, now
from workspace_runtime.logs import told
from workspace_runtime.paths import WorkspaceRoot

from . import prompt_files, store
from .actor import SessionActor
from .drivers.base import Agent, Capabilities, PromptPart
from .journal import Journal
from .keys import UsedKeys
from .model import Delivery, JsonObject, QueuedPrompt, SessionRecord, preview, prompt_text
from .paging import MAX_PAGE_BYTES
from .permissions import Answer, already
from .places import Places
from .recovery import bring_back, needs_recovery, recover

logger = logging.getLogger(__name__)

# How long after a failed try a session is brought back again, at first.
BRING_BACK_S = 0.5
# How long a start waits for the disk, so that what a crash left open is closed before anything is served.
RECOVERY_S = 2.0
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
        self.history_max_events = history_max_events
        self._sessions: dict[str, Session] = {}
        self._places = Places(max_running, lambda: (session.actor for session in self._sessions.values()))
        self._keys = UsedKeys()
        self._owning = asyncio.Lock()
        self._streams = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._loading: asyncio.Task[None] | None = None
        self.loaded = False

    async def load(self) -> None:
        """Bring back all sessions, and close what a crash left open.

        Bounded, and raises nothing for a disk that takes no writes: then sessions stand as the disk has them, or, where not even
        that can be read, come back by themselves as soon as it can (`loaded`). Until then all that asks for them is refused.
        """
        ready = Batch(statements=[store.note_start(), store.drop_old_keys()], done=self.log.future())
        self.log.submit(ready)
        if not self.log.opened:
            self._loading = asyncio.get_running_loop().create_task(self._load_once(ready))
            return
        recovered = await self._load()
        await asyncio.wait([batch.done for batch in (ready, *recovered) if batch.done], timeout=RECOVERY_S)

    async def _load_once(self, ready: Batch) -> None:
        assert ready.done is not None
        try:
            await ready.done
            await self._load()
        except WorkspaceError:
            pass  # the server ends, and the disk has taken nothing
        except Exception:  # the edge of this task: the server is not ready, and the log says why
            logger.exception("the sessions could not be brought back")

    async def _load(self) -> list[Batch]:
        """Take up what the log holds; the batches that close what was left open."""
        self._streams = itertools.count(await store.load_next_stream(self.log))
        self._keys = UsedKeys(await store.load_keys(self.log))
        queues: dict[str, list[tuple[float, QueuedPrompt]]] = {}
        for session_id, position, prompt in await store.load_prompts(self.log):
            queues.setdefault(session_id, []).append((position, prompt))
        pending: dict[str, list[JsonObject]] = {}
        for permission in await store.pending_permissions(self.log):
            pending.setdefault(permission["session_id"], []).append(permission)
        recovered: list[Batch] = []
        for record in await store.load_sessions(self.log):
            first, head = self.log.bounds_now(record.stream)
            stream = Stream(self.log, record.id, record.stream, first=first, head=head)
            stream.ended = record.status == "terminated"
            queue = queues.get(record.id, [])
            record.queue_length = len(queue)
            record.queue_paused |= bool(queue)
            known = record.agent in self.agents
            journal = self._add(record, stream, queue).journal if known else Journal(self.log, stream, record)
            if needs_recovery(record):
                recovered.append(await recover(journal, record, pending.get(record.id, []), len(queue)))
        self.loaded = True
        return recovered

    def _add(self, record: SessionRecord, stream: Stream, queue: Sequence[tuple[float, QueuedPrompt]] = ()) -> Session:
        journal, actor = self._parts(record, stream, queue)
        session = self._sessions[record.id] = Session(record, stream, journal, actor)
        return session

    def _parts(
        self, record: SessionRecord, stream: Stream, queue: Sequence[tuple[float, QueuedPrompt]]
    ) -> tuple[Journal, SessionActor]:
        """What makes a session live: its journal and its actor."""

        def published() -> None:
            if (session := self._sessions.get(record.id)) is not None:
                session.view = None

        def refused() -> None:
            if self._closed:  # the next start brings it back
                return
            task = asyncio.get_running_loop().create_task(self._bring_back(record.id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        journal = Journal(self.log, stream, record, published, refused)
        agent = self.agents[record.agent]
        return journal, SessionActor(record, agent, journal, self._places, self.root, queue, self.history_max_events)

    async def _bring_back(self, session_id: str) -> None:
        """Something of a session could not be stored: end its agent, and go on from what is."""
        session = self._sessions[session_id]
        await session.actor.abandon()
        pause = BRING_BACK_S
        while True:
            try:
                kept = await bring_back(session.journal)
                break
            except Exception:  # the edge of this task: nothing else can be done for the session until it succeeds
                logger.exception("session %s could not be brought back: trying again in %g s", session_id, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 60.0)
        if kept is None:  # not even its beginning was stored
            self._sessions.pop(session_id, None)
            session.stream.removed = True
            session.stream.wake_all()
        elif not self._closed:
            session.record, queue = kept
            session.journal, session.actor = self._parts(session.record, session.stream, queue)
            session.view = None

    @property
    def running(self) -> int:
        """How many agents run."""
        return self._places.running

    async def close(self) -> None:
        """End all agents; their sessions stay. Nothing new is taken any more, and who reads is let go. Safe to call twice.

        Bounded, and raises nothing: one session that can't be ended well must not keep the others from it.
        """
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        sessions = list(self._sessions.values())
        faults = await asyncio.gather(*(session.actor.close() for session in sessions), return_exceptions=True)
        for session, fault in zip(sessions, faults, strict=True):
            if isinstance(fault, Exception):
                logger.error("session %s did not end well", session.record.id, exc_info=fault)
            session.stream.closed = True
            session.stream.wake_all()

    # --- finding ------------------------------------------------------------------------------------------------------

    def get(self, session_id: str) -> Session:
        """One session. Raises `session_not_found`."""
        session = self._sessions.get(session_id)
        if session is None:
            self._check_loaded()
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
        """Sessions, newest first, as JSON, and the cursor of the next page. A page ends at `MAX_PAGE_BYTES` too.

        Raises `cursor_invalid`.
        """
        self._check_loaded()
        below = _decode_cursor(cursor) if cursor is not None else None
        words = query.casefold() if query else None
        items: list[bytes] = []
        last = size = 0
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
            size += len(body)
            if len(items) == limit or (items and size > MAX_PAGE_BYTES):
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
        async with self._keys.held("", key):
            used = self._keys.answer("", key, digest)
            if used is not None:
                return self.get(used["session_id"])
            if new.resume_session_id is None and new.resume_native_id is None:
                return await self._create(new, key, digest)
            async with self._owning:  # one at a time: none may take a conversation while another looks whose it is
                return await self._create(new, key, digest)

    async def _create(self, new: NewSession, key: str | None, digest: str) -> Session:
        self._check_open()
        agent = self.agent(new.agent)
        info = await agent.info()
        if not info.installed:
            raise WorkspaceError("agent_not_installed", f"{info.name} is not installed. {info.sign_in}")
        agent.check(model=new.model, effort=new.effort, permission_mode=new.permission_mode)
        _check_capabilities(new, info.name, info.capabilities)
        cwd = await asyncio.to_thread(self.root.folder, new.cwd)
        if new.prompt:
            await asyncio.to_thread(prompt_files.check, self.root, new.prompt)
        parent, native = await self._resumed(new, agent)
        self._check_open()
        self._places.check()
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
            journal.also(self._keys.use("", key, digest, {"session_id": record.id}))
        journal.emit("status", {"status": "starting"})
        batch = journal.commit(state=True, waited=True)
        self._keys.forget_unless_stored("", key, batch)
        if new.prompt:
            turn = QueuedPrompt(new_id("turn"), new.prompt, key)
            session.actor.submit(turn, "queue")
        else:
            session.actor.start()
        await self.log.settled(batch)
        logger.info("session created", extra=told(session_id=record.id, agent=agent.id))
        return session

    async def _resumed(self, new: NewSession, agent: Agent) -> tuple[str | None, str | None]:
        """The session whose conversation is gone on with, if it was one of ours, and the agent's own id of the conversation."""
        native, parent = new.resume_native_id, None
        if new.resume_session_id is not None:
            parent = self.get(new.resume_session_id)
            if parent.record.agent != new.agent:
                detail = f"That session is one of the agent {parent.record.agent}: name the same agent."
                raise WorkspaceError("not_supported", detail)
            native = parent.record.native_session_id or parent.record.resume_native_id
            if native is None:
                raise WorkspaceError("not_supported", "That session has no conversation yet that could be resumed.")
        if native is None:
            return None, None
        native = agent.conversation(native)
        if parent is None:
            used = [
                s
                for s in self._sessions.values()
                if s.record.agent == agent.id and s.record.native_session_id == native
            ]
            parent = used[-1] if used else None
        if not new.fork:
            await self._check_owner(agent.id, native)
        return parent.record.id if parent is not None else None, native

    async def _check_owner(self, agent_id: str, native: str, reopened: Session | None = None) -> None:
        """Refuse a second live owner of an agent's conversation. One that is being terminated is waited for."""
        for session in list(self._sessions.values()):
            record = session.record
            if session is reopened or record.agent != agent_id or record.conversation != native:
                continue
            await session.actor.ended()
            if record.status != "terminated":
                detail = f"The session {record.id} uses this conversation: terminate it first, or branch off with fork."
                raise WorkspaceError("session_active", detail, session_id=record.id)

    async def reopen(self, session_id: str) -> Session:
        """Make a terminated session idle again. Raises `session_active` where another session goes on with its conversation."""
        async with self._owning:
            self._check_open()
            session = self.get(session_id)
            await session.actor.ended()
            record = session.record
            if record.status == "terminated" and record.conversation is not None:
                await self._check_owner(record.agent, record.conversation, session)
            await session.actor.reopen()
        return session

    async def prompt(
        self,
        session_id: str,
        parts: Sequence[PromptPart],
        *,
        delivery: Delivery = "queue",
        client_message_id: str | None = None,
        digest: str = "",
    ) -> Receipt:
        """Take a prompt, durable when this returns.

        Raises `WorkspaceError` as `SessionActor.submit` does, and with the codes of the files API for a file that can't be given.
        """
        async with self._keys.held(session_id, client_message_id):
            self.get(session_id)
            used = self._keys.answer(session_id, client_message_id, digest)
            if used is not None:
                return Receipt(**used)
            return await self._prompt(session_id, parts, delivery, client_message_id, digest)

    async def _prompt(
        self, session_id: str, parts: Sequence[PromptPart], delivery: Delivery, key: str | None, digest: str
    ) -> Receipt:
        await asyncio.to_thread(prompt_files.check, self.root, parts)
        session = self.get(session_id)
        if delivery == "steer":
            info = await session.actor.agent.info()
            if not info.capabilities.steer:
                raise WorkspaceError("not_supported", f"{info.name} takes nothing into a running turn.")
        self._check_open()
        session = self.get(session_id)  # it may have been purged meanwhile
        self._places.check(session.actor.runner)
        prompt = QueuedPrompt(new_id("turn"), parts, key)

        def remember(place: int) -> Sequence[Statement]:
            if key is None:
                return ()
            answer = Receipt(prompt.turn_id, place > 0, place).view()
            return (self._keys.use(session_id, key, digest, answer),)

        place, batch = session.actor.submit(prompt, delivery, remember)
        self._keys.forget_unless_stored(session_id, key, batch)
        await self.log.settled(batch)
        return Receipt(prompt.turn_id, place > 0, place)

    # --- ending -------------------------------------------------------------------------------------------------------

    async def terminate(self, session_id: str) -> None:
        """End a session's agent; its history stays."""
        await self.get(session_id).actor.terminate()
        logger.info("session terminated", extra=told(session_id=session_id))

    async def purge(self, session_id: str) -> None:
        """End a session and remove all that is kept of it."""
        async with self._owning:  # nobody makes it live again meanwhile
            session = self.get(session_id)
            await session.actor.terminate()
            await session.actor.close()
            self._sessions.pop(session_id, None)
            session.stream.removed = True  # from here on nothing of it is written
            created = self._keys.forget_session(session_id)
            await self.log.commit(Batch(statements=store.remove_session(session.record, created)))
        session.stream.wake_all()
        logger.info("session removed", extra=told(session_id=session_id))
        await self._forget(session.record)
        await self.log.erase()

    async def _forget(self, record: SessionRecord) -> None:
        """Have the agent remove its conversations of a purged session, unless another session goes on with them."""
        others = [other.record for other in self._sessions.values()]
        used = {name for other in others for name in (other.native_session_id, other.resume_native_id)}
        for name in {record.native_session_id, record.resume_native_id} - used - {None}:
            await self.agents[record.agent].forget(str(name))

    # --- permissions --------------------------------------------------------------------------------------------------

    def pending_permissions(self, session_id: str | None = None) -> Sequence[JsonObject]:
        """Permissions that wait, oldest first: of one session, or of all."""
        self._check_loaded()
        sessions = [self.get(session_id)] if session_id is not None else list(self._sessions.values())
        waiting = [p for session in sessions for p in session.actor.permissions.values() if p.resolution is None]
        return [permission.view() for permission in sorted(waiting, key=lambda p: (p.created_at, p.id))]

    async def answered_permissions(
        self, session_id: str | None, *, limit: int, cursor: str | None
    ) -> tuple[Sequence[JsonObject], str | None]:
        """Answered permissions, newest first, and the cursor of the next page."""
        self._check_loaded()
        ids = [self.get(session_id).record.id] if session_id is not None else list(self._sessions)
        before = _decode_cursor(cursor) if cursor is not None else 0
        items, more = await store.answered_permissions(self.log, ids, before, limit, MAX_PAGE_BYTES)
        return items, _encode_cursor(more) if more is not None else None

    async def answer_permission(self, session_id: str, permission_id: str, answer: Answer) -> JsonObject:
        """Answer a permission. Raises `permission_not_found`, `permission_resolved`, `permission_answer_invalid`."""
        session = self.get(session_id)
        if permission_id not in session.actor.permissions:
            known = await store.find_permission(self.log, session_id, permission_id)
            if known is not None:
                raise already(permission_id, known["resolution"])
        return (await session.actor.answer(permission_id, answer)).view()

    # --- whether it can be done now ----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise WorkspaceError("shutting_down", "The server is stopping: nothing was changed. Try again in a moment.")
        self._check_loaded()

    def _check_loaded(self) -> None:
        if not self.loaded:
            raise unavailable()


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
