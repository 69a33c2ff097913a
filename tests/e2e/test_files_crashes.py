"""Files when things break: the server killed in the middle, the disk full, clients that stop reading or go away."""

import contextlib
import hashlib
import io
import os
import random
import resource
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from support.asking import Answer, ask, multipart
from support.server import ServerProcess, eventually, running

FILES = "/api/v1/files"
JSON = {"Content-Type": "application/json"}
SIZE = 3_000_000


def rubbish(server: ServerProcess) -> list[Path]:
    return list(server.workspace.rglob(".workspace-runtime-*"))


def version(number: int) -> bytes:
    """A content that tells whether it is whole, and which one."""
    return b"%08d" % number * (SIZE // 8)


def is_whole(data: bytes) -> bool:
    return len(data) == SIZE and data == data[:8] * (SIZE // 8)


def while_killed(server: ServerProcess, work: Callable[[int], object], seconds: float) -> int:
    """Four threads work until the server is killed under them; how many files were on their way then."""
    stop = threading.Event()

    def client(number: int) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, httpx.HTTPError, ValueError, ConnectionError, EOFError):
                work(number)
            if server.process is None or server.process.poll() is not None:
                return

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)  # the instant is at random on purpose
    written = server.on_their_way()
    server.kill_server()
    stop.set()
    for thread in threads:
        thread.join()
    return written


def quietly(*asked: object) -> Answer | None:
    """A request that may be cut by the death of the server."""
    import http.client

    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(*asked)  # type: ignore[arg-type]
    return None


def zip_of(count: int, number: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in range(count):
            archive.writestr(f"unpacked/{each}", version(number))
    return packed.getvalue()


def test_a_server_that_is_killed_leaves_every_file_old_or_new(tmp_path: Path) -> None:
    dice = random.Random(1)
    server = ServerProcess(tmp_path)
    for name in ("put0", "put1", "up/a", "up/b", "source/a", "source/b/c"):
        (server.workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (server.workspace / name).write_bytes(version(0))
    packed = {number: zip_of(4, number) for number in range(1, 4)}
    turn = 0
    answered: dict[str, tuple[int, int]] = {}

    def work(number: int) -> None:
        nonlocal turn
        turn += 1
        mine = turn
        if number < 2:
            answer = quietly(server.url, "PUT", f"{FILES}/put{number}", version(mine))
            if answer is not None and answer.status == 200:
                answered[f"put{number}"] = (mine, answer.json["size"])
        elif number == 2:
            parts = [(name, version(mine)) for name in (b"up/a", b"up/b", b"up/new/%d" % (mine % 7))]
            quietly(server.url, "POST", f"{FILES}/upload", *multipart(*parts))
        else:
            body = orjson.dumps({"from": "source", "to": f"copies/{mine}"})
            quietly(server.url, "POST", f"{FILES}/copy", body, JSON)
            body, headers = multipart((b"in/a.zip", packed[mine % 3 + 1]))
            quietly(server.url, "POST", f"{FILES}/upload?extract=true", body, headers)

    written = 0
    for _ in range(6):
        server.start()
        assert rubbish(server) == []
        answered.clear()
        written += while_killed(server, work, dice.uniform(0.05, 0.5))
        for path in server.workspace.rglob("*"):
            if path.is_file() and not path.name.startswith(".workspace-runtime-"):
                assert is_whole(path.read_bytes()), path
        for name, (number, _) in answered.items():
            # what was answered is on the disk; the one after it may be there as well
            assert int((server.workspace / name).read_bytes()[:8]) >= number, name
    server.start()
    try:
        assert written > 0, "it was never killed in the middle of a write"
        assert rubbish(server) == []
        assert ask(server.url, "PUT", f"{FILES}/put0", b"after").status == 200
        assert (tmp_path / "state").is_dir()
    finally:
        server.stop()


def test_what_stands_in_a_folder_that_was_moved_meanwhile_is_cleaned_too(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path).start()
    (server.workspace / "folder").mkdir()
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.sendall(
            f"PUT {FILES}/folder/file HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n".encode()
            + bytes(3_000_000)
        )
        eventually(server.on_their_way)
        moved = ask(server.url, "POST", f"{FILES}/move", b'{"from": "folder", "to": "elsewhere"}', JSON)
        assert moved.status == 200
        server.kill_server()
    server.start()
    try:
        assert rubbish(server) == []
        assert os.listdir(server.workspace / "elsewhere") == []
    finally:
        server.stop()


# --- a full disk ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server whose workspace is a file system of 8 MB."""
    (tmp_path / "workspace").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path / "workspace")]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system can't be mounted here")
    try:
        with running(tmp_path) as server:
            yield server
    finally:
        subprocess.run(["umount", tmp_path / "workspace"], check=True)


