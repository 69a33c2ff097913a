"""The demo agent's language: what its help promises, by the real process behind its driver."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.demo_case import DEMO
from support.driver_case import Bench
from support.driving import Driven, driven
from support.processes import marking
from support.waiting import until
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.sessions.drivers import demo_agent
from workspace_runtime.sessions.drivers.base import (
    AgentError,
    AgentEvent,
    AgentTurnStarted,
    BlockDelta,
    BlockEnded,
    FileText,
    ImagePart,
    PermissionAnswer,
    PermissionAsked,
    PermissionWithdrawn,
    PlanChanged,
    PromptTaken,
    SessionChanged,
    TextPart,
    ToolCalled,
    ToolEnded,
    TurnEnded,
    UsageChanged,
)
from workspace_runtime.sessions.drivers.demo import MODELS, MODES

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with DEMO.open(tmp_path) as made:
        yield made


async def play(bench: Bench, script: str, **spec: object) -> Driven:
    """One turn in the mode that does not ask."""
    async with driven(bench.driver(**{"permission_mode": "auto", **spec})) as one:
        await one.turn(script)
    return one


def reason(one: Driven) -> str:
    return one.all(TurnEnded)[-1].stop_reason


def test_the_help_names_every_command() -> None:
    named = set(re.findall(r"^  ([\w-]+)", demo_agent.HELP, re.MULTILINE)) | {"questions"}
    assert named == {*demo_agent.COMMANDS, "sub-agent"}
    assert "no AI" in demo_agent.HELP


async def test_it_is_always_there(bench: Bench) -> None:
    info = await bench.agent.info()
    assert info.installed and info.signed_in and "no AI" in info.name
    assert [mode.id for mode in info.modes if mode.dangerous] == ["auto"]
    assert [model.id for model in info.models if model.default] == ["demo-fast"]
    assert {model.id for model in MODELS} == set(demo_agent.PACE_S)
    for model in MODELS:
        for mode in MODES:
            bench.agent.check(model=model.id, effort=None, permission_mode=mode.id)
    for choice, code in (
        ({"model": "x"}, "model_not_found"),
        ({"effort": "high"}, "effort_not_found"),
        ({"permission_mode": "x"}, "mode_not_found"),
    ):
        with pytest.raises(WorkspaceError) as fault:
            bench.agent.check(**({"model": None, "effort": None, "permission_mode": None} | choice))
        assert fault.value.code == code


async def test_words_it_does_not_know_are_answered_with_the_help_once(bench: Bench) -> None:
    one = await play(bench, "Please fix the bug.\nIt is in main.py\nwait forever\n\nsay done")
    assert len(one.texts()) == 2
    assert "'Please'" in one.texts()[0] and one.texts()[0].endswith(demo_agent.HELP)
    assert (await play(bench, "help")).texts() == [demo_agent.HELP]
    assert "no AI" in (await play(bench, "")).texts()[0]


async def test_text_keeps_its_spaces_and_line_ends(bench: Bench) -> None:
    one = await play(bench, "say two  spaces \\n\\tand\\\\n a line")
    assert one.texts() == ["two  spaces \n\tand\\n a line"]
    assert "".join(event.text for event in one.all(BlockDelta)) == one.texts()[0]


async def test_files_are_written_and_read_in_its_folder_alone(bench: Bench) -> None:
    (bench.workspace / "out").symlink_to("/etc")
    (bench.workspace / "link").symlink_to("/etc/hostname")
    os.mkfifo(bench.workspace / "fifo")
    script = [
        "write new/a.txt one\\ntwo", "read new/a.txt", "read missing", "read ../home", "read /etc/hostname", "read link",
        "read fifo", "read new", "write out/x bad", "write ../x bad", "write /tmp/x bad",
    ]  # fmt: skip
    one = await play(bench, "\n".join(script))
    assert (bench.workspace / "new" / "a.txt").read_text() == "one\ntwo\n"
    assert one.outputs()[:2] == [("completed", "Wrote new/a.txt."), ("completed", "one\ntwo\n")]
    assert [status for status, _ in one.outputs()[2:]] == ["failed"] * 9
    assert [(call.tool, call.kind, call.locations[0].path) for call in one.all(ToolCalled)][:2] == [
        ("Write", "edit", "new/a.txt"),
        ("Read", "read", "new/a.txt"),
    ]


async def test_a_command_may_leave_something_in_the_background(bench: Bench) -> None:
    with marking() as mark:
        async with driven(bench.driver(permission_mode="auto")) as one:
            await one.turn(f"run sh -c 'sleep 300; : {mark}' & echo started\nrun kill -9 $$\nsay on")
            assert one.outputs() == [("completed", "started\n"), ("failed", "[signal 9]")]
            assert one.texts() == ["on"]


async def test_an_ask_asks_in_every_mode_and_knows_its_rules(bench: Bench) -> None:
    async with driven(bench.driver(permission_mode="auto"), lambda asked: PermissionAnswer("allow", "session")) as one:
        await one.turn("ask may I\nask may I")
    assert len(one.all(PermissionAsked)) == 1
    assert one.outputs() == [("completed", "Allowed: may I")] * 2


async def test_rules_for_always_hold_in_their_folder(bench: Bench, tmp_path: Path) -> None:
    async with driven(bench.driver(), lambda asked: PermissionAnswer("allow", "always")) as one:
        await one.turn("write a.txt one\nrun true")
    file = tmp_path / "home/.config/workspace-runtime-demo/rules.json"
    assert {option.writes_to for asked in one.all(PermissionAsked) for option in asked.options} == {None, str(file)}
    assert json.loads(file.read_text()) == {"allow": {str(bench.workspace): ["run true", "write a.txt"]}}
    elsewhere = bench.workspace / "sub"
    elsewhere.mkdir()
    async with driven(bench.driver(cwd=elsewhere)) as other:
        await other.turn("run true")
    assert len(other.all(PermissionAsked)) == 1
    file.write_text("mine")
    async with driven(bench.driver(), lambda asked: PermissionAnswer("allow", "always")) as broken:
        await broken.turn("run true")
    assert file.read_text() == "mine" and "can't keep that rule" in broken.texts()[0]


async def test_several_answers_and_a_refusal_to_a_question(bench: Bench) -> None:
    answers = iter(
        [PermissionAnswer("allow", answers={"q1": ["A", "C"]}), PermissionAnswer("deny", message="none of it")]
    )
    async with driven(bench.driver(), lambda asked: next(answers)) as one:
        await one.turn("questions Which? | A | B | C\nquestion Really? | yes")
    assert [asked.questions[0].multi_select for asked in one.all(PermissionAsked)] == [True, False]
    assert one.outputs() == [("completed", "A, C"), ("denied", "none of it")]


async def test_a_to_do_list(bench: Bench) -> None:
    one = await play(bench, "plan first | [~] second | [X] third | [ ] fourth")
    (plan,) = one.all(PlanChanged)
    assert [(entry.id, entry.content, entry.status) for entry in plan.entries] == [
        ("1", "first", "pending"),
        ("2", "second", "in_progress"),
        ("3", "third", "completed"),
        ("4", "fourth", "pending"),
    ]


async def test_sub_agents_are_told_apart(bench: Bench) -> None:
    script = "sub-agent bob\n  say one\n  sub-agent jim\n    say two\n  read x\nsay three"
    one = await play(bench, script)
    bob, jim, read = one.all(ToolCalled)
    assert (bob.kind, bob.parent_tool_use_id, bob.title) == ("sub_agent", None, "bob")
    assert (jim.kind, jim.parent_tool_use_id) == ("sub_agent", bob.tool_use_id)
    assert read.parent_tool_use_id == bob.tool_use_id
    assert [(e.content, e.parent_tool_use_id) for e in one.all(BlockEnded)] == [
        ("one", bob.tool_use_id),
        ("two", jim.tool_use_id),
        ("three", None),
    ]
    assert {e.parent_tool_use_id for e in one.all(BlockDelta)} == {None, bob.tool_use_id, jim.tool_use_id}
    ended = [event.tool_use_id for event in one.all(ToolEnded)]
    assert ended == [jim.tool_use_id, read.tool_use_id, bob.tool_use_id]


async def test_an_interrupt_in_a_sub_agent_closes_all_of_it(bench: Bench) -> None:
    async with driven(bench.driver(permission_mode="auto")) as one:
        await one.driver.prompt([TextPart("sub-agent bob\n  say begun\n  wait 300\nsay never")])
        await one.seen(BlockEnded)
        await one.driver.interrupt()
        await one.seen(TurnEnded)
    assert reason(one) == "interrupted"
    assert [event.status for event in one.all(ToolEnded)] == ["cancelled"]
    assert one.texts() == []


async def test_pictures_files_and_big_results(bench: Bench) -> None:
    (bench.workspace / "sub").mkdir()
    one = await play(bench, "image\nbig 3000000", cwd=bench.workspace / "sub")
    drawn, big = one.all(ToolEnded)
    assert drawn.images[0].mime_type == "image/png" and drawn.images[0].data.startswith(b"\x89PNG")
    assert len(big.output) == 3_000_000
    async with driven(bench.driver(cwd=bench.workspace / "sub")) as shown:
        await shown.turn(ImagePart("image/gif", "R0lGODlhAQ=="), FileText("sub/lines.txt", "b\nc\n", 2, 3))
    assert shown.texts() == ["I see an image of 7 bytes (image/gif)."]
    assert shown.outputs() == [("completed", "b\nc\n")]


@pytest.mark.parametrize(
    ("line", "ended", "code"),
    [
        ("fail", "error", "agent_error"),
        ("fail agent_rate_limited slow down", "error", "agent_rate_limited"),
        ("fail nonsense", "error", "agent_error"),
        ("end max_tokens", "max_tokens", None),
        ("end refusal", "refusal", None),
    ],
)
async def test_turns_that_end_otherwise(bench: Bench, line: str, ended: str, code: str | None) -> None:
    one = await play(bench, f"say before\n{line}\nsay never")
    assert reason(one) == ended and one.texts() == ["before"]
    assert [error.code for error in one.all(AgentError)] == ([code] if code else [])


@pytest.mark.parametrize("signo", ["", " KILL", " sigterm", " SEGV", " 9"])
async def test_a_crash_ends_the_events(bench: Bench, signo: str) -> None:
    async with driven(bench.driver()) as one:
        await one.driver.prompt([TextPart(f"say before\ncrash{signo}")])
        await one.until(lambda: one.over)
    assert one.texts() == ["before"] and one.all(TurnEnded) == []


async def test_a_hanging_agent_is_ended_by_closing(bench: Bench) -> None:
    with marking() as mark:
        async with driven(bench.driver(env={"MARKED": mark})) as one:
            await one.driver.prompt([TextPart("say before\ncrash STOP")])
            await one.seen(BlockEnded)
            started = time.monotonic()
            await one.driver.interrupt()
            await one.driver.close()
            assert time.monotonic() - started < 5


async def test_it_begins_a_turn_by_itself(bench: Bench) -> None:
    async with driven(bench.driver()) as one:
        await one.turn("later 0.01 say it is later\nsay now")
        await one.seen(TurnEnded, 2)
    kinds: list[type[AgentEvent]] = [type(e) for e in one.events if isinstance(e, AgentTurnStarted | TurnEnded)]
    assert kinds == [TurnEnded, AgentTurnStarted, TurnEnded]
    assert one.texts() == ["now", "it is later"]


async def test_a_prompt_that_meets_a_turn_of_its_own_shares_its_end(bench: Bench) -> None:
    async with driven(bench.driver()) as one:
        await one.turn("later 0 wait 0.2")
        await one.seen(AgentTurnStarted)
        await one.driver.prompt([TextPart("say together")])
        await one.seen(TurnEnded, 2)
        assert one.texts() == ["together"]
        await one.turn("recall")
    assert "say together" in one.texts()[-1]
    assert len(one.all(TurnEnded)) == 3


async def test_a_line_said_into_the_turn_is_done_in_it(bench: Bench) -> None:
    async with driven(bench.driver()) as one:
        await one.driver.prompt([TextPart("say first\nwait 0.2")])
        await one.seen(BlockEnded)
        await one.driver.steer("p2", [TextPart("say second"), FileText("a.txt", "in it")])
        await one.seen(TurnEnded)
        assert one.texts() == ["first", "second"] and one.outputs() == [("completed", "in it")]
        await one.driver.steer("p3", [TextPart("say third")])  # too late for that turn: one of its own
        await one.seen(TurnEnded, 2)
    assert one.all(PromptTaken) == [PromptTaken("p2"), PromptTaken("p3")]
    assert not one.all(AgentTurnStarted) and one.texts()[-1] == "third"


async def test_usage_counts_words(bench: Bench) -> None:
    async with driven(bench.driver()) as one:
        await one.turn("say one two three")
        ended = await one.turn("think four\nusage")
    assert one.all(TurnEnded)[0].usage == one.all(UsageChanged)[0].usage
    assert one.all(UsageChanged)[0].usage.input_tokens == 4
    assert one.all(UsageChanged)[0].usage.output_tokens == 3
    assert ended.usage is not None and ended.usage.input_tokens == 3
    assert ended.usage.context_used_tokens and ended.usage.context_window_tokens == 100_000


async def test_repeating_naming_and_pacing(bench: Bench) -> None:
    one = await play(bench, "title My work\npace 0\nrepeat 3 say again\nrepeat x say no\n# nothing\nSAY loud")
    assert one.texts()[:3] == ["again"] * 3 and one.texts()[-1] == "loud"
    assert [event.title for event in one.all(SessionChanged) if event.title] == ["My work"]
    async with driven(bench.driver(model="demo-slow")) as slow:
        await slow.driver.configure(model="demo-fast", effort=None, permission_mode=None)
        await slow.turn("say hi")
    assert [event.model for event in slow.all(SessionChanged)] == ["demo-slow", "demo-fast"]


async def test_a_flood_is_whole_and_can_be_paced(bench: Bench) -> None:
    one = await play(bench, "flood 3000 200\nflood 20 1 200\nstream 100 5")
    numbers = [int(text.split()[0]) for text in one.texts()[:-1]]
    assert numbers == [*range(3000), *range(20)]
    assert len(one.texts()[0]) > 200
    times = [int(text.split()[1]) for text in one.texts()[3000:-1]]
    assert (times[-1] - times[0]) / 1e9 >= 19 / 200
    assert one.texts()[-1] == "xxxx " * 100


async def test_an_interrupt_ends_a_flood(bench: Bench) -> None:
    async with driven(bench.driver()) as one:
        for script in ("flood 100000000", "stream 100000000"):
            ended = len(one.all(TurnEnded))
            await one.driver.prompt([TextPart(script)])
            await one.until(lambda: any(isinstance(e, BlockEnded | BlockDelta) for e in one.events[-5:]))
            await one.driver.interrupt()
            await one.seen(TurnEnded, ended + 1)
            assert reason(one) == "interrupted"


async def test_an_interrupt_withdraws_what_it_asked(bench: Bench) -> None:
    async with driven(bench.driver(), lambda asked: None) as one:
        await one.driver.prompt([TextPart("sub-agent bob\n  ask me")])
        asked = await one.seen(PermissionAsked)
        assert asked.parent_tool_use_id == one.all(ToolCalled)[0].tool_use_id
        await one.driver.interrupt()
        await one.seen(TurnEnded)
    assert [event.request for event in one.all(PermissionWithdrawn)] == [asked.request]


async def test_a_conversation_cut_in_the_middle_of_a_line_can_be_resumed(bench: Bench, tmp_path: Path) -> None:
    async with driven(bench.driver()) as one:
        await one.turn("say remembered")
    (file,) = (tmp_path / "runtime/demo").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open("ab") as writer:
        writer.write(b'{"prompt": "cut')
    identity = one.all(SessionChanged)[0].native_session_id
    async with driven(bench.driver(native_session_id=identity)) as again:
        await again.turn("recall")
    assert "say remembered" in again.texts()[0] and "cut" not in again.texts()[0]


def test_it_runs_by_its_path_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-I", demo_agent.__file__], stdin=subprocess.DEVNULL, capture_output=True, timeout=20
    )
    assert done.returncode == 0 and demo_agent.HELP.encode() in done.stdout


async def test_its_end_is_its_inputs_end(bench: Bench, tmp_path: Path) -> None:
    start = {"type": "start", "folder": str(tmp_path / "kept")}
    process = subprocess.Popen(
        [sys.executable, "-I", demo_agent.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(start).encode() + b"\n")
    assert json.loads(process.stdout.readline())["type"] == "started"
    process.stdin.write(b'{"type": "prompt", "parts": [{"type": "text", "text": "wait 300"}]}\n')
    process.communicate(timeout=10)
    await until(lambda: process.returncode == 0)
    assert process.returncode != -signal.SIGKILL
