"""What can be known of Claude Code without running it: whether it is there, its version, whether someone is signed in.

Reads files and the environment, imports nothing of the SDK (that takes half a second).
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .base import AgentMode, AgentModel, Capabilities, JsonObject

EFFORTS = ("low", "medium", "high", "xhigh", "max")

CAPABILITIES = Capabilities(
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
    system_prompt=True,
    max_turns=True,
)

MODES = (
    AgentMode("default", "Ask", "Asks before it edits files or runs commands that could change something."),
    AgentMode(
        "acceptEdits", "Accept edits", "Edits files in the workspace without asking; asks before other commands."
    ),
    AgentMode("plan", "Plan", "Explores and writes a plan; asks before it carries it out."),
    AgentMode("dontAsk", "Don't ask", "Denies whatever the rules in the settings do not allow."),
    AgentMode("auto", "Auto", "A model decides which calls are safe, without asking.", dangerous=True),
    AgentMode("bypassPermissions", "Bypass permissions", "Does everything without asking.", dangerous=True),
)

# Aliases of the CLI, until one that started tells of its own: which model each stands for is the CLI's to know.
MODELS: tuple[AgentModel, ...] = (
    AgentModel("default", "Default", efforts=EFFORTS, default=True),
    AgentModel("opus", "Opus", efforts=EFFORTS),
    AgentModel("fable", "Fable", efforts=EFFORTS),
    AgentModel("sonnet", "Sonnet", efforts=EFFORTS),
    AgentModel("haiku", "Haiku", efforts=EFFORTS),
)
# Aliases that the CLI takes and does not list.
_UNLISTED = frozenset({"opusplan", "best"})

# A full name: claude-…, with a provider's prefix, date or version (Bedrock, Vertex, a gateway), or an ARN of Bedrock.
_MODEL = re.compile(
    r"((claude|[a-z0-9.:/_-]+[./]claude|anthropic)[A-Za-z0-9.:/@_-]*|arn:aws[a-z-]*:bedrock:[\w:/.-]+)(\[1m\])?"
)

# What the CLI takes as a sign-in, in the environment.
_KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
_PROVIDERS = ("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY", "CLAUDE_CODE_USE_MANTLE")


def known_model(model: str, listed: Sequence[AgentModel] = MODELS) -> bool:
    """Whether the CLI could know a model of this name: an alias, or what looks like a full name."""
    alias = model.removesuffix("[1m]")
    return alias in _UNLISTED | {known.id for known in (*MODELS, *listed)} or _MODEL.fullmatch(model) is not None


def models(told: JsonObject) -> tuple[AgentModel, ...]:
    """The models in what a CLI tells of itself when it starts; none, where it tells of none."""
    found = told.get("models")
    return tuple(
        AgentModel(
            id=model["value"],
            label=str(model.get("displayName") or model["value"]),
            efforts=tuple(effort for effort in model.get("supportedEffortLevels") or () if effort in EFFORTS),
            default=model["value"] == "default",
        )
        for model in (found if isinstance(found, list) else [])
        if isinstance(model, dict) and isinstance(model.get("value"), str)
    )


def sdk_folder() -> Path | None:
    """Where the SDK is installed; None where it is not."""
    spec = importlib.util.find_spec("claude_agent_sdk")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def executable(folder: Path) -> Path | None:
    """The CLI: the one that came with the SDK, else the one on the PATH."""
    bundled = folder / "_bundled" / "claude"
    found = shutil.which("claude")
    return bundled if bundled.is_file() else Path(found) if found else None


def get_it() -> str:
    """How to install it, with a command that runs as it is."""
    return (
        f"Install it: `{shlex.quote(sys.executable)} -m pip install claude-agent-sdk` (what the extra [claude] brings)."
    )


def sign_in(program: Path) -> str:
    """How to sign in, with a command that runs as it is: the CLI that came with the SDK is on no PATH."""
    return f"Run `{shlex.quote(str(program))}` in a terminal and type /login, or set ANTHROPIC_API_KEY for the server."


def version(folder: Path) -> str | None:
    """The version of the CLI that came with the SDK."""
    for name in ("_bundled/claude.version", "_cli_version.py"):
        try:
            found = re.search(r"\d+\.\d+\.\d+[\w.-]*", (folder / name).read_text())
        except OSError:
            continue
        if found is not None:
            return found[0]
    return None


def config_folder(env: Mapping[str, str]) -> Path:
    """The folder of Claude Code's own configuration and conversations."""
    named = env.get("CLAUDE_CONFIG_DIR")
    return Path(named) if named else Path(env.get("HOME") or os.path.expanduser("~")) / ".claude"


