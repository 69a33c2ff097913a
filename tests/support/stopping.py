"""Clients that could keep a server from stopping: each is connected and in the middle of something when its function returns."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from support.server import ServerProcess, create, eventually, wait_status

LARGE = 64 * 1024 * 1024
UPGRADE = (
    "Upgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n"
)
Client = Callable[[ServerProcess, contextlib.ExitStack], None]


def _connect(server: ServerProcess, clients: contextlib.ExitStack, *, small: bool = False) -> socket.socket:
    """A raw connection; `small`: with so little room that what is not read soon waits in the server."""
    client = clients.enter_context(socket.socket())
    client.settimeout(20)
    if small:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", urlsplit(server.url).port))
    return client


def ask(server: ServerProcess, clients: contextlib.ExitStack, head: str, *, small: bool = False) -> socket.socket:
    """Send a request and read the first bytes of its answer, and no more."""
    client = _connect(server, clients, small=small)
    client.sendall(head.replace("\n", "\r\n").encode() + b"Host: localhost\r\n\r\n")
    first = client.recv(256)
    assert first.startswith(b"HTTP/1.1 "), first
    return client


def _session(server: ServerProcess, prompt: str) -> str:
    with server.client() as client:
        return str(create(client, prompt=prompt, permission_mode="auto")["id"])


def idle(server: ServerProcess, clients: contextlib.ExitStack) -> None:
    """A connection that is kept, and one that has sent half a head."""
    ask(server, clients, "GET /health HTTP/1.1\n")
    _connect(server, clients).sendall(b"GET /hea")


def session_socket(server: ServerProcess, clients: contextlib.ExitStack) -> None:
    session = _session(server, "say Hello")
    for query in ("", "?events=all"):
        clients.enter_context(server.socket(session, query)).recv(timeout=20)


def live_socket(server: ServerProcess, clients: contextlib.ExitStack) -> None:
    ask(server, clients, f"GET /api/v1/ws HTTP/1.1\n{UPGRADE}")


def session_stream(server: ServerProcess, clients: contextlib.ExitStack) -> None:
    session = _session(server, "say Hello")
    ask(server, clients, f"GET /api/v1/agent-sessions/{session}/events HTTP/1.1\nAccept: text/event-stream\n")


def live_stream(server: ServerProcess, clients: contextlib.ExitStack) -> None:
    ask(server, clients, "GET /api/v1/events HTTP/1.1\n")


def deaf(server: ServerProcess, clients: contextlib.ExitStack) -> None:
    """Readers of a session that have more to come than they take: by a WebSocket and by SSE."""
    session = _session(server, "big 3000000")
    with server.client() as client:
        wait_status(client, session, "idle")
    path = f"/api/v1/agent-sessions/{session}/events?events=all"
    ask(server, clients, f"GET {path} HTTP/1.1\nAccept: text/event-stream\n", small=True)
    ask(server, clients, f"GET /api/v1/ws/agent-sessions/{session}?events=all HTTP/1.1\n{UPGRADE}", small=True)


def download(server: ServerProcess, clients: contextlib.ExitStack) -> None:
    """A file and a folder, of which little is taken."""
    with (server.workspace / "large").open("wb") as file:
        file.write(os.urandom(LARGE))
    ask(server, clients, "GET /api/v1/files/large HTTP/1.1\n", small=True)
    ask(server, clients, "GET /api/v1/files?archive=zip HTTP/1.1\n", small=True)


def upload(server: ServerProcess, clients: contextlib.ExitStack) -> None:
    """A write and a form that send a part and then nothing."""
    for head in (
        f"PUT /api/v1/files/half HTTP/1.1\nContent-Length: {LARGE}\n",
        "PUT /api/v1/files/half-too HTTP/1.1\nTransfer-Encoding: chunked\n",
        "POST /api/v1/files/upload HTTP/1.1\nContent-Type: multipart/form-data; boundary=b\nContent-Length: 900000\n",
        "PATCH /api/v1/agent-sessions/x HTTP/1.1\nContent-Type: application/json\nContent-Length: 900\n",
    ):
        client = _connect(server, clients)
        client.sendall(head.replace("\n", "\r\n").encode() + b"Host: localhost\r\n\r\n")
        if "multipart" in head:
            client.sendall(
                b'--b\r\nContent-Disposition: form-data; name="f"; filename="half-form"\r\n\r\n' + bytes(300_000)
            )
        elif "chunked" in head:
            client.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
        elif "PUT" in head:
            client.sendall(bytes(300_000))
    eventually(lambda: server.on_their_way() >= 2)


def search(server: ServerProcess, clients: contextlib.ExitStack) -> None:
    """A search whose matches are not taken, and one that has much to look at and finds nothing."""
    (server.workspace / "many").write_bytes(b"needle in a long line of hay\n" * 1_000_000)
    for number in range(40):
        os.link(server.workspace / "many", server.workspace / f"many-{number}")
    path = "/api/v1/search/content?limit=10000&context=10&q="
    ask(server, clients, f"GET {path}needle HTTP/1.1\n", small=True)
    client = _connect(server, clients)
    client.sendall(f"GET {path}(a|b|n)*(e|d)*[^y]zz&regex=true HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


def git(server: ServerProcess, clients: contextlib.ExitStack) -> None:
    """A commit whose hook does not end, one that waits for it, and a clone from where nobody answers."""
    for arguments in (("init", "-q"), ("config", "user.name", "A"), ("config", "user.email", "a@localhost")):
        subprocess.run(["git", *arguments], cwd=server.workspace, env=server.env, check=True)
    hook = Path(server.workspace / ".git/hooks/pre-commit")
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch begun\nsleep 1000\n")
    hook.chmod(0o700)
    (server.workspace / "file").write_text("x")
    subprocess.run(["git", "add", "file"], cwd=server.workspace, env=server.env, check=True)
    base = "/api/v1/workspaces/default/version-control"
    mute = clients.enter_context(socket.create_server(("127.0.0.1", 0)))
    bodies = [("commit", '{"message": "m"}'), ("commit", '{"message": "m"}')]
    bodies.append(("clone", f'{{"url": "http://127.0.0.1:{mute.getsockname()[1]}/x.git", "path": "copy"}}'))
    for what, body in bodies:
        client = _connect(server, clients)
        head = f"POST {base}/{what} HTTP/1.1\nHost: localhost\nContent-Type: application/json\nContent-Length: {len(body)}\n\n"
        client.sendall(head.replace("\n", "\r\n").encode() + body.encode())
    eventually((server.workspace / "begun").exists)
    mute.settimeout(20)
    clients.enter_context(mute.accept()[0])


def question(server: ServerProcess, clients: contextlib.ExitStack) -> None:
    """A turn that asks whether it may, with a client that watches."""
    with server.client() as client:
        session = create(client, prompt="write a.txt x")["id"]
        wait_status(client, session, "requires_action")
    ask(server, clients, f"GET /api/v1/agent-sessions/{session}/events HTTP/1.1\nAccept: text/event-stream\n")


CLIENTS: dict[str, Client] = {
    "idle connections": idle,
    "session WebSockets": session_socket,
    "general WebSocket": live_socket,
    "session SSE": session_stream,
    "general SSE": live_stream,
    "readers that do not read": deaf,
    "downloads": download,
    "uploads": upload,
    "content searches": search,
    "git operations": git,
    "an open question": question,
}


@contextlib.contextmanager
def connected(server: ServerProcess, *names: str) -> Iterator[None]:
    """These clients, or all of them, connected."""
    with contextlib.ExitStack() as clients:
        for name in names or CLIENTS:
            CLIENTS[name](server, clients)
        yield


def read_to_end(client: socket.socket) -> bytes:
    """What comes until the server closes. Raises `ConnectionError` where it is cut."""
    data = b""
    while piece := client.recv(65536):
        data += piece
    return data


def problems(server: ServerProcess) -> list[str]:
    """Lines of the server's log that tell of a failure."""
    return [line for line in server.output if "Traceback" in line or " ERROR " in line]
