"""Changes of files as live events of the general WebSocket, through the running server: latency, many at once, set-up, fan-out.

The workspace has 100,000 files in 2,400 folders, and 8,000 folders that git ignores. `/health` is asked every 5 ms beside the work
that is large, by a process of its own; what it is late by is the server's event loop, the interpreter's lock, and the machine:
how late it is while the server has nothing to do is printed first. The writers are processes of their own, too; the subscribers
read raw sockets.
"""

import contextlib
import os
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common import cpu_s, median, memory_mb, percentile, python, report, server
from streaming import frames
from watch_room import make_tree

from support.server import ServerProcess

SINGLE, MANY, SUBSCRIBERS = 200, 10_000, 20
LINGER_S = 5.0
ROUNDS = 3

WRITER = """
import sys, time
print("ready", flush=True)
for line in sys.stdin:
    began = time.monotonic()
    for path in line.rstrip("\\n").split("\\0"):
        with open(path, "ab", buffering=0) as file:
            file.write(b"x")
    print(began, time.monotonic(), flush=True)
"""

ASKER = """
import socket, sys, time
port, interval = int(sys.argv[1]), float(sys.argv[2])
connection = socket.create_connection(("127.0.0.1", port))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
request = b"GET /health HTTP/1.1\\r\\nHost: localhost:%d\\r\\n\\r\\n" % port
def ask():
    connection.sendall(request)
    answer = b""
    while b"\\r\\n\\r\\n" not in answer or len(answer.partition(b"\\r\\n\\r\\n")[2]) < size(answer):
        answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200"), answer
def size(answer):
    return int(answer.lower().split(b"content-length: ")[1].split(b"\\r\\n")[0])
ask()
took = []
print("ready", flush=True)
import selectors
selector = selectors.DefaultSelector()
selector.register(sys.stdin, selectors.EVENT_READ)
due = time.monotonic()
while not selector.select(max(0, due - time.monotonic())):
    began = time.monotonic()
    ask()
    took.append((time.monotonic() - began) * 1000)
    due = max(due + interval, time.monotonic())
print(*took, flush=True)
"""


class Health:
    """How long `/health` took, in ms, while `asking`."""

    def __init__(self) -> None:
        self.took: list[float] = []

    def report(self, name: str, *, p99: float = 20, worst: float = 50) -> bool:
        """Print beside the bars; whether they hold."""
        print(f"      {len(self.took)} times /health: p50 {median(self.took):.2f} ms")
        ok = report(f"/health {name}, p99", percentile(self.took, 0.99), "ms", p99)
        return report(f"/health {name}, worst", max(self.took), "ms", worst) and ok


