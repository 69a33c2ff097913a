"""Changes of files as live events of the general WebSocket, through the running server: latency, many at once, set-up, fan-out.

The workspace has 100,000 files in 2,500 folders, and 8,000 folders that git ignores. `/health` is asked every 5 ms beside the work
that is large, by a process of its own, and in turns with it a server that has nothing else to do: what that one is late by is the
machine's doing. The bars of `/health` are for the median of some rounds, since one pause of the machine is longer than they are.
The writers are processes of their own, too; the subscribers read raw sockets.
"""

import contextlib
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from common import cpu_s, median, memory_mb, percentile, python, report, server
from streaming import frames
from watch_room import make_tree

from support.server import ServerProcess

SINGLE, MANY, SUBSCRIBERS = 200, 10_000, 20
LINGER_S = 5.0
ROUNDS = 5

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

NEIGHBOUR = """
import asyncio, uvloop
class Protocol(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok")
async def main():
    server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
uvloop.run(main())
"""

ASKER = """
import selectors, socket, sys, time
class Asked:
    def __init__(self, port):
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = b"GET /health HTTP/1.1\\r\\nHost: localhost:%d\\r\\n\\r\\n" % port
        self.took = []
        self.ask()
        self.took.clear()
    def ask(self):
        began = time.monotonic()
        self.connection.sendall(self.request)
        answer = b""
        while b"\\r\\n\\r\\n" not in answer:
            answer += self.connection.recv(65536)
        size = int(answer.lower().split(b"content-length: ")[1].split(b"\\r\\n")[0])
        while len(answer.partition(b"\\r\\n\\r\\n")[2]) < size:
            answer += self.connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        self.took.append((time.monotonic() - began) * 1000)
asked = [Asked(int(port)) for port in sys.argv[2:]]
selector = selectors.DefaultSelector()
selector.register(sys.stdin, selectors.EVENT_READ)
print("ready", flush=True)
due = time.monotonic()
while not selector.select(max(0, due - time.monotonic())):
    for one in asked:
        one.ask()
    due = max(due + float(sys.argv[1]), time.monotonic())
for one in asked:
    print(*one.took, flush=True)
"""
ASK_S = 0.005


class Health:
    """How long `/health` took beside some work, a list of rounds; and how long the neighbour took."""

    def __init__(self, name: str, *, p99: float = 20, worst: float = 50) -> None:
        self._name = name
        self._bars = p99, worst
        self._ours: list[list[float]] = []
        self._neighbour: list[list[float]] = []

    @contextlib.contextmanager
    def asked(self, process: ServerProcess, *, settle_s: float = 0.05) -> Iterator[None]:
        """One round: asked over one connection, from a process of its own, as long as the context is open."""
        neighbour = python("-c", NEIGHBOUR)
        assert neighbour.stdout is not None
        ports = process.url.rpartition(":")[2], neighbour.stdout.readline().strip()
        command = [sys.executable, "-c", ASKER, str(ASK_S), *ports]
        asker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert asker.stdin is not None
        assert asker.stdout is not None
        try:
            assert asker.stdout.readline() == "ready\n"
            time.sleep(settle_s)
            yield
            asker.stdin.close()
            for rounds in (self._ours, self._neighbour):
                rounds.append([float(word) for word in asker.stdout.readline().split()])
        finally:
            for ended in (asker, neighbour):
                ended.kill()
                ended.wait()
            asker.stdout.close()
            neighbour.stdout.close()

    def report(self) -> bool:
        """Print beside the bars; whether they hold."""
        ok = True
        for what, bar, part in (("p99", self._bars[0], 0.99), ("worst", self._bars[1], 1.0)):
            ours, other = ([percentile(took, part) for took in rounds] for rounds in (self._ours, self._neighbour))
            ok &= report(f"/health {self._name}, {what}", median(ours), "ms", bar)
            print(
                f"        (its neighbour {median(other):.1f} ms; the rounds {' '.join(f'{took:.0f}' for took in ours)})"
            )
        return ok


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
    times, growth = [], 0.0
    first = subscribe(process)
    health = Health("while the watch is set up")
    for _ in range(ROUNDS):
        first.close()
        time.sleep(LINGER_S + 1)  # the watch has ended
        before = memory_mb(process.server_pid)[0]
        with health.asked(process):
            began, cpu = time.monotonic(), cpu_s(process.server_pid)
            first = subscribe(process)
            times.append(time.monotonic() - began)
            cpu = cpu_s(process.server_pid) - cpu
            time.sleep(0.05)
        growth = max(growth, memory_mb(process.server_pid)[0] - before)
    print(f"      CPU for it: {cpu:.2f} s; the rounds {' '.join(f'{took:.2f}' for took in times)} s")
    ok = report("a WebSocket's upgrade with 100,000 files", median(times), "s", 1.5)
    ok &= report("memory for it", growth, "MB", 60)
    return health.report() and ok, first


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


