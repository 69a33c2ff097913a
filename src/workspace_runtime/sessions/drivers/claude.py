"""The kind of agent `claude`: Claude Code, through `claude-agent-sdk`.

Importing this imports nothing of the SDK, which may be missing and takes half a second; `preload` does that ahead, in a thread.
"""

import asyncio
import contextlib
import importlib
import os
import uuid
from pathlib import Path

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.queries import invalid

from . import claude_install
from .base import AgentInfo, DriverSpec, JsonObject
from .claude_driver import SETTINGS_PREFIX, ClaudeDriver

__all__ = ["ClaudeAgent", "ClaudeDriver", "preload"]


def preload() -> None:
    """Import the SDK, if it is installed. Takes about half a second: call it in a thread."""
    with contextlib.suppress(ImportError):
        importlib.import_module("claude_agent_sdk")


class ClaudeAgent:
    """The kind of agent `claude`. `runtime_dir` is a folder of ours for the wrapper that starts the CLI."""

    id = "claude"

    def __init__(self, runtime_dir: Path) -> None:
        self._runtime_dir = runtime_dir
        for left in runtime_dir.glob(f"{SETTINGS_PREFIX}*.json"):  # of a server that was killed
            left.unlink(missing_ok=True)
        self._models = claude_install.MODELS

    async def info(self) -> AgentInfo:
        """What is known now, from files and the environment alone."""
        return await asyncio.to_thread(self._info)

    def _info(self) -> AgentInfo:
        folder = claude_install.sdk_folder()
        program = claude_install.executable(folder) if folder is not None else None
        return AgentInfo(
            id=self.id,
            name="Claude Code",
            installed=program is not None,
            version=claude_install.version(folder) if folder is not None else None,
            signed_in=claude_install.signed_in(os.environ) if program is not None else None,
            sign_in=claude_install.sign_in(program) if program is not None else claude_install.get_it(),
            capabilities=claude_install.CAPABILITIES,
            modes=claude_install.MODES,
            models=self._models,
        )

    def check(self, *, model: str | None, effort: str | None, permission_mode: str | None) -> None:
        """Refuse what the CLI can't know. Whether the account has a model, only a turn can tell."""
        if permission_mode is not None and permission_mode not in {mode.id for mode in claude_install.MODES}:
            known = ", ".join(mode.id for mode in claude_install.MODES)
            raise WorkspaceError("mode_not_found", f"Claude Code has no mode {permission_mode!r}; it has {known}.")
        if effort is not None and effort not in claude_install.EFFORTS:
            known = ", ".join(claude_install.EFFORTS)
            raise WorkspaceError("effort_not_found", f"Claude Code has no effort {effort!r}; it has {known}.")
        if model is not None and not claude_install.known_model(model, self._models):
            known = ", ".join(known.id for known in self._models)
            detail = f"Claude Code knows no model {model!r}; use {known}, or a full name such as claude-sonnet-5."
            raise WorkspaceError("model_not_found", detail)

    def conversation(self, native_session_id: str) -> str:
        """A UUID in lower case. Anything else the CLI would take for a title to look for, and might go on with another one."""
        try:
            return str(uuid.UUID(native_session_id))
        except ValueError:
            detail = "must be the UUID that Claude Code gave the conversation"
            raise invalid("resume.native_session_id", detail) from None

    def driver(self, spec: DriverSpec) -> "ClaudeDriver":
        """A driver for one session; starts nothing yet."""
        return ClaudeDriver(spec, self._runtime_dir, self._learn)

    async def forget(self, native_session_id: str) -> None:
        """Nothing to do: Claude Code keeps its conversations in the user's own home, where its own commands find them."""

    def _learn(self, told: JsonObject) -> None:
        """A CLI that started told which models this account has."""
        self._models = claude_install.models(told) or self._models