def test_a_full_disk_changes_nothing(small_disk: ServerProcess) -> None:
    server = small_disk
    old = os.urandom(1_000_000)
    assert ask(server.url, "PUT", f"{FILES}/folder/f", old).status == 201
    (server.workspace / "other").write_bytes(bytes(1_000_000))
    big = bytes(20_000_000)
    chunks = [big[:1_000_000]] * 20
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small", b"x")
        archive.writestr("zeros", big)
    asked: list[tuple[str, str, object, dict[str, str]]] = [
        ("PUT", f"{FILES}/folder/f", big, {}), ("PUT", f"{FILES}/folder/f", iter(chunks), {}), ("PUT", f"{FILES}/new/deep/f", big, {}),
        ("PUT", f"{FILES}/folder/f?format=json", orjson.dumps({"content": "x" * 20_000_000}), {}),
    ]  # fmt: skip
    for method, target, body, headers in asked:
        answer = ask(server.url, method, target, body, headers)  # type: ignore[arg-type]
        assert (answer.status, answer.code) == (507, "disk_full"), answer
        assert rubbish(server) == []
        assert (server.workspace / "folder/f").read_bytes() == old
        assert not (server.workspace / "new").exists()
    answer = ask(
        server.url, "POST", f"{FILES}/upload", *multipart((b"small", b"x"), (b"folder/f", big), (b"last", b"y"))
    )
    assert answer.status in (409, 507), answer
    results = {item["path"]: item.get("code", item["result"]) for item in answer.json["items"]}
    assert results["small"] == "created" and results["folder/f"] == "disk_full"
    answer = ask(server.url, "POST", f"{FILES}/upload?extract=true", *multipart((b"a.zip", packed.getvalue())))
    assert answer.status in (409, 507) and "disk_full" in answer.body.decode(), answer
    assert rubbish(server) == []
    assert (server.workspace / "folder/f").read_bytes() == old
    (server.workspace / "large").write_bytes(bytes(4_000_000))
    for source, target in (("large", "copy"), ("large", "folder/f")):
        body = orjson.dumps({"from": source, "to": target, "overwrite": True})
        answer = ask(server.url, "POST", f"{FILES}/copy", body, JSON)
        assert (answer.status, answer.code) == (507, "disk_full"), answer
    (server.workspace / "tree").mkdir()
    os.rename(server.workspace / "large", server.workspace / "tree/large")
    answer = ask(server.url, "POST", f"{FILES}/copy", b'{"from": "tree", "to": "tree2"}', JSON)
    assert (answer.status, answer.code) == (507, "disk_full"), answer
    assert not (server.workspace / "copy").exists() and not (server.workspace / "tree2").exists()
    assert rubbish(server) == []
    assert (server.workspace / "folder/f").read_bytes() == old
    assert ask(server.url, "DELETE", f"{FILES}/tree?recursive=true").status == 204
    assert ask(server.url, "PUT", f"{FILES}/folder/f", b"small again").status == 200


