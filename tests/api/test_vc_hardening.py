"""What a hostile or odd repository, or a change at the wrong moment, once got past: each of these did, in a version that was never out."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.git_home import CONFIG, Sandbox
from support.hostile_repository import program
from support.server import eventually, running
from support.version_control import Case, Host


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("hardening")
    box = Sandbox(folder)
    with running(folder) as server, server.client() as client:
        yield Host(server, box, client)


def add_worktree(case: Case, **body: object) -> None:
    """Add a working tree by the API."""
    given = case.host.ask("POST", "worktrees", body, path=case.path)
    assert given.status == 201, given


def test_a_filter_without_a_name_does_not_run_in_a_read(host: Host, tmp_path: Path) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    path, mark = program(tmp_path, "filter")
    with open(case.folder / ".git" / "config", "a") as file:
        file.write(f'[filter ""]\n\tclean = {path}\n')
    (case.folder / ".gitattributes").write_text("* filter=\n")
    (case.folder / "a.txt").write_text("other\n")
    case.get("status")
    case.get("diff")
    assert not mark.exists()


def test_an_extension_of_lfs_does_not_run_in_a_read(host: Host, tmp_path: Path) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    path, mark = program(tmp_path, "clean")
    with open(case.folder / ".git" / "config", "a") as file:
        file.write(
            f'[filter "lfs"]\n\tclean = git-lfs clean -- %f\n[lfs "extension.evil"]\n\tclean = {path}\n\tpriority = 0\n'
        )
    (case.folder / ".gitattributes").write_text("* filter=lfs\n")
    (case.folder / "a.txt").write_text("other\n")
    case.get("status")
    assert not mark.exists()


def test_a_configuration_that_can_t_be_read_is_no_empty_one(host: Host, tmp_path: Path) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    with open(case.folder / ".git" / "config", "a") as file:
        file.write("[x]\n" + "\ty = zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz\n" * 600_000)
    given = host.ask("GET", "status", path=case.path)
    assert (given.status, given.code) == (409, "repository_invalid")


def test_a_remote_whose_name_is_an_option_or_a_group(host: Host, tmp_path: Path) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    path, mark = program(tmp_path, "pack")
    with open(case.folder / ".git" / "config", "a") as file:
        file.write(f'[remote "--upload-pack={path}"]\n\turl = {case.folder}\n')
        file.write(f'[remote "one"]\n\turl = {case.folder}\n\tuploadpack = {path}\n[remotes]\n\tgroup = one\n')
        file.write(f'[remote "group"]\n\turl = {case.folder}\n')
    host.ask("POST", "fetch", {"all": True}, path=case.path)
    given = host.ask("POST", "fetch", {"remote": "group"}, path=case.path)
    assert given.code == "remote_not_configured"
    assert not mark.exists()


@pytest.mark.parametrize("name", ["config", "index", "refs/heads", "logs"])
def test_links_in_the_repository_lead_no_write_out(host: Host, tmp_path: Path, name: str) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    outside = tmp_path / "outside"
    os.rename(case.folder / ".git" / name, outside)
    (case.folder / ".git" / name).symlink_to(outside)
    before = outside.read_bytes() if outside.is_file() else sorted(os.listdir(outside))
    for action, body in (
        ("stage", {"all": True}),
        ("branches", {"name": "n"}),
        ("remotes", {"name": "r", "url": "https://127.0.0.1/x"}),
    ):
        assert host.ask("POST", action, body, path=case.path).code == "repository_outside_workspace"
    assert (outside.read_bytes() if outside.is_file() else sorted(os.listdir(outside))) == before


def test_core_worktree_counts_only_where_git_reads_it(host: Host) -> None:
    """Of an included file, and in a linked working tree, git takes no notice of it, and neither may we."""
    case, other = host.fresh(), host.fresh()
    case.commit({"a.txt": b"mine\n"})
    other.commit({"a.txt": b"theirs\n"})
    (case.folder / ".git" / "more").write_text(f"[core]\n\tworktree = {other.folder}\n")
    case.git("config", "include.path", "more")
    (other.folder / "a.txt").write_text("precious\n")
    (case.folder / "a.txt").write_text("mine, changed\n")
    host.ask("POST", "discard", {"all": True}, path=case.path)
    assert (other.folder / "a.txt").read_text() == "precious\n"
    assert (case.folder / "a.txt").read_text() == "mine\n"


def test_a_working_tree_of_a_repository_that_names_its_own(host: Host) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    case.git("config", "core.worktree", str(case.folder))
    add_worktree(case, worktree=f"{case.path}-linked", branch="linked", create=True)
    (case.folder / "a.txt").write_text("main, changed\n")
    linked = host.at(host.workspace / f"{case.path}-linked")
    (linked.folder / "a.txt").write_text("linked, changed\n")
    linked.post("discard", all=True)
    assert (case.folder / "a.txt").read_text() == "main, changed\n"
    assert (linked.folder / "a.txt").read_text() == "a\n"


def test_a_working_tree_of_a_bare_repository_is_none_itself(host: Host) -> None:
    source = host.fresh()
    source.commit({"a.txt": b"a\n"})
    host.box.git(host.workspace, "clone", "--quiet", "--bare", str(source.folder), "bare.git")
    add_worktree(host.at(host.workspace / "bare.git"), worktree="of-bare", branch="main")
    linked = host.at(host.workspace / "of-bare")
    (linked.folder / "a.txt").write_text("changed\n")
    status = linked.get("status")
    assert not status["bare"] and [file["path"] for file in status["files"]] == ["a.txt"]
    linked.post("commit", message="x", all=True)


def test_a_repository_in_a_folder_with_a_colon(host: Host) -> None:
    outer = host.fresh()
    outer.commit({"a.txt": b"outer\n"})
    inner = host.init(f"{outer.path}/x:y/sub")
    inner.commit({"b.txt": b"inner\n"})
    (inner.folder / "b.txt").write_text("changed\n")
    inner.post("commit", message="in the inner one", all=True)
    assert inner.git("log", "-1", "--format=%s") == "in the inner one"
    (inner.folder / ".git" / "HEAD").unlink()
    (inner.folder / ".git" / "HEAD").symlink_to("nothing")
    before = outer.git("status", "--porcelain")
    assert host.ask("POST", "stage", {"all": True}, path=inner.path).status == 409
    assert outer.git("status", "--porcelain") == before


def test_hooks_read_patterns_as_patterns(host: Host) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    hook = case.folder / ".git" / "hooks" / "pre-commit"
    hook.write_text("#!/bin/sh\n! git diff --cached --name-only -- '*.txt' | grep -q .\n")
    hook.chmod(0o755)
    (case.folder / "a.txt").write_text("changed\n")
    given = host.ask("POST", "commit", {"message": "x", "all": True}, path=case.path)
    assert given.code == "hook_refused", "as in a terminal"


def test_a_repository_that_goes_while_a_write_waits(tmp_path: Path) -> None:
    """The one around it must not get what was meant for the other."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text(CONFIG)
    box = Sandbox(tmp_path)
    with running(tmp_path) as server, server.client() as client:
        host = Host(server, box, client)
        outer, inner = host.init(""), host.init("inner")
        outer.commit({"precious.txt": b"old\n"})
        inner.commit({"b.txt": b"b\n"})
        (outer.folder / "precious.txt").write_text("precious\n")
        hook = inner.folder / ".git" / "hooks" / "pre-commit"
        hook.write_text(
            f"#!/bin/sh\n: > '{tmp_path}/in-hook'\nwhile ! [ -e '{tmp_path}/go-on' ]; do sleep 0.02; done\nexit 1\n"
        )
        hook.chmod(0o755)
        (inner.folder / "b.txt").write_text("changed\n")
        waiting = [
            threading.Thread(target=host.ask, args=("POST", action, body), kwargs={"path": "inner"})
            for action, body in (("commit", {"message": "x", "all": True}), ("discard", {"all": True}))
        ]
        waiting[0].start()
        eventually((tmp_path / "in-hook").exists)
        waiting[1].start()
        eventually(lambda: len(host.ask("GET", "operations").json["items"]) == 2)
        os.rename(inner.folder / ".git", tmp_path / "gone")
        (tmp_path / "go-on").touch()
        for thread in waiting:
            thread.join()
        newest = host.ask("GET", "operations").json["items"][0]
        assert newest["kind"] == "discard" and newest["status"] == "failed"
        assert (outer.folder / "precious.txt").read_text() == "precious\n"


