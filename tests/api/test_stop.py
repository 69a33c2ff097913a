"""The stop: whoever is connected is let go with its last bytes or cut off, nothing fails, and nothing is left."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from support.server import ServerProcess, create, processes_with, running, wait_status
from support.stopping import CLIENTS, ask, connected, problems, read_to_end


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with running(tmp_path) as process:
        yield process


@pytest.mark.parametrize("name", CLIENTS)
def test_nobody_who_is_connected_makes_a_stop_fail(server: ServerProcess, name: str) -> None:
    with connected(server, name):
        assert server.stop() == 0
    assert problems(server) == []
    assert processes_with(str(server.workspace)) == []
    assert not [
        left for left in os.listdir(server.workspace) if left.startswith((".workspace-runtime", "half", "copy"))
    ]


def test_streams_end_whole_and_sockets_are_told(server: ServerProcess) -> None:
    with contextlib.ExitStack() as clients:
        with server.client() as client:
            session = create(client, prompt="say Hello\nwait 600", permission_mode="auto")["id"]
            wait_status(client, session, "running")
        path = f"/api/v1/agent-sessions/{session}/events"
        streams = {
            "session": ask(server, clients, f"GET {path}?events=all HTTP/1.1\nAccept: text/event-stream\n"),
            "general": ask(server, clients, "GET /api/v1/events HTTP/1.1\n"),
        }
        sockets = [
            clients.enter_context(server.socket(session, "?events=all")),
            clients.enter_context(connect(f"{server.url.replace('http', 'ws', 1)}/api/v1/ws", proxy=None)),
        ]
        for socket in sockets:
            socket.recv(timeout=20)
        assert server.stop() == 0
        ends = {name: read_to_end(stream) for name, stream in streams.items()}
        assert all(end.endswith(b"\r\n0\r\n\r\n") for end in ends.values()), ends
        assert b'"stop_reason":"server_restarted"' in ends["session"]
        for socket in sockets:
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    socket.recv(timeout=20)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "shutting_down")
    assert problems(server) == []
