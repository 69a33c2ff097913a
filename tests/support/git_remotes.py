"""Remotes on loopback, with git itself behind them: over HTTP (`git http-backend`) and over SSH (a real `sshd`).

    with http_remote(folder, user="ada", password="token") as remote:     # serves the bare repositories in `folder`
        git clone {remote.url}/project.git

    with ssh_remote(folder) as remote:
        GIT_SSH_COMMAND={remote.command()} git clone {remote.url}/project.git

Both listen on a free port of 127.0.0.1, and have ended with everything they started when the context is left.
"""

import base64
import contextlib
import os
import pwd
import select
import shlex
import socket
import socketserver
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import IO, Any

import pytest

from . import tools
from .git_home import git_environment

HELD_AFTER = 64 * 1024  # bytes of a pack that a slow remote gives at once
_PIECE = 16 * 1024


class _Server(socketserver.ThreadingTCPServer):
    """Ends all its connections, and the programs behind them, when it is closed."""

    daemon_threads = False
    block_on_close = True
    allow_reuse_address = True

    def __init__(self, *args: Any) -> None:
        self.open: set[socket.socket] = set()
        self.programs: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.Lock()
        self.closing = False
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes in the middle of an answer is part of the tests."""

    @contextlib.contextmanager
    def program(self, command: list[str], **options: Any) -> "Iterator[subprocess.Popen[bytes]]":
        """A program that ends with the context, or with the server."""
        with self.lock:
            if self.closing:
                raise ConnectionAbortedError
            process: subprocess.Popen[bytes] = subprocess.Popen(command, **options)
            self.programs.add(process)
        try:
            with process:
                try:
                    yield process
                finally:
                    process.kill()
        finally:
            with self.lock:
                self.programs.discard(process)

    def end(self) -> None:
        """Stop listening, end what is open, and wait for all threads."""
        self.shutdown()
        with self.lock:
            self.closing = True
            for process in self.programs:
                process.kill()
            for connection in self.open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _HttpServer(_Server):
    remote: "HttpRemote"


@contextlib.contextmanager
def _running(server: _Server) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.end()
        thread.join()


# --- HTTP -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came. `authorization`: the header, or None."""

    method: str
    path: str
    authorization: str | None
    encoding: str | None
    chunked: bool


class HttpRemote:
    """Where the remote is, what was asked of it, and the hand on a slow one.

    `redirect`: the address to which everything below `/moved` is sent. All may be set while it runs.
    """

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.env = env
        self.user: str | None = None
        self.password: str | None = None
        self.redirect: str | None = None
        self.slow = False
        self.url = ""
        self.requests: list[Request] = []
        self.held = threading.Event()  # set when a slow answer waits
        self.go_on = threading.Event()  # set by a test that wants the rest of it
        self.backend = os.path.join(_exec_path(), "git-http-backend")

    @property
    def authorizations(self) -> list[str]:
        """All headers with credentials that were ever sent here."""
        return [request.authorization for request in self.requests if request.authorization is not None]

    def admits(self, authorization: str | None) -> bool:
        """Whether these are the right credentials; all are where no password is set."""
        if self.password is None:
            return True
        wanted = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return authorization == f"Basic {wanted}"


@contextlib.contextmanager
def http_remote(
    folder: Path,
    *,
    user: str | None = None,
    password: str | None = None,
    redirect: str | None = None,
    slow: bool = False,
) -> Iterator[HttpRemote]:
    """Serve the bare repositories in `folder` for fetch and push. Without a password all are let in.

    `slow`: an answer with a pack stops after `HELD_AFTER` bytes until `go_on` is set, or the client has gone.
    """
    with tempfile.TemporaryDirectory(prefix="http-") as temporary:
        remote = HttpRemote(folder, git_environment(Path(temporary)))
        remote.user, remote.password, remote.redirect, remote.slow = user, password, redirect, slow
        server = _HttpServer(("127.0.0.1", 0), _Handler)
        server.remote = remote
        with _running(server) as port:
            remote.url = f"http://127.0.0.1:{port}"
            yield remote