def test_an_untracked_folder_becomes_a_repository_and_back(host: Host) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    folder = case.folder / "p" / "made"
    folder.mkdir(parents=True)
    (folder / "u1").write_text("u\n")
    for _ in range(3):
        case.get("status")
    host.box.git(folder, "init", "--quiet")
    assert [file["path"] for file in case.get("status")["files"]] == ["p/made/"]
    os.rename(folder / ".git", case.folder / ".git" / "away")
    assert [file["path"] for file in case.get("status")["files"]] == ["p/made/u1"]


def test_a_status_leaves_a_split_index_alone(host: Host) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    case.git("config", "core.splitIndex", "true")
    before = sorted(os.listdir(case.folder / ".git"))
    (case.folder / "b.txt").write_text("b\n")
    case.get("status")
    case.get("status")
    assert sorted(os.listdir(case.folder / ".git")) == before


def test_all_is_staged_but_for_the_trees_of_others(host: Host) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    add_worktree(case, worktree=f"{case.path}/agents/one", branch="agent-one", create=True)
    (case.folder / "new.txt").write_text("n\n")
    case.post("stage", all=True)
    assert case.git("diff", "--cached", "--name-only") == "new.txt"


def test_many_long_names_are_discarded(host: Host) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    for number in range(9000):
        (case.folder / f"{number:04}{'x' * 240}").touch()
    (case.folder / "a.txt").write_text("changed\n")
    case.post("discard", all=True, untracked=True)
    assert case.get("status")["files"] == []


