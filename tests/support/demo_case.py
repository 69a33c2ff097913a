"""The demo agent on the bench of the conformance suite."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

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
    Step,
    Think,
)
from workspace_runtime.sessions.drivers.demo import DemoAgent


def script(*steps: Step) -> str:
    """The steps in the demo agent's language."""
    return "\n".join(map(_line, steps))


def _line(step: Step) -> str:
    match step:
        case Say(text):
            return f"say {text}"
        case Think(text):
            return f"think {text}"
        case Run(command):
            return f"run {command}"
        case Choose(text, labels):
            return " | ".join((f"question {text}", *labels))
        case Propose(text):
            return f"propose {text}"
        case Ramble():
            return "pace 20\nrepeat 1000 say " + "and so on " * 20
        case Remark(text):
            return f"# {text}"
        case Recall():
            return "recall"
        case Flood():
            return "flood 100000000 200"


@asynccontextmanager
async def _bench(folder: Path) -> AsyncIterator[Bench]:
    workspace, home = folder / "workspace", folder / "home"
    for made in (workspace, home):
        made.mkdir()
    env = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "DEMO_WORD_DELAY_S": "0.001"}
    yield Bench(DemoAgent(folder / "runtime"), workspace, script, env, asking="ask", free="auto", planning="ask")


DEMO = DriverCase("demo", _bench)
