"""Merges and rebases by HTTP: each mode, stopped by conflicts, gone on with, skipped and undone."""

from collections.abc import Iterator
from typing import Any

import pytest

from support.version_control import Case, Host, host


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("merging")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    """`side` is two commits ahead of `main`."""
    made = here.fresh()
    made.commit({"a.txt": b"a\n", "b.txt": b"b\n"}, "first")
    made.git("checkout", "-q", "-b", "side")
    made.commit({"a.txt": b"side\n"}, "side 1")
    made.commit({"side.txt": b"s\n"}, "side 2")
    made.git("checkout", "-q", "main")
    return made


@pytest.fixture
def apart(case: Case) -> Case:
    """`main` has a commit of its own, that does not conflict."""
    case.commit({"b.txt": b"main\n"}, "main 1")
    return case


@pytest.fixture
def conflicting(case: Case) -> Case:
    """`main` has a commit of its own, that conflicts with the first of `side`."""
    case.commit({"a.txt": b"main\n"}, "main 1")
    return case


# --- merge ----------------------------------------------------------------------------------------------------------------------


def test_fast_forward(case: Case) -> None:
    before = case.head()
    done = case.post("merge", ref="side")
    assert (done["before"], done["head"]["oid"], done["head"]["branch"]) == (
        before,
        case.git("rev-parse", "side"),
        "main",
    )
    assert case.head() == case.git("rev-parse", "side")
    again = case.post("merge", ref="side")
    assert again["before"] == again["head"]["oid"]


def test_no_fast_forward(case: Case) -> None:
    case.post("merge", ref="side", mode="no-ff")
    assert (
        case.git("log", "-1", "--format=%s %P")
        == f"Merge branch 'side' {case.git('rev-parse', 'HEAD~1', 'side').replace(chr(10), ' ')}"
    )


def test_only_fast_forward(apart: Case) -> None:
    before = apart.head()
    assert apart.refused("POST", "merge", {"ref": "side", "mode": "ff-only"})["code"] == "diverged"
    assert apart.head() == before and apart.status()["operation"] is None


def test_squash(apart: Case) -> None:
    before = apart.head()
    apart.post("merge", ref="side", mode="squash")
    assert apart.head() == before
    assert apart.files() == {"a.txt": ("modified", None), "side.txt": ("added", None)}
    assert "side 1" in apart.get("commit/draft")["prepared"]
    done = apart.post("commit", message="squashed")
    assert done["commit"]["parents"] == [before]


@pytest.mark.parametrize("message", ["words of mine\n\n# and a heading", None])
def test_a_true_merge(apart: Case, message: str | None) -> None:
    apart.git("tag", "-a", "v1", "-m", "x", "side")
    apart.post("merge", ref="side", message=message)
    assert apart.git("log", "-1", "--format=%B") == (message or "Merge branch 'side'")
    assert len(apart.git("log", "-1", "--format=%P").split()) == 2
    assert apart.files() == {}


@pytest.mark.parametrize("ref", ["v1", "side~1", "oid"])
def test_what_is_merged_need_not_be_a_branch(apart: Case, ref: str) -> None:
    apart.git("tag", "v1", "side")
    name = apart.git("rev-parse", "side") if ref == "oid" else ref
    apart.post("merge", ref=name)
    assert apart.git("log", "-1", "--format=%s") == (f"Merge tag '{name}'" if ref == "v1" else f"Merge commit '{name}'")


def test_a_merge_with_conflicts(conflicting: Case) -> None:
    before = conflicting.head()
    problem = conflicting.refused("POST", "merge", {"ref": "side"})
    assert (problem["code"], problem["files"], problem["operation"]["kind"]) == ("merge_conflict", ["a.txt"], "merge")
    assert conflicting.status()["operation"]["oid"] == conflicting.git("rev-parse", "side")
    assert conflicting.refused("POST", "merge", {"ref": "side"})["status"] == 409
    assert conflicting.refused("POST", "merge/continue")["code"] == "merge_conflict"
    assert conflicting.refused("POST", "commit", {"message": "x"})["code"] == "merge_conflict"
    assert conflicting.refused("POST", "merge/skip")["code"] == "step_not_possible"
    assert conflicting.refused("POST", "rebase/abort")["code"] == "not_under_way"
    conflicting.write("a.txt", "both\n")
    conflicting.post("conflicts/resolve", paths=["a.txt"], use="worktree")
    done = conflicting.post("merge/continue")
    assert (done["operation"], done["head"]["branch"]) == (None, "main")
    assert conflicting.git("log", "-1", "--format=%P").split() == [before, conflicting.git("rev-parse", "side")]
    assert conflicting.git("log", "-1", "--format=%s") == "Merge branch 'side'"


