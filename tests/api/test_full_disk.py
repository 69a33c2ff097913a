"""A full disk: what a client was told stays true, the server stops and starts all the same, and room can be made through it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.server import create, eventually, history, session_of, wait_status
from support.small_disk import ServerOnSmallDisk, SmallDisk, needs_root
from support.stopping import problems

pytestmark = needs_root


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerOnSmallDisk]:
    disk = SmallDisk(tmp_path / "disk", "16m")
    workspace, state = tmp_path / "disk" / "workspace", tmp_path / "disk" / "state"
    (disk.inside / "workspace").mkdir()
    process = ServerOnSmallDisk(disk, tmp_path, workspace, state)
    try:
        yield process.start()
    finally:
        process.stop()
        disk.close()


def fill(server: ServerOnSmallDisk) -> None:
    """Fill the disk with a file of the workspace."""
    server.disk.fill()
    os.replace(server.disk.inside / "fill", server.disk.inside / "workspace" / "fill")


def make_room(server: ServerOnSmallDisk) -> None:
    """As a user would, through the API; then the server is ready again by itself."""
    with server.client() as client:
        assert client.get("/health/ready").status_code == 503
        assert "fill" in [item["name"] for item in client.get("/api/v1/files").json()["items"]]
        assert client.delete("/api/v1/files/fill").status_code == 204
        eventually(lambda: client.get("/health/ready").status_code == 200)


def tracebacks(server: ServerOnSmallDisk) -> list[str]:
    return [line for line in problems(server) if "Traceback" in line]


def test_a_stop_on_a_full_disk_ends_well_and_the_start_after_it_closes_the_turn(server: ServerOnSmallDisk) -> None:
    with server.client() as client:
        session = create(client, prompt="say Hello\nwait 600", permission_mode="auto")["id"]
        wait_status(client, session, "running")
        eventually(lambda: any(event["type"] == "text" for event in history(client, session)))
    fill(server)
    assert server.stop() == 0
    assert tracebacks(server) == []
    server.start()
    make_room(server)
    with server.client() as client:
        wait_status(client, session, "idle")
        events = history(client, session)
        assert [event["stop_reason"] for event in events if event["type"] == "done"] == ["server_restarted"]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert server.stop() == 0
    assert tracebacks(server) == []


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_start_on_a_full_disk_comes_up_and_says_so(server: ServerOnSmallDisk, end: str) -> None:
    with server.client() as client:
        session = create(client, prompt="say Hello")["id"]
        wait_status(client, session, "idle")
        before = history(client, session)
    if end == "stop":
        assert server.stop() == 0
    else:
        server.kill_server()
    fill(server)
    server.start()
    with server.client() as client:
        assert client.get("/health/live").status_code == 200
        ready = client.get("/health/ready")
        assert ready.status_code == 503 and ready.json()["status"] == "degraded", ready.text
        refused = client.post("/api/v1/agent-sessions", json={"agent": "demo"}) if end == "stop" else None
        assert refused is None or (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
        for path in (f"/api/v1/agent-sessions/{session}", "/api/v1/agent-sessions", "/api/v1/permissions"):
            answer = client.get(path)
            assert answer.status_code == 200 or answer.json()["code"] == "storage_unavailable", answer.text
        assert client.get("/api/v1/search/files", params={"q": "fill"}).json()["items"]
    assert any("degraded" in line for line in server.output), server.output
    make_room(server)
    with server.client() as client:
        assert session_of(client, session)["status"] == "idle"
        assert history(client, session) == before
        wait_status(client, create(client, prompt="say Again")["id"], "idle")
    assert tracebacks(server) == []


@pytest.mark.long
def test_a_first_start_on_a_full_disk(server: ServerOnSmallDisk) -> None:
    assert server.stop() == 0
    for name in os.listdir(server.disk.inside / "state"):
        if name.startswith("log."):
            os.unlink(server.disk.inside / "state" / name)
    fill(server)
    server.start()
    make_room(server)
    with server.client() as client:
        wait_status(client, create(client, prompt="say Hello")["id"], "idle")
    assert tracebacks(server) == []
