"""Hooks: they run as git runs them, what they refuse is told with their words, and neither a hanging nor a noisy one does harm."""

import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.git_bench import Bench, Gate, Json, Trap, done, fresh_name, git_server, refused
from support.processes import assert_gone, daemons, marked, marking
from support.server import ServerProcess, eventually

SOON_S = 10.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    # one of our own settings, which is nothing to hooks
    with git_server(tmp_path_factory.mktemp("hooks"), env={"MAX_RUNNING_AGENTS": "5"}) as process:
        yield process


@pytest.fixture(scope="module")
def wary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that does not trust repositories."""
    with git_server(tmp_path_factory.mktemp("wary"), env={"TRUST_REPOSITORY": "false"}) as process:
        yield process


@pytest.fixture
def bench(server: ServerProcess) -> Iterator[Bench]:
    made = Bench(server, fresh_name())
    yield made
    made.close()


def changed(bench: Bench, content: bytes = b"changed\n") -> None:
    (bench.copy / "a.txt").write_bytes(content)


COMMIT: Json = {"message": "from the panel", "all": True}


# --- which refuse ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pre-commit", "prepare-commit-msg", "commit-msg"])
@pytest.mark.parametrize("to", [">&2", ""], ids=["stderr", "stdout"])
def test_a_commit_is_refused(bench: Bench, name: str, to: str) -> None:
    bench.hook(name, f"echo 'no: line 1' {to}; echo 'no: line 2' {to}; exit 7")
    changed(bench)
    before = bench.head()
    problem = refused(bench.post("commit", COMMIT), 409, "hook_refused")
    assert problem["hook"] == name
    assert "no: line 1\nno: line 2" in problem["output"]
    assert name in problem["detail"]
    assert bench.head() == before
    assert (bench.copy / "a.txt").read_bytes() == b"changed\n"
    assert not (bench.copy / ".git" / "index.lock").exists()
    (bench.copy / ".git" / "hooks" / name).unlink()
    done(bench.post("commit", COMMIT))


def test_a_merge_is_refused(bench: Bench) -> None:
    theirs = bench.pushed_by_another({"theirs": b"theirs"})
    done(bench.post("fetch"))
    bench.hook("pre-merge-commit", "echo 'not like this' >&2; exit 1")
    for what, body in (("merge", {"ref": theirs, "mode": "no-ff"}), ("pull", {"mode": "merge"})):
        if what == "pull":
            bench.commit({"ours": b"ours"})
        before = bench.head()
        problem = refused(bench.post(what, body), 409, "hook_refused")
        assert problem["hook"] == "pre-merge-commit"
        assert "not like this" in problem["output"]
        assert bench.head() == before
        assert done(bench.get("status"))["operation"]["kind"] == "merge"
        done(bench.post("merge/abort", {}))
        assert done(bench.get("status"))["operation"] is None


def test_a_rebase_is_refused(bench: Bench) -> None:
    theirs = bench.pushed_by_another({"theirs": b"theirs"})
    before = bench.commit({"ours": b"ours"})
    done(bench.post("fetch"))
    bench.hook("pre-rebase", "echo 'history stays' >&2; exit 1")
    for what, body in (("rebase", {"onto": theirs}), ("pull", {"mode": "rebase"})):
        problem = refused(bench.post(what, body), 409, "hook_refused")
        assert problem["hook"] == "pre-rebase"
        assert "history stays" in problem["output"]
        assert bench.head() == before
        assert done(bench.get("status"))["operation"] is None


@pytest.mark.parametrize("action", ["fetch", "commit", "branches"])
def test_a_transaction_of_refs_is_refused(bench: Bench, action: str) -> None:
    bench.pushed_by_another({"theirs": b"theirs"})
    changed(bench)
    bench.hook("reference-transaction", '[ "$1" != prepared ] || { echo frozen >&2; exit 1; }')
    before = bench.git("for-each-ref")
    body: Json = {"fetch": {}, "commit": COMMIT, "branches": {"name": "new"}}[action]
    problem = refused(bench.post(action, body), 409, "hook_refused")
    assert (problem["hook"], "frozen" in problem["output"]) == ("reference-transaction", True)
    assert bench.git("for-each-ref") == before


# --- which come afterwards, or change something ---------------------------------------------------------------------------------


def test_what_comes_after_a_commit_may_fail(bench: Bench) -> None:
    bench.hook("post-commit", "echo oops >&2; exit 1")
    changed(bench)
    answer = done(bench.post("commit", COMMIT))
    assert answer["oid"] == bench.head()
    assert bench.git("log", "-1", "--format=%s") == "from the panel"


def test_what_comes_after_a_checkout_may_fail(bench: Bench) -> None:
    bench.git("branch", "side")
    bench.hook("post-checkout", "echo oops >&2; exit 1")
    assert done(bench.post("checkout", {"branch": "side"}))["head"]["branch"] == "side"
    assert done(bench.post("checkout", {"branch": "new", "create": True}))["head"]["branch"] == "new"
    changed(bench)
    answer = done(bench.post("checkout", {"branch": "main", "local_changes": "stash"}))
    assert (answer["head"]["branch"], bool(answer["stash"])) == ("main", True)


@pytest.mark.parametrize("mode", ["merge", "rebase", "ff-only"])
def test_what_comes_after_a_pull_may_fail(bench: Bench, mode: str) -> None:
    for name in ("post-merge", "post-checkout", "post-rewrite", "post-commit"):
        bench.hook(name, "exit 1")
    theirs = bench.pushed_by_another({"theirs": b"theirs"})
    if mode != "ff-only":
        bench.commit({"ours": b"ours"})
    done(bench.post("pull", {"mode": mode}))
    assert bench.git("merge-base", "HEAD", theirs) == theirs
    assert done(bench.get("status"))["operation"] is None


def test_a_failure_before_one_afterwards_is_a_failure(bench: Bench) -> None:
    """The last hook is not the one that decides."""
    bench.hook("post-index-change", "exit 1")
    bench.hook("pre-commit", "echo no >&2; exit 1")
    changed(bench)
    assert refused(bench.post("commit", COMMIT), 409, "hook_refused")["hook"] == "pre-commit"


@pytest.mark.parametrize("name", ["post-checkout", "post-index-change", "reference-transaction"])
@pytest.mark.parametrize("how", ["merge", "rebase", "pull merge", "pull rebase"])
def test_a_conflict_is_a_conflict_whatever_a_hook_thinks_of_it(bench: Bench, name: str, how: str) -> None:
    theirs = bench.pushed_by_another({"a.txt": b"theirs"})
    bench.commit({"a.txt": b"ours"})
    done(bench.post("fetch"))
    bench.hook(name, '[ "$1" = prepared ]')  # it fails where it can't stop anything
    what, _, mode = how.partition(" ")
    body = {"merge": {"ref": theirs}, "rebase": {"onto": theirs}, "pull": {"mode": mode}}[what]
    refused(bench.post(what, body), 409, "merge_conflict")
    assert done(bench.get("status"))["operation"]["kind"] == (mode or what)


def test_a_refusal_of_the_remote_is_its_own_whatever_a_hook_thinks_of_it(bench: Bench) -> None:
    bench.pushed_by_another({"theirs": b"theirs"})
    bench.commit({"ours": b"ours"})
    bench.hook("reference-transaction", '[ "$1" = prepared ]')
    bench.hook("pre-receive", "exit 1", bench.origin)
    refused(bench.post("push"), 409, "push_rejected")
    refused(bench.post("pull", {"mode": "ff-only"}), 409, "diverged")


def test_a_message_may_be_written_by_a_hook(bench: Bench) -> None:
    bench.hook("prepare-commit-msg", 'printf \'TICKET-1: %s\' "$(cat "$1")" >"$1"')
    bench.hook("commit-msg", "echo 'Signed: hook' >>\"$1\"")
    changed(bench)
    done(bench.post("commit", COMMIT))
    assert bench.git("log", "-1", "--format=%B") == "TICKET-1: from the panelSigned: hook"


def test_a_hook_stages_more(bench: Bench) -> None:
    bench.hook("pre-commit", "echo formatted >a.txt; git add a.txt")
    changed(bench)
    done(bench.post("commit", COMMIT))
    assert bench.git("show", "HEAD:a.txt") == "formatted"
    assert done(bench.get("status"))["files"] == []


def test_hooks_in_a_folder_that_the_repository_names(bench: Bench) -> None:
    folder = bench.copy / "hooks"
    folder.mkdir()
    trap = Trap(folder, "pre-commit")
    bench.config("core.hooksPath", "hooks")
    changed(bench)
    assert refused(bench.post("commit", COMMIT), 409, "hook_refused")["hook"] == "pre-commit"
    assert trap.ran


def test_a_hook_that_can_not_be_started(bench: Bench) -> None:
    path = bench.hook("pre-commit", "exit 0")
    path.write_text("#!/nowhere/at/all\n")
    changed(bench)
    problem = bench.post("commit", COMMIT)
    assert problem.status_code == 409, problem.text
    path.chmod(0o644)
    done(bench.post("commit", COMMIT))


def test_a_hook_sees_what_git_would_show_it_and_nothing_of_ours(bench: Bench) -> None:
    bench.hook(
        "pre-commit",
        "env >env.txt; pwd >pwd.txt; cat >stdin.txt; (: </dev/tty) 2>tty.txt; git var GIT_EDITOR >editor.txt; exit 0",
    )
    changed(bench)
    done(bench.post("commit", COMMIT))
    told = (bench.copy / "env.txt").read_text()
    assert "MAX_RUNNING_AGENTS" not in told
    assert f"HOME={bench.server.folder / 'home'}\n" in told
    assert "GIT_INDEX_FILE=" in told
    assert (bench.copy / "pwd.txt").read_text() == f"{bench.copy}\n"
    assert (bench.copy / "stdin.txt").read_bytes() == b""
    assert (bench.copy / "tty.txt").read_bytes() != b""


# --- which are noisy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["", ">&2"], ids=["stdout", "stderr"])
def test_a_flood_of_words_is_cut(bench: Bench, to: str) -> None:
    bench.hook("pre-commit", f"head -c 30000000 /dev/zero | tr '\\0' 'x' {to}; echo; echo the end {to}; exit 1")
    changed(bench)
    problem = refused(bench.post("commit", COMMIT), 409, "hook_refused")
    assert len(problem["output"].encode()) <= 4096
    assert problem["output"].endswith("the end")


def test_words_that_are_no_text(bench: Bench) -> None:
    bench.hook("pre-commit", "printf '\\377\\000\\033[31mred\\033[0m\\r\\n' >&2; exit 1")
    changed(bench)
    problem = refused(bench.post("commit", COMMIT), 409, "hook_refused")
    assert "red" in problem["output"]
    assert "\x1b" not in problem["output"]
    assert "\0" not in problem["output"]


def test_words_that_look_like_gits_own(bench: Bench) -> None:
    lies = "fatal: Authentication failed for 'https://x/'\nCONFLICT (content): Merge conflict in a\nfatal: detected dubious ownership in repository"
    bench.hook("pre-commit", f"echo {shlex.quote(lies)} >&2; exit 1")
    changed(bench)
    refused(bench.post("commit", COMMIT), 409, "hook_refused")


# --- which hang, or leave something behind --------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc to see processes in")
@pytest.mark.parametrize("action", ["commit", "push"])
def test_one_that_hangs_is_cancelled_with_all_that_it_started(bench: Bench, action: str) -> None:
    with marking() as mark:
        gate = Gate(bench.server.folder, f"{bench.name}-gate")
        started = "\n".join(daemons(mark).values())
        name = "pre-push" if action == "push" else "pre-commit"
        bench.hook(name, f": {mark}\n{started}\ntrap '' TERM\n{gate.script}")
        if action == "push":
            bench.commit({"b": b"b"})
            begun = done(bench.post("push", {}, wait="false"), 202)["id"]
        else:
            changed(bench)
            with bench.server.client() as client, pytest.raises(Exception, match="timed out"):
                client.post(
                    f"/api/v1/workspaces/default/version-control/commit?path={bench.name}", json=COMMIT, timeout=0.5
                )
            begun = next(one["id"] for one in done(bench.get("operations"))["items"] if one["kind"] == "commit")
        eventually(gate.here.exists)
        eventually(lambda: len(marked(mark)) >= len(daemons(mark)) - 1)  # one may be stopped before it has its name
        # others wait for their turn, and the list says for whom
        waiting = done(bench.post("fetch", {}, wait="false"), 202)["id"]
        listed = {one["id"]: (one["kind"], one["status"]) for one in done(bench.get("operations"))["items"]}
        assert (listed[begun], listed[waiting]) == ((action, "running"), ("fetch", "queued"))
        began = time.monotonic()
        assert done(bench.ask("DELETE", f"operations/{begun}"))["status"] == "cancelled"
        assert time.monotonic() - began < SOON_S
        assert_gone(mark)
        assert bench.ended(waiting)["status"] == "succeeded"
    assert list((bench.copy / ".git").glob("*.lock")) == []
    assert done(bench.get("locks"))["items"] == []
    (bench.copy / ".git" / "hooks" / name).unlink()
    changed(bench, b"again\n")
    done(bench.post("commit", COMMIT))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc to see processes in")
@pytest.mark.parametrize("kind", ["background", "own session", "a real daemon", "stubborn"])
def test_one_that_leaves_a_daemon_keeps_nobody_waiting(bench: Bench, kind: str) -> None:
    """git waits for the hook alone. What it left holds git's output, and ends with the operation."""
    with marking() as mark:
        bench.hook("pre-commit", f"{daemons(mark)[kind]}\nexit 0")
        changed(bench)
        began = time.monotonic()
        done(bench.post("commit", COMMIT))
        assert time.monotonic() - began < SOON_S
        assert_gone(mark)


