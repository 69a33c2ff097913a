"""The Claude driver with the real CLI, against the scripted model: what an actor sees of one session."""

import asyncio
import base64
import json
import os
import signal
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.claude_home import ClaudeHome, isolated
from support.driving import Driven, driven
from support.model_script import (
    drop,
    error,
    images,
    plan_file,
    recall,
    results,
    script,
    stall,
    stop,
    text,
    think,
    tool,
    usage,
    wait,
)
from support.model_server import ModelServer
from support.waiting import until
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.sessions.drivers.base import (
    AgentError,
    AgentEvent,
    AgentStartError,
    AgentTurnStarted,
    BackgroundChanged,
    BlockDelta,
    BlockEnded,
    DriverSpec,
    FileText,
    ImagePart,
    PermissionAnswer,
    PermissionAsked,
    PermissionWithdrawn,
    PlanChanged,
    PromptReturned,
    PromptTaken,
    SessionChanged,
    TextPart,
    ToolCalled,
    ToolEnded,
    TurnEnded,
)
from workspace_runtime.sessions.drivers.claude import ClaudeAgent, ClaudeDriver

pytestmark = pytest.mark.anyio

WRITE = tool("Write", file_path="a.txt", content="hi")
SLEEP = "python3 -c 'import time; time.sleep(300)'"


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> ClaudeHome:
    isolated(monkeypatch)
    return ClaudeHome.make(tmp_path, server.url)


def claude(home: ClaudeHome, env: dict[str, str] | None = None, **more: Any) -> ClaudeDriver:
    spec = DriverSpec("ses_1", home.workspace, home.workspace, home.env(**env or {}), **more)
    return ClaudeAgent(home.home / "runtime").driver(spec)


def native_id(one: Driven) -> str:
    """The conversation's id, once it was told."""
    told = [e.native_session_id for e in one.all(SessionChanged) if e.native_session_id]
    assert len(set(told)) == 1
    return str(told[0])


