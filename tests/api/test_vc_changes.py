"""What goes into a commit, by HTTP: stage, unstage and discard by file, by hunk, and all. What is not asked for stays as it is."""

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from support.version_control import NASTY, Case, Host, host

BODY = [b"line %d\n" % number for number in range(40)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("changes")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    """A repository with one commit."""
    made = here.fresh()
    made.commit({"a.txt": b"".join(BODY), "b.txt": b"b\n", "sub/c.txt": b"c\n", "sub/d.txt": b"d\n"}, "first")
    return made


def named(names: list[bytes]) -> dict[str, list[str]]:
    """Paths in a body, half of them encoded."""
    return {
        "paths": [name.decode() for name in names if name != b"\xe9\xff"],
        "paths_bytes": [quote(name) for name in names if name == b"\xe9\xff"],
    }


def index(case: Case, path: str) -> bytes:
    """What is staged of a file."""
    return case.host.box.git(case.folder, "cat-file", "blob", f":{path}")


def hunks(case: Case, path: str, **query: Any) -> list[dict[str, Any]]:
    (file,) = [file for file in case.get("diff", **query)["files"] if file["path"] == path]
    found: list[dict[str, Any]] = file["hunks"]
    return found


def edited(*at: int) -> bytes:
    """The body with these lines changed."""
    return b"".join(b"changed\n" if number in at else line for number, line in enumerate(BODY))


# --- files ----------------------------------------------------------------------------------------------------------------------


def test_stage_and_unstage_files(case: Case) -> None:
    case.write("b.txt", "changed\n")
    case.write("new", "n\n")
    (case.folder / "sub/c.txt").unlink()
    case.write("sub/deep/e", "e\n")
    all_of = {
        "b.txt": (None, "modified"), "new": (None, "untracked"), "sub/c.txt": (None, "deleted"), "sub/deep/e": (None, "untracked"),
    }  # fmt: skip
    assert case.files() == all_of
    case.post("stage", paths=["b.txt", "new"])
    assert case.files() == all_of | {"b.txt": ("modified", None), "new": ("added", None)}
    case.post("stage", paths=["sub"])
    staged = {
        "b.txt": ("modified", None),
        "new": ("added", None),
        "sub/c.txt": ("deleted", None),
        "sub/deep/e": ("added", None),
    }
    assert case.files() == staged
    case.post("stage", paths=["sub"])
    case.post("unstage", paths=["sub", "new"])
    assert case.files() == all_of | {"b.txt": ("modified", None)}
    case.post("unstage", all=True)
    assert case.files() == all_of
    case.post("stage", all=True)
    assert case.files() == staged


def test_discard_files(case: Case) -> None:
    case.write("b.txt", "staged\n")
    case.post("stage", paths=["b.txt"])
    case.write("b.txt", "worktree\n")
    (case.folder / "sub/c.txt").unlink()
    case.write("sub/d.txt", "changed\n")
    case.write("sub/new/e", "e\n")
    problem = case.refused("POST", "discard", {"paths": ["b.txt", "sub"]})
    assert (problem["code"], problem["paths"]) == ("path_untracked", ["sub/new"])
    assert (case.read("b.txt"), case.read("sub/new/e")) == (b"worktree\n", b"e\n")
    case.post("discard", paths=["b.txt", "sub/c.txt"])
    assert (case.read("b.txt"), case.read("sub/c.txt"), case.read("sub/d.txt")) == (b"staged\n", b"c\n", b"changed\n")
    case.post("discard", all=True)
    assert case.files() == {"b.txt": ("modified", None), "sub/new/e": (None, "untracked")}
    case.post("discard", paths=["sub"], untracked=True)
    assert not (case.folder / "sub/new").exists()
    case.write("x", "x")
    case.post("discard", all=True, untracked=True)
    assert case.files() == {"b.txt": ("modified", None)} and index(case, "b.txt") == b"staged\n"


def test_discard_keeps_what_is_ignored(case: Case) -> None:
    case.write(".gitignore", "*.log\n")
    case.post("stage", all=True)
    case.write("x.log", "log")
    case.write("new/y.log", "log")
    case.write("new/z", "z")
    case.post("discard", all=True, untracked=True)
    assert (case.read("x.log"), case.read("new/y.log")) == (b"log", b"log")
    assert not (case.folder / "new/z").exists()


def test_discard_of_a_repository_in_it(here: Host, case: Case) -> None:
    """Another repository is not taken for rubbish."""
    inner = here.init(f"{case.path}/inner")
    inner.commit({"precious": b"p"}, "inner")
    case.ask("POST", "discard", {"all": True, "untracked": True})
    case.ask("POST", "discard", {"paths": ["inner"], "untracked": True})
    assert inner.read("precious") == b"p" and (inner.folder / ".git/HEAD").exists()


def test_names_of_all_kinds(case: Case) -> None:
    """A name is never a pattern, an option or two names."""
    others = [b"plain", b"a", b"star"]
    for name in (*NASTY, *others):
        with open(os.path.join(os.fsencode(case.folder), name), "wb") as file:
            file.write(b"x\n")
    for name in NASTY:
        case.post("stage", **named([name]))
        (file,) = [file for file in case.status()["files"] if file["index"] == "added"]
        assert file.get("path_bytes") == "%E9%FF" or file["path"].encode() == name
        case.post("unstage", **named([name]))
    assert all(kind == (None, "untracked") for kind in case.files().values())
    case.post("stage", **named(NASTY))
    case.post("commit", message="nasty", **named(NASTY))
    assert set(case.files()) == {name.decode() for name in others}
    for name in NASTY:
        with open(os.path.join(os.fsencode(case.folder), name), "wb") as file:
            file.write(b"y\n")
    for left in range(len(NASTY), 0, -1):
        case.post("discard", **named([NASTY[left - 1]]))
        assert len(case.status(untracked="no")["files"]) == left - 1
    for name in others:
        assert case.read(name.decode()) == b"x\n"
    for name in NASTY:
        os.unlink(os.path.join(os.fsencode(case.folder), name))
        with open(os.path.join(os.fsencode(case.folder), name + b".new"), "wb") as file:
            file.write(b"z\n")
        case.post("discard", untracked=True, **named([name]))
        case.post("discard", untracked=True, paths=[], paths_bytes=[quote(name + b".new")])
    assert set(case.files()) == {name.decode() for name in others}


def test_what_is_ignored_wants_force(case: Case) -> None:
    case.write(".gitignore", "*.log\n")
    case.write("x.log", "x")
    assert case.refused("POST", "stage", {"paths": ["x.log"]})["code"] == "path_ignored"
    case.post("stage", paths=["x.log"], force=True)
    assert case.files()["x.log"] == ("added", None)


def test_nothing_is_staged_when_one_is_wrong(case: Case) -> None:
    case.write("b.txt", "changed\n")
    for route in ("stage", "unstage", "discard"):
        problem = case.refused("POST", route, {"paths": ["b.txt", "gone"]})
        assert problem["code"] == "file_not_found", route
    assert case.files() == {"b.txt": (None, "modified")}


@pytest.mark.parametrize("route", ["stage", "unstage", "discard"])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "validation_failed"), ({"paths": []}, "validation_failed"), ({"paths": ["../x"]}, "path_invalid"), ({"paths": ["/etc"]}, "path_invalid"),
        ({"paths": [""]}, "path_invalid"), ({"paths": ["a\0b"]}, "path_invalid"), ({"paths": ["."]}, "path_invalid"), ({"paths": "a.txt"}, "validation_failed"),
        ({"all": True, "paths": ["a.txt"]}, "validation_failed"), ({"every": True}, "validation_failed"), ({"paths": ["gone"]}, "file_not_found"),
        ({"hunks": [{"path": "a.txt", "ids": []}]}, "validation_failed"), ({"hunks": [{"ids": ["x"]}]}, "validation_failed"),
        ({"hunks": [{"path": "a.txt", "ids": ["gone"]}]}, "hunk_not_found"), ({"hunks": [{"path": "gone", "ids": ["x"]}]}, "hunk_not_found"),
        ({"paths": [".git/config"]}, None), ({"paths": ["a.txt/x"]}, None),
    ],
)  # fmt: skip
def test_wrong_selections(case: Case, route: str, body: dict[str, Any], code: str | None) -> None:
    before = case.git("write-tree"), case.read(".git/config")
    problem = case.refused("POST", route, body)
    assert code is None or problem["code"] == code
    assert problem["status"] < 500
    assert (case.git("write-tree"), case.read(".git/config")) == before


