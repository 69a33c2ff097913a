"""A workbench for tests of remotes: a real server, a clone in its workspace, the bare repository it came from, and a colleague.

    bench = Bench(server, "one")                      # workspace/one is a clone of remotes/one.git, with one commit
    bench.pushed_by_another({"a.txt": b"theirs\\n"})   # somebody else pushes to it
    done(bench.post("pull"))                          # what the server answers
    refused(bench.post("push"), 409, "push_rejected")

The server and the git of the tests share a home (`folder/home`), and so the user's own configuration.
"""

import contextlib
import itertools
import os
import shlex
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from .git_home import Sandbox
from .server import ServerProcess, eventually, running

BASE = "/api/v1/workspaces/default/version-control"
Json = dict[str, Any]
_NUMBERS = itertools.count(1)


@contextlib.contextmanager
def git_server(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server whose user has a git identity."""
    Sandbox(folder)
    with running(folder, *arguments, env={"GIT_CONFIG_NOSYSTEM": "1", **(env or {})}) as server:
        yield server


def fresh_name() -> str:
    """A name that no other bench of this process has."""
    return f"r{next(_NUMBERS)}"


class Bench:
    """See the module. `files` are those of the first commit."""

    def __init__(self, server: ServerProcess, name: str, *, files: Mapping[str | bytes, bytes] | None = None) -> None:
        self.server = server
        self.name = name
        self.sandbox = Sandbox(server.folder)
        self.served = server.folder / "remotes"
        self.origin = self.served / f"{name}.git"
        self.copy = server.workspace / name
        self.other = server.folder / "others" / name
        self._client = server.client()
        self.served.mkdir(exist_ok=True)
        self.sandbox.init(f"others/{name}")
        self.sandbox.commit(self.other, files or {"a.txt": b"one\n"}, "first")
        self.sandbox.git(server.folder, "clone", "--quiet", "--bare", str(self.other), str(self.origin))
        self.sandbox.git(self.other, "remote", "add", "origin", str(self.origin))
        self.sandbox.git(self.other, "push", "--quiet", "--set-upstream", "origin", "main")
        self.sandbox.git(server.folder, "clone", "--quiet", str(self.origin), str(self.copy))

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def reconnect(self) -> None:
        """Speak with the server that was started again."""
        self._client.close()
        self._client = self.server.client()

    # --- the server ---------------------------------------------------------------------------------------------------------

    def post(self, what: str, body: Json | None = None, **query: str) -> httpx.Response:
        """`POST …/version-control/{what}` for the clone."""
        return self.ask("POST", what, body, **query)

    def get(self, what: str, **query: str) -> httpx.Response:
        """`GET …/version-control/{what}` for the clone."""
        return self.ask("GET", what, None, **query)

    def ask(self, method: str, what: str, body: Json | bytes | None = None, **query: str) -> httpx.Response:
        """A request for the clone. A body of bytes goes as it is."""
        content = None if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        parameters = {"path": self.name, **query}
        return self._client.request(method, f"{BASE}/{what}", content=content, headers=headers, params=parameters)

    def operation(self, id: str) -> Json:
        """An operation as it is now."""
        return done(self.get(f"operations/{id}"))

    def ended(self, id: str) -> Json:
        """An operation once it has ended."""
        return eventually(lambda: (it := self.operation(id))["ended_at"] and it)  # type: ignore[no-any-return]

    # --- the repositories ---------------------------------------------------------------------------------------------------

    def git(self, *arguments: str, check: bool = True) -> str:
        """Git in the clone, as from a terminal."""
        return self.sandbox.git(self.copy, *arguments, check=check).decode().strip()

    def config(self, key: str, value: str) -> None:
        """A setting of the clone's own configuration."""
        self.sandbox.git(self.copy, "config", "--local", "--add", key, value)

    def commit(self, files: Mapping[str | bytes, bytes], message: str = "ours") -> str:
        """A commit in the clone; its id."""
        return self.sandbox.commit(self.copy, files, message)

    def pushed_by_another(
        self, files: Mapping[str | bytes, bytes], message: str = "theirs", branch: str = "main"
    ) -> str:
        """A commit that a colleague pushes to `origin`; its id."""
        if branch != "main":
            self.sandbox.git(self.other, "switch", "--quiet", "--create", branch)
        else:
            self.sandbox.git(self.other, "pull", "--quiet", "--ff-only")
        oid = self.sandbox.commit(self.other, files, message)
        self.sandbox.git(self.other, "push", "--quiet", "origin", f"HEAD:refs/heads/{branch}")
        self.sandbox.git(self.other, "switch", "--quiet", "main")
        return oid

    def tip(self, repository: Path | None = None, ref: str = "refs/heads/main") -> str | None:
        """What a ref of `origin` (or of another repository) names; None where there is none."""
        found = self.sandbox.git(repository or self.origin, "rev-parse", "--verify", "--quiet", ref, check=False)
        return found.decode().strip() or None

    def head(self) -> str | None:
        """The commit that is checked out in the clone."""
        return self.tip(self.copy, "HEAD")

    def hook(self, name: str, script: str, repository: Path | None = None) -> Path:
        """A hook of the clone (or of another repository); `script` are its lines after the first."""
        git_dir = repository or self.copy / ".git"
        path = git_dir / "hooks" / name
        path.parent.mkdir(exist_ok=True)
        program(path, script)
        return path


def program(path: Path, script: str) -> Path:
    """An executable of the shell."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


class Trap:
    """A program that leaves a mark when it runs; `then` are further lines of it."""

    def __init__(self, folder: Path, name: str, then: str = "exit 1") -> None:
        self.mark = folder / f"{name}-ran"
        self.path = program(folder / name, f'echo "$0 $*" >>{shlex.quote(str(self.mark))}\n{then}')

    @property
    def ran(self) -> str:
        """What it was called with, each time; empty where it never was."""
        return self.mark.read_text() if self.mark.exists() else ""


class Gate:
    """Lines for a hook that wait until the test lets them go on."""

    def __init__(self, folder: Path, name: str) -> None:
        self.here, self.go = folder / f"{name}-here", folder / f"{name}-go"
        waiting = f"while [ ! -e {shlex.quote(str(self.go))} ]; do sleep 0.01; done"
        self.script = f"echo $$ >{shlex.quote(str(self.here))}.new; mv {shlex.quote(str(self.here))}.new {shlex.quote(str(self.here))}\n{waiting}"

    def open(self) -> None:
        """Let it go on."""
        self.go.touch()


class Listener:
    """What one event stream says, for as long as the context is open."""

    def __init__(self, server: ServerProcess, target: str) -> None:
        self.said = ""
        self._connection = socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port))
        self._connection.sendall(
            f"GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()
        )
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while piece := self._connection.recv(65536):
                self.said += piece.decode()
                if self.said.endswith("\r\n0\r\n\r\n"):
                    return

    def __enter__(self) -> "Listener":
        self._thread.start()
        eventually(lambda: ": connected" in self.said)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    @property
    def events(self) -> list[Json]:
        """The events so far."""
        whole = self.said.rpartition("\n")[0]
        return [orjson.loads(line[6:]) for line in whole.split("\n") if line.startswith("data: ")]

    def to_the_end(self) -> list[Json]:
        """All events, once the server has ended the stream."""
        self._thread.join(10)
        assert not self._thread.is_alive(), "the stream did not end"
        return self.events


# --- answers ------------------------------------------------------------------------------------------------------------------


def done(answer: httpx.Response, status: int = 200) -> Json:
    """The body of an answer that must be right."""
    assert answer.status_code == status, answer.text
    body: Json = answer.json()
    return body


def refused(answer: httpx.Response, status: int, code: str) -> Json:
    """The body of a refusal."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: Json = answer.json()
    assert body["detail"]
    return body


def files_with(secret: str, *folders: Path) -> list[Path]:
    """The files in these folders whose content holds the secret."""
    found = []
    for folder in folders:
        for above, _, names in os.walk(folder):
            for name in names:
                path = Path(above, name)
                with contextlib.suppress(OSError):
                    if path.is_file() and secret.encode() in path.read_bytes():
                        found.append(path)
    return found
