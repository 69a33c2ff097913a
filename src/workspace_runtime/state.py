"""The state folder: ours alone, private, and used by one server at a time.

Three files in it are locks, which the kernel frees however their holder ends: `lock` is the server's; `clients` is shared by
the commands that use the server, so that a temporary one knows when the last has left; `starting` lets one of them start it.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .config import Config
from .errors import ConfigError

logger = logging.getLogger(__name__)
# A server that ends takes 10 s at most to end its agents: so long the next one waits for the state.
ENDING_S = 15.0
# A server that was just told to end may still look alive for so long.
_SURELY_S = 0.5
# For so long a lock may be held by somebody who only looks whether it is.
_LOOKED_AT_S = 2.0
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a server tells the other processes of its user. `keeper` is the process that ends last of it. `token_file` holds its
    token, where it has one. A `temporary` one was started by `run`, and ends with its last client."""

    url: str
    pid: int
    keeper: int
    root: str
    token_file: str | None = None
    temporary: bool = False


class StateFolder:
    """The folder of one workspace's state. `runtime` within it holds what only lives as long as the server,
    `demo` the demo agent's conversations."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runtime = path / "run"
        self.demo = path / "demo"

    def make(self) -> None:
        """Make the folder (0700). Raises `ConfigError` when it can't be made or written, or belongs to somebody else."""
        try:
            self._make()
        except OSError as fault:
            raise ConfigError(
                f"The state folder {self.path} can't be written ({fault.strerror}). "
                "Make it writable, or name another with --state-path."
            ) from None

    @contextlib.contextmanager
    def locked(self, config: Config) -> Iterator[None]:
        """Make the folder, and hold its lock.

        Raises `ConfigError` when it can't be made or written, belongs to somebody else, or another server uses it.
        """
        self.make()
        descriptor = self._lock("lock", fcntl.LOCK_EX, _LOOKED_AT_S)
        if descriptor is None:
            raise self._in_use_by(config)
        try:
            self.withdraw()  # what a killed server left
            yield
        finally:
            self.withdraw()
            os.close(descriptor)

    def _make(self) -> None:
        above = self.path.parent
        above.mkdir(mode=0o700, parents=True, exist_ok=True)
        if above.parent.stat().st_mode & stat.S_ISVTX and above.stat().st_uid not in (0, os.geteuid()):
            raise PermissionError(1, f"{above} belongs to another user")  # made in a folder where everybody may
        self.path.mkdir(mode=0o700, exist_ok=True)
        if self.path.stat().st_uid != os.geteuid():
            raise PermissionError(1, "it belongs to another user")
        os.chmod(self.path, 0o700)
        for folder in (self.runtime, self.demo):
            folder.mkdir(mode=0o700, exist_ok=True)
            os.chmod(folder, 0o700)

    def _lock(self, name: str, how: int, patience_s: float = 0.0) -> int | None:
        """The open file that holds a lock until it is closed; None when others hold it for longer than `patience_s`.

        Raises `ConfigError` when it can't be opened. Blocks.
        """
        try:
            descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as fault:
            raise ConfigError(
                f"The state folder {self.path} can't be written ({fault.strerror}). "
                "Make it writable, or name another with --state-path."
            ) from None
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    return None
                time.sleep(_LOOK_S)
            else:
                return descriptor

    # --- the server, told to others of its user -----------------------------------------------------------------------

    def announce(self, told: Announcement, token: str | None = None) -> None:
        """Tell other processes of this user where the server is. `token` is kept for them until `withdraw`, in the file that
        `told` names, where it came by no file of its own."""
        try:
            if token is not None and told.token_file is None:
                told = dataclasses.replace(told, token_file=str(self.runtime / "token"))
                _write_private(self.runtime / "token", token)
            _write_private(self.path / "server.json", json.dumps(dataclasses.asdict(told)))
        except OSError as fault:  # the disk is full: no reason not to start
            logger.warning(
                "%s can't be written (%s): other commands will not find this server", self.path, fault.strerror
            )

    def withdraw(self) -> None:
        """From now on the server is not to be used any more. Harmless to call again."""
        for path in (self.path / "server.json", self.runtime / "token"):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def server(self) -> Announcement | None:
        """The running server of this state, as it announced itself; None while it starts or ends, and where there is none."""
        try:
            told = json.loads((self.path / "server.json").read_bytes())
            found = Announcement(**{f.name: told[f.name] for f in dataclasses.fields(Announcement) if f.name in told})
        except (OSError, ValueError, TypeError):
            return None
        return found if self.in_use() else None

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

    def await_turn(self, config: Config, say: Callable[[str], None]) -> None:
        """Return when no server uses this state: wait for one that ends, and for a temporary one until its last client has left.

        `say` is told what is waited for. Raises `ConfigError` when a server stays. Blocks.
        """
        seen: Announcement | None = None
        since = time.monotonic()
        told = False
        while self.in_use():
            server = self.server()
            if server != seen:
                seen, since = server, time.monotonic()
            waited = time.monotonic() - since
            if seen is not None and seen.temporary:
                if not told:
                    told = True
                    say(
                        f"A temporary server (process {seen.pid}), started by `run`, uses the state of {config.root} until its "
                        "last client has left. Waiting for it ... (Ctrl-C ends the waiting)"
                    )
            elif waited > (_SURELY_S if seen is not None else ENDING_S):
                raise self._in_use_by(config)
            time.sleep(_LOOK_S)

    def _in_use_by(self, config: Config) -> ConfigError:
        other = self.server()
        where = f" at {other.url} (process {other.pid})" if other else ""
        return ConfigError(
            f"Another server{where} already uses the state of {config.root}. "
            "Use that one, stop it first, or name another folder with --state-path."
        )

    # --- the clients of a temporary server ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def as_client(self) -> Iterator[None]:
        """Count as a client: while the context is open a temporary server stays.

        Waits for one that is ending; raises `ConfigError` when it does not. Blocks.
        """
        descriptor = self._lock("clients", fcntl.LOCK_SH, ENDING_S)
        if descriptor is None:
            raise ConfigError(f"The server that uses {self.path} is ending, and does not end. Try again later.")
        try:
            yield
        finally:
            os.close(descriptor)

    def has_clients(self) -> bool:
        """Whether a command uses the server. None does where a temporary one ends, and where this is asked by the last."""
        for how in (fcntl.LOCK_EX, fcntl.LOCK_SH):
            descriptor = self._lock("clients", how)
            if descriptor is not None:
                os.close(descriptor)
                return how == fcntl.LOCK_SH  # shared with others, or ours alone
        return False

    def without_clients(self) -> int | None:
        """The lock that lets no client come any more, as an open file; None while there are any."""
        return self._lock("clients", fcntl.LOCK_EX)

    @contextlib.contextmanager
    def starting(self) -> Iterator[bool]:
        """Whether the caller may start the temporary server; only one may at a time."""
        descriptor = self._lock("starting", fcntl.LOCK_EX)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _write_private(path: Path, text: str) -> None:
    """Replace a file of ours, whole, readable by us alone."""
    temporary = path.with_name(f"{path.name}.new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
    os.replace(temporary, path)
