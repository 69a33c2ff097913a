"""Nothing leaks: clients that come and go, sessions that begin and end."""

import contextlib
import os
import socket
import struct
from pathlib import Path

import orjson
import pytest

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


def frame(message: bytes) -> bytes:
    """A text frame of a client, of 126 bytes and more; masked by zeros."""
    return b"\x81" + struct.pack("!BH", 0x80 | 126, len(message)) + bytes(4) + message


@pytest.mark.parametrize("of_a_session", [True, False])
def test_a_socket_that_is_never_read_is_let_go_when_its_client_leaves(tmp_path: Path, of_a_session: bool) -> None:
    pings = frame(orjson.dumps({"type": "ping", "request_id": "a" * 200})) * 200

    def connected() -> socket.socket:
        """A client that has sent until the server took no more: it waits until it can write."""
        left = socket.socket()
        left.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        left.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        left.sendall(head.encode())
        assert left.recv(12) == b"HTTP/1.1 101"
        left.settimeout(0.7)
        with pytest.raises(TimeoutError):
            while True:
                left.sendall(pings)
        return left

    with contextlib.ExitStack() as stays, running(tmp_path) as server, server.client() as client:
        session = create(client, prompt="say hi")["id"]
        wait_status(client, session, "idle")
        path = f"/api/v1/ws/agent-sessions/{session}?tail=0" if of_a_session else "/api/v1/ws"
        head = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        before = descriptors(server.server_pid)
        for _ in range(5):
            connected().close()
        eventually(lambda: descriptors(server.server_pid) <= before)
        stays.enter_context(connected())
    # A task that was still there would have been cancelled now, and that told.
    assert not [line for line in server.output if "Traceback" in line or "Exception" in line]
