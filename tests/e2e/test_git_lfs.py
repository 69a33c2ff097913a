"""Files of Git LFS (`scripts/tools` gets it where the machine has none): pointers become content, without any other host's word being taken."""

import base64
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson
import pytest

from support.git_bench import Bench, Trap, done, fresh_name, git_server, refused
from support.git_remotes import http_remote
from support.server import ServerProcess

CONTENT = b"large\n" * 1000


class LfsServer(ThreadingHTTPServer):
    """The least that git-lfs asks of a server (its batch API), and what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.authorizations: list[str] = []
        self.requests: list[str] = []
        self.password: str | None = None
        self.elsewhere: str | None = None  # where all that is not of LFS is sent
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: LfsServer

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        if self._led_on():
            return
        asked = orjson.loads(self._body())
        items = []
        for item in asked.get("objects", []):
            place = {"href": f"{self.server.url}/objects/{item['oid']}"}
            there = item["oid"] in self.server.objects
            actions = {} if there == (asked["operation"] == "upload") else {asked["operation"]: place}
            items.append({"oid": item["oid"], "size": item["size"], "authenticated": True, "actions": actions})
        self._answer(orjson.dumps({"transfer": "basic", "objects": items}))

    def do_GET(self) -> None:
        if self._led_on():
            return
        self._answer(self.server.objects.get(self.path.rpartition("/")[2], b""))

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self._body()
        self._answer(b"")

    def _led_on(self) -> bool:
        if self.server.elsewhere is None or self.path.startswith(("/lfs/", "/objects/")):
            return False
        self.send_response(302)
        self.send_header("Location", self.server.elsewhere + self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, body: bytes) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        given = self.headers.get("Authorization")
        if given is not None:
            self.server.authorizations.append(given)
        denied = self.server.password is not None and given is None and self.path.startswith("/lfs/")
        self.send_response(401 if denied else 200)
        if denied:
            self.send_header("LFS-Authenticate", 'Basic realm="lfs"')
        self.send_header("Content-Type", "application/vnd.git-lfs+json")
        self.send_header("Content-Length", str(0 if denied else len(body)))
        self.end_headers()
        self.wfile.write(b"" if denied else body)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A user who has installed Git LFS."""
    with git_server(tmp_path_factory.mktemp("lfs")) as process:
        from_user = Bench(process, "installs")
        from_user.git("config", "--global", "lfs.locksverify", "false")
        from_user.git("lfs", "install", "--skip-repo")
        from_user.close()
        yield process


@pytest.fixture
def store() -> Iterator[LfsServer]:
    with LfsServer() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def bench(server: ServerProcess, store: LfsServer) -> Iterator[Bench]:
    """A clone whose `*.bin` are in the store."""
    made = Bench(server, fresh_name())
    lfs = f"[lfs]\n\turl = {store.url}/lfs\n"
    made.commit({".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n", ".lfsconfig": lfs.encode()}, "lfs")
    made.git("lfs", "install", "--local", "--skip-repo")
    yield made
    made.close()


def pointer(content: bytes) -> str:
    oid = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}"


def committed(bench: Bench) -> None:
    (bench.copy / "x.bin").write_bytes(CONTENT)
    done(bench.post("stage", {"paths": ["x.bin"]}))
    done(bench.post("commit", {"message": "large"}))


def test_what_is_staged_is_a_pointer(bench: Bench) -> None:
    committed(bench)
    assert bench.git("show", "HEAD:x.bin") == pointer(CONTENT)
    assert (bench.copy / "x.bin").read_bytes() == CONTENT
    assert done(bench.get("status"))["files"] == []
    (bench.copy / "x.bin").write_bytes(CONTENT + b"more")
    assert [file["path"] for file in done(bench.get("status"))["files"]] == ["x.bin"]
    done(bench.post("discard", {"paths": ["x.bin"]}))
    assert (bench.copy / "x.bin").read_bytes() == CONTENT


def test_a_push_uploads_and_a_clone_and_a_pull_bring_the_content(bench: Bench, store: LfsServer) -> None:
    bench.git("lfs", "install", "--force")  # the hook that uploads
    committed(bench)
    done(bench.post("push"))
    assert list(store.objects.values()) == [CONTENT]
    made = done(bench.post("clone", {"url": str(bench.origin), "path": f"{bench.name}-2"}, wait="true"), 201)
    there = bench.server.workspace / made["path"]
    assert (there / "x.bin").read_bytes() == CONTENT
    (bench.copy / "x.bin").write_bytes(b"changed")
    done(bench.post("commit", {"message": "changed", "all": True}))
    done(bench.post("push"))
    done(bench.post("pull", path=made["path"]))
    assert (there / "x.bin").read_bytes() == b"changed"
    assert done(bench.get("status", path=made["path"]))["files"] == []


def test_a_store_that_asks_for_a_password_never_hangs_and_is_not_told_the_remotes_token(
    bench: Bench, store: LfsServer
) -> None:
    bench.git("lfs", "install", "--force")
    store.password = "secret"
    committed(bench)
    answer = bench.post("push")
    problem = refused(answer, 409, "hook_refused")
    assert problem["hook"] == "pre-push"
    assert store.requests
    assert store.authorizations == []


def test_a_store_at_the_remotes_own_host_is_told_the_token(bench: Bench, store: LfsServer) -> None:
    bench.git("lfs", "install", "--force")
    store.password = "secret"
    committed(bench)
    with http_remote(bench.served) as remote:
        store.elsewhere = remote.url
        bench.git("remote", "set-url", "origin", f"{store.url}/{bench.name}.git")
        done(bench.post("push", {"token": "secret"}))
        body = {"url": f"{store.url}/{bench.name}.git", "path": f"{bench.name}-2", "token": "secret"}
        done(bench.post("clone", body, wait="true"), 201)
    assert list(store.objects.values()) == [CONTENT]
    assert set(store.authorizations) == {"Basic " + base64.b64encode(b"x-access-token:secret").decode()}
    assert (bench.server.workspace / f"{bench.name}-2" / "x.bin").read_bytes() == CONTENT
    assert "secret" not in bench.git("config", "--list")


@pytest.mark.parametrize("trusted", [True, False])
def test_only_the_words_that_git_lfs_installs_are_taken_for_it(tmp_path: Path, trusted: bool, store: LfsServer) -> None:
    with git_server(tmp_path, env={"TRUST_REPOSITORY": str(trusted).lower()}) as server:
        bench = Bench(server, "one")
        trap = Trap(tmp_path, "filter", "cat")
        bench.git("lfs", "install", "--local", "--skip-repo")
        bench.config("filter.lfs.clean", str(trap.path))
        bench.git("config", "--unset", "filter.lfs.process")
        bench.commit({".gitattributes": b"*.bin filter=lfs\n"}, "lfs")
        (bench.copy / "x.bin").write_bytes(CONTENT)
        done(bench.get("status"))
        assert trap.ran == "", "a read runs no program of the repository's"
        bench.post("stage", {"paths": ["x.bin"]})
        assert bool(trap.ran) == trusted
        bench.close()
