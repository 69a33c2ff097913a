"""What holds for every driver, whatever its agent: the promises of `drivers.base`."""

import asyncio
import base64
import contextlib
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conformance.cases import CASES
from support.driver_case import (
    Bench,
    Choose,
    DriverCase,
    Flood,
    Propose,
    Ramble,
    Recall,
    Remark,
    Run,
    Say,
    Think,
)
from support.driving import Driven, allow, driven
from support.processes import assert_gone, child_of, marked, marking, open_files
from support.waiting import until
from workspace_runtime.config import settings
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.sessions.drivers.base import (
    AgentError,
    AgentStartError,
    BlockDelta,
    BlockEnded,
    Capabilities,
    Driver,
    ImagePart,
    PermissionAnswer,
    PermissionAsked,
    PromptReturned,
    PromptTaken,
    SessionChanged,
    TextPart,
    ToolCalled,
    ToolEnded,
    TurnEnded,
)

pytestmark = pytest.mark.anyio

MARK = "WORKSPACE_TEST_MARK"


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> DriverCase:
    found: DriverCase = request.param
    return found


@pytest.fixture
async def bench(case: DriverCase, tmp_path: Path) -> AsyncIterator[Bench]:
    async with case.open(tmp_path) as made:
        yield made


@pytest.fixture
def mark() -> Iterator[str]:
    """A word in the environment of the agent and of everything it starts."""
    with marking() as made:
        yield made


async def capabilities(bench: Bench) -> Capabilities:
    info = await bench.agent.info()
    assert info.installed and info.id == bench.agent.id
    return info.capabilities


def pending(asked: PermissionAsked) -> None:
    """Leave it unanswered."""


def deny(asked: PermissionAsked) -> PermissionAnswer:
    return PermissionAnswer("deny", message="not today")


def check_order(one: Driven) -> None:
    """What holds for the events of any session."""
    blocks: dict[str, str] = {}
    called: list[str] = []
    ended: list[str] = []
    for event in one.events:
        match event:
            case BlockDelta():
                blocks[event.block] = blocks.get(event.block, "") + event.text
            case BlockEnded():
                assert event.content
                if event.block is not None:
                    streamed = blocks.pop(event.block)
                    assert streamed == event.content
            case ToolCalled():
                assert event.tool_use_id not in called
                assert event.tool and event.kind
                called.append(event.tool_use_id)
            case ToolEnded():
                assert event.tool_use_id in called and event.tool_use_id not in ended
                ended.append(event.tool_use_id)
            case PermissionAsked():
                assert event.tool_use_id is None or event.tool_use_id in called
                if event.kind == "tool":
                    assert {(o.decision, o.scope) for o in event.options} >= {("allow", "once"), ("deny", "once")}
            case TurnEnded():
                assert blocks == {}
                assert sorted(called) == sorted(ended)
            case _:
                pass


def native_id(one: Driven) -> str:
    told = {event.native_session_id for event in one.all(SessionChanged) if event.native_session_id}
    assert len(told) == 1
    return str(told.pop())


# --- turns ------------------------------------------------------------------------------------------------------------


async def test_a_turn_streams_blocks_and_tools_and_ends_once(bench: Bench) -> None:
    async with driven(bench.driver(permission_mode=bench.free)) as one:
        ended = await one.turn(bench.prompt(Think("let me see"), Say("here it is"), Run("echo out"), Say("all done")))
        assert ended.stop_reason == "end_turn"
        await one.turn(bench.prompt(Say("once more")))
    assert one.over and len(one.all(TurnEnded)) == 2
    check_order(one)
    assert one.all(AgentError) == []
    blocks = [(event.kind, event.content) for event in one.all(BlockEnded)][:3]
    assert blocks == [("thinking", "let me see"), ("text", "here it is"), ("text", "all done")]
    assert any(event.block for event in one.all(BlockEnded))
    (call,) = one.all(ToolCalled)
    assert call.kind == "execute" and call.input["command"] == "echo out"
    assert [(status, output.strip()) for status, output in one.outputs()] == [("completed", "out")]
    assert native_id(one)


async def test_a_tool_that_fails_says_so(bench: Bench) -> None:
    async with driven(bench.driver(permission_mode=bench.free)) as one:
        assert (await one.turn(bench.prompt(Run("echo said; exit 3"), Say("on")))).stop_reason == "end_turn"
    ((status, output),) = one.outputs()
    assert status == "failed" and "said" in output
    check_order(one)