@contextlib.contextmanager
def asking(port: int, interval: float = 0.005) -> Iterator[Health]:
    """Ask for `/health` over one connection, from a process of its own, as long as the context is open."""
    health = Health()
    process = subprocess.Popen(
        [sys.executable, "-c", ASKER, str(port), str(interval)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield health
        process.stdin.close()
        health.took += map(float, process.stdout.readline().split())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Writer:
    """A process that changes files as fast as it can."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._said()

    def start(self, paths: list[Path]) -> None:
        """Begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("\0".join(map(str, paths)) + "\n")
        self._process.stdin.flush()

    def times(self) -> tuple[float, float]:
        """Wait until it has written; when it began and ended."""
        began, ended = map(float, self._said().split())
        return began, ended

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def subscribe(process: ServerProcess) -> socket.socket:
    """A raw general WebSocket, after the upgrade."""
    port = int(process.url.rpartition(":")[2])
    made = socket.create_connection(("127.0.0.1", port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.sendall(
        f"GET /api/v1/ws HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = made.recv(1)
        assert data, "the server closed the connection"
        head += data
    assert b" 101 " in head, head
    return made


class Reader:
    """Reads subscribers' sockets, and counts what the first was told; of the others the bytes."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        self._selector = selectors.DefaultSelector()
        for index, made in enumerate(sockets):
            made.setblocking(False)
            self._selector.register(made, selectors.EVENT_READ, index)
        self._space = bytearray(1 << 20)
        self._buffer = bytearray()
        self.bytes = [0] * len(sockets)
        self.told: dict[bytes, int] = {}
        self.resyncs = 0
        self.last = 0.0

    def read(self, timeout: float) -> bool:
        """Take what is there; False when nothing came in time."""
        ready = self._selector.select(timeout)
        for key, _ in ready:
            size = self._sockets[key.data].recv_into(self._space)
            assert size, "the server closed a connection"
            self.last = time.monotonic()
            self.bytes[key.data] += size
            if key.data == 0:
                self._buffer += self._space[:size]
                for frame in frames(self._buffer):
                    self._take(frame)
        return bool(ready)

    def _take(self, frame: bytes) -> None:
        found = re.search(rb'"type":"file_changed","path":"([^"]*)"', frame)
        if found is None:
            self.resyncs += b'"type":"resync"' in frame
        else:
            self.told[found[1]] = self.told.get(found[1], 0) + 1

    def close(self) -> None:
        """Close the sockets."""
        self._selector.close()
        for made in self._sockets:
            made.close()


def set_up(process: ServerProcess) -> tuple[bool, socket.socket]:
    """From the connection to the answer to its upgrade."""
    port = int(process.url.rpartition(":")[2])
    before = memory_mb(process.server_pid)[0]
    with asking(port) as health:
        time.sleep(0.05)
        began, cpu = time.monotonic(), cpu_s(process.server_pid)
        first = subscribe(process)
        took = time.monotonic() - began
        time.sleep(0.05)
    print(f"      CPU for it: {cpu_s(process.server_pid) - cpu:.2f} s")
    ok = report("a WebSocket's upgrade with 100,000 files", took, "s", 1.5)
    ok &= report("memory for it", memory_mb(process.server_pid)[0] - before, "MB", 60)
    ok &= health.report("meanwhile")
    return ok, first


def singles(first: Reader, files: list[Path]) -> bool:
    """From right before each of 200 writes to its event."""
    took = []
    for file in files[:SINGLE]:
        wanted = len(first.told) + 1
        with open(file, "ab", buffering=0) as opened:
            began = time.monotonic()
            opened.write(b"x")
        while len(first.told) < wanted:
            assert first.read(10), f"no event of {file}"
        took.append((first.last - began) * 1000)
        time.sleep(0.01)
    print(f"      p90 {percentile(took, 0.9):.1f} ms, worst {max(took):.1f} ms")
    ok = report("a write to its event, p50", median(took), "ms", 60)
    return report("a write to its event, p99", percentile(took, 0.99), "ms", 120) and ok


def many(process: ServerProcess, reader: Reader, writer: Writer, files: list[Path]) -> tuple[bool, float]:
    """10,000 files changed by one process; whether all is told in time, and the server's CPU seconds."""
    subscribers = len(reader.bytes)
    reader.told.clear()
    start = list(reader.bytes)
    with asking(int(process.url.rpartition(":")[2])) as health:
        cpu = cpu_s(process.server_pid)
        writer.start(files)
        while len(reader.told) < len(files) and reader.read(5):
            pass
        told = reader.last
        while reader.read(0.3):  # what is told twice comes soon after; the other subscribers' last bytes, too
            pass
        cpu = cpu_s(process.server_pid) - cpu
    ended = reader.last
    began, written = writer.times()
    lost = len(files) - len(reader.told)
    twice = sum(reader.told.values()) - len(reader.told)
    print(f"      {len(files) / (written - began):.0f} writes a second, {told - written:.2f} s of it after the last")
    print(f"      {lost} lost, {twice} told more than once, {reader.resyncs} resyncs; server CPU {cpu:.2f} s")
    ok = report(f"{len(files)} changes to {subscribers}, lost", lost + reader.resyncs, "events", 0)
    seconds = (told if subscribers == 1 else ended) - began
    ok &= report(f"{len(files)} changes to {subscribers}, all told", seconds, "s", 2 if subscribers == 1 else 6)
    ok &= health.report(f"during {len(files)} changes to {subscribers}")
    if subscribers > 1:
        sizes = [got - before for got, before in zip(reader.bytes, start, strict=True)]
        ok &= report("difference of what they were sent", max(sizes) - min(sizes), "bytes", 0)
    return ok, cpu


def idle(process: ServerProcess, writer: Writer, files: list[Path]) -> bool:
    """What changes cost that nobody listens to, once the watch has ended."""
    time.sleep(LINGER_S + 2)
    began, cpu = time.monotonic(), cpu_s(process.server_pid)
    writer.start(files[:1000])
    writer.times()
    time.sleep(max(0.0, began + 5 - time.monotonic()))
    return report("CPU in 5 s, 1,000 changes, nobody listens", (cpu_s(process.server_pid) - cpu) * 1000, "ms", 30)


def once() -> bool:
    """One server, all figures."""
    with server() as process, tempfile.TemporaryDirectory() as _:
        make_tree(process.workspace)
        (process.workspace / ".git").mkdir()
        (process.workspace / ".gitignore").write_text("node_modules/\n")
        files = sorted(process.workspace.glob("area*/*/*/*.py"))
        chosen = [file for folder in range(100) for file in files[folder * 380 : folder * 380 + 38]]
        assert len(files) > MANY
        time.sleep(2)  # the agents' libraries are loaded soon after the start
        with asking(int(process.url.rpartition(":")[2])) as health:
            time.sleep(1)
        print(
            f"      /health while nothing goes on: p99 {percentile(health.took, 0.99):.2f} ms, worst {max(health.took):.2f} ms"
        )
        ok, first = set_up(process)
        writer = Writer()
        reader = Reader([first])
        ok &= singles(reader, files)
        for turn in range(ROUNDS):
            held, alone = many(process, reader, writer, files[turn * MANY : (turn + 1) * MANY])
            ok &= held
        reader.close()
        reader = Reader([subscribe(process) for _ in range(SUBSCRIBERS)])
        held, cpu = many(process, reader, writer, files[:MANY])
        reader.close()
        print(f"      {cpu / MANY * 1e6:.0f} µs an event in all, {alone / MANY * 1e6:.0f} µs with one subscriber")
        each = (cpu - alone) / MANY / (SUBSCRIBERS - 1) * 1e6
        ok &= held
        ok &= report("CPU of one more delivery", each, "µs", 5)
        ok &= idle(process, writer, files)
        writer.close()
        return ok


if __name__ == "__main__":
    sys.exit(0 if once() else 1)
