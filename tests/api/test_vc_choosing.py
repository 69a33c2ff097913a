"""What is staged, discarded, put away and switched to is what was chosen, and where that can't be, it is said: by HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.version_control import Case, Host, host

LINES = "".join(f"line {number}\n" for number in range(30))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("choosing")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    """A repository with `a` and `d/x`."""
    made = here.fresh()
    made.commit({"a": b"a\n", "d/x": b"x\n"}, "first")
    return made


def hunks(case: Case, path: str, target: str = "worktree") -> dict[str, Any]:
    """All hunks of a file, as a body chooses them."""
    found = case.get("diff", target=target, paths=[path])["files"]
    return {"hunks": [{"path": path, "ids": [hunk["id"] for hunk in found[0]["hunks"]]}]}


# --- hunks ----------------------------------------------------------------------------------------------------------------------


def scrubbing(case: Case) -> str:
    """`f.sec` goes through a filter of the repository's own; a change of it, and the content of the file then."""
    case.git("config", "filter.scrub.clean", "sed s/password=.*/password=XXX/")
    case.write(".gitattributes", "*.sec filter=scrub\n")
    case.write("f.sec", f"{LINES}password=hunter2\n")
    case.git("add", ".")
    case.git("commit", "-q", "-m", "scrubbed")
    changed = f"new\n{LINES}password=hunter2\n"
    case.write("f.sec", changed)
    return changed


def test_a_hunk_does_not_go_round_the_filter(case: Case) -> None:
    changed = scrubbing(case)
    body = hunks(case, "f.sec")
    for route in ("stage", "discard"):
        problem = case.refused("POST", route, body)
        assert (problem["code"], problem["path"]) == ("hunk_filtered", "f.sec")
    assert case.read("f.sec").decode() == changed and "hunter2" not in case.git("show", ":f.sec")
    case.post("stage", paths=["f.sec"])
    assert case.git("show", ":f.sec") == f"new\n{LINES}password=XXX"
    case.post("unstage", **hunks(case, "f.sec", "index"))
    assert case.git("show", ":f.sec") == f"{LINES}password=XXX"
    case.write("a", "b\n")
    case.post("stage", **hunks(case, "a"))
    assert case.git("show", ":a") == "b"


def test_a_filter_that_never_runs_is_in_no_hunks_way(tmp_path: Path) -> None:
    with host(tmp_path, env={"TRUST_REPOSITORY": "false"}) as wary:
        case = wary.fresh()
        changed = scrubbing(case)
        case.post("stage", **hunks(case, "f.sec"))
        assert case.git("show", ":f.sec") + "\n" == changed


def test_a_filter_of_the_users_own_is_in_no_hunks_way(case: Case) -> None:
    """It runs in reads as well."""
    case.host.box.git(case.folder, "config", "--global", "filter.upper.clean", "tr a-z A-Z")
    case.write(".gitattributes", "*.up filter=upper\n")
    case.write("f.up", LINES)
    case.git("add", ".")
    case.write("f.up", f"new\n{LINES}")
    case.post("stage", **hunks(case, "f.up"))
    assert case.git("show", ":f.up") == f"new\n{LINES}".upper().strip()


def test_a_hunk_beside_a_huge_change(case: Case) -> None:
    """Its patch alone is more than one answer may hold. A file that was renamed goes with the name that it had."""
    case.commit({"old": LINES.encode(), "z": b""}, "more")
    case.write("z", b"0123456789abcde\n" * (68 * 1024 * 64))
    case.write("a", "b\n")
    case.post("stage", **hunks(case, "a"))
    assert case.git("show", ":a") == "b"
    case.git("mv", "old", "new")
    case.write("new", LINES.replace("line 3\n", "changed\n"))
    case.git("add", "new", "z")
    file = next(file for file in case.get("diff", target="index")["files"] if file["path"] == "new")
    assert file["status"] == "renamed" and len(file["hunks"]) == 1
    case.post("unstage", hunks=[{"path": "new", "ids": [file["hunks"][0]["id"]]}])
    assert case.git("show", ":new") + "\n" == LINES and case.git("show", ":a") == "b"


# --- what is another repository's, or outside of a sparse checkout ----------------------------------------------------------------


@pytest.fixture
def inner(case: Case) -> Case:
    """A submodule `sub` of `case` that has moved on, and a file in it."""
    made = case.host.init(f"{case.path}/sub")
    made.commit({"f": b"one\n"}, "one")
    case.git("-c", "advice.addEmbeddedRepo=false", "add", "sub")
    case.git("commit", "-q", "-m", "sub")
    made.commit({"f": b"two\n"}, "two")
    return made