def _exec_path() -> str:
    return subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip()


class _Handler(BaseHTTPRequestHandler):
    """The web server's side of CGI (RFC 3875), as git-http-backend(1) wants it."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _HttpServer

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        remote = self.server.remote
        self.close_connection = True  # the end of an answer is the end of the connection
        chunked = (self.headers.get("Transfer-Encoding") or "").lower() == "chunked"
        authorization = self.headers.get("Authorization")
        remote.requests.append(
            Request(self.command, self.path, authorization, self.headers.get("Content-Encoding"), chunked)
        )
        with tempfile.TemporaryFile() as body:
            self._take_body(body, chunked)
            path, _, query = self.path.partition("?")
            if remote.redirect is not None and path.startswith("/moved/"):
                return self._plain(302, Location=f"{remote.redirect}{self.path.removeprefix('/moved')}")
            if not remote.admits(authorization):
                return self._plain(401, **{"WWW-Authenticate": 'Basic realm="git"'})
            self._run_backend(path, query, body)

    def _take_body(self, body: IO[bytes], chunked: bool) -> None:
        if not chunked:
            body.write(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        while chunked:
            size = int(self.rfile.readline().split(b";")[0], 16)
            body.write(self.rfile.read(size))
            self.rfile.readline()
            if not size:
                break
        body.seek(0)

    def _plain(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def _run_backend(self, path: str, query: str, body: IO[bytes]) -> None:
        remote = self.server.remote
        environment = {
            **remote.env,
            "GIT_PROJECT_ROOT": str(remote.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.receivepack",
            "GIT_CONFIG_VALUE_0": "true",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(os.fstat(body.fileno()).st_size),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
            "REMOTE_ADDR": "127.0.0.1",
            "REMOTE_USER": remote.user or "",  # empty is none
        }
        with self.server.program(
            [remote.backend], env=environment, stdin=body, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as backend:
            assert backend.stdout is not None
            self._head_of(backend.stdout)
            self._pass_on(backend.stdout, held=remote.slow and path.endswith("/git-upload-pack"))

    def _head_of(self, answer: IO[bytes]) -> None:
        """Turn the head that a CGI program wrote into one of HTTP."""
        status, headers = 200, []
        while line := answer.readline().strip():
            name, _, value = line.decode("latin-1").partition(": ")
            if name == "Status":
                status = int(value.split()[0])
            else:
                headers.append((name, value))
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def _pass_on(self, answer: IO[bytes], held: bool) -> None:
        passed = 0
        while piece := answer.read(_PIECE):
            if held and passed >= HELD_AFTER:
                self.server.remote.held.set()
                self._wait_to_go_on()
            self.wfile.write(piece)
            passed += len(piece)

    def _wait_to_go_on(self) -> None:
        while not self.server.remote.go_on.wait(0.02):
            gone, _, _ = select.select([self.connection], [], [], 0)
            if gone or self.server.closing:
                raise ConnectionAbortedError


# --- SSH --------------------------------------------------------------------------------------------------------------------


class SshRemote:
    """Where the remote is, and how a client reaches it. `connections`: how many there were; sshd's own words are in `keys/log`."""

    def __init__(self, folder: Path, keys: Path) -> None:
        self.folder = folder
        self.keys = keys
        self.port = 0
        self.connections = 0

    @property
    def url(self) -> str:
        """The address of the folder with the repositories."""
        return f"ssh://{pwd.getpwuid(os.geteuid()).pw_name}@127.0.0.1:{self.port}{self.folder}"

    def command(self, *, key: str = "client", known: bool = True) -> str:
        """A `GIT_SSH_COMMAND` that looks at nothing of the user's own.

        `key`: `client`, or `stranger` whom the server does not let in. `known`: whether the server's key is known.
        """
        options = {
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "IdentityFile": str(self.keys / key),
            "UserKnownHostsFile": str(self.keys / "known_hosts") if known else os.devnull,
            "GlobalKnownHostsFile": os.devnull,
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
        }
        return shlex.join(
            [tools.program("ssh") or "ssh", "-F", "none", *(f"-o{name}={value}" for name, value in options.items())]
        )