def test_a_merge_is_undone(conflicting: Case) -> None:
    before = conflicting.head()
    conflicting.write("b.txt", "precious\n")
    assert conflicting.refused("POST", "merge", {"ref": "side"})["code"] == "merge_conflict"
    done = conflicting.post("merge/abort")
    assert (done["head"]["oid"], done["operation"]) == (before, None)
    assert conflicting.files() == {"b.txt": (None, "modified")}
    assert conflicting.refused("POST", "merge/abort")["code"] == "not_under_way"


def test_local_changes_in_the_way(case: Case) -> None:
    case.write("a.txt", "precious\n")
    case.write("side.txt", "precious\n")
    before = case.head()
    for body in ({"ref": "side"}, {"ref": "side", "mode": "squash"}, {"ref": "side", "mode": "no-ff"}):
        problem = case.refused("POST", "merge", body)
        assert (problem["code"], set(problem["paths"])) == ("local_changes_in_way", {"a.txt", "side.txt"})
    assert (case.head(), case.read("a.txt"), case.read("side.txt")) == (before, b"precious\n", b"precious\n")
    assert case.status()["operation"] is None


def test_unrelated_histories(case: Case) -> None:
    case.git("checkout", "-q", "--orphan", "other")
    case.commit({"x": b"x"}, "another root")
    assert case.refused("POST", "merge", {"ref": "main"})["status"] == 409
    assert case.status()["operation"] is None


# --- rebase ---------------------------------------------------------------------------------------------------------------------


def test_rebase(apart: Case) -> None:
    apart.git("checkout", "-q", "side")
    before = apart.head()
    done = apart.post("rebase", onto="main")
    assert done["before"] == before and done["head"]["branch"] == "side"
    assert apart.git("log", "--format=%s").split("\n") == ["side 2", "side 1", "main 1", "first"]
    assert apart.post("rebase", onto="main")["head"]["oid"] == apart.head()


def test_a_rebase_with_conflicts(conflicting: Case) -> None:
    conflicting.git("checkout", "-q", "side")
    problem = conflicting.refused("POST", "rebase", {"onto": "main"})
    assert (problem["code"], problem["files"], problem["operation"]["kind"]) == ("merge_conflict", ["a.txt"], "rebase")
    told = conflicting.status()["operation"]
    assert (told["head_name"], told["step"], told["total"]) == ("side", 1, 2)
    assert conflicting.refused("POST", "rebase", {"onto": "main"})["status"] == 409
    assert conflicting.refused("POST", "rebase/continue")["code"] == "merge_conflict"
    conflicting.post("conflicts/resolve", paths=["a.txt"], use="theirs")
    done = conflicting.post("rebase/continue")
    assert (done["operation"], done["head"]["branch"]) == (None, "side")
    assert conflicting.git("log", "--format=%s").split("\n") == ["side 2", "side 1", "main 1", "first"]
    assert conflicting.read("a.txt") == b"side\n"


def test_a_rebase_skips(conflicting: Case) -> None:
    conflicting.git("checkout", "-q", "side")
    assert conflicting.refused("POST", "rebase", {"onto": "main"})["code"] == "merge_conflict"
    done = conflicting.post("rebase/skip")
    assert (done["operation"], done["head"]["branch"]) == (None, "side")
    assert conflicting.git("log", "--format=%s").split("\n") == ["side 2", "main 1", "first"]


def test_a_rebase_is_undone(conflicting: Case) -> None:
    conflicting.git("checkout", "-q", "side")
    before = conflicting.head()
    assert conflicting.refused("POST", "rebase", {"onto": "main"})["code"] == "merge_conflict"
    done = conflicting.post("rebase/abort")
    assert (done["head"]["oid"], done["head"]["branch"], done["operation"]) == (before, "side", None)