def test_stage_through_a_link_is_refused(case: Case) -> None:
    (case.folder / "link").symlink_to("sub")
    case.write("sub/c.txt", "changed\n")
    assert case.refused("POST", "stage", {"paths": ["link/c.txt"]})["status"] < 500
    assert case.refused("POST", "discard", {"paths": ["link/c.txt"], "untracked": True})["status"] < 500
    assert case.read("sub/c.txt") == b"changed\n"
    case.post("stage", paths=["link"])
    assert case.git("ls-files", "-s", "link").startswith("120000")


# --- before the first commit ------------------------------------------------------------------------------------------------------


def test_before_the_first_commit(here: Host) -> None:
    case = here.init("unborn")
    case.write("a", "1\n")
    case.write("b", "2\n")
    case.post("stage", all=True)
    case.post("unstage", paths=["a"])
    assert case.files() == {"a": (None, "untracked"), "b": ("added", None)}
    case.post("unstage", all=True)
    assert case.files() == {"a": (None, "untracked"), "b": (None, "untracked")}
    case.post("stage", paths=["a"])
    case.write("a", "changed\n")
    case.post("discard", all=True)
    assert case.read("a") == b"1\n"
    assert case.refused("POST", "stash", {})["status"] == 409
    assert case.refused("POST", "commit", {"message": "x", "amend": True})["status"] == 409
    assert case.post("commit", message="root")["commit"]["parents"] == []


