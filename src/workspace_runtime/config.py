"""All settings: one table, read once into one frozen object.

Each field of `Config` is a setting. Its metadata says the environment variable, the flag, how text becomes a value and what
it is for; the command line, the documentation's table and the error sentences are all made from that. A flag wins over the
environment, the environment over the default. A wrong value stops the start with one sentence that says what to do.
"""

import dataclasses
import hashlib
import ipaddress
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+")
_ORIGIN = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
LOG_LEVELS = ("debug", "info", "warning", "error")


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,15}", text.strip()) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError("true or false")


def _matching(pattern: re.Pattern[str], wanted: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not pattern.fullmatch(text.strip()):
            raise ValueError(wanted)
        return text.strip()

    return parse


def _items(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(parse(item) for item in re.split(r"[,\s]+", text) if item)


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        raise ValueError("addresses or networks, such as 10.0.0.1 or 10.0.0.0/8") from None


def _root_path(text: str) -> str:
    path = text.strip().rstrip("/")
    if path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
        raise ValueError("a path such as /workspaces/one")
    return path


def _level(text: str) -> str:
    if text.strip().lower() not in LOG_LEVELS:
        raise ValueError("one of " + ", ".join(LOG_LEVELS))
    return text.strip().lower()


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError("a path")
    return Path(text).expanduser()


def _setting(
    default: Any, env: str, parse: Callable[[str], Any], help: str, *, flag: str | None = None, shown: str | None = None
) -> Any:
    """One row of the table. `flag` None: not on the command line. `shown`: the default as the documentation says it."""
    metadata = {"env": env, "parse": parse, "help": help, "flag": flag, "shown": shown}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting of the server, checked. Made by `load`; tests make it directly."""

    workspace_path: Path = _setting(
        Path(), "WORKSPACE_PATH", _path, "The workspace's root folder.", shown="the current folder"
    )
    workspace_id: str = _setting(
        "default", "WORKSPACE_ID", _matching(_ID, "letters, digits, dots, dashes and underscores, at most 64"),
        "The workspace's id in the API.", flag="--workspace-id",
    )  # fmt: skip
    host: str = _setting(
        "localhost", "WORKSPACE_HOST", _matching(_HOST, "a host name or an address"),
        "The address to listen on; `localhost` is 127.0.0.1 and ::1. Any other address needs a token.", flag="--host",
    )  # fmt: skip
    port: int = _setting(
        3002, "WORKSPACE_PORT", _integer(0, 65535), "The port to listen on; 0 takes a free one.", flag="--port"
    )
    state_path: Path | None = _setting(
        None, "STATE_PATH", _path, "Where the server keeps its own state; never inside the workspace.", flag="--state-path",
        shown="$XDG_STATE_HOME/workspace-runtime/<name and hash of the root>",
    )  # fmt: skip
    token: str | None = _setting(
        None, "WORKSPACE_TOKEN", str, "The token that every client must show. Prefer a file.", shown="none"
    )
    token_file: Path | None = _setting(
        None,
        "TOKEN_FILE",
        _path,
        "A file that holds the token; only its owner may read it.",
        flag="--token-file",
        shown="none",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (), "ALLOWED_HOSTS", _items(_matching(_HOST, "host names, separated by commas")),
        "Names, beside localhost, that a request's `Host` may have.", flag="--allowed-hosts", shown="none",
    )  # fmt: skip
    allowed_origins: tuple[str, ...] = _setting(
        (), "ALLOWED_ORIGINS", _items(_matching(_ORIGIN, "origins such as http://localhost:5173, separated by commas")),
        "Origins of web pages that may call the API (CORS).", flag="--allowed-origins", shown="none",
    )  # fmt: skip
    allowed_peer_uids: tuple[int, ...] = _setting(
        (), "ALLOWED_PEER_UIDS", _items(_integer(0, 2**32 - 2)),
        "User ids, beside the server's own and root, whose processes may connect on loopback without a token.",
        flag="--allowed-peer-uids", shown="none",
    )  # fmt: skip
    trusted_proxies: tuple[str, ...] = _setting(
        (), "TRUSTED_PROXIES", _items(_network),
        "Addresses or networks whose `X-Forwarded-*` headers are believed.", flag="--trusted-proxies", shown="none",
    )  # fmt: skip
    root_path: str = _setting(
        "", "ROOT_PATH", _root_path, "The path below which a proxy serves us.", flag="--root-path", shown="none"
    )
    max_running_agents: int = _setting(
        16,
        "MAX_RUNNING_AGENTS",
        _integer(1, 1000),
        "How many agent processes may run at once.",
        flag="--max-running-agents",
    )
    max_body_bytes: int = _setting(
        32 * 1024 * 1024, "MAX_BODY_BYTES", _integer(1024, 2**31), "The largest body of a request in JSON, in bytes.",
        flag="--max-body-bytes",
    )  # fmt: skip
    max_upload_bytes: int = _setting(
        10 * 1024**3, "MAX_UPLOAD_BYTES", _integer(1024, 2**45), "The largest file or upload that can be sent, in bytes.",
        flag="--max-upload-bytes",
    )  # fmt: skip
    history_max_events: int = _setting(
        0, "HISTORY_MAX_EVENTS", _integer(0, 10**9),
        "How many events of a session are kept, whole turns; 0 keeps all.", flag="--history-max-events",
    )  # fmt: skip
    trust_repository: bool = _setting(
        True, "TRUST_REPOSITORY", _boolean,
        "Whether git's writes run what a repository's own configuration names: hooks, filters, merge drivers, signing. Reads never do.",
        flag="--trust-repository",
    )  # fmt: skip
    log_level: str = _setting(
        "info", "LOG_LEVEL", _level, "How much the server logs: debug, info, warning or error.", flag="--log-level"
    )
    access_log: bool = _setting(False, "ACCESS_LOG", _boolean, "Log every request.", flag="--access-log")

    @property
    def root(self) -> Path:
        """The workspace's root with all links followed, absolute."""
        return self.workspace_path.resolve()

    @property
    def state(self) -> Path:
        """The folder of our own state, absolute."""
        return self.state_path.absolute() if self.state_path else default_state_path(self.root)

    @property
    def loopback(self) -> bool:
        """Whether the server listens on loopback only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


def settings() -> list[dataclasses.Field[Any]]:
    """The table's rows, in order: fields of `Config` with the metadata `env`, `parse`, `help`, `flag` and `shown`."""
    return list(dataclasses.fields(Config))


def load(flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Config:
    """Read all settings. `flags` maps a field's name to the text of its flag, where one was given.

    Raises `ConfigError` for the first setting that is wrong.
    """
    values: dict[str, Any] = {}
    for field in settings():
        text = flags.get(field.name)
        source = field.metadata["flag"] or field.name
        if text is None:
            # an empty variable is an unset one: that is how compose files and units leave something out
            text, source = environ.get(field.metadata["env"]) or None, field.metadata["env"]
        if text is None:
            continue
        try:
            values[field.name] = field.metadata["parse"](text)
        except ValueError as fault:
            shown = "the given value" if field.name == "token" else repr(text)
            raise ConfigError(f"{source} is {shown}, but it must be {fault}.") from None
    config = Config(**values)
    if config.token_file is not None and config.token is None:
        config = dataclasses.replace(config, token=_read_token(config.token_file))
    _check(config)
    return config


def _read_token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(64 * 1024)
    except OSError as fault:
        raise ConfigError(
            f"The token file {path} can't be read ({fault.strerror}). Write the token into it, or name another."
        ) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"The token file {path} can be read by others. Run: chmod 600 {path}")
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"The token file {path} holds bytes that are not ASCII. Use letters and digits.") from None


def _check(config: Config) -> None:
    try:
        is_folder = config.root.is_dir()
    except OSError:
        is_folder = False
    if not is_folder:
        raise ConfigError(f"The workspace {config.workspace_path} is not a folder. Name one that exists.")
    if config.token is not None and not re.fullmatch(r"[\x21-\x7e]{16,512}", config.token):
        raise ConfigError(
            "The token must be 16 to 512 visible ASCII characters without spaces. Make one: openssl rand -hex 32"
        )
    if not config.loopback and config.token is None:
        raise ConfigError(
            f"Listening on {config.host} lets other machines connect, so it needs a token. "
            "Put one into a file and give --token-file, or listen on localhost."
        )
    state = config.state.resolve()
    if state == config.root or config.root in state.parents:
        raise ConfigError(f"The state folder {state} lies inside the workspace. Choose one outside it with STATE_PATH.")


def default_state_path(root: Path) -> Path:
    """Where state of a workspace is kept by default: named after its real root, so that two workspaces never share it."""
    base = os.environ.get("XDG_STATE_HOME") or ""
    home = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", root.name)[:40] or "root"
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    return home / "workspace-runtime" / f"{name}-{digest}"
