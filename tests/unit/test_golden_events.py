"""The shape of our own events, one of each type: a change of it must be meant.

`REWRITE_GOLDEN=1` writes the sample anew.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.scripted_driver import ScriptedAgent, ScriptedDriver
from support.waiting import until
from unit.test_actor import OPTIONS, history, manager_of, say
from workspace_runtime.events.blocks import delta_json
from workspace_runtime.events.model import STORED_TYPES
from workspace_runtime.sessions.drivers import base
from workspace_runtime.sessions.manager import NewSession
from workspace_runtime.sessions.permissions import Answer

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).parent.parent / "golden" / "events.jsonl"
PIXEL = b"\x89PNG\r\n\x1a\n"


def normal(line: bytes) -> str:
    """A line without what differs from run to run: ids are numbered, times and durations are zero."""
    text = line.decode()
    text = re.sub(r'"(\w+)_[0-9a-f]{20}"', r'"\1_0"', text)
    text = re.sub(r'"\d{4}-\d\d-\d\dT[\d:.]+Z"', '"2026-01-01T00:00:00.000Z"', text)
    return re.sub(r'"duration_ms":\d+', '"duration_ms":0', text)


def play(driver: ScriptedDriver, parts: Sequence[base.PromptPart]) -> None:
    """One turn with something of everything."""
    driver.say(
        base.SessionChanged(native_session_id="native-1", model="model-1", permission_mode="ask"),
        base.BlockEnded("thinking", "hm"),
        base.BlockEnded("text", "cut sho", partial=True),
        base.PlanChanged((base.PlanEntry("1", "Do it", "in_progress", "high"),)),
        base.ToolCalled("t1", "Write", {"path": "a"}, "edit", "Write a", (base.Location("a", 3),)),
        base.PermissionAsked(
            "r1", "tool", "Write", {"path": "a"}, title="Write a", tool_use_id="t1", options=OPTIONS,
            questions=(base.Question("q1", "Sure?", "Sure", False, (base.QuestionOption("Yes", "do"),)),),
        ),
    )  # fmt: skip


def go_on(driver: ScriptedDriver, request: str, answer: base.PermissionAnswer) -> None:
    """What follows the answer."""
    driver.say(
        base.ToolEnded("t1", "written", images=(base.ToolImage("image/png", PIXEL),)),
        base.BlockEnded("text", "inner", parent_tool_use_id="t1"),
        base.UsageChanged(base.Usage(1, 2, 3, 4, 100, 1000)),
        base.BackgroundChanged((base.BackgroundTask("b1", "command", "npm run dev", "t1"),)),
        base.Compacted("auto", 900, 100),
        base.AgentNotice("rule_not_saved", "The rule could not be kept."),
        base.AgentError("agent_overloaded", "Too much at once.", retryable=True),
        base.TurnEnded("error", base.Usage(1, 2, 3, 4, 100, 1000), 0.25),
    )


async def test_events_have_the_shape_of_the_sample(tmp_path: Path) -> None:
    agent = ScriptedAgent()
    agent.on_prompt, agent.on_answer = play, go_on
    async with manager_of(tmp_path, agent) as manager:
        (tmp_path / "root" / "a.py").write_text("one\ntwo\n")
        parts: list[base.PromptPart] = [
            *say("Go"),
            base.ImagePart("image/png", "iVBORw0KGgo="),
            base.FilePart("a.py", 1, 2),
        ]
        session = await manager.create(NewSession("scripted", prompt=parts), key="m-1")
        await until(lambda: session.record.status == "requires_action")
        await manager.prompt(session.record.id, say("waits"), client_message_id="m-2")
        (waiting,) = manager.pending_permissions()
        await manager.answer_permission(session.record.id, waiting["id"], Answer(option_id="session"))
        await until(lambda: session.record.queue_paused)
        events = await history(manager, session)
        rows = await manager.log.read(session.record.stream, after=0, upto=session.stream.head)
        block = base.BlockDelta("b", "text", "more")
        journal = session.journal
        journal.delta("evt_" + "0" * 20, block.kind, block.text, turn_id="turn_" + "0" * 20, parent=None)
        delta = delta_json(session.record.id, *journal.open_blocks()[0], 0, block.text)
    assert {event["type"] for event in events} == STORED_TYPES
    made = "".join(normal(line) + "\n" for line in [*(row.data for row in rows), delta])
    if os.environ.get("REWRITE_GOLDEN"):
        GOLDEN.write_text(made)
    assert made == GOLDEN.read_text()
