"""Branches and tags by HTTP: switched to with every field, made, renamed, deleted. Local changes are never lost unless asked for."""

from collections.abc import Iterator
from typing import Any

import pytest

from support.version_control import Case, Host, host


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("branches")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    """A repository with `main`, and a branch `side` whose `a.txt` differs; `b.txt` is the same on both."""
    made = here.fresh()
    made.commit({"a.txt": b"a\n", "b.txt": b"b\n"}, "first")
    made.git("checkout", "-q", "-b", "side")
    made.commit({"a.txt": b"side\n", "only side": b"s\n"}, "side")
    made.git("checkout", "-q", "main")
    return made


def branches(case: Case) -> set[str]:
    return set(case.git("for-each-ref", "--format=%(refname:short)", "refs/heads").split())


# --- checkout -------------------------------------------------------------------------------------------------------------------


def test_switch(case: Case) -> None:
    done = case.post("checkout", branch="side")
    oid = case.git("rev-parse", "side")
    assert done == {"head": {"branch": "side", "oid": oid, "detached": False, "unborn": False}, "stash": None}
    assert case.read("a.txt") == b"side\n" and case.git("branch", "--show-current") == "side"
    assert case.post("checkout", branch="side")["head"]["branch"] == "side"


def test_create(case: Case) -> None:
    case.write("b.txt", "changed\n")
    done = case.post("checkout", branch="feature/new", create=True)
    assert done["head"]["branch"] == "feature/new" and case.read("b.txt") == b"changed\n"
    done = case.post("checkout", branch="from-side", create=True, start_point="side")
    assert done["head"]["oid"] == case.git("rev-parse", "side") and case.read("b.txt") == b"changed\n"
    problem = case.refused("POST", "checkout", {"branch": "side", "create": True})
    assert (problem["code"], problem["ref"]) == ("ref_exists", "side")
    assert case.git("branch", "--show-current") == "from-side"


@pytest.mark.parametrize("how", ["oid", "short", "tag", "relative", "detach"])
def test_detached(case: Case, how: str) -> None:
    oid = case.git("rev-parse", "side")
    case.git("tag", "-a", "v1", "-m", "x", "side")
    bodies: dict[str, dict[str, Any]] = {
        "oid": {"branch": oid}, "short": {"branch": oid[:8]}, "tag": {"branch": "v1"}, "relative": {"branch": "side~0"},
        "detach": {"branch": "side", "detach": True},
    }  # fmt: skip
    done = case.post("checkout", **bodies[how])
    assert done["head"] == {"branch": None, "oid": oid, "detached": True, "unborn": False}
    assert case.status()["head"] == done["head"]
    assert case.post("checkout", branch="main")["head"]["branch"] == "main"


def test_a_branch_and_a_tag_of_one_name(case: Case) -> None:
    case.git("tag", "side", "main")
    assert case.get("show", ref="refs/heads/side")["commit"]["oid"] == case.git("rev-parse", "refs/heads/side")
    assert case.post("checkout", branch="side")["head"]["branch"] == "side"
    assert case.read("a.txt") == b"side\n"


def test_a_name_that_is_a_file_too(case: Case) -> None:
    """`git checkout NAME` would undo the file's changes."""
    case.write("a.txt", "precious\n")
    assert case.refused("POST", "checkout", {"branch": "a.txt"})["code"] == "ref_not_found"
    assert case.read("a.txt") == b"precious\n"
    case.git("branch", "b.txt")
    case.write("b.txt", "precious\n")
    assert case.post("checkout", branch="b.txt")["head"]["branch"] == "b.txt"
    assert case.read("b.txt") == b"precious\n"


