"""What is known of Claude Code without running it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.sessions.drivers import claude_install
from workspace_runtime.sessions.drivers.base import DriverSpec, FileText, ImagePart, PromptPart, TextPart
from workspace_runtime.sessions.drivers.claude import ClaudeAgent
from workspace_runtime.sessions.drivers.claude_prompts import prompt_content

pytestmark = pytest.mark.anyio


@pytest.fixture
def agent(tmp_path: Path) -> ClaudeAgent:
    return ClaudeAgent(tmp_path)


async def test_info(agent: ClaudeAgent) -> None:
    info = await agent.info()
    assert (info.id, info.installed) == ("claude", True)
    assert info.version and info.version.count(".") == 2
    assert [mode.id for mode in info.modes if mode.dangerous] == ["auto", "bypassPermissions"]
    assert [model.id for model in info.models if model.default] == ["default"]


async def test_info_without_the_sdk(agent: ClaudeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claude_install, "sdk_folder", lambda: None)
    info = await agent.info()
    assert not info.installed and info.version is None and "pip install claude-agent-sdk" in info.sign_in
    driver = agent.driver(DriverSpec("s", Path(), Path(), {}))
    with pytest.raises(Exception, match="not installed"):
        await driver.start()
    await driver.close()


def test_the_modes_are_those_of_the_sdk() -> None:
    from typing import get_args

    from claude_agent_sdk.types import EffortLevel, PermissionMode

    assert {mode.id for mode in claude_install.MODES} == set(get_args(PermissionMode))
    assert set(claude_install.EFFORTS) == set(get_args(EffortLevel))


@pytest.mark.parametrize(
    ("choice", "code"),
    [
        ({"permission_mode": "plan", "effort": "max", "model": "opus"}, None),
        ({"model": "opus[1m]"}, None),
        ({"model": "opusplan"}, None),
        ({"model": "claude-sonnet-5-20260101"}, None),
        ({"model": "us.anthropic.claude-opus-5-v1:0"}, None),
        ({"model": "claude-opus-5@20260101"}, None),
        ({"model": "anthropic/claude-opus-5"}, None),
        ({"model": "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-x"}, None),
        ({"model": "gpt-5"}, "model_not_found"),
        ({"model": ""}, "model_not_found"),
        ({"model": "--help"}, "model_not_found"),
        ({"permission_mode": "yolo"}, "mode_not_found"),
        ({"effort": "huge"}, "effort_not_found"),
    ],
)
def test_check(agent: ClaudeAgent, choice: dict[str, str], code: str | None) -> None:
    all_of = {"model": None, "effort": None, "permission_mode": None} | choice
    if code is None:
        agent.check(**all_of)
        return
    with pytest.raises(WorkspaceError) as caught:
        agent.check(**all_of)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("env", "files", "known"),
    [
        ({}, {}, False),
        ({"ANTHROPIC_API_KEY": "k"}, {}, True),
        ({"ANTHROPIC_API_KEY": ""}, {}, False),
        ({"CLAUDE_CODE_USE_BEDROCK": "1"}, {}, None),
        ({"CLAUDE_CODE_USE_BEDROCK": "0"}, {}, False),
        ({}, {".claude/.credentials.json": {}}, True),
        ({}, {".claude.json": {"oauthAccount": {"emailAddress": "x"}}}, True),
        ({}, {".claude/settings.json": {"apiKeyHelper": "x"}}, None),
        ({}, {".claude/settings.json": {"env": {"ANTHROPIC_API_KEY": "x"}}}, None),
        ({}, {".claude/settings.json": {"env": "odd"}, ".claude.json": []}, False),
    ],
)
def test_signed_in(tmp_path: Path, env: dict[str, str], files: dict[str, Any], known: bool | None) -> None:
    (tmp_path / ".claude").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert claude_install.signed_in({"HOME": str(tmp_path), **env}) is known


def test_signed_in_by_the_configured_folder(tmp_path: Path) -> None:
    (tmp_path / ".claude.json").write_text(json.dumps({"oauthAccount": {"emailAddress": "x"}}))
    assert claude_install.signed_in({"HOME": "/nowhere", "CLAUDE_CONFIG_DIR": str(tmp_path)}) is True


def test_models_that_a_cli_tells() -> None:
    told = {"models": [{"value": "default", "displayName": "D", "supportedEffortLevels": ["low", "odd"]}, {"x": 1}, 3]}
    (model,) = claude_install.models(told)
    assert (model.id, model.label, model.efforts, model.default) == ("default", "D", ("low",), True)
    assert claude_install.models({}) == ()


def test_prompts() -> None:
    assert prompt_content([TextPart("/compact")]) == "/compact"
    parts: list[PromptPart] = [TextPart("see"), FileText("sub/a.py", "x = 1", 3, 5), FileText('q "x".md', "y", 1)]
    assert prompt_content(parts) == (
        'see\n<file path="sub/a.py" lines="3-5">\nx = 1\n</file>\n<file path=\'q "x".md\' lines="1-1">\ny\n</file>'
    )
    content = prompt_content([TextPart("look"), ImagePart("image/png", "AA==")])
    assert isinstance(content, list)
    assert content[1]["source"] == {"type": "base64", "media_type": "image/png", "data": "AA=="}


def test_importing_the_driver_does_not_import_the_sdk() -> None:
    code = "import sys, workspace_runtime.sessions.drivers.claude; sys.exit('claude_agent_sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("sandbox", "may"), [("1", True), ("yes", False), ("true", False), ("", False)])
def test_root_may_bypass_in_a_sandbox_alone(monkeypatch: pytest.MonkeyPatch, sandbox: str, may: bool) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert claude_install.may_bypass({"IS_SANDBOX": sandbox}) is may
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert claude_install.may_bypass({"IS_SANDBOX": sandbox})
