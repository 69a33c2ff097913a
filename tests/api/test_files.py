"""Files over HTTP: reading, writing, changing names, lists, uploads, downloads, searches."""

import base64
import hashlib
import io
import itertools
import os
import shutil
import socket
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import orjson
import pytest

from support.asking import Answer, ask, file_url, multipart
from support.server import ServerProcess, eventually, running

_numbers = itertools.count()
NASTY = [
    b"plain.txt", b"with space.txt", b"quote'and\"double", b"new\nline", b"tab\tand\rreturn", b"hash#sharp", b"per%cent%41",
    b"question?mark", b"emoji \xf0\x9f\x98\x80.txt", b"caf\xc3\xa9", b"not utf-8 \xe9\xff", b"semi;colon&and=is+plus",
    b"back\\slash", b"-dash", b"~tilde", b"...", b"..a", b"a..", b"upload", b"mkdir", b"\x01\x7f", b"star*[a]{b}", b"e\xcc\x81",
    b"x" * 255,
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tmp_path_factory.mktemp("files"), "--max-upload-bytes", "20000000") as process:
        yield process


@pytest.fixture
def root(server: ServerProcess, request: pytest.FixtureRequest) -> Path:
    """A folder of the workspace for this test alone."""
    folder: Path = server.workspace / f"{request.node.name[:40]}{next(_numbers)}".replace("/", "_")
    folder.mkdir()
    return folder


@pytest.fixture
def call(server: ServerProcess) -> Any:
    """Ask the server."""

    def asking(method: str, target: str, body: Any = None, **headers: str) -> Answer:
        return ask(server.url, method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})

    return asking


def below(root: Path, name: "str | bytes") -> str:
    """The target of a file in the test's folder."""
    return file_url(os.fsencode(root.name) + b"/" + (name if isinstance(name, bytes) else name.encode()))


def rubbish(server: ServerProcess) -> list[str]:
    return [str(path) for path in server.workspace.rglob(".workspace-runtime-*")]


# --- reading ------------------------------------------------------------------------------------------------------------


