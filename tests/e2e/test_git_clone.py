"""Clone: where it goes, what it takes, what it refuses, and that it is there whole or not at all."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.git_bench import BASE, Bench, Json, done, fresh_name, git_server, refused
from support.git_home import Sandbox
from support.git_remotes import http_remote
from support.server import ServerProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with git_server(tmp_path_factory.mktemp("clone")) as process:
        yield process


@pytest.fixture
def bench(server: ServerProcess) -> Iterator[Bench]:
    made = Bench(server, fresh_name(), files={"a.txt": b"one\n", "b/c": b"two\n"})
    yield made
    made.close()


@pytest.fixture
def place(bench: Bench) -> Path:
    """A folder that is not there yet."""
    return bench.server.workspace / f"{bench.name}-new"


def clone(bench: Bench, url: str | None = None, **body: object) -> Json:
    return done(bench.post("clone", {"url": url or str(bench.origin), **body}, wait="true"), 201)


def everything(server: ServerProcess) -> list[str]:
    """All names in the workspace, but for what is in repositories."""
    return sorted(os.listdir(server.workspace))


# --- where it goes --------------------------------------------------------------------------------------------------------------


def test_it_begins_at_once_and_tells_its_end(bench: Bench, place: Path) -> None:
    answer = bench.post("clone", {"url": str(bench.origin), "path": place.name})
    begun = done(answer, 202)
    assert (begun["kind"], begun["root"], begun["error"], begun["result"]) == ("clone", place.name, None, None)
    assert answer.headers["location"] == f"{BASE}/operations/{begun['id']}"
    ended = bench.ended(begun["id"])
    assert (ended["status"], ended["result"], ended["error"]) == ("succeeded", {"path": place.name}, None)
    assert (place / "b" / "c").read_bytes() == b"two\n"
    status = done(bench.get("status", path=place.name))
    assert (status["root"], status["files"]) == (place.name, [])
    assert (status["head"]["branch"], status["head"]["oid"]) == ("main", bench.tip())
    assert status["upstream"] == {"ref": "origin/main", "ahead": 0, "behind": 0, "gone": False}


@pytest.mark.parametrize("ending", ["", "/", "/.git", ".git", "//", ".git/"])
def test_the_folder_has_the_repositorys_name_where_none_is_given(bench: Bench, ending: str) -> None:
    name = f"{bench.name}-source"
    bench.sandbox.git(bench.served, "clone", "--quiet", str(bench.origin), name + (".git" if ending == ".git" else ""))
    if ending == ".git/":
        (bench.served / name).rename(bench.served / f"{name}.git")
    answer = clone(bench, f"{bench.served}/{name}{ending}")
    assert answer["path"] == name
    assert (bench.server.workspace / name / "a.txt").exists()


@pytest.mark.parametrize("url", ["/", "//", "file:///", "https://127.0.0.1:1/..", "https://127.0.0.1:1/.git", "/.."])
def test_an_address_without_a_name(bench: Bench, url: str) -> None:
    before = everything(bench.server)
    answer = bench.post("clone", {"url": url}, wait="true")
    assert answer.status_code in (400, 422, 502), answer.text
    assert everything(bench.server) == before


def test_an_empty_folder_and_folders_on_the_way(bench: Bench, place: Path) -> None:
    place.mkdir(mode=0o755)
    clone(bench, path=place.name)
    assert (place / "a.txt").exists()
    clone(bench, path=f"{place.name}/deeper/still")
    assert (place / "deeper" / "still" / "a.txt").exists()


def test_names_of_any_bytes(bench: Bench) -> None:
    name = b"\xff \n'\"\xc3\xa9-" + bench.name.encode()
    encoded = "".join(f"%{byte:02X}" for byte in name)
    done(bench.post("clone", {"url": str(bench.origin), "path_bytes": encoded}, wait="true"), 201)
    assert (Path(os.fsdecode(os.fsencode(bench.server.workspace) + b"/" + name)) / "a.txt").exists()


@pytest.mark.parametrize("what", ["a file in it", "a repository", "a file", "a link", "a broken link", "a FIFO"])
def test_a_place_that_is_taken(bench: Bench, place: Path, what: str, tmp_path: Path) -> None:
    if what == "a file in it":
        place.mkdir()
        (place / "mine").write_bytes(b"mine")
    elif what == "a repository":
        bench.sandbox.git(bench.server.workspace, "init", "--quiet", place.name)
    elif what == "a file":
        place.write_bytes(b"mine")
    elif what == "a link":
        place.symlink_to(tmp_path)
    elif what == "a broken link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        os.mkfifo(place)
    before = place.lstat()
    problem = refused(
        bench.post("clone", {"url": str(bench.origin), "path": place.name}, wait="true"), 409, "file_exists"
    )
    assert problem["path"] == place.name
    assert place.lstat().st_ino == before.st_ino
    assert what != "a file in it" or (place / "mine").read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["../out", "/etc/x", "a/../../out", "a//b", "a/./b", "\0", "a\0b", "..", "a/.."])
def test_paths_that_lead_out(bench: Bench, path: str) -> None:
    before = everything(bench.server)
    refused(bench.post("clone", {"url": str(bench.origin), "path": path}, wait="true"), 400, "path_invalid")
    assert everything(bench.server) == before


def test_a_link_that_leads_out(bench: Bench, place: Path, tmp_path: Path) -> None:
    place.symlink_to(tmp_path)
    refused(
        bench.post("clone", {"url": str(bench.origin), "path": f"{place.name}/x"}, wait="true"), 403, "path_outside"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_stays_inside_is_followed(bench: Bench, place: Path) -> None:
    (bench.server.workspace / f"{bench.name}-real").mkdir()
    place.symlink_to(f"{bench.name}-real")
    clone(bench, path=f"{place.name}/x")
    assert (bench.server.workspace / f"{bench.name}-real" / "x" / "a.txt").exists()


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_the_workspaces_root_itself_when_it_is_not_empty(bench: Bench, path: str) -> None:
    answer = bench.post("clone", {"url": str(bench.origin), "path": path}, wait="true")
    assert answer.status_code in (400, 409), answer.text
    assert not (bench.server.workspace / ".git").exists()


@pytest.mark.parametrize(("path", "bare"), [("", False), (".", True), ("/", False)])
def test_the_workspaces_root_itself_when_it_is_empty(tmp_path: Path, path: str, bare: bool) -> None:
    with git_server(tmp_path) as server, server.client() as client:
        source = Sandbox(tmp_path).init("source")
        oid = Sandbox(tmp_path).commit(source, {"a.txt": b"one", ".hidden": b"two"}, "first")
        body = {"url": str(source), "path": path, "bare": bare}
        inode = server.workspace.stat().st_ino
        assert done(client.post(f"{BASE}/clone?wait=true", json=body), 201)["path"] == ""
        assert server.workspace.stat().st_ino == inode
        status = done(client.get(f"{BASE}/status"))
        assert (status["head"]["oid"], status["files"], status["bare"]) == (oid, [], bare)
        assert bare or sorted(os.listdir(server.workspace)) == [".git", ".hidden", "a.txt"]
        refused(client.post(f"{BASE}/clone?wait=true", json=body), 409, "file_exists")


def test_two_clones_to_one_place(bench: Bench, place: Path) -> None:
    body = {"url": str(bench.origin), "path": place.name}
    operations = [done(bench.post("clone", body), 202)["id"] for _ in range(3)]
    ended = [bench.ended(id) for id in operations]
    assert [one["status"] for one in ended] == ["succeeded", "failed", "failed"]
    assert {one["error"]["code"] for one in ended[1:]} == {"file_exists"}
    assert not list(bench.server.workspace.glob(".workspace-runtime-*"))


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_a_place_that_is_taken_meanwhile(bench: Bench, place: Path, what: str, tmp_path: Path) -> None:
    bench.pushed_by_another({"big": os.urandom(400_000)})
    with http_remote(bench.served, slow=True) as remote:
        body = {"url": f"{remote.url}/{bench.name}.git", "path": place.name}
        operation = done(bench.post("clone", body), 202)["id"]
        assert remote.held.wait(30)
        if what == "folder":
            place.mkdir()
            (place / "mine").write_bytes(b"mine")
        elif what == "file":
            place.write_bytes(b"mine")
        else:
            place.symlink_to(tmp_path)
        remote.go_on.set()
        ended = bench.ended(operation)
    assert ended["status"] == "failed"
    assert ended["error"]["status"] == 409, ended
    assert (place / "mine" if what == "folder" else place).exists()
    assert not list(bench.server.workspace.glob(".workspace-runtime-*"))
    assert list(tmp_path.iterdir()) == []


# --- what it takes --------------------------------------------------------------------------------------------------------------


def test_a_branch_a_tag_and_a_depth(bench: Bench, place: Path) -> None:
    side = bench.pushed_by_another({"side": b"side"}, branch="side/one")
    bench.sandbox.git(bench.origin, "tag", "v1", "main")
    clone(bench, path=place.name, branch="side/one")
    assert bench.tip(place, "HEAD") == side
    assert bench.sandbox.git(place, "branch", "--show-current") == b"side/one\n"
    clone(bench, path=f"{place.name}-tag", branch="v1")
    assert done(bench.get("status", path=f"{place.name}-tag"))["head"]["detached"]
    clone(bench, f"file://{bench.origin}", path=f"{place.name}-shallow", branch="side/one", depth=1)
    assert done(bench.get("status", path=f"{place.name}-shallow"))["shallow"]
    assert bench.sandbox.git(Path(f"{place}-shallow"), "rev-list", "--count", "HEAD") == b"1\n"


def test_a_bare_one(bench: Bench, place: Path) -> None:
    clone(bench, path=place.name, bare=True)
    status = done(bench.get("status", path=place.name))
    assert status["bare"] is True
    assert status["head"]["oid"] == bench.tip()


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "{http}"])
def test_an_empty_repository(bench: Bench, place: Path, form: str) -> None:
    bench.sandbox.git(bench.served, "init", "--quiet", "--bare", f"{place.name}.git")
    with http_remote(bench.served) as remote:
        url = form.format(path=bench.served / f"{place.name}.git", http=f"{remote.url}/{place.name}.git")
        assert clone(bench, url)["path"] == place.name
    status = done(bench.get("status", path=place.name))
    assert (status["head"]["unborn"], status["head"]["branch"]) == (True, "main")
    bench.sandbox.commit(place, {"x": b"x"}, "first")
    if form != "{http}":
        done(bench.post("push", {"set_upstream": True}, path=place.name))


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"branch": "nowhere"}, 404, "remote_ref_not_found"),
        ({"branch": "-x"}, 422, "ref_invalid"),
        ({"branch": "--upload-pack=touch x"}, 422, "ref_invalid"),
        ({"depth": 0}, 422, "validation_failed"),
        ({"depth": "--x"}, 422, "validation_failed"),
        ({"url": "/nowhere/at/all.git"}, 404, "remote_not_found"),
        ({"url": "file:///nowhere/at/all.git"}, 404, "remote_not_found"),
        ({"url": "http://127.0.0.1:1/x.git"}, 502, "remote_unreachable"),
        ({"more": True}, 422, "validation_failed"),
        ({"url": None}, 422, "validation_failed"),
    ],
)
def test_what_can_not_be_cloned_leaves_nothing(bench: Bench, place: Path, body: Json, status: int, code: str) -> None:
    before = everything(bench.server)
    answer = bench.post("clone", {"url": str(bench.origin), "path": place.name} | body, wait="true")
    refused(answer, status, code)
    assert str(bench.server.workspace) not in answer.text
    assert everything(bench.server) == before


BAD_ADDRESSES = (
    "ext::sh -c touch% sprung", "-x", "--upload-pack=touch sprung", "-u", "git://127.0.0.1/x", "ftp://127.0.0.1/x", "../x", "x", "fd::0",
    "ssh://-oProxyCommand=touch/x", "-oProxyCommand=touch:x", "transport::https://x", "file://127.0.0.1/x", "https://h/x\n", "\0", "http:///x",
    "https://u:p@127.0.0.1/x", "::", "https:/x", "ssh://", "host:-x",
)  # fmt: skip


@pytest.mark.parametrize("wait", ["true", "false"])
@pytest.mark.parametrize("url", BAD_ADDRESSES)
def test_addresses_that_are_no_places(bench: Bench, url: str, wait: str) -> None:
    """Refused before an operation begins."""
    before, operations = everything(bench.server), bench.get("operations").json()
    refused(bench.post("clone", {"url": url, "path": "never"}, wait=wait), 422, "remote_url_refused")
    assert everything(bench.server) == before
    assert bench.get("operations").json() == operations


def test_no_option_can_be_hidden_in_a_path(bench: Bench) -> None:
    clone(bench, path=f"--upload-pack={bench.name}")
    assert (bench.server.workspace / f"--upload-pack={bench.name}" / "a.txt").exists()


def test_a_repository_whose_files_are_not_ours_to_follow(bench: Bench, place: Path) -> None:
    """A link in its tree leads out; the clone has the link, and nothing was written through it."""
    target = bench.server.folder / "target"
    (bench.other / "link").symlink_to(target)
    bench.sandbox.git(bench.other, "add", "link")
    bench.pushed_by_another({}, "a link")
    clone(bench, path=place.name)
    assert os.readlink(place / "link") == str(target)
    assert not target.exists()


def test_the_folders_rights_are_those_of_any_other(bench: Bench, place: Path) -> None:
    clone(bench, path=place.name)
    (bench.server.workspace / f"{place.name}-plain").mkdir()
    plain = (bench.server.workspace / f"{place.name}-plain").stat()
    assert place.stat().st_mode == plain.st_mode


# --- init -----------------------------------------------------------------------------------------------------------------------


def test_a_new_repository(bench: Bench, place: Path) -> None:
    body = {"path": place.name, "initial_branch": "trunk"}
    assert done(bench.post("init", body), 201) == {"path": place.name, "created": True}
    assert done(bench.post("init", body), 200) == {"path": place.name, "created": False}
    head = done(bench.get("status", path=place.name))["head"]
    assert head == {"branch": "trunk", "oid": None, "detached": False, "unborn": True}
    assert done(bench.post("init", {"path": f"{place.name}-bare", "bare": True}), 201)["created"]
    assert done(bench.get("status", path=f"{place.name}-bare"))["bare"]


@pytest.mark.parametrize("branch", ["-x", "a..b", "a b", "HEAD", "a.lock"])
def test_a_first_branch_that_git_does_not_take(bench: Bench, place: Path, branch: str) -> None:
    refused(bench.post("init", {"path": place.name, "initial_branch": branch}), 422, "ref_invalid")
    assert not place.exists()


def test_where_no_repository_can_be_made(bench: Bench, place: Path, tmp_path: Path) -> None:
    place.write_bytes(b"mine")
    refused(bench.post("init", {"path": place.name}), 409, "not_a_directory")
    refused(bench.post("init", {"path": f"{place.name}/x"}), 409, "not_a_directory")
    refused(bench.post("init", {"path": "../x"}), 400, "path_invalid")
    link = bench.server.workspace / f"{place.name}-link"
    link.symlink_to(tmp_path)
    refused(bench.post("init", {"path": link.name}), 403, "path_outside")
    assert place.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["link", "file"])
def test_a_git_entry_that_leads_out_is_not_followed(bench: Bench, place: Path, tmp_path: Path, what: str) -> None:
    place.mkdir()
    if what == "link":
        (place / ".git").symlink_to(tmp_path)
    else:
        (place / ".git").write_text(f"gitdir: {tmp_path}\n")
    assert done(bench.post("init", {"path": place.name}))["created"] is False
    assert list(tmp_path.iterdir()) == []
