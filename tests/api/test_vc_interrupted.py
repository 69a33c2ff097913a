"""Work that is cut short, by HTTP: cancelled, failed, or with its server killed. What it had taken away is told of and can be brought
back, and what it had made is gone."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.git_bench import Bench, Gate, Json, done, files_with, fresh_name, git_server, program, refused
from support.server import ServerProcess, eventually


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with git_server(tmp_path_factory.mktemp("interrupted")) as made:
        yield made


@pytest.fixture
def bench(server: ServerProcess) -> Iterator[Bench]:
    made = Bench(server, fresh_name(), files={"a.txt": b"one\n", "x.bin": b"one\n"})
    yield made
    made.close()


def slow(bench: Bench) -> Gate:
    """A gate for whoever brings a `.bin` file into the working tree."""
    gate = Gate(bench.server.folder, fresh_name())
    filter = program(bench.server.folder / f"{bench.name}-filter", f"{gate.script}\ncat")
    bench.config("filter.slow.smudge", str(filter))
    (bench.copy / ".git/info").mkdir(exist_ok=True)
    (bench.copy / ".git/info/attributes").write_text("*.bin filter=slow\n")
    return gate


def begun(bench: Bench, gate: Gate, what: str, body: Json) -> threading.Thread:
    """Work that has come to the gate."""

    def ask() -> None:
        with bench.server.client() as client:
            address = f"/api/v1/workspaces/default/version-control/{what}"
            client.post(address, json=body, params={"path": bench.name})

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(gate.here.exists)
    return thread


def cancelled(bench: Bench, gate: Gate, what: str, body: Json) -> Json:
    """The error of work that is cancelled at the gate; then the gate is open."""
    thread = begun(bench, gate, what, body)
    newest = done(bench.get("operations"))["items"][0]
    ended = done(bench.ask("DELETE", f"operations/{newest['id']}"))
    thread.join()
    gate.open()
    assert (ended["status"], ended["error"]["code"]) == ("cancelled", "operation_cancelled")
    error: Json = ended["error"]
    return error


def stashes(bench: Bench) -> list[str]:
    return [stash["oid"] for stash in done(bench.get("stash"))["items"]]


def notes(bench: Bench) -> list[str]:
    """What git has left of an autostash."""
    return [str(path) for path in (bench.copy / ".git").rglob("*") if path.name in ("MERGE_AUTOSTASH", "autostash")]


# --- what git takes away for a while ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "apart"), [("ff-only", False), ("merge", False), ("rebase", False), ("merge", True)])
def test_a_pull_that_is_cancelled(bench: Bench, mode: str, apart: bool) -> None:
    bench.pushed_by_another({"new.bin": b"new\n"})
    if apart:
        bench.commit({"own": b"own\n"})
    (bench.copy / "a.txt").write_text("precious\n")
    error = cancelled(bench, slow(bench), "pull", {"mode": mode, "autostash": True})
    assert stashes(bench) == [error["stash"]] and notes(bench) == []
    assert done(bench.get("stash"))["items"][0]["branch"] == "main"
    done(bench.post(f"stash/{error['stash']}/pop"))
    assert (bench.copy / "a.txt").read_text() == "precious\n"


def test_a_rebase_that_is_cancelled_keeps_it_for_its_end(bench: Bench) -> None:
    bench.pushed_by_another({"new.bin": b"new\n"})
    bench.commit({"own": b"own\n"})
    (bench.copy / "a.txt").write_text("precious\n")
    assert "stash" not in cancelled(bench, slow(bench), "pull", {"mode": "rebase", "autostash": True})
    assert done(bench.get("status"))["operation"]["kind"] == "rebase" and stashes(bench) == []
    (bench.copy / "new.bin").unlink(missing_ok=True)
    done(bench.post("rebase/abort"))
    assert (bench.copy / "a.txt").read_text() == "precious\n" and notes(bench) == []


def test_a_rebase_that_is_cancelled_before_it_began(bench: Bench) -> None:
    bench.pushed_by_another({"new": b"new\n"})
    bench.git("fetch", "-q")
    bench.commit({"own": b"own\n"})
    (bench.copy / "x.bin").write_text("precious\n")
    error = cancelled(bench, slow(bench), "rebase", {"onto": "origin/main", "autostash": True})
    assert stashes(bench) == [error["stash"]] and notes(bench) == []
    assert done(bench.get("status"))["operation"] is None
    bench.git("checkout", "-q", "--", "x.bin")
    done(bench.post(f"stash/{error['stash']}/pop"))
    assert (bench.copy / "x.bin").read_text() == "precious\n"


@pytest.mark.parametrize("what", ["stage", "pull"])
def test_a_pull_whose_server_is_killed(tmp_path: Path, what: str) -> None:
    """The next write finds what it had taken away, before it takes away more."""
    with git_server(tmp_path) as server:
        bench = Bench(server, "one", files={"a.txt": b"one\n", "x.bin": b"one\n"})
        bench.pushed_by_another({"new.bin": b"new\n"})
        (bench.copy / "a.txt").write_text("precious\n")
        gate = slow(bench)
        done(bench.post("pull", {"mode": "ff-only", "autostash": True}, wait="false"), 202)
        eventually(gate.here.exists)
        server.kill_server()
        assert (bench.copy / "a.txt").read_text() == "one\n" and len(notes(bench)) == 1
        gate.open()
        server.start()
        bench.reconnect()
        done(bench.post("unlock"))
        (bench.copy / "a.txt").write_text("more\n")
        bench.post(what, {"all": True} if what == "stage" else {"mode": "ff-only", "autostash": True})
        assert [bench.git("show", f"{oid}:a.txt") for oid in stashes(bench)] == ["precious"]
        assert (bench.copy / "a.txt").read_text() == "more\n" and notes(bench) == []
        bench.close()


def conflicting(bench: Bench, *, squash: bool = False) -> None:
    """A merge that conflicts in `x.bin`, and that has taken the change of `a.txt` away."""
    bench.git("checkout", "-q", "-b", "side")
    bench.commit({"x.bin": b"theirs\n"})
    bench.git("checkout", "-q", "main")
    bench.commit({"x.bin": b"ours\n"})
    bench.config("merge.autoStash", "true")
    (bench.copy / "a.txt").write_text("precious\n")
    refused(bench.post("merge", {"ref": "side", **({"mode": "squash"} if squash else {})}), 409, "merge_conflict")
    assert (bench.copy / "a.txt").read_text() == "one\n"


@pytest.mark.parametrize("squash", [False, True])
def test_a_merge_that_waits_keeps_it_for_its_end(bench: Bench, squash: bool) -> None:
    conflicting(bench, squash=squash)
    done(bench.post("branches", {"name": "other"}), 201)
    done(bench.post("conflicts/resolve", {"paths": ["x.bin"], "use": "theirs"}))
    assert len(notes(bench)) == 1 and stashes(bench) == []
    done(bench.post("commit", {"message": "merged"}))
    assert (bench.copy / "a.txt").read_text() == "precious\n"
    assert notes(bench) == [] and stashes(bench) == []


def test_a_merge_that_is_undone_brings_it_back(bench: Bench) -> None:
    conflicting(bench)
    done(bench.post("merge/abort"))
    assert (bench.copy / "a.txt").read_text() == "precious\n"
    assert notes(bench) == [] and stashes(bench) == []


def test_an_abort_that_is_cancelled(bench: Bench) -> None:
    conflicting(bench)
    error = cancelled(bench, slow(bench), "merge/abort", {})
    assert stashes(bench) == [error["stash"]]
    assert bench.git("show", f"{error['stash']}:a.txt") == "precious"


@pytest.mark.parametrize("mode", ["ff-only", "merge"])
def test_a_note_that_names_no_stash_is_left_alone(bench: Bench, mode: str) -> None:
    for content in (str(bench.head()), "0" * 40, "nonsense"):
        (bench.copy / ".git/MERGE_AUTOSTASH").write_text(f"{content}\n")
        done(bench.post("stage", {"all": True}))
        assert stashes(bench) == [] and len(notes(bench)) == 1
    bench.pushed_by_another({"new": b"new\n"})
    done(bench.post("pull", {"mode": mode}))


# --- a stash that is cancelled ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("stash", {"message": "half\ndone"}),
        ("stash", {"include_untracked": True}),
        ("checkout", {"branch": "side", "local_changes": "stash"}),
    ],
)
def test_a_stash_that_is_cancelled_is_told_of(bench: Bench, what: str, body: Json) -> None:
    bench.git("branch", "side")
    (bench.copy / "x.bin").write_text("earlier\n")
    bench.git("stash", "push", "-q")
    earlier = bench.tip(bench.copy, "refs/stash")
    (bench.copy / "x.bin").write_text("precious\n")
    error = cancelled(bench, slow(bench), what, body)
    assert stashes(bench) == [error["stash"], earlier]
    assert bench.git("show", f"{error['stash']}:x.bin") == "precious"


def test_a_stash_that_fails_is_told_of(bench: Bench) -> None:
    """git puts the changes away, and then can't empty the working tree."""
    bench.config("filter.bad.smudge", "false")
    bench.config("filter.bad.required", "true")
    bench.config("filter.bad.clean", "cat")
    (bench.copy / ".git/info").mkdir(exist_ok=True)
    (bench.copy / ".git/info/attributes").write_text("*.bin filter=bad\n")
    (bench.copy / "x.bin").write_text("precious\n")
    problem = refused(bench.post("stash", {}), 409, "filter_failed")
    assert stashes(bench) == [problem["stash"]]


