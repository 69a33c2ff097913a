"""Every list of the API, as its own document names them, asked for all it gives: each page ends, in items and in bytes.

A list that is added and not known here fails: it needs something to fill it, and a bound.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from support.git_home import Sandbox
from support.server import ServerProcess, create, running, wait_status
from workspace_runtime import documents

MIB = 1024 * 1024
GIT = "/api/v1/workspaces/{id}/version-control/"
# What pages: by `limit`, and by a cursor or the last item. One item may be as long as what somebody wrote.
PAGES = {
    "/api/v1/agent-sessions", "/api/v1/permissions", "/api/v1/agent-sessions/{session_id}/permissions", "/api/v1/agent-sessions/{session_id}/events",
    "/api/v1/files",
    *(GIT + name for name in ("log", "branches", "tags", "remotes", "stash", "conflicts", "worktrees", "locks", "operations")),
}  # fmt: skip
PAGE_BYTES = 6 * MIB
# What is one answer by its nature, with the most that it says before it is refused or cut, and what to ask for.
WHOLE = {
    "/api/v1/agents": (MIB, ""),
    "/api/v1/search/files": (MIB, "q=e&limit=1000"),
    GIT + "status": (64 * MIB, ""),
    GIT + "diff": (64 * MIB, ""),
    GIT + "show": (64 * MIB, "ref=HEAD"),
    GIT + "blame": (64 * MIB, "path=wide"),
    GIT + "commit/draft": (64 * MIB, ""),
}
MANY = 24
LONG = b"subject " + b"s" * 100_000 + b"\n\n" + b"b" * 200_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("lists")
    box = Sandbox(folder)
    top = box.init("workspace")
    box.commit(top, {"wide": b"x" * MIB + b"\n", "a": b"a\n"}, "first")
    for number in range(MANY):
        box.git(top, "commit", "-q", "--allow-empty", "-F", "-", input=LONG)
        box.git(top, "tag", "-a", "-F", "-", f"t{number}", input=LONG)
        box.git(top, "branch", f"b{number}")
    (top / "a").write_text("changed\n")
    oid = box.git(top, "stash", "create").decode().strip()
    box.git(top, "update-ref", "--create-reflog", "refs/stash", oid)
    line = f"{oid} {oid} a <a@example.org> 1700000000 +0000\tOn main: ".encode() + LONG[:200_000] + b"\n"
    (top / ".git/logs/refs/stash").write_bytes(line * MANY)
    with (top / ".git/config").open("a") as config:
        for number in range(MANY):
            config.write(f'[remote "r{number}"]\n\turl = /{"u" * 100_000}\n')
    (top / "wide").write_bytes(b"y" * MIB + b"\n")
    for number in range(3000):
        (top / f"{'e' * 240}{number}").touch()
        (top / f".git/refs/heads/{'l' * 200}{number}.lock").touch()
    with running(folder, env={**box.env, "MAX_RUNNING_AGENTS": "12"}) as process:
        with process.client() as client:
            for number in range(10):
                asked = create(client, agent="demo", prompt="ask " + "q" * 600_000, labels=[f"{number}" + "l" * 60])
                wait_status(client, asked["id"], "requires_action")
            told = create(client, agent="demo", prompt="repeat 30 big 400000", permission_mode="auto")
            wait_status(client, told["id"], "idle")
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


def lists() -> dict[str, dict[str, Any]]:
    """What the document says of each `GET` whose answer has a list of objects in it, a session's own view left out."""
    document = json.loads(documents.openapi())

    def resolved(schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return schema

    found = {}
    for path, operations in document["paths"].items():
        media = operations.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
        fields = resolved(media.get("application/json", {}).get("schema", {})).get("properties", {})
        if {"items", "files", "lines"} & {name for name, field in fields.items() if field.get("type") == "array"}:
            found[path] = {"fields": set(fields), "asks": {p["name"] for p in operations["get"].get("parameters", ())}}
    return found


def test_every_list_is_known_and_says_how_it_goes_on() -> None:
    found = lists()
    assert set(found) == PAGES | set(WHOLE)
    for path in PAGES:
        assert "limit" in found[path]["asks"] and {"cursor", "after"} & found[path]["asks"], path
        assert {"next_cursor", "has_more"} & found[path]["fields"], path


@pytest.mark.long
def test_no_answer_is_larger_than_it_may_be(client: httpx.Client) -> None:
    sessions = [item["id"] for item in client.get("/api/v1/agent-sessions?limit=100").json()["items"]]
    for path, (most, query) in WHOLE.items():
        answer = client.get(f"{path.replace('{id}', 'default')}?{query}")
        assert answer.status_code in (200, 413) and len(answer.content) <= most, (path, answer.text[:300])
    for path in PAGES:
        for session in sessions if "{session_id}" in path else [""]:
            target = path.replace("{id}", "default").replace("{session_id}", session)
            seen, query = 0, "limit=1000"
            while True:
                answer = client.get(f"{target}?{query}")
                if answer.status_code == 422:  # its own most is lower
                    query = query.replace("limit=1000", "limit=100")
                    continue
                assert answer.status_code == 200, (target, answer.text[:300])
                assert len(answer.content) <= PAGE_BYTES, target
                page = answer.json()
                seen += len(page["items"])
                if not page.get("next_cursor") and not page.get("has_more"):
                    break
                on = f"cursor={page['next_cursor']}" if "next_cursor" in page else f"after={page['items'][-1]['seq']}"
                query = f"{query.partition('&')[0]}&{on}"
            assert seen or path.endswith(("conflicts", "operations", "permissions")), target


@pytest.mark.long
def test_no_frame_is_larger_than_a_client_takes(server: ServerProcess, client: httpx.Client) -> None:
    """All that was said, again, and what is told now, on sockets with a library's own limit of 1 MiB."""
    sessions = client.get("/api/v1/agent-sessions?limit=100").json()["items"]
    for session in sessions:
        with server.socket(session["id"], "?events=all") as socket:
            for _ in range(session["last_seq"]):
                assert len(socket.recv(timeout=20)) <= MIB
    subprocess.run(["git", "-C", server.workspace, "tag", "-d", "t1"], check=True, capture_output=True)
    with connect(f"{server.url.replace('http', 'ws', 1)}/api/v1/ws?topics=files,git", proxy=None) as live:
        for number in range(3000):
            Path(server.workspace / f"{'e' * 240}{number}").unlink()
        gone = 0
        while gone < 3000:
            frame = live.recv(timeout=20)
            assert len(frame) <= MIB
            gone += json.loads(frame)["type"] == "file_changed"
