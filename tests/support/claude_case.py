"""Claude Code on the bench of the conformance suite: the real CLI, its model scripted on loopback."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest import mock

from support import model_script
from support.claude_home import NOWHERE, ClaudeHome
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
from support.model_server import ModelServer
from workspace_runtime.sessions.drivers.claude import ClaudeAgent


def script(*steps: Step) -> str:
    """The steps as answers of the model: a tool ends an answer, since its result begins the next request."""
    answers: list[list[model_script.Item]] = [[]]
    remarks = []
    for step in steps:
        if isinstance(step, Remark):
            remarks.append(step.text)
            continue
        item = _item(step)
        answers[-1].append(item)
        if "tool" in item:
            answers.append([])
    return model_script.script(*[answer for answer in answers if answer], say=" ".join(remarks) or "Go on.")


def _item(step: Step) -> model_script.Item:
    match step:
        case Say(text):
            return model_script.text(text, chunks=3)
        case Think(text):
            return model_script.think(text, chunks=3)
        case Run(command):
            return model_script.tool("Bash", command=command, description="Run it")
        case Choose(text, labels):
            options = [{"label": label, "description": label} for label in labels]
            question = {"question": text, "header": "Choose", "multiSelect": False, "options": options}
            return model_script.tool("AskUserQuestion", questions=[question])
        case Propose(text):
            return model_script.tool("ExitPlanMode", plan=text)
        case Ramble():
            return model_script.text("and so on ", repeat=2000, chunks=2000, delay_ms=20)
        case Recall():
            return model_script.recall()
    raise AssertionError(f"no answer of a model does {step}")


@asynccontextmanager
async def _bench(folder: Path) -> AsyncIterator[Bench]:
    async with ModelServer() as model:
        home = ClaudeHome.make(folder, model.url)
        # what the machine has of its own must not show through: the driver lays `env` over the environment
        names = [name for name in os.environ if name.startswith(("ANTHROPIC_", "CLAUDE_"))]
        with mock.patch.dict(os.environ, {"HTTPS_PROXY": NOWHERE}):
            for name in names:
                del os.environ[name]
            yield Bench(
                ClaudeAgent(folder / "runtime"),
                home.workspace,
                script,
                home.env(),
                asking="default",
                free="bypassPermissions",
            )


CLAUDE = DriverCase("claude", _bench, without=frozenset({Flood}))
