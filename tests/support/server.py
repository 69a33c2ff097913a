"""A real server: a process of its own, on a free port, with its own home and state."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

JsonObject = dict[str, Any]
TIMEOUT_S = 30.0


class ServerProcess:
    """`workspace-runtime serve` for `folder/workspace`, with state in `folder/state` and a home in `folder/home`."""

    def __init__(self, folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.workspace = folder / "workspace"
        self.state = folder / "state"
        for path in (self.workspace, folder / "home"):
            path.mkdir(parents=True, exist_ok=True)
        self.arguments = arguments
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "LANG": "C.UTF-8",
            "DEMO_WORD_DELAY_S": "0.002",
            **(env or {}),
        }
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        self.output: list[str] = []

    def start(self) -> "ServerProcess":
        """Start, and wait until it serves."""
        command = [sys.executable, "-m", "workspace_runtime", "serve", str(self.workspace), "--port", "0"]
        command += ["--state-path", str(self.state), *self.arguments]
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.await_serving(self.process)
        return self

    def await_serving(self, process: "subprocess.Popen[str]") -> None:
        """Wait until the started process says where it serves."""
        said: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, args=(process, said), daemon=True).start()
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            line = said.get(timeout=max(0.1, deadline - time.monotonic()))
            assert line is not None, "the server ended: " + "".join(self.output)
            if found := re.match(r"at (http://\S+)", line):
                self.url = found[1]
                return

    def _read(self, process: "subprocess.Popen[str]", said: "queue.Queue[str | None]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.output.append(line)
                said.put(line)
        said.put(None)

    @property
    def server_pid(self) -> int:
        """The server's own process: the keeper's child."""
        assert self.process is not None
        return children(self.process.pid)[0]

    def kill_server(self) -> None:
        """`kill -9` of the server; returns when the keeper has ended too, and with it all agents."""
        os.kill(self.server_pid, signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """End it as Ctrl-C does; the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(TIMEOUT_S)

    def on_their_way(self) -> int:
        """How many files the server writes just now that have no name of their own yet."""
        count = 0
        folder = f"/proc/{self.server_pid}/fd"
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                target = os.readlink(f"{folder}/{name}")
                count += target.startswith(str(self.workspace)) and target.endswith(" (deleted)")
                count += ".workspace-runtime-" in target
        return count

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client."""
        return httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False, **options)

    def socket(self, session_id: str, query: str = "", **options: Any) -> ClientConnection:
        """A WebSocket of a session."""
        url = f"{self.url.replace('http', 'ws', 1)}/api/v1/ws/agent-sessions/{session_id}{query}"
        socket: ClientConnection = connect(url, proxy=None, open_timeout=TIMEOUT_S, **options)
        return socket


@contextlib.contextmanager
def running(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server for as long as the context is open."""
    server = ServerProcess(folder, *arguments, env=env).start()
    try:
        yield server
    finally:
        server.stop()


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(name))
    return found


def processes_with(marker: str) -> list[int]:
    """Processes, but for this one, whose command line holds `marker`."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                if marker.encode() in file.read():
                    found.append(int(name))
    return found


def eventually(condition: Callable[[], Any], timeout: float = TIMEOUT_S) -> Any:
    """The condition's value once it is true; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.01)


def create(client: httpx.Client, **body: Any) -> JsonObject:
    """Create a session, of the demo agent unless said otherwise."""
    answer = client.post("/api/v1/agent-sessions", json={"agent": "demo", **body})
    assert answer.status_code == 201, answer.text
    session: JsonObject = answer.json()
    assert answer.headers["location"].endswith(session["id"])
    return session


def session_of(client: httpx.Client, session_id: str) -> JsonObject:
    """A session as it is now."""
    answer = client.get(f"/api/v1/agent-sessions/{session_id}")
    assert answer.status_code == 200, answer.text
    session: JsonObject = answer.json()
    return session


def wait_status(client: httpx.Client, session_id: str, *statuses: str) -> JsonObject:
    """The session once it has one of these statuses."""
    return eventually(lambda: (s := session_of(client, session_id))["status"] in statuses and s)  # type: ignore[no-any-return]


def history(client: httpx.Client, session_id: str, query: str = "?events=all") -> list[JsonObject]:
    """The session's events, all pages."""
    items: list[JsonObject] = []
    while True:
        joiner = "&" if "?" in query else "?"
        after = items[-1]["seq"] if items else 0
        answer = client.get(f"/api/v1/agent-sessions/{session_id}/events{query}{joiner}after={after}")
        assert answer.status_code == 200, answer.text
        page = answer.json()
        items += page["items"]
        if not page["has_more"]:
            return items


def receive(socket: ClientConnection, until: Callable[[JsonObject], Any]) -> list[JsonObject]:
    """Frames of a socket up to the first that fits."""
    frames = []
    while True:
        frames.append(json.loads(socket.recv(timeout=TIMEOUT_S)))
        if until(frames[-1]):
            return frames


def is_done(frame: JsonObject) -> bool:
    """Whether a frame ends a turn."""
    return bool(frame["type"] == "done")
