"""A repository that begins above the workspace: read only, and nothing of it but our folder is told. And linked working trees as workspace."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.git_home import Sandbox
from support.version_control import Case, Host, host

SECRET = "secret"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A workspace that is a folder of a repository; the rest of that has `SECRET` in each name, content and message."""
    folder = tmp_path_factory.mktemp("above")
    box = Sandbox(folder)
    box.git(folder, "init", "-q")
    box.commit(
        folder,
        {
            "secret.txt": b"secret\n",
            "workspace/a.txt": b"one\n",
            "workspace/secret-to-be": b"long enough to be found again\n" * 9,
        },
        "both",
    )
    box.commit(folder, {"secret.txt": b"more secret\n"}, "secret only")
    box.git(folder, "mv", "workspace/secret-to-be", "moved away")
    box.git(folder, "mv", "secret.txt", "workspace/moved in")
    box.git(folder, "commit", "-q", "-m", "moved")
    box.commit(folder, {"workspace/a.txt": b"two\n", "secret 2": b"secret\n"}, "ours")
    with host(folder) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    return here.at(here.workspace)


def nothing_told(given: Any) -> None:
    assert SECRET.encode() not in given.body, given.body


def test_status_is_limited(here: Host, case: Case) -> None:
    (here.server.folder / "secret new").write_text("x")
    (here.server.folder / "secret 2").write_text("changed")
    case.write("a.txt", "three\n")
    case.write("sub/new", "n")
    given = case.ask("GET", "status")
    nothing_told(given)
    assert (given.json["read_only"], given.json["root"]) == (True, "")
    assert case.files() == {"a.txt": (None, "modified"), "sub/new": (None, "untracked")}
    assert case.status(path="sub")["root"] == ""
    nothing_told(case.ask("GET", "status", ignored=True))
    for target in ("worktree", "HEAD", "index"):
        nothing_told(given := case.ask("GET", "diff", target=target))
        assert [file["path"] for file in given.json["files"]] == ([] if target == "index" else ["a.txt"])
        nothing_told(case.ask("GET", "diff", target=target, format="patch"))


def test_history_is_limited(case: Case) -> None:
    given = case.ask("GET", "log")
    nothing_told(given)
    assert [commit["subject"] for commit in given.json["items"]] == ["ours", "moved", "both"]
    nothing_told(case.ask("GET", "log", q="secret"))
    for ref in ("HEAD", "HEAD~1", "HEAD~3"):
        given = case.ask("GET", "show", ref=ref)
        nothing_told(given) if ref == "HEAD" else None
        paths = {name for file in given.json["files"] for name in (file["path"], file["old_path"]) if name}
        assert paths <= {"a.txt", "moved in", "secret-to-be"}
    nothing_told(case.ask("GET", "diff", target="HEAD~1..HEAD"))
    nothing_told(case.ask("GET", "commit/draft"))
    assert case.ask("GET", "blob", path="a.txt").body == b"two\n"
    for path in ("secret 2", "workspace/a.txt", "moved away"):
        assert case.refused("GET", "blob", path=path)["code"] == "file_not_found"
        assert case.refused("GET", "blame", path=path)["code"] == "file_not_found"
    assert case.get("blame", path="a.txt", ref="HEAD")["lines"]
    for ref in ("HEAD:secret 2", "HEAD:workspace/a.txt", ":/secret"):
        assert case.ask("GET", "blob", path="a.txt", ref=ref).status >= 400 or ref == ":/secret"


def test_a_commit_of_the_rest_alone(case: Case) -> None:
    given = case.ask("GET", "show", ref="HEAD~2")
    assert given.status == 404 or not given.json["files"]


def test_the_index_of_the_rest(here: Host, case: Case) -> None:
    here.box.git(here.server.folder, "add", "secret 2")
    given = case.ask("GET", "diff", target="index")
    assert given.json["files"] == []
    given = case.ask("GET", "commit/draft")
    nothing_told(given)
    assert given.json["files"] == []


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("stage", {"all": True}), ("stage", {"paths": ["a.txt"]}), ("unstage", {"all": True}), ("discard", {"all": True}),
        ("commit", {"message": "x"}), ("checkout", {"branch": "main"}), ("branches", {"name": "x"}), ("tags", {"name": "x"}), ("stash", {}),
        ("merge", {"ref": "HEAD"}), ("rebase", {"onto": "HEAD"}), ("worktrees", {"worktree": "x"}), ("unlock", {}), ("fetch", {}),
        ("merge/abort", None), ("conflicts/resolve", {"paths": ["a.txt"], "use": "ours"}), ("branches/rename", {"name": "a", "new_name": "b"}),
        ("remotes", {"name": "x", "url": "/x"}), ("push", {}), ("pull", {}),
    ],
)  # fmt: skip
def test_nothing_is_written(case: Case, route: str, body: dict[str, Any] | None) -> None:
    before = case.git("for-each-ref"), case.git("status", "--porcelain")
    assert case.refused("POST", route, body)["code"] == "repository_outside_workspace"
    assert (case.git("for-each-ref"), case.git("status", "--porcelain")) == before


def test_deletes_are_refused(case: Case) -> None:
    for route in ("branches/main", "tags/x", "stash/0"):
        assert case.refused("DELETE", route)["code"] == "repository_outside_workspace"
    assert case.refused("DELETE", "worktrees", worktree="x")["code"] == "repository_outside_workspace"


def test_the_worktree_above(tmp_path: Path) -> None:
    """A repository inside, whose working tree (core.worktree) holds the workspace."""
    box = Sandbox(tmp_path)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    box.git(workspace, "init", "-q")
    box.git(workspace, "config", "core.worktree", str(tmp_path))
    (workspace / "mine").write_text("x")
    (tmp_path / "secret").write_text("x")
    with host(tmp_path) as made:
        case = made.at(workspace)
        given = case.ask("GET", "status")
        nothing_told(given)
        assert (given.json["read_only"], [file["path"] for file in given.json["files"]]) == (True, ["mine"])
        assert case.refused("POST", "stage", {"all": True})["code"] == "repository_outside_workspace"


def test_a_linked_working_tree_as_the_workspace(tmp_path: Path) -> None:
    box = Sandbox(tmp_path)
    main = box.init("main repository")
    box.commit(main, {"a.txt": b"one\n"}, "first")
    box.git(main, "worktree", "add", "-q", "-b", "agent", str(tmp_path / "workspace"))
    with host(tmp_path) as made:
        case = made.at(made.workspace)
        found = case.status()
        assert (found["read_only"], found["head"]["branch"]) == (False, "agent")
        case.write("a.txt", "two\n")
        case.post("stage", all=True)
        oid = case.post("commit", message="by an agent")["oid"]
        assert box.git(main, "rev-parse", "agent").decode().strip() == oid
        assert case.files() == {}
        trees = case.get("worktrees")["items"]
        assert [(tree["path"], tree["main"], tree["current"]) for tree in trees] == [
            (None, True, False),
            ("", False, True),
        ]
        assert case.refused("POST", "checkout", {"branch": "main"})["code"] == "branch_checked_out"
        case.post("checkout", branch="more", create=True)
        assert case.status()["head"]["branch"] == "more"
        for path in ("", ".", "/"):
            assert case.refused("DELETE", "worktrees", worktree=path, force=True)["code"] == "path_invalid"
        assert case.read("a.txt") == b"two\n"
