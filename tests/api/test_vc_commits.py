"""Commits by HTTP: with every field, the facts for a message, and stashes."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from support.version_control import Case, Host, host


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("commits")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    """A repository with one commit."""
    made = here.fresh()
    made.commit({"a.txt": b"a\n", "b.txt": b"b\n"}, "first")
    return made


def test_what_is_staged(case: Case) -> None:
    before = case.head()
    case.write("a.txt", "staged\n")
    case.post("stage", paths=["a.txt"])
    case.write("a.txt", "later\n")
    case.write("new", "n")
    done = case.post("commit", message="the subject\n\nthe body\n")
    assert done["oid"] == case.head() == done["commit"]["oid"]
    assert (done["commit"]["parents"], done["commit"]["subject"]) == ([before], "the subject")
    assert done["commit"]["body"].strip() == "the body"
    assert case.git("show", "HEAD:a.txt") == "staged"
    assert case.files() == {"a.txt": (None, "modified"), "new": (None, "untracked")}


def test_all_and_paths(case: Case) -> None:
    case.write("a.txt", "1\n")
    case.write("b.txt", "1\n")
    case.write("new", "n")
    case.post("commit", message="only a", paths=["a.txt"])
    assert case.files() == {"b.txt": (None, "modified"), "new": (None, "untracked")}
    case.post("stage", paths=["new"])
    case.write("a.txt", "2\n")
    case.post("commit", message="a, not what is staged", paths=["a.txt"])
    assert case.files() == {"b.txt": (None, "modified"), "new": ("added", None)}
    case.post("commit", message="the rest", all=True)
    assert case.files() == {}


def test_author_and_signoff(case: Case) -> None:
    case.write("a.txt", "1\n")
    author = {"name": "Zoë O'Hara", "email": "zoe@example.org"}
    done = case.post("commit", message="x", all=True, author=author, signoff=True)
    assert (done["commit"]["author"]["name"], done["commit"]["author"]["email"]) == ("Zoë O'Hara", "zoe@example.org")
    assert done["commit"]["committer"]["name"] == "Ada"
    assert "Signed-off-by: Ada <ada@example.org>" in case.git("log", "-1", "--format=%B")


def test_amend(case: Case) -> None:
    second = case.commit({"a.txt": b"2\n"}, "second")
    case.write("b.txt", "more\n")
    case.post("stage", all=True)
    done = case.post("commit", amend=True)
    assert done["commit"]["subject"] == "second" and done["commit"]["parents"] == [case.git("rev-parse", f"{second}~1")]
    assert case.post("commit", amend=True, message="better")["commit"]["subject"] == "better"
    assert case.git("rev-list", "--count", "HEAD") == "2"


@pytest.mark.parametrize("message", ["-x --amend", "# a hash\n\n# more", "ünï", "a\r\nb", "x" * 100_000, "tab\there"])
def test_messages_as_they_are(case: Case, message: str) -> None:
    case.write("a.txt", "1\n")
    given = case.ask("POST", "commit", {"message": message, "all": True})
    assert given.status == 200, given
    kept = case.host.box.git(case.folder, "log", "-1", "--format=%B").decode().strip()
    assert kept.split() == message.split()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "message_missing"), ({"message": ""}, "validation_failed"), ({"message": " \n\t"}, "validation_failed"),
        ({"message": "x", "all": True, "paths": ["a.txt"]}, "validation_failed"), ({"message": "x", "paths": ["gone"]}, "file_not_found"),
        ({"message": "x", "author": {"name": "A"}}, "validation_failed"), ({"message": "x", "author": {"name": "A <b>", "email": "c"}}, "identity_invalid"),
        ({"message": "x", "author": {"name": "A\nB", "email": "c"}}, "identity_invalid"), ({"message": "x", "author": {"name": " ", "email": "c"}}, None),
        ({"message": "x", "allow_empty": True}, "validation_failed"), ({"message": 5}, "validation_failed"), ({"message": "x\0y"}, None),
        ({"message": "x", "paths": ["../a"]}, "path_invalid"),
    ],
)  # fmt: skip
def test_wrong_commits(case: Case, body: dict[str, Any], code: str | None) -> None:
    before = case.head()
    case.write("a.txt", "changed\n")
    case.post("stage", paths=["a.txt"])
    problem = case.refused("POST", "commit", body)
    assert code is None or problem["code"] == code, problem
    assert case.head() == before and case.files() == {"a.txt": ("modified", None)}


def test_nothing_to_commit(case: Case) -> None:
    before = case.head()
    assert case.refused("POST", "commit", {"message": "x"})["code"] == "nothing_to_commit"
    case.write("a.txt", "changed\n")
    case.write("new", "n")
    assert case.refused("POST", "commit", {"message": "x"})["code"] == "nothing_to_commit"
    assert case.refused("POST", "commit", {"message": "x", "paths": ["b.txt"]})["code"] == "nothing_to_commit"
    assert case.head() == before


def test_no_identity(tmp_path: Any) -> None:
    with host(tmp_path) as here:
        (tmp_path / "home/.gitconfig").write_text("[user]\n\tuseConfigOnly = true\n")
        case = here.init("nobody")
        case.write("a", "1")
        case.post("stage", all=True)
        assert case.refused("POST", "commit", {"message": "x"})["code"] == "identity_missing"
        case.git("config", "user.name", "Ada")
        case.git("config", "user.email", "ada@example.org")
        case.post("commit", message="x")


def test_the_editor_and_templates_have_no_say(case: Case) -> None:
    template = case.write("template", "from a template\n")
    case.git("config", "commit.template", str(template))
    case.git("config", "core.editor", "touch marked; false")
    case.git("config", "commit.verbose", "true")
    case.write("a.txt", "1\n")
    assert case.post("commit", message="mine", all=True)["commit"]["subject"] == "mine"
    assert case.git("log", "-1", "--format=%B") == "mine" and not (case.folder / "marked").exists()


def test_a_merge_is_concluded(case: Case) -> None:
    case.git("checkout", "-q", "-b", "other")
    case.commit({"a.txt": b"theirs\n"}, "other")
    case.git("checkout", "-q", "main")
    case.commit({"a.txt": b"ours\n"}, "ours")
    assert case.attempt("merge", "other") == 1
    assert case.refused("POST", "commit", {})["code"] == "merge_conflict"
    case.write("a.txt", "both\n")
    case.post("stage", paths=["a.txt"])
    assert "Merge branch 'other'" in case.get("commit/draft")["prepared"]
    done = case.post("commit")
    assert done["commit"]["subject"] == "Merge branch 'other'" and len(done["commit"]["parents"]) == 2


# --- the draft ------------------------------------------------------------------------------------------------------------------


def test_draft(case: Case) -> None:
    case.commit({"a.txt": b"2\n"}, "second")
    case.write("a.txt", "3\n")
    case.write("not staged", "x\n")
    case.post("stage", paths=["a.txt"])
    found = case.get("commit/draft")
    assert found["recent"] == ["second", "first"] and found["head"]["oid"] == case.head()
    assert [(file["path"], file["additions"], file["deletions"]) for file in found["files"]] == [("a.txt", 1, 1)]
    assert found["files"][0]["hunks"] and (found["prepared"], found["operation"]) == (None, None)


def test_a_large_draft(case: Case) -> None:
    for name in ("big one", "big two"):
        case.write(name, b"0123456789\n" * 19_000)
    case.post("stage", all=True)
    files = case.get("commit/draft")["files"]
    assert [(file["additions"], file["truncated"]) for file in files] == [(19_000, False), (19_000, True)]


# --- stashes --------------------------------------------------------------------------------------------------------------------


def test_stash_and_pop(case: Case) -> None:
    case.write("a.txt", "staged\n")
    case.post("stage", paths=["a.txt"])
    case.write("b.txt", "worktree\n")
    case.write("new", "n")
    made = case.post("stash", 201, message="on the way", include_untracked=True)["stash"]
    assert (made["message"], made["branch"], made["untracked"], made["base"]) == (
        "on the way",
        "main",
        True,
        case.head(),
    )
    assert case.files() == {} and case.status()["stash_count"] == 1
    assert case.get("stash")["items"] == [made]
    case.post("stash/0/apply", index=True)
    assert case.files() == {"a.txt": ("modified", None), "b.txt": (None, "modified"), "new": (None, "untracked")}
    case.git("reset", "-q", "--hard")
    (case.folder / "new").unlink()
    case.post(f"stash/{made['oid']}/pop")
    assert case.files() == {"a.txt": (None, "modified"), "b.txt": (None, "modified"), "new": (None, "untracked")}
    assert case.get("stash")["items"] == []


def test_parts_are_stashed(case: Case) -> None:
    case.write("a.txt", "1\n")
    case.write("b.txt", "1\n")
    case.post("stash", 201, paths=["a.txt"])
    assert case.files() == {"b.txt": (None, "modified")}
    case.post("stage", paths=["b.txt"])
    case.post("stash", 201, keep_index=True)
    assert case.files() == {"b.txt": ("modified", None)}
    case.write("a.txt", "2\n")
    case.post("stash", 201, staged=True, message="of what is staged")
    assert case.files() == {"a.txt": (None, "modified")}
    assert len(case.get("stash")["items"]) == 3
    oldest = case.get("stash")["items"][2]["oid"]
    assert case.ask("DELETE", f"stash/{oldest}").status == 200
    assert case.ask("DELETE", "stash/0").status == 200
    assert len(case.get("stash")["items"]) == 1


def test_the_same_stash_in_the_same_second(case: Case) -> None:
    """git keeps but one of two that are equal: that is no failure."""
    case.write("a.txt", "1\n")
    for _ in range(3):
        made = case.post("stash", 201)["stash"]
        assert case.files() == {} and case.git("show", f"{made['oid']}:a.txt") == "1"
        case.post("stash/0/apply")
        assert case.files() == {"a.txt": (None, "modified")}


def test_a_stash_in_the_way(case: Case) -> None:
    case.write("a.txt", "stashed\n")
    case.post("stash", 201)
    case.write("a.txt", "in the way\n")
    problem = case.refused("POST", "stash/0/pop")
    assert (problem["code"], problem["paths"]) == ("local_changes_in_way", ["a.txt"])
    assert case.read("a.txt") == b"in the way\n" and case.status()["stash_count"] == 1
    case.post("commit", message="conflicting", all=True)
    assert case.refused("POST", "stash/0/pop")["code"] == "merge_conflict"
    assert case.status()["stash_count"] == 1 and case.get("conflicts")["items"][0]["path"] == "a.txt"


def test_wrong_stashes(case: Case) -> None:
    assert case.refused("POST", "stash", {})["code"] == "nothing_to_stash"
    case.write("new", "n")
    assert case.refused("POST", "stash", {})["code"] == "nothing_to_stash"
    assert case.read("new") == b"n"
    for name in ("0", "1", "-1", "x", "stash@{0}", "--help", "a" * 40):
        assert case.refused("POST", f"stash/{name}/pop")["code"] == "stash_not_found"
        assert case.refused("DELETE", f"stash/{name}")["code"] == "stash_not_found"
    case.write("a.txt", "1\n")
    assert case.refused("POST", "stash", {"paths": ["gone"]})["status"] in (404, 409)
    assert case.read("a.txt") == b"1\n"
    assert case.refused("POST", "stash", {"staged": True})["code"] == "nothing_to_stash"


def test_the_full_stash_of_a_message_like_an_option(case: Case) -> None:
    case.write("a.txt", "1\n")
    assert case.post("stash", 201, message="--keep-index")["stash"]["message"] == "--keep-index"
    assert case.files() == {} and os.path.exists(case.folder / "a.txt")