def local_settings(cwd: Path) -> Path:
    """Where the CLI keeps the rules of this folder that are for this machine alone: at the top of the git repository, if any.

    Of a linked working tree that is the top of the main one.
    """
    top = next((folder for folder in (cwd, *cwd.parents) if (folder / ".git").exists()), cwd)
    return _main_tree(top) / ".claude" / "settings.local.json"


def _main_tree(top: Path) -> Path:
    """The main working tree of the one whose top this is (gitrepository-layout(5): `gitdir:` and `commondir`)."""
    try:
        told = (top / ".git").read_text().removeprefix("gitdir:").strip()
        folder = top / told
        common = (folder / (folder / "commondir").read_text().strip()).resolve()
    except (OSError, ValueError):  # the main one, a submodule, or no repository
        return top
    return common.parent if common.name == ".git" else top


def allowed(path: Path) -> frozenset[str]:
    """The allow rules in a settings file; none where it can't be read."""
    permissions = _object(path).get("permissions")
    rules = permissions.get("allow") if isinstance(permissions, dict) else None
    return frozenset(rule for rule in rules if isinstance(rule, str)) if isinstance(rules, list) else frozenset()


def start_hooks(env: Mapping[str, str], cwd: Path) -> list[str]:
    """The commands that the CLI runs before it stands, each with the file that names it. Reads files."""
    found = []
    for path in (config_folder(env) / "settings.json", cwd / ".claude" / "settings.json", local_settings(cwd)):
        hooks = _object(path).get("hooks")
        entries = hooks.get("SessionStart") if isinstance(hooks, dict) else None
        for entry in entries if isinstance(entries, list) else []:
            for hook in (entry.get("hooks") or []) if isinstance(entry, dict) else []:
                if isinstance(hook, dict) and hook.get("command"):
                    found.append(f"`{str(hook['command'])[:200]}` ({path})")
    return found


def signed_in(env: Mapping[str, str]) -> bool | None:
    """Whether someone is signed in; None where it can't be known (a cloud provider's credentials, a helper's key)."""
    if any(env.get(name) for name in _KEYS):
        return True
    if any(env.get(name, "").lower() in ("1", "true", "yes", "on") for name in _PROVIDERS):
        return None
    folder = config_folder(env)
    if (folder / ".credentials.json").is_file():
        return True
    beside = [folder / ".claude.json"] if env.get("CLAUDE_CONFIG_DIR") else [folder.parent / ".claude.json"]
    for path in [*beside, folder / "settings.json"]:
        known = _object(path)
        if known.get("oauthAccount") or known.get("primaryApiKey"):
            return True
        names = known.get("env")
        if known.get("apiKeyHelper") or (isinstance(names, dict) and any(map(names.get, (*_KEYS, *_PROVIDERS)))):
            return None
    return False


def may_bypass(env: Mapping[str, str]) -> bool:
    """Whether the CLI lets permissions be bypassed: as root only in a sandbox, which it takes from the word `1` alone."""
    return os.geteuid() != 0 or env.get("IS_SANDBOX") == "1"


def _object(path: Path) -> JsonObject:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