def test_a_branch_that_only_the_remote_has(here: Host, case: Case) -> None:
    copy = here.at(here.workspace / "copy")
    here.box.git(here.workspace, "clone", "-q", case.path, "copy")
    done = copy.post("checkout", branch="side")
    assert done["head"]["branch"] == "side" and copy.status()["upstream"]["ref"] == "origin/side"
    done = copy.post("checkout", branch="origin/main")
    assert done["head"]["detached"]
    done = copy.post("checkout", branch="mine", create=True, start_point="origin/side")
    assert copy.status()["upstream"]["ref"] == "origin/side"
    copy.git("remote", "add", "second", str(case.folder))
    copy.git("fetch", "-q", "second")
    copy.git("branch", "-D", "side")
    assert copy.refused("POST", "checkout", {"branch": "side"})["code"] == "ref_not_found"


def test_the_unborn_branch(here: Host) -> None:
    case = here.init("unborn")
    assert case.refused("POST", "checkout", {"branch": "gone"})["code"] == "ref_not_found"
    case.write("new", "n")
    assert case.post("checkout", branch="main")["head"]["unborn"]
    case.post("branches/rename", name="main", new_name="other")
    assert case.status()["head"]["branch"] == "other" and case.files() == {"new": (None, "untracked")}
    assert case.post("checkout", branch="trunk", create=True)["head"]["branch"] == "trunk"


# --- local changes ----------------------------------------------------------------------------------------------------------------


def test_keep(case: Case) -> None:
    case.write("b.txt", "changed\n")
    case.write("new", "n")
    case.post("checkout", branch="side", local_changes="keep")
    assert case.files() == {"b.txt": (None, "modified"), "new": (None, "untracked")}
    case.write("a.txt", "precious\n")
    problem = case.refused("POST", "checkout", {"branch": "main"})
    assert (problem["code"], problem["paths"]) == ("local_changes_in_way", ["a.txt"])
    assert case.read("a.txt") == b"precious\n" and case.git("branch", "--show-current") == "side"


def test_an_untracked_file_in_the_way(case: Case) -> None:
    case.write("only side", "precious\n")
    for how in ("keep", "discard"):
        problem = case.refused("POST", "checkout", {"branch": "side", "local_changes": how})
        assert (problem["code"], problem["paths"]) == ("local_changes_in_way", ["only side"]), how
        assert case.read("only side") == b"precious\n" and case.git("branch", "--show-current") == "main"
    done = case.post("checkout", branch="side", local_changes="stash")
    assert case.read("only side") == b"s\n"
    assert case.git("show", f"{done['stash']}^3:only side") == "precious"


def test_stash(case: Case) -> None:
    case.write("a.txt", "staged\n")
    case.post("stage", paths=["a.txt"])
    case.write("b.txt", "worktree\n")
    case.write("new", "n")
    done = case.post("checkout", branch="side", local_changes="stash")
    assert done["head"]["branch"] == "side" and case.files() == {}
    (stash,) = case.get("stash")["items"]
    assert (stash["oid"], stash["branch"], stash["untracked"]) == (done["stash"], "main", True)
    assert "side" in stash["message"]
    case.post("checkout", branch="main")
    case.post(f"stash/{done['stash']}/pop", index=True)
    assert case.files() == {"a.txt": ("modified", None), "b.txt": (None, "modified"), "new": (None, "untracked")}


def test_stash_of_nothing(case: Case) -> None:
    case.write("b.txt", "older\n")
    case.git("stash")
    assert case.post("checkout", branch="side", local_changes="stash")["stash"] is None
    assert case.status()["stash_count"] == 1


def test_stash_comes_back_when_the_switch_fails(here: Host, case: Case) -> None:
    here.box.git(case.folder, "worktree", "add", "-q", f"../{case.folder.name}-tree", "side")
    case.write("a.txt", "staged\n")
    case.post("stage", paths=["a.txt"])
    case.write("new", "n")
    assert (
        case.refused("POST", "checkout", {"branch": "side", "local_changes": "stash"})["code"] == "branch_checked_out"
    )
    assert case.files() == {"a.txt": ("modified", None), "new": (None, "untracked")}
    assert case.status()["stash_count"] == 0
    assert case.refused("POST", "checkout", {"branch": "gone", "local_changes": "stash"})["code"] == "ref_not_found"
    assert case.files() == {"a.txt": ("modified", None), "new": (None, "untracked")}


