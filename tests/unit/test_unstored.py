"""A session of which something can't be stored: it ends in a defined state, without a gap, and goes on."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from support.scripted_driver import ScriptedAgent, ScriptedDriver
from support.waiting import until
from unit.test_actor import OPTIONS, history, idle, manager_of, say
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.hub import Subscription
from workspace_runtime.events.model import ALL_TYPES
from workspace_runtime.sessions.drivers import base
from workspace_runtime.sessions.manager import NewSession, SessionManager

pytestmark = pytest.mark.anyio


def refuse(manager: SessionManager, what: str) -> None:
    """From now on the database takes no such row."""
    manager.log._connection.execute(
        f"CREATE TRIGGER refuse BEFORE INSERT ON {what} BEGIN SELECT RAISE(ABORT, 'refused'); END"
    )


def take_all(manager: SessionManager) -> None:
    manager.log._connection.execute("DROP TRIGGER refuse")


def answer(driver: ScriptedDriver, parts: Sequence[base.PromptPart]) -> None:
    driver.say(base.BlockEnded("text", "fine"), base.TurnEnded("end_turn"))


def work(driver: ScriptedDriver, parts: Sequence[base.PromptPart]) -> None:
    driver.say(
        base.ToolCalled("t1", "Run", {}),
        base.PermissionAsked("r1", "tool", "Run", {}, tool_use_id="t1", options=OPTIONS),
        base.BlockDelta("b", "text", "half a sen"),
        base.ToolEnded("t1", "", images=(base.ToolImage("image/png", b"x"),)),
        base.BlockEnded("text", "after it"),
        base.BlockDelta("b", "text", "tence"),
        base.TurnEnded("end_turn"),
    )


async def test_the_turn_ends_with_an_error_and_the_session_goes_on(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted"))
        other = await manager.create(NewSession("scripted"))
        await idle(session)
        await idle(other)
        refuse(manager, "blobs")
        seen: list[bytes] = []
        subscription = Subscription(session.stream, after=0, types=ALL_TYPES, framing="sse", wake=lambda: None)
        async for chunk in subscription.replay():
            seen.append(chunk)
        agent.on_prompt = work
        await manager.prompt(session.record.id, say("go"))
        await until(
            lambda: session.stream.head and session.record.status == "idle" and session.record.active_turn is None
        )
        await until(lambda: agent.started[0].closed and not session.journal.broken)
        take_all(manager)
        agent.on_prompt = answer
        await manager.prompt(session.record.id, say("again"))
        await manager.prompt(other.record.id, say("and you"))
        await until(lambda: session.record.turn_count == 2)
        await idle(session)
        await until(lambda: other.record.turn_count == 1)
        await idle(other)
        events = await history(manager, session)  # numbers without gaps, each of its shape
        assert len({event["id"] for event in events}) == len(events)
        turns = {event["turn_id"] for event in events if event["turn_id"]}
        assert len(turns) == 2
        for kind in ("turn_started", "done"):
            assert len([e for e in events if e["type"] == kind]) == 2
        assert [(e["type"], e.get("content"), e.get("partial")) for e in events if e["type"] == "text"] == [
            ("text", "half a sen", True),
            ("text", "fine", None),
        ]
        assert [e["status"] for e in events if e["type"] == "tool_result"] == ["cancelled"]
        assert [e["decision"] for e in events if e["type"] == "permission_resolved"] == ["deny"]
        assert [e["code"] for e in events if e["type"] == "error"] == ["agent_error"]
        assert [e["stop_reason"] for e in events if e["type"] == "done"] == ["error", "end_turn"]
        view = orjson.loads(manager.view_bytes(session))
        assert view["status"] == "idle" and view["last_seq"] == events[-1]["seq"] and view["turn_count"] == 2
        while (more := subscription.follow()) is not None:
            seen.append(more)
        subscription.close()
        stored = [orjson.loads(line[6:]) for line in b"".join(seen).split(b"\n") if line.startswith(b"data: ")]
        assert [event for event in stored if "seq" in event] == events
        assert manager.log.healthy and manager.running == 2


async def test_a_session_whose_beginning_can_not_be_stored_is_gone(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        refuse(manager, "sessions")
        with pytest.raises(Exception, match="refused"):
            await manager.create(NewSession("scripted"), key="k-1")
        await until(lambda: not manager._sessions and not manager.running)
        take_all(manager)
        session = await manager.create(NewSession("scripted"), key="k-1")  # it was never used
        assert session.record.id in manager._sessions


async def test_a_prompt_that_can_not_be_stored_is_refused_and_may_be_sent_again(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt = answer
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted"))
        await idle(session)
        refuse(manager, "used_keys")
        with pytest.raises(Exception, match="refused"):
            await manager.prompt(session.record.id, say("one"), client_message_id="m-1")
        await until(lambda: not session.journal.broken)
        take_all(manager)
        receipt = await manager.prompt(session.record.id, say("one"), client_message_id="m-1")
        await until(lambda: session.record.turn_count == 1 and session.actor.turn is None)
        events = await history(manager, session)
        assert [e["turn_id"] for e in events if e["type"] == "done"] == [receipt.turn_id]


async def test_it_is_brought_back_once_the_database_takes_it_again(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: agent.started and agent.started[0].told)
        refuse(manager, "events")
        with contextlib.suppress(Exception):
            await manager.terminate(session.record.id)
        await until(lambda: agent.started[0].closed and not manager.running)
        with pytest.raises(WorkspaceError) as refused:
            await manager.prompt(session.record.id, say("again"))
        assert refused.value.code in ("storage_unavailable", "session_terminated")
        take_all(manager)
        await until(lambda: not session.journal.broken)
        await idle(session)
        await manager.terminate(session.record.id)
        events = await history(manager, session)
        assert [e["stop_reason"] for e in events if e["type"] == "done"] == ["error"]


async def test_the_server_stops_while_a_session_can_not_be_brought_back(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    async with manager_of(tmp_path, agent) as manager:
        session = await manager.create(NewSession("scripted", prompt=say("go")))
        await until(lambda: agent.started and agent.started[0].told)
        await session.actor._settle()  # or the trigger becomes a part of the writer's transaction, and may go with it
        refuse(manager, "events")
        agent.started[0].say(base.BlockEnded("text", "x"))
        await until(lambda: agent.started[0].closed)
