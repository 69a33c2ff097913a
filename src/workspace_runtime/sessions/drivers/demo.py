"""The driver of the demo agent, which is built in: for trying everything, and for testing clients, without a key."""

import dataclasses
import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from workspace_runtime import __version__
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.processes import Child, spawn

from . import demo_agent
from .base import (
    AgentEvent,
    AgentInfo,
    AgentMode,
    AgentModel,
    AgentStartError,
    Capabilities,
    DriverSpec,
    FilePart,
    ImagePart,
    PermissionAnswer,
    PromptPart,
)
from .demo_events import map_line

logger = logging.getLogger(__name__)

MODES = (
    AgentMode("ask", "Ask", "Asks before it writes a file or runs a command."),
    AgentMode("auto", "Auto", "Writes and runs without asking.", dangerous=True),
)
MODEL = AgentModel("script", "Script player (no AI)", default=True)


class DemoAgent:
    """The kind. `folder` is where its conversations are kept."""

    id = "demo"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def info(self) -> AgentInfo:
        """Always installed, never needs a sign-in."""
        return AgentInfo(
            id=self.id,
            name="Demo agent (no AI)",
            installed=True,
            version=__version__,
            signed_in=True,
            sign_in="Needs no sign-in: it plays a script. Its prompt `help` tells the words.",
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
                set_permission_mode=True,
            ),
            modes=MODES,
            models=(MODEL,),
        )

    def check(self, *, model: str | None, effort: str | None, permission_mode: str | None) -> None:
        """Refuse what the demo agent does not have."""
        if model not in (None, MODEL.id):
            raise WorkspaceError("model_not_found", f"The demo agent has the model {MODEL.id!r} alone.")
        if effort is not None:
            raise WorkspaceError("effort_not_found", "The demo agent knows no effort.")
        if permission_mode is not None and permission_mode not in {mode.id for mode in MODES}:
            raise WorkspaceError("mode_not_found", "The demo agent has the modes ask and auto.")

    def driver(self, spec: DriverSpec) -> "DemoDriver":
        """A driver for one session."""
        return DemoDriver(spec, self._folder)


class DemoDriver:
    """One demo agent's process."""

    def __init__(self, spec: DriverSpec, folder: Path) -> None:
        self._spec = spec
        self._folder = folder
        self._child: Child | None = None
        self._closed = False

    async def start(self) -> None:
        """Start the process. See `base.Driver`."""
        if self._closed:
            raise AgentStartError("agent_died", "The driver was closed.")
        command = self._command()
        try:
            self._child = await spawn(command, cwd=self._spec.cwd, env={**os.environ, **self._spec.env})
        except OSError as fault:
            raise AgentStartError("agent_error", f"The demo agent can't be started ({fault.strerror}).") from None

    def _command(self) -> list[str]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        env = {**os.environ, **self._spec.env}
        config = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".config")
        given = {
            "folder": str(self._folder),
            "conversation": self._spec.native_session_id,
            "fork": self._spec.fork,
            "mode": self._spec.permission_mode,
            "session_rules": list(self._spec.session_rules),
            "rules": os.path.join(config, "workspace-runtime-demo", "rules.json"),
        }
        return [sys.executable, "-I", os.path.abspath(demo_agent.__file__), orjson.dumps(given).decode()]

    async def events(self) -> AsyncIterator[AgentEvent]:
        """What the agent says. See `base.Driver`."""
        if self._child is None:
            return
        while lines := await self._child.read_lines():
            for line in lines:
                yield map_line(orjson.loads(line))
        if not self._closed:
            logger.warning(
                "the demo agent of %s ended by itself: %s", self._spec.session_id, self._child.stderr_tail[-2000:]
            )

    async def prompt(self, parts: Sequence[PromptPart]) -> None:
        """Begin a turn."""
        await self._order("prompt", parts=[_part(part) for part in parts])

    async def steer(self, parts: Sequence[PromptPart]) -> None:
        """Add lines to the running script."""
        await self._order("steer", parts=[_part(part) for part in parts])

    async def interrupt(self) -> None:
        """Stop the running turn."""
        await self._order("interrupt")

    async def answer(self, request: str, answer: PermissionAnswer) -> None:
        """Answer a permission or a question."""
        await self._order("answer", request=request, **dataclasses.asdict(answer))

    async def configure(self, *, model: str | None, effort: str | None, permission_mode: str | None) -> None:
        """Change the permission mode."""
        if permission_mode is not None:
            await self._order("configure", permission_mode=permission_mode)

    async def close(self) -> None:
        """End the process and all that it started."""
        self._closed = True
        if self._child is not None:
            await self._child.end(grace_s=0)

    async def _order(self, op: str, **fields: Any) -> None:
        if self._child is None:
            raise BrokenPipeError("not started")
        await self._child.write(orjson.dumps({"op": op, **fields}) + b"\n")


def _part(part: PromptPart) -> dict[str, Any]:
    kind = "image" if isinstance(part, ImagePart) else "file" if isinstance(part, FilePart) else "text"
    return {"type": kind, **dataclasses.asdict(part)}
