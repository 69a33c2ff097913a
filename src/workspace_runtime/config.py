"""All settings: one table, read once into one frozen object.

Each field of `Config` is a setting. Its metadata says the environment variable, the flag, how text becomes a value and what
it is for; the command line, the documentation's table and the error sentences are all made from that. A flag wins over the
environment, the environment over the default. A wrong value stops the start with one sentence that says what to do.

Our variables begin with `WORKSPACE_RUNTIME_`. Each also has a short name, which a platform or the user may have set for something
else: it counts where ours is not set and its value can be one of ours; a value that can't be is passed over with a warning.
"""

import dataclasses
import hashlib
import ipaddress
import os
import re
import shlex
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
LOG_FORMATS = ("text", "json")


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


def _listening(text: str) -> str:
    """A name, or an address: of IPv6 with or without the brackets of a URL."""
    try:
        return str(ipaddress.ip_address(text.strip().removeprefix("[").removesuffix("]")))
    except ValueError:
        return _matching(_HOST, "a host name or an address")(text)


def _root_path(text: str) -> str:
    path = text.strip().rstrip("/")
    if path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
        raise ValueError("a path such as /workspaces/one")
    return path


def _one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.strip().lower() not in words:
            raise ValueError("one of " + ", ".join(words))
        return text.strip().lower()

    return parse


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError("a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("a path; the home folder that ~ stands for is not known") from None


PREFIX = "WORKSPACE_RUNTIME_"


def _setting(
    default: Any,
    short: str,
    parse: Callable[[str], Any],
    help: str,
    *,
    flag: str | None = None,
    shown: str | None = None,
) -> Any:
    """One row of the table. `flag` None: not on the command line. `shown`: the default as the documentation says it."""
    env = PREFIX + short.removeprefix("WORKSPACE_")
    metadata = {"env": env, "short": short, "parse": parse, "help": help, "flag": flag, "shown": shown}
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
        "localhost", "WORKSPACE_HOST", _listening,
        "The address to listen on; `localhost` is 127.0.0.1 and ::1. Any other address needs a token.", flag="--host",
    )  # fmt: skip
    port: int = _setting(
        3002, "WORKSPACE_PORT", _integer(0, 65535), "The port to listen on; 0 takes a free one.", flag="--port"
    )
    state_path: Path | None = _setting(
        None, "STATE_PATH", _path, "Where the server keeps its own state; never inside the workspace.", flag="--state-path",
        shown="$XDG_STATE_HOME/workspace-runtime/<name and hash of the root>; for a home folder /var/lib (root) or /var/tmp",
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
        "info",
        "LOG_LEVEL",
        _one_of(LOG_LEVELS),
        "How much the server logs: debug, info, warning or error.",
        flag="--log-level",
    )
    log_format: str = _setting(
        "text",
        "LOG_FORMAT",
        _one_of(LOG_FORMATS),
        "How a line of the log is written: text or json.",
        flag="--log-format",
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


def load(
    flags: Mapping[str, str | None], environ: Mapping[str, str], warn: Callable[[str], None] = lambda _: None
) -> Config:
    """Read all settings. `flags` maps a field's name to the text of its flag, where one was given.

    `warn` gets a sentence for each short variable that is passed over. Raises `ConfigError` for the first setting that is wrong.
    """
    values: dict[str, Any] = {}
    for field in settings():
        text = flags.get(field.name)
        source = field.metadata["flag"] or field.name
        if text is None:
            # an empty variable is an unset one: that is how compose files and units leave something out
            text, source = environ.get(field.metadata["env"]) or None, field.metadata["env"]
        try:
            if text is not None:
                values[field.name] = field.metadata["parse"](text)
                if field.name == "token_file" and "token" not in values:
                    values["token"] = _read_token(values[field.name])
            elif short := environ.get(field.metadata["short"]):
                values |= _from_short(field, short, values, warn)
        except ValueError as fault:
            shown = "the given value" if field.name == "token" else repr(text)
            raise ConfigError(f"{source} is {shown}, but it must be {fault}.") from None
    config = Config(**values)
    _check(config)
    return config


def _from_short(
    field: "dataclasses.Field[Any]", text: str, before: Mapping[str, Any], warn: Callable[[str], None]
) -> dict[str, Any]:
    """What a short variable sets: nothing where its value can't be one of ours."""
    name = field.metadata["short"]
    try:
        value = field.metadata["parse"](text)
        found = {field.name: value}
        if field.name == "workspace_path":
            _check_workspace(value)
        elif field.name == "token":
            _check_token(value)
        elif field.name == "state_path":
            _check_state(value.absolute(), Config(**before).root)
            _check_writable(value.absolute())
        elif field.name == "token_file":
            token = _read_token(value)
            _check_token(token)
            found |= {} if "token" in before else {"token": token}
    except (ValueError, ConfigError) as fault:
        reason = str(fault) if isinstance(fault, ConfigError) else f"It would have to be {fault}."
        warn(
            f"{name} is set, but not for this server, and is passed over. {reason} Its own variable is {field.metadata['env']}."
        )
        return {}
    return found


def kept_from_children() -> frozenset[str]:
    """The names that no child process gets to see, whatever is in them: of the variables that are ours alone, and of the token."""
    return frozenset({"WORKSPACE_TOKEN", *(field.metadata["env"] for field in settings())})


def own_variables(environ: Mapping[str, str]) -> set[str]:
    """The names in an environment that are settings of ours. A short name counts where its value is taken."""
    own = set(kept_from_children())
    for field in settings():
        env, short = field.metadata["env"], field.metadata["short"]
        if not environ.get(env) and environ.get(short):
            try:
                field.metadata["parse"](environ[short])
            except ValueError:
                continue
            own.add(short)
    return own & environ.keys()


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
        raise ConfigError(f"The token file {path} can be read by others. Run: chmod 600 {shlex.quote(str(path))}")
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"The token file {path} holds bytes that are not ASCII. Use letters and digits.") from None