def test_local_changes_and_a_rebase(apart: Case) -> None:
    apart.git("checkout", "-q", "side")
    apart.write("a.txt", "precious\n")
    before = apart.head()
    for body in ({"onto": "main"}, {"onto": "main", "autostash": False}):
        assert apart.refused("POST", "rebase", body)["code"] == "local_changes_in_way"
        assert apart.head() == before
    apart.post("rebase", onto="main", autostash=True)
    assert apart.head() != before and apart.files() == {"a.txt": (None, "modified")}
    assert apart.read("a.txt") == b"precious\n" and apart.status()["stash_count"] == 0


# --- what else may be under way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["continue", "skip", "abort"])
@pytest.mark.parametrize("kind", ["cherry-pick", "revert", "am"])
def test_steps_of_a_sequence(conflicting: Case, kind: str, step: str) -> None:
    if kind == "revert":
        conflicting.commit({"a.txt": b"later\n"}, "main 2")
        assert conflicting.attempt("revert", "HEAD~1") == 1
    elif kind == "cherry-pick":
        assert conflicting.attempt("cherry-pick", "side~1") == 1
    else:
        conflicting.git("format-patch", "-q", "-1", "side~1", "-o", ".git/mails")
        (mail,) = (conflicting.folder / ".git/mails").iterdir()
        assert conflicting.attempt("am", "--3way", str(mail)) != 0
    before = conflicting.head()
    assert conflicting.status()["operation"]["kind"] == kind
    for other in ("merge", "rebase", "bisect"):
        assert conflicting.refused("POST", f"{other}/abort")["code"] == "not_under_way"
    if step == "continue":
        assert conflicting.refused("POST", f"{kind}/continue")["code"] == "merge_conflict"
        conflicting.write("a.txt", "mended\n")
        conflicting.post("stage", paths=["a.txt"])
    done = conflicting.post(f"{kind}/{step}")
    assert done["operation"] is None and (done["head"]["oid"] == before) is (step != "continue")
    assert conflicting.files() == {}


def test_a_bisect_is_ended(apart: Case) -> None:
    apart.git("bisect", "start", "main", "main~1")
    assert apart.refused("POST", "bisect/continue")["code"] == "step_not_possible"
    done = apart.post("bisect/abort")
    assert (done["head"]["branch"], done["operation"]) == ("main", None)


@pytest.mark.parametrize(
    ("route", "body", "code"),
    [
        ("merge", {}, "validation_failed"), ("merge", {"ref": "gone"}, "ref_not_found"), ("merge", {"ref": "--abort"}, "ref_invalid"),
        ("merge", {"ref": "side", "mode": "octopus"}, "validation_failed"), ("merge", {"ref": "HEAD:a.txt"}, "ref_not_found"),
        ("rebase", {"onto": "gone"}, "ref_not_found"), ("rebase", {"onto": "--exec=touch x"}, "ref_invalid"), ("rebase", {}, "validation_failed"),
        ("merge/continue", None, "not_under_way"), ("rebase/skip", None, "not_under_way"), ("cherry-pick/abort", None, "not_under_way"),
        ("merge/undo", None, "validation_failed"), ("conflicts/resolve", {"paths": ["a.txt"], "use": "ours"}, "conflict_not_found"),
        ("conflicts/resolve", {"paths": [], "use": "ours"}, "validation_failed"), ("conflicts/resolve", {"paths": ["a.txt"]}, "validation_failed"),
        ("conflicts/resolve", {"paths": ["a.txt"], "use": "mine"}, "validation_failed"),
        ("conflicts/resolve", {"paths": ["../a"], "use": "ours"}, "path_invalid"),
    ],
)  # fmt: skip
def test_wrong_requests(case: Case, route: str, body: dict[str, Any] | None, code: str) -> None:
    before = case.git("for-each-ref")
    assert case.refused("POST", route, body)["code"] == code
    assert case.git("for-each-ref") == before and case.files() == {}


def test_before_the_first_commit(here: Host) -> None:
    case = here.init("unborn")
    assert case.refused("POST", "merge", {"ref": "HEAD"})["code"] == "ref_not_found"
    assert case.refused("POST", "rebase", {"onto": "main"})["code"] == "ref_not_found"