def test_a_submodule_is_not_discarded(case: Case, inner: Case) -> None:
    oid = inner.head()
    for body in ({"paths": ["sub"]}, {"paths": ["sub", "a"]}, hunks(case, "sub")):
        case.write("a", "changed\n")
        problem = case.refused("POST", "discard", body)
        assert (problem["code"], problem["path"]) == ("path_invalid", "sub")
        assert case.read("a") == b"changed\n"
    case.post("discard", all=True)
    assert case.read("a") == b"a\n" and inner.head() == oid
    case.post("stage", **hunks(case, "sub"))
    assert case.git("rev-parse", ":sub") == oid
    inner.write("f", "precious\n")
    assert case.refused("POST", "discard", {"paths": ["sub"]})["code"] == "path_invalid"
    assert inner.read("f") == b"precious\n"


def test_a_submodule_whose_folder_is_gone_is_brought_back(case: Case) -> None:
    case.git("update-index", "--add", "--cacheinfo", f"160000,{case.head()},sub")
    case.post("discard", paths=["sub"])
    assert (case.folder / "sub").is_dir() and case.files() == {"sub": ("added", None)}


@pytest.mark.parametrize("kind", ["empty", "untracked", "submodule", "linked"])
def test_what_another_repository_has_is_not_staged(case: Case, kind: str) -> None:
    if kind == "linked":
        case.git("worktree", "add", "-q", "n/r")
    else:
        made = case.host.init(f"{case.path}/n/r")
        if kind != "empty":
            made.commit({"g": b"g\n"}, "inner")
        if kind == "submodule":
            case.git("-c", "advice.addEmbeddedRepo=false", "add", "n/r")
    case.write("n/r/e/f", "f\n")
    case.write("a", "changed\n")
    for path in ("n/r/e/f", "n/r/e"):
        problem = case.refused("POST", "stage", {"paths": ["a", path]})
        assert problem["code"] == "path_invalid" and "n/r" in problem["detail"]
    assert case.files()["a"] == (None, "modified")


def test_a_folder_that_only_looks_like_a_repository(case: Case) -> None:
    (case.folder / "n/.git").mkdir(parents=True)
    case.write("n/f", "f\n")
    case.post("stage", paths=["n/f"])
    assert case.files() == {"n/f": ("added", None)}


def test_outside_of_a_sparse_checkout_wants_force(case: Case) -> None:
    case.git("sparse-checkout", "set", "--no-cone", "/a")
    case.write("d/x", "mine\n")
    case.write("a", "mine\n")
    problem = case.refused("POST", "stage", {"paths": ["a", "d/x"]})
    assert problem["code"] == "path_ignored" and "sparse" in problem["detail"]
    assert case.files() == {"a": (None, "modified"), "d/x": (None, "modified")}
    case.post("stage", paths=["a", "d/x"], force=True)
    assert case.files() == {"a": ("modified", None), "d/x": ("modified", None)}


# --- stashes and switches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linked", "repository", "both"])
def test_a_repository_in_it_makes_no_empty_stash(case: Case, kind: str) -> None:
    case.git("branch", "other")
    if kind != "repository":
        case.git("worktree", "add", "-q", "n/tree")
    if kind != "linked":
        case.host.init(f"{case.path}/n/r").commit({"f": b"f\n"}, "inner")
    assert case.refused("POST", "stash", {"include_untracked": True})["code"] == "nothing_to_stash"
    assert case.post("checkout", branch="other", local_changes="stash")["stash"] is None
    assert case.get("stash")["items"] == []
    case.write("new", "new\n")
    case.post("stash", 201, include_untracked=True)
    assert case.get("stash")["items"][0]["untracked"] and not (case.folder / "new").exists()
    assert (case.folder / "n").is_dir()


def test_before_the_first_commit_there_is_nothing_to_stash(here: Host) -> None:
    case = here.fresh()
    for _ in range(2):
        assert case.refused("POST", "stash", {"include_untracked": True})["code"] == "nothing_to_stash"
        case.write("a", "precious\n")
        case.git("add", "a")
    answer = case.post("checkout", branch="new", create=True, local_changes="stash")
    assert (answer["stash"], answer["head"]["branch"]) == (None, "new")
    assert case.files() == {"a": ("added", None)} and case.read("a") == b"precious\n"


@pytest.mark.parametrize("remote", ["origin", "team/x"])
def test_a_branch_that_only_a_remote_has(case: Case, remote: str) -> None:
    case.git("clone", "-q", "--bare", ".", f"{case.folder}.{remote.replace('/', '-')}")
    case.git("branch", "feature/one")
    case.git("push", "-q", f"{case.folder}.{remote.replace('/', '-')}", "feature/one")
    case.git("branch", "-q", "-D", "feature/one")
    case.git("remote", "add", remote, f"{case.folder}.{remote.replace('/', '-')}")
    case.git("fetch", "-q", remote)
    case.git("symbolic-ref", f"refs/remotes/{remote}/HEAD", f"refs/remotes/{remote}/main")
    assert case.post("checkout", branch="feature/one")["head"]["branch"] == "feature/one"
    assert case.git("config", "branch.feature/one.remote") == remote
    assert case.post("checkout", branch="HEAD")["head"]["detached"]
    case.git("update-ref", "refs/remotes/gone/other", "HEAD")  # of a remote that is not there any more
    assert case.refused("POST", "checkout", {"branch": "other"})["code"] == "ref_not_found"
