"""A session's actor: turns, queue, interrupts, permissions, failures, each told by its events."""

import asyncio
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


async def test_steer_goes_into_the_running_turn(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted"))
        first = await manager.prompt(session.record.id, say("go"))
        await until(lambda: agent.started and agent.started[0].told)
        steered = await manager.prompt(session.record.id, say("left!"), delivery="steer")
        assert steered.turn_id == first.turn_id and not steered.queued
        await until(lambda: ("steer", say("left!")) in agent.started[0].told)


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
        await idle(session)
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