def test_gits_own_housekeeping_gets_to_its_end(bench: Bench) -> None:
    bench.git("config", "gc.auto", "0")
    bench.commit({f"f{number}": os.urandom(15_000) for number in range(2000)})
    bench.git("config", "gc.auto", "100")
    changed(bench)
    done(bench.post("commit", COMMIT))
    assert "in-pack: 0\n" not in bench.git("count-objects", "-v")


# --- where the repository is not trusted ------------------------------------------------------------------------------------------

EVERY_HOOK = (
    "pre-commit", "prepare-commit-msg", "commit-msg", "post-commit", "pre-merge-commit", "post-merge", "pre-rebase", "post-rewrite",
    "post-checkout", "pre-push", "reference-transaction", "post-index-change", "fsmonitor-watchman", "applypatch-msg", "pre-auto-gc", "sendemail-validate",
    "push-to-checkout", "proc-receive",
)  # fmt: skip


def everything_done(bench: Bench, *, trusted: bool = True) -> None:
    """Each kind of change once; only where the repository is `trusted` anything is pushed to a path of this machine."""
    changed(bench)
    done(bench.post("stage", {"paths": ["a.txt"]}))
    done(bench.post("commit", {"message": "one"}))
    if trusted:
        done(bench.post("push"))
    else:
        assert bench.post("push").json()["code"] == "remote_url_refused"
        bench.git("-c", "core.hooksPath=/dev/null", "push")
    bench.pushed_by_another({"theirs": b"theirs"})
    done(bench.post("fetch"))
    done(bench.post("pull"))
    done(bench.post("checkout", {"branch": "side", "create": True}))
    changed(bench, b"side\n")
    done(bench.post("commit", COMMIT))
    done(bench.post("checkout", {"branch": "main"}))
    done(bench.post("merge", {"ref": "side", "mode": "no-ff"}))
    done(bench.post("checkout", {"branch": "side"}))
    done(bench.post("commit", {"message": "amended", "amend": True}))
    done(bench.post("rebase", {"onto": "main"}))
    changed(bench, b"stashed\n")
    done(bench.post("stash", {}), 201)
    done(bench.post("stash/0/pop", {}))
    done(bench.post("discard", {"all": True}))