def test_a_file_larger_than_the_server_may_write(tmp_path: Path) -> None:
    """`EFBIG`, and with it the signal that would end the server."""
    with running(tmp_path) as server:
        assert ask(server.url, "PUT", f"{FILES}/f", b"old").status == 201
        resource.prlimit(server.server_pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        for body in (bytes(5_000_000), iter([bytes(1_000_000)] * 5)):
            answer = ask(server.url, "PUT", f"{FILES}/f", body)
            assert (answer.status, answer.code) == (507, "disk_full"), answer
        answer = ask(server.url, "POST", f"{FILES}/upload", *multipart((b"f", bytes(5_000_000)), (b"good", b"g")))
        assert answer.status == 409 and [item["result"] for item in answer.json["items"]] == ["refused", "created"]
        assert (server.workspace / "f").read_bytes() == b"old" and rubbish(server) == []
        assert ask(server.url, "GET", "/health").status == 200


# --- clients that go, or do not read ------------------------------------------------------------------------------------------


def descriptors(server: ServerProcess) -> int:
    return len(os.listdir(f"/proc/{server.server_pid}/fd"))


def connect(server: ServerProcess, request: str, body: bytes = b"", *, buffer: int = 0) -> socket.socket:
    client = socket.socket()
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    client.sendall(f"{request} HTTP/1.1\r\nHost: localhost\r\n".encode() + body)
    return client


def test_clients_that_go_or_stop_reading_leave_no_descriptor(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        (server.workspace / "large").write_bytes(os.urandom(1_000_000) * 30)
        (server.workspace / "tree").mkdir()
        for number in range(5):
            (server.workspace / f"tree/{number}").write_bytes(os.urandom(5_000_000))
        upload, headers = multipart((b"a", bytes(3_000_000)), (b"b", bytes(3_000_000)))
        head = f"Content-Type: {headers['Content-Type']}\r\nContent-Length: {len(upload)}\r\n\r\n".encode()
        half = upload[: len(upload) * 3 // 4]
        requests = [
            (f"GET {FILES}/large", b"\r\n"), (f"GET {FILES}/large", b"Range: bytes=5-\r\n\r\n"), (f"GET {FILES}/tree?archive=zip", b"\r\n"),
            (f"GET {FILES}?archive=tar.gz", b"\r\n"), (f"PUT {FILES}/new", b"Content-Length: 9000000\r\n\r\n" + bytes(4_000_000)),
            (f"POST {FILES}/upload", head + half), ("GET /api/v1/search/content?q=x&ignored=true", b"\r\n"),
        ]  # fmt: skip
        for request, body in requests:
            connect(server, request, body).close()
        for url in (f"{FILES}/large", f"{FILES}?path=tree", f"{FILES}/tree?archive=zip"):
            assert ask(server.url, "GET", url).status == 200
        # the threads' first use of things leaves some open for good
        eventually(lambda: not rubbish(server))
        before = eventually(lambda: settled(lambda: descriptors(server)))
        for _ in range(4):
            stuck = [connect(server, request, body, buffer=4096) for request, body in requests]
            for client in stuck[:4]:
                client.recv(1000)
            assert ask(server.url, "GET", "/health").status == 200
            started = time.monotonic()
            assert len(ask(server.url, "GET", f"{FILES}/large").body) == 30_000_000
            assert time.monotonic() - started < 10
            for client in stuck:
                client.close()
        eventually(lambda: descriptors(server) <= before)
        eventually(lambda: rubbish(server) == [])
        assert not (server.workspace / "new").exists()
        assert (server.workspace / "a").exists() is (server.workspace / "a").is_file()


def settled(value: Callable[[], int]) -> int:
    """A value that stays the same for a while; 0 while it does not."""
    seen = {value()}
    for _ in range(20):
        time.sleep(0.02)
        seen.add(value())
    return seen.pop() if len(seen) == 1 else 0


def memory(server: ServerProcess, field: str = "VmHWM") -> int:
    """Bytes of memory: the most that it ever had, or `VmRSS` for now."""
    status = Path(f"/proc/{server.server_pid}/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


@pytest.mark.long
@pytest.mark.timeout(300)
def test_large_files_pass_in_little_memory(tmp_path: Path) -> None:
    block = os.urandom(1_000_000)
    size = 200
    expected = hashlib.sha256(block * size).hexdigest()
    boundary = b'--b\r\nContent-Disposition: form-data; name="f"; filename="up"\r\n\r\n'

    def body() -> Iterator[bytes]:
        for _ in range(size):
            yield block

    def form() -> Iterator[bytes]:
        yield boundary
        yield from body()
        yield b"\r\n--b--\r\n"

    with running(tmp_path) as server, server.client() as client:
        # once the threads have their share of the allocator's memory, nothing is added
        warm = block * 30
        for _ in range(3):
            assert ask(server.url, "PUT", f"{FILES}/warm", warm).status in (200, 201)
            assert ask(server.url, "PUT", f"{FILES}/warm", iter([block] * 30)).status == 200
            assert ask(server.url, "POST", f"{FILES}/upload", *multipart((b"warm", warm))).status == 201
            assert ask(server.url, "GET", f"{FILES}/warm").body == warm
        before = memory(server)
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        assert client.put(f"{FILES}/put", content=body(), timeout=120).status_code == 201
        assert client.post(f"{FILES}/upload", content=form(), headers=kind, timeout=120).status_code == 201
        for name in ("put", "up"):
            digest = hashlib.sha256()
            with client.stream("GET", f"{FILES}/{name}") as answer:
                for piece in answer.iter_bytes():
                    digest.update(piece)
            assert digest.hexdigest() == expected
        slow = connect(server, f"GET {FILES}/put", b"\r\n", buffer=4096)
        slow.recv(1)
        assert ask(server.url, "GET", "/health").status == 200
        slow.close()
        grown = memory(server) - before
        assert grown < 16 * 1024 * 1024, grown