# --- hunks ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [0, 3])
def test_stage_unstage_and_discard_hunks(case: Case, context: int) -> None:
    case.write("a.txt", edited(1, 20, 38))
    ids = [hunk["id"] for hunk in hunks(case, "a.txt", context=context)]
    assert len(ids) == 3
    case.post("stage", hunks=[{"path": "a.txt", "ids": [ids[1]]}], context=context)
    assert (index(case, "a.txt"), case.read("a.txt")) == (edited(20), edited(1, 20, 38))
    (staged,) = hunks(case, "a.txt", target="index", context=context)
    left = [hunk["id"] for hunk in hunks(case, "a.txt", context=context)]
    case.post("discard", hunks=[{"path": "a.txt", "ids": [left[0]]}], context=context)
    assert (index(case, "a.txt"), case.read("a.txt")) == (edited(20), edited(20, 38))
    case.post("unstage", hunks=[{"path": "a.txt", "ids": [staged["id"]]}], context=context)
    assert (index(case, "a.txt"), case.read("a.txt")) == (edited(), edited(20, 38))
    gone = case.refused("POST", "unstage", {"hunks": [{"path": "a.txt", "ids": [staged["id"]]}], "context": context})
    assert (gone["code"], gone["path"], gone["hunk"]) == ("hunk_not_found", "a.txt", staged["id"])
    rest = [hunk["id"] for hunk in hunks(case, "a.txt", context=context)]
    case.post("stage", hunks=[{"path": "a.txt", "ids": rest}], context=context)
    assert index(case, "a.txt") == edited(20, 38) and case.files() == {"a.txt": ("modified", None)}


def test_hunks_of_several_files_or_of_none(case: Case) -> None:
    case.write("a.txt", edited(1, 30))
    case.write("b.txt", "changed\n")
    first = hunks(case, "a.txt")[0]["id"]
    other = hunks(case, "b.txt")[0]["id"]
    problem = case.refused(
        "POST", "stage", {"hunks": [{"path": "a.txt", "ids": [first]}, {"path": "b.txt", "ids": ["gone"]}]}
    )
    assert problem["code"] == "hunk_not_found" and case.files()["a.txt"] == (None, "modified")
    case.post("stage", hunks=[{"path": "a.txt", "ids": [first]}, {"path_bytes": "b.txt", "ids": [other]}])
    assert (index(case, "a.txt"), index(case, "b.txt")) == (edited(1), b"changed\n")


def test_hunks_of_names_of_all_kinds(case: Case) -> None:
    for name in NASTY:
        with open(os.path.join(os.fsencode(case.folder), name), "wb") as file:
            file.write(b"".join(BODY))
    case.git("add", "-A")
    case.git("commit", "-q", "-m", "nasty")
    for name in NASTY:
        with open(os.path.join(os.fsencode(case.folder), name), "wb") as file:
            file.write(edited(1, 30))
    for file in case.get("diff")["files"]:
        which = {key: file[key] for key in ("path_bytes",) if key in file} or {"path": file["path"]}
        case.post("stage", hunks=[{**which, "ids": [file["hunks"][0]["id"]]}])
    counts = {file["path"]: file["additions"] for file in case.get("diff", target="index")["files"]}
    assert len(counts) == len(NASTY) and set(counts.values()) == {1}
    assert {file["additions"] for file in case.get("diff")["files"]} == {1}


@pytest.mark.parametrize("content", [b"one\r\ntwo\r\n", b"no end", b"", b"\xff\xfe\n"])
def test_hunks_of_odd_contents(case: Case, content: bytes) -> None:
    case.commit({"odd": b"start\n" + content}, "odd")
    case.write("odd", b"start\n" + content + b"more\r\nno end")
    (hunk,) = hunks(case, "odd")
    case.post("stage", hunks=[{"path": "odd", "ids": [hunk["id"]]}])
    assert index(case, "odd") == b"start\n" + content + b"more\r\nno end" and case.files() == {
        "odd": ("modified", None)
    }


def test_hunks_of_a_new_and_a_gone_file(case: Case) -> None:
    case.write("new", "1\n2\n")
    case.git("add", "--intent-to-add", "new")
    (hunk,) = hunks(case, "new")
    case.post("stage", hunks=[{"path": "new", "ids": [hunk["id"]]}])
    assert index(case, "new") == b"1\n2\n"
    (case.folder / "b.txt").unlink()
    (hunk,) = hunks(case, "b.txt")
    case.post("discard", hunks=[{"path": "b.txt", "ids": [hunk["id"]]}])
    assert case.read("b.txt") == b"b\n"
