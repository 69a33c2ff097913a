"""The commands that are printed for a person to copy. Each runs as it is printed, in bash and zsh, from any folder."""

import os
import shlex
import sys
import sysconfig

from .. import __version__
from ..config import Config, default_state_path
from ..state import StateFolder
from .text import printable, shell_word


def program() -> str:
    """This program as a command: its script beside this Python, else the module."""
    for folder in (os.path.dirname(sys.executable), sysconfig.get_path("scripts")):
        script = os.path.join(folder, "workspace-runtime")
        if os.access(script, os.X_OK):
            return shell_word(script)
    return f"{shell_word(sys.executable)} -m workspace_runtime"


def command(name: str, config: Config) -> str:
    """A command of this program for this workspace, so that it finds it wherever it is typed."""
    place = "" if name == "token" else shell_word(str(config.root))
    words = [program(), name, *(["--workspace"] if name == "run" else []), *([place] if place else [])]
    if place and config.state != default_state_path(config.root):
        words += ["--state-path", shell_word(str(config.state))]
    return " ".join(words)


def welcome(config: Config, url: str) -> str:
    """What `serve` says once it serves: where it is, and how to try it."""
    server = StateFolder(config.state).server()
    token = (
        f' -H "Authorization: Bearer $(cat {shell_word(server.token_file)})"' if server and server.token_file else ""
    )
    curl, sessions = f"curl -s{token}", f"{url}/api/v1/agent-sessions"
    prompt = shlex.quote('{"agent": "demo", "prompt": "say Hello"}')
    run = command("run", config)
    return f"""
Workspace Runtime {__version__} serves {printable(str(config.root))}
at {url}  (API pages: {url}/docs){_others(config)}

Try it in another terminal, with the built-in demo agent (no key, no network, no AI):

  {run} --agent demo "say Hello"

The same over HTTP: begin a session, and watch it (Ctrl-C ends that).

  session=$({curl} {sessions} -H 'Content-Type: application/json' -d {prompt} | cut -d '"' -f 4)
  {curl} -N "{sessions}/$session/events?events=all" -H 'Accept: text/event-stream'

With Claude:

  {run} "What is in this folder?"

What works here:

  {command("doctor", config)}

Ctrl-C stops the server and every agent; the sessions stay.
"""


def _others(config: Config) -> str:
    """How other machines reach it, where they can."""
    if config.loopback:
        return ""
    if config.host.strip("[]") in ("0.0.0.0", "::"):  # noqa: S104
        return "\non every address of this machine: others use its name in place of that address, and need the token"
    return "\nwhich other machines reach too, with the token"
