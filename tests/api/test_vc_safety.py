"""No work is lost without being asked for: what git would delete, overwrite, forget or mistake for another, by HTTP."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.git_bench import program
from support.version_control import Case, Host, host


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose git runs `meanwhile` once, as from a terminal, when the server has it begin to forget a stash."""
    folder = tmp_path_factory.mktemp("safety")
    (folder / "bin").mkdir()
    real, meanwhile = shutil.which("git"), folder / "meanwhile"
    script = f"""case "$1 $2" in "stash drop" | "stash pop")
        [ ! -e '{meanwhile}' ] || {{ mv '{meanwhile}' '{meanwhile}-now'; . '{meanwhile}-now'; }} ;;
    esac
    exec {real} "$@\""""
    program(folder / "bin/git", script)
    with host(folder, env={"PATH": f"{folder}/bin:{os.environ['PATH']}"}) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    """A repository with `a.txt`, `b.txt` and `d/x`; `side` has `.env`, which is ignored on `main`, too."""
    made = here.fresh()
    made.commit({"a.txt": b"a\n", "b.txt": b"b\n", "d/x": b"x\n", ".gitignore": b".env\n*.log\nbuild\n"}, "first")
    made.git("checkout", "-q", "-b", "side")
    made.commit({".env": b"theirs\n"}, "side")
    made.git("checkout", "-q", "main")
    return made


def stashed(case: Case, name: str, content: str) -> str:
    """A change in the stash; the stash's id."""
    case.write(name, content)
    case.git("stash", "push", "--quiet", "--message", content.strip())
    return case.git("rev-parse", "refs/stash")


# --- the stash ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [False, True])
@pytest.mark.parametrize("how", ["drop", "pop"])
def test_only_the_stash_that_was_named_goes(case: Case, how: str, place: bool) -> None:
    """Another one is made at the worst moment."""
    old = stashed(case, "a.txt", "old\n")
    case.write("new.txt", "new\n")
    make = f"{shutil.which('git')} stash push --quiet --include-untracked --message new -- new.txt"
    (case.host.server.folder / "meanwhile").write_text(f"{make}\n")
    named = "0" if place else old
    answer = case.ask(*(("DELETE", f"stash/{named}") if how == "drop" else ("POST", f"stash/{named}/pop")))
    assert (answer.status, answer.json["stash"]["oid"]) == (200, old)
    assert not (case.host.server.folder / "meanwhile").exists()
    assert [stash["message"] for stash in case.get("stash")["items"]] == ["new"]
    assert case.read("a.txt") == (b"a\n" if how == "drop" else b"old\n")
    assert case.git("show", "refs/stash^3:new.txt") == "new"


def test_a_stash_that_another_has_dropped(case: Case) -> None:
    old, new = stashed(case, "a.txt", "old\n"), stashed(case, "a.txt", "new\n")
    drop = f"{shutil.which('git')} stash drop --quiet stash@{{1}}"
    (case.host.server.folder / "meanwhile").write_text(f"{drop}\n")
    case.ask("DELETE", f"stash/{old}")
    assert [stash["oid"] for stash in case.get("stash")["items"]] == [new]
    assert case.refused("DELETE", f"stash/{old}")["code"] == "stash_not_found"


@pytest.mark.parametrize("how", [{}, {"staged": True}, {"keep_index": True}])
@pytest.mark.parametrize("kind", ["merge", "cherry-pick", "revert"])
def test_a_stash_does_not_end_what_is_under_way(case: Case, kind: str, how: dict[str, bool]) -> None:
    case.git("checkout", "-q", "-b", "theirs")
    theirs = case.commit({"a.txt": b"theirs\n"})
    case.git("checkout", "-q", "-b", "ours", "main")
    case.commit({"a.txt": b"ours\n"})
    if kind == "revert":
        theirs = case.git("rev-parse", "HEAD")
        case.commit({"a.txt": b"later\n"})
    assert case.attempt(kind, theirs) != 0
    case.write("a.txt", "resolved\n")
    case.git("add", "a.txt")
    assert case.refused("POST", "stash", how)["code"] == "operation_in_progress"
    problem = case.refused("POST", "checkout", {"branch": "side", "local_changes": "stash"})
    assert (problem["code"], problem["operation"]["kind"]) == ("operation_in_progress", kind)
    assert case.status()["operation"]["kind"] == kind and case.read("a.txt") == b"resolved\n"
    case.write("b.txt", "changed\n")
    case.post("stash", 201, paths=["b.txt"])
    assert case.status()["operation"]["kind"] == kind and case.files() == {"a.txt": ("modified", None)}


