"""Pull: what each mode makes of the two sides, what stops it, and that nothing is lost where it stops."""

from collections.abc import Iterator

import pytest

from support.git_bench import Bench, Json, done, fresh_name, git_server, refused
from support.server import ServerProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with git_server(tmp_path_factory.mktemp("pulls")) as process:
        yield process


@pytest.fixture
def bench(server: ServerProcess) -> Iterator[Bench]:
    made = Bench(server, fresh_name())
    yield made
    made.close()


def diverged(bench: Bench, *, conflict: bool = False) -> tuple[str, str]:
    """A commit at each side; ours and theirs."""
    theirs = bench.pushed_by_another({"a.txt" if conflict else "theirs": b"theirs\n"})
    return bench.commit({"a.txt" if conflict else "ours": b"ours\n"}), theirs


def parents(bench: Bench) -> list[str]:
    return bench.git("rev-list", "--parents", "-1", "HEAD").split()[1:]


def status(bench: Bench) -> Json:
    return done(bench.get("status"))


def clean(bench: Bench) -> bool:
    found = status(bench)
    return not found["files"] and found["operation"] is None


# --- without a conflict -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, "ff-only", "rebase", "merge"])
def test_nothing_is_new(bench: Bench, mode: str | None) -> None:
    oid = bench.head()
    answer = done(bench.post("pull", {"mode": mode} if mode else {}))
    assert answer == {
        "head": {"branch": "main", "oid": oid, "detached": False, "unborn": False},
        "before": oid,
        "updated": False,
        "stash": None,
        "files": [],
    }


@pytest.mark.parametrize("mode", [None, "ff-only", "rebase", "merge"])
def test_only_they_have_something_new(bench: Bench, mode: str | None) -> None:
    before = bench.head()
    theirs = bench.pushed_by_another({"b": b"b"})
    answer = done(bench.post("pull", {"mode": mode} if mode else {}))
    assert (answer["head"]["oid"], answer["before"], answer["updated"]) == (theirs, before, True)
    assert (bench.copy / "b").read_bytes() == b"b"
    assert clean(bench)


@pytest.mark.parametrize("mode", [None, "ff-only", "rebase", "merge"])
def test_only_we_have_something_new(bench: Bench, mode: str | None) -> None:
    ours = bench.commit({"b": b"b"})
    assert done(bench.post("pull", {"mode": mode} if mode else {}))["head"]["oid"] == ours


@pytest.mark.parametrize("mode", [None, "ff-only"])
def test_both_sides_and_no_mode_that_joins_them(bench: Bench, mode: str | None) -> None:
    ours, theirs = diverged(bench)
    refused(bench.post("pull", {"mode": mode} if mode else None), 409, "diverged")
    assert bench.head() == ours
    assert bench.tip(bench.copy, "refs/remotes/origin/main") == theirs
    assert clean(bench)


def test_a_merge(bench: Bench) -> None:
    ours, theirs = diverged(bench)
    answer = done(bench.post("pull", {"mode": "merge"}))
    assert parents(bench) == [ours, theirs]
    assert answer["head"]["oid"] == bench.head()
    assert bench.git("log", "-1", "--format=%s") == f"Merge branch 'main' of {bench.origin.with_suffix('')}"
    assert clean(bench)


def test_a_rebase(bench: Bench) -> None:
    ours, theirs = diverged(bench)
    answer = done(bench.post("pull", {"mode": "rebase"}))
    assert parents(bench) == [theirs]
    assert answer["head"] == {"branch": "main", "oid": bench.head(), "detached": False, "unborn": False}
    assert bench.git("log", "-1", "--format=%s") == "ours"
    assert answer["before"] == ours
    assert clean(bench)


@pytest.mark.parametrize(
    ("key", "value", "merged"),
    [("pull.rebase", "true", False), ("pull.rebase", "false", True), ("branch.main.rebase", "true", False)],
)
def test_the_mode_that_is_configured(bench: Bench, key: str, value: str, merged: bool) -> None:
    _, theirs = diverged(bench)
    bench.config(key, value)
    done(bench.post("pull"))
    assert parents(bench)[-1] == theirs
    assert len(parents(bench)) == (2 if merged else 1)