# --- what was made ----------------------------------------------------------------------------------------------------------------


def test_a_clone_that_fails_leaves_no_folder(bench: Bench) -> None:
    (bench.server.workspace / "there").mkdir(exist_ok=True)
    for url in (f"{bench.origin}-missing", str(bench.origin)):
        for above in ("p1/p2", "there/p1", "there"):
            body = {"url": url, "path": f"{above}/{bench.name}", "branch": "missing"}
            assert bench.post("clone", body, wait="true").status_code == 404
    assert list((bench.server.workspace / "there").iterdir()) == []
    assert not (bench.server.workspace / "p1").exists()
    done(bench.post("clone", {"url": str(bench.origin), "path": f"p1/{bench.name}"}, wait="true"), 201)


@pytest.mark.parametrize("body", [{"branch": "fresh", "create": True}, {}, {"branch": "side"}])
def test_a_working_tree_that_is_cancelled(bench: Bench, body: Json) -> None:
    bench.git("branch", "side")
    before = (bench.git("branch"), bench.git("worktree", "list"))
    error = cancelled(bench, slow(bench), "worktrees", {"worktree": f"x1/x2/{bench.name}-tree", **body})
    assert error["code"] == "operation_cancelled"
    assert (bench.git("branch"), bench.git("worktree", "list")) == before
    assert not (bench.server.workspace / "x1").exists()