def processes_with(mark: str) -> list[int]:
    """The processes whose environment or command line holds this."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                content = Path(f"/proc/{name}/cmdline").read_bytes() + Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue
            if mark.encode() in content:
                found.append(int(name))
    return found


async def test_a_turn_with_thinking_tools_and_text(home: ClaudeHome) -> None:
    async with driven(claude(home)) as one:
        ended = await one.turn(
            script(
                [think("hmm, let me see", chunks=3), text("I will write.", chunks=2), WRITE],
                [tool("Bash", command="cat a.txt && echo x"), tool("Read", file_path="a.txt")],
                [text("All done")],
            )
        )
    assert one.over
    assert ended.stop_reason == "end_turn"
    assert ended.usage is not None and (ended.usage.input_tokens, ended.usage.output_tokens) == (30, 12)
    assert ended.usage.context_used_tokens == 22 and ended.usage.context_window_tokens
    assert ended.cost_usd and ended.cost_usd > 0
    assert [(e.kind, e.content, e.partial) for e in one.all(BlockEnded)] == [
        ("thinking", "hmm, let me see", False),
        ("text", "I will write.", False),
        ("text", "All done", False),
    ]
    for block in one.all(BlockEnded):
        deltas = [e.text for e in one.all(BlockDelta) if e.block == block.block]
        assert "".join(deltas) == block.content
    assert [(e.tool, e.kind, e.title) for e in one.all(ToolCalled)] == [
        ("Write", "edit", "Write: a.txt"),
        ("Bash", "execute", "Bash: cat a.txt && echo x"),
        ("Read", "read", "Read: a.txt"),
    ]
    order = [type(e) for e in one.events if isinstance(e, ToolCalled | PermissionAsked | ToolEnded)]
    assert order[:3] == [ToolCalled, PermissionAsked, ToolEnded]
    statuses = {e.tool_use_id: (e.status, e.output) for e in one.all(ToolEnded)}
    assert statuses[one.all(ToolCalled)[1].tool_use_id] == ("completed", "hix")
    assert native_id(one)
    assert {e.model for e in one.all(SessionChanged) if e.model}
    assert (home.workspace / "a.txt").read_text() == "hi"


async def test_usage_and_cost_are_per_turn(home: ClaudeHome) -> None:
    async with driven(claude(home)) as one:
        first = await one.turn(script([text("one"), usage(input_tokens=1000)]))
        second = await one.turn(script([text("two")]))
    assert first.usage and second.usage and first.cost_usd and second.cost_usd
    assert (first.usage.input_tokens, second.usage.input_tokens) == (1000, 10)
    assert 0 < second.cost_usd < first.cost_usd


class TestPermissions:
    async def test_denied(self, home: ClaudeHome) -> None:
        answer = PermissionAnswer("deny", message="not that file")
        async with driven(claude(home), lambda asked: answer) as one:
            ended = await one.turn(script([WRITE], [results()]))
        assert one.outputs() == [("denied", "not that file")]
        assert one.texts() == ["not that file"] and ended.stop_reason == "end_turn"
        assert not (home.workspace / "a.txt").exists()

    async def test_denied_and_interrupted(self, home: ClaudeHome) -> None:
        answer = PermissionAnswer("deny", interrupt=True)
        async with driven(claude(home), lambda asked: answer) as one:
            ended = await one.turn(script([WRITE], [results()]))
            assert ended.stop_reason == "interrupted"
            assert [status for status, _ in one.outputs()] == ["denied"]
            assert not one.all(AgentError)
            assert (await one.turn(script([text("on")]))).stop_reason == "end_turn"

    async def test_allowed_with_edited_input(self, home: ClaudeHome) -> None:
        def edit(asked: PermissionAsked) -> PermissionAnswer:
            return PermissionAnswer("allow", updated_input={**asked.input, "content": "edited"})

        async with driven(claude(home), edit) as one:
            await one.turn(script([WRITE], [text("ok")]))
        assert (home.workspace / "a.txt").read_text() == "edited"

    async def test_for_the_session_is_a_rule_in_memory(self, home: ClaudeHome) -> None:
        answer = PermissionAnswer("allow", scope="session")
        bash = tool("Bash", command="touch made.txt")
        again = script([WRITE, bash], [tool("Write", file_path="sub/b.txt", content="x"), bash], [text("ok")])
        async with driven(claude(home), lambda asked: answer) as one:
            await one.turn(again)
            asked = one.all(PermissionAsked)
            assert [ask.tool for ask in asked] == ["Write", "Bash"]
            native = native_id(one)
        rules = [option.rule for ask in asked for option in ask.options if option.scope == "session"]
        assert not home.local_settings.exists()
        assert not any(e.permission_mode not in (None, "default") for e in one.all(SessionChanged))
        granted = tuple(rule for rule in rules if rule)
        assert granted[0] == f"Edit(/{home.workspace}/**)" and len(granted) == 2
        async with driven(claude(home, native_session_id=native, session_rules=granted)) as two:
            await two.turn(again)
            assert two.all(PermissionAsked) == []
        async with driven(claude(home, native_session_id=native)) as three:
            await three.turn(again)
            assert three.all(PermissionAsked)

    async def test_always_is_written_by_the_cli_and_obeyed_by_a_new_process(self, home: ClaudeHome) -> None:
        answer = PermissionAnswer("allow", scope="always")
        command = "python3 -c 'print((1, 2))'"
        prompt = script([WRITE, tool("Bash", command=command)], [text("ok")])
        async with driven(claude(home), lambda asked: answer) as one:
            await one.turn(prompt)
            options = [o for asked in one.all(PermissionAsked) for o in asked.options if o.scope == "always"]
        kept = json.loads(home.local_settings.read_text())["permissions"]
        assert kept["allow"] == [option.rule for option in options]
        assert set(kept) == {"allow"}  # no folder, no mode
        assert {str(home.workspace / str(option.writes_to)) for option in options} == {str(home.local_settings)}
        async with driven(claude(home)) as two:
            await two.turn(prompt)
            assert two.all(PermissionAsked) == []
            assert [status for status, _ in two.outputs()] == ["completed", "completed"]

    async def test_always_in_a_sub_folder_of_a_repository(self, home: ClaudeHome) -> None:
        (home.workspace / ".git").mkdir()
        cwd = home.workspace / "sub [1] (a)"
        cwd.mkdir()
        agent = ClaudeAgent(home.home / "runtime")
        spec = DriverSpec("ses_1", home.workspace, cwd, home.env())
        up = tool("Write", file_path="../up.txt", content="x")
        asked = []
        answers = {"up.txt": PermissionAnswer("deny"), "a.txt": PermissionAnswer("allow", scope="always")}
        for _ in range(2):
            async with driven(agent.driver(spec), lambda ask: answers[Path(ask.input["file_path"]).name]) as one:
                await one.turn(script([WRITE], [up], [text("ok")]))
                asked.append([Path(ask.input["file_path"]).name for ask in one.all(PermissionAsked)])
                written = {o.writes_to for ask in one.all(PermissionAsked) for o in ask.options if o.writes_to}
                assert written == {".claude/settings.local.json"}
        assert asked == [["a.txt", "up.txt"], ["up.txt"]]
        assert home.local_settings.exists()

    async def test_a_file_outside_is_a_rule_for_that_file(self, home: ClaudeHome, tmp_path: Path) -> None:
        outside = str(tmp_path / "outside.txt")
        answer = PermissionAnswer("allow", scope="session")
        write = tool("Write", file_path=outside, content="x")
        other = tool("Write", file_path=str(tmp_path / "other.txt"), content="x")
        async with driven(claude(home), lambda asked: answer) as one:
            await one.turn(script([write], [tool("Read", file_path=outside)], [write], [other], [text("ok")]))
        asked = [str(ask.input.get("file_path")) for ask in one.all(PermissionAsked) if ask.tool == "Write"]
        assert asked == [outside, str(tmp_path / "other.txt")]

    async def test_a_question_is_answered(self, home: ClaudeHome) -> None:
        questions = [
            {"question": "Which colour?", "header": "Colour", "multiSelect": False, "options": _options("Red", "Blue")},
            {"question": "Which sizes?", "header": "Size", "multiSelect": True, "options": _options("S", "M", "L")},
        ]

        def choose(asked: PermissionAsked) -> PermissionAnswer:
            assert asked.kind == "question"
            assert [(q.question, q.multi_select, len(q.options)) for q in asked.questions] == [
                ("Which colour?", False, 2),
                ("Which sizes?", True, 3),
            ]
            first, second = (question.id for question in asked.questions)
            return PermissionAnswer("allow", answers={first: "a free text", second: ["S", "L"]})

        async with driven(claude(home), choose) as one:
            await one.turn(script([tool("AskUserQuestion", questions=questions)], [results()]))
        assert '"Which colour?"="a free text"' in one.texts()[0]
        assert '"Which sizes?"="S, L"' in one.texts()[0]
        assert [option.id for option in one.all(PermissionAsked)[0].options] == ["allow_once", "deny"]

    async def test_a_plan_is_rejected_then_accepted(self, home: ClaudeHome) -> None:
        answers = [PermissionAnswer("deny", message="more detail"), PermissionAnswer("allow")]
        plan = tool("ExitPlanMode", plan="# The plan\n1. write")
        async with driven(
            claude(home, permission_mode="plan"),
            lambda asked: answers.pop(0) if asked.kind == "plan" else PermissionAnswer("allow"),
        ) as one:
            await one.turn(script([plan], [results(), plan], [WRITE], [text("done")]))
        plans = [asked for asked in one.all(PermissionAsked) if asked.kind == "plan"]
        assert [asked.plan for asked in plans] == ["# The plan\n1. write"] * 2
        assert one.texts() == ["more detail", "done"]
        modes = [e.permission_mode for e in one.all(SessionChanged) if e.permission_mode]
        assert modes[0] == "plan" and modes[-1] == "default"

    async def test_a_plan_kept_in_a_file(self, home: ClaudeHome) -> None:
        async with driven(claude(home, permission_mode="plan")) as one:
            await one.turn(script([plan_file("# Kept")], [tool("ExitPlanMode")], [text("ok")]))
        (asked,) = one.all(PermissionAsked)
        assert (asked.kind, asked.plan) == ("plan", "# Kept")

    async def test_the_projects_own_rules_hold(self, home: ClaudeHome) -> None:
        settings = home.workspace / ".claude" / "settings.json"
        settings.parent.mkdir()
        settings.write_text(json.dumps({"permissions": {"allow": ["Bash(touch *)"], "deny": ["Bash(rm *)"]}}))
        async with driven(claude(home)) as one:
            await one.turn(script([tool("Bash", command="touch ok")], [tool("Bash", command="rm ok")], [text("x")]))
        assert [status for status, _ in one.outputs()] == ["completed", "denied"]
        assert one.all(PermissionAsked) == []

    async def test_a_slow_reader_gets_all_in_order(self, home: ClaudeHome, server: ModelServer) -> None:
        driver = claude(home)
        try:
            await driver.start()
            flood = text("0123456789" * 200, chunks=2000)
            await driver.prompt([TextPart(script([think("hm"), flood, wait("sent"), WRITE], [text("ok")]))])
            server.release("sent")
            await until(lambda: "sent" in server.reached)  # nothing was read so far: the CLI's pipe holds it
            one = Driven(driver)
            reader = asyncio.get_running_loop().create_task(one.read())
            await one.seen(TurnEnded)
        finally:
            await driver.close()
        await reader
        order = [type(e) for e in one.events if isinstance(e, BlockEnded | ToolCalled | PermissionAsked | ToolEnded)]
        assert order == [BlockEnded, BlockEnded, ToolCalled, PermissionAsked, ToolEnded, BlockEnded]
        assert one.texts()[0] == "0123456789" * 200

    async def test_an_unknown_answer_is_ignored(self, home: ClaudeHome) -> None:
        async with driven(claude(home)) as one:
            await one.driver.answer("ask99", PermissionAnswer("allow"))
            await one.turn(script([WRITE], [text("ok")]))
            await one.driver.answer(one.all(PermissionAsked)[0].request, PermissionAnswer("deny"))


def _options(*labels: str) -> list[dict[str, str]]:
    return [{"label": label, "description": f"the {label} one"} for label in labels]


class TestInterrupt:
    async def test_in_the_middle_of_a_text(self, home: ClaudeHome, server: ModelServer) -> None:
        async with driven(claude(home)) as one:
            await one.driver.prompt([TextPart(script([text("one two ", chunks=4, hold="middle")]))])
            await one.seen(BlockDelta)
            await one.driver.interrupt()
            ended = await one.seen(TurnEnded)
            assert ended.stop_reason == "interrupted"
            assert not one.all(AgentError)
            (block,) = one.all(BlockEnded)
            assert block.partial and block.content and "one two ".startswith(block.content)
            assert {e.block for e in one.all(BlockDelta)} == {block.block}
            assert (await one.turn(script([recall()]))).stop_reason == "end_turn"

    async def test_in_a_running_tool(self, home: ClaudeHome) -> None:
        async with driven(claude(home)) as one:
            await one.driver.prompt([TextPart(script([tool("Bash", command=SLEEP)]))])
            await until(lambda: [p for p in processes_with("time.sleep(300)") if _runs_in(p, home.workspace)])
            await one.driver.interrupt()
            assert (await one.seen(TurnEnded)).stop_reason == "interrupted"
            assert [status for status, _ in one.outputs()] == ["cancelled"]
            await until(lambda: not [p for p in processes_with("time.sleep(300)") if _runs_in(p, home.workspace)])

    async def test_with_a_permission_pending(self, home: ClaudeHome) -> None:
        async with driven(claude(home), lambda asked: None) as one:
            await one.driver.prompt([TextPart(script([WRITE]))])
            asked = await one.seen(PermissionAsked)
            await one.driver.interrupt()
            assert (await one.seen(TurnEnded)).stop_reason == "interrupted"
            assert [e.request for e in one.all(PermissionWithdrawn)] == [asked.request]
            assert [status for status, _ in one.outputs()] == ["cancelled"]


def _runs_in(pid: int, folder: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(folder)
    except OSError:
        return False


class TestSubAgents:
    async def test_are_told_apart(self, home: ClaudeHome) -> None:
        steps = [think("inner thought"), text("inner text"), tool("Bash", command="touch inner.txt")]
        inner = script(steps, [text("inner result")])
        call = tool("Agent", description="d", prompt=inner, subagent_type="general-purpose", run_in_background=False)
        async with driven(claude(home)) as one:
            await one.turn(script([call], [text("outer")]))
        called = one.all(ToolCalled)
        assert [(e.tool, e.kind) for e in called] == [("Agent", "sub_agent"), ("Bash", "execute")]
        assert called[1].parent_tool_use_id == called[0].tool_use_id
        assert one.all(PermissionAsked)[0].parent_tool_use_id == called[0].tool_use_id
        inside = [e.content for e in one.all(BlockEnded) if e.parent_tool_use_id == called[0].tool_use_id]
        assert inside == ["inner thought", "inner text", "inner result"]
        assert one.texts() == ["outer"]

    async def test_in_the_background_begin_a_turn_of_their_own(self, home: ClaudeHome, server: ModelServer) -> None:
        inner = script([wait("inner")], [text("inner result")])
        call = tool("Agent", description="d", prompt=inner, subagent_type="general-purpose", run_in_background=True)
        async with driven(claude(home)) as one:
            assert (await one.turn(script([call], [text("first")], [text("second")]))).stop_reason == "end_turn"
            assert one.texts() == ["first"] and not one.all(AgentTurnStarted)
            server.release("inner")
            assert (await one.seen(TurnEnded, 2)).stop_reason == "end_turn"
            assert len(one.all(AgentTurnStarted)) == 1
            assert one.texts() == ["first", "second"]
            assert (await one.turn(script([text("third")]))).stop_reason == "end_turn"
        assert len(one.all(TurnEnded)) == 3


class TestContent:
    async def test_an_image_and_a_file(self, home: ClaudeHome, server: ModelServer) -> None:
        png = _png()
        async with driven(claude(home)) as one:
            await one.turn(
                script([images()]),
                ImagePart("image/png", base64.b64encode(png).decode()),
                FileText('notes "x".txt', "line two", 2, 2),
            )
            assert one.texts()[0].startswith("image/png ")
        sent = json.dumps(server.requests[-1]["messages"])
        assert "line two" in sent and 'notes \\"x\\".txt' in sent

    async def test_a_tool_that_returns_an_image(self, home: ClaudeHome) -> None:
        (home.workspace / "dot.png").write_bytes(_png())
        async with driven(claude(home)) as one:
            await one.turn(script([tool("Read", file_path="dot.png")], [text("seen")]))
        (ended,) = one.all(ToolEnded)
        assert [image.mime_type for image in ended.images] == ["image/png"] and ended.images[0].data[:4] == b"\x89PNG"

    async def test_the_todo_list(self, home: ClaudeHome) -> None:
        async with driven(claude(home)) as one:
            await one.turn(
                script(
                    [
                        tool("TaskCreate", subject="One", description="1"),
                        tool("TaskCreate", subject="Two", description="2"),
                    ],
                    [tool("TaskUpdate", taskId="1", status="in_progress")],
                    [
                        tool("TaskUpdate", taskId="1", status="completed"),
                        tool("TaskUpdate", taskId="2", status="deleted"),
                    ],
                    [text("done")],
                )
            )
        plans = [[(e.content, e.status) for e in plan.entries] for plan in one.all(PlanChanged)]
        assert plans[:3] == [
            [("One", "pending")],
            [("One", "pending"), ("Two", "pending")],
            [("One", "in_progress"), ("Two", "pending")],
        ]
        assert plans[-1] == [("One", "completed")]

    async def test_slash_commands_answer(self, home: ClaudeHome) -> None:
        async with driven(claude(home)) as one:
            ended = await one.turn("/context")
        assert ended.stop_reason == "end_turn"
        assert "Context Usage" in "".join(one.texts())

    async def test_a_prompt_into_the_running_turn(self, home: ClaudeHome, server: ModelServer) -> None:
        async with driven(claude(home)) as one:
            await one.driver.prompt([TextPart(script([wait("go"), tool("Bash", command="true")], [recall()]))])
            await until(lambda: "go" in server.reached)
            await one.driver.steer("p2", [TextPart("and one thing more")])
            server.release("go")
            await one.seen(TurnEnded)
            assert "and one thing more" in json.dumps(server.requests[-1]["messages"])
        assert len(one.all(TurnEnded)) == 1 and one.all(PromptTaken) == [PromptTaken("p2")]

    async def test_prompts_into_the_last_call_of_the_model_are_a_turn_of_their_own(
        self, home: ClaudeHome, server: ModelServer
    ) -> None:
        async with driven(claude(home)) as one:
            await one.driver.prompt([TextPart(script([text("one two", chunks=2, hold="late")]))])
            await until(lambda: "late" in server.reached)
            await one.driver.steer("p2", [TextPart("and one thing more")])
            await one.driver.steer("p3", [TextPart(script([text("both")]))])
            server.release("late")
            await one.seen(TurnEnded, 2)
        kinds = [event for event in one.events if isinstance(event, PromptTaken | TurnEnded | AgentTurnStarted)]
        assert [type(event) for event in kinds] == [TurnEnded, PromptTaken, PromptTaken, TurnEnded]
        assert one.texts() == ["one two", "both"]

    async def test_a_failed_turn_is_not_followed_by_what_was_steered_in(
        self, home: ClaudeHome, server: ModelServer
    ) -> None:
        async with driven(claude(home, permission_mode="bypassPermissions")) as one:
            before = len(server.requests)
            await one.driver.prompt([TextPart(script([error(529)]))])
            await until(lambda: len(server.requests) > before)  # it is tried again after a while
            await one.driver.steer("p2", [TextPart(script([tool("Bash", command="touch ran", description="x")]))])
            assert (await one.seen(TurnEnded)).stop_reason == "error"
            await one.seen(PromptReturned)
            await one.driver.interrupt()
            assert (await one.turn(script([text("after")]))).stop_reason == "end_turn"
        assert one.texts() == ["after"] and not (home.workspace / "ran").exists()
        assert not one.all(PromptTaken) and not one.all(AgentTurnStarted)

    async def test_a_prompt_that_is_stopped_before_it_began_has_its_end(self, home: ClaudeHome) -> None:
        async with driven(claude(home)) as one:
            for number in range(1, 4):
                await one.driver.prompt([TextPart(script([text("never " * 50, chunks=50, delay_ms=50)]))])
                await one.driver.interrupt()
                assert (await one.seen(TurnEnded, number)).stop_reason == "interrupted"
            assert (await one.turn(script([text("after")]))).stop_reason == "end_turn"


class TestInTheBackground:
    async def test_a_stopped_agent_is_not_woken_by_a_command_that_ends(
        self, home: ClaudeHome, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waiting = "while [ ! -e go ]; do sleep 0.05; done; touch over"
        steps = [
            [tool("Bash", command=waiting, description="x", run_in_background=True)],
            [tool("Bash", command="touch begun; python3 -c 'import time; time.sleep(777)'", description="y")],
            [tool("Bash", command="touch ran-after-stop", description="z")],
        ]
        results: list[dict[str, Any]] = []
        driver = claude(home, permission_mode="bypassPermissions")
        take = driver._messages.take

        def note(message: dict[str, Any]) -> list[AgentEvent]:
            results.extend([message] if message.get("type") == "result" else [])
            return take(message)

        monkeypatch.setattr(driver._messages, "take", note)
        async with driven(driver) as one:
            await one.driver.prompt([TextPart(script(*steps))])
            await one.until(lambda: one.all(BackgroundChanged))
            (task,) = one.all(BackgroundChanged)[-1].tasks
            assert (task.kind, task.title) == ("command", "x")
            await until(lambda: (home.workspace / "begun").exists())
            await one.driver.interrupt()
            assert (await one.seen(TurnEnded)).stop_reason == "interrupted"
            (home.workspace / "go").touch()
            await one.until(lambda: not one.all(BackgroundChanged)[-1].tasks)
            assert one.all(BackgroundChanged)[-1].ended == {task.id: "completed"}
            await until(lambda: len(results) == 2)  # of the turn that it began by itself
            assert not (home.workspace / "ran-after-stop").exists()
            assert (await one.turn(script([text("and now")]))).stop_reason == "end_turn"
        assert one.texts() == ["and now"] and not one.all(AgentTurnStarted)

    async def test_a_stop_ends_sub_agents(self, home: ClaudeHome, server: ModelServer) -> None:
        inner = script([wait("inner")], [tool("Bash", command="touch ran-after-stop", description="x")])
        call = tool("Agent", description="d", prompt=inner, subagent_type="general-purpose", run_in_background=True)
        async with driven(claude(home, permission_mode="bypassPermissions")) as one:
            await one.turn(script([call], [text("over")]))
            await until(lambda: "inner" in server.reached)
            assert [task.kind for task in one.all(BackgroundChanged)[-1].tasks] == ["sub_agent"]
            await one.driver.interrupt()
            server.release("inner")
            await one.until(lambda: not one.all(BackgroundChanged)[-1].tasks)
            assert list(one.all(BackgroundChanged)[-1].ended.values()) == ["stopped"]
            await one.turn(script([text("after")]))
        assert not (home.workspace / "ran-after-stop").exists()

    async def test_timers_are_known(self, home: ClaudeHome) -> None:
        async with driven(claude(home, permission_mode="bypassPermissions")) as one:
            await one.turn(
                script(
                    [tool("CronCreate", cron="0 0 1 1 *", prompt="wake up", recurring=True)],
                    [tool("ScheduleWakeup", delaySeconds=3600, reason="look again", prompt="go on")],
                    [text("ok")],
                )
            )
        assert [task.kind for task in one.all(BackgroundChanged)[-1].tasks] == ["timer", "timer"]


def _png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + b"\xff\0\0" * 8 for _ in range(8)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class TestConversation:
    async def test_is_remembered_by_a_new_process(self, home: ClaudeHome) -> None:
        async with driven(claude(home)) as one:
            await one.turn(script([text("hello")], say="The number is 42."))
            native = native_id(one)
        async with driven(claude(home, native_session_id=native)) as two:
            ended = await two.turn(script([recall()], say="Which number?"))
            assert ended.stop_reason == "end_turn" and native_id(two) == native
            assert two.texts() == ["The number is 42.\nWhich number?"]
        async with driven(claude(home, native_session_id=native, fork=True)) as three:
            await three.turn(script([recall()], say="A branch."))
            assert native_id(three) != native
            assert three.texts()[0].startswith("The number is 42.")

    async def test_survives_a_kill_in_the_middle_of_a_turn(self, home: ClaudeHome, server: ModelServer) -> None:
        async with driven(claude(home)) as one:
            await one.turn(script([text("hello")], say="The number is 42."))
            native = native_id(one)
            await one.driver.prompt([TextPart(script([text("partial text", chunks=2, hold="never")], say="Go on."))])
            await until(lambda: "never" in server.reached)
            await one.seen(BlockDelta)
            for pid in processes_with(f"CLAUDE_CONFIG_DIR={home.config}"):
                if "keeper" not in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
            await one.until(lambda: one.over)
            assert len(one.all(TurnEnded)) == 1
        await until(lambda: not processes_with(f"CLAUDE_CONFIG_DIR={home.config}"))
        async with driven(claude(home, native_session_id=native)) as two:
            await two.turn(script([recall()], say="Which number?"))
            assert two.texts()[0].startswith("The number is 42.") and "Which number?" in two.texts()[0]

    async def test_that_is_gone_can_not_be_resumed(self, home: ClaudeHome) -> None:
        driver = claude(home, native_session_id="4bff5a1f-1e04-4f4a-95a8-779b25b30562")
        with pytest.raises(AgentStartError, match="no longer has the conversation") as caught:
            await driver.start()
        assert caught.value.code == "agent_error"
        await driver.close()

    async def test_closing_ends_every_process(self, home: ClaudeHome) -> None:
        async with driven(claude(home)) as one:
            command = f"(setsid {SLEEP} >/dev/null 2>&1 &) ; {SLEEP}"
            await one.driver.prompt([TextPart(script([tool("Bash", command=command)]))])
            await until(lambda: len([p for p in processes_with("time.sleep(300)") if _runs_in(p, home.workspace)]) >= 2)
            await one.driver.close()
            assert processes_with(f"CLAUDE_CONFIG_DIR={home.config}") == []
            await one.driver.close()

    async def test_closing_after_the_keeper_was_killed(self, home: ClaudeHome) -> None:
        async with driven(claude(home)) as one:
            await one.driver.prompt([TextPart(script([tool("Bash", command=f"setsid {SLEEP}")]))])
            await until(lambda: [p for p in processes_with("time.sleep(300)") if _runs_in(p, home.workspace)])
            for pid in processes_with(f"CLAUDE_CONFIG_DIR={home.config}"):
                if "keeper" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
            await one.until(lambda: one.over)
            await one.driver.close()
            assert processes_with(f"CLAUDE_CONFIG_DIR={home.config}") == []

    @pytest.mark.long  # a CLI that does not react is given its time
    async def test_closing_a_cli_that_does_not_react(self, home: ClaudeHome) -> None:
        async with driven(claude(home)) as one:
            for pid in processes_with(f"CLAUDE_CONFIG_DIR={home.config}"):
                if "keeper" not in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGSTOP)
            async with asyncio.timeout(10):
                await one.driver.close()
            assert processes_with(f"CLAUDE_CONFIG_DIR={home.config}") == []

    async def test_clearing_it_begins_another(self, home: ClaudeHome) -> None:
        async with driven(claude(home)) as one:
            await one.turn(script([text("hello")], say="The number is 42."))
            first = native_id(one)
            assert (await one.turn("/clear")).stop_reason == "end_turn"
            await one.turn(script([recall()], say="Which number?"))
            assert "42" not in one.texts()[-1]
        told = [e.native_session_id for e in one.all(SessionChanged) if e.native_session_id]
        assert told[0] == first and told[-1] != first

    async def test_closing_while_it_starts(self, home: ClaudeHome) -> None:
        driver = claude(home)
        starting = asyncio.get_running_loop().create_task(driver.start())
        await until(lambda: processes_with(f"CLAUDE_CONFIG_DIR={home.config}") or starting.done())
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await driver.close()
        assert processes_with(f"CLAUDE_CONFIG_DIR={home.config}") == []

    async def test_closing_before_it_starts(self, home: ClaudeHome) -> None:
        await claude(home).close()

    async def test_a_cancelled_close_is_finished(self, home: ClaudeHome) -> None:
        driver = claude(home)
        await driver.start()
        closing = asyncio.get_running_loop().create_task(driver.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert processes_with(f"CLAUDE_CONFIG_DIR={home.config}") == []


class TestSettings:
    async def test_are_changed_while_it_runs(self, home: ClaudeHome, server: ModelServer) -> None:
        async with driven(claude(home)) as one:
            await one.turn(script([text("a")]))
            await one.driver.configure(model="haiku", effort=None, permission_mode="acceptEdits")
            await one.turn(script([WRITE], [text("b")]))
            assert "haiku" in server.requests[-1]["model"]
            assert server.requests[-1]["thinking"]["display"] == "summarized"
            assert one.all(PermissionAsked) == []
            assert "acceptEdits" in [e.permission_mode for e in one.all(SessionChanged)]
            await one.driver.configure(model="default", effort="low", permission_mode=None)
            await one.turn(script([text("c")]))
            assert server.requests[-1]["output_config"]["effort"] == "low"

    async def test_are_taken_at_the_start(self, home: ClaudeHome, server: ModelServer) -> None:
        spec: dict[str, Any] = {
            "model": "sonnet",
            "effort": "high",
            "system_prompt": "Speak like a pirate.",
            "max_turns": 1,
        }
        async with driven(claude(home, **spec)) as one:
            ended = await one.turn(script([tool("Bash", command="true")], [text("never")]))
        assert ended.stop_reason == "max_turns" and not one.all(AgentError)
        request = server.requests[-1]
        assert "sonnet" in request["model"] and request["output_config"]["effort"] == "high"
        assert "Speak like a pirate." in json.dumps(request["system"])
        assert "Claude Code" in json.dumps(request["system"])

    async def test_bypassing_permissions(self, home: ClaudeHome) -> None:
        async with driven(claude(home, permission_mode="bypassPermissions")) as one:
            await one.turn(script([WRITE], [text("ok")]))
            assert one.all(PermissionAsked) == []
        async with driven(claude(home)) as two:
            await two.driver.configure(model=None, effort=None, permission_mode="bypassPermissions")
            await two.turn(script([WRITE, tool("Bash", command="touch b")], [text("ok")]))
            assert two.all(PermissionAsked) == []

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
    async def test_bypassing_permissions_is_refused_to_root(self, home: ClaudeHome) -> None:
        async with driven(claude(home, {"IS_SANDBOX": ""})) as one:
            with pytest.raises(WorkspaceError, match="root") as caught:
                await one.driver.configure(model=None, effort=None, permission_mode="bypassPermissions")
            assert caught.value.code == "mode_refused"
            assert (await one.turn(script([text("on")]))).stop_reason == "end_turn"
        driver = claude(home, {"IS_SANDBOX": ""}, permission_mode="bypassPermissions")
        with pytest.raises(AgentStartError, match="root"):
            await driver.start()

    async def test_a_big_tool_result_is_whole(self, home: ClaudeHome) -> None:
        _add_mcp_server(home)
        async with driven(claude(home, {"MAX_MCP_OUTPUT_TOKENS": "20000000"})) as one:
            await one.turn(script([tool("mcp__big__big", size=5_000_000)], [text("ok")]))
        (ended,) = one.all(ToolEnded)
        assert ended.status == "completed"
        assert len(ended.output) >= 5_000_000


def _add_mcp_server(home: ClaudeHome) -> None:
    """An MCP server in the project's .mcp.json whose one tool returns as much as it is asked for."""
    program = home.workspace / "big.py"
    program.write_text(_MCP)
    servers = {"mcpServers": {"big": {"command": "python3", "args": [str(program)]}}}
    (home.workspace / ".mcp.json").write_text(json.dumps(servers))
    (home.workspace / ".claude").mkdir()
    settings = {"enableAllProjectMcpServers": True, "permissions": {"allow": ["mcp__big__big"]}}
    (home.workspace / ".claude" / "settings.json").write_text(json.dumps(settings))