def test_unstaging_before_the_first_commit(host: Host) -> None:
    case = host.fresh()
    (case.folder / "a.txt").write_text("a\n")
    case.post("stage", all=True)
    (case.folder / "a.txt").write_text("changed since\n")
    case.post("unstage", paths=["a.txt"])
    assert (case.folder / "a.txt").read_text() == "changed since\n"
    assert [file["worktree"] for file in case.get("status")["files"]] == ["untracked"]


def test_a_hunk_of_a_renamed_file_is_unstaged(host: Host) -> None:
    case = host.fresh()
    lines = [f"line {number}\n" for number in range(40)]
    case.commit({"old.txt": "".join(lines).encode()})
    case.git("mv", "old.txt", "new.txt")
    (case.folder / "new.txt").write_text("".join(["first\n", *lines[1:-1], "last\n"]))
    case.git("add", "-A")
    file = case.get("diff", target="index")["files"][0]
    assert file["status"] == "renamed" and len(file["hunks"]) == 2
    case.post("unstage", hunks=[{"path": "new.txt", "ids": [file["hunks"][0]["id"]]}])
    assert case.git("show", ":new.txt").startswith("line 0\n") and case.git("show", ":new.txt").endswith("last")


def test_an_amend_that_changes_nothing(host: Host) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    for _ in range(3):
        assert case.post("commit", amend=True)["oid"] == case.git("rev-parse", "HEAD")


def test_an_author_commits_where_git_knows_nobody(tmp_path: Path) -> None:
    box = Sandbox(tmp_path / "elsewhere")
    with running(tmp_path, env={"EMAIL": ""}) as server, server.client() as client:
        case = Host(server, box, client).init("")
        (case.folder / "a.txt").write_text("a\n")
        case.post("stage", all=True)
        assert case.host.ask("POST", "commit", {"message": "x"}).code == "identity_missing"
        made = case.post("commit", message="x", author={"name": "Eve", "email": "eve@example.org"})["commit"]
        assert made["author"]["name"] == made["committer"]["name"] == "Eve"
        case.git("config", "user.name", "Ada")
        case.git("config", "user.email", "ada@example.org")
        again = case.post("commit", message="y", amend=True, author={"name": "Eve", "email": "eve@example.org"})[
            "commit"
        ]
        assert (again["author"]["name"], again["committer"]["name"]) == ("Eve", "Ada")