def test_a_working_tree_that_is_there_survives_another_add(bench: Bench) -> None:
    tree = f"{bench.name}-tree"
    done(bench.post("worktrees", {"worktree": tree, "branch": "side", "create": True}), 201)
    work = bench.server.workspace / tree / "work"
    work.write_text("precious\n")
    assert bench.post("worktrees", {"worktree": tree, "branch": "more", "create": True}).status_code == 409
    refused(bench.post("worktrees", {"worktree": f"y1/{tree}", "branch": "side"}), 409, "branch_checked_out")
    shutil.rmtree(work.parent)
    assert bench.post("worktrees", {"worktree": tree, "branch": "more", "create": True}).status_code == 409
    assert tree in bench.git("worktree", "list") and bench.git("branch", "--list", "more") == ""
    assert bench.git("branch", "--list", "side") and not (bench.server.workspace / "y1").exists()


# --- locks ------------------------------------------------------------------------------------------------------------------------


def test_a_lock_of_a_git_in_another_working_tree(bench: Bench) -> None:
    linked = bench.server.workspace / f"{bench.name}-linked"
    bench.git("worktree", "add", "-q", str(linked))
    gate = Gate(bench.server.folder, fresh_name())
    hook = bench.hook("reference-transaction", f'[ "$1" = prepared ] || exit 0\n{gate.script}')
    command = ["git", "branch", "fresh"]
    with subprocess.Popen(command, cwd=linked, env=bench.sandbox.env) as git:
        try:
            eventually(gate.here.exists)
            found = done(bench.get("locks"))
            assert "refs/heads/fresh.lock" in [lock["name"] for lock in found["items"]]
            assert git.pid in [process["pid"] for process in found["processes"]]
            refused(bench.post("unlock"), 409, "repository_locked")
        finally:
            gate.open()
    hook.unlink()
    assert git.returncode == 0 and bench.git("branch", "--list", "fresh")


