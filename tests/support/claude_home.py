"""A home for Claude Code in tests: its own settings, a fake key, and no way past loopback.

The real CLI is run; nothing of the machine's own settings reaches it, and it reaches nothing but the scripted model.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Names of the machine's environment that an agent under test may see.
PASSED = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
# An address on loopback where nothing listens: the end of every way that is not the scripted model's.
NOWHERE = "http://127.0.0.1:9"


@dataclass(frozen=True, slots=True)
class ClaudeHome:
    """The home folder and the workspace of one test. `make` makes both."""

    home: Path
    workspace: Path
    model_url: str

    @classmethod
    def make(cls, folder: Path, model_url: str, *, trusted: bool = True) -> "ClaudeHome":
        """Make a home and a workspace below `folder`. `trusted`: the workspace's own allow rules count."""
        made = cls(folder / "home", folder / "workspace", model_url)
        made.config.mkdir(parents=True)
        made.workspace.mkdir()
        made.trust(made.workspace, trusted)
        return made

    @property
    def config(self) -> Path:
        """Claude Code's configuration folder."""
        return self.home / ".claude"

    @property
    def local_settings(self) -> Path:
        """The workspace's local settings, where the CLI keeps rules that were allowed for always."""
        return self.workspace / ".claude" / "settings.local.json"

    def trust(self, folder: Path, trusted: bool = True) -> None:
        """Say, as the trust dialog would, whether the folder is trusted."""
        path = self.config / ".claude.json"
        known: dict[str, Any] = {"hasCompletedOnboarding": True, "projects": {}}
        if path.exists():
            known = json.loads(path.read_text())
        known["projects"].setdefault(str(folder), {})["hasTrustDialogAccepted"] = trusted
        path.write_text(json.dumps(known))

    def env(self, **more: str) -> dict[str, str]:
        """What Claude Code needs in its environment, over whatever it inherits."""
        return {
            "HOME": str(self.home),
            "CLAUDE_CONFIG_DIR": str(self.config),
            "ANTHROPIC_BASE_URL": self.model_url,
            "ANTHROPIC_API_KEY": "sk-ant-api03-fake",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "CLAUDE_CODE_MAX_RETRIES": "1",
            "HTTP_PROXY": NOWHERE,
            "HTTPS_PROXY": NOWHERE,
            "NO_PROXY": "127.0.0.1,localhost",
            **({"IS_SANDBOX": "1"} if os.geteuid() == 0 else {}),
            **more,
        }

    def clean(self, environ: Mapping[str, str]) -> dict[str, str]:
        """An environment for a server under test: of the machine's only what is needed to run, and `env`."""
        return {name: environ[name] for name in PASSED if name in environ} | self.env()


def isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take everything out of this process's environment that an agent started from it must not see."""
    for name in list(os.environ):
        if name not in PASSED and not name.startswith(("PYTEST_", "COV_")):
            monkeypatch.delenv(name)
