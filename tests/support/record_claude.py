"""Records the golden samples of the Claude driver: what the real CLI says, and what the driver makes of it.

    python -m support.record_claude          (in tests/)

For each scenario two files in `golden/claude`: `NAME.jsonl`, the CLI's messages as they are on the wire, without what names this
machine; and `NAME.events.jsonl`, the neutral events that the mapper gives for them. The unit test holds the mapper to the second.
Look at the difference before you commit it: a new CLI may say new things, the events should stay the same.
"""

import asyncio
import dataclasses
import json
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workspace_runtime.sessions.drivers import claude_permissions
from workspace_runtime.sessions.drivers.base import (
    AgentEvent,
    DriverSpec,
    PermissionAnswer,
    PermissionAsked,
    TextPart,
    TurnEnded,
)
from workspace_runtime.sessions.drivers.claude import ClaudeAgent
from workspace_runtime.sessions.drivers.claude_events import ClaudeEvents

from .claude_home import PASSED, ClaudeHome
from .driving import Driven, allow, driven
from .model_script import drop, error, plan_file, script, stop, text, think, tool
from .model_server import ModelServer

GOLDEN = Path(__file__).parent.parent / "golden" / "claude"
CWD = "/workspace"
# What tells of this machine, or of nothing that the driver reads.
_DROPPED = {
    "tools", "slash_commands", "terminal_slash_commands", "agents", "skills", "plugins", "output_style", "memory_paths", "timestamp",
    "betas", "capabilities", "analytics_disabled", "signature", "iterations", "cache_creation", "server_tool_use", "run_id",
    "output_file", "outputFile", "messaging_socket_path",
}  # fmt: skip
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Scenario:
    """One recorded conversation: prompts, and how permissions are answered."""

    prompts: list[str]
    answerer: Callable[[PermissionAsked], PermissionAnswer | None] = allow
    env: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    turns: int | None = None
    interrupt: bool = False


_WRITE = tool("Write", file_path="a.txt", content="hi")
_INNER = script(
    [think("inner thought"), text("inner text"), tool("Bash", command="touch inner.txt")], [text("inner result")]
)
_QUESTION = {
    "question": "Which colour?",
    "header": "Colour",
    "multiSelect": False,
    "options": [{"label": "Red", "description": "warm"}, {"label": "Blue", "description": "cold"}],
}


def _agent(background: bool) -> dict[str, Any]:
    input = {"description": "d", "prompt": _INNER, "subagent_type": "general-purpose"}
    return tool("Agent", **input, run_in_background=background)


SCENARIOS: Mapping[str, Scenario] = {
    "turn": Scenario(
        [
            script(
                [think("let me see", chunks=2), text("I will write.", chunks=2), _WRITE],
                [tool("Bash", command="cat a.txt"), tool("Read", file_path="missing.txt")],
                [text("done")],
            ),
            script([text("again")]),
        ]
    ),
    "denied": Scenario([script([_WRITE], [text("ok")])], lambda asked: PermissionAnswer("deny", message="no thanks")),
    "denied_and_interrupted": Scenario([script([_WRITE])], lambda asked: PermissionAnswer("deny", interrupt=True)),
    "question": Scenario(
        [script([tool("AskUserQuestion", questions=[_QUESTION])], [text("ok")])],
        lambda asked: PermissionAnswer("allow", answers={"q1": ["Red"]}),
    ),
    "plan": Scenario(
        [script([plan_file("# The plan")], [tool("ExitPlanMode")], [text("ok")])], spec={"permission_mode": "plan"}
    ),
    "interrupted": Scenario([script([text("one two ", chunks=4, hold="gate")])], interrupt=True),
    "sub_agent": Scenario([script([_agent(background=False)], [text("outer")])]),
    "background": Scenario([script([_agent(background=True)], [text("first")], [text("second")])], turns=2),
    "todo": Scenario(
        [
            script(
                [
                    tool("TaskCreate", subject="One", description="1"),
                    tool("TaskCreate", subject="Two", description="2"),
                ],
                [tool("TaskUpdate", taskId="1", status="completed")],
                [tool("TaskUpdate", taskId="2", status="deleted")],
                [tool("TaskList")],
                [text("done")],
            )
        ]
    ),
    "refused_400": Scenario([script([error(400)])]),
    "refused_401": Scenario([script([error(401)])]),
    "refused_429": Scenario([script([error(429)])]),
    "refused_529": Scenario([script([error(529)])]),
    "retried": Scenario([script([error(529, times=1), text("after")])]),
    "not_signed_in": Scenario([script([text("x")])], env={"ANTHROPIC_API_KEY": ""}),
    "dropped": Scenario([script([drop()])]),
    "max_turns": Scenario(
        [script([tool("Bash", command="echo 1")], [tool("Bash", command="echo 2")])], spec={"max_turns": 1}
    ),
    "max_tokens": Scenario([script(*[[text("x"), stop("max_tokens")]] * 5)]),
    "slash_command": Scenario(["/context"]),
    "compacted": Scenario([script([text("one")]), "/cost", script([text("two")]), "/context", "/compact"]),
    "background_command": Scenario(
        [
            script(
                [tool("Bash", command="echo hi", description="say hi", run_in_background=True)],
                [text("first")],
                [text("second")],
            )
        ],
        turns=2,
    ),
}


