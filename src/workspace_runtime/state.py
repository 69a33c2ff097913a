"""The state folder: ours alone, private, and used by one server at a time."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .config import Config
from .errors import ConfigError


class StateFolder:
    """The folder of one workspace's state. `runtime` within it holds what only lives as long as the server,
    `demo` the demo agent's conversations."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runtime = path / "run"
        self.demo = path / "demo"

    @contextlib.contextmanager
    def locked(self, config: Config) -> Iterator[None]:
        """Make the folder (0700), and hold its lock.

        Raises `ConfigError` when it can't be made or written, belongs to somebody else, or another server uses it.
        """
        try:
            self._make()
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as fault:
            raise ConfigError(
                f"The state folder {self.path} can't be written ({fault.strerror}). "
                "Make it writable, or name another with --state-path."
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            other = self.server()
            where = f" at {other['url']} (process {other['pid']})" if other else ""
            raise ConfigError(
                f"Another server{where} already uses the state of {config.root}. "
                "Use that one, stop it first, or name another folder with --state-path."
            ) from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self.path / "server.json")
            os.close(descriptor)

    def _make(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.path.stat().st_uid != os.geteuid():
            raise PermissionError(1, "it belongs to another user")
        os.chmod(self.path, 0o700)
        for folder in (self.runtime, self.demo):
            folder.mkdir(mode=0o700, exist_ok=True)
            os.chmod(folder, 0o700)

    def announce(self, url: str) -> None:
        """Tell other processes of this user where the server is."""
        body = json.dumps({"url": url, "pid": os.getpid()})
        temporary = self.path / "server.json.new"
        temporary.touch(mode=0o600)
        temporary.write_text(body)
        os.replace(temporary, self.path / "server.json")

    def server(self) -> dict[str, Any] | None:
        """Where the server of this state is (`url`, `pid`), as it announced it; None when it did not."""
        try:
            told = json.loads((self.path / "server.json").read_bytes())
        except (OSError, ValueError):
            return None
        return told if isinstance(told, dict) and {"url", "pid"} <= told.keys() else None

    def in_use(self) -> bool:
        """Whether a server holds the lock now."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            return False
        finally:
            os.close(descriptor)