_MCP = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    answer = {
        "initialize": lambda: {"protocolVersion": asked["params"]["protocolVersion"], "capabilities": {"tools": {}},
                               "serverInfo": {"name": "big", "version": "1"}},
        "tools/list": lambda: {"tools": [{"name": "big", "description": "big", "inputSchema":
                               {"type": "object", "properties": {"size": {"type": "integer"}}}}]},
        "tools/call": lambda: {"content": [{"type": "text", "text": "x" * asked["params"]["arguments"]["size"]}]},
    }.get(asked["method"], dict)()
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": answer}), flush=True)
"""


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "code", "retryable"),
        [
            (400, "agent_request_refused", False),
            (401, "agent_auth_required", False),
            (429, "agent_rate_limited", True),
            (529, "agent_overloaded", True),
        ],
    )
    async def test_of_the_model(self, home: ClaudeHome, status: int, code: str, retryable: bool) -> None:
        async with driven(claude(home)) as one:
            ended = await one.turn(script([error(status, message="as scripted")]))
            assert ended.stop_reason == "error"
            (fault,) = one.all(AgentError)
            assert (fault.code, fault.retryable) == (code, retryable) and "as scripted" in fault.message
            assert one.texts() == []
            assert (await one.turn(script([text("again")]))).stop_reason == "end_turn"

    async def test_one_refusal_is_retried_unseen(self, home: ClaudeHome) -> None:
        async with driven(claude(home)) as one:
            await one.turn(script([error(529, times=1), text("after")]))
        assert one.texts() == ["after"] and not one.all(AgentError)

    async def test_not_signed_in(self, home: ClaudeHome) -> None:
        async with driven(claude(home, {"ANTHROPIC_API_KEY": ""})) as one:
            assert (await one.turn(script([text("x")]))).stop_reason == "error"
        (fault,) = one.all(AgentError)
        assert fault.code == "agent_auth_required"
        assert all(word in fault.message for word in ("/login", "ANTHROPIC_API_KEY", "`demo`"))

    async def test_a_connection_that_drops_for_good(self, home: ClaudeHome) -> None:
        async with driven(claude(home)) as one:
            ended = await one.turn(script([drop()]))
        assert ended.stop_reason == "error"
        assert [(e.code, e.retryable) for e in one.all(AgentError)] == [("agent_unreachable", True)]
        assert one.texts() == []

    async def test_no_server_at_all(self, home: ClaudeHome) -> None:
        async with driven(claude(home, {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"})) as one:
            assert (await one.turn("hello")).stop_reason == "error"
        assert [e.code for e in one.all(AgentError)] == ["agent_unreachable"]

    async def test_a_cut_that_the_cli_mends(self, home: ClaudeHome, server: ModelServer) -> None:
        cut = [text("first "), text("second, cut", chunks=2, hold="cut"), drop(times=1)]
        async with driven(claude(home)) as one:
            await one.driver.prompt([TextPart(script(cut, [text("mended")]))])
            await one.until(lambda: any("second" in e.text for e in one.all(BlockDelta)))
            server.release("cut")
            assert (await one.seen(TurnEnded)).stop_reason == "end_turn"
        assert one.texts()[0] == "first " and one.texts()[-1] == "mended" and len(one.texts()) == 3
        assert not one.all(AgentError)
        for block in one.all(BlockEnded):
            assert "".join(e.text for e in one.all(BlockDelta) if e.block == block.block) == block.content

    async def test_a_stalled_stream(self, home: ClaudeHome) -> None:
        async with driven(claude(home, {"API_TIMEOUT_MS": "1000"})) as one:
            ended = await one.turn(script([stall()]))
        assert ended.stop_reason == "error"
        assert [e.code for e in one.all(AgentError)] == ["agent_unreachable"]

    @pytest.mark.long  # the CLI itself waits 10 s at least
    async def test_a_stream_that_stalls_in_its_middle_is_mended(self, home: ClaudeHome) -> None:
        async with driven(claude(home, {"CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS": "10000"})) as one:
            ended = await one.turn(script([text("part"), stall()], [text("mended")]))
        assert ended.stop_reason == "end_turn"
        assert one.texts() == ["part", "mended"] and not one.all(AgentError)

    async def test_too_long_an_answer(self, home: ClaudeHome) -> None:
        long = [text("x"), stop("max_tokens")]
        async with driven(claude(home)) as one:
            ended = await one.turn(script(long, long, long, long, long))
        assert ended.stop_reason == "max_tokens" and not one.all(AgentError)