def replay(messages: list[dict[str, Any]]) -> Iterator[AgentEvent]:
    """The events for recorded messages: what the driver does with them, without a CLI."""
    mapper = ClaudeEvents(CWD)
    asked = 0
    for message in messages:
        if message["type"] == "control_request":
            if message["request"]["subtype"] != "can_use_tool":
                continue
            asked += 1
            told = message["request"]
            request = claude_permissions.Request(
                id=f"ask{asked}",
                tool=told["tool_name"],
                input=told["input"],
                tool_use_id=told["tool_use_id"],
                parent_tool_use_id=mapper.parent_of(told.get("agent_id")),
                suggestions=told.get("permission_suggestions") or [],
            )
            yield claude_permissions.ask(request, CWD)
        elif message["type"] == "told":  # what the driver told the mapper
            match message["what"]:
                case "interrupted":
                    mapper.interrupted()
                case "denied":
                    mapper.denied(message["tool_use_id"])
                case "prompted":
                    mapper.prompted(message["prompt_id"])
        else:
            yield from mapper.take(message)


def encode(event: AgentEvent) -> dict[str, Any]:
    """An event as JSON."""
    return {"event": type(event).__name__} | {
        name: value for name, value in dataclasses.asdict(event).items() if value not in (None, (), [])
    }


def read(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _scrubbed(message: Any, names: Mapping[str, str], ids: dict[str, str]) -> Any:
    if isinstance(message, dict):
        return {key: _scrubbed(value, names, ids) for key, value in message.items() if key not in _DROPPED}
    if isinstance(message, list):
        return [_scrubbed(value, names, ids) for value in message]
    if not isinstance(message, str):
        return message
    for found, name in names.items():
        message = message.replace(found, name)
    message = re.sub(r"/tmp/claude-\d+/\S+", "/home/user/output", message)
    message = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1234", message)
    return _UUID.sub(lambda found: ids.setdefault(found[0], f"00000000-0000-4000-8000-{len(ids):012d}"), message)


@contextmanager
def _listening(wire: list[dict[str, Any]]) -> Iterator[None]:
    """Note all that the CLI says, and what the driver tells the mapper, in order."""
    from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport

    def tell(what: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def told(self: ClaudeEvents, *args: Any) -> Any:
            names = {"denied": "tool_use_id", "prompted": "prompt_id"}
            wire.append({"type": "told", "what": what} | ({names[what]: args[0]} if what in names else {}))
            return method(self, *args)

        return told

    heard = SubprocessCLITransport.read_messages
    originals = {name: getattr(ClaudeEvents, name) for name in ("prompted", "interrupted", "denied")}

    async def listened(self: SubprocessCLITransport) -> AsyncIterator[dict[str, Any]]:
        async for message in heard(self):
            if message.get("type") not in ("control_response", "control_cancel_request"):
                wire.append(message)
            yield message

    SubprocessCLITransport.read_messages = listened  # type: ignore[method-assign]
    for name, method in originals.items():
        setattr(ClaudeEvents, name, tell(name, method))
    try:
        yield
    finally:
        SubprocessCLITransport.read_messages = heard  # type: ignore[method-assign]
        for name, method in originals.items():
            setattr(ClaudeEvents, name, method)


async def _run(scenario: Scenario, one: Driven) -> None:
    for prompt in scenario.prompts:
        if scenario.interrupt:
            await one.driver.prompt([TextPart(prompt)])
            await one.until(lambda: [e for e in one.events if type(e).__name__ == "BlockDelta"])
            await one.driver.interrupt()
            await one.seen(TurnEnded)
        else:
            await one.turn(prompt)
    await one.seen(TurnEnded, scenario.turns or len(scenario.prompts))


async def _record(name: str, scenario: Scenario) -> None:
    wire: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, _listening(wire):
        async with ModelServer() as server:
            home = ClaudeHome.make(Path(folder), server.url)
            spec = DriverSpec("ses_1", home.workspace, home.workspace, home.env(**scenario.env), **scenario.spec)
            async with driven(ClaudeAgent(home.home / "runtime").driver(spec), scenario.answerer) as one:
                await _run(scenario, one)
        names = {
            str(home.workspace): CWD,
            str(home.home): "/home/user",
            re.sub(r"[^A-Za-z0-9]", "-", str(home.workspace)): "-workspace",
        }
        ids: dict[str, str] = {}
        messages = [_scrubbed(message, names, ids) for message in wire]
    events = [encode(event) for event in replay(messages)]
    for path, lines in ((GOLDEN / f"{name}.jsonl", messages), (GOLDEN / f"{name}.events.jsonl", events)):
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print(name, len(messages), len(events))


def main() -> None:
    """Record the scenarios that are named anew; without a name, every one."""
    for name in list(os.environ):
        if name not in PASSED:
            del os.environ[name]
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, scenario in SCENARIOS.items():
        if name in sys.argv[1:] or not sys.argv[1:]:
            asyncio.run(_record(name, scenario))


if __name__ == "__main__":
    main()
