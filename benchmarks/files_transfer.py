"""Large files over one connection: a download against nginx, uploads against a bare ASGI application that writes to the same disk.

Throughput as the client sees it, CPU of the server process, and its memory at the peak. All sides take turns, and the ratio is of
medians. nginx (`apt-get install nginx-light`) runs with one worker, as a process of this benchmark, with and without sendfile: the
quicker counts. Where it is missing, the download is compared with a bare ASGI application that sends pieces of 256 KB. The peer of
the uploads does what ours does for durability, an fsync at the end; the ratio against one that does not is printed.
"""

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import cpu_s, median, memory_mb, python, report, server, wait_for

from support.server import children

ROUNDS = 7
DOWNLOAD_MB = 100
UPLOAD_MB = 200
PIECE = 1024 * 1024
MEMORY_BAR = 16
BOUNDARY = b"frontier"

BARE = """
import os, sys, uvicorn
from python_multipart.multipart import MultipartParser, parse_options_header
downloaded, folder = sys.argv[1:]
async def download(send):
    with open(downloaded, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        while data := file.read(256 * 1024):
            await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
class Parts:
    def __init__(self, content_type, path, flush):
        self.path, self.flush, self.file = path, flush, None
        self.parser = MultipartParser(parse_options_header(content_type)[1][b"boundary"], {
            "on_part_begin": self.begin, "on_part_data": self.data, "on_part_end": self.end})
    def begin(self):
        self.file = open(self.path, "wb", buffering=0)
    def data(self, data, start, end):
        self.file.write(memoryview(data)[start:end])
    def end(self):
        if self.flush: os.fsync(self.file.fileno())
        self.file.close()
    def write(self, data):
        self.parser.write(data)
    def close(self):
        pass
class Raw:
    def __init__(self, path, flush):
        self.file, self.flush = open(path, "wb", buffering=0), flush
    def write(self, data):
        self.file.write(data)
    def close(self):
        if self.flush: os.fsync(self.file.fileno())
        self.file.close()
async def app(scope, receive, send):
    if scope["type"] != "http": return
    if scope["method"] == "GET":
        await download(send)
        return
    flush, path = b"fsync" in scope["query_string"], os.path.join(folder, os.path.basename(scope["path"]))
    if scope["method"] == "POST":
        sink = Parts(dict(scope["headers"])[b"content-type"], path, flush)
    else:
        sink = Raw(path, flush)
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        sink.write(message.get("body", b""))
    sink.close()
    await send({"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)
Server(uvicorn.Config(app, port=0, http="httptools", loop="uvloop", lifespan="off", log_level="warning", access_log=False)).run()
"""

NGINX = """
daemon off; master_process on; worker_processes 1; pid {folder}/nginx.pid; error_log stderr error; {user}
events {{ worker_connections 64; }}
http {{
    access_log off; sendfile {sendfile}; tcp_nopush on; output_buffers 2 256k; default_type application/octet-stream;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@contextlib.contextmanager
def nginx(root: Path, sendfile: str) -> Iterator[tuple[int, int] | None]:
    """nginx for the files of a folder: the worker's process id and the port. None where it is not installed."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if program is None:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        user = "user root;" if os.geteuid() == 0 else ""  # or the worker could not read a private folder
        Path(folder, "nginx.conf").write_text(
            NGINX.format(folder=folder, port=port, root=root, user=user, sendfile=sendfile)
        )
        process = subprocess.Popen([program, "-e", "stderr", "-p", folder, "-c", f"{folder}/nginx.conf"])
        try:
            wait_for(lambda: children(process.pid) and listens(port))
            yield children(process.pid)[0], port
        finally:
            process.terminate()
            process.wait()


def listens(port: int) -> bool:
    """Whether something takes connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@contextlib.contextmanager
def bare(downloaded: Path, folder: Path) -> Iterator[tuple[int, int]]:
    """The bare application: its process id and its port."""
    process = python("-c", BARE, str(downloaded), str(folder))
    try:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def head_of(connection: socket.socket) -> tuple[bytes, int]:
    """The head of an answer, and how many bytes of its body came with it; the body is dropped."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(65536)
        assert data, "the server closed the connection"
        head += data
    head, _, body = head.partition(b"\r\n\r\n")
    return head.lower(), len(body)


