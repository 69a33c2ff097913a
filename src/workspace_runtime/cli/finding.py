"""The server that a command uses: the workspace's running one, else a temporary one that is started for it.

The temporary server is a process of its own, which all commands share that come while it runs. It ends when the last of them
has left, however they end; `serve` waits for that. So no command ends the turn of another.
"""

import contextlib
import dataclasses
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ..config import Config, default_state_path
from ..errors import ConfigError
from ..state import Announcement, StateFolder
from .text import printable

# How long a server may take to start, on a machine that has much else to do.
START_S = 60.0
_LOOK_S = 0.02
# So long the last client waits for the temporary server to end with it.
LEAVING_S = 15.0
# So many times in a row it sees that others use it, before it believes that it is not the last.
SURELY = 10
# imported by its place, and nothing by the current folder: that is the workspace's, which nobody may have looked at
_BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from workspace_runtime.__main__ import main; sys.exit(main())"


def served_above(config: Config) -> Config:
    """The settings for the workspace whose running server serves the current folder: this one, or the nearest above."""
    if config.state_path is not None:
        return config
    for folder in (config.root, *config.root.parents):
        if StateFolder(default_state_path(folder)).server() is not None:
            return dataclasses.replace(config, workspace_path=folder)
    return config


def token_of(server: Announcement) -> str | None:
    """The token of a server of this user, from the file that it named."""
    if server.token_file is None:
        return None
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(server.token_file).read_text("ascii").strip()
    return None


@contextlib.contextmanager
def server_of(config: Config) -> Iterator[Announcement]:
    """The workspace's running server, else a temporary one, which stays for as long as the context is open.

    On leaving, waits for a temporary one to end, unless others use it. Raises `ConfigError` when there is none and none can be
    started. Blocks.
    """
    state = StateFolder(config.state)
    state.make()
    with contextlib.ExitStack() as stack:
        with state.as_client():
            server = _found_or_started(config, state)
            process = _opened(server.keeper) if server.temporary else None
            if process is not None:
                stack.callback(os.close, process)
            yield server
        if process is not None:
            _await_end(state, process)


def _opened(pid: int) -> int | None:
    """A process as a file that can be read once it has ended; None where the kernel has no such thing, or it has ended."""
    with contextlib.suppress(AttributeError, OSError):
        return os.pidfd_open(pid)
    return None


def _found_or_started(config: Config, state: StateFolder) -> Announcement:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if (server := state.server()) is not None:
            return server
        if not state.in_use():
            with state.starting() as mine:
                if mine and not state.in_use():
                    _start(config, state, deadline)
        time.sleep(_LOOK_S)
    raise ConfigError(f"The server of {config.root} starts or ends, and takes too long. Try again later.")


def _start(config: Config, state: StateFolder, deadline: float) -> None:
    """Start the temporary server, and wait until it stands, or another has come first. Raises `ConfigError` when it fails."""
    arguments = [
        str(config.root), "--temporary", "--host", "127.0.0.1", "--port", "0", "--root-path", "",
        "--state-path", str(config.state), "--log-level", config.log_level,
    ]  # fmt: skip
    if config.token_file is not None:
        arguments += ["--token-file", str(config.token_file.absolute())]
    place = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    log = state.runtime / "temporary.log"
    with open(os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "rb") as said:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, place, "serve", *arguments],
            cwd=config.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # a Ctrl-C for the command is none for the server
        )
        while process.poll() is None and state.server() is None and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        if process.returncode is not None and not state.in_use():
            said.seek(0)
            words = said.read().decode(errors="replace").strip().splitlines() or [f"status {process.returncode}"]
            raise ConfigError(printable(words[-1].removeprefix("workspace-runtime: ")))


def _await_end(state: StateFolder, process: int) -> None:
    """Wait until the temporary server has ended with all its agents, unless it stays for other commands."""
    deadline = time.monotonic() + LEAVING_S
    others = 0
    while others < SURELY and time.monotonic() < deadline and not select.select([process], [], [], _LOOK_S)[0]:
        # who looks at the lock holds it for that moment: seen once, another may just be looking too
        others = others + 1 if state.has_clients() else 0