def many(process: ServerProcess, reader: Reader, writer: Writer, files: list[Path], bar_s: float) -> tuple[bool, float]:
    """10,000 files changed by one process; whether all is told in time, and the server's CPU seconds."""
    subscribers = len(reader.bytes)
    lost = twice = 0
    times, cpus = [], []
    health = Health(f"during {MANY} changes to {subscribers}")
    for _ in range(ROUNDS):
        reader.told.clear()
        start = list(reader.bytes)
        with health.asked(process, settle_s=0.2):
            cpu = cpu_s(process.server_pid)
            writer.start(files)
            while len(reader.told) < MANY and reader.read(5):
                pass
            told = reader.last
            while reader.read(0.3):  # what is told twice comes soon after; and the other subscribers' last bytes
                pass
            cpus.append(cpu_s(process.server_pid) - cpu)
        began, written = writer.times()
        lost += MANY - len(reader.told)
        twice += sum(reader.told.values()) - len(reader.told)
        times.append((told if subscribers == 1 else reader.last) - began)
        sizes = {got - before for got, before in zip(reader.bytes, start, strict=True)}
        lost += len(sizes) - 1
    print(
        f"      {MANY / (written - began):.0f} writes a second; the rounds {' '.join(f'{took:.2f}' for took in times)} s"
    )
    print(f"      {lost} lost, {twice} told more than once, {reader.resyncs} resyncs; server CPU {median(cpus):.2f} s")
    ok = report(f"{MANY} changes to {subscribers}, lost", lost + reader.resyncs, "events", 0)
    ok &= report(f"{MANY} changes to {subscribers}, all told", median(times), "s", bar_s)
    return health.report() and ok, median(cpus)


def idle(process: ServerProcess, writer: Writer, files: list[Path]) -> bool:
    """What changes cost that nobody listens to, once the watch has ended."""
    time.sleep(LINGER_S + 2)
    began, cpu = time.monotonic(), cpu_s(process.server_pid)
    writer.start(files[:1000])
    writer.times()
    time.sleep(max(0.0, began + 5 - time.monotonic()))
    return report("CPU in 5 s, 1,000 changes, nobody listens", (cpu_s(process.server_pid) - cpu) * 1000, "ms", 30)


def make_workspace(top: Path) -> list[Path]:
    """The tree, and 10,000 more files in 100 folders, which are given."""
    make_tree(top)
    (top / ".git").mkdir()
    (top / ".gitignore").write_text("node_modules/\n")
    files = [top / "many" / f"folder{number // 100}" / f"file{number % 100}.txt" for number in range(MANY)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


def main() -> int:
    """Measure and print."""
    with server() as process:
        files = make_workspace(process.workspace)
        time.sleep(2)  # the agents' libraries are loaded soon after the start
        ok, first = set_up(process)
        writer = Writer()
        try:
            reader = Reader([first])
            ok &= singles(reader, files)
            held, alone = many(process, reader, writer, files, 2)
            ok &= held
            reader.close()
            reader = Reader([subscribe(process) for _ in range(SUBSCRIBERS)])
            held, cpu = many(process, reader, writer, files, 4)
            ok &= held
            reader.close()
            print(
                f"      {cpu / MANY * 1e6:.0f} µs of CPU an event in all, {alone / MANY * 1e6:.0f} µs with one subscriber"
            )
            ok &= report("CPU of one more delivery", (cpu - alone) / MANY / (SUBSCRIBERS - 1) * 1e6, "µs", 2)
            ok &= idle(process, writer, files)
        finally:
            writer.close()
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