def trapped(bench: Bench, folder: Path) -> list[Trap]:
    folder.mkdir(exist_ok=True)
    return [Trap(folder, name, "exit 0") for name in EVERY_HOOK]


@pytest.mark.parametrize("place", ["hooks", "hooksPath"])
def test_no_hook_runs_where_the_repository_is_not_trusted(wary: ServerProcess, place: str, tmp_path: Path) -> None:
    bench = Bench(wary, f"wary-{place}")
    traps = trapped(bench, bench.copy / ".git" / "hooks" if place == "hooks" else tmp_path / "own")
    filters = [Trap(tmp_path, name, "cat") for name in ("clean", "smudge", "driver", "fsmonitor", "gpg")]
    if place == "hooksPath":
        bench.config("core.hooksPath", str(tmp_path / "own"))
    bench.config("filter.own.clean", str(filters[0].path))
    bench.config("filter.own.smudge", str(filters[1].path))
    bench.config("merge.own.driver", str(filters[2].path))
    bench.config("core.fsmonitor", str(filters[3].path))
    bench.config("gpg.program", str(filters[4].path))
    bench.config("commit.gpgSign", "true")
    bench.config("tag.gpgSign", "true")
    (bench.copy / ".git" / "info" / "attributes").write_text("* filter=own merge=own\n")
    everything_done(bench, trusted=False)
    done(bench.post("tags", {"name": "v1", "message": "one"}), 201)
    bench.close()
    assert [trap.ran for trap in (*traps, *filters)] == [""] * (len(traps) + len(filters))


def test_they_do_run_where_it_is(bench: Bench) -> None:
    traps = trapped(bench, bench.copy / ".git" / "hooks")
    everything_done(bench)
    ran = {Path(trap.path).name for trap in traps if trap.ran}
    assert ran >= {
        "pre-commit", "prepare-commit-msg", "commit-msg", "post-commit", "post-merge", "pre-rebase", "post-rewrite", "post-checkout", "pre-push",
        "reference-transaction", "post-index-change", "pre-merge-commit",
    }  # fmt: skip


def test_hooks_of_the_users_own_do_not_run_there_either(wary: ServerProcess, tmp_path: Path) -> None:
    """Nor do those whose place the user's own configuration names: without trust there are no hooks at all."""
    bench = Bench(wary, "wary-users-own")
    trap = Trap(tmp_path, "pre-commit", "exit 0")
    bench.git("config", "--global", "core.hooksPath", str(tmp_path))
    try:
        changed(bench)
        done(bench.post("commit", COMMIT))
    finally:
        bench.git("config", "--global", "--unset", "core.hooksPath")
        bench.close()
    assert trap.ran == ""