def test_a_mode_that_is_said_wins_over_a_configured_one(bench: Bench) -> None:
    diverged(bench)
    bench.config("pull.rebase", "true")
    bench.config("pull.ff", "only")
    done(bench.post("pull", {"mode": "merge"}))
    assert len(parents(bench)) == 2


def test_another_branch_of_the_remote(bench: Bench) -> None:
    side = bench.pushed_by_another({"side": b"side"}, branch="side")
    assert done(bench.post("pull", {"branch": "side"}))["head"]["oid"] == side
    assert done(bench.post("pull", {"remote": "origin", "branch": "main"}))["updated"] is False


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"branch": "nowhere"}, 404, "remote_ref_not_found"),
        ({"branch": "-x"}, 422, "ref_invalid"),
        ({"branch": "+main:main"}, 422, "ref_invalid"),
        ({"remote": "nobody"}, 404, "remote_not_configured"),
        ({"remote": "--rebase"}, 422, "ref_invalid"),
        ({"remote": "https://127.0.0.1/x", "branch": "main"}, 404, "remote_not_configured"),
        ({"mode": "octopus"}, 422, "validation_failed"),
        ({"autostash": "maybe"}, 422, "validation_failed"),
    ],
)
def test_what_can_not_be_pulled(bench: Bench, body: Json, status: int, code: str) -> None:
    before = bench.head()
    refused(bench.post("pull", body), status, code)
    assert bench.head() == before


def test_a_branch_without_an_upstream(bench: Bench) -> None:
    bench.git("switch", "--quiet", "--no-track", "--create", "alone")
    for mode in ("merge", "rebase", "ff-only"):
        refused(bench.post("pull", {"mode": mode}), 409, "no_upstream")
    theirs = bench.pushed_by_another({"b": b"b"})
    assert done(bench.post("pull", {"remote": "origin", "branch": "main"}))["head"]["oid"] == theirs


def test_a_detached_head(bench: Bench) -> None:
    bench.git("switch", "--quiet", "--detach")
    refused(bench.post("pull"), 409, "no_upstream")
    theirs = bench.pushed_by_another({"b": b"b"})
    answer = done(bench.post("pull", {"branch": "main"}))
    assert answer["head"] == {"branch": None, "oid": theirs, "detached": True, "unborn": False}


def test_an_upstream_that_is_gone(bench: Bench) -> None:
    bench.sandbox.git(bench.origin, "branch", "--move", "main", "trunk")
    answer = bench.post("pull")
    assert answer.json()["code"] in ("remote_ref_not_found", "no_upstream"), answer.text


def test_the_first_pull_of_a_fresh_repository(bench: Bench) -> None:
    done(bench.post("init", {"path": f"{bench.name}-2", "initial_branch": "main"}), 201)
    there = f"{bench.name}-2"
    done(bench.post("remotes", {"name": "origin", "url": str(bench.origin)}, path=there), 201)
    answer = done(bench.post("pull", {"branch": "main"}, path=there))
    assert answer["before"] is None
    assert answer["head"]["oid"] == bench.tip()
    assert (bench.server.workspace / there / "a.txt").exists()


# --- conflicts ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["merge", "rebase"])
def test_a_conflict_is_told_and_can_be_undone(bench: Bench, mode: str) -> None:
    ours, _ = diverged(bench, conflict=True)
    problem = refused(bench.post("pull", {"mode": mode}), 409, "merge_conflict")
    assert problem["files"] == ["a.txt"]
    assert problem["operation"]["kind"] == mode
    found = status(bench)
    assert found["operation"]["kind"] == mode
    assert [(file["path"], file["conflict"]) for file in found["files"]] == [("a.txt", "both_modified")]
    refused(bench.post("pull", {"mode": mode}), 409, "merge_conflict")
    done(bench.post(f"{mode}/abort", {}))
    assert bench.head() == ours
    assert (bench.copy / "a.txt").read_bytes() == b"ours\n"
    assert clean(bench)