def download(port: int, path: str) -> None:
    """Read a whole file and drop it."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nAccept: */*\r\n\r\n".encode())
        head, got = head_of(connection)
        assert b" 200 " in head, head
        size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        buffer = bytearray(PIECE)
        while got < size:
            done = connection.recv_into(buffer)
            assert done, "the answer was cut"
            got += done


def upload(port: int, path: str, method: str) -> None:
    """Send a body of UPLOAD_MB: raw by PUT, as one part by POST."""
    before = after = b""
    more = ""
    if method == "POST":
        before = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="upload.bin"\r\n\r\n' % BOUNDARY
        after = b"\r\n--%b--\r\n" % BOUNDARY
        more = f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\n"
    size = len(before) + UPLOAD_MB * PIECE + len(after)
    piece = os.urandom(PIECE)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: localhost:{port}\r\n{more}Content-Length: {size}\r\n\r\n".encode()
            + before
        )
        for _ in range(UPLOAD_MB):
            connection.sendall(piece)
        connection.sendall(after)
        head, _ = head_of(connection)
        assert b" 201 " in head, head


class Side:
    """One of those that are compared."""

    def __init__(self, name: str, pid: int, run: Callable[[], None], made: Path | None = None) -> None:
        self.name, self.pid, self.run, self.made = name, pid, run, made
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def once(self) -> None:
        """One turn; the file that it made is removed outside of the time."""
        before, began = cpu_s(self.pid), time.perf_counter()
        self.run()
        self.wall.append(time.perf_counter() - began)
        self.cpu.append(cpu_s(self.pid) - before)
        if self.made is not None:
            assert self.made.stat().st_size == UPLOAD_MB * PIECE
            self.made.unlink()
            os.sync()

    def show(self, megabytes: int) -> float:
        """Print throughput (of the median) and CPU (the clock of which is too coarse for a median); the throughput in MB/s."""
        speed = megabytes / median(self.wall)
        print(f"      {self.name}: {speed:.0f} MB/s, CPU {sum(self.cpu) * 1000 / megabytes / len(self.cpu):.2f} ms/MB")
        return speed


def measure(megabytes: int, *sides: Side) -> tuple[list[float], float]:
    """All sides in turns: their throughput, and the growth of the first one's memory at its peak, in MB."""
    before = rest_and_rewind(sides[0].pid)
    for side in sides:  # the first warms the caches; what memory it takes counts
        side.once()
        side.wall.clear()
        side.cpu.clear()
    growth = peak_mb(sides[0].pid) - before
    for _ in range(ROUNDS):
        for side in sides:
            before = rest_and_rewind(side.pid) if side is sides[0] else 0.0
            side.once()
            if side is sides[0]:
                growth = max(growth, peak_mb(side.pid) - before)
    return [side.show(megabytes) for side in sides], growth


def rest_and_rewind(pid: int) -> float:
    """Let the kernel count the peak of a process's memory anew from here; its memory now, in MB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return memory_mb(pid)[0]


def peak_mb(pid: int) -> float:
    """The peak of a process's memory in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> int:
    """Measure and print."""
    ok = True
    with server("--max-upload-bytes", str(2 * UPLOAD_MB * PIECE)) as ours:
        top = ours.workspace
        large = top / "large.bin"
        large.write_bytes(os.urandom(PIECE) * DOWNLOAD_MB)
        os.sync()
        peers = ours.folder / "peers"
        peers.mkdir()
        pid, port = ours.server_pid, int(ours.url.rpartition(":")[2])
        time.sleep(2)  # the agents' libraries are loaded soon after the start
        with nginx(top, "on") as one, nginx(top, "off") as other, bare(large, peers) as (bare_pid, bare_port):
            sides = [Side("ours", pid, functools.partial(download, port, "/api/v1/files/large.bin"))]
            for name, web in (("nginx, sendfile", one), ("nginx, no sendfile", other)):
                if web is not None:
                    sides.append(Side(name, web[0], functools.partial(download, web[1], "/large.bin")))
            sides.append(Side("bare ASGI, 256 KB", bare_pid, functools.partial(download, bare_port, "/large.bin")))
            print(f"      download of {DOWNLOAD_MB} MB")
            speeds, growth = measure(DOWNLOAD_MB, *sides)
            if one is None:
                print("      nginx is not installed (apt-get install nginx-light): a bare ASGI application instead")
            peer_speed = max(speeds[1:3]) if one is not None else speeds[1]
            peer_name = "nginx" if one is not None else "bare ASGI"
            ok &= report(f"download against {peer_name}", speeds[0] / peer_speed, "×", 0.8, at_most=False)
            ok &= report("memory for a download, at the peak", growth, "MB", MEMORY_BAR)
            for name, method, own_path, bar in (
                ("multipart", "POST", "/api/v1/files/upload?on_conflict=reject", 0.7),
                ("raw PUT", "PUT", "/api/v1/files/upload.bin", None),
            ):
                print(f"      upload of {UPLOAD_MB} MB, {name}")
                peer = functools.partial(upload, bare_port, method=method)
                speeds, growth = measure(
                    UPLOAD_MB,
                    Side("ours", pid, functools.partial(upload, port, own_path, method), top / "upload.bin"),
                    Side("bare ASGI, fsync", bare_pid, functools.partial(peer, "/peer.bin?fsync"), peers / "peer.bin"),
                    Side("bare ASGI", bare_pid, functools.partial(peer, "/peer.bin?lazy"), peers / "peer.bin"),
                )
                print(f"      {speeds[0] / speeds[2]:.2f} × the one without fsync")
                if bar is None:
                    print(f"      {speeds[0] / speeds[1]:.2f} × the one with fsync")
                else:
                    ok &= report(f"{name} against bare ASGI, fsync", speeds[0] / speeds[1], "×", bar, at_most=False)
                ok &= report(f"memory for an upload ({name}), at the peak", growth, "MB", MEMORY_BAR)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
