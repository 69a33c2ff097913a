"""What the conformance suite needs of an agent: a bench with the agent on it, and prompts that make it do things.

To put another agent under the suite, make a `DriverCase` and add it to `conformance/cases.py`. Its `prompt` turns the steps
below into whatever makes that agent take them, for instance a script for a model server.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workspace_runtime.sessions.drivers.base import Agent, Driver, DriverSpec


@dataclass(frozen=True, slots=True)
class Say:
    """Answer with this text, streamed."""

    text: str


@dataclass(frozen=True, slots=True)
class Think:
    """Think this, streamed."""

    text: str


@dataclass(frozen=True, slots=True)
class Run:
    """Run a shell command by the agent's tool, whose input holds it as `command`; asks for a permission first."""

    command: str


@dataclass(frozen=True, slots=True)
class Choose:
    """Ask a question with these labels to choose one from."""

    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Propose:
    """Present a plan to be accepted."""

    text: str


@dataclass(frozen=True, slots=True)
class Ramble:
    """Stream a text that does not end within the test."""


@dataclass(frozen=True, slots=True)
class Remark:
    """Do nothing: words to be remembered by `Recall`."""

    text: str


@dataclass(frozen=True, slots=True)
class Recall:
    """Tell, in a text, what earlier prompts of the conversation said."""


@dataclass(frozen=True, slots=True)
class Flood:
    """Say as much as possible, for as long as the test lasts."""


Step = Say | Think | Run | Choose | Propose | Ramble | Remark | Recall | Flood


@dataclass(frozen=True, slots=True)
class Bench:
    """An agent ready to be tried. `env` is what it needs; `asking` and `free` are modes that ask for `Run`, and that don't;
    `Propose` is made in the mode `planning`."""

    agent: Agent
    workspace: Path
    prompt: Callable[..., str]
    env: Mapping[str, str] = field(default_factory=dict)
    asking: str = "default"
    free: str = "bypass"
    planning: str = "plan"

    def driver(self, **changes: Any) -> Driver:
        """A driver, in the asking mode unless said otherwise; `env` comes on top of the bench's."""
        changes["env"] = {**self.env, **changes.get("env", {})}
        spec: dict[str, Any] = {
            "session_id": "ses_1",
            "root": self.workspace,
            "cwd": self.workspace,
            "permission_mode": self.asking,
        }
        return self.agent.driver(DriverSpec(**(spec | changes)))


@dataclass(frozen=True, slots=True)
class DriverCase:
    """One agent under the suite. `open` sets its bench up in a folder of the test's own. `without` names steps it can't take."""

    name: str
    open: Callable[[Path], AbstractAsyncContextManager[Bench]]
    without: frozenset[type] = frozenset()