@pytest.mark.parametrize("mode", ["merge", "rebase"])
def test_a_conflict_is_resolved(bench: Bench, mode: str) -> None:
    ours, theirs = diverged(bench, conflict=True)
    refused(bench.post("pull", {"mode": mode}), 409, "merge_conflict")
    (bench.copy / "a.txt").write_bytes(b"both\n")
    assert done(bench.post("conflicts/resolve", {"paths": ["a.txt"], "use": "worktree"}))["items"] == []
    assert done(bench.post(f"{mode}/continue", {}))["operation"] is None
    assert parents(bench) == ([ours, theirs] if mode == "merge" else [theirs])
    assert bench.git("show", "HEAD:a.txt") == "both"
    assert clean(bench)


@pytest.mark.parametrize("mode", ["merge", "rebase", "ff-only", None])
def test_an_unfinished_merge_is_in_the_way(bench: Bench, mode: str | None) -> None:
    diverged(bench)
    bench.git("fetch", "--quiet")
    bench.git("merge", "--quiet", "--no-commit", "--no-ff", "origin/main")
    before = bench.head()
    answer = refused(bench.post("pull", {"mode": mode} if mode else {}), 409, "operation_in_progress")
    assert answer["output"]
    assert bench.head() == before
    assert status(bench)["operation"]["kind"] == "merge"


# --- local changes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ff-only", "merge", "rebase"])
@pytest.mark.parametrize("staged", [False, True])
def test_local_changes_in_the_way(bench: Bench, mode: str, staged: bool) -> None:
    before = bench.head()
    bench.pushed_by_another({"a.txt": b"theirs\n"})
    (bench.copy / "a.txt").write_bytes(b"not committed\n")
    if staged:
        bench.git("add", "a.txt")
    problem = refused(bench.post("pull", {"mode": mode}), 409, "local_changes_in_way")
    assert mode == "rebase" or problem["paths"] == ["a.txt"]
    assert bench.head() == before
    assert (bench.copy / "a.txt").read_bytes() == b"not committed\n"
    assert status(bench)["operation"] is None


@pytest.mark.parametrize("name", ["new", "été", 'a "b"', "tab\there", "日本"])
def test_an_untracked_file_in_the_way(bench: Bench, name: str) -> None:
    bench.pushed_by_another({name: b"theirs\n"})
    (bench.copy / name).write_bytes(b"mine\n")
    problem = refused(bench.post("pull"), 409, "local_changes_in_way")
    assert problem["paths"] == [name]
    assert (bench.copy / name).read_bytes() == b"mine\n"


@pytest.mark.parametrize("mode", ["rebase", "merge"])
def test_local_changes_are_put_away_and_brought_back(bench: Bench, mode: str) -> None:
    diverged(bench)
    (bench.copy / "a.txt").write_bytes(b"not committed\n")
    done(bench.post("pull", {"mode": mode, "autostash": True}))
    assert (bench.copy / "theirs").exists()
    assert (bench.copy / "a.txt").read_bytes() == b"not committed\n"
    assert status(bench)["stash_count"] == 0


@pytest.mark.parametrize("mode", ["rebase", "merge", "ff-only"])
def test_local_changes_that_do_not_fit_any_more_stay_in_the_stash(bench: Bench, mode: str) -> None:
    """git succeeds then, with conflicts in the working tree: nothing is lost, and the client can see it."""
    theirs = bench.pushed_by_another({"a.txt": b"theirs\n"})
    (bench.copy / "a.txt").write_bytes(b"not committed\n")
    answer = bench.post("pull", {"mode": mode, "autostash": True})
    assert answer.status_code in (200, 409), answer.text
    assert bench.head() == theirs
    assert status(bench)["stash_count"] == 1
    assert bench.git("show", "stash@{0}:a.txt") == "not committed"


def test_the_users_own_autostash_can_be_switched_off(bench: Bench) -> None:
    bench.config("rebase.autoStash", "true")
    diverged(bench)
    (bench.copy / "a.txt").write_bytes(b"not committed\n")
    refused(bench.post("pull", {"mode": "rebase", "autostash": False}), 409, "local_changes_in_way")
    done(bench.post("pull", {"mode": "rebase"}))
    assert (bench.copy / "a.txt").read_bytes() == b"not committed\n"
