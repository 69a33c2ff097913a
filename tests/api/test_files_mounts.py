"""Files over HTTP where something is mounted in the workspace: nothing mounted is ever deleted, and what can't be renamed is told."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.sync.client import ClientConnection, connect

from support.asking import Answer, ask, file_url
from support.confined import ConfinedServer, confined
from support.mounting import Mounting, needs_root, precious
from support.server import TIMEOUT_S

pytestmark = needs_root
FILES = "/api/v1/files"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConfinedServer]:
    with confined(tmp_path_factory.mktemp("mounts")) as started:
        yield started


@pytest.fixture
def mounts(server: ConfinedServer) -> Mounting:
    return Mounting(server)


@pytest.fixture
def root(server: ConfinedServer) -> Path:
    """A folder of the workspace for this test alone."""
    folder: Path = server.workspace / f"test{next(_numbers)}"
    folder.mkdir()
    return folder


@pytest.fixture
def host(server: ConfinedServer, root: Path) -> Path:
    """A folder beside the workspace, with something precious in it."""
    return precious(server.folder / f"host-{root.name}")


@pytest.fixture
def call(server: ConfinedServer) -> Any:
    def asking(method: str, target: str, body: Any = None, **headers: str) -> Answer:
        return ask(server.url, method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})

    return asking


def of(path: Path, server: ConfinedServer) -> str:
    return str(path.relative_to(server.workspace))


def put_together(call: Any, action: str, **body: Any) -> Answer:
    answer: Answer = call("POST", f"{FILES}/{action}", orjson.dumps(body), Content_Type="application/json")
    return answer


# --- nothing mounted is deleted -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["data", "deep/er/data", "with space\n/data"])
def test_a_recursive_delete_refuses_mounts_before_anything_is_deleted(
    call: Any, server: ConfinedServer, mounts: Mounting, root: Path, host: Path, place: str
) -> None:
    (root / "proj" / place).mkdir(parents=True)
    (root / "proj/a").mkdir()
    (root / "proj/a/file").write_text("x")
    mounts.bind(host, root / "proj" / place)
    answer = call("DELETE", file_url(of(root / "proj", server)) + "?recursive=true")
    assert (answer.status, answer.code) == (409, "file_busy")
    assert answer.json["path"] == of(root / "proj" / place, server)
    assert "partial" not in answer.json
    assert (root / "proj/a/file").read_text() == "x"
    assert (host / "db").read_text() == "precious"
    mounts.unmount(root / "proj" / place)
    assert call("DELETE", file_url(of(root / "proj", server)) + "?recursive=true").status == 204
    assert (host / "db").read_text() == "precious"


def test_a_mount_point_itself_and_a_mounted_file(
    call: Any, server: ConfinedServer, mounts: Mounting, root: Path, host: Path
) -> None:
    (root / "proj/sub").mkdir(parents=True)
    (root / "proj/conf").touch()
    mounts.bind(host, root / "proj/sub")
    mounts.bind(host / "db", root / "proj/conf")
    for target, named in (("proj/sub", "proj/sub"), ("proj/conf", "proj/conf"), ("proj", "proj/conf")):
        answer = call("DELETE", file_url(of(root / target, server)) + "?recursive=true")
        assert (answer.status, answer.code, answer.json["path"]) == (409, "file_busy", of(root / named, server))
        assert "mount point" in answer.json["detail"]
    assert (host / "db").read_text() == "precious"


def test_a_moved_mount_point_is_named(
    call: Any, server: ConfinedServer, mounts: Mounting, root: Path, host: Path
) -> None:
    for name in ("from", "holds/inner"):
        (root / name).mkdir(parents=True)
        mounts.bind(host, root / name)
    answer = put_together(call, "move", **{"from": of(root / "from", server), "to": of(root / "to", server)})
    assert (answer.status, answer.json["path"]) == (409, of(root / "from", server))
    # a folder that holds one takes it along
    answer = put_together(call, "move", **{"from": of(root / "holds", server), "to": of(root / "held", server)})
    assert answer.status == 200
    assert mounts.run("cat", root / "held/inner/db") == "precious"


# --- what can't be renamed is written over ------------------------------------------------------------------------------


def test_a_mounted_file_is_saved_in_place(
    call: Any, server: ConfinedServer, mounts: Mounting, root: Path, host: Path
) -> None:
    (root / "conf").touch()
    mounts.bind(host / "db", root / "conf")
    target = file_url(of(root / "conf", server))
    etag = call("HEAD", target).headers["etag"]
    for content in (b"a much longer content than before", b"short", b""):
        answer = call("PUT", target, content, If_Match=etag)
        assert (answer.status, answer.json["in_place"], answer.json["size"]) == (200, True, len(content))
        assert (host / "db").read_bytes() == content == call("GET", target).body
        assert call("PUT", target, b"lost", If_Match=etag).status == 412
        etag = answer.headers["etag"]
        assert call("HEAD", target).headers["etag"] == etag
    answer = call("PUT", target + "?format=json", b'{"content": "as JSON", "mode": "0600"}')
    assert (answer.status, answer.json["in_place"], answer.json["mode"]) == (200, True, "0600")
    large = os.urandom(3_000_000)
    assert call("PUT", target, large).json["in_place"] is True
    assert (host / "db").read_bytes() == large
    # a copy and an upload over it, too
    (root / "other").write_text("other")
    copied = put_together(
        call, "copy", **{"from": of(root / "other", server), "to": of(root / "conf", server), "overwrite": True}
    )
    assert (copied.status, (host / "db").read_text()) == (200, "other")
    assert not [name for name in os.listdir(root) if name.startswith(".workspace-runtime")]


def test_a_mounted_file_in_a_folder_that_can_only_be_read(
    call: Any, server: ConfinedServer, mounts: Mounting, root: Path, host: Path
) -> None:
    (root / "ro").mkdir()
    (root / "ro/conf").touch()
    (root / "ro/fixed").write_text("fixed")
    mounts.bind(root / "ro", root / "ro")
    mounts.run("mount", "-o", "remount,bind,ro", root / "ro")
    mounts.bind(host / "db", root / "ro/conf")
    answer = call("PUT", file_url(of(root / "ro/conf", server)), b"new")
    assert (answer.status, answer.json["in_place"]) == (200, True)
    assert (host / "db").read_text() == "new"
    assert call("PUT", file_url(of(root / "ro/fixed", server)), b"new").code == "permission_denied"
    assert call("PUT", file_url(of(root / "ro/none", server)), b"new").code == "permission_denied"


def test_a_full_disk_changes_nothing_in_place(call: Any, server: ConfinedServer, mounts: Mounting, root: Path) -> None:
    (root / "small").mkdir()
    (root / "conf").touch()
    mounts.tmpfs(root / "small")
    mounts.run("sh", "-c", f"echo kept > '{root}/small/file'")
    mounts.run("mount", "--bind", root / "small/file", root / "conf")
    answer = call("PUT", file_url(of(root / "conf", server)), bytes(12_000_000))
    assert answer.code == "disk_full"
    assert call("GET", file_url(of(root / "conf", server))).body == b"kept\n"


# --- from one file system to another ------------------------------------------------------------------------------------


def test_a_move_to_another_file_system(call: Any, server: ConfinedServer, mounts: Mounting, root: Path) -> None:
    (root / "other").mkdir()
    mounts.tmpfs(root / "other")
    (root / "tree/sub").mkdir(parents=True)
    (root / "tree/sub/f").write_text("content")
    answer = put_together(call, "move", **{"from": of(root / "tree", server), "to": of(root / "other/tree", server)})
    assert (answer.status, answer.json["replaced"]) == (200, False)
    assert mounts.run("cat", root / "other/tree/sub/f") == "content"
    assert os.listdir(root) == ["other"]
    answer = put_together(call, "move", **{"from": of(root / "other/tree/sub/f", server), "to": of(root / "f", server)})
    assert answer.status == 200 and (root / "f").read_text() == "content"
    assert mounts.run("ls", root / "other/tree/sub") == ""


def test_a_move_across_refuses_mounts_first(
    call: Any, server: ConfinedServer, mounts: Mounting, root: Path, host: Path
) -> None:
    for name in ("other", "tree/data", "tree/a"):
        (root / name).mkdir(parents=True)
    mounts.tmpfs(root / "other")
    mounts.bind(host, root / "tree/data")
    answer = put_together(call, "move", **{"from": of(root / "tree", server), "to": of(root / "other/tree", server)})
    assert (answer.status, answer.json["path"]) == (409, of(root / "tree/data", server))
    assert (host / "db").read_text() == "precious"
    assert sorted(os.listdir(root / "tree")) == ["a", "data"]
    assert mounts.run("ls", root / "other") == ""


def test_a_folder_is_not_copied_into_itself_through_a_mount(
    call: Any, server: ConfinedServer, mounts: Mounting, root: Path
) -> None:
    for name in ("tree", "alias"):
        (root / name).mkdir()
    (root / "tree/f").write_text("f")
    mounts.bind(root / "tree", root / "alias")
    answer = put_together(call, "copy", **{"from": of(root / "tree", server), "to": of(root / "alias/copy", server)})
    assert (answer.status, answer.code) == (409, "into_itself")
    assert os.listdir(root / "tree") == ["f"]


# --- live events --------------------------------------------------------------------------------------------------------


def frames_until(socket: ClientConnection, wanted: str) -> list[dict[str, Any]]:
    """Frames up to the first of a type."""
    found = []
    while True:
        found.append(orjson.loads(socket.recv(timeout=TIMEOUT_S)))
        if found[-1]["type"] == wanted:
            return found


def test_a_mount_while_we_watch_is_a_resync(
    call: Any, server: ConfinedServer, mounts: Mounting, root: Path, host: Path
) -> None:
    (root / "at").mkdir()
    url = f"{server.url.replace('http', 'ws', 1)}/api/v1/ws?topics=files"
    with connect(url, proxy=None, open_timeout=TIMEOUT_S) as socket:
        # all within a moment, as a client may list at any time
        mounts.run("sh", "-c", f"mount -t tmpfs tmpfs '{root}/at'; echo 1 > '{root}/at/t'; umount '{root}/at'")
        assert frames_until(socket, "resync")[-1]["paths"] == [""]
        mounts.bind(host, root / "at")
        assert frames_until(socket, "resync")[-1]["paths"] == [""]
        mounts.run("sh", "-c", f"echo 2 > '{root}/at/inside'")
        change = frames_until(socket, "file_changed")[-1]
        assert (change["path"], change["event_type"]) == (of(root / "at/inside", server), "created")
        assert change["etag"] == call("HEAD", file_url(change["path"])).headers["etag"]
        mounts.unmount(root / "at")
        frames_until(socket, "resync")


def test_a_mount_elsewhere_is_none(server: ConfinedServer, mounts: Mounting, root: Path) -> None:
    elsewhere = server.folder / f"elsewhere-{root.name}"
    elsewhere.mkdir()
    url = f"{server.url.replace('http', 'ws', 1)}/api/v1/ws?topics=files"
    with connect(url, proxy=None, open_timeout=TIMEOUT_S) as socket:
        mounts.tmpfs(elsewhere)
        (root / "file").touch()
        assert "resync" not in [frame["type"] for frame in frames_until(socket, "file_changed")]
    mounts.unmount(elsewhere)


# --- one root at a time -------------------------------------------------------------------------------------------------


def test_a_root_that_was_renamed_and_made_anew(tmp_path: Path) -> None:
    with confined(tmp_path) as server:
        (server.workspace / "f").write_text("old needle")
        assert ask(server.url, "GET", file_url("f")).body == b"old needle"
        # confined, the workspace is a plain folder: somebody exchanges it
        server.workspace.rename(tmp_path / "before")
        server.workspace.mkdir()
        (server.workspace / "f").write_text("new needle")
        assert ask(server.url, "GET", file_url("f")).body == b"new needle"
        assert ask(server.url, "PUT", file_url("g"), b"mine").status == 201
        assert (server.workspace / "g").read_text() == "mine"
        assert os.listdir(tmp_path / "before") == ["f"]
        found = ask(server.url, "GET", "/api/v1/search/content?q=needle")
        assert b"new needle" in found.body and b"old" not in found.body
        assert [item["path"] for item in ask(server.url, "GET", "/api/v1/search/files?q=g").json["items"]] == ["g"]
        subprocess.run(["git", "init", "-q", server.workspace], check=True)
        status = ask(server.url, "GET", "/api/v1/workspaces/default/version-control/status")
        assert {file["path"] for file in status.json["files"]} == {"f", "g"}