# --- discard --------------------------------------------------------------------------------------------------------------------


def test_discard_leaves_what_stands_in_place_of_a_file(case: Case) -> None:
    (case.folder / "a.txt").unlink()
    case.write("a.txt/precious", "precious\n")
    case.write("b.txt", "changed\n")
    for paths in (["a.txt"], ["a.txt", "b.txt"]):
        problem = case.refused("POST", "discard", {"paths": paths})
        assert (problem["code"], problem["paths"]) == ("path_untracked", ["a.txt"])
    assert case.read("b.txt") == b"changed\n"
    case.post("discard", all=True)
    assert (case.read("a.txt/precious"), case.read("b.txt")) == (b"precious\n", b"b\n")
    case.post("discard", paths=["a.txt"], untracked=True)
    assert case.read("a.txt") == b"a\n" and case.files() == {}


@pytest.mark.parametrize("link", [False, True])
def test_discard_leaves_what_stands_in_place_of_a_folder(case: Case, link: bool) -> None:
    shutil.rmtree(case.folder / "d")
    place = case.folder / "d"
    if link:
        place.symlink_to("elsewhere")
    else:
        place.write_text("precious\n")
    for path in ("d", "d/x"):
        problem = case.refused("POST", "discard", {"paths": [path]})
        assert (problem["code"], problem["paths"]) == ("path_untracked", ["d"])
    case.post("discard", all=True)
    assert place.is_symlink() if link else place.read_text() == "precious\n"
    case.post("discard", all=True, untracked=True)
    assert case.read("d/x") == b"x\n" and case.files() == {}


@pytest.mark.parametrize("kept", ["ignored", "repository"])
def test_discard_keeps_what_untracked_does_not_mean(case: Case, kept: str) -> None:
    """As everywhere: not what is ignored, and not another repository."""
    (case.folder / "a.txt").unlink()
    case.write("a.txt/untracked", "")
    if kept == "ignored":
        precious = case.write("a.txt/x.log", "precious\n")
    else:
        case.host.init(f"{case.path}/a.txt/inner")
        precious = case.write("a.txt/inner/work", "precious\n")
    problem = case.refused("POST", "discard", {"all": True, "untracked": True})
    assert (problem["code"], problem["paths"]) == ("local_changes_in_way", ["a.txt"])
    assert precious.read_text() == "precious\n" and not (case.folder / "a.txt/untracked").exists()


def test_discard_of_a_file_that_is_only_intended(case: Case) -> None:
    case.write("new", "precious\n")
    case.write("a.txt", "changed\n")
    case.git("add", "--intent-to-add", "new")
    hunks = {file["path"]: [hunk["id"] for hunk in file["hunks"]] for file in case.get("diff")["files"]}
    chosen = [{"path": path, "ids": ids} for path, ids in hunks.items()]
    for body in ({"paths": ["new"]}, {"paths": ["new", "a.txt"]}, {"hunks": chosen}):
        problem = case.refused("POST", "discard", body)
        assert (problem["code"], problem["paths"]) == ("path_untracked", ["new"])
    assert (case.read("new"), case.read("a.txt")) == (b"precious\n", b"changed\n")
    case.post("discard", all=True)
    assert (case.read("new"), case.read("a.txt")) == (b"precious\n", b"a\n")
    case.post("discard", paths=["new"], untracked=True)
    assert not (case.folder / "new").exists() and case.files() == {}


# --- what is in the way -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["keep", "stash", "discard"])
def test_checkout_replaces_nothing_that_is_not_known(case: Case, how: str) -> None:
    case.write(".env", "secret\n")
    case.write("b.txt", "changed\n")
    problem = case.refused("POST", "checkout", {"branch": "side", "local_changes": how})
    assert (problem["code"], problem["paths"]) == ("local_changes_in_way", [".env"])
    assert (case.read(".env"), case.read("b.txt")) == (b"secret\n", b"changed\n")
    assert case.git("branch", "--show-current") == "main" and case.get("stash")["items"] == []


