"""Which repository `path` picks, and what is told and refused of repositories of unusual shapes or in unusual places."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.version_control import Case, Host, host


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("repositories")) as made:
        yield made


def outside(here: Host, name: str) -> Case:
    """A repository with a commit beside the workspace."""
    folder = here.box.init(name)
    made = Case(here, here.workspace)
    made.folder = folder
    made.commit({"a.txt": b"a\n"}, "outside")
    return made


# --- which one ------------------------------------------------------------------------------------------------------------------


def test_a_path_picks_one(here: Host) -> None:
    one = here.init("several/one")
    two = here.init("several/one/deep/two")
    one.commit({"in one": b"1", "sub/file": b"1"}, "one")
    two.commit({"in two": b"2"}, "two")
    for path in (
        "several/one",
        "several/one/in one",
        "several/one/sub",
        "several/one/sub/gone/away",
        "several/one/deep",
    ):
        assert here.ask("GET", "status", path=path).json["root"] == "several/one"
        assert here.ask("GET", "log", path=path, ref="HEAD").status == 200
    for path in (
        "several/one/deep/two",
        "several/one/deep/two/in two",
        "several/one/deep/two/",
        "several/one/deep/two/.git/x",
    ):
        assert here.ask("GET", "status", path=path).json["root"] == "several/one/deep/two"
    assert here.ask("GET", "log", path="several/one/deep/two").json["items"][0]["subject"] == "two"
    for path in ("", "several", "nowhere/at/all"):
        given = here.ask("GET", "status", path=path)
        assert (given.status, given.code) == (404, "repository_not_found")
    assert here.ask("POST", "commit", {"message": "x"}, path="several").code == "repository_not_found"


def test_a_path_that_is_not_utf8(here: Host) -> None:
    folder = os.path.join(os.fsencode(here.workspace), b"\xe9\xff")
    os.mkdir(folder)
    here.box.git(Path(os.fsdecode(folder)), "init", "-q")
    found = here.ask("GET", "status", path=b"\xe9\xff").json
    assert (found["root"], found["root_bytes"]) == ("\ufffd\ufffd", "%E9%FF")


def test_links(here: Host) -> None:
    """A link belongs to the repository it lies in, as in git; what lies below it to the one that it leads to."""
    case = here.init("linked to")
    case.write("new", "x")
    (here.workspace / "link").symlink_to("linked to")
    assert here.ask("GET", "status", path="link/new").json["root"] == "linked to"
    holder = here.init("holds links")
    (holder.folder / "link").symlink_to("../linked to")
    holder.commit({}, "empty")
    holder.post("stage", paths=["link"])
    holder.post("commit", message="a link")
    assert here.ask("GET", "blob", path="holds links/link").body == b"../linked to"
    assert here.ask("GET", "status", path="holds links/link").json["root"] == "holds links"
    (here.workspace / "link out").symlink_to(outside(here, "beside").folder)
    for path in ("link out/a.txt", "link out/sub/x"):
        given = here.ask("GET", "status", path=path)
        assert (given.status, given.code) == (403, "path_outside"), path
    for route in ("log", "blob", "blame", "branches"):
        assert here.ask("GET", route, path="link out/a.txt").code == "path_outside"
    assert here.ask("POST", "stage", {"all": True}, path="link out/a.txt").code == "path_outside"


# --- shapes ---------------------------------------------------------------------------------------------------------------------


def test_bare(here: Host) -> None:
    source = here.init("bare source")
    oid = source.commit({"a.txt": b"a\n"}, "first")
    here.box.git(here.workspace, "clone", "-q", "--bare", "bare source", "bare.git")
    bare = here.at(here.workspace / "bare.git")
    found = bare.status()
    assert (found["bare"], found["files"], found["head"]["oid"], found["head"]["branch"]) == (True, [], oid, "main")
    assert bare.get("log")["items"][0]["oid"] == oid
    assert bare.get("branches")["items"][0]["name"] == "main"
    assert len(bare.get("diff", target=f"{oid}..main")["files"]) == 0
    assert bare.get("show")["files"][0]["path"] == "a.txt"
    assert bare.ask("GET", "blob", path="bare.git/a.txt").body == b"a\n"
    assert bare.get("worktrees")["items"][0]["bare"]
    assert bare.post("branches", 201, name="more")["oid"] == oid
    for route, body in (
        ("stage", {"all": True}), ("commit", {"message": "x"}), ("checkout", {"branch": "more"}), ("stash", {}), ("merge", {"ref": "main"}),
    ):  # fmt: skip
        assert bare.refused("POST", route, body)["code"] == "repository_bare"
    for route in ("diff", "conflicts", "commit/draft", "diff?target=index"):
        given = here.client.get(f"/api/v1/workspaces/default/version-control/{route}", params={"path": "bare.git"})
        assert given.status_code in (200, 409)
    assert bare.refused("GET", "diff")["code"] == bare.refused("GET", "conflicts")["code"] == "repository_bare"
    assert bare.refused("GET", "commit/draft")["code"] == "repository_bare"


def test_shallow(here: Host) -> None:
    source = here.init("deep")
    for number in range(3):
        source.commit({"a.txt": b"%d" % number}, str(number))
    here.box.git(here.workspace, "clone", "-q", "--depth=1", f"file://{source.folder}", "shallow")
    shallow = here.at(here.workspace / "shallow")
    assert shallow.status()["shallow"] and not source.status()["shallow"]
    assert len(shallow.get("log")["items"]) == 1
    assert shallow.get("show")["commit"]["subject"] == "2"


def test_sparse(here: Host) -> None:
    case = here.init("sparse")
    case.commit({"in/a": b"a", "out/b": b"b", "top": b"t"}, "first")
    case.git("sparse-checkout", "set", "in")
    assert not (case.folder / "out").exists()
    found = case.status()
    assert (found["sparse"], found["files"]) == (True, [])
    case.write("in/a", "changed")
    assert case.files() == {"in/a": (None, "modified")}
    case.git("sparse-checkout", "reapply", "--sparse-index")
    assert case.files() == {"in/a": (None, "modified")}
    case.post("stage", paths=["in/a"])
    case.post("commit", message="in the sparse tree")
    assert case.git("ls-tree", "-r", "--name-only", "HEAD").split() == ["in/a", "out/b", "top"]


def test_sha256(here: Host) -> None:
    case = here.init("sha256", "--object-format=sha256")
    assert case.status()["head"]["unborn"]
    case.write("a.txt", "one\n")
    case.post("stage", all=True)
    oid = case.post("commit", message="first")["oid"]
    assert len(oid) == 64 and case.status()["head"]["oid"] == oid
    case.write("a.txt", "one\ntwo\n")
    assert case.status()["files"][0]["additions"] == 1
    assert case.get("log")["items"][0]["oid"] == oid
    assert case.get("show", ref=oid[:10])["files"][0]["status"] == "added"
    assert case.get("diff")["files"][0]["old_oid"] == case.git("rev-parse", "HEAD:a.txt")


def test_a_split_index(here: Host) -> None:
    case = here.init("split")
    case.commit({"a.txt": b"a\n", "b.txt": b"b\n"}, "first")
    case.git("update-index", "--split-index")
    case.write("a.txt", "changed\n")
    case.write("c.txt", "new\n")
    case.git("add", "c.txt")
    assert case.files() == {"a.txt": (None, "modified"), "c.txt": ("added", None)}
    case.post("stage", paths=["a.txt"])
    assert case.files() == {"a.txt": ("modified", None), "c.txt": ("added", None)}


def test_submodules(here: Host) -> None:
    inner = here.init("modules/inner")
    inner.commit({"i.txt": b"i\n"}, "inner")
    middle = here.init("modules/middle")
    middle.commit({"m.txt": b"m\n"}, "middle")
    allowed = {"GIT_ALLOW_PROTOCOL": "file"}
    middle.git("submodule", "add", "-q", "../inner", "nested", env=allowed)
    middle.git("commit", "-q", "-m", "with a module")
    case = here.init("modules/outer")
    case.git("submodule", "add", "-q", "../middle", "sub", env=allowed)
    case.git("commit", "-q", "-m", "with a module")
    assert case.files() == {}

    def told() -> dict[str, bool] | None:
        files = case.status()["files"]
        assert len(files) <= 1
        return files[0]["submodule"] if files else None

    sub = here.at(case.folder / "sub")
    sub.write("m.txt", "changed\n")
    assert told() == {"commit_changed": False, "modified": True, "untracked": False}
    assert sub.status()["root"] == "modules/outer/sub" and sub.files() == {"m.txt": (None, "modified")}
    sub.git("checkout", "m.txt")
    assert told() is None
    sub.write("new", "x")
    assert told() == {"commit_changed": False, "modified": False, "untracked": True}
    (sub.folder / "new").unlink()
    sub.commit({"m.txt": b"more\n"}, "in the module")
    assert told() == {"commit_changed": True, "modified": False, "untracked": False}
    assert case.get("diff")["files"][0]["submodule"] is True
    case.post("stage", paths=["sub"])
    assert case.files() == {"sub": ("modified", None)}
    case.post("commit", message="module moved")
    sub.git("submodule", "update", "-q", "--init", env=allowed)
    nested = here.at(sub.folder / "nested")
    nested.write("i.txt", "changed\n")
    assert told() == {"commit_changed": False, "modified": True, "untracked": False}
    nested.git("checkout", "i.txt")
    case.git("submodule", "deinit", "-q", "-f", "sub")
    assert told() is None


def test_core_worktree_inside(here: Host) -> None:
    case = here.init("by name/repo")
    tree = here.workspace / "by name/tree"
    tree.mkdir()
    case.git("config", "core.worktree", str(tree))
    (tree / "file").write_text("x")
    found = case.status()
    assert found["root"] == "by name/tree"
    assert case.files() == {"file": (None, "untracked")}
    case.post("stage", paths=["file"])
    case.post("commit", message="first")
    assert case.files() == {}


def test_core_worktree_outside(here: Host, tmp_path: Path) -> None:
    case = here.init("away")
    case.commit({"a.txt": b"a"}, "first")
    (tmp_path / "secret").write_text("x")
    case.git("config", "core.worktree", str(tmp_path))
    for method, route, body in (
        ("GET", "status", None), ("GET", "log", None), ("POST", "stage", {"all": True}), ("POST", "discard", {"all": True, "untracked": True}),
    ):  # fmt: skip
        assert case.refused(method, route, body)["code"] == "repository_outside_workspace"
    assert (tmp_path / "secret").exists()


def test_a_git_file_that_leads_elsewhere(here: Host) -> None:
    beside = outside(here, "elsewhere")
    folder = here.workspace / "led away"
    folder.mkdir()
    (folder / ".git").write_text(f"gitdir: {beside.folder}/.git\n")
    case = here.at(folder)
    for method, route, body in (("GET", "status", None), ("GET", "log", None), ("POST", "commit", {"message": "x"})):
        assert case.refused(method, route, body)["code"] == "repository_outside_workspace"
    (folder / ".git").unlink()
    (folder / ".git").symlink_to(beside.folder / ".git")
    assert case.refused("GET", "log")["code"] == "repository_outside_workspace"
    (folder / ".git").unlink()
    (folder / ".git").write_text("gitdir: nowhere\n")
    assert case.refused("GET", "status")["code"] == "repository_invalid"
    (folder / ".git").write_text("nonsense\n")
    assert case.refused("GET", "status")["code"] == "repository_invalid"
    (folder / ".git").unlink()
    os.mkfifo(folder / ".git")
    assert case.refused("GET", "status")["code"] == "repository_invalid"


def test_objects_from_elsewhere(here: Host) -> None:
    """A git folder inside whose common folder is not."""
    beside = outside(here, "common")
    case = here.init("uncommon")
    (case.folder / ".git/commondir").write_text(str(beside.folder / ".git"))
    assert case.refused("GET", "log")["code"] == "repository_outside_workspace"


def test_broken_repositories(here: Host) -> None:
    case = here.init("broken")
    case.commit({"a.txt": b"a"}, "first")
    (case.folder / ".git/index").write_bytes(b"rubbish")
    assert case.refused("GET", "status")["status"] == 409
    assert case.get("log")["items"]
    (case.folder / ".git/index").unlink()
    assert set(case.files()) == {"a.txt"}
    (case.folder / ".git/config").write_text("[core\nbroken")
    assert case.refused("GET", "status")["status"] == 409
    (case.folder / ".git/HEAD").write_text("rubbish")
    assert case.refused("GET", "status")["code"] == "repository_not_found"
