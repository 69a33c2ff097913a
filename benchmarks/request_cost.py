"""`/health` and one session's read, with all checks on, against the same answers from a bare ASGI application on uvicorn.

CPU per request of the server process, over keep-alive connections; both servers take turns, and the ratio is of medians.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from common import cpu_s, median, python, report, server

from support.server import create, wait_status

REQUESTS = 20_000
CONNECTIONS = 8
ROUNDS = 5

BARE = """
import asyncio, json, sys, uvicorn, uvloop
health, session = sys.argv[1].encode(), open(sys.argv[2], 'rb').read()
async def app(scope, receive, send):
    if scope["type"] != "http": return
    body = health if scope["path"] == "/health" else session
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)
Server(uvicorn.Config(app, port=0, http="httptools", loop="uvloop", lifespan="off", log_level="warning", access_log=False)).run()
"""


async def load(port: int, path: str, requests: int) -> None:
    """Ask for `path` so many times over CONNECTIONS connections."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nAccept: */*\r\n\r\n".encode()

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(requests // CONNECTIONS):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(size)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))


def cost_us(pid: int, port: int, path: str, requests: int = REQUESTS) -> float:
    """CPU a request of the server, in µs."""
    before = cpu_s(pid)
    asyncio.run(load(port, path, requests))
    return (cpu_s(pid) - before) / requests * 1e6


def main() -> int:
    """Measure and print."""
    ok = True
    with server() as ours, ours.client() as client:
        session = create(client, prompt="say hello")
        wait_status(client, session["id"], "idle")
        time.sleep(2)
        path = f"/api/v1/agent-sessions/{session['id']}"
        stored = Path(ours.folder, "session.json")
        stored.write_bytes(client.get(path).content)
        health = json.dumps(client.get("/health").json(), separators=(",", ":"))
        bare = python("-c", BARE, health, str(stored))
        try:
            assert bare.stdout is not None
            port, own_port = int(bare.stdout.readline()), int(ours.url.rpartition(":")[2])
            for name, wanted in (("/health", "/health"), ("one session", path)):
                figures: dict[str, list[float]] = {"ours": [], "bare": []}
                for _ in range(ROUNDS):
                    figures["ours"].append(cost_us(ours.server_pid, own_port, wanted))
                    figures["bare"].append(cost_us(bare.pid, port, wanted))
                print(f"      {name}: ours {median(figures['ours']):.1f} µs, bare {median(figures['bare']):.1f} µs")
                ok &= report(f"{name} against bare ASGI", median(figures["ours"]) / median(figures["bare"]), "×", 1.3)
        finally:
            bare.terminate()
            bare.wait()
            assert bare.stdout is not None
            bare.stdout.close()
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