def test_two_who_look_do_not_keep_a_lock(host: Host) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            host.ask("GET", "status", path=case.path)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for thread in lookers:
        thread.start()
    try:
        for _ in range(10):
            (case.folder / ".git" / "index.lock").touch()
            assert case.post("unlock")["removed"] == ["index.lock"]
    finally:
        over.set()
        for thread in lookers:
            thread.join()


@pytest.mark.timeout(100)
def test_a_repository_at_which_git_hangs_keeps_no_other_waiting(host: Host) -> None:
    hanging, other = host.fresh(), host.fresh()
    for case in (hanging, other):
        case.commit({"a.txt": b"a\n", **{f"f{number}/b": b"b\n" for number in range(8)}})
    os.mkfifo(hanging.folder / ".gitignore")
    asking = [
        threading.Thread(target=host.ask, args=("GET", route), kwargs={"path": f"{hanging.path}/f{number}"})
        for number, route in enumerate(["status"] * 4 + ["diff"] * 4)
    ]
    for thread in asking:
        thread.start()
    began = time.monotonic()
    other.get("status")
    assert time.monotonic() - began < 10
    for thread in asking:  # they are refused, with the name of what git would wait for
        thread.join()


def test_a_clone_into_a_folder_that_is_not_utf_8(host: Host) -> None:
    source = host.fresh()
    source.commit({"a.txt": b"a\n"})
    given = host.ask("POST", "clone", {"url": str(source.folder), "path_bytes": "cloned-%ff"})
    assert given.status == 202, given
    place = f"operations/{given.json['id']}"
    ended = eventually(lambda: (told := host.ask("GET", place).json)["ended_at"] and told)
    assert ended["result"] == {"path": "cloned-\ufffd", "path_bytes": "cloned-%FF"}, ended
    assert os.path.exists(os.path.join(os.fsencode(host.workspace), b"cloned-\xff", b"a.txt"))
    assert not [name for name in os.listdir(host.workspace) if name.startswith(".workspace-runtime")]


def test_messages_without_nul(host: Host) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n"})
    for action, body in (
        ("stash", {"message": "a\0b"}),
        ("commit", {"message": "a\0b"}),
        ("tags", {"name": "t", "message": "a\0b"}),
    ):
        assert host.ask("POST", action, body, path=case.path).status == 422, action


def test_what_is_stashed_for_a_switch_that_is_cancelled_is_told(host: Host, tmp_path: Path) -> None:
    case = host.fresh()
    case.commit({"a.txt": b"a\n", "b.bin": b"b\n"})
    case.git("switch", "--quiet", "--create", "other")
    case.commit({"b.bin": b"other\n"})
    case.git("switch", "--quiet", "main")
    (case.folder / "a.txt").write_text("precious\n")
    (tmp_path / "slow").write_text(f"#!/bin/sh\n: > '{tmp_path}/in-filter'\nexec sleep 60\n")
    (tmp_path / "slow").chmod(0o755)
    case.git("config", "filter.slow.smudge", str(tmp_path / "slow"))
    (case.folder / ".git" / "info" / "attributes").write_text("*.bin filter=slow\n")
    body = {"branch": "other", "local_changes": "stash"}
    switching = threading.Thread(target=host.ask, args=("POST", "checkout", body), kwargs={"path": case.path})
    switching.start()
    eventually((tmp_path / "in-filter").exists)
    operation = host.ask("GET", "operations").json["items"][0]
    ended = host.ask("DELETE", f"operations/{operation['id']}").json
    switching.join()
    assert ended["status"] == "cancelled"
    assert ended["error"]["stash"] == case.git("rev-parse", "refs/stash")
    assert case.git("show", "refs/stash:a.txt") == "precious"