def test_read_gives_the_bytes_with_validators(call: Any, root: Path) -> None:
    (root / "a.txt").write_bytes(b"hello")
    answer = call("GET", below(root, "a.txt"), Accept="application/json, text/plain, */*")
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-length"] == "5"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["etag"].startswith('"') and answer.headers["last-modified"].endswith("GMT")
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = call("HEAD", below(root, "a.txt"))
    assert head.body == b""
    same = {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")}
    assert {name: head.headers.get(name) for name in same} == same


@pytest.mark.parametrize("size", [0, 1, 10_000, 65536, 65537, 3_000_000])
def test_sizes_around_every_limit(call: Any, root: Path, size: int) -> None:
    data = os.urandom(size)
    assert call("PUT", below(root, "data.bin"), data).status == 201
    assert call("GET", below(root, "data.bin")).body == data
    if size:
        part = call("GET", below(root, "data.bin"), Range=f"bytes={size // 2}-")
        assert (part.status, part.body) == (206, data[size // 2 :])


@pytest.mark.parametrize(
    ("asked", "status", "expected", "told"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=5-4", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("bytes=" + ",".join(["0-9"] * 500), 200, b"0123456789", None),
        ("bytes=" + "9" * 400 + "-", 416, None, "bytes */10"),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=a-b", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
    ],
)
def test_ranges(call: Any, root: Path, asked: str, status: int, expected: bytes | None, told: str | None) -> None:
    (root / "digits").write_bytes(b"0123456789")
    answer = call("GET", below(root, "digits"), Range=asked)
    assert answer.status == status
    assert answer.headers.get("content-range") == told
    if expected is None:
        assert answer.code == "range_not_satisfiable"
    else:
        assert answer.body == expected


def test_conditions_of_a_read(call: Any, root: Path) -> None:
    (root / "a").write_bytes(b"0123456789")
    os.utime(root / "a", (1_700_000_000, 1_700_000_000))
    target = below(root, "a")
    whole = call("GET", target)
    etag, modified = whole.headers["etag"], whole.headers["last-modified"]
    assert modified == "Tue, 14 Nov 2023 22:13:20 GMT"
    for headers, status in (
        ({"If-None-Match": etag}, 304), ({"If-None-Match": "*"}, 304), ({"If-None-Match": f'"x", W/{etag}'}, 304),
        ({"If-None-Match": '"x"'}, 200), ({"If-Modified-Since": modified}, 304),
        ({"If-Modified-Since": "Tue, 14 Nov 2023 22:13:19 GMT"}, 200), ({"If-Modified-Since": "rubbish"}, 200),
        ({"If-None-Match": '"x"', "If-Modified-Since": modified}, 200),
        ({"If-Match": etag}, 200), ({"If-Match": '"x"'}, 412), ({"If-Match": f"W/{etag}"}, 412), ({"If-Match": "*"}, 200),
        ({"If-Unmodified-Since": modified}, 200), ({"If-Unmodified-Since": "Tue, 14 Nov 2023 22:13:19 GMT"}, 412),
        ({"If-Range": etag, "Range": "bytes=0-0"}, 206), ({"If-Range": '"x"', "Range": "bytes=0-0"}, 200),
        ({"If-Range": modified, "Range": "bytes=0-0"}, 206),
    ):  # fmt: skip
        answer = call("GET", target, **headers)
        assert answer.status == status, headers
        if status == 304:
            assert answer.body == b"" and answer.headers["etag"] == etag


def test_what_a_browser_could_run_is_sandboxed(call: Any, root: Path) -> None:
    for name in ("page.html", "image.svg", "page.xhtml", "data.xml", "script.js", "noending"):
        (root / name).write_text("<script>alert(1)</script>")
        answer = call("GET", below(root, name))
        assert answer.headers["content-security-policy"].startswith("sandbox;")
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        part = call("GET", below(root, name), Range="bytes=0-3")
        assert part.headers["content-security-policy"].startswith("sandbox;")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.ts", "text/plain; charset=utf-8"), ("Makefile", "text/plain; charset=utf-8"), (".gitignore", "text/plain; charset=utf-8"),
        ("a.html", "text/html; charset=utf-8"), ("a.png", "image/png"), ("a.json", "application/json"), ("a.unknown", "application/octet-stream"),
        ("a.tar.gz", "application/octet-stream"), ("a.css", "text/css; charset=utf-8"), ("a.pdf", "application/pdf"),
    ],
)  # fmt: skip
def test_media_types(call: Any, root: Path, name: str, expected: str) -> None:
    (root / name).write_bytes(b"x")
    assert call("GET", below(root, name)).headers["content-type"] == expected


def test_the_json_form(call: Any, root: Path) -> None:
    (root / "t").write_text("äöü\n")
    os.chmod(root / "t", 0o640)
    found = call("GET", below(root, "t") + "?format=json")
    assert found.headers["etag"] == found.json["etag"]
    assert found.json["content"] == "äöü\n" and found.json["encoding"] == "utf-8" and found.json["mode"] == "0640"
    assert (
        found.json["size"] == 7 and found.json["path"] == f"{root.name}/t" and found.json["modified_at"].endswith("Z")
    )
    (root / "b").write_bytes(b"\xff\x00")
    found = call("GET", below(root, "b") + "?format=json").json
    assert (base64.b64decode(found["content"]), found["encoding"]) == (b"\xff\x00", "base64")
    assert call("GET", below(root, "t") + "?format=xml").code == "validation_failed"


def peak_kb(pid: int) -> int:
    """The most memory that a process has had at once."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="no /proc")
@pytest.mark.parametrize("content", [b"\x01", "é".encode(), b"line\n"])
def test_a_large_json_form_takes_little_memory(server: ServerProcess, call: Any, root: Path, content: bytes) -> None:
    size = 30_000_000
    (root / "f").write_bytes(content * (size // len(content)))
    with open(f"/proc/{server.server_pid}/clear_refs", "w") as file:
        file.write("5")  # the peak is from now on
    before = peak_kb(server.server_pid)
    found = call("GET", below(root, "f") + "?format=json")
    # all of it at once, as bytes, as text and as JSON, takes three times its size and more
    assert peak_kb(server.server_pid) - before < size * 3 // 2 // 1024
    data = orjson.loads(found.body)["content"].encode()
    assert (base64.b64decode(data) if found.json["encoding"] == "base64" else data) == (root / "f").read_bytes()
    assert found.json["encoding"] == ("base64" if content == b"\x01" else "utf-8")


@pytest.mark.parametrize("in_place", [False, True])
def test_a_file_that_changes_while_its_json_form_is_sent(
    server: ServerProcess, call: Any, root: Path, in_place: bool
) -> None:
    old = b"old\n" * 7_000_000
    (root / "f").write_bytes(old)
    with server.client() as client, client.stream("GET", below(root, "f") + "?format=json") as answer:
        if in_place:
            with open(root / "f", "r+b") as file:
                file.write(b"new\n")
            with pytest.raises(httpx.RemoteProtocolError):
                answer.read()
        else:
            assert call("PUT", below(root, "f"), b"new\n").status == 200
            assert orjson.loads(answer.read())["content"].encode() == old


def test_what_is_no_file(call: Any, root: Path) -> None:
    (root / "folder").mkdir()
    (root / "file").write_bytes(b"")
    os.mkfifo(root / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(root / "socket")[-100:] if len(str(root)) > 90 else str(root / "socket"))
    os.symlink("fifo", root / "to-fifo")
    for name, status, code in (
        ("folder", 409, "is_directory"), ("nothing", 404, "file_not_found"), ("file/below", 404, "file_not_found"),
        ("fifo", 409, "not_a_file"), ("to-fifo", 409, "not_a_file"), ("socket", 409, "not_a_file"),
    ):  # fmt: skip
        for target in (below(root, name), below(root, name) + "?format=json"):
            answer = call("GET", target)
            assert (answer.status, answer.code) == (status, code), name
    if os.geteuid() == 0:
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        assert call("GET", below(root, "null")).code == "not_a_file"
        assert call("PUT", below(root, "null"), b"x").code == "not_a_file"
    for name in ("fifo", "socket", "to-fifo"):
        assert call("PUT", below(root, name), b"x").code == "not_a_file"
    listener.close()


def test_methods_that_are_not_for_files(call: Any, root: Path) -> None:
    answer = call("PATCH", below(root, "x"), b"")
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, PUT, DELETE"
    assert call("POST", below(root, "x"), b"").status == 405


@pytest.mark.parametrize("again", [False, True])
def test_an_etag_ends_with_the_content(call: Any, root: Path, again: bool) -> None:
    """The same size, time and (mostly) inode, but another content: as `cp -p` and `tar` leave it."""
    for folder, content in (("a", "v=1"), ("b", "v=2")):
        (root / folder).mkdir()
        (root / folder / "c.cfg").write_text(content)
        os.utime(root / folder / "c.cfg", (1e9, 1e9))
    shutil.copy2(root / "a/c.cfg", root / "c.cfg")
    etag = call("GET", below(root, "c.cfg")).headers["etag"]
    assert call("GET", below(root, "c.cfg"), If_None_Match=etag).status == 304
    if again:
        (root / "c.cfg").unlink()
    shutil.copy2(root / "b/c.cfg", root / "c.cfg")
    assert call("GET", below(root, "c.cfg"), If_None_Match=etag).status == 200
    assert call("PUT", below(root, "c.cfg"), b"lost", If_Match=etag).status == 412
    new = call("GET", below(root, "c.cfg"))
    assert (new.body, new.headers["etag"] != etag) == (b"v=2", True)
    listed = call("GET", f"/api/v1/files?path={quote(root.name)}").json["items"]
    assert listed[-1]["etag"] == new.headers["etag"]
    assert call("GET", below(root, "c.cfg") + "?format=json").json["etag"] == new.headers["etag"]


def test_ranges_of_any_length(call: Any, root: Path) -> None:
    (root / "f").write_bytes(b"0123456789")
    many = "9" * 5000
    for asked, status, body in (
        (f"bytes=0-{many}", 206, b"0123456789"), (f"bytes=5-{many}", 206, b"56789"), (f"bytes=-{many}", 206, b"0123456789"),
        (f"bytes={many}-", 416, None), (f"bytes={many}-{many}", 416, None), ("bytes=000000000000000000000002-3", 206, b"23"),
    ):  # fmt: skip
        answer = call("GET", below(root, "f"), Range=asked)
        assert (answer.status, body is None or answer.body == body) == (status, True), asked[:20]


# --- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NASTY, ids=range(len(NASTY)))
def test_names_round_trip(call: Any, root: Path, name: bytes) -> None:
    target = below(root, name)
    assert call("PUT", target, b"content of it").status == 201
    assert os.path.exists(os.path.join(os.fsencode(root), name))
    assert call("GET", target).body == b"content of it"
    item = call("GET", f"/api/v1/files?path={quote(root.name)}").json["items"][0]
    encoded = item.get("path_bytes") or quote(item["path"])
    assert call("GET", "/api/v1/files/" + encoded).body == b"content of it"
    assert item["name"] == name.decode("utf-8", "replace")
    assert ("path_bytes" in item) == (b"\xff" in name)
    told = call("GET", target + "?format=json").json
    assert told["path"] == item["path"]
    moved = call(
        "POST",
        "/api/v1/files/move",
        b'{"from_bytes": "%b", "to": "%b/moved"}' % (encoded.encode(), root.name.encode()),
        Content_Type="application/json",
    )
    assert moved.status == 200, moved
    back = call(
        "POST",
        "/api/v1/files/move",
        b'{"from": "%b/moved", "to_bytes": "%b"}' % (root.name.encode(), encoded.encode()),
        Content_Type="application/json",
    )
    assert back.status == 200
    assert call("DELETE", target).status == 204
    assert list(root.iterdir()) == []
    body, headers = multipart((name, b"uploaded"))
    answer = call("POST", f"/api/v1/files/upload?path={quote(root.name)}", body, **headers)
    if b"\\" not in name:  # a backslash in a filename means different things to different clients
        assert answer.status == 201, answer
        assert call("GET", target).body == b"uploaded"


def test_the_path_in_a_query_by_its_bytes(call: Any, root: Path) -> None:
    folder = os.path.join(os.fsencode(root), b"caf\xe9")
    os.mkdir(folder)
    with open(folder + b"/x", "wb") as file:
        file.write(b"found me here")
    encoded = quote(root.name) + "/caf%E9"
    for query in (f"path={encoded}", f"path_bytes={encoded}", f"path_bytes={quote(encoded, safe='')}"):
        page = call("GET", f"/api/v1/files?{query}").json
        assert [item["name"] for item in page["items"]] == ["x"], query
        assert page["items"][0]["path_bytes"] == encoded + "/x"
    found = call("GET", f"/api/v1/search/content?q=found+me&path_bytes={encoded}").body.splitlines()
    assert len(found) == 2


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Content-Range", "bytes 7-15/16", 400),
        ("Content-Range", "bytes */16", 400),
        ("Content-Range", "", 400),
        ("Upload-Offset", "7", 400),
        ("Upload-Complete", "?0", 400),
        ("Upload-Incomplete", "?1", 400),
        ("Content-Encoding", "gzip", 415),
        ("Content-Encoding", "identity, br", 415),
        ("Content-Encoding", "identity", 200),
        ("Upload-Complete", "?1", 200),
        ("Range", "bytes=7-", 200),  # of a read alone (RFC 9110, 14.2)
    ],
)
@pytest.mark.parametrize("form", ["", "?format=json", "large", "upload"])
def test_a_body_that_is_not_plainly_the_file(
    call: Any, root: Path, header: str, value: str, status: int, form: str
) -> None:
    (root / "dst.bin").write_bytes(b"0123456")
    content = b"789ABCDEF"
    name = header.replace("-", "_")
    if form == "upload":
        body, headers = multipart((b"dst.bin", content))
        answer = call("POST", f"/api/v1/files/upload?path={root.name}", body, **{name: value}, **headers)
    else:
        content = content * 20_000 if form == "large" else content
        body = orjson.dumps({"content": content.decode()}) if "json" in form else content
        answer = call("PUT", below(root, "dst.bin") + form.removeprefix("large"), body, **{name: value})
    wanted = 201 if status == 200 and form == "upload" else status
    assert answer.status == wanted, answer
    if status == 200:
        assert (root / "dst.bin").read_bytes() == content
    else:
        assert answer.code == ("partial_content_refused" if status == 400 else "content_encoding_refused")
        assert (root / "dst.bin").read_bytes() == b"0123456"


def test_a_part_that_is_not_plainly_the_file(call: Any, root: Path) -> None:
    for more, refused in (
        ("Content-Transfer-Encoding: base64", True), ("Content-Transfer-Encoding: quoted-printable", True),
        ("Content-Encoding: gzip", True), ("Content-Range: bytes 0-3/9", True), ("Content-Transfer-Encoding: Binary", False),
    ):  # fmt: skip
        body = (
            f'--x\r\nContent-Disposition: form-data; name="f"; filename="part"\r\n{more}\r\n\r\naGk=\r\n--x--\r\n'
        ).encode()
        url = f"/api/v1/files/upload?path={root.name}"
        answer = call("POST", url, body, Content_Type="multipart/form-data; boundary=x")
        assert answer.status == (409 if refused else 201), more
        assert (root / "part").exists() is not refused


def test_writes_honour_if_unmodified_since(call: Any, root: Path) -> None:
    (root / "f").write_text("old")
    os.utime(root / "f", (1e9, 1e9))
    at, before = "Sun, 09 Sep 2001 01:46:40 GMT", "Sun, 09 Sep 2001 01:46:39 GMT"
    url = below(root, "f")
    for method, target in (("PUT", url), ("PUT", url + "?format=json"), ("DELETE", url)):
        answer = call(method, target, b'{"content": "x"}', If_Unmodified_Since=before)
        assert (answer.status, answer.code) == (412, "precondition_failed")
    assert call("PUT", url, bytes(100_000), If_Unmodified_Since=before).status == 412
    assert (root / "f").read_text() == "old"
    etag = call("HEAD", url).headers["etag"]
    # with If-Match the time does not count (RFC 9110, 13.2.2), and one that is no time never does
    assert call("PUT", url, b"1", If_Unmodified_Since=before, If_Match=etag).status == 200
    assert call("PUT", url, b"2", If_Unmodified_Since="yesterday").status == 200
    os.utime(root / "f", (1e9, 1e9))
    assert call("PUT", url, b"3", If_Unmodified_Since=at).status == 200
    os.utime(root / "f", (1e9, 1e9))
    assert call("DELETE", url, If_Unmodified_Since=at).status == 204


# --- writing ------------------------------------------------------------------------------------------------------------


def test_write_makes_parents_and_tells(call: Any, root: Path) -> None:
    answer = call("PUT", below(root, "a/b/c.txt"), b"one", Content_Type="application/json")
    assert answer.status == 201
    assert answer.headers["location"] == below(root, "a/b/c.txt")
    assert answer.json["size"] == 3 and answer.json["etag"] == answer.headers["etag"]
    assert call("GET", answer.headers["location"]).headers["etag"] == answer.json["etag"]
    again = call("PUT", below(root, "a/b/c.txt"), b"two!")
    assert again.status == 200 and again.json["etag"] != answer.json["etag"]
    assert (root / "a/b/c.txt").read_bytes() == b"two!"


def test_write_keeps_mode_owner_and_attributes(call: Any, root: Path) -> None:
    path = root / "script.sh"
    path.write_text("x")
    os.chmod(path, 0o750)
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    attributes = True
    try:
        os.setxattr(path, "user.note", b"kept")
    except OSError:
        attributes = False
    assert call("PUT", below(root, "script.sh"), b"y").json["mode"] == "0750"
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o750
    if os.geteuid() == 0:
        assert (status.st_uid, status.st_gid) == (1234, 2345)
    if attributes:
        assert os.getxattr(path, "user.note") == b"kept"


def test_a_set_user_id_bit_is_not_passed_on(call: Any, root: Path) -> None:
    path = root / "tool"
    path.write_text("x")
    os.chmod(path, 0o4755)
    assert call("PUT", below(root, "tool"), b"y").status == 200
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_the_json_form_of_a_write(call: Any, root: Path) -> None:
    target = below(root, "t") + "?format=json"
    assert call("PUT", target, '{"content": "ä"}'.encode()).status == 201
    assert (root / "t").read_bytes() == "ä".encode()
    assert call("PUT", target, b'{"content": "/w==", "encoding": "base64", "mode": "0755"}').json["mode"] == "0755"
    assert (root / "t").read_bytes() == b"\xff"
    for body, code in (
        (b"{", "malformed_json"), (b"[]", "validation_failed"), (b"{}", "validation_failed"), (b'{"content": 1}', "validation_failed"),
        (b'{"content": "?", "encoding": "base64"}', "validation_failed"), (b'{"content": "", "encoding": "latin-1"}', "validation_failed"),
        (b'{"content": "", "mode": "999"}', "validation_failed"), (b'{"content": "", "mode": 493}', "validation_failed"),
        (b'{"content": "", "colour": 1}', "validation_failed"), (b'{"content": "\\ud800"}', "malformed_json"), (b"\xff", "malformed_json"),
    ):  # fmt: skip
        answer = call("PUT", target, body)
        assert (answer.code, answer.status) == (code, 400 if code == "malformed_json" else 422), body
    assert (root / "t").read_bytes() == b"\xff"


def test_conditions_of_a_write(call: Any, root: Path) -> None:
    target = below(root, "f")
    assert call("PUT", target, b"1", If_Match="*").code == "precondition_failed"
    assert call("PUT", below(root, "no/such/f"), b"1", If_Match="*").code == "precondition_failed"
    assert not (root / "no").exists()
    first = call("PUT", target, b"1", If_None_Match="*")
    assert first.status == 201
    refused = call("PUT", target, b"2", If_None_Match="*")
    assert refused.status == 412 and refused.json["etag"] == first.json["etag"]
    second = call("PUT", target, b"2", If_Match=first.json["etag"])
    assert second.status == 200
    assert call("PUT", target, b"3", If_Match=first.json["etag"]).status == 412
    assert call("PUT", target, b"3" * 100_000, If_Match=first.json["etag"]).status == 412
    assert call("DELETE", target, If_Match=first.json["etag"]).status == 412
    assert (root / "f").read_bytes() == b"2"
    assert call("DELETE", target, If_Match=second.json["etag"]).status == 204


def test_of_many_writers_with_one_etag_one_wins(call: Any, root: Path, server: ServerProcess) -> None:
    target = below(root, "f")
    etag = call("PUT", target, b"start").json["etag"]
    for _ in range(5):
        answers: list[Answer] = []

        def write(number: int, etag: str = etag, answers: list[Answer] = answers) -> None:
            answers.append(call("PUT", target, b"%d" % number * (1 + number * 3000), If_Match=etag))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won = [answer for answer in answers if answer.status == 200]
        assert len(won) == 1 and {answer.status for answer in answers} == {200, 412}
        etag = won[0].json["etag"]
        assert call("GET", target).headers["etag"] == etag
    assert rubbish(server) == []


def test_readers_see_the_old_or_the_new_file_whole(call: Any, root: Path) -> None:
    target = below(root, "f")
    contents = [bytes([65 + number]) * (200_000 + number) for number in range(4)]
    call("PUT", target, contents[0])
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            body = call("GET", target).body
            seen.add(hashlib.sha256(body).digest())
            seen.add(hashlib.sha256((root / "f").read_bytes()).digest())

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(40):
        call("PUT", target, contents[number % 4])
    stop.set()
    for reader in readers:
        reader.join()
    assert seen <= {hashlib.sha256(content).digest() for content in contents}


def test_links(call: Any, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "real").write_text("old")
    (root / "folder").mkdir()
    for name, leads in (
        ("link", "real"), ("absolute", str(root / "real")), ("out", str(outside / "secret")), ("up", "../" * 30 + str(outside)[1:] + "/secret"),
        ("outdir", str(outside)), ("dangling", "nothing"), ("loop", "loop"), ("in", str(root / "folder")), ("proc", "/proc/self/root"),
    ):  # fmt: skip
        os.symlink(leads, root / name)
    assert call("GET", below(root, "link")).body == b"old"
    assert call("GET", below(root, "absolute")).body == b"old"
    assert call("PUT", below(root, "link"), b"new").status == 200
    assert os.readlink(root / "link") == "real" and (root / "real").read_text() == "new"
    assert call("PUT", below(root, "absolute"), b"newer").status == 200
    assert (root / "real").read_text() == "newer" and (root / "absolute").is_symlink()
    assert call("PUT", below(root, "in/x"), b"x").status == 201
    assert (root / "folder/x").read_text() == "x"
    for name in ("out", "up", "outdir/secret", "outdir/new", "proc/etc/passwd"):
        for method, body in (("GET", None), ("HEAD", None), ("PUT", b"x")):
            answer = call(method, below(root, name), body)
            assert answer.status == 403, (method, name)
            assert method == "HEAD" or answer.code == "path_outside"
    assert call("DELETE", below(root, "outdir/secret")).code == "path_outside"
    assert call("GET", f"/api/v1/files?path={quote(root.name)}/outdir").code == "path_outside"
    assert call("GET", below(root, "outdir") + "?archive=zip").code == "path_outside"
    for name in ("outdir/x", "outdir"):
        answer = call(
            "POST",
            "/api/v1/files/mkdir",
            b'{"path": "%b/%b"}' % (root.name.encode(), name.encode()),
            Content_Type="application/json",
        )
        assert answer.code in ("path_outside", "file_exists"), answer
    assert call("GET", below(root, "dangling")).code == "file_not_found"
    assert call("PUT", below(root, "dangling"), b"x").code == "link_dangling"
    assert call("PUT", below(root, "dangling/x"), b"x").code == "link_dangling"
    assert call("GET", below(root, "loop")).code == "link_loop"
    for name in ("out", "outdir", "dangling", "loop", "link"):
        assert call("DELETE", below(root, name)).status == 204
    assert (outside / "secret").read_text() == "secret" and sorted(os.listdir(outside)) == ["secret"]
    assert (root / "real").read_text() == "newer"


def test_a_body_that_is_cut_changes_nothing(call: Any, root: Path, server: ServerProcess) -> None:
    (root / "f").write_bytes(b"old")
    port = int(server.url.rpartition(":")[2])
    for head in (b"Content-Length: 5000000", b"Transfer-Encoding: chunked", b"Content-Length: 50"):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"PUT %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n" % (below(root, "f").encode(), head))
            client.sendall(b"4\r\n" + b"new " * 10)
    body, headers = multipart((b"f", b"new content"), end=False)
    assert call("POST", f"/api/v1/files/upload?path={root.name}", body[:-6], **headers).code == "upload_invalid"
    for _ in range(200):
        if not rubbish(server):
            break
        threading.Event().wait(0.02)
    assert rubbish(server) == []
    assert (root / "f").read_bytes() == b"old"


def test_a_body_over_the_limit(call: Any, root: Path, server: ServerProcess) -> None:
    assert call("PUT", below(root, "f"), b"x" * 20_000_001).code == "body_too_large"
    assert call("PUT", below(root, "f"), (b"x" * 1_000_000 for _ in range(21))).code == "body_too_large"
    assert not (root / "f").exists()
    assert rubbish(server) == []
    assert call("PUT", below(root, "f"), (b"x" * 1_000_000 for _ in range(3))).status == 201


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_may_not_be_written(call: Any, root: Path) -> None:
    (root / "f").write_bytes(b"old")
    os.chmod(root / "f", 0o444)
    assert call("PUT", below(root, "f"), b"new").code == "permission_denied"


# --- changes of names ---------------------------------------------------------------------------------------------------


def post(call: Any, action: str, **body: Any) -> Answer:
    import orjson

    names = {"source": "from", "target": "to"}
    sent = orjson.dumps({names.get(name, name): value for name, value in body.items()})
    answer: Answer = call("POST", f"/api/v1/files/{action}", sent, Content_Type="application/json")
    return answer


def test_make_move_copy_delete(call: Any, root: Path) -> None:
    base = root.name
    assert post(call, "mkdir", path=f"{base}/a/b").status == 201
    assert post(call, "mkdir", path=f"{base}/a/b/").status == 200
    call("PUT", below(root, "a/b/f"), b"f")
    assert post(call, "mkdir", path=f"{base}/a/b/f").code == "file_exists"
    assert post(call, "mkdir", path=f"{base}/a/b/f/g").code == "not_a_directory"
    assert post(call, "move", source=f"{base}/a/b/f", target=f"{base}/new/place/g").json["replaced"] is False
    assert (root / "new/place/g").read_bytes() == b"f"
    call("PUT", below(root, "h"), b"h")
    assert post(call, "move", source=f"{base}/h", target=f"{base}/new/place/g").code == "file_exists"
    assert post(call, "move", source=f"{base}/h", target=f"{base}/new/place/g", overwrite=True).json["replaced"] is True
    assert post(call, "move", source=f"{base}/new", target=f"{base}/new/inner").code == "into_itself"
    assert post(call, "move", source=f"{base}/gone", target=f"{base}/x").code == "file_not_found"
    assert post(call, "copy", source=f"{base}/new", target=f"{base}/copy").status == 201
    assert (root / "copy/place/g").read_bytes() == b"h"
    assert post(call, "copy", source=f"{base}/new", target=f"{base}/copy").code == "file_exists"
    assert post(call, "copy", source=f"{base}/new", target=f"{base}/new/copy").code == "into_itself"
    assert post(call, "copy", source=f"{base}/new/place/g", target=f"{base}/g2").status == 201
    assert post(call, "copy", source=f"{base}/new/place/g", target=f"{base}/g2", overwrite=True).status == 200
    assert post(call, "move", source=f"{base}/g2", target=f"{base}/copy", overwrite=True).code == "is_directory"
    assert post(call, "move", source=f"{base}/copy", target=f"{base}/g2", overwrite=True).code == "not_a_directory"
    assert post(call, "move", source=f"{base}/copy", target=f"{base}/new", overwrite=True).code == "directory_not_empty"
    assert call("DELETE", below(root, "copy")).code == "is_directory"
    assert call("DELETE", below(root, "copy") + "?recursive=maybe").code == "validation_failed"
    assert call("DELETE", below(root, "copy") + "?recursive=true").status == 204
    assert not (root / "copy").exists()
    assert call("DELETE", below(root, "copy")).code == "file_not_found"


def test_a_copy_with_a_fifo_in_it_leaves_nothing(call: Any, root: Path) -> None:
    (root / "a").mkdir()
    (root / "a/one").write_text("1")
    os.mkfifo(root / "a/fifo")
    assert post(call, "copy", source=f"{root.name}/a", target=f"{root.name}/b").code == "not_a_file"
    assert not (root / "b").exists()
    assert call("DELETE", below(root, "a") + "?recursive=true").status == 204


def test_the_root_itself_is_safe(call: Any, server: ServerProcess) -> None:
    assert call("DELETE", "/api/v1/files/?recursive=true").status in (400, 405)
    for path in ("", "/", ".", "./", "..", "a/.."):
        assert call("DELETE", file_url(path) + "?recursive=true").status in (400, 405), path
        assert post(call, "move", source=path, target="somewhere").status in (400, 422)
    assert server.workspace.is_dir()


def test_bodies_that_say_too_little(call: Any) -> None:
    for action, body in (
        ("mkdir", {}), ("mkdir", {"path": "a", "path_bytes": "a"}), ("move", {"source": "a"}), ("copy", {"target": "a"}),
        ("mkdir", {"path": 1}), ("mkdir", {"path": "a", "mode": 1}),
    ):  # fmt: skip
        assert post(call, action, **body).code == "validation_failed", body


# --- lists --------------------------------------------------------------------------------------------------------------


def listed(call: Any, query: str) -> list[dict[str, Any]]:
    """All pages of a list."""
    items: list[dict[str, Any]] = []
    cursor = ""
    while True:
        answer = call("GET", f"/api/v1/files?{query}{cursor}")
        assert answer.status == 200, answer
        items += answer.json["items"]
        if answer.json["next_cursor"] is None:
            return items
        cursor = "&cursor=" + quote(answer.json["next_cursor"])


def test_list(call: Any, root: Path) -> None:
    for name, data in (("b.txt", "bb"), ("a.txt", "a"), (".hidden", ""), ("C.txt", "ccc")):
        (root / name).write_text(data)
    (root / "folder").mkdir()
    (root / ".git").mkdir()
    os.symlink("a.txt", root / "link")
    os.mkfifo(root / "fifo")
    items = listed(call, f"path={root.name}")
    assert [item["name"] for item in items] == ["folder", ".hidden", "C.txt", "a.txt", "b.txt", "fifo", "link"]
    assert [item["type"] for item in items] == ["directory", "file", "file", "file", "file", "other", "symlink"]
    assert items[-1]["target"] == "a.txt" and items[-1]["etag"] is None
    assert items[3]["etag"] == call("GET", below(root, "a.txt")).headers["etag"]
    assert items[3]["size"] == 1 and items[3]["path"] == f"{root.name}/a.txt" and items[3]["mode"] == "0644"
    assert [item["name"] for item in listed(call, f"path={root.name}&hidden=false&limit=2")] == [
        "folder",
        "C.txt",
        "a.txt",
        "b.txt",
        "fifo",
        "link",
    ]
    assert [item["name"] for item in listed(call, f"path={root.name}&sort=-size&limit=1")][:3] == [
        "folder",
        "link",
        "C.txt",
    ]
    assert [item["name"] for item in listed(call, f"path={root.name}/&sort=-name&limit=3")][:2] == ["folder", "link"]
    assert call("GET", f"/api/v1/files?path={root.name}/a.txt").code == "not_a_directory"
    assert call("GET", f"/api/v1/files?path={root.name}/gone").code == "file_not_found"
    for query in ("limit=0", "limit=1001", "sort=colour", "depth=0"):
        assert call("GET", f"/api/v1/files?{query}").code == "validation_failed"
    for cursor in ("x", "AAAA", "W10", "WyJuYW1lIl0", "eyJhIjogMX0", "WyJuYW1lIiwgZmFsc2UsIDAsICIhIl0"):
        assert call("GET", f"/api/v1/files?cursor={cursor}").code == "cursor_invalid", cursor


def test_list_of_a_tree(call: Any, root: Path) -> None:
    for name in ("z.txt", "a/1", "a/b/2", "a/b/3", "c/4", "node_modules/x"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    (root / "empty").mkdir()
    base = root.name
    expected = ["a", "a/b", "a/b/2", "a/b/3", "a/1", "c", "c/4", "empty", "z.txt"]
    for limit in (1, 2, 3, 50):
        found = [item["path"][len(base) + 1 :] for item in listed(call, f"path={base}&recursive=true&limit={limit}")]
        assert found == expected, limit
    assert [item["path"][len(base) + 1 :] for item in listed(call, f"path={base}&depth=2")] == [
        "a",
        "a/b",
        "a/1",
        "c",
        "c/4",
        "empty",
        "z.txt",
    ]
    with_ignored = [
        item["path"][len(base) + 1 :] for item in listed(call, f"path={base}&recursive=true&ignored=true&limit=2")
    ]
    assert "node_modules/x" in with_ignored
    assert call("GET", f"/api/v1/files?path={base}&recursive=true&sort=size").code == "validation_failed"


# --- uploads ------------------------------------------------------------------------------------------------------------


def send(call: Any, root: Path, *parts: tuple[bytes, bytes], query: str = "") -> Answer:
    body, headers = multipart(*parts)
    answer: Answer = call("POST", f"/api/v1/files/upload?path={quote(root.name)}{query}", body, **headers)
    return answer


def test_upload_of_many(call: Any, root: Path) -> None:
    answer = send(
        call, root, (b"one.txt", b"1"), (b"sub/folder/two", b"22"), (b"three", b"3" * 300_000), (b"empty", b"")
    )
    assert answer.status == 201
    assert [(item["path"], item["size"], item["result"]) for item in answer.json["items"]] == [
        (f"{root.name}/one.txt", 1, "created"), (f"{root.name}/sub/folder/two", 2, "created"),
        (f"{root.name}/three", 300_000, "created"), (f"{root.name}/empty", 0, "created"),
    ]  # fmt: skip
    assert (root / "sub/folder/two").read_bytes() == b"22" and (root / "three").read_bytes() == b"3" * 300_000
    assert answer.json["items"][0]["etag"] == call("GET", below(root, "one.txt")).headers["etag"]
    again = send(call, root, (b"one.txt", b"new"), query="&on_conflict=rename").json["items"][0]
    assert (again["result"], again["path"]) == ("renamed", f"{root.name}/one (1).txt")
    assert send(call, root, (b"one.txt", b"over")).json["items"][0]["result"] == "replaced"
    refused = send(call, root, (b"one.txt", b"x"), (b"four", b"4"), query="&on_conflict=reject")
    assert (refused.status, refused.code) == (409, "upload_refused")
    assert [item["result"] for item in refused.json["items"]] == ["refused", "created"]
    assert refused.json["items"][0]["code"] == "file_exists"
    assert (root / "one.txt").read_bytes() == b"over" and (root / "four").read_bytes() == b"4"


def test_uploads_that_attack(call: Any, root: Path, server: ServerProcess, tmp_path: Path) -> None:
    os.symlink(tmp_path, root / "out")
    bad = [b"../up", b"/etc/passwd", b"a/../../b", b"a//b", b"out/x", b".", b"..", b"a/./b", b"x" * 256, b"nul\0"]
    answer = send(call, root, *((name, b"x") for name in bad), (b"good", b"g"))
    assert answer.status == 409
    assert [item["result"] for item in answer.json["items"]] == ["refused"] * len(bad) + ["created"]
    assert os.listdir(tmp_path) == [] and not (server.workspace / "up").exists() and not (root.parent / "b").exists()
    for body, headers, code in (
        (b"x", {"Content-Type": "text/plain"}, "unsupported_media_type"), (b"x", {}, "unsupported_media_type"),
        (b"x", {"Content-Type": "multipart/form-data"}, "upload_invalid"),
        (b"x", {"Content-Type": "multipart/form-data; boundary=" + "b" * 300}, "upload_invalid"),
        (b"rubbish", {"Content-Type": "multipart/form-data; boundary=b"}, "upload_invalid"),
        (b"", {"Content-Type": "multipart/form-data; boundary=b"}, "upload_invalid"),
        (b"--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}, "upload_invalid"),
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n', {"Content-Type": "multipart/form-data; boundary=b"}, "upload_invalid"),
        (b"--b\r\n" + b"X: y\r\n" * 1000 + b"\r\nx\r\n--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}, "upload_invalid"),
        (b"--b\r\nX: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}, "upload_invalid"),
    ):  # fmt: skip
        assert call("POST", f"/api/v1/files/upload?path={root.name}", body, **headers).code == code, body[:50]
    assert send(call, root, (b"a", b"x"), query="&on_conflict=maybe").code == "validation_failed"
    assert send(call, root, (b"a", b"x"), query="/../x").code == "path_invalid"
    assert rubbish(server) == []


def test_upload_and_extract(call: Any, root: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a/b.txt", "b")
        archive.writestr("run.sh", "#!/bin/sh")
        archive.getinfo("run.sh").external_attr = 0o755 << 16
        archive.writestr("../evil", "x")
    answer = send(call, root, (b"in/some.zip", packed.getvalue()), query="&extract=true")
    assert answer.code == "upload_refused"
    assert (
        (root / "in/a/b.txt").read_text() == "b"
        and not (root / "evil").exists()
        and not (root.parent / "evil").exists()
    )
    results = {item["path"].rpartition("/")[2]: item["result"] for item in answer.json["items"]}
    assert results == {"b.txt": "created", "run.sh": "created", "evil": "refused"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        entry = tarfile.TarInfo("tar.txt")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"tar"))
    assert send(call, root, (b"x.tgz", packed.getvalue()), query="&extract=true").status == 201
    assert (root / "tar.txt").read_text() == "tar"
    assert (
        send(call, root, (b"x.zip", b"no archive"), query="&extract=true").json["items"][0]["code"] == "archive_invalid"
    )


# --- downloads ------------------------------------------------------------------------------------------------------------


def test_download_of_a_folder(call: Any, root: Path) -> None:
    for name in ("a.txt", "sub/b.txt", ".git/config"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    os.symlink("/etc/passwd", root / "out")
    os.mkfifo(root / "fifo")
    answer = call("GET", below(root, "").rstrip("/") + "?archive=zip")
    assert answer.status == 200 and answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"].startswith(f'attachment; filename="{root.name}.zip"')
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
        assert {"a.txt", "sub/b.txt", "out"} <= names and not any("git" in name or "fifo" in name for name in names)
        assert archive.read(f"{root.name}/out") == b"/etc/passwd"
    answer = call("GET", below(root, "sub") + "?archive=tar.gz")
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
        assert [member.name for member in tar if member.isfile()] == ["sub/b.txt"]
    assert call("GET", "/api/v1/files?archive=zip").status == 200
    assert call("HEAD", "/api/v1/files/?archive=zip").body == b""
    assert call("GET", below(root, "a.txt") + "?archive=zip").code == "not_a_directory"
    assert call("GET", below(root, "gone") + "?archive=zip").code == "file_not_found"
    assert call("GET", below(root, "sub") + "?archive=rar").code == "validation_failed"


# --- searches -------------------------------------------------------------------------------------------------------------


def test_find_by_name(call: Any, root: Path) -> None:
    for name in ("src/server_main.py", "src/other.py", "node_modules/server_main.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    found = call("GET", "/api/v1/search/files?q=srvmain&limit=5").json
    assert found["items"][0]["path"] == f"{root.name}/src/server_main.py"
    assert found["next_cursor"] is None
    assert all("node_modules" not in item["path"] for item in found["items"])
    path, positions = found["items"][0]["path"], found["items"][0]["positions"]
    assert "".join(path[at] for at in positions) == "srvmain"
    (root / "src/just_made_srvmain").write_text("")
    assert call("GET", "/api/v1/search/files?q=srvmain").json["items"][0]["name"] == "just_made_srvmain"
    folders = call("GET", f"/api/v1/search/files?q={root.name}/src&kind=directory").json["items"]
    assert folders[0]["type"] == "directory"


def test_find_by_content(call: Any, root: Path) -> None:
    (root / "a.py").write_text("one\nthe needle is hére: needle\n")
    (root / "b.txt").write_text("NEEDLE\n")
    query = f"/api/v1/search/content?path={root.name}"
    lines = [__import__("orjson").loads(line) for line in call("GET", f"{query}&q=needle&glob=*.py").body.splitlines()]
    assert lines[0]["type"] == "match" and lines[0]["line"] == 2 and lines[0]["path"] == f"{root.name}/a.py"
    assert [lines[0]["text"][start:end] for start, end in lines[0]["ranges"]] == ["needle", "needle"]
    assert lines[-1]["type"] == "summary" and lines[-1]["files"] == 1
    assert b'"matches":0' in call("GET", f"{query}&q=ne%2Be").body.replace(b" ", b"")
    bad = call("GET", f"{query}&q=(&regex=true")
    assert (bad.status, bad.code) == (422, "search_invalid")
    assert call("GET", f"{query}&q=").code == "validation_failed"
    assert call("GET", "/api/v1/search/content?q=x&path=../x").code == "path_invalid"


# --- archives -----------------------------------------------------------------------------------------------------------


def tar_of(*names: str) -> bytes:
    """A tar of empty files, and of folders where a name ends with a slash."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(info)
    return packed.getvalue()


def test_an_archive_of_folders_alone(call: Any, root: Path) -> None:
    url = f"/api/v1/files/upload?path={root.name}/a&extract=true"
    folder = {"size": None, "etag": None, "is_dir": True}
    for result in ("created", "kept"):
        body, headers = multipart((b"e.tgz", tar_of("empty/", "empty/inner/")))
        answer = call("POST", url, body, **headers)
        assert answer.status == 201
        assert answer.json["items"] == [
            {"path": f"{root.name}/a/{name}", "result": result, **folder} for name in ("empty", "empty/inner")
        ]
    assert (root / "a/empty/inner").is_dir()


def test_two_archives_in_one_upload_and_one_that_is_none(call: Any, root: Path) -> None:
    parts = ((b"a.tgz", tar_of("x", "sub/x")), (b"none", b"no archive"), (b"in/b.tgz", tar_of("y", "x", "x")))
    body, headers = multipart(*parts)
    answer = call("POST", f"/api/v1/files/upload?path={root.name}&extract=true&on_conflict=reject", body, **headers)
    assert answer.status == 409
    found = [(item["path"].removeprefix(root.name + "/"), item["result"]) for item in answer.json["items"]]
    assert found == [
        ("x", "created"), ("sub/x", "created"), ("none", "refused"), ("in/y", "created"), ("in/x", "created")
    ]  # fmt: skip
    assert not rubbish_in(root)


def test_a_client_that_leaves_ends_the_unpacking(server: ServerProcess, call: Any, root: Path) -> None:
    body, headers = multipart((b"many.tgz", tar_of(*(f"many/file{number}" for number in range(20_000)))))
    url = f"/api/v1/files/upload?path={root.name}&extract=true"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        head = f"POST {url} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        client.sendall(head.encode() + body)
        eventually(lambda: (root / "many").exists())
    eventually(lambda: server.on_their_way() == 0)
    # nothing comes any more, so that what was made can be removed
    assert call("DELETE", below(root, "many") + "?recursive=true").status == 204
    assert call("PUT", below(root, "after"), b"").status == 201
    assert not (root / "many").exists()


def rubbish_in(root: Path) -> list[str]:
    return [str(path) for path in root.rglob(".workspace-runtime-*")]