def test_discard(case: Case) -> None:
    case.write("a.txt", "lost\n")
    case.write("b.txt", "lost\n")
    case.post("stage", paths=["b.txt"])
    case.write("new", "kept")
    case.post("checkout", branch="side", local_changes="discard")
    assert case.files() == {"new": (None, "untracked")} and case.read("a.txt") == b"side\n"
    case.write("a.txt", "precious\n")
    assert case.refused("POST", "checkout", {"branch": "gone", "local_changes": "discard"})["code"] == "ref_not_found"
    assert case.read("a.txt") == b"precious\n"


def test_in_the_middle_of_a_merge(case: Case) -> None:
    case.commit({"a.txt": b"ours\n"}, "ours")
    assert case.attempt("merge", "side") == 1
    for how in ("keep", "stash"):
        problem = case.refused("POST", "checkout", {"branch": "side", "local_changes": how})
        assert problem["code"] in ("merge_conflict", "operation_in_progress"), problem
        assert case.status()["operation"]["kind"] == "merge"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "validation_failed"), ({"branch": ""}, "validation_failed"), ({"branch": "-f"}, "ref_invalid"), ({"branch": "--orphan=x"}, "ref_invalid"),
        ({"branch": "gone"}, "ref_not_found"), ({"branch": "a b", "create": True}, "ref_invalid"), ({"branch": "-x", "create": True}, "ref_invalid"),
        ({"branch": "HEAD", "create": True}, "ref_invalid"), ({"branch": "a..b", "create": True}, "ref_invalid"),
        ({"branch": "x", "create": True, "start_point": "gone"}, "ref_not_found"), ({"branch": "x", "create": True, "start_point": "-f"}, "ref_invalid"),
        ({"branch": "x", "create": True, "start_point": "HEAD:a.txt"}, "ref_not_found"), ({"branch": "x", "start_point": "main"}, "validation_failed"),
        ({"branch": "x", "create": True, "detach": True}, "validation_failed"), ({"branch": "side", "local_changes": "drop"}, "validation_failed"),
        ({"branch": "gone", "detach": True}, "ref_not_found"), ({"branch": "main/x", "create": True}, "ref_exists"), ({"branch": "x\ny"}, "ref_invalid"),
        ({"branch": "x", "force": True}, "validation_failed"), ({"branch": "HEAD:a.txt"}, "ref_not_found"), ({"branch": "--", "create": True}, "ref_invalid"),
    ],
)  # fmt: skip
def test_wrong_switches(case: Case, body: dict[str, Any], code: str) -> None:
    before = case.git("for-each-ref"), case.git("rev-parse", "--symbolic-full-name", "HEAD")
    assert case.refused("POST", "checkout", body)["code"] == code
    assert (case.git("for-each-ref"), case.git("rev-parse", "--symbolic-full-name", "HEAD")) == before


# --- branches ---------------------------------------------------------------------------------------------------------------------


def test_make_rename_and_delete(case: Case) -> None:
    made = case.post("branches", 201, name="new", start_point="side")
    assert made == {"name": "new", "oid": case.git("rev-parse", "side")}
    assert case.git("branch", "--show-current") == "main"
    case.post("branches/rename", name="new", new_name="feature/newer")
    assert branches(case) == {"main", "side", "feature/newer"}
    assert case.ask("DELETE", "branches/feature/newer", force=True).status == 200
    assert branches(case) == {"main", "side"}
    case.post("branches/rename", name="main", new_name="trunk")
    assert case.status()["head"]["branch"] == "trunk"