def _check(config: Config) -> None:
    _check_workspace(config.workspace_path)
    if config.token is not None:
        _check_token(config.token)
    if not config.loopback and config.token is None:
        raise ConfigError(
            f"Listening on {config.host} lets other machines connect, so it needs a token. "
            "Put one into a file and give --token-file, or listen on localhost."
        )
    _check_state(config.state, config.root)


def _check_workspace(path: Path) -> None:
    try:
        os.stat(path / ".")
    except OSError as fault:
        reason = fault.strerror or "unknown"
        if isinstance(fault, PermissionError):
            raise ConfigError(
                f"The workspace {path} can't be entered by this user ({reason}). Name another, or run as its owner."
            ) from None
        raise ConfigError(f"The workspace {path} is not a folder. Name one that exists.") from None
    if not os.access(path, os.R_OK | os.X_OK):
        raise ConfigError(f"The workspace {path} can't be read by this user. Name another, or run as its owner.")


def _check_token(token: str) -> None:
    if not re.fullmatch(r"[\x21-\x7e]{16,512}", token):
        raise ConfigError(
            "The token must be 16 to 512 visible ASCII characters without spaces. Make one: openssl rand -hex 32"
        )


def _check_state(folder: Path, root: Path) -> None:
    state = folder.resolve()
    if state == root or root in state.parents:
        raise ConfigError(
            f"The state folder {state} lies inside the workspace. Choose one outside it with --state-path."
        )


def _check_writable(folder: Path) -> None:
    """Whether a folder is there that can be written, or can be made."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} can't be written.")


def default_state_path(root: Path) -> Path:
    """Where state of a workspace is kept by default: named after its real root, so that two workspaces never share it."""
    base = os.environ.get("XDG_STATE_HOME") or ""
    try:
        home = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    except RuntimeError:
        raise ConfigError(
            "This user has no home folder to keep state in. Set HOME, or name a folder with --state-path."
        ) from None
    name = re.sub(r"[^A-Za-z0-9._-]", "_", root.name)[:40] or "root"
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    folder = home / "workspace-runtime"
    if root in (folder.resolve(), *folder.resolve().parents):
        folder = _state_outside_of_home()
    return folder / f"{name}-{digest}"


def _state_outside_of_home() -> Path:
    """Where the state of a workspace is kept that is the home folder, or holds it: it must not lie in the workspace."""
    user = os.geteuid()
    return Path("/var/lib/workspace-runtime") if user == 0 else Path(f"/var/tmp/workspace-runtime-{user}")  # noqa: S108
