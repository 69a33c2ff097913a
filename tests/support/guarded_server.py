"""A small ASGI application behind the real connection class and gate, on loopback, in a thread; and raw clients for it."""

import asyncio
import contextlib
import encodings.idna  # noqa: F401  # see as_user
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from workspace_runtime.config import Config
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.security.connection import GuardedProtocol, http_protocol
from workspace_runtime.security.gate import HEALTH_PATHS, Gate
from workspace_runtime.streams.socket import SocketProtocol

NOBODY = 65534
TIMEOUT_S = 10.0
ON_UPGRADE = frozenset({"bad_host", "host_refused", "origin_refused", "peer_refused"})

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


@dataclass
class Guarded:
    """A running server, what its application did, and a hold on its loop."""

    port: int
    gate: Gate
    loop: asyncio.AbstractEventLoop
    ran: list[str] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    lost: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    done: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The application: admits, then notes that it ran; `/body` reads, `/wait` answers when told or left."""
        try:
            access = self.gate.admit(scope, scope["path"])
        except WorkspaceError as fault:
            await _refuse(scope, receive, send, fault)
            return
        if scope["type"] == "websocket":
            self.ran.append(f"WS {scope['path']}")
            await receive()
            await send({"type": "websocket.accept", "subprotocol": access.subprotocol})
            await send({"type": "websocket.send", "text": access.by})
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["path"] in HEALTH_PATHS:
            await _answer(send, 200, b"stranger" if access.stranger else b"user")
            return
        name = f"{scope['method']} {scope['path']}"
        self.ran.append(name)
        self.seen.append(scope)
        try:
            answer = access.by.encode()
            if scope["path"] == "/body":
                answer = await self._read(receive, name)
            elif scope["path"] == "/wait":
                await self._wait(receive)
            await _answer(send, 200, answer)
        finally:
            self.ended.append(name)
            self.done.release()

    async def _read(self, receive: Any, name: str) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ended.append(f"{name} cut")
                return b""
            body += message["body"]
            if not message["more_body"]:
                return b"<%b>" % bytes(body)

    async def _wait(self, receive: Any) -> None:
        async def left() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.ended.append("left")

        tasks = [asyncio.ensure_future(left()), asyncio.ensure_future(self.release.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing runs on the server's loop meanwhile."""
        stopped, go = threading.Event(), threading.Event()

        def hold() -> None:
            stopped.set()
            go.wait(TIMEOUT_S)

        self.loop.call_soon_threadsafe(hold)
        assert stopped.wait(TIMEOUT_S)
        try:
            yield
        finally:
            go.set()

    def await_lost(self, count: int = 1) -> None:
        """Wait until so many connections have ended."""
        for _ in range(count):
            assert self.lost.acquire(timeout=TIMEOUT_S)

    def connect(self, host: str = "127.0.0.1", *, bind: tuple[str, int] | None = None) -> socket.socket:
        """A raw connection."""
        client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            client.settimeout(TIMEOUT_S)
            if bind is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(bind)
            client.connect((host, self.port))
        except BaseException:
            client.close()
            raise
        return client

    def talk(self, data: bytes, host: str = "127.0.0.1") -> bytes:
        """Send, then read until the server closes."""
        with self.connect(host) as client:
            with contextlib.suppress(ConnectionError):  # refused before all was sent
                client.sendall(data)
            return read_all(client)


@contextlib.contextmanager
def guarded(
    config: Config | None = None, host: str = "127.0.0.1", loop: str = "uvloop", **limits: Any
) -> Iterator[Guarded]:
    """A server with these settings; `limits` replace the connection class's."""
    config = config or Config()
    made: list[Guarded] = []

    class Protocol(http_protocol(config)):  # type: ignore[misc]
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            made[0].lost.release()

    for name, value in limits.items():
        assert hasattr(GuardedProtocol, name)
        setattr(Protocol, name, value)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if host == "::":
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind((host, 0))
    listener.listen(128)
    started = threading.Event()

    async def run() -> None:
        made.append(Guarded(listener.getsockname()[1], Gate(config), asyncio.get_running_loop()))
        server = uvicorn.Server(
            uvicorn.Config(
                made[0], http=Protocol, ws=SocketProtocol, lifespan="off", log_config=None, access_log=False,
                interface="asgi3", server_header=False, proxy_headers=False,
                ws_per_message_deflate=False, timeout_graceful_shutdown=1,
            )
        )  # fmt: skip
        servers.append(server)
        started.set()
        await server.serve(sockets=[listener])

    servers: list[uvicorn.Server] = []
    factory = uvicorn.Config(made, loop=loop).get_loop_factory()  # type: ignore[arg-type]

    def thread() -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(run())

    worker = threading.Thread(target=thread)
    worker.start()
    assert started.wait(TIMEOUT_S)
    try:
        yield made[0]
    finally:
        made[0].loop.call_soon_threadsafe(made[0].release.set)
        servers[0].should_exit = True
        worker.join(TIMEOUT_S)
        listener.close()
        assert not worker.is_alive()


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Sockets made meanwhile belong to this user. What is imported meanwhile may fail, and is remembered as missing."""
    before = os.geteuid()
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(before)


def read_all(client: socket.socket) -> bytes:
    """What comes until the end of the connection, also a hard one."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65536):
            data += piece
    return data


def request(line: str = "GET / HTTP/1.1", *headers: str, host: str | None = "localhost", body: bytes = b"") -> bytes:
    """A request's bytes; closes the connection after its answer."""
    first = [f"Host: {host}"] if host is not None else []
    return "\r\n".join([line, *first, *headers, "Connection: close", "", ""]).encode("latin-1") + body


def status(answer: bytes) -> int:
    """The status of the first answer; 0 when there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


async def _answer(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(scope: Any, receive: Any, send: Any, fault: WorkspaceError) -> None:
    if scope["type"] == "http":
        await _answer(send, fault.status, fault.code.encode())
        return
    await receive()
    if fault.code in ON_UPGRADE:
        await send({"type": "websocket.http.response.start", "status": fault.status, "headers": []})
        await send({"type": "websocket.http.response.body", "body": fault.code.encode()})
        return
    await send({"type": "websocket.accept", "subprotocol": fault.data.get("subprotocol")})
    await send({"type": "websocket.close", "code": 4000 + fault.status, "reason": fault.code})