def test_a_forced_checkout_keeps_what_is_untracked(case: Case) -> None:
    case.git("checkout", "-q", "side")
    case.commit({"notes": b"theirs\n", "e/f": b"theirs\n"})
    case.git("checkout", "-q", "main")
    case.write("notes", "precious\n")
    case.write("e", "precious\n")
    (case.folder / "a.txt").unlink()
    case.write("a.txt/precious", "precious\n")
    problem = case.refused("POST", "checkout", {"branch": "side", "local_changes": "discard"})
    assert (problem["code"], set(problem["paths"])) == ("local_changes_in_way", {"notes", "e", "a.txt"})
    for name in ("notes", "e", "a.txt/precious"):
        assert case.read(name) == b"precious\n"
    for name in ("notes", "e"):
        (case.folder / name).unlink()
    shutil.rmtree(case.folder / "a.txt")
    case.write("other", "precious\n")
    case.git("add", "--intent-to-add", "other")
    problem = case.refused("POST", "checkout", {"branch": "side", "local_changes": "discard"})
    assert (problem["code"], problem["paths"]) == ("local_changes_in_way", ["other"])
    case.git("rm", "-q", "--cached", "other")
    case.post("checkout", branch="side", local_changes="discard")
    assert (case.read("a.txt"), case.read("other")) == (b"a\n", b"precious\n")


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("route", "body"),
    [("merge", {"ref": "side"}), ("merge", {"ref": "side", "mode": "squash"}), ("rebase", {"onto": "side"})],
)
def test_a_merge_replaces_nothing_that_is_ignored(case: Case, route: str, body: dict[str, str], apart: bool) -> None:
    if apart:
        case.commit({"ours": b"ours\n"})
    case.write(".env", "secret\n")
    before = case.head()
    problem = case.refused("POST", route, body)
    assert (problem["code"], problem["paths"]) == ("local_changes_in_way", [".env"])
    assert (case.read(".env"), case.head(), case.status()["operation"]) == (b"secret\n", before, None)
    (case.folder / ".env").unlink()
    case.post(route, **body)
    assert case.read(".env") == b"theirs\n"


def test_a_folder_that_is_ignored_is_no_place_for_a_file(case: Case) -> None:
    case.git("checkout", "-q", "side")
    case.commit({"build": b"theirs\n"})
    case.git("checkout", "-q", "main")
    case.write("build/precious", "precious\n")
    for route, body in (("merge", {"ref": "side"}), ("checkout", {"branch": "side", "local_changes": "discard"})):
        problem = case.refused("POST", route, body)
        assert (problem["code"], problem["paths"]) == ("local_changes_in_way", ["build"])
    assert case.read("build/precious") == b"precious\n"


def test_a_merge_leaves_what_it_does_not_touch(case: Case) -> None:
    """What was tracked once and is ignored now stands in nobody's way."""
    case.git("checkout", "-q", "-b", "once", "side")
    case.git("rm", "-q", "--cached", ".env")
    case.git("commit", "-q", "-m", "forget it")
    case.git("checkout", "-q", "side")
    case.commit({"other": b"theirs\n"})
    case.git("checkout", "-q", "once")
    case.write(".env", "secret\n")
    case.post("merge", ref="side")
    assert (case.read(".env"), case.read("other")) == (b"secret\n", b"theirs\n")


def test_a_stash_replaces_nothing_that_is_ignored(case: Case) -> None:
    case.write(".env", "of the stash\n")
    case.git("add", "--force", ".env")
    case.git("stash", "push", "--quiet")
    case.write(".env", "secret\n")
    for how in ("apply", "pop"):
        problem = case.refused("POST", f"stash/0/{how}")
        assert (problem["code"], problem["paths"]) == ("local_changes_in_way", [".env"])
    assert case.read(".env") == b"secret\n" and len(case.get("stash")["items"]) == 1


# --- linked working trees ---------------------------------------------------------------------------------------------------------


def test_a_linked_tree_is_never_staged(case: Case) -> None:
    case.git("worktree", "add", "-q", "agents/one")
    (case.folder / "agents/one/work").write_text("work\n")
    for path in ("agents/one", "agents/one/work"):
        problem = case.refused("POST", "stage", {"paths": [path]})
        assert problem["code"] == "path_invalid" and "agents/one" in problem["detail"]
    case.ask("POST", "stage", {"paths": ["agents"]})
    assert case.git("diff", "--cached", "--name-only") == ""
    case.write("agents/notes", "notes\n")
    case.post("stage", paths=["agents"])
    assert case.git("diff", "--cached", "--name-only") == "agents/notes"
    linked = Case(case.host, Path(case.folder / "agents/one"))
    linked.post("stage", paths=["work"])
    assert linked.git("diff", "--cached", "--name-only") == "work"
