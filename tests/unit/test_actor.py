"""A session's actor: turns, queue, interrupts, permissions, failures, each told by its events."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from blockbuster import blockbuster_ctx
from pydantic import TypeAdapter

from support.scripted_driver import ScriptedAgent, ScriptedDriver
from support.waiting import until
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.log import EventLog
from workspace_runtime.paths import WorkspaceRoot
from workspace_runtime.sessions import actor as actor_module
from workspace_runtime.sessions import store
from workspace_runtime.sessions.drivers import base
from workspace_runtime.sessions.drivers.base import BlockDelta, BlockEnded, TextPart, ToolCalled, ToolEnded, TurnEnded
from workspace_runtime.sessions.manager import NewSession, Session, SessionManager
from workspace_runtime.sessions.model import QueuedPrompt
from workspace_runtime.sessions.permissions import Answer
from workspace_runtime.streams.protocol import StoredEvent

pytestmark = pytest.mark.anyio
_events: TypeAdapter[Any] = TypeAdapter(StoredEvent)

OPTIONS = (
    base.PermissionOption("allow", "allow", "once", "Allow"),
    base.PermissionOption("session", "allow", "session", "Allow in this session", rule="Bash(ls)"),
    base.PermissionOption("deny", "deny", "once", "Deny"),
)


@asynccontextmanager
async def manager_of(
    folder: Path, agent: ScriptedAgent, *, max_running: int = 16, history_max_events: int = 0
) -> AsyncIterator[SessionManager]:
    state, root = folder / "state", folder / "root"
    for path in (state, root):
        path.mkdir(exist_ok=True)
    log = EventLog.open(state, store.SCHEMA)
    manager = SessionManager(
        log, WorkspaceRoot(root), [agent], max_running=max_running, history_max_events=history_max_events
    )
    await manager.load()
    try:
        with blockbuster_ctx("workspace_runtime"):  # no call that can wait on the event loop
            yield manager
    finally:
        await manager.close()
        await log.close()


async def history(manager: SessionManager, session: Session) -> list[dict[str, Any]]:
    await session.actor._settle()
    rows = await manager.log.read(session.record.stream, after=0, upto=session.stream.head, limit=10_000)
    events = [orjson.loads(row.data) for row in rows]
    for event in events:
        _events.validate_python(event)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    return events


def types(events: Sequence[dict[str, Any]], *leave_out: str) -> list[str]:
    return [event["type"] for event in events if event["type"] not in leave_out]


def say(text: str) -> tuple[TextPart, ...]:
    return (TextPart(text),)


def echo(driver: ScriptedDriver, parts: Sequence[base.PromptPart]) -> None:
    """An agent that answers each prompt with it."""
    text = parts[0].text if isinstance(parts[0], TextPart) else "?"
    driver.say(
        BlockDelta("b1", "text", text), BlockEnded("text", text, "b1"), TurnEnded("end_turn", base.Usage(1, 2), 0.5)
    )


async def idle(session: Session) -> None:
    await until(lambda: session.record.status == "idle" and session.actor.turn is None)


async def test_a_turn_from_prompt_to_done(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = echo
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("Hello there")))
        assert orjson.loads(manager.view_bytes(session))["title"] == "Hello there"
        await idle(session)
        events = await history(manager, session)
        assert types(events) == ["status", "turn_started", "user_message", "status", "text", "done", "status"]
        assert [e["status"] for e in events if e["type"] == "status"] == ["starting", "running", "idle"]
        done = events[-2]
        assert done["stop_reason"] == "end_turn" and done["usage"]["output_tokens"] == 2 and done["cost_usd"] == 0.5
        view = manager.view(session)
        assert view["turn_count"] == 1 and view["last_message"]["text"] == "Hello there"
        assert view["last_message"]["role"] == "assistant" and view["cost_usd"] == 0.5


async def test_a_session_without_prompt_starts_its_agent_and_is_idle(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.start_gate = asyncio.Event()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted"))
        assert session.record.status == "starting"
        agent.start_gate.set()
        await idle(session)
        assert len(agent.started) == 1


async def test_prompts_are_queued_in_order_and_each_has_its_done(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted"))
        receipts = [await manager.prompt(session.record.id, say(f"p{n}")) for n in range(3)]
        assert [(r.queued, r.position) for r in receipts] == [(False, 0), (True, 1), (True, 2)]
        agent.on_prompt = echo
        await until(lambda: agent.started and agent.started[0].told)
        echo(agent.started[0], say("p0"))
        await idle(session)
        events = await history(manager, session)
        assert [e["turn_id"] for e in events if e["type"] == "done"] == [r.turn_id for r in receipts]
        assert [e["content"] for e in events if e["type"] == "text"] == ["p0", "p1", "p2"]
        assert [len(e["items"]) for e in events if e["type"] == "queue_updated"] == [1, 2, 1, 0]


async def test_a_full_queue_refuses(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted"))
        for number in range(33):
            await manager.prompt(session.record.id, say(str(number)))
        with pytest.raises(WorkspaceError, match="32 prompts") as caught:
            await manager.prompt(session.record.id, say("one too many"))
        assert caught.value.code == "queue_full"


async def test_an_interrupt_keeps_what_was_seen_and_pauses_the_queue(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted"))
        first = await manager.prompt(session.record.id, say("first"))
        await until(lambda: agent.started and agent.started[0].told)
        await manager.prompt(session.record.id, say("second"))
        driver = agent.started[0]
        driver.say(
            BlockDelta("b1", "text", "half a "),
            BlockDelta("b1", "text", "sentence"),
            ToolCalled("t1", "Bash", {"command": "x"}),
        )
        await until(lambda: session.actor.recorder._tools)
        assert await session.actor.interrupt() == {"turn_id": first.turn_id, "stop_reason": "interrupted"}
        events = await history(manager, session)
        text = next(e for e in events if e["type"] == "text")
        assert (text["content"], text["partial"]) == ("half a sentence", True)
        assert next(e for e in events if e["type"] == "tool_result")["status"] == "cancelled"
        assert [e["stop_reason"] for e in events if e["type"] == "done"] == ["interrupted"]
        assert "error" not in types(events)
        assert manager.view(session)["queue"] == {"length": 1, "paused": True}
        agent.on_prompt = echo
        await manager.prompt(session.record.id, say("third"))  # the next prompt goes on with the queue
        await until(lambda: session.record.turn_count == 3)
        await idle(session)
        events = await history(manager, session)
        assert [e["content"] for e in events if e["type"] == "text"][1:] == ["second", "third"]
        assert await session.actor.interrupt() is None


async def test_an_agent_that_ignores_the_interrupt_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_module, "INTERRUPT_GRACE_S", 0.05)
    agent = ScriptedAgent()
    agent.obeys_interrupt = False
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: agent.started and agent.started[0].told)
        await session.actor.interrupt()
        assert agent.started[0].closed
        events = await history(manager, session)
        assert [e["stop_reason"] for e in events if e["type"] == "done"] == ["interrupted"]
        assert session.record.status == "idle"


async def test_delivery_interrupt_stops_the_turn_and_goes_first(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("long")))
        await until(lambda: agent.started and agent.started[0].told)
        await manager.prompt(session.record.id, say("waits"))
        agent.on_prompt = echo
        receipt = await manager.prompt(session.record.id, say("now"), delivery="interrupt")
        assert receipt.position == 1
        await until(lambda: session.record.turn_count == 3)
        await idle(session)
        events = await history(manager, session)
        assert [e["content"] for e in events if e["type"] == "text"] == ["now", "waits"]
        assert [e["stop_reason"] for e in events if e["type"] == "done"] == ["interrupted", "end_turn", "end_turn"]


async def test_what_was_done_for_the_agent_is_not_kept(tmp_path: Path) -> None:
    """An order holds the prompt that it is about, which may be large."""

    class Order:
        async def __call__(self) -> None:
            pass

    async with manager_of(tmp_path, ScriptedAgent()) as manager:
        session = await manager.create(NewSession("scripted"))
        await idle(session)
        order = Order()
        there = weakref.ref(order)
        session.actor.runner.post(order)
        del order
        await until(lambda: session.actor.runner.idle)
        await until(lambda: there() is None)


@pytest.mark.parametrize("stopped_after", [False, True])
async def test_delivery_interrupt_goes_next_though_the_turn_ends_by_itself(tmp_path: Path, stopped_after: bool) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("short")))
        await until(lambda: agent.started and agent.started[0].told)
        await manager.prompt(session.record.id, say("waits"))
        agent.started[0].say(TurnEnded("end_turn"))
        now = QueuedPrompt("turn_00000000000000000000", say("now"))
        session.actor.submit(now, "interrupt")
        if stopped_after:
            await session.actor.interrupt()
            assert session.record.queue_paused and len(session.actor.queue) == 2
            return
        agent.on_prompt = echo
        await until(lambda: session.record.turn_count == 3)
        await idle(session)
        assert [e["content"] for e in await history(manager, session) if e["type"] == "text"] == ["now", "waits"]


async def test_steer_goes_into_the_running_turn(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted"))
        first = await manager.prompt(session.record.id, say("go"))
        await until(lambda: agent.started and agent.started[0].told)
        steered = await manager.prompt(session.record.id, say("left!"), delivery="steer")
        assert steered.turn_id != first.turn_id and (steered.queued, steered.position) == (False, 0)
        await until(lambda: ("steer", say("left!")) in agent.started[0].told)
        driver = agent.started[0]
        driver.say(base.PromptTaken(driver.held[0]), BlockEnded("text", "going left"), TurnEnded("end_turn"))
        await idle(session)
        events = await history(manager, session)
        told = [
            (e["type"], e["turn_id"]) for e in events if e["type"] in ("turn_started", "user_message", "text", "done")
        ]
        assert told == [
            ("turn_started", first.turn_id), ("user_message", first.turn_id), ("user_message", first.turn_id),
            ("text", first.turn_id), ("done", first.turn_id), ("done", steered.turn_id),
        ]  # fmt: skip
        assert [[i["delivery"] for i in e["items"]] for e in events if e["type"] == "queue_updated"] == [["steer"], []]


async def steered_session(manager: SessionManager, agent: ScriptedAgent) -> tuple[Session, ScriptedDriver, str, str]:
    """A session whose agent works on a turn, and holds a prompt that it was steered with: session, driver, both turn ids."""
    session = await manager.create(NewSession("scripted"))
    first = await manager.prompt(session.record.id, say("go"))
    await until(lambda: agent.started and agent.started[0].told)
    steered = await manager.prompt(session.record.id, say("left!"), delivery="steer", client_message_id="m1")
    driver = agent.started[0]
    await until(lambda: driver.held)
    assert driver.held == [steered.turn_id]
    return session, driver, first.turn_id, steered.turn_id


async def test_what_comes_too_late_for_the_running_turn_is_a_turn_of_its_own(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session, driver, first, second = await steered_session(manager, agent)
        driver.say(TurnEnded("end_turn"), base.PromptTaken(second), BlockEnded("text", "left"), TurnEnded("end_turn"))
        await until(lambda: session.record.turn_count == 2)
        await idle(session)
        events = await history(manager, session)
        assert [(e["turn_id"], e["origin"]) for e in events if e["type"] == "turn_started"] == [
            (first, "user"), (second, "user"),
        ]  # fmt: skip
        assert [e["turn_id"] for e in events if e["type"] in ("text", "done")] == [first, second, second]
        assert [e["turn_id"] for e in events if e.get("client_message_id") == "m1"] == [second]


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("drop", [False, True])
async def test_what_the_agent_holds_at_a_stop_waits_or_is_dropped(tmp_path: Path, drop: bool, taken: bool) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session, driver, first, second = await steered_session(manager, agent)
        await manager.prompt(session.record.id, say("later"))
        if taken:
            driver.say(base.PromptTaken(second))
            await until(lambda: len(session.actor.queue) == 1)
        await session.actor.interrupt(drop_queue=drop)
        events = await history(manager, session)
        done = {e["turn_id"]: e["stop_reason"] for e in events if e["type"] == "done"}
        assert done[first] == "interrupted"
        left = 0 if drop else 2 - taken
        assert manager.view(session)["queue"] == {"length": left, "paused": left > 0}
        assert done.get(second) == ("interrupted" if taken else "cancelled" if drop else None)
        assert session.record.turn_count == 1 and session.record.status == "idle"
        if not drop:
            items = [e for e in events if e["type"] == "queue_updated"][-1]["items"]
            assert [(i["prompt_preview"], i["delivery"]) for i in items] == [("left!", "queue"), ("later", "queue")][
                taken:
            ]


@pytest.mark.parametrize("reason", ["error", "agent_died"])
async def test_what_the_agent_holds_when_its_turn_fails_waits_first_in_the_paused_queue(
    tmp_path: Path, reason: str
) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session, driver, _, second = await steered_session(manager, agent)
        if reason == "error":
            driver.say(base.AgentError("agent_error", "no"), TurnEnded("error"))
            await until(lambda: "interrupt" in driver.told)  # it must not begin what it holds
        else:
            driver.die()
        await idle(session)
        await until(lambda: manager.view(session)["queue"] == {"length": 1, "paused": True})
        assert session.actor.queue[0][1].turn_id == second and session.record.turn_count == 1
        agent.on_prompt = echo
        await manager.prompt(session.record.id, say("go on"))
        await until(lambda: session.record.turn_count == 3)
        await idle(session)
        events = await history(manager, session)
        assert [e["content"] for e in events if e["type"] == "text"] == ["left!", "go on"]


async def test_what_the_agent_gives_back_becomes_a_turn_as_any_other(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session, driver, _, second = await steered_session(manager, agent)
        agent.on_prompt = echo
        driver.say(base.PromptReturned(second), TurnEnded("end_turn"))
        await until(lambda: session.record.turn_count == 2)
        await idle(session)
        events = await history(manager, session)
        assert [(e["turn_id"], e["content"]) for e in events if e["type"] == "text"] == [(second, "left!")]


async def test_what_the_agent_holds_ends_with_the_session(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session, _, first, second = await steered_session(manager, agent)
        await manager.terminate(session.record.id)
        events = await history(manager, session)
        done = {e["turn_id"]: e["stop_reason"] for e in events if e["type"] == "done"}
        assert done == {first: "terminated", second: "terminated"} and not session.actor.queue


async def test_what_the_agent_holds_survives_the_server(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session, _, _, second = await steered_session(manager, agent)
    async with manager_of(tmp_path, agent) as manager:
        found = manager.get(session.record.id)
        assert [prompt.turn_id for _, prompt in found.actor.queue] == [second]
        assert manager.view(found)["queue"] == {"length": 1, "paused": True}


async def test_a_result_that_comes_after_its_turn_begins_no_other(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = lambda driver, parts: driver.say(
        ToolCalled("t1", "Bash", {}), TurnEnded("end_turn"), ToolEnded("t1", "late"), ToolEnded("t2", "unknown")
    )
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: session.record.turn_count == 1)
        await idle(session)
        agent.on_prompt = echo
        await manager.prompt(session.record.id, say("again"))
        await until(lambda: session.record.turn_count == 2)
        await idle(session)
        events = await history(manager, session)
        assert [e["status"] for e in events if e["type"] == "tool_result"] == ["cancelled"]
        assert types(events).count("done") == types(events).count("turn_started") == 2


@pytest.mark.parametrize("in_a_turn", [True, False])
async def test_timers_that_outlast_a_stop_end_with_the_agent(tmp_path: Path, in_a_turn: bool) -> None:
    agent = ScriptedAgent()
    timer = base.BackgroundTask("c1", "timer", "every minute")
    ends = () if in_a_turn else (TurnEnded("end_turn"),)
    agent.on_prompt = lambda driver, parts: driver.say(base.BackgroundChanged((timer,)), *ends)
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: session.record.background)
        if not in_a_turn:
            await idle(session)
        await session.actor.interrupt()
        await until(lambda: agent.started[0].closed)
        told = [event["task"]["status"] for event in await history(manager, session) if event["type"] == "task_updated"]
        assert told == ["running", "stopped"]
        agent.on_prompt = echo
        await manager.prompt(session.record.id, say("again"))
        await until(lambda: len(agent.started) == 2 and session.actor.turn is None)


async def test_background_work_keeps_an_agent_from_being_put_to_rest_and_its_end_is_told(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    task = base.BackgroundTask("b1", "command", "npm run dev", "t1")
    agent.on_prompt = lambda driver, parts: driver.say(base.BackgroundChanged((task,)), TurnEnded("end_turn"))
    async with manager_of(tmp_path, agent, max_running=1) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: session.record.turn_count == 1)
        await idle(session)
        with pytest.raises(WorkspaceError) as caught:
            await manager.create(NewSession("scripted", prompt=say("other")))
        assert caught.value.code == "too_many_agents" and caught.value.data["retry_after_s"]
        assert caught.value.data["at_work"][0]["at_work"] == "a command in the background (npm run dev)"
        agent.started[0].die()
        await until(lambda: not session.record.background)
        other = await manager.create(NewSession("scripted", prompt=say("other")))
        await until(lambda: other.record.turn_count == 1)
        told = [e["task"] for e in await history(manager, session) if e["type"] == "task_updated"]
        assert [(t["id"], t["status"], t["tool_use_id"]) for t in told] == [
            ("b1", "running", "t1"),
            ("b1", "stopped", "t1"),
        ]


async def test_agents_that_are_starting_are_waited_for(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.start_gate = asyncio.Event()
    async with manager_of(tmp_path, agent, max_running=2) as manager:
        sessions = await asyncio.gather(*(manager.create(NewSession("scripted")) for _ in range(12)))
        agent.start_gate.set()
        await until(lambda: all(session.record.status == "idle" for session in sessions))
        assert manager.running <= 2


async def test_one_key_makes_one_session_however_many_ask_at_once(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        made = await asyncio.gather(*(manager.create(NewSession("scripted"), key="k", digest="d") for _ in range(12)))
        assert len({session.record.id for session in made}) == 1 and len(manager._sessions) == 1
        session_id = made[0].record.id
        sent = await asyncio.gather(
            *(
                manager.prompt(session_id, say("x"), delivery="steer", client_message_id="m", digest="d")
                for _ in range(12)
            )
        )
        assert len({receipt.turn_id for receipt in sent}) == 1
        assert not manager._keys._locks
        await manager.purge(session_id)
        again = await manager.create(NewSession("scripted"), key="k", digest="d")
        assert again.record.id != session_id


async def test_a_conversation_has_one_live_owner(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = lambda driver, parts: driver.say(
        base.SessionChanged(native_session_id="native-1"), TurnEnded("end_turn")
    )
    async with manager_of(tmp_path, agent) as manager:
        first = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: first.record.native_session_id == "native-1")
        await idle(first)
        ways = (
            NewSession("scripted", resume_native_id="native-1"),
            NewSession("scripted", resume_session_id=first.record.id),
        )
        for way in ways:
            with pytest.raises(WorkspaceError) as caught:
                await manager.create(way)
            assert (caught.value.code, caught.value.data["session_id"]) == ("session_active", first.record.id)
        fork = await manager.create(NewSession("scripted", resume_native_id="native-1", fork=True))
        assert fork.record.parent_session_id == first.record.id
        await manager.terminate(first.record.id)
        outcomes = await asyncio.gather(
            *(manager.create(way) for way in ways * 6), manager.reopen(first.record.id), return_exceptions=True
        )
        owners = [outcome for outcome in outcomes if isinstance(outcome, Session)]
        assert len(owners) == 1
        assert owners[0].record.parent_session_id == first.record.id
        with pytest.raises(WorkspaceError) as caught:
            await manager.reopen(first.record.id)
        assert caught.value.data["session_id"] == owners[0].record.id


async def test_reopening_waits_for_the_end(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: agent.started and agent.started[0].told)
        gate = asyncio.Event()
        agent.started[0].close_gate = gate
        ending = asyncio.create_task(manager.terminate(session.record.id))
        await until(lambda: session.actor._ending is not None)
        reopening = asyncio.create_task(manager.reopen(session.record.id))
        with pytest.raises(WorkspaceError, match="terminated"):
            await manager.prompt(session.record.id, say("no"))
        gate.set()
        await asyncio.gather(ending, reopening)
        assert not session.stream.ended and session.record.status == "idle"
        events = await history(manager, session)
        assert [e.get("status") or e["stop_reason"] for e in events if e["type"] in ("status", "done")][-3:] == [
            "terminated", "terminated", "idle",
        ]  # fmt: skip


async def test_a_pending_permission_shows_as_the_status_whatever_else_goes_on(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    inner = base.PermissionAsked("r1", "tool", "Bash", {}, parent_tool_use_id="t0", options=OPTIONS)
    agent.on_prompt = lambda driver, parts: driver.say(inner, TurnEnded("end_turn"))
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: session.record.turn_count == 1 and session.actor.turn is None)
        agent.on_prompt = None
        await manager.prompt(session.record.id, say("more"))
        await until(lambda: len(agent.started[0].told) == 2)
        assert session.record.status == "requires_action"
        assert len(manager.list(limit=10, status="requires_action")[0]) == 1


async def test_the_folder_is_looked_at_again_at_each_start(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = echo
    (tmp_path / "root" / "real").mkdir(parents=True)
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go"), cwd="real"))
        await until(lambda: session.record.turn_count == 1)
        await idle(session)
        await manager.terminate(session.record.id)
        (tmp_path / "root" / "real").rmdir()
        (tmp_path / "outside").mkdir()
        (tmp_path / "root" / "real").symlink_to(tmp_path / "outside")
        await manager.reopen(session.record.id)
        await manager.prompt(session.record.id, say("again"))
        await until(lambda: manager.view(session)["status"] == "failed")
        assert len(agent.started) == 1 and "leads out" in str(manager.view(session)["error"])


async def test_an_agent_that_dies_ends_the_turn_and_the_next_prompt_starts_another(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: agent.started and agent.started[0].told)
        agent.started[0].say(base.SessionChanged(native_session_id="native-1"))
        agent.started[0].die()
        await idle(session)
        events = await history(manager, session)
        assert types(events)[-4:] == ["session_updated", "error", "done", "status"]
        assert events[-3]["code"] == "agent_died" and events[-2]["stop_reason"] == "agent_died"
        agent.on_prompt = echo
        await manager.prompt(session.record.id, say("again"))
        await until(lambda: session.record.turn_count == 2)
        await idle(session)
        assert agent.started[1].spec.native_session_id == "native-1"


async def test_an_agent_that_can_not_start_fails_the_session_and_the_next_prompt_tries_again(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.start_error = base.AgentStartError("agent_error", "it is broken")
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: session.record.status == "failed")
        events = await history(manager, session)
        assert types(events)[-3:] == ["error", "status", "done"]
        assert manager.view(session)["error"] == {"code": "agent_error", "error": "it is broken"}
        agent.start_error, agent.on_prompt = None, echo
        await manager.prompt(session.record.id, say("again"))
        await until(lambda: session.record.turn_count == 2)
        await until(lambda: manager.view(session)["status"] == "idle")
        assert manager.view(session)["error"] is None


async def test_permissions_are_answered_once(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = lambda driver, parts: driver.say(
        ToolCalled("t1", "Bash", {"command": "ls"}),
        base.PermissionAsked("r1", "tool", "Bash", {"command": "ls"}, tool_use_id="t1", options=OPTIONS),
    )
    agent.on_answer = lambda driver, request, answer: driver.say(ToolEnded("t1", "ok"), TurnEnded("end_turn"))
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: session.record.status == "requires_action")
        (waiting,) = manager.pending_permissions()
        assert waiting["options"][1]["rule"] == "Bash(ls)"
        with pytest.raises(WorkspaceError) as caught:
            await manager.answer_permission(session.record.id, waiting["id"], Answer(option_id="nonsense"))
        assert caught.value.code == "permission_answer_invalid"
        answer = Answer(option_id="session", updated_input={"command": "ls -l"})
        resolved = await manager.answer_permission(session.record.id, waiting["id"], answer)
        assert resolved["resolution"]["decision"] == "allow"
        await idle(session)
        with pytest.raises(WorkspaceError) as caught:
            await manager.answer_permission(session.record.id, waiting["id"], Answer(decision="deny"))
        assert caught.value.code == "permission_resolved"
        assert caught.value.data["resolution"]["option_id"] == "session"
        told = [entry for entry in agent.started[0].told if isinstance(entry, tuple) and entry[0] == "r1"]
        assert told[0][1].updated_input == {"command": "ls -l"}
        events = await history(manager, session)
        assert types(events).count("permission_resolved") == 1
        items, _ = await manager.answered_permissions(None, limit=10, cursor=None)
        assert [item["id"] for item in items] == [waiting["id"]]
        # the rule of the session is granted to the next process as well
        await session.actor.rest()
        await manager.prompt(session.record.id, say("again"))
        await until(lambda: len(agent.started) == 2)
        assert agent.started[1].spec.session_rules == ("Bash(ls)",)


async def test_a_permission_that_nobody_answers_is_denied_in_time(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = lambda driver, parts: driver.say(base.PermissionAsked("r1", "tool", "Bash", {}, options=OPTIONS))
    agent.on_answer = lambda driver, request, answer: driver.say(
        BlockEnded("text", answer.message or ""), TurnEnded("end_turn")
    )
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go"), permission_timeout_s=0.05))
        await until(lambda: session.record.turn_count == 1 and session.actor.turn is None)
        events = await history(manager, session)
        assert next(e for e in events if e["type"] == "permission_resolved")["by"] == "timeout"
        assert "Nobody answered" in next(e for e in events if e["type"] == "text")["content"]


async def test_an_interrupt_ends_a_pending_permission(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = lambda driver, parts: driver.say(base.PermissionAsked("r1", "tool", "Bash", {}, options=OPTIONS))
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: session.record.status == "requires_action")
        await session.actor.interrupt()
        events = await history(manager, session)
        assert types(events)[-3:] == ["permission_resolved", "done", "status"]
        assert events[-3]["by"] == "interrupt"


async def test_deny_with_interrupt_stops_the_turn(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = lambda driver, parts: driver.say(base.PermissionAsked("r1", "tool", "Bash", {}, options=OPTIONS))
    agent.on_answer = lambda driver, request, answer: driver.say(TurnEnded("interrupted"))
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: session.record.status == "requires_action")
        (waiting,) = manager.pending_permissions(session.record.id)
        await manager.answer_permission(session.record.id, waiting["id"], Answer(decision="deny", interrupt=True))
        await idle(session)
        events = await history(manager, session)
        assert [e["stop_reason"] for e in events if e["type"] == "done"] == ["interrupted"]


async def test_terminate_reopen_purge(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: agent.started and agent.started[0].told)
        await manager.prompt(session.record.id, say("waits"))
        await manager.terminate(session.record.id)
        await manager.terminate(session.record.id)
        assert agent.started[0].closed and session.stream.ended
        events = await history(manager, session)
        assert [e["stop_reason"] for e in events if e["type"] == "done"] == ["terminated", "terminated"]
        with pytest.raises(WorkspaceError) as caught:
            await manager.prompt(session.record.id, say("more"))
        assert caught.value.code == "session_terminated"
        await session.actor.reopen()
        agent.on_prompt = echo
        await manager.prompt(session.record.id, say("more"))
        await until(lambda: session.record.turn_count == 2)
        await idle(session)
        await manager.purge(session.record.id)
        with pytest.raises(WorkspaceError) as caught:
            manager.get(session.record.id)
        assert caught.value.code == "session_not_found"
        assert await manager.log.bounds(session.record.stream) == (0, 0)


async def test_a_retry_with_the_same_key_is_one_prompt(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = echo
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted"), key="create-1", digest="d")
        again = await manager.create(NewSession("scripted"), key="create-1", digest="d")
        assert again is session
        first, second = await asyncio.gather(
            *(manager.prompt(session.record.id, say("once"), client_message_id="m1", digest="x") for _ in range(2))
        )
        assert first == second
        with pytest.raises(WorkspaceError) as caught:
            await manager.prompt(session.record.id, say("other"), client_message_id="m1", digest="y")
        assert caught.value.code == "idempotency_conflict"
        await until(lambda: session.record.turn_count == 1)
        await idle(session)
    async with manager_of(tmp_path, agent) as manager:
        assert (await manager.create(NewSession("scripted"), key="create-1", digest="d")).record.id == session.record.id
        assert await manager.prompt(session.record.id, say("once"), client_message_id="m1", digest="x") == first


async def test_a_crash_closes_the_turn_and_keeps_the_queue(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = lambda driver, parts: driver.say(
        BlockEnded("text", "so far"),
        ToolCalled("t1", "Bash", {}),
        base.PermissionAsked("r1", "tool", "Bash", {}, tool_use_id="t1", options=OPTIONS),
    )
    state, root = tmp_path / "state", tmp_path / "root"
    for path in (state, root):
        path.mkdir()
    log = EventLog.open(state, store.SCHEMA)
    manager = SessionManager(log, WorkspaceRoot(root), [agent])
    await manager.load()
    session = await manager.create(NewSession("scripted", prompt=say("go")))
    await until(lambda: session.record.status == "requires_action")
    await manager.prompt(session.record.id, say("waits"))
    seen = session.stream.head
    await log.close()  # all at once, as a kill does: no actor may say anything more
    agent.on_prompt = echo
    async with manager_of(tmp_path, agent) as after:
        back = after.get(session.record.id)
        assert back.record.status == "idle" and back.record.queue_paused and len(back.actor.queue) == 1
        assert back.record.last_message is not None and back.record.last_message["text"] == "so far"
        events = await history(after, back)
        assert types(events[seen:]) == ["tool_result", "permission_resolved", "error", "done", "status"]
        assert events[-3]["code"] == "server_restarted" and events[-2]["stop_reason"] == "server_restarted"
        await after.prompt(session.record.id, say("next"))
        await until(lambda: back.record.turn_count == 3)
        await idle(back)
        texts = [e["content"] for e in await history(after, back) if e["type"] == "text"]
        assert texts == ["so far", "waits", "next"]
    for task in session.actor.runner._tasks:
        task.cancel()
    await asyncio.gather(*session.actor.runner._tasks, return_exceptions=True)


async def test_idle_agents_rest_when_the_places_are_taken(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent, max_running=2) as manager:
        first = await manager.create(NewSession("scripted"))
        await idle(first)
        second = await manager.create(NewSession("scripted", prompt=say("busy")))
        await until(lambda: len(agent.started) == 2 and agent.started[1].told)
        third = await manager.create(NewSession("scripted", prompt=say("busy")))
        await until(lambda: len(agent.started) == 3 and agent.started[2].told)
        assert agent.started[0].closed and first.actor.runner.driver is None and manager.running == 2
        with pytest.raises(WorkspaceError) as caught:
            await manager.create(NewSession("scripted"))
        assert caught.value.code == "too_many_agents"
        for session in (second, third):
            await session.actor.interrupt()


async def test_an_agent_may_begin_a_turn_by_itself(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted"))
        await idle(session)
        agent.started[0].say(
            base.AgentTurnStarted("task"), BlockEnded("text", "the task is done"), TurnEnded("end_turn")
        )
        await until(lambda: session.record.turn_count == 1)
        await idle(session)
        events = await history(manager, session)
        assert next(e for e in events if e["type"] == "turn_started")["origin"] == "agent"
        assert types(events)[-4:] == ["status", "text", "done", "status"]


async def test_settings_change_in_the_running_agent(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted"))
        await idle(session)
        await session.actor.change({"title": "New", "permission_mode": "plan"})
        assert ("configure", None, None, "plan") in agent.started[0].told
        events = await history(manager, session)
        assert events[-1]["session"]["title"] == "New" and events[-1]["session"]["permission_mode"] == "plan"


async def test_old_turns_are_trimmed(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = echo
    async with manager_of(tmp_path, agent, history_max_events=10) as manager:
        session = await manager.create(NewSession("scripted"))
        for number in range(1, 8):
            await manager.prompt(session.record.id, say(f"p{number}"))
            await until(lambda number=number: session.record.turn_count == number)  # type: ignore[misc]

            await idle(session)
        first, last = 0, 0
        async with asyncio.timeout(20):
            # the log follows the stream, so that no reader takes the gap for the beginning
            while not 1 < first == session.stream.first or last - first >= 20:
                first, last = await manager.log.bounds(session.record.stream)
        rows = await manager.log.read(session.record.stream, after=0, upto=last)
        assert orjson.loads(rows[0].data)["type"] == "turn_started"


async def test_a_sub_agent_in_the_background_is_outside_of_any_turn(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = lambda driver, parts: driver.say(
        base.PermissionAsked("r1", "tool", "Bash", {}, parent_tool_use_id="task", options=OPTIONS),
        ToolCalled("t1", "Bash", {}, parent_tool_use_id="task"),
        TurnEnded("end_turn"),
    )
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: session.record.turn_count == 1 and session.actor.turn is None)
        await until(lambda: manager.view(session)["status"] == "requires_action")
        assert not session.actor.restable
        (waiting,) = manager.pending_permissions(session.record.id)
        await manager.answer_permission(session.record.id, waiting["id"], Answer(decision="allow"))
        agent.started[0].say(ToolEnded("t1", "ok"), BlockEnded("text", "inner", parent_tool_use_id="task"))
        await until(lambda: session.actor.restable)
        events = await history(manager, session)
        assert session.record.turn_count == 1 and manager.view(session)["status"] == "idle"
        after = events[types(events).index("done") + 1 :]
        assert [(e["type"], e["turn_id"]) for e in after if e["type"] in ("tool_result", "text")] == [
            ("tool_result", None),
            ("text", None),
        ]


async def test_a_permission_that_its_turn_ends_is_told_to_the_agent(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = lambda driver, parts: driver.say(
        base.PermissionAsked("r1", "tool", "Bash", {}, options=OPTIONS), TurnEnded("end_turn")
    )
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: agent.started and any(isinstance(t, tuple) and t[0] == "r1" for t in agent.started[0].told))
        assert session.record.status == "idle" and not manager.pending_permissions()


async def test_broken_text_of_an_agent_is_mended_not_fatal(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = lambda driver, parts: driver.say(
        BlockEnded("text", "half a smile \ud83d"),
        ToolCalled("t1", "Odd \udc00", {"\ud800": 10**30}),
        base.PermissionAsked("r1", "tool", "Odd", {"x": "\ud800"}, title="\udfff", options=OPTIONS),
    )
    agent.on_answer = lambda driver, request, answer: driver.say(TurnEnded("end_turn"))
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: manager.pending_permissions(session.record.id))
        (waiting,) = manager.pending_permissions()
        await manager.answer_permission(session.record.id, waiting["id"], Answer(decision="allow"))
        await idle(session)
        events = await history(manager, session)
        assert next(e for e in events if e["type"] == "text")["content"] == "half a smile \ufffd"
        assert orjson.loads(manager.view_bytes(session))["last_message"]["text"] == "half a smile \ufffd"
        assert events[-2]["stop_reason"] == "end_turn"


async def test_what_changes_nothing_leaves_the_time_of_change(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted"))
        await until(lambda: manager.view(session)["status"] == "idle")  # what is seen comes after what is so
        changed = manager.view(session)["updated_at"]
        assert await session.actor.interrupt() is None
    async with manager_of(tmp_path, agent) as manager:  # neither does a restart
        assert manager.view(manager.get(session.record.id))["updated_at"] == changed
