"""The demo agent as an agent kind, and its driver.

The agent is a process of its own that does what its prompt says (`demo_agent.HELP`): it needs no key and no network, and is
no AI. It is driven like any other, so what holds for it in tests holds for the product.
"""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import orjson

from workspace_runtime import __version__
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.processes import Child, agent_environment, finish, spawn

from .base import (
    AgentEvent,
    AgentInfo,
    AgentMode,
    AgentModel,
    AgentStartError,
    Capabilities,
    Driver,
    DriverSpec,
    JsonObject,
    PermissionAnswer,
    PromptPart,
)
from .demo_events import agent_event, answer_message, prompt_message

# imported, not run as a script, so that its bytecode is cached
_BOOT = "import sys; sys.path.append(sys.argv.pop(1)); import demo_agent; demo_agent.main()"
_HERE = os.path.dirname(os.path.abspath(__file__))
# As `demo_agent` names one.
_CONVERSATION = re.compile(r"[0-9a-f]{32}")
START_TIMEOUT_S = 20.0
# It ends at once at the end of its input; its tools may need a moment more.
CLOSE_GRACE_S = 0.5

MODES = (
    AgentMode("ask", "Ask", "Asks before it writes a file or runs a command."),
    AgentMode("auto", "Auto", "Writes files and runs commands without asking.", dangerous=True),
)
MODELS = (
    AgentModel("demo-fast", "Fast", context_window=100_000, default=True),
    AgentModel("demo-slow", "Slow: some twelve words a second", context_window=100_000),
)


class DemoAgent:
    """The agent kind `demo`. Conversations are kept in the folder `demo` of `runtime_dir`."""

    def __init__(self, runtime_dir: Path) -> None:
        self._folder = runtime_dir / "demo"

    @property
    def id(self) -> str:
        """The name in the API."""
        return "demo"

    async def info(self) -> AgentInfo:
        """What it is; always there."""
        return AgentInfo(
            id=self.id,
            name="Demo (no AI)",
            installed=True,
            version=__version__,
            signed_in=True,
            sign_in="Nothing to do: it needs no key and no network. Say `help` to it.",
            capabilities=Capabilities(
                steer=True,
                fork=True,
                resume=True,
                images=True,
                thinking=True,
                plan=True,
                questions=True,
                permissions=True,
                updated_input=True,
                set_model=True,
                set_permission_mode=True,
            ),
            modes=MODES,
            models=MODELS,
        )

    def check(self, *, model: str | None, effort: str | None, permission_mode: str | None) -> None:
        """Raises `WorkspaceError` with `model_not_found`, `effort_not_found` or `mode_not_found`."""
        if model is not None and model not in {known.id for known in MODELS}:
            raise WorkspaceError("model_not_found", f"The demo agent has no model {model!r}.")
        if effort is not None:
            raise WorkspaceError("effort_not_found", "The demo agent's models have no efforts.")
        if permission_mode is not None and permission_mode not in {known.id for known in MODES}:
            raise WorkspaceError("mode_not_found", f"The demo agent has no mode {permission_mode!r}.")

    def conversation(self, native_session_id: str) -> str:
        """See `base.Agent`."""
        return native_session_id

    def driver(self, spec: DriverSpec) -> Driver:
        """A driver for one session."""
        return DemoDriver(spec, self._folder)

    async def forget(self, native_session_id: str) -> None:
        """Remove the conversation's file."""
        if _CONVERSATION.fullmatch(native_session_id):
            with contextlib.suppress(OSError):
                await asyncio.to_thread(os.unlink, self._folder / f"{native_session_id}.jsonl")


class DemoDriver:
    """See `base.Driver`."""

    def __init__(self, spec: DriverSpec, folder: Path) -> None:
        self._spec = spec
        self._folder = folder
        self._child: Child | None = None
        self._starting: asyncio.Task[None] | None = None
        self._early: list[JsonObject] = []
        self._closed = False

    async def start(self) -> None:
        """Start the agent. Raises `AgentStartError`, also when the driver is closed meanwhile."""
        if self._closed:
            raise AgentStartError("agent_died", "The session was closed.")
        self._starting = asyncio.create_task(self._start())
        try:
            await self._starting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise AgentStartError("agent_died", "The session was closed while its agent started.") from None
            raise

    async def _start(self) -> None:
        environ = agent_environment(os.environ, self._spec.env)
        command = [sys.executable, "-I", "-S", "-c", _BOOT, _HERE]
        try:
            self._child = await spawn(command, cwd=self._spec.cwd, env=environ)
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._send(self._start_message())
                lines = await self._child.read_lines()
        except (OSError, TimeoutError) as fault:
            raise AgentStartError("agent_error", f"The demo agent can't be started: {fault}") from None
        self._early = [orjson.loads(line) for line in lines]
        if not self._early:
            tail = self._child.stderr_tail.strip()
            raise AgentStartError("agent_died", f"The demo agent ended while it started. {tail}".strip())
        if self._early[0]["type"] == "refused":
            raise AgentStartError(self._early[0]["code"], self._early[0]["message"])

    def _start_message(self) -> JsonObject:
        spec = self._spec
        return {
            "type": "start",
            "folder": str(self._folder),
            "resume": spec.native_session_id,
            "fork": spec.fork,
            "model": spec.model,
            "mode": spec.permission_mode,
            "root": str(spec.root),
            "rules": list(spec.session_rules),
        }

    async def events(self) -> AsyncIterator[AgentEvent]:
        """See `base.Driver`. A line that was cut by the agent's death is dropped."""
        messages, self._early = self._early, []
        for message in messages:
            if (event := agent_event(message)) is not None:
                yield event
        while self._child is not None and (lines := await self._child.read_lines()):
            for line in lines:
                try:
                    message = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if (event := agent_event(message)) is not None:
                    yield event

    async def prompt(self, parts: Sequence[PromptPart]) -> None:
        """See `base.Driver`."""
        await self._send(prompt_message(parts))

    async def steer(self, prompt: str, parts: Sequence[PromptPart]) -> None:
        """Add lines to the running script; they are taken in between two of its lines."""
        await self._send(prompt_message(parts, prompt))

    async def interrupt(self) -> None:
        """See `base.Driver`."""
        await self._send({"type": "interrupt"})

    async def answer(self, request: str, answer: PermissionAnswer) -> None:
        """See `base.Driver`."""
        await self._send(answer_message(request, answer))

    async def configure(self, *, model: str | None, effort: str | None, permission_mode: str | None) -> None:
        """Change the pace (`model`) or what is asked for. Raises `WorkspaceError` for what the agent does not know."""
        DemoAgent(self._folder).check(model=model, effort=effort, permission_mode=permission_mode)
        await self._send({"type": "configure", "model": model, "mode": permission_mode})

    async def close(self, *, at_once: bool = False) -> None:
        """See `base.Driver`."""
        self._closed = True
        await finish(self._close(0 if at_once else CLOSE_GRACE_S))

    async def _close(self, grace_s: float) -> None:
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._child is not None:
            await self._child.end(grace_s)

    @property
    def exit_status(self) -> int | None:
        """See `base.Driver`."""
        return self._child.returncode if self._child is not None else None

    async def _send(self, message: JsonObject) -> None:
        # an agent that is gone is told by the end of its events
        if self._child is not None:
            with contextlib.suppress(BrokenPipeError):
                await self._child.write(orjson.dumps(message) + b"\n")