def test_every_lock_is_listed(bench: Bench) -> None:
    names = {"index.stash.123.lock", "index.lock", "gc.pid.lock"}
    for name in names:
        (bench.copy / ".git" / name).touch()
    assert {lock["name"] for lock in done(bench.get("locks"))["items"]} == names
    assert set(done(bench.post("unlock"))["removed"]) == names


# --- remotes, and the server's own folder -----------------------------------------------------------------------------------------


def test_a_branch_is_no_keyword(bench: Bench) -> None:
    theirs = bench.pushed_by_another({"new": b"new\n"}, branch="tag")
    answer = done(bench.post("pull", {"remote": "origin", "branch": "tag"}))
    assert answer["head"]["oid"] == theirs
    refused(bench.post("pull", {"remote": "origin", "branch": "missing"}), 404, "remote_ref_not_found")


@pytest.mark.parametrize("mode", ["ff-only", "merge", "rebase"])
def test_a_pull_replaces_nothing_that_is_ignored(bench: Bench, mode: str) -> None:
    """Of commits that are known already."""
    bench.pushed_by_another({".env": b"theirs\n"})
    (bench.copy / ".git/info").mkdir(exist_ok=True)
    (bench.copy / ".git/info/exclude").write_text(".env\n")
    (bench.copy / ".env").write_text("secret\n")
    done(bench.post("fetch"))
    if mode != "ff-only":
        bench.commit({"own": b"own\n"})
    for more in ({}, {"remote": "origin", "branch": "main"}):
        problem = refused(bench.post("pull", {"mode": mode, **more}), 409, "local_changes_in_way")
        assert problem["paths"] == [".env"] and (bench.copy / ".env").read_text() == "secret\n"


def test_a_state_folder_that_can_not_be_written(bench: Bench) -> None:
    scratch = bench.server.state / "run"
    scratch.rename(bench.server.state / "away")
    try:
        for what, body in (
            ("stage", {"all": True}), ("commit", {"message": "x"}), ("stash", {}), ("merge", {"ref": "HEAD", "message": "x"}),
            ("tags", {"name": "t"}), ("remotes", {"name": "other", "url": "/x"}), ("fetch", {}),
        ):  # fmt: skip
            refused(bench.post(what, body), 503, "storage_unavailable")
    finally:
        (bench.server.state / "away").rename(scratch)
    done(bench.post("tags", {"name": "t"}), 201)


def test_no_secret_stays_of_a_server_that_was_killed(tmp_path: Path) -> None:
    with git_server(tmp_path) as server, socket.create_server(("127.0.0.1", 0)) as silent:
        bench = Bench(server, "one")
        bench.git("remote", "set-url", "origin", f"http://me:PASSW0RD@127.0.0.1:{silent.getsockname()[1]}/x")
        done(bench.post("fetch", wait="false"), 202)
        eventually(lambda: files_with("PASSW0RD", server.state))
        server.kill_server()
        (server.state / "run/message-op_left").write_text("PASSW0RD")
        server.start()
        assert files_with("PASSW0RD", server.state) == []
        bench.close()
