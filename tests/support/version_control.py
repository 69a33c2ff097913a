"""Repositories in the workspace of a real server, made by real git, and what the API says of them.

Each answer is held against the view that the API's documents show for its route: nothing missing, nothing more.
"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from support.git_home import Sandbox
from support.server import ServerProcess, running
from workspace_runtime.version_control.routes import changing, reading, remote

BASE = "/api/v1/workspaces/default/version-control"
JsonObject = dict[str, Any]
NASTY = [
    b"with space", b"q\"u'ote", b"new\nline", b"tab\there", b"\xe9\xff", b"-dash", b":(glob)star", b"*", b"[a]", b"back\\slash", "ü".encode()
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Given:
    """An answer: status, headers and body; JSON is read and was checked."""

    status: int
    headers: httpx.Headers
    body: bytes
    json: Any

    @property
    def code(self) -> str:
        """The problem's code."""
        assert self.headers["content-type"] == "application/problem+json", self
        return str(self.json["code"])


class Host:
    """A server with a workspace, and a git that knows what the server's knows."""

    def __init__(self, server: ServerProcess, box: Sandbox, client: httpx.Client) -> None:
        self.server = server
        self.box = box
        self.client = client
        self.workspace = server.workspace
        self._numbers = itertools.count(1)

    def init(self, name: str, *args: str) -> "Case":
        """A new repository in a folder of the workspace; an empty name is the root itself."""
        folder = self.workspace / name
        folder.mkdir(parents=True, exist_ok=True)
        self.box.git(folder, "init", "--quiet", *args)
        return Case(self, folder)

    def fresh(self) -> "Case":
        """A new repository of a name that no other has."""
        return self.init(f"case-{next(self._numbers)}")

    def at(self, folder: Path) -> "Case":
        """A repository that is there."""
        return Case(self, folder)

    def ask(self, method: str, route: str, body: JsonObject | None = None, /, **query: Any) -> Given:
        """One request; the answer must fit its documents. Values of the query: text, or bytes, which are sent as `…_bytes`."""
        headers = query.pop("headers", {})
        answer = self.client.request(method, f"{BASE}/{route}{as_query(query)}", json=body, headers=headers)
        kind = answer.headers.get("content-type", "")
        read: Any = answer.json() if kind.partition(";")[0].endswith("json") and answer.content else None
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400 and method != "HEAD":
            assert kind == "application/problem+json", answer.text
            assert (read["status"], read["request_id"]) == (answer.status_code, answer.headers["x-request-id"])
            assert read["detail"]
        elif read is not None and kind.startswith("application/json"):
            fits(method, route, read)
        return Given(answer.status_code, answer.headers, answer.content, read)


def as_query(query: Mapping[str, Any]) -> str:
    """A query string, with its question mark."""
    parts = []
    for name, value in query.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bytes):
                parts.append(f"{name}_bytes={quote(quote(one, safe=''), safe='')}")
            elif one is not None:
                text = str(one).lower() if isinstance(one, bool) else str(one)
                parts.append(f"{name}={quote(text, safe='')}")
    return "?" + "&".join(parts) if parts else ""


def fits(method: str, route: str, body: Any) -> None:
    """Fails where an answer is not what its route's documents show: a field that is missing, wrong, or not told of."""
    for found in (*reading.router.routes, *changing.router.routes, *remote.router.routes):
        assert isinstance(found, APIRoute)
        if method in (found.methods or ()) and found.path_regex.match(f"/{route}") and found.response_model:
            view = TypeAdapter(found.response_model)
            shown = view.dump_python(view.validate_python(body), mode="json", by_alias=True, exclude_unset=True)
            assert shown == body, f"{method} {route}: not what its documents show"
            return
    raise AssertionError(f"no documents of {method} {route}")


class Case:
    """One repository of a host."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.path = str(folder.relative_to(host.workspace)) if folder != host.workspace else ""

    def git(self, *args: "str | bytes", input: bytes | None = None, env: Mapping[str, str] | None = None) -> str:
        """What git says here, without the end of its line."""
        return self.host.box.git(self.folder, *args, input=input, env=env).decode("utf-8", "replace").strip()

    def attempt(self, *args: "str | bytes") -> int:
        """The status of a git that may fail."""
        return self.host.box.attempt(self.folder, *args).returncode

    def commit(self, files: "Mapping[str | bytes, bytes]", message: str = "change") -> str:
        """Write these files, commit them, and return the commit's id."""
        return self.host.box.commit(self.folder, files, message)

    def write(self, name: str, content: "bytes | str") -> Path:
        """A file of the working tree; folders on the way are made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def read(self, name: str) -> bytes:
        """A file of the working tree."""
        return (self.folder / name).read_bytes()

    def ask(self, method: str, route: str, body: JsonObject | None = None, /, **query: Any) -> Given:
        """As `Host.ask`, of this repository."""
        return self.host.ask(method, route, body, **{"path": self.path or None, **query})

    def get(self, route: str, **query: Any) -> Any:
        """The JSON of a read that succeeds."""
        given = self.ask("GET", route, **query)
        assert given.status == 200, given
        return given.json

    def post(self, route: str, status: int = 200, /, **body: Any) -> Any:
        """The JSON of a change that succeeds."""
        given = self.ask("POST", route, body)
        assert given.status == status, given
        return given.json

    def refused(self, method: str, route: str, body: JsonObject | None = None, /, **query: Any) -> JsonObject:
        """The problem of a request that must fail: its members."""
        given = self.ask(method, route, body, **query)
        assert given.status >= 400, given
        problem: JsonObject = given.json
        return problem

    def status(self, **query: Any) -> JsonObject:
        """The state of the working tree."""
        found: JsonObject = self.get("status", **query)
        assert found["file_count"] >= len(found["files"])
        return found

    def files(self, **query: Any) -> dict[str, tuple[str | None, str | None]]:
        """What the status says of the index and of the working tree, by path."""
        files = self.status(**query)["files"]
        return {file["path"]: (file["index"], file["worktree"]) for file in files}

    def head(self) -> str:
        """The commit that is checked out."""
        return self.git("rev-parse", "HEAD")


@contextmanager
def host(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Host]:
    """A server whose workspace is `folder/workspace`, in which git knows an identity and nothing of this machine's."""
    box = Sandbox(folder)
    isolated = {"GIT_CONFIG_NOSYSTEM": "1", **(env or {})}
    with running(folder, *arguments, env=isolated) as server, server.client() as client:
        yield Host(server, box, client)