async def test_the_agent_gets_its_environment_and_none_of_our_settings(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in settings():
        monkeypatch.setenv(setting.metadata["env"], "ours-alone")
    async with driven(bench.driver(permission_mode=bench.free, env={"GIVEN": "a b"})) as one:
        await one.turn(bench.prompt(Run("env")))
    ((_, output),) = one.outputs()
    assert "GIVEN=a b" in output and "ours-alone" not in output


async def test_it_works_in_its_folder(bench: Bench) -> None:
    folder = bench.workspace / "sub folder"
    folder.mkdir()
    async with driven(bench.driver(permission_mode=bench.free, cwd=folder)) as one:
        await one.turn(bench.prompt(Run("pwd")))
    assert one.outputs()[0][1].strip() == str(folder)


async def test_images_are_taken(bench: Bench) -> None:
    if not (await capabilities(bench)).images:
        pytest.skip("takes no images")
    picture = base64.b64encode(
        bytes.fromhex(
            "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d4944415478da6364f8cf500f00038601"
            "8001a5cc0f0000000049454e44ae426082"
        )
    ).decode()
    async with driven(bench.driver()) as one:
        ended = await one.turn(bench.prompt(Say("seen")), ImagePart("image/png", picture))
    assert ended.stop_reason == "end_turn" and "seen" in one.texts()


async def test_steering_reaches_the_running_turn(bench: Bench) -> None:
    if not (await capabilities(bench)).steer:
        pytest.skip("can't be steered")
    async with driven(bench.driver(), pending) as one:
        await one.driver.prompt([TextPart(bench.prompt(Run("touch asked")))])
        asked = await one.seen(PermissionAsked)
        await one.driver.steer("p2", [TextPart(bench.prompt(Say("steered")))])
        await one.driver.answer(asked.request, PermissionAnswer("allow"))
        await one.seen(TurnEnded)
        await one.until(lambda: "steered" in one.texts())
        assert one.all(PromptTaken) == [PromptTaken("p2")]
    check_order(one)


async def test_a_stopped_agent_does_nothing_of_what_it_was_steered_with(bench: Bench) -> None:
    if not (await capabilities(bench)).steer:
        pytest.skip("can't be steered")
    async with driven(bench.driver(permission_mode=bench.free), pending) as one:
        await one.driver.prompt([TextPart(bench.prompt(Run("touch begun; sleep 60")))])
        await until(lambda: (bench.workspace / "begun").exists())
        await one.driver.steer("p2", [TextPart(bench.prompt(Run("touch ran-after-stop")))])
        await one.driver.interrupt()
        assert (await one.seen(TurnEnded)).stop_reason == "interrupted"
        await one.seen(PromptReturned)
        await one.turn(bench.prompt(Say("after")))
        assert one.texts() == ["after"] and not (bench.workspace / "ran-after-stop").exists()
        assert not one.all(PromptTaken)
    check_order(one)


# --- permissions ------------------------------------------------------------------------------------------------------


async def test_a_tool_is_allowed_denied_or_allowed_otherwise(bench: Bench) -> None:
    answers = iter(
        [
            PermissionAnswer("allow"),
            PermissionAnswer("deny", message="not today"),
            PermissionAnswer("allow", updated_input={"command": "touch changed"}),
        ]
    )
    async with driven(bench.driver(), lambda asked: next(answers)) as one:
        ended = await one.turn(bench.prompt(Run("touch one"), Run("touch two"), Run("touch three")))
    assert ended.stop_reason == "end_turn"
    check_order(one)
    assert [event.status for event in one.all(ToolEnded)] == ["completed", "denied", "completed"]
    assert "not today" in one.outputs()[1][1]
    made = {name for name in os.listdir(bench.workspace) if not name.startswith(".")}
    assert made == ({"one", "changed"} if (await capabilities(bench)).updated_input else {"one", "three"})
    first = one.all(PermissionAsked)[0]
    assert first.kind == "tool" and first.input["command"] == "touch one"
    assert first.tool_use_id == one.all(ToolCalled)[0].tool_use_id


async def test_denying_with_interrupt_stops_the_turn(bench: Bench) -> None:
    async with driven(bench.driver(), lambda asked: PermissionAnswer("deny", interrupt=True)) as one:
        ended = await one.turn(bench.prompt(Run("touch one"), Say("never said")))
        assert ended.stop_reason == "interrupted"
        assert (await one.turn(bench.prompt(Say("goes on")))).stop_reason == "end_turn"
    assert "never said" not in one.texts() and "goes on" in one.texts()
    check_order(one)


async def test_an_interrupt_takes_back_what_is_pending(bench: Bench) -> None:
    async with driven(bench.driver(), pending) as one:
        await one.driver.prompt([TextPart(bench.prompt(Run("touch one")))])
        asked = await one.seen(PermissionAsked)
        started = time.monotonic()
        await one.driver.interrupt()
        assert (await one.seen(TurnEnded)).stop_reason == "interrupted"
        assert time.monotonic() - started < 3
        await one.driver.answer(asked.request, PermissionAnswer("allow"))  # too late: ignored
        await one.driver.answer("unknown", PermissionAnswer("allow"))
        assert (await one.turn(bench.prompt(Say("goes on")))).stop_reason == "end_turn"
    assert not (bench.workspace / "one").exists()
    assert all(event.status in ("cancelled", "denied") for event in one.all(ToolEnded))
    check_order(one)


async def test_a_question_is_answered_by_a_label_or_in_free_text(bench: Bench) -> None:
    if not (await capabilities(bench)).questions:
        pytest.skip("asks no questions")
    given: list[str | list[str]] = [["blue"], "something else"]

    def answer(asked: PermissionAsked) -> PermissionAnswer:
        return PermissionAnswer("allow", answers={asked.questions[0].id: given.pop(0)})

    async with driven(bench.driver(), answer) as one:
        for _ in range(2):
            await one.turn(bench.prompt(Choose("Which colour?", ("red", "blue"))))
    check_order(one)
    asked = one.all(PermissionAsked)
    assert {event.kind for event in asked} == {"question"}
    assert asked[0].questions[0].question == "Which colour?"
    assert [option.label for option in asked[0].questions[0].options] == ["red", "blue"]
    assert [status for status, _ in one.outputs()] == ["completed", "completed"]
    assert "blue" in one.outputs()[0][1] and "something else" in one.outputs()[1][1]


async def test_a_plan_is_accepted_or_not(bench: Bench) -> None:
    if not (await capabilities(bench)).plan:
        pytest.skip("makes no plans")
    answers = iter([PermissionAnswer("deny", message="think again"), PermissionAnswer("allow")])
    async with driven(bench.driver(permission_mode=bench.planning), lambda asked: next(answers)) as one:
        for _ in range(2):
            await one.turn(bench.prompt(Propose("first this, then that")))
    check_order(one)
    assert [(event.kind, event.plan) for event in one.all(PermissionAsked)] == [("plan", "first this, then that")] * 2
    assert [status for status, _ in one.outputs()] == ["denied", "completed"]


async def test_a_rule_of_the_session_holds_in_its_next_process_and_nowhere_else(bench: Bench) -> None:
    async with driven(bench.driver(), lambda asked: PermissionAnswer("allow", "session")) as one:
        await one.turn(bench.prompt(Run("touch one"), Run("touch one")))
        await one.turn(bench.prompt(Run("touch one")))
    (asked,) = one.all(PermissionAsked)
    rules = [o.rule for o in asked.options if (o.decision, o.scope) == ("allow", "session") and o.rule]
    assert len(rules) == 1
    async with driven(bench.driver(session_rules=rules, native_session_id=native_id(one))) as again:
        await again.turn(bench.prompt(Run("touch one")))
    assert again.all(PermissionAsked) == []
    async with driven(bench.driver()) as other:
        await other.turn(bench.prompt(Run("touch one")))
    assert len(other.all(PermissionAsked)) == 1


async def test_a_rule_for_always_is_kept_by_the_agent(bench: Bench) -> None:
    async with driven(bench.driver(), lambda asked: PermissionAnswer("allow", "always")) as one:
        await one.turn(bench.prompt(Run("touch one")))
    (option,) = (o for o in one.all(PermissionAsked)[0].options if (o.decision, o.scope) == ("allow", "always"))
    assert option.writes_to and (bench.workspace / option.writes_to).exists()
    async with driven(bench.driver()) as other:
        await other.turn(bench.prompt(Run("touch one"), Run("touch two")))
    assert [event.input["command"] for event in other.all(PermissionAsked)] == ["touch two"]


# --- interrupting -----------------------------------------------------------------------------------------------------


async def test_an_interrupt_in_the_middle_of_a_text_keeps_what_was_said(bench: Bench) -> None:
    async with driven(bench.driver()) as one:
        await one.driver.interrupt()  # nothing runs: harmless
        await one.driver.prompt([TextPart(bench.prompt(Ramble()))])
        await one.until(lambda: len(one.all(BlockDelta)) > 3)
        started = time.monotonic()
        await one.driver.interrupt()
        assert (await one.seen(TurnEnded)).stop_reason == "interrupted"
        assert time.monotonic() - started < 3
        assert (await one.turn(bench.prompt(Say("goes on")))).stop_reason == "end_turn"
    said = [event for event in one.all(BlockEnded) if event.partial]
    if said:  # else the actor keeps the deltas as a partial block
        assert said[0].content == "".join(e.text for e in one.all(BlockDelta) if e.block == said[0].block)
    assert len(one.all(TurnEnded)) == 2 and one.all(AgentError) == []


async def test_an_interrupt_in_the_middle_of_a_tool_ends_its_processes(bench: Bench, mark: str) -> None:
    async with driven(bench.driver(permission_mode=bench.free)) as one:
        tool = f"sh -c 'touch begun; python3 -c \"import time; time.sleep(300)\" {mark}'"
        await one.driver.prompt([TextPart(bench.prompt(Run(tool), Say("never said")))])
        await until((bench.workspace / "begun").exists)
        assert marked(mark)
        started = time.monotonic()
        await one.driver.interrupt()
        assert (await one.seen(TurnEnded)).stop_reason == "interrupted"
        assert time.monotonic() - started < 3
        await until(lambda: marked(mark) == [], 3)
        assert (await one.turn(bench.prompt(Say("goes on")))).stop_reason == "end_turn"
    assert [status for status, _ in one.outputs()] == ["cancelled"]
    assert "never said" not in one.texts()
    check_order(one)


# --- dying and resuming -----------------------------------------------------------------------------------------------


def agent_of(mark: str) -> int:
    """The process id of the agent, below its keeper, below us."""
    return child_of(child_of(os.getpid(), mark))


@pytest.mark.parametrize("during", ["nothing", "text", "tool", "permission"])
async def test_a_killed_agent_ends_its_events_and_leaves_nothing(bench: Bench, mark: str, during: str) -> None:
    mode = bench.asking if during == "permission" else bench.free
    async with driven(bench.driver(env={MARK: mark}, permission_mode=mode), pending) as one:
        await one.turn(bench.prompt(Remark("the word is xyzzy")))
        match during:
            case "text":
                await one.driver.prompt([TextPart(bench.prompt(Ramble()))])
                await one.seen(BlockDelta)
            case "tool":
                tool = "(setsid sleep 300 &) ; touch begun; python3 -c 'import time; time.sleep(300)'"
                await one.driver.prompt([TextPart(bench.prompt(Run(tool)))])
                await until((bench.workspace / "begun").exists)
            case "permission":
                await one.driver.prompt([TextPart(bench.prompt(Run("touch asked")))])
                await one.seen(PermissionAsked)
        turns = len(one.all(TurnEnded))
        os.kill(agent_of(mark), signal.SIGKILL)
        await one.until(lambda: one.over)
        await until(lambda: marked(mark) == [], 5)
        assert len(one.all(TurnEnded)) == turns  # the actor ends it
        # what is said to one that is gone is no failure: its end was told by the events
        with contextlib.suppress(OSError):
            await one.driver.prompt([TextPart(bench.prompt(Say("nobody hears")))])
    async with driven(bench.driver(native_session_id=native_id(one))) as again:
        await again.turn(bench.prompt(Recall()))
    assert "xyzzy" in again.texts()[-1]
    assert native_id(again) == native_id(one)


async def test_a_fork_remembers_and_leaves_the_original_alone(bench: Bench) -> None:
    if not (await capabilities(bench)).fork:
        pytest.skip("can't be forked")
    async with driven(bench.driver()) as one:
        await one.turn(bench.prompt(Remark("the word is xyzzy")))
    async with driven(bench.driver(native_session_id=native_id(one), fork=True)) as fork:
        await fork.turn(bench.prompt(Remark("the other word is plugh")))
        await fork.turn(bench.prompt(Recall()))
    assert "xyzzy" in fork.texts()[-1] and "plugh" in fork.texts()[-1]
    assert native_id(fork) != native_id(one)
    async with driven(bench.driver(native_session_id=native_id(one))) as again:
        await again.turn(bench.prompt(Recall()))
    assert "xyzzy" in again.texts()[-1] and "plugh" not in again.texts()[-1]


async def test_a_conversation_that_is_unknown_can_not_be_resumed(bench: Bench, mark: str) -> None:
    for unknown in ("00000000-0000-4000-8000-000000000000", "../../etc/passwd"):
        driver = bench.driver(native_session_id=unknown, env={MARK: mark})
        with pytest.raises(AgentStartError) as fault:
            await driver.start()
        assert fault.value.code.startswith("agent_") and fault.value.message
        await driver.close()
        assert marked(mark) == []


# --- configuring ------------------------------------------------------------------------------------------------------


async def test_the_mode_can_be_changed_and_is_told(bench: Bench) -> None:
    if not (await capabilities(bench)).set_permission_mode:
        pytest.skip("its mode can't be changed")
    async with driven(bench.driver(), deny) as one:
        await one.turn(bench.prompt(Run("touch one")))
        await one.driver.configure(model=None, effort=None, permission_mode=bench.free)
        await one.turn(bench.prompt(Run("touch two")))
        await one.driver.configure(model=None, effort=None, permission_mode=bench.asking)
        await one.turn(bench.prompt(Run("touch three")))
        await one.until(lambda: modes(one)[-1:] == [bench.asking])
    assert [event.input["command"] for event in one.all(PermissionAsked)] == ["touch one", "touch three"]
    assert (bench.workspace / "two").exists()
    assert modes(one)[-2:] == [bench.free, bench.asking]


def modes(one: Driven) -> list[str]:
    """The modes that were told, without repetitions."""
    told: list[str] = []
    for event in one.all(SessionChanged):
        if event.permission_mode is not None and event.permission_mode != (told[-1] if told else None):
            told.append(event.permission_mode)
    return told


async def test_what_the_agent_does_not_know_is_refused(bench: Bench) -> None:
    with pytest.raises(WorkspaceError) as fault:
        bench.agent.check(model=None, effort=None, permission_mode="no such mode")
    assert fault.value.code == "mode_not_found"
    bench.agent.check(model=None, effort=None, permission_mode=bench.free)
    async with driven(bench.driver()) as one:
        with pytest.raises(WorkspaceError):
            await one.driver.configure(model=None, effort=None, permission_mode="no such mode")
        assert (await one.turn(bench.prompt(Say("goes on")))).stop_reason == "end_turn"


# --- closing ----------------------------------------------------------------------------------------------------------


async def settle() -> None:
    """Let what was dropped go."""
    gc.collect()
    await asyncio.sleep(0)


async def test_closing_before_the_start(bench: Bench) -> None:
    driver = bench.driver()
    await driver.close()
    await driver.close()
    with pytest.raises(AgentStartError):
        await driver.start()
    await driver.close()


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_closing_in_the_middle_of_the_start(bench: Bench, mark: str, how: str) -> None:
    await warm(bench)
    before = open_files()
    for moment in range(6):
        driver = bench.driver(env={MARK: mark})
        start = asyncio.create_task(driver.start())
        await part_of_a_start(moment, mark)
        if how == "cancel":
            start.cancel()
            (result,) = await asyncio.gather(start, return_exceptions=True)
            assert result is None or isinstance(result, asyncio.CancelledError)
            await driver.close()
        else:
            await driver.close()
            (result,) = await asyncio.gather(start, return_exceptions=True)
            assert result is None or isinstance(result, AgentStartError), result
        assert marked(mark) == []
        await driver.close()
    await settle()
    await until(lambda: open_files() <= before)


async def part_of_a_start(moment: int, mark: str) -> None:
    """Wait until a start has come so far: some steps of the loop, its first process, or that process's child."""
    if moment < 4:
        for _ in range(moment):
            await asyncio.sleep(0)
    elif moment == 4:
        await until(lambda: marked(mark))
    else:
        await until(lambda: len(marked(mark)) > 1)


async def warm(bench: Bench) -> None:
    """Have whatever is opened once and kept (threads, loop, SDK) opened."""
    async with driven(bench.driver()) as one:
        await one.turn(bench.prompt(Say("warm")))


STATES = ["started", "in a turn", "in a tool", "in a permission", "ended", "unread"]
OFTEN = [("in a turn", "twice at once"), ("in a tool", "cancelled")]


@pytest.mark.parametrize(
    ("state", "how"),
    [
        *((state, "once") for state in STATES),
        *OFTEN,
        *(
            pytest.param(state, how, marks=pytest.mark.long)
            for state in STATES
            for how in ("twice at once", "cancelled")
            if (state, how) not in OFTEN
        ),
    ],
)
async def test_closing_leaves_no_process_and_nothing_open(bench: Bench, mark: str, state: str, how: str) -> None:
    await warm(bench)
    before = open_files()
    driver = bench.driver(env={MARK: mark}, permission_mode=bench.asking if "perm" in state else bench.free)
    await driver.start()
    one = Driven(driver, pending)
    reader = asyncio.create_task(one.read()) if state != "unread" else None
    await bring_into(state, bench, driver, one)
    assert marked(mark)
    started = time.monotonic()
    if how == "once":
        await driver.close()
    elif how == "twice at once":
        await asyncio.gather(driver.close(), driver.close())
    else:
        closing = asyncio.create_task(driver.close())
        await asyncio.sleep(0)
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing
    assert marked(mark) == []
    assert time.monotonic() - started < 10
    await driver.close()
    if reader is not None:
        async with asyncio.timeout(5):
            await reader
    await settle()
    await until(lambda: open_files() <= before)  # the other end of a connection may be about to close


async def bring_into(state: str, bench: Bench, driver: Driver, one: Driven) -> None:
    match state:
        case "in a turn":
            await driver.prompt([TextPart(bench.prompt(Ramble()))])
            await one.seen(BlockDelta)
        case "in a tool":
            tool = "(env -i setsid sleep 300 &) ; touch begun; python3 -c 'import time; time.sleep(300)'"
            await driver.prompt([TextPart(bench.prompt(Run(tool)))])
            await until((bench.workspace / "begun").exists)
        case "in a permission":
            await driver.prompt([TextPart(bench.prompt(Run("touch asked")))])
            await one.seen(PermissionAsked)
        case "ended":
            await one.turn(bench.prompt(Say("hi")))
        case "unread":
            await driver.prompt([TextPart(bench.prompt(Ramble()))])
        case _:
            pass


async def test_a_folder_that_is_not_there(bench: Bench, mark: str) -> None:
    driver = bench.driver(cwd=bench.workspace / "missing", env={MARK: mark})
    with pytest.raises(AgentStartError):
        await driver.start()
    await driver.close()
    assert_gone(mark)


# --- back pressure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if Flood not in case.without], ids=lambda case: case.name)
async def test_an_agent_that_floods_is_slowed_and_costs_no_memory(case: DriverCase, bench: Bench, mark: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        driver = bench.driver(env={MARK: mark})
        stack.push_async_callback(driver.close)
        await driver.start()
        await driver.prompt([TextPart(bench.prompt(Flood()))])
        agent = agent_of(mark)
        await until(lambda: is_stuck(agent))
        before = rss_kb()
        deadline = time.monotonic() + 0.5
        used = cpu_ticks(agent)
        while time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert cpu_ticks(agent) - used <= 2  # it waits for us
        assert rss_kb() - before < 4_000
        seen = 0
        async for event in driver.events():  # and goes on where it was
            seen += isinstance(event, BlockEnded | BlockDelta)
            if seen == 5_000:
                break
    assert marked(mark) == []


def is_stuck(pid: int) -> bool:
    """Whether a thread of the process waits for room in a pipe."""
    waits = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            waits.append(Path(f"/proc/{pid}/task/{thread}/wchan").read_text())
    return any("pipe_write" in wait for wait in waits)


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


def rss_kb() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


async def test_answering_what_is_asked_again_and_again(bench: Bench) -> None:
    async with driven(bench.driver(), allow) as one:
        for number in range(3):
            await one.turn(bench.prompt(Run(f"echo {number}"), Run(f"echo {number}{number}")))
    assert len(one.all(TurnEnded)) == 3 and len(one.all(ToolEnded)) == 6
    check_order(one)
