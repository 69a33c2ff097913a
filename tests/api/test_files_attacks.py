"""Attacks on the file API of a real, confined server. Whatever is tried, what lies beside the root stays unread and unchanged.

Beside the root stands a tree of canaries, in a folder whose name begins as the root's does. After each test it must be the very
same, no answer may have held its content or its names, and the server must answer at once. A hard link to an outside file can't
be told from any other file: who can make one in the workspace could read that file anyway, so there is no test for it.
"""

import contextlib
import gzip
import io
import os
import random
import re
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest

from support.asking import Answer, ask, multipart
from support.confined import ConfinedServer, confined
from support.server import eventually

MARKER = b"CANARY-7f3a9c51e2"
JSON = {"Content-Type": "application/json"}
FILES = "/api/v1/files"


@dataclass
class Arena:
    """The server, what lies beside its root, and a way to ask that never overlooks a leak."""

    server: ConfinedServer
    outside: Path
    before: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.server.workspace

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    def ask(self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """A request; its answer holds nothing from outside, and is no failure of the server."""
        answer = ask(self.server.url, method, target, body, headers)
        assert answer.status != 500, (method, target, answer)
        assert not leaks(answer.body), (method, target)
        assert not any(MARKER.decode() in value for value in answer.headers.values())
        return answer

    def post(self, action: str, **body: Any) -> Answer:
        names = {"source": "from", "target": "to", "source_bytes": "from_bytes", "target_bytes": "to_bytes"}
        sent = orjson.dumps({names.get(name, name): value for name, value in body.items()})
        return self.ask("POST", f"{FILES}/{action}", sent, JSON)

    def raw(self, data: bytes, *, end: bool = False) -> bytes:
        """Bytes over a socket, and all that comes back until the server closes or is silent for a while."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as client:
            with contextlib.suppress(OSError):
                client.sendall(data)
                if end:
                    client.shutdown(socket.SHUT_WR)
            came = b""
            with contextlib.suppress(OSError):
                while piece := client.recv(65536):
                    came += piece
                    if not end and whole(came):
                        break
        assert not leaks(came), data[:200]
        assert not came.startswith(b"HTTP/1.1 500"), (data[:200], came)
        return came

    def doors(self, target: str) -> dict[str, Answer]:
        """Through every door with a path that is encoded already; what came of each."""
        path = quote(target, safe="")
        escaped = orjson.dumps(target)
        other = b'"doors-other"'
        found = {
            "head": self.ask("HEAD", f"{FILES}/{target}"),
            "get": self.ask("GET", f"{FILES}/{target}"),
            "json": self.ask("GET", f"{FILES}/{target}?format=json"),
            "zip": self.ask("GET", f"{FILES}/{target}?archive=zip"),
            "tar": self.ask("GET", f"{FILES}?archive=tar.gz&path_bytes={path}"),
            "list": self.ask("GET", f"{FILES}?path_bytes={path}"),
            "list by path": self.ask("GET", f"{FILES}?path={target}"),
            "tree": self.ask("GET", f"{FILES}?path_bytes={path}&recursive=true&ignored=true"),
            "search": self.ask("GET", f"/api/v1/search/content?q=CANARY&ignored=true&path_bytes={path}"),
            "put": self.ask("PUT", f"{FILES}/{target}", b"planted"),
            "put below": self.ask("PUT", f"{FILES}/{target}/planted", b"planted"),
            "put json": self.ask("PUT", f"{FILES}/{target}?format=json", b'{"content": "planted", "mode": "0777"}'),
            "mkdir": self.ask("POST", f"{FILES}/mkdir", b'{"path_bytes": %b}' % escaped, JSON),
            "upload": self.ask("POST", f"{FILES}/upload?path_bytes={path}", *multipart((b"planted", b"planted"))),
        }
        for action in ("copy", "move"):
            for one, two in ((escaped, other), (other, escaped)):
                body = b'{"from_bytes": %b, "to_bytes": %b, "overwrite": true}' % (one, two)
                found[f"{action} {'from' if one is escaped else 'to'}"] = self.ask(
                    "POST", f"{FILES}/{action}", body, JSON
                )
        found["delete"] = self.ask("DELETE", f"{FILES}/{target}?recursive=true")
        return found

    def check(self) -> None:
        """All that must hold after any attack."""
        assert snapshot(self.outside) == self.before
        started = time.monotonic()
        assert ask(self.server.url, "GET", "/health").status == 200
        assert time.monotonic() - started < 1.0
        assert self.server.process is not None and self.server.process.poll() is None


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """All that a change of any kind would change."""
    found: dict[str, tuple[Any, ...]] = {}
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files, "."):
            path = os.path.join(above, name)
            status = os.lstat(path)
            content = Path(path).read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found[path] = (
                status.st_mode, status.st_ino, status.st_uid, status.st_nlink, status.st_size, status.st_mtime_ns,
                status.st_ctime_ns, content,
            )  # fmt: skip
    return found


def leaks(body: bytes) -> bool:
    """Whether an answer holds what is only outside, packed or not."""
    if MARKER in body or b"only-outside" in body:
        return True
    if body.startswith(b"\x1f\x8b"):
        with contextlib.suppress(EOFError, OSError):
            return leaks(gzip.decompress(body))
    if body.startswith(b"PK"):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(body)) as archive:
            return any(leaks(archive.read(name)) for name in archive.namelist())
    return False


def whole(came: bytes) -> bool:
    """Whether an answer has come to its end."""
    head, _, body = came.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    return length is not None and len(body) >= int(length[1])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("attacks")
    outside = folder / "workspace-evil"
    for name in ("canary.txt", "sub/canary.txt", "sub/deep/canary.txt", "only-outside.txt"):
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        (outside / name).write_bytes(MARKER * 100)
    for path in [*outside.rglob("*"), outside]:
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    with confined(folder, "--max-upload-bytes", "60000000") as server:
        yield Arena(server, outside, snapshot(outside))


@pytest.fixture
def arena(shared: Arena) -> Iterator[Arena]:
    shared.before = snapshot(shared.outside)
    try:
        yield shared
        shared.check()
        assert rubbish(shared) == ""
    finally:
        for path in shared.root.iterdir():
            subprocess.run(["rm", "-rf", "--", path], check=True)


def rubbish(arena: Arena) -> str:
    """Files that are half written; found by a program that no depth disturbs."""
    command = ["find", str(arena.root), "-name", ".workspace-runtime-*.tmp"]
    return subprocess.run(command, capture_output=True, text=True).stdout


# --- paths --------------------------------------------------------------------------------------------------------------

UP = "workspace-evil/canary.txt"
REFUSED = [
    f"../{UP}", f"..%2f{UP}", f"%2e%2e/{UP}", f"%2E%2e%2F{UP}", f".%2e/{UP}", f"a/../../{UP}", f"a/%2e%2e/%2e%2e/{UP}",
    f"./../{UP}", "/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "a//b", "a/./b", "%2e", "..", "%2e%2e", "../", "%2e%2e%2f",
    f"a/b/../../../{UP}", "a%00b", f"a%00/../../{UP}", "%00", "a/%00/b", "../workspace-evil", "../workspace/", "a/..", "a/%2e./b",
    f"..//{UP}", "/", "%2f", "a%2f%2fb", "/proc/self/root/etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("target", REFUSED)
def test_paths_that_are_refused_at_every_door(arena: Arena, target: str) -> None:
    roots = ("/", "%2f", "%2e")  # they mean the root where a folder is asked for by a query
    for door, answer in arena.doors(target).items():
        if target in roots and door in ("tar", "list", "tree", "search", "list by path", "upload"):
            continue
        if door == "head":
            assert answer.status == 400, (door, answer)
        elif "path" in door and "%00" not in target and target.startswith(("/", "%2")) and target in roots:
            continue
        else:
            assert (answer.status, answer.code) == (400, "path_invalid"), (door, answer)
    assert list(arena.root.iterdir()) in ([], [arena.root / "planted"])


INSIDE = [
    "%252e%252e/workspace-evil/canary.txt", "%252e%252e%252fworkspace-evil", "..%5cworkspace-evil%5ccanary.txt",
    "..\\workspace-evil\\canary.txt", "%c0%ae%c0%ae/workspace-evil/canary.txt", "%c0%ae%c0%ae%c0%afworkspace-evil",
    "%e0%80%ae%e0%80%ae/x", "%uff0e%uff0e/workspace-evil", "..;/workspace-evil/canary.txt", "..%3b/workspace-evil/canary.txt",
    "%EF%BC%8E%EF%BC%8E/workspace-evil/canary.txt", "..%00".replace("%00", "%01"), ".../workspace-evil", "..%20/workspace-evil",
    "%20../x", "~/x", "$HOME/x", "C:%5cwindows", "%%2e", "%", "%2", "%zz", "a%0d%0aX-Evil:%201", "-rf", "--help", "*", "a%23b", "a%3Fb",
]  # fmt: skip


@pytest.mark.parametrize("target", INSIDE)
def test_odd_names_are_names_inside_the_root(arena: Arena, target: str) -> None:
    for door, answer in arena.doors(target).items():
        assert answer.status < 500, (door, answer)
        assert "x-evil" not in answer.headers


def test_long_names_and_paths(arena: Arena) -> None:
    for name, good in (("n" * 255, True), ("n" * 256, False), ("%C3%A9" * 127, True), ("%C3%A9" * 128, False)):
        answer = arena.ask("PUT", f"{FILES}/{name}", b"x")
        assert answer.status == 201 if good else answer.code == "path_invalid", (name[:20], answer)
        answer = arena.ask("GET", f"{FILES}/{name}")
        assert answer.body == b"x" if good else answer.code == "path_invalid"
    folder = "/".join(["d" * 200] * 20)  # 4,019 bytes
    for size, good in ((75, True), (76, False), (200, False)):
        path = f"{folder}/{'f' * size}"
        answer = arena.ask("PUT", f"{FILES}/{path}", b"x")
        assert answer.status == 201 if good else answer.code == "path_invalid", (len(path), answer)
        answer = arena.ask("GET", f"{FILES}/{path}")
        assert answer.body == b"x" if good else answer.code == "path_invalid", (len(path), answer)
    for door, answer in arena.doors("/".join(["d" * 200] * 30)).items():
        assert 400 <= answer.status < 500, (door, answer)
    found = arena.ask("GET", f"{FILES}?path={'d' * 200}&recursive=true&limit=1000").json["items"]
    assert found[-1]["path"] == f"{folder}/{'f' * 75}"
    assert arena.ask("GET", f"{FILES}/{'d' * 200}?archive=zip").status == 200
    assert arena.ask("DELETE", f"{FILES}/{'d' * 200}?recursive=true").status == 204


def test_targets_as_no_client_would_send_them(arena: Arena) -> None:
    (arena.root / "file").write_bytes(b"inside")
    host = b"Host: localhost\r\nConnection: close\r\n\r\n"
    for target in (
        b"http://localhost/api/v1/files/../workspace-evil/canary.txt", b"http://localhost/api/v1/files/%2e%2e/workspace-evil/canary.txt",
        b"http://evil.example/api/v1/files/file", b"HTTP://LOCALHOST/api/v1/files//etc/passwd", b"//localhost/api/v1/files/file",
        b"/api/v1/files/../../../../etc/passwd", b"/api/v1/files/..;/workspace-evil/canary.txt", b"/api/v1/files/#/../workspace-evil",
        b"/api/v1/files/..#/canary.txt", b"/api/v1/files/..?/canary.txt", b"/api/v1/../v1/files/../workspace-evil/canary.txt", b"*", b"",
        b"/api/v1/files\\..\\workspace-evil", b"/api/v1/files/..\xc0\xafworkspace-evil/canary.txt", b"/API/V1/FILES/../workspace-evil",
        b"/api/v1/file%73/../workspace-evil/canary.txt", b"/api/v1/files%2f..%2fworkspace-evil%2fcanary.txt", b"/api//v1//files//etc/passwd",
        b"/api/v1/files/\x00", b"/api/v1/files/a\x01b", b"/api/v1/files/a b", b"/api/v1/files/" + b"a/" * 50_000, b"file:///etc/passwd",
        b"/api/v1/files/upload/../../workspace-evil/canary.txt", b"/api/v1/files/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        b"/api/v1/files?path=..&path=file", b"/api/v1/files?path=file&path=../workspace-evil", b"/api/v1/files?path=%2e%2e;path=x",
        b"/api/v1/files?path=&path_bytes=%252e%252e", b"/api/v1/files?archive=zip&path=../workspace-evil", b"/api/v1/files?" + b"a&" * 20_000,
    ):  # fmt: skip
        for method in (b"GET", b"HEAD", b"DELETE", b"PUT", b"POST", b"PROPFIND", b"TRACE", b"OPTIONS"):
            came = arena.raw(method + b" " + target + b" HTTP/1.1\r\nContent-Length: 0\r\n" + host)
            assert not came.startswith(b"HTTP/1.1 5") and b"root:" not in came, (method, target[:80], came[:300])
    assert (arena.root / "file").read_bytes() in (b"inside", b"") or not (arena.root / "file").exists()


def test_one_trailing_slash_names_the_same(arena: Arena) -> None:
    assert arena.ask("PUT", f"{FILES}/a/", b"x").status == 201
    assert arena.ask("GET", f"{FILES}/a/").body == b"x"
    assert arena.ask("GET", f"{FILES}/a//").code == "path_invalid"
    os.symlink(arena.outside, arena.root / "out")
    assert arena.ask("DELETE", f"{FILES}/out/?recursive=true").status == 204
    assert not os.path.lexists(arena.root / "out")


# --- links --------------------------------------------------------------------------------------------------------------


def test_links_that_lead_out_at_every_door(arena: Arena) -> None:
    (arena.root / "in").mkdir()
    targets = {
        "relative": "../workspace-evil", "absolute": str(arena.outside), "prefix": str(arena.root) + "-evil",
        "inside-out": f"in/../../{arena.outside.name}", "back": f"../{arena.root.name}/../workspace-evil", "proc": "/proc/self/root" + str(arena.outside),
        "dotted": str(arena.root) + "/in/../../workspace-evil", "slashes": "..//./workspace-evil//", "procfd": "/proc/self/fd", "devfd": "/dev/fd",
        "cwd": "/proc/self/cwd/workspace-evil", "root": "/", "up": "..",
    }  # fmt: skip
    for name, leads in targets.items():
        for first, then in (
            (name, ""),
            (name, "/canary.txt"),
            (name, "/sub"),
            (name, "/sub/canary.txt"),
            (name, "/new"),
            (f"in/{name}", "/sub/deep"),
        ):
            link = arena.root / first
            if os.path.lexists(link):
                link.unlink()
            if first.startswith("in/") and not leads.startswith("/"):
                leads = f"../{leads}"
            os.symlink(leads, link)
            for door, answer in arena.doors(first + then).items():
                itself = not then and door in ("delete", "copy from", "move from", "copy to", "move to")
                assert itself or answer.status in (403, 404, 409), (name, then, door, answer)
                if door == "head" or itself:
                    continue
                assert answer.code in ("path_outside", "file_not_found", "file_exists", "not_a_directory", "upload_refused"), (
                    name, then, door, answer,
                )  # fmt: skip
                told = door in ("get", "json", "put", "put json", "zip", "list") and os.path.lexists(link)
                if told and then != "/new" and name not in ("procfd", "devfd"):
                    assert answer.code == "path_outside", (name, then, door, answer)
            with contextlib.suppress(FileNotFoundError):
                (arena.root / "doors-other").unlink()
            arena.check()


def test_links_to_files_that_are_outside(arena: Arena) -> None:
    for number, leads in enumerate(
        (
            "../workspace-evil/canary.txt",
            str(arena.outside / "canary.txt"),
            "/dev/fd/0",
            "/dev/stdin",
            "/proc/self/environ",
            "/proc/self/fd/3",
            "/dev/zero",
        )
    ):
        name = f"link{number}"
        os.symlink(leads, arena.root / name)
        for method, body in (("GET", None), ("HEAD", None), ("PUT", b"planted")):
            answer = arena.ask(method, f"{FILES}/{name}", body)
            assert answer.status in (403, 404, 409), (leads, method, answer)
        body, headers = multipart((name.encode(), b"planted"))
        for conflict in ("overwrite", "rename", "reject"):
            answer = arena.ask("POST", f"{FILES}/upload?on_conflict={conflict}", body, headers)
            assert answer.status in (201, 409), (leads, conflict, answer)
            assert os.readlink(arena.root / name) == leads
        assert arena.post("copy", source=name, target=f"copy-of-{name}").status == 201
        assert os.readlink(arena.root / f"copy-of-{name}") == leads
        assert arena.ask("GET", f"{FILES}/copy-of-{name}").status in (403, 404, 409)
        (arena.root / "plain").write_bytes(b"plain")
        assert arena.post("move", source="plain", target=name, overwrite=True).status == 200
        assert not (arena.root / name).is_symlink()
        arena.check()


@pytest.mark.parametrize(("links", "good"), [(40, True), (41, False), (300, False)])
def test_chains_of_links(arena: Arena, links: int, good: bool) -> None:
    (arena.root / "l0").write_bytes(b"end")
    for number in range(links):
        os.symlink(f"l{number}", arena.root / f"l{number + 1}")
        os.symlink(arena.root / (f"l{number}" if number == 0 else f"a{number}"), arena.root / f"a{number + 1}")
    for last in (f"l{links}", f"a{links}"):
        got, put = arena.ask("GET", f"{FILES}/{last}"), arena.ask("PUT", f"{FILES}/{last}", b"end")
        assert (got.status, put.status) == (200, 200) if good else (got.code, put.code) == ("link_loop", "link_loop"), (
            last
        )
    (arena.root / "c0").symlink_to(arena.outside / "canary.txt")
    for number in range(30):
        os.symlink(f"c{number}", arena.root / f"c{number + 1}")
    assert arena.ask("GET", f"{FILES}/c30").code == "path_outside"
    assert arena.ask("PUT", f"{FILES}/c30", b"x").code == "path_outside"


def test_loops_of_links(arena: Arena) -> None:
    os.symlink("b", arena.root / "a")
    os.symlink("a", arena.root / "b")
    os.symlink(".", arena.root / "self")
    (arena.root / "file").write_bytes(b"x")
    for door, answer in arena.doors("a").items():
        assert answer.status < 500, (door, answer)
    assert arena.ask("GET", f"{FILES}/{'self/' * 40}file").body == b"x"
    assert arena.ask("GET", f"{FILES}/{'self/' * 41}file").code == "link_loop"
    assert arena.ask("GET", f"{FILES}?recursive=true").status == 200
    assert arena.ask("GET", f"{FILES}?archive=zip").status == 200


def test_a_folder_is_not_copied_into_itself_through_a_link(arena: Arena) -> None:
    (arena.root / "a/b").mkdir(parents=True)
    (arena.root / "a/f").write_bytes(b"x")
    for name, leads in (("same", "a"), ("here", "."), ("below", "a/b"), ("absolute", str(arena.root / "a"))):
        os.symlink(leads, arena.root / name)
    for source, target in (
        ("a", "same/x"), ("a", "here/a/x"), ("a", "below/x"), ("a", "absolute/x"), ("here/a", "a/x"), ("here/a", "same/b/x/y"),
    ):  # fmt: skip
        for action in ("copy", "move"):
            answer = arena.post(action, source=source, target=target)
            assert answer.code == "into_itself", (action, source, target, answer)
    assert sorted(path.name for path in (arena.root / "a").rglob("*")) == ["b", "f"]


def test_move_of_one_name_of_a_file_onto_another(arena: Arena) -> None:
    """rename(2) does nothing there; the answer must not say that it was moved while both names stay."""
    (arena.root / "one").write_bytes(b"x")
    os.link(arena.root / "one", arena.root / "two")
    assert arena.post("move", source="one", target="two", overwrite=True).status == 200
    assert os.listdir(arena.root) == ["two"]


def test_a_link_is_copied_over_a_file_in_one_step(arena: Arena) -> None:
    """Nobody who looks finds neither the old nor the new."""
    (arena.root / "file").write_bytes(b"old")
    os.symlink("file", arena.root / "link")
    stop = threading.Event()
    missed = 0

    def watch() -> None:
        nonlocal missed
        while not stop.is_set():
            missed += not os.path.lexists(arena.root / "target")

    (arena.root / "target").write_bytes(b"old")
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(100):
            assert arena.post("copy", source="link", target="target", overwrite=True).status == 200
    finally:
        stop.set()
        watcher.join()
    assert missed == 0


def test_conditions_hold_for_the_json_form_of_a_read_too(arena: Arena) -> None:
    (arena.root / "f").write_bytes(b"x")
    etag = arena.ask("GET", f"{FILES}/f?format=json").headers["etag"]
    assert arena.ask("GET", f"{FILES}/f?format=json", headers={"If-None-Match": etag}).status == 304
    assert arena.ask("GET", f"{FILES}/f?format=json", headers={"If-Match": '"x"'}).status == 412


# --- what is no file ------------------------------------------------------------------------------------------------------


def special_files(folder: Path) -> list[str]:
    os.mkfifo(folder / "fifo")
    here = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/socket")
    os.close(here)
    names = ["fifo", "socket"]
    if os.geteuid() == 0:
        os.mknod(folder / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        os.mknod(folder / "terminal", stat.S_IFCHR | 0o666, os.makedev(5, 0))
        os.mknod(folder / "block", stat.S_IFBLK | 0o600, os.makedev(7, 250))
        names += ["zero", "terminal", "block"]
    for name in [*names]:
        os.symlink(name, folder / f"to-{name}")
        names.append(f"to-{name}")
    return names


def test_no_fifo_device_or_socket_is_opened(arena: Arena) -> None:
    (arena.root / "d").mkdir()
    for name in special_files(arena.root / "d"):
        started = time.monotonic()
        for method, query, body in (
            ("GET", "", None), ("HEAD", "", None), ("GET", "?format=json", None), ("PUT", "", b"x"), ("PUT", "", b"x" * 100_000),
            ("PUT", "?format=json", b'{"content": ""}'),
        ):  # fmt: skip
            answer = arena.ask(method, f"{FILES}/d/{name}{query}", body)
            assert answer.status == 409 and (method == "HEAD" or answer.code == "not_a_file"), (name, method, answer)
        assert arena.ask("GET", f"{FILES}/d/{name}?archive=zip").code == "not_a_directory"
        assert arena.ask("GET", f"{FILES}?path=d/{name}").code == "not_a_directory"
        assert arena.ask("GET", f"{FILES}/d/{name}/below").code == "file_not_found"
        assert arena.ask("PUT", f"{FILES}/d/{name}/below", b"").code == "not_a_directory"
        assert arena.ask("GET", f"/api/v1/search/content?q=x&path=d/{name}").code == "not_a_file"
        if not name.startswith("to-"):
            assert arena.post("copy", source=f"d/{name}", target="copied").code == "not_a_file"
        (arena.root / "plain").write_bytes(b"new")
        assert arena.post("copy", source="plain", target=f"d/{name}").code == "file_exists"
        body, headers = multipart((name.encode(), b"up"))
        assert arena.ask("POST", f"{FILES}/upload?path=d&on_conflict=overwrite", body, headers).code == "upload_refused"
        assert arena.ask("POST", f"{FILES}/upload?path=d&on_conflict=reject", body, headers).code == "upload_refused"
        assert time.monotonic() - started < 5, name
    assert arena.ask("GET", "/api/v1/search/content?q=needle&path=d").status == 200
    assert arena.ask("GET", "/api/v1/search/files?q=fifo").status == 200
    types = {item["name"]: item["type"] for item in arena.ask("GET", f"{FILES}?path=d").json["items"]}
    assert types["fifo"] == types["socket"] == "other" and types["to-fifo"] == "symlink"
    for kind in ("zip", "tar.gz"):
        assert arena.ask("GET", f"{FILES}/d?archive={kind}").status == 200
    assert arena.post("copy", source="d", target="e").code == "not_a_file"
    assert not (arena.root / "e").exists()
    assert arena.post("move", source="d/fifo", target="moved").status == 200
    assert arena.ask("DELETE", f"{FILES}/moved").status == 204
    assert arena.ask("DELETE", f"{FILES}/d?recursive=true").status == 204


# --- huge -----------------------------------------------------------------------------------------------------------------


def all_pages(arena: Arena, query: str, limit: int = 1000) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = arena.ask("GET", f"{FILES}?{query}&limit={limit}{cursor}")
        assert page.status == 200, page
        items += page.json["items"]
        if page.json["next_cursor"] is None:
            return items
        cursor = "&cursor=" + quote(page.json["next_cursor"])


@contextlib.contextmanager
def health_all_along(arena: Arena, limit_s: float = 1.0) -> Iterator[None]:
    """The server answers others at once all the time."""
    stop = threading.Event()
    slowest = [0.0]

    def watch() -> None:
        while not stop.wait(0.02):
            started = time.monotonic()
            assert ask(arena.server.url, "GET", "/health").status == 200
            slowest[0] = max(slowest[0], time.monotonic() - started)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    assert slowest[0] < limit_s


@pytest.mark.long
def test_a_folder_of_many_entries(arena: Arena) -> None:
    folder = arena.root / "many"
    folder.mkdir()
    for number in range(10_000):
        os.symlink(f"../../workspace-evil/{number % 7}", folder / f"link{number}")
        (folder / f"file{number}").touch()
    with health_all_along(arena):
        items = all_pages(arena, "path=many")
        assert len({item["name"] for item in items}) == 20_000
        assert {item["name"] for item in all_pages(arena, "path=many&recursive=true")} == {
            item["name"] for item in items
        }
        with zipfile.ZipFile(io.BytesIO(arena.ask("GET", f"{FILES}/many?archive=zip").body)) as archive:
            assert len(archive.namelist()) == 20_001
        assert arena.ask("GET", "/api/v1/search/files?q=file1234").json["items"]
        assert arena.ask("DELETE", f"{FILES}/many?recursive=true").status == 204
    assert not folder.exists()


def deep(folder: Path, levels: int, name: str = "d") -> None:
    """A tree that is deeper than a path can be."""
    at = os.open(folder, os.O_RDONLY)
    for number in range(levels):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
        if number % 500 == 0:
            os.close(os.open("leaf", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=at))
    os.close(at)


@pytest.mark.parametrize(("levels", "name"), [(2000, "d"), (100, "d" * 100)])
def test_very_deep_trees(arena: Arena, levels: int, name: str) -> None:
    (arena.root / "top").mkdir()
    deep(arena.root / "top", levels, name)
    with health_all_along(arena):
        first = arena.ask("GET", f"{FILES}?path=top&recursive=true&limit=50").json
        reached = min(levels, 4095 // (len(name) + 1))  # deeper than that nothing can be named
        assert len(first["items"]) >= min(50, reached)
        found = len(arena.ask("GET", f"{FILES}?path=top&recursive=true&limit=1000").json["items"])
        assert found >= min(1000, reached)
        with tarfile.open(fileobj=io.BytesIO(arena.ask("GET", f"{FILES}/top?archive=tar.gz").body)) as tar:
            assert sum(member.isdir() for member in tar) == levels + 1
        assert arena.ask("GET", f"{FILES}/top?archive=zip").status in (200, 400)
        assert arena.ask("GET", "/api/v1/search/files?q=leaf").status == 200
        assert arena.ask("GET", "/api/v1/search/content?q=leaf").status == 200
        copied = arena.post("copy", source="top", target="copy")
        assert copied.status == 201 or copied.code == "path_invalid", copied
        assert copied.status == 201 or not (arena.root / "copy").exists()
        assert arena.post("move", source="top", target="moved").status == 200
        assert arena.ask("DELETE", f"{FILES}/moved?recursive=true").status == 204
    assert not (arena.root / "moved").exists()


def test_a_deep_tree_is_listed_page_by_page(arena: Arena) -> None:
    (arena.root / "top").mkdir()
    deep(arena.root / "top", 1500)
    items = all_pages(arena, "path=top&recursive=true", limit=400)
    assert sum(item["type"] == "directory" for item in items) == 1500


# --- headers ---------------------------------------------------------------------------------------------------------------


def test_ranges_and_conditions_that_abuse(arena: Arena) -> None:
    (arena.root / "f").write_bytes(b"0123456789")
    etag = arena.ask("GET", f"{FILES}/f").headers["etag"]
    for value in (
        "bytes=0-0," * 5000 + "0-0", "bytes=-" + "9" * 5000, "bytes=" + "0" * 5000 + "-", "bytes=0-" + "9" * 18, "bytes=-1-2", "bytes=1-2-3",
        "bytes=0x1-2", "bytes=+1-2", "bytes=1 - 2", "bytes=\u0661-2".encode().decode("latin-1"), "bytes==1-2", "BYTES=1-2", "bytes=٣".encode().decode("latin-1"),
        "bytes=" + "," * 5000, "bytes=9999999999999999999-", "bytes=0-,-1", "items=0-1", "\x01", "bytes=\xff-",
    ):  # fmt: skip
        for method in ("GET", "HEAD"):
            answer = arena.ask(method, f"{FILES}/f", headers={"Range": value})
            assert answer.status in (200, 206, 400, 416, 431), (value[:50], answer)
            if answer.status == 200 and method == "GET":
                assert answer.body == b"0123456789"
    for value in (
        '"x", ' * 800 + etag, "\"", '"a" "b"', "W/", 'W/"', '"' * 3000, ", , ,", etag + ",", "*,*", "\xff\xfe", '"' + "a" * 7000, "W/" * 3000, " " * 7000 + "x",
        '"\t"', "'x'", "null", "[]", '"a",' * 1900,
    ):  # fmt: skip
        for name in ("If-Match", "If-None-Match", "If-Range", "If-Modified-Since", "If-Unmodified-Since"):
            started = time.monotonic()
            answer = arena.ask("GET", f"{FILES}/f", headers={name: value, "Range": "bytes=0-3"})
            assert answer.status in (200, 206, 304, 400, 412, 431), (name, value[:50], answer)
            assert time.monotonic() - started < 1
        answer = arena.ask("PUT", f"{FILES}/f", b"0123456789", {"If-Match": value})
        assert answer.status in (200, 400, 412, 431), (value[:50], answer)
        etag = arena.ask("GET", f"{FILES}/f").headers["etag"]
    assert arena.ask("PUT", f"{FILES}/f", b"new", {"If-Match": f'"nope", , "x",{etag}'}).status == 200
    for name, value in (("If-Match", '"x"'), ("If-None-Match", "*")):
        assert arena.ask("PUT", f"{FILES}/f", b"bad", {name: value}).status == 412
        assert arena.ask("PUT", f"{FILES}/f?format=json", b'{"content": "bad"}', {name: value}).status == 412
    for date in (
        "Thu, 99 Foo 99999 99:99:99 GMT",
        "0",
        "-1",
        "Thu, 01 Jan 99999999999 00:00:00 GMT",
        "Thu, 01 Jan 1970 00:00:00 +9999",
        "x" * 5000,
    ):
        for name in ("If-Modified-Since", "If-Unmodified-Since", "If-Range"):
            assert arena.ask("GET", f"{FILES}/f", headers={name: date, "Range": "bytes=0-1"}).status in (
                200,
                206,
                304,
                412,
                431,
            )
    assert (arena.root / "f").read_bytes() == b"new"


def test_bodies_where_none_is_wanted_and_lengths_that_lie(arena: Arena) -> None:
    (arena.root / "f").write_bytes(b"old")
    put = b"PUT /api/v1/files/f HTTP/1.1\r\nHost: localhost\r\n"
    for request, expected in (
        (b"HEAD /api/v1/files/f HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", b"200"),
        (b"GET /api/v1/files/f HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"200"),
        (put + b"Content-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\nnew", b"100"),
        (put + b"Content-Length: -1\r\n\r\nnew", b"400"),
        (put + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nnews", b"400"),
        (put + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nnew\r\n0\r\n\r\n", b"400"),
        (put + b"Content-Length: 0x3\r\n\r\nnew", b"400"),
        (put + b"Content-Length: 99999999999999999999999\r\n\r\nnew", b"4"),
        (put + b"Content-Length: 9999999999\r\n\r\nnew", b"413"),
        (put + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nnew\r\n0\r\n\r\n", b"400"),
        (put + b"Transfer-Encoding: gzip\r\nContent-Length: 3\r\n\r\nnew", b"4"),
        (put + b"X: " + b"y" * 200_000 + b"\r\nContent-Length: 3\r\n\r\nnew", b"431"),
        (put + b"".join(b"X%d: y\r\n" % number for number in range(20_000)) + b"Content-Length: 3\r\n\r\nnew", b"431"),
    ):  # fmt: skip
        (arena.root / "f").write_bytes(b"old")
        came = arena.raw(request)
        assert came.startswith(b"HTTP/1.1 " + expected), (request[:120], came[:200])
        assert (arena.root / "f").read_bytes() == (b"new" if expected == b"100" else b"old"), request[:120]
        if request.startswith(b"HEAD"):
            assert came.endswith(b"\r\n\r\n")
    (arena.root / "f").write_bytes(b"old")
    arena.raw(put + b"Content-Length: 100\r\n\r\nshort", end=True)
    arena.raw(put + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nhe", end=True)
    assert (arena.root / "f").read_bytes() == b"old"


def test_json_that_abuses(arena: Arena) -> None:
    (arena.root / "f").write_bytes(b"old")
    for body in (
        b"[" * 100_000, b'{"content":' * 50_000, b'{"content": "\\ud800"}', b'{"content": "\\udc00\\ud800"}', b'{"content": 1e999}', b'{"content": NaN}',
        b'{"content": ' + b"9" * 100_000 + b"}", b"\xff\xfe{\x00}\x00", b'\xef\xbb\xbf{"content": ""}', b"null", b'"content"', b"",
        b'{"content": "x", "mode": "7777777"}', b'{"content": "x", "mode": "0o7"}', b'{"content": "x", "mode": "-777"}', b'{"content": "x", "mode": " 77"}',
        b'{"content": "eA", "encoding": "base64"}', b'{"content": "eA==\\n", "encoding": "base64"}', b'{"content": "x", "path": "../x"}', b'{"content": "x", "encoding": null}',
        b'{"content": "x\xff"}', b'{"content": "\xed\xa0\x80"}', b'{"content": "x", "mode": "\xd9\xa1\xd9\xa1\xd9\xa1"}',
    ):  # fmt: skip
        answer = arena.ask("PUT", f"{FILES}/f?format=json", body)
        assert answer.status in (400, 422), (body[:60], answer)
        assert (arena.root / "f").read_bytes() == b"old"
    assert arena.ask("PUT", f"{FILES}/f?format=json", b'{"content": "a", "content": "b"}').status == 200
    assert (arena.root / "f").read_bytes() == b"b"
    assert arena.ask("PUT", f"{FILES}/f?format=json&format=raw", b"raw").status in (200, 422)
    assert arena.ask("PUT", f"{FILES}/f?format=json", b"plain bytes").code == "malformed_json"
    for body in (
        b'{"from": "f", "to": "../workspace-evil/x"}', b'{"from": "../workspace-evil/canary.txt", "to": "x"}', b'{"from": "/etc/passwd", "to": "x"}',
        b'{"from": "f", "to": "a\\u0000b"}', b'{"from": "f", "to": "\\ud800"}', b'{"from": "f", "to": ""}', b'{"from": "f", "from_bytes": "f", "to": "x"}',
        b'{"from": "f", "to": "x", "to": "../x"}', b'{"from": "f", "to_bytes": "%2e%2e/x"}', b'{"from": "f", "to": ["x"]}', b'{"from": "f", "to": {"a": 1}}',
        b"[" * 50_000, b'{"from": "f", "to": "' + b"x" * 10_000 + b'"}', b'{"from": "f", "to": "x", "overwrite": "maybe"}', b'{"from": ".", "to": "x"}',
    ):  # fmt: skip
        for action in ("move", "copy"):
            answer = arena.ask("POST", f"{FILES}/{action}", body, JSON)
            assert answer.status in (400, 413, 422), (action, body[:60], answer)
    assert sorted(os.listdir(arena.root)) == ["f"]


# --- uploads --------------------------------------------------------------------------------------------------------------

TYPE = {"Content-Type": "multipart/form-data; boundary=b"}


def part(disposition: bytes, content: bytes = b"x", more: bytes = b"") -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + disposition + b"\r\n" + more + b"\r\n" + content + b"\r\n"


def upload(arena: Arena, body: bytes, query: str = "", headers: dict[str, str] = TYPE) -> Answer:
    return arena.ask("POST", f"{FILES}/upload{query}", body, headers)


def test_multipart_that_abuses(arena: Arena) -> None:
    (arena.root / "folder").mkdir()
    (arena.root / "file").write_bytes(b"old")
    os.symlink(arena.outside, arena.root / "out")
    good = b'name="f"; filename="good"'
    end = b"--b--\r\n"
    for body, statuses in (
        (part(good), (400,)), (part(good)[:-2] + b"--b", (400,)), (part(good) + b"--b-", (400,)), (part(good) + b"--bX\r\n", (400,)),
        (b"\r\n" * 1000 + part(good) + end, (201, 400)), (part(good) + end + b"epilogue" * 1000, (201,)), (part(good) + end + part(b'filename="late"') + end, (201,)),
        (part(b'filename="folder"') + end, (409,)), (part(b'filename="file/below"') + end, (409,)), (part(b'filename="out/planted"') + end, (409,)),
        (part(b'filename="out"') + end, (409,)), (part(b'filename="../workspace-evil/planted"') + end, (409,)), (part(b'filename="a\x00b"') + end, (400, 409)),
        (part(b'filename="\x01\x02\x1f\x7f"') + end, (201, 400)), (part(b'filename="a"; filename="../b"') + end, (201, 400, 409)),
        (part(b"filename*=utf-8''..%2fworkspace-evil%2fplanted") + end, (201, 400, 409)), (part(b'filename=""') + end, (400,)),
        (part(b'filename="' + b"n" * 300 + b'"') + end, (409,)), (part(b'filename="' + b"d/" * 3000 + b'x"') + end, (409,)),
        (part(good, more=b"Content-Type: multipart/mixed; boundary=c\r\n", content=b"--c\r\n\r\nx\r\n--c--") + end, (201,)),
        (part(good, more=b"Content-Transfer-Encoding: base64\r\n", content=b"!!") + end, (409,)), (part(good, more=b"Content-Length: 99999\r\n") + end, (201,)),
        (part(good, more=b"Content-Disposition: form-data; filename=../../x\r\n") + end, (201, 400, 409)), (part(good, more=b"bad header\r\n") + end, (400,)),
        (part(good, more=b": empty\r\n") + end, (201, 400)), (part(good, more=b"X: \x00\r\n") + end, (201, 400)), (part(good, more=b"X: " + b"y" * 50_000 + b"\r\n") + end, (400,)),
        (b"--b\r\n\r\nx\r\n" * 3000 + part(good) + end, (201,)), (part(b'name="x"') * 3000 + end, (400,)), (b"", (400,)), (b"--b", (400,)), (b"-" * 100_000, (400,)),
        (b"--b\r\n" * 5000 + end, (400,)), (part(b'filename="%2e%2e%2fx"') + end, (201,)), (part(b'filename="..\\..\\x"') + end, (201, 409)),
        (part(b'filename=".git/hooks/pre-commit"') + end, (201, 409)), (part(b'filename="C:\\..\\x"') + end, (201, 409)),
        (part(b'filename="trailing/"') + end, (201, 409)), (part(b'filename=".workspace-runtime-0123456789abcdef.tmp"') + end, (201, 409)),
    ):  # fmt: skip
        answer = upload(arena, body)
        assert answer.status in statuses, (body[:120], answer)
        if answer.status == 409:
            assert answer.code == "upload_refused" and all(
                item["code"] for item in answer.json["items"] if item["result"] == "refused"
            )
        assert (arena.root / "file").read_bytes() == b"old" and os.listdir(arena.root / "folder") == []
        with contextlib.suppress(FileNotFoundError):
            (arena.root / ".workspace-runtime-0123456789abcdef.tmp").unlink()
    for content_type in (
        "multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary="', "multipart/form-data; boundary=" + "b" * 10_000,
        "multipart/form-data; boundary=\xff\xfe", "multipart/mixed; boundary=b", "text/plain", "multipart/form-data; boundary*=utf-8''%ff", "x" * 5000, ";;;;", "multipart/form-data; charset=utf-7; boundary=b; boundary=c",
        "multipart/form-data; boundary=b; charset=rot13", "MULTIPART/FORM-DATA; BOUNDARY=b",
    ):  # fmt: skip
        answer = upload(arena, part(good) + end, headers={"Content-Type": content_type})
        assert answer.status in (201, 400, 415, 431), (content_type[:60], answer)
    for query in (
        "?path=../workspace-evil",
        "?path=out",
        "?path=file",
        "?path=/etc",
        "?path=%00",
        "?path_bytes=%252e%252e",
        "?path=folder/..",
    ):
        answer = upload(arena, part(b'filename="planted"') + end, query)
        assert answer.status in (400, 409), (query, answer)


def test_an_upload_of_thousands_of_parts_leaves_others_alone(arena: Arena) -> None:
    body = b"".join(part(b'filename="p/%d"' % number, b"%d" % number) for number in range(500))
    fields = part(b'name="x"') * 50_000
    with health_all_along(arena):
        assert upload(arena, fields + body + b"--b--\r\n").status == 201
    assert len(os.listdir(arena.root / "p")) == 500
    assert (arena.root / "p/499").read_bytes() == b"499"


def test_clients_that_leave_in_the_middle_of_an_upload(arena: Arena) -> None:
    (arena.root / "f").write_bytes(b"old")
    head = b"POST /api/v1/files/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 5000000\r\n\r\n"
    with contextlib.ExitStack() as clients:
        for _ in range(10):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", arena.port)))
            client.sendall(head + part(b'filename="f"', b"new" * 700_000)[:-2])
        eventually(lambda: arena.server.on_their_way() == 10)
    eventually(lambda: not arena.server.on_their_way())
    assert not rubbish(arena)
    assert (arena.root / "f").read_bytes() == b"old"


# --- archives -------------------------------------------------------------------------------------------------------------


def tar_of(*entries: tuple[str, bytes, str]) -> bytes:
    """Entries (type, name, what it leads to, or content)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, value in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = value
                tar.addfile(info)
            else:
                info.size = len(value) if kind == tarfile.REGTYPE else 0
                tar.addfile(info, io.BytesIO(value.encode()))
    return packed.getvalue()


def extracted(arena: Arena, archive: bytes, query: str = "", name: bytes = b"a.bin") -> Answer:
    return arena.ask("POST", f"{FILES}/upload?extract=true{query}", *multipart((name, archive)))


def test_archives_that_attack(arena: Arena) -> None:
    reg, link, hard, folder = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
    os.symlink(arena.outside, arena.root / "out")
    outside = str(arena.outside)
    for entries in (
        [("../workspace-evil/planted", reg, "x")], [(f"{outside}/planted", reg, "x")], [("a/../../workspace-evil/planted", reg, "x")],
        [("l", link, outside), ("l/planted", reg, "x")], [("l", link, "../workspace-evil"), ("l/canary.txt", reg, "x")], [("h", hard, f"{outside}/canary.txt"), ("h", reg, "x")],
        [("d", folder, ""), ("d", link, outside), ("d/planted", reg, "x")], [("out/planted", reg, "x")], [("out", reg, "x")], [("out/sub", folder, "")],
        [(".git/hooks/pre-commit", reg, "x")], [("sub/.git/config", reg, "x")], [(".GIT/config", reg, "x")], [("x", tarfile.FIFOTYPE, "")], [("x", tarfile.CHRTYPE, "")],
        [("x", tarfile.BLKTYPE, "")], [("..", folder, "")], [(".", folder, "")], [("", reg, "x")], [("/", folder, "")], [("a" * 300, reg, "x")],
        [("a/" * 2500 + "x", reg, "x")], [("a\nb", reg, "x")], [("C:\\x", reg, "x")], [("..\\..\\x", reg, "x")], [("a//b", reg, "x")], [(".workspace-runtime-0123456789abcdef.tmp", reg, "x")],
        [("file", reg, "x"), ("file/below", reg, "x")],
    ):  # fmt: skip
        answer = extracted(arena, tar_of(*entries))
        assert answer.status in (201, 400, 409, 422), (entries, answer)
        packed = io.BytesIO()
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(packed, "w") as archive:
            for name, kind, value in entries:
                info = zipfile.ZipInfo(name or "x")
                modes = {reg: stat.S_IFREG, link: stat.S_IFLNK, folder: stat.S_IFDIR, tarfile.FIFOTYPE: stat.S_IFIFO}
                info.external_attr = (modes.get(kind, stat.S_IFREG) | 0o6777) << 16
                archive.writestr(info, value)
        answer = extracted(arena, packed.getvalue(), "&on_conflict=rename")
        assert answer.status in (201, 400, 409, 422), (entries, answer)
        for path in arena.root.rglob("*"):
            assert path == arena.root / "out" or not path.is_symlink(), (entries, path)
            status = path.lstat()
            assert stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or path.name == "out"
            assert path.name == "out" or not status.st_mode & 0o7000
        assert not list(arena.root.rglob("hooks")) and not list(arena.root.rglob(".git"))
        arena.check()


def test_archive_bombs(arena: Arena) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(40):
            archive.writestr(f"zero{number}", bytes(4_000_000))
    with health_all_along(arena):
        answer = extracted(arena, packed.getvalue())
        assert answer.code in ("archive_too_large", "upload_refused"), answer
        assert any(item.get("code") == "archive_too_large" for item in answer.json["items"])
        written = sum(path.stat().st_size for path in arena.root.iterdir())
        assert written <= 60_000_000
        lying = bytearray(packed.getvalue())
        at = lying.find(b"PK\1\2")
        lying[at + 24 : at + 28] = b"\1\0\0\0"  # the first says that it has one byte
        assert extracted(arena, bytes(lying)).status in (409, 413, 422)
        for junk in (
            b"PK\3\4" + os.urandom(5000),
            b"\x1f\x8b\x08" + os.urandom(5000),
            b"BZh9" + os.urandom(5000),
            b"\xfd7zXZ\0" + os.urandom(5000),
        ):
            assert extracted(arena, junk).status in (409, 422)
        nested = gzip.compress(gzip.compress(bytes(50_000_000)))
        assert extracted(arena, nested).status in (409, 422)


# --- races ----------------------------------------------------------------------------------------------------------------

FLIPPER = """
import ctypes, os, shutil, sys
os.chdir(sys.argv[1])
outside = sys.argv[2]
call = ctypes.CDLL(None, use_errno=True).renameat2
shapes = ("folder", "link", "file", "fifo", "relative", "tofile", "inner", "folder2")
def make(name):
    path = "stash/" + name
    if os.path.lexists(path):
        return
    if name.startswith("folder"):
        os.makedirs(path + "/sub/deep", exist_ok=True)
        for file in ("canary.txt", "sub/canary.txt", "sub/deep/canary.txt", "inner.txt"):
            open(path + "/" + file, "w").write("harmless")
    elif name == "link":
        os.symlink(outside, path)
    elif name == "relative":
        os.symlink("../../workspace-evil", path)
    elif name == "tofile":
        os.symlink(outside + "/canary.txt", path)
    elif name == "inner":
        os.symlink("stash/folder", path)
    elif name == "fifo":
        os.mkfifo(path)
    else:
        open(path, "w").write("harmless")
os.makedirs("stash", exist_ok=True)
turn = 0
print("ready", flush=True)
while True:
    turn += 1
    name = shapes[turn % len(shapes)]
    for flags in (2, 0):
        if call(-100, b"x", -100, b"stash/" + name.encode(), flags) == 0:
            break
    if call(-100, b"stash/" + name.encode(), -100, b"x", 2) != 0 or turn % 50 == 0:
        try:
            for name in shapes:
                make(name)
            if not os.path.lexists("x"):
                os.rename("stash/folder", "x")
        except OSError:
            pass
    spin = turn * 7919 % 400
    for _ in range(spin):
        pass
"""


REPLACER = """
import ctypes, os, sys
os.chdir(sys.argv[1])
call = ctypes.CDLL(None, use_errno=True).renameat2
os.symlink(sys.argv[2], "ready-link")
print("ready", flush=True)
while True:
    if call(-100, b"y", -100, b"ready-link", 2) == 0:
        for _ in range(3000):
            pass
        try:
            os.unlink("y")
            os.rmdir("ready-link")
            os.symlink(sys.argv[2], "ready-link")
        except OSError:
            pass
"""


def race_operations(number: int) -> list[tuple[str, str, Any, dict[str, str]]]:
    """What one client does, again and again."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("canary.txt", "planted")
        archive.writestr("sub/planted", "planted")
    packed, packed_type = multipart((b"a.zip", zipped.getvalue()))
    sent, sent_type = multipart((b"canary.txt", b"planted"), (b"sub/deep/planted", b"planted" * 20_000))
    base = f"{FILES}/race/x"
    operations: list[tuple[str, str, Any, dict[str, str]]] = [
        ("GET", f"{base}/canary.txt", None, {}), ("GET", f"{base}/sub/deep/canary.txt", None, {}), ("GET", base, None, {}),
        ("GET", f"{base}/canary.txt?format=json", None, {}), ("HEAD", f"{base}/canary.txt", None, {}), ("GET", f"{base}/only-outside.txt", None, {}),
        ("PUT", f"{base}/canary.txt", b"planted", {}), ("PUT", f"{base}/new/planted{number}", b"planted" * 20_000, {}), ("PUT", base, b"planted", {}),
        ("PUT", f"{base}/sub/canary.txt?format=json", b'{"content": "planted", "mode": "0777"}', {}),
        ("DELETE", f"{base}/canary.txt", None, {}), ("DELETE", f"{base}/sub?recursive=true", None, {}), ("DELETE", f"{base}?recursive=true", None, {}),
        ("GET", f"{FILES}?path=race/x", None, {}), ("GET", f"{FILES}?path=race&recursive=true&ignored=true&limit=1000", None, {}),
        ("GET", f"{FILES}?path=race/x/sub&recursive=true", None, {}), ("GET", f"{base}?archive=zip", None, {}), ("GET", f"{FILES}/race?archive=tar.gz", None, {}),
        ("POST", f"{FILES}/upload?path=race/x", sent, sent_type), ("POST", f"{FILES}/upload?path=race/x&on_conflict=rename", sent, sent_type),
        ("POST", f"{FILES}/upload?path=race/x&extract=true", packed, packed_type), ("GET", "/api/v1/search/content?q=CANARY&path=race/x", None, {}),
        ("GET", "/api/v1/search/content?q=CANARY&ignored=true", None, {}), ("GET", "/api/v1/search/files?q=canary", None, {}),
        ("POST", f"{FILES}/mkdir", b'{"path": "race/x/made/by"}', JSON),
    ]  # fmt: skip
    for source, target in (
        ("race/x", f"copies/{number}-a"), ("race/x/sub", f"copies/{number}-b"), ("race/x/canary.txt", f"copies/{number}-c"), (f"copies/{number}-c", "race/x/canary.txt"),
        ("race/stash/folder", "race/x/put"), ("race/stash/folder2", "race/x"), ("plain", "race/x/sub/plain"), ("race", f"copies/{number}-d"),
    ):  # fmt: skip
        for action in ("copy", "copy", "move") if source != "race" else ("copy",):
            body = orjson.dumps({"from": source, "to": target, "overwrite": True})
            operations.append(("POST", f"{FILES}/{action}", body, JSON))
    return operations


@contextlib.contextmanager
def disturbing(program: str, arena: Arena) -> Iterator[None]:
    """A process that changes `race` in the workspace as fast as it can."""
    command = [sys.executable, "-c", program, str(arena.root / "race"), str(arena.outside)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


def race(arena: Arena, seconds: float, choose: Callable[[tuple[str, str, Any, dict[str, str]]], bool]) -> None:
    """Clients against a process that exchanges what `race/x` is."""
    (arena.root / "race").mkdir()
    (arena.root / "plain").mkdir()
    (arena.root / "plain/canary.txt").write_bytes(b"harmless")
    faults: dict[Any, Any] = {}
    counts: dict[int, int] = {}
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        dice = random.Random(number)
        operations = [operation for operation in race_operations(number) if choose(operation)]
        while time.monotonic() < until:
            operation = dice.choice(operations)
            try:
                answer = ask(arena.server.url, *operation)
            except Exception as fault:  # an archive that is cut is fine
                if "archive=" not in operation[1] and "search/content" not in operation[1]:
                    faults[operation[:2]] = repr(fault)
                continue
            counts[answer.status] = counts.get(answer.status, 0) + 1
            # the name alone may come from the request
            body = (
                answer.body.replace(b"race/x/only-outside.txt", b"") if "only-outside" in operation[1] else answer.body
            )
            if answer.status >= 500 or leaks(body):
                faults[operation[:2]] = answer

    with disturbing(FLIPPER, arena):
        threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    said = "".join(arena.server.output)[-4000:]
    assert not faults, "\n".join([*(f"{asked}: {answer}" for asked, answer in faults.items()), said])
    assert counts.get(200, 0) and sum(counts.values()) > 20, counts
    found = subprocess.run(
        ["grep", "-rlsI", "--devices=skip", MARKER.decode(), arena.root], capture_output=True, text=True, timeout=50
    )
    assert found.stdout == ""
    arena.check()


RACES = {
    "read": lambda one: one[0] in ("GET", "HEAD"),
    "change": lambda one: one[0] in ("PUT", "DELETE") or "upload" in one[1] or "mkdir" in one[1],
    "copy": lambda one: "/copy" in one[1] or "/move" in one[1] or one[0] == "DELETE",
    "all": lambda one: True,
}


@pytest.mark.parametrize("kind", RACES)
def test_nothing_outside_is_reached_while_folders_become_links(arena: Arena, kind: str) -> None:
    race(arena, 2.5, RACES[kind])


@pytest.mark.long
@pytest.mark.parametrize("kind", RACES)
def test_nothing_outside_is_reached_for_long(arena: Arena, kind: str) -> None:
    race(arena, 10, RACES[kind])


@pytest.mark.parametrize(
    "content", [*(pytest.param(one, marks=pytest.mark.long) for one in ("", "inner/")), "inner/file"]
)
def test_no_mode_outside_is_changed_by_a_copy_whose_target_becomes_a_link(arena: Arena, content: str) -> None:
    (arena.root / "race").mkdir()
    (arena.root / "source").mkdir()
    os.chmod(arena.root / "source", 0o711)
    if content:
        (arena.root / "source/inner").mkdir()
    if content.endswith("file"):
        (arena.root / "source/inner/file").write_bytes(b"x")
    until = time.monotonic() + 2
    with disturbing(REPLACER, arena):
        while time.monotonic() < until and snapshot(arena.outside) == arena.before:
            arena.post("copy", source="source", target="race/y")
    assert snapshot(arena.outside) == arena.before