def test_an_unmerged_branch_wants_force(case: Case) -> None:
    assert case.refused("DELETE", "branches/side")["code"] == "branch_not_merged"
    assert case.refused("DELETE", "branches/main")["code"] == "branch_checked_out"
    assert case.refused("DELETE", "branches/main", force=True)["code"] == "branch_checked_out"
    assert branches(case) == {"main", "side"}
    assert case.ask("DELETE", "branches/side", force=True).status == 200
    case.post("branches", 201, name="merged")
    assert case.ask("DELETE", "branches/merged").status == 200
    assert branches(case) == {"main"}


@pytest.mark.parametrize("name", ["ünï", "a%b", "a#b", "x/y/z", "tags", "heads/x", "rename"])
def test_odd_names(case: Case, name: str) -> None:
    case.post("branches", 201, name=name)
    assert name in {item["name"] for item in case.get("branches")["items"]}
    case.post("checkout", branch=name)
    assert case.status()["head"]["branch"] == name
    case.post("checkout", branch="main")
    case.post("branches/rename", name=name, new_name=f"{name}2")
    assert case.ask("DELETE", f"branches/{name}2".replace("%", "%25").replace("#", "%23")).status == 200


@pytest.mark.parametrize(
    ("route", "body", "code"),
    [
        ("branches", {"name": "side"}, "ref_exists"), ("branches", {"name": "side/x"}, "ref_exists"), ("branches", {"name": "-d"}, "ref_invalid"),
        ("branches", {"name": "a.lock"}, "ref_invalid"), ("branches", {"name": "x", "start_point": "gone"}, "ref_not_found"), ("branches", {"name": "x" * 500}, None), ("branches/rename", {"name": "gone", "new_name": "x"}, "ref_not_found"),
        ("branches/rename", {"name": "side", "new_name": "main"}, "ref_exists"), ("branches/rename", {"name": "side", "new_name": "-M"}, "ref_invalid"),
        ("branches/rename", {"name": "side"}, "validation_failed"), ("tags", {"name": "-d"}, "ref_invalid"), ("tags", {"name": "x", "ref": "gone"}, "ref_not_found"),
        ("tags", {"name": "a b"}, "ref_invalid"), ("tags", {"name": "x", "ref": "--all"}, "ref_invalid"), ("tags", {}, "validation_failed"),
    ],
)  # fmt: skip
def test_wrong_names(case: Case, route: str, body: dict[str, Any], code: str | None) -> None:
    before = case.git("for-each-ref")
    problem = case.refused("POST", route, body)
    assert code is None or problem["code"] == code
    assert case.git("for-each-ref") == before


def test_deleting_what_is_not_there(case: Case) -> None:
    for route, code in (
        ("branches/gone", "ref_not_found"), ("branches/-D", "ref_invalid"), ("tags/gone", "ref_not_found"), ("tags/--list", "ref_invalid"),
        ("branches/refs/heads/main", "ref_not_found"),
    ):  # fmt: skip
        assert case.refused("DELETE", route)["code"] == code


def test_tags(case: Case) -> None:
    assert case.post("tags", 201, name="light", ref="side") == {"name": "light", "oid": case.git("rev-parse", "side")}
    made = case.post("tags", 201, name="v1", message="one\n\n# not a comment\n")
    assert made["oid"] == case.head() and case.git("cat-file", "-t", "v1") == "tag"
    assert case.git("tag", "-l", "--format=%(contents)", "v1") == "one\n\n# not a comment"
    assert {item["name"]: item["tag_oid"] for item in case.get("tags")["items"]} == {
        "light": None,
        "v1": case.git("rev-parse", "v1"),
    }
    assert case.refused("POST", "tags", {"name": "v1"})["code"] == "ref_exists"
    case.post("tags", 201, name="v1", ref="side", force=True)
    assert case.git("rev-parse", "v1^{commit}") == case.git("rev-parse", "side")
    assert case.ask("DELETE", "tags/v1").status == 200
    assert case.git("tag") == "light"