class _SshServer(_Server):
    ssh: SshRemote
    command: list[str]


class _SshHandler(socketserver.BaseRequestHandler):
    server: _SshServer

    def handle(self) -> None:
        self.server.ssh.connections += 1
        # one sshd a connection, as from inetd: it needs no port of its own, and there is none to be lost to another program
        environment = {**os.environ, **tools.libraries()}
        with self.server.program(self.server.command, env=environment, stdin=self.request, stdout=self.request) as sshd:
            sshd.wait()


@contextlib.contextmanager
def ssh_remote(folder: Path) -> Iterator[SshRemote]:
    """A real sshd that runs git as the current user, on repositories in `folder`. Skips the test where it can't be had."""
    sshd = tools.program("sshd")
    if sshd is None or tools.program("ssh-keygen") is None:
        pytest.skip("there is no sshd, and scripts/tools could not get one")
    if os.geteuid() not in {user.pw_uid for user in pwd.getpwall()}:
        pytest.skip("sshd runs as root or as a user of the system")
    if pwd.getpwuid(os.geteuid()).pw_shell.endswith(("/nologin", "/false")):
        pytest.skip("the user who runs the tests has no login shell, which sshd needs")
    with tempfile.TemporaryDirectory(prefix="ssh-") as temporary:
        remote = SshRemote(folder, Path(temporary))
        command = [*_separated(remote.keys), sshd]
        config = str(_sshd_config(remote))
        tried = subprocess.run(
            [*command, "-t", "-f", config],
            env={**os.environ, **tools.libraries()},
            capture_output=True,
            text=True,
            check=False,
        )
        if tried.returncode != 0:
            pytest.skip(f"sshd does not work here: {tried.stderr.strip()}")
        server = _SshServer(("127.0.0.1", 0), _SshHandler)
        server.ssh, server.command = remote, [*command, "-i", "-E", str(remote.keys / "log"), "-f", config]
        with _running(server) as remote.port:
            host_key = (remote.keys / "host.pub").read_text()
            (remote.keys / "known_hosts").write_text(f"[127.0.0.1]:{remote.port} {host_key}")
            yield remote


def _separated(folder: Path) -> list[str]:
    """What starts root's sshd. It runs a part of itself as the user `sshd`, locked into /run/sshd, and both are built in: where the
    machine has none, because sshd was unpacked and not installed, this sshd sees them in a mount namespace of its own."""
    if os.geteuid() != 0:
        return []
    users = folder / "passwd"
    known = Path("/etc/passwd").read_text()
    has_user = any(user.pw_name == "sshd" for user in pwd.getpwall())
    users.write_text(known if has_user else f"{known}sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
    script = 'mount --bind "$0" /etc/passwd && mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(users)]


def _sshd_config(remote: SshRemote) -> Path:
    for name in ("host", "client", "stranger"):
        new_key = [
            tools.program("ssh-keygen") or "",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            name,
            "-f",
            str(remote.keys / name),
        ]
        subprocess.run(new_key, check=True, stdin=subprocess.DEVNULL)
    (remote.keys / "authorized_keys").write_text("restrict " + (remote.keys / "client.pub").read_text())
    # the user's own home has a say neither in the login shell nor in git
    home = git_environment(remote.keys)
    own = " ".join(f'"{name}={home[name]}"' for name in ("HOME", "XDG_CONFIG_HOME", "GIT_CONFIG_NOSYSTEM", "LC_ALL"))
    config = remote.keys / "sshd_config"
    config.write_text(
        f"""\
HostKey {remote.keys / "host"}
AuthorizedKeysFile {remote.keys / "authorized_keys"}
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
PidFile none
SetEnv {own}
"""
    )
    return config
