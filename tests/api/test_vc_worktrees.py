"""Linked working trees by HTTP, several writers at once, and lock files that somebody left."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.server import eventually
from support.version_control import Case, Host, host


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("worktrees")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    made = here.fresh()
    made.commit({"a.txt": b"a\n"}, "first")
    made.git("branch", "side")
    return made


def add(case: Case, name: str, **body: Any) -> Case:
    """A new working tree beside the repository."""
    path = f"{case.path}-{name}"
    made = case.post("worktrees", 201, worktree=path, **body)["worktree"]
    assert (made["path"], made["main"], made["current"]) == (path, False, False)
    return case.host.at(case.host.workspace / path)


def trees(case: Case) -> dict[str, str | None]:
    return {item["path"]: item["branch"] for item in case.get("worktrees")["items"]}


# --- working trees ----------------------------------------------------------------------------------------------------------------


def test_add_list_and_remove(case: Case) -> None:
    side = add(case, "side", branch="side")
    new = add(case, "new", branch="feature/new", create=True, start_point="side")
    loose = add(case, "loose", branch="side", detach=True)
    named = add(case, "named")
    assert trees(case) == {
        case.path: "main", side.path: "side", new.path: "feature/new", loose.path: None, named.path: named.folder.name,
    }  # fmt: skip
    assert {item["path"]: item["current"] for item in side.get("worktrees")["items"]}[side.path]
    found = side.status()
    assert (found["root"], found["head"]["branch"], found["read_only"]) == (side.path, "side", False)
    side.write("a.txt", "changed\n")
    oid = side.post("commit", message="in a tree of its own", all=True)["oid"]
    assert case.git("rev-parse", "side") == oid and case.files() == {}
    side.write("new", "precious")
    assert case.refused("DELETE", "worktrees", worktree=side.path)["code"] == "worktree_not_clean"
    assert side.read("new") == b"precious"
    assert case.ask("DELETE", "worktrees", worktree=side.path, force=True).status == 200
    assert not side.folder.exists() and case.git("rev-parse", "side") == oid
    assert case.ask("DELETE", "worktrees", worktree=f"{named.path}/").status == 200
    assert side.path not in trees(case) and named.path not in trees(case)


def test_one_whose_folder_is_gone(case: Case) -> None:
    side = add(case, "side", branch="side")
    other = add(case, "other", branch="other", create=True)
    for gone in (side, other):
        shutil.rmtree(gone.folder)
    (item,) = [item for item in case.get("worktrees")["items"] if item["path"] == side.path]
    assert item["prunable"]
    assert case.ask("DELETE", "worktrees", worktree=side.path).status == 200
    assert set(trees(case)) == {case.path, other.path}


def test_a_locked_one_stays(case: Case) -> None:
    side = add(case, "side", branch="side")
    case.git("worktree", "lock", "--reason", "on a stick", str(side.folder))
    (item,) = [item for item in case.get("worktrees")["items"] if item["path"] == side.path]
    assert (item["locked"], item["lock_reason"]) == (True, "on a stick")
    assert case.refused("DELETE", "worktrees", worktree=side.path)["status"] == 409
    assert case.refused("DELETE", "worktrees", worktree=side.path, force=True)["status"] == 409
    assert side.read("a.txt") == b"a\n"


def test_a_name_that_is_not_utf8(here: Host, case: Case) -> None:
    case.git("worktree", "add", "-q", os.fsencode(here.workspace) + b"/tree-\xe9", "side")
    (item,) = [item for item in case.get("worktrees")["items"] if "path_bytes" in item]
    assert (item["path"], item["path_bytes"]) == ("tree-\ufffd", "tree-%E9")
    assert here.ask("GET", "status", path=b"tree-\xe9").json["head"]["branch"] == "side"
    assert case.refused("DELETE", "worktrees", worktree="tree-\ufffd")["code"] == "worktree_not_found"
    assert case.ask("DELETE", "worktrees", worktree=b"tree-\xe9").status == 200
    made = case.post("worktrees", 201, worktree_bytes="tree-%FF", branch="side")["worktree"]
    assert made["path_bytes"] == "tree-%FF"


def test_one_outside_is_told_and_not_touched(here: Host, case: Case, tmp_path: Path) -> None:
    case.git("worktree", "add", "-q", str(tmp_path / "away"), "side")
    (item,) = [item for item in case.get("worktrees")["items"] if not item["main"]]
    assert (item["path"], item["branch"]) == (None, "side")
    assert case.refused("DELETE", "worktrees", worktree=f"../../{tmp_path.name}/away")["code"] == "path_invalid"
    assert (tmp_path / "away/a.txt").exists()
    (here.workspace / "out").symlink_to(tmp_path)
    for method, query, body in (
        ("POST", {}, {"worktree": "out/tree"}), ("DELETE", {"worktree": "out/away"}, None), ("DELETE", {"worktree": "out/away", "force": True}, None),
    ):  # fmt: skip
        assert case.refused(method, "worktrees", body, **query)["code"] in ("path_outside", "worktree_not_found")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["away"] and (tmp_path / "away/a.txt").exists()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "validation_failed"), ({"worktree": "../x"}, "path_invalid"), ({"worktree": "/tmp/x"}, "path_invalid"), ({"worktree": "taken"}, "file_exists"),
        ({"worktree": "x", "branch": "main"}, "branch_checked_out"), ({"worktree": "x", "branch": "gone"}, "ref_not_found"),
        ({"worktree": "x", "branch": "side", "create": True}, "ref_exists"), ({"worktree": "x", "create": True}, "validation_failed"),
        ({"worktree": "x", "branch": "-f", "create": True}, "ref_invalid"), ({"worktree": "x", "branch": "--lock"}, "ref_invalid"),
        ({"worktree": "x", "branch": "n", "create": True, "start_point": "gone"}, "ref_not_found"), ({"worktree": "x", "branch": "gone", "detach": True}, "ref_not_found"),
        ({"worktree": "x", "branch": "n", "create": True, "detach": True}, "validation_failed"), ({"worktree": "taken/file/x"}, None),
        ({"worktree": ".git/x"}, "path_invalid"), ({"worktree": "x/.git"}, "path_invalid"), ({"worktree": ""}, "path_invalid"),
    ],
)  # fmt: skip
def test_wrong_trees(here: Host, case: Case, body: dict[str, Any], code: str | None) -> None:
    (here.workspace / "taken").mkdir(exist_ok=True)
    (here.workspace / "taken/file").touch()
    before = case.git("for-each-ref"), case.git("worktree", "list")
    problem = case.refused("POST", "worktrees", body)
    assert code is None or problem["code"] == code
    assert (case.git("for-each-ref"), case.git("worktree", "list")) == before
    assert not (here.workspace / "x").exists()


def test_removing_what_is_no_tree(case: Case) -> None:
    for path in (case.path, "gone", f"{case.path}/a.txt", "taken"):
        assert case.refused("DELETE", "worktrees", worktree=path, force=True)["code"] == "worktree_not_found"
    for query in ({}, {"worktree": ""}, {"worktree": "."}, {"worktree": "/"}, {"worktree": "a/../b"}):
        assert case.refused("DELETE", "worktrees", force=True, **query)["code"] == "path_invalid"
    assert case.read("a.txt") == b"a\n"


# --- writers ----------------------------------------------------------------------------------------------------------------------


def test_writers_in_several_trees(case: Case) -> None:
    """Each commit of each writer is there in the end, whoever else writes."""
    writers = [case, add(case, "one", branch="one", create=True), add(case, "two", branch="two", create=True)]

    def work(number: int) -> list[str]:
        made = []
        with case.host.server.client() as client:
            own = Host(case.host.server, case.host.box, client).at(writers[number].folder)
            for at in range(4):
                own.write(f"f{at}", f"{number} {at}")
                own.post("stage", paths=[f"f{at}"])
                made.append(own.post("commit", message=f"{number} {at}")["oid"])
        return made

    with ThreadPoolExecutor(3) as pool:
        for number, oids in enumerate(pool.map(work, range(3))):
            assert writers[number].git("rev-list", "-4", "HEAD").split() == oids[::-1]
            assert writers[number].files() == {}


def test_readers_do_not_wait_for_a_writer(case: Case) -> None:
    fifo = case.host.server.folder / "go"
    os.mkfifo(fifo)
    hook = case.write(".git/hooks/pre-commit", f"#!/bin/sh\nread _ < '{fifo}'\n")
    hook.chmod(0o755)
    case.write("a.txt", "changed\n")
    done: list[Any] = []

    def commit() -> None:
        with case.host.server.client() as client:
            own = Host(case.host.server, case.host.box, client).at(case.folder)
            done.append(own.post("commit", message="slow", all=True))

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        eventually(lambda: any(one["status"] == "running" for one in case.get("operations")["items"]))
        for route in ("status", "log", "branches", "diff", "show", "stash", "worktrees"):
            case.get(route)
        assert case.files()["a.txt"] and not done
    finally:
        fifo.write_text("go\n")
        thread.join()
    assert done[0]["oid"] == case.head()


# --- locks ------------------------------------------------------------------------------------------------------------------------


def test_no_locks(case: Case) -> None:
    assert case.get("locks") == {"items": [], "next_cursor": None, "processes": []}
    assert case.post("unlock") == {"removed": []}


def test_a_lock_that_was_left(case: Case) -> None:
    case.write(".git/index.lock", "")
    case.write(".git/refs/heads/side.lock", "")
    os.utime(case.folder / ".git/index.lock", (1_000_000_000, 1_000_000_000))
    case.write("a.txt", "changed\n")
    assert case.files() == {"a.txt": (None, "modified")}
    problem = case.refused("POST", "stage", {"all": True})
    assert problem["code"] == "repository_locked" and "index.lock" in problem["output"]
    assert case.refused("DELETE", "branches/side")["code"] == "repository_locked"
    items = {item["name"]: item for item in case.get("locks")["items"]}
    assert set(items) == {"index.lock", "refs/heads/side.lock"}
    assert items["index.lock"]["created_at"] == "2001-09-09T01:46:40Z" and items["index.lock"]["age_s"] > 1e8
    assert set(case.post("unlock")["removed"]) == set(items)
    case.post("stage", all=True)
    assert case.ask("DELETE", "branches/side").status == 200


def test_locks_of_a_linked_tree(case: Case) -> None:
    side = add(case, "side", branch="side")
    lock = Path(side.git("rev-parse", "--absolute-git-dir")) / "index.lock"
    lock.touch()
    assert case.get("locks")["items"] == []
    case.write("a.txt", "x")
    case.post("stage", all=True)
    assert [item["name"] for item in side.get("locks")["items"]] == ["index.lock"]
    assert side.post("unlock") == {"removed": ["index.lock"]} and not lock.exists()


def test_a_lock_whose_maker_lives(case: Case) -> None:
    maker = subprocess.Popen(
        ["git", "cat-file", "--batch"],
        cwd=case.folder,
        env=case.host.box.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        case.write(".git/index.lock", "")
        found = eventually(lambda: (told := case.get("locks"))["processes"] and told)
        assert [process["pid"] for process in found["processes"]] == [maker.pid]
        problem = case.refused("POST", "unlock")
        assert problem["code"] == "repository_locked" and problem["processes"][0]["pid"] == maker.pid
        assert (case.folder / ".git/index.lock").exists()
        assert case.post("unlock", force=True) == {"removed": ["index.lock"]}
    finally:
        maker.send_signal(signal.SIGKILL)
        maker.communicate()


def test_what_is_no_lock_stays(case: Case) -> None:
    precious = case.write("precious", "")
    (case.folder / ".git/index.lock").symlink_to(precious)
    (case.folder / ".git/HEAD.lock").mkdir()
    case.write(".git/refs/heads/x.lock/y", "")
    assert case.get("locks")["items"] == [] and case.post("unlock") == {"removed": []}
    assert precious.exists()
