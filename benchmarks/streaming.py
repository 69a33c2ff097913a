"""From the agent to subscribers, durable first: latency at 1,000 events/s, and fan-out to 100 at 5,000 events/s.

A real agent process (the demo agent) writes paced events that carry their time; they pass driver, actor, log (fsync), hub and
WebSocket. Subscribers read raw sockets, so that the client costs little of the two cores.
"""

import selectors
import socket
import sys
import time
from collections.abc import Callable

from common import cpu_s, median, percentile, report, server

from support.server import ServerProcess, create, session_of, wait_status


def subscribe(process: ServerProcess, session_id: str) -> socket.socket:
    """A raw WebSocket of a session, after the upgrade."""
    port = int(process.url.rpartition(":")[2])
    made = socket.create_connection(("127.0.0.1", port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.sendall(
        f"GET /api/v1/ws/agent-sessions/{session_id}?tail=0 HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += made.recv(1)
    assert b" 101 " in head, head
    return made


def frames(buffer: bytearray) -> "list[bytes]":
    """Takes all whole text frames out of the buffer."""
    found = []
    start = 0
    while len(buffer) - start >= 2:
        size, at = buffer[start + 1], start + 2
        if size == 126:
            size, at = int.from_bytes(buffer[start + 2 : start + 4], "big"), start + 4
        elif size == 127:
            size, at = int.from_bytes(buffer[start + 2 : start + 10], "big"), start + 10
        if len(buffer) < at + size:
            break
        if buffer[start] == 0x81:
            found.append(bytes(buffer[at : at + size]))
        start = at + size
    del buffer[:start]
    return found


def latency(process: ServerProcess) -> bool:
    """1,000 events/s for 5 s to one subscriber."""
    with process.client() as client:
        session = create(client)
        wait_status(client, session["id"], "idle")
        subscriber = subscribe(process, session["id"])
        client.post(f"/api/v1/agent-sessions/{session['id']}/messages", json={"prompt": "flood 5000 200 1000"})
        took: list[float] = []
        buffer = bytearray()
        done = False
        while not done:
            buffer += subscriber.recv(65536)
            now = time.monotonic_ns()
            for frame in frames(buffer):
                if b'"type":"done"' in frame:
                    done = True
                elif b'"type":"text"' in frame:
                    took.append((now - int(frame.split(b'"content":"')[1].split(b" ")[1])) / 1e6)
        subscriber.close()
    assert len(took) == 5000, len(took)
    ok = report("agent → subscriber at 1,000 events/s, p50", median(took), "ms", 3)
    return report("agent → subscriber at 1,000 events/s, p99", percentile(took, 0.99), "ms", 15) and ok


def fan_out(process: ServerProcess, subscribers: int = 100, rate: int = 5000, seconds: int = 10) -> bool:
    """`rate` events/s of 280 bytes to each of the subscribers; CPU of the server, and nothing lost."""
    count = rate * seconds
    with process.client() as client:
        session = create(client)
        wait_status(client, session["id"], "idle")
        sockets = [subscribe(process, session["id"]) for _ in range(subscribers)]
        before, started = cpu_s(process.server_pid), time.monotonic()
        client.post(f"/api/v1/agent-sessions/{session['id']}/messages", json={"prompt": f"flood {count} 50 {rate}"})
        sizes, checked = drain(sockets, lambda tail: b'"type":"done"' in tail)
        wall, cpu = time.monotonic() - started, cpu_s(process.server_pid) - before
        for made in sockets:
            made.close()
        last = session_of(client, session["id"])["last_seq"]
    texts = [frame for frame in checked if b'"type":"text"' in frame]
    numbers = [int(frame.split(b'"content":"')[1].split(b" ")[0]) for frame in texts]
    whole = numbers == list(range(count)) and len(set(sizes)) == 1 and last > count
    print(
        f"      {subscribers} subscribers × {count} events of {sum(map(len, texts)) // count} bytes in {wall:.1f} s, server CPU {cpu:.2f} s"
    )
    print(
        f"{'ok  ' if whole else 'MISS'}  nothing lost: {len(texts)} of {count} at the one that was read, the same bytes at all: {len(set(sizes)) == 1}"
    )
    budget = (30 * count + 2 * count * subscribers) / 1e6
    print(f"      {(cpu * 1e6 / count):.1f} µs an event in all, {cpu * 1e6 / count / subscribers:.2f} µs a delivery")
    return report("fan-out: CPU of the budget (30 µs an event + 2 µs a delivery)", cpu / budget, "×", 1.0) and whole


def drain(sockets: "list[socket.socket]", is_last: Callable[[bytes], bool]) -> "tuple[list[int], list[bytes]]":
    """Read all sockets to the last event: the bytes each got, and the first one's frames."""
    sizes = [0] * len(sockets)
    first = bytearray()
    selector = selectors.DefaultSelector()
    for index, made in enumerate(sockets):
        made.setblocking(False)
        selector.register(made, selectors.EVENT_READ, index)
    waiting = set(range(len(sockets)))
    view = bytearray(1 << 20)
    while waiting:
        for key, _ in selector.select(30):
            index = key.data
            size = key.fileobj.recv_into(view)  # type: ignore[union-attr]
            assert size, "the server closed a connection"
            sizes[index] += size
            if index == 0:
                first += view[:size]
            if is_last(bytes(view[max(0, size - 512) : size])):
                waiting.discard(index)
    selector.close()
    return sizes, frames(first)


def main() -> int:
    """Measure and print."""
    with server() as process:
        time.sleep(3)  # the agents' libraries are loaded soon after the start
        ok = latency(process)
        ok &= fan_out(process)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
