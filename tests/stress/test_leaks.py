"""Nothing leaks: clients that come and go, sessions that begin and end."""

import os
import socket
from pathlib import Path

from support.server import children, create, eventually, running, wait_status


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_clients_and_sessions_leave_no_descriptor_and_no_process(tmp_path: Path) -> None:
    with running(tmp_path) as server, server.client() as client:
        pid = server.server_pid

        def round_trip() -> None:
            session = create(client, prompt="say hi")
            for query in ("", "?events=all", "?tail=0"):
                with server.socket(session["id"], query):
                    pass
            with client.stream(
                "GET", f"/api/v1/agent-sessions/{session['id']}/events", headers={"Accept": "text/event-stream"}
            ) as answer:
                assert answer.status_code == 200
            wait_status(client, session["id"], "idle")
            assert client.delete(f"/api/v1/agent-sessions/{session['id']}?purge=true").status_code == 204

        for _ in range(3):
            round_trip()
        eventually(lambda: not children(pid))
        before = descriptors(pid)
        for _ in range(12):
            round_trip()
        # the log's readers open the database when they are first needed: a few descriptors, and not one a round
        eventually(lambda: not children(pid) and descriptors(pid) < before + 8)


def test_a_client_that_leaves_in_the_middle_of_a_create_leaves_one_session(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        with server.client() as client:
            client.get("/health")
        body = b'{"agent": "demo", "title": "left"}'
        head = f"POST /api/v1/agent-sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as leaver:
                leaver.sendall(head.encode() + b"\r\n\r\n" + body)
                leaver.recv(1)
        with server.client() as client:
            eventually(lambda: len(client.get("/api/v1/agent-sessions?q=left").json()["items"]) == 5)
