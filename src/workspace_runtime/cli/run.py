"""`workspace-runtime run`: finds or starts the server, and runs one turn on it."""

import asyncio
import re
import sys
from pathlib import Path

from ..config import Config
from ..errors import ConfigError
from .client import Client
from .finding import server_of, token_of
from .text import printable
from .turn import INTERRUPTED, Turn, folder_below


def run_turn(config: Config, prompt: str, *, agent: str, folder: Path, as_json: bool, url: str | None) -> int:
    """Run one turn in `folder` and show it; returns 0 when it ended well, 1 when it failed, 130 when it was interrupted.

    `url` names the server, which chooses the folder then; without it, it is the workspace's own, or a temporary one. Raises
    `ConfigError`.
    """
    if not prompt.strip():
        raise ConfigError("The prompt is empty. Say what the agent shall do, or pipe it in with -.")
    try:
        f"{prompt}{agent}".encode()
    except UnicodeEncodeError:
        raise ConfigError("The prompt is not UTF-8. Convert it first, for example with iconv.") from None
    if url is not None:
        if not re.fullmatch(r"https?://[^/?#\s]+(/[^?#\s]*)?", url):
            raise ConfigError(f"--url is {printable(url)!r}, but it must be an address such as http://localhost:3002.")
        return _run(Client(url, config.token), agent, prompt, "", as_json)
    with server_of(config) as server:
        try:
            cwd = folder_below(server.root, str(folder))
        except ValueError:
            raise ConfigError(
                f"The server of the state {config.state} serves {server.root}, and {folder} is not in it. "
                "Name the state of that workspace, or leave --state-path out."
            ) from None
        return _run(Client(server.url, token_of(server) or config.token), agent, prompt, cwd, as_json)


def _run(client: Client, agent: str, prompt: str, cwd: str, as_json: bool) -> int:
    try:
        return asyncio.run(Turn(client, as_json, sys.stdout).run(agent, prompt, cwd))
    except asyncio.CancelledError:  # the second Ctrl-C
        return INTERRUPTED
