"""How merges and rebases are settled by HTTP: conflicts of all kinds, the messages that are recorded, what an autostash leaves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.version_control import Case, Host, host


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("settling")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    """`a` differs on `main` and on `side`; the message of `main` has lines that begin like comments."""
    made = here.fresh()
    made.commit({"a": b"base\n", "b": b"b\n"}, "base")
    made.git("checkout", "-q", "-b", "side")
    made.commit({"a": b"side\n"}, "side")
    made.git("checkout", "-q", "main")
    made.write("a", "main\n")
    made.git("commit", "-q", "-a", "--cleanup=verbatim", "-F", "-", input=MESSAGE.encode())
    return made


MESSAGE = "#42 mend it\n\n# Heading\ntext\n"


def message(case: Case, ref: str = "HEAD") -> str:
    """The message of a commit, as it is."""
    return case.git("cat-file", "commit", ref).partition("\n\n")[2]


def settled(case: Case, use: str = "worktree", *paths: str) -> None:
    """All conflicts of `a` (or of these paths) are resolved; nothing is left."""
    assert case.post("conflicts/resolve", paths=list(paths or ["a"]), use=use)["items"] == []


# --- submodules, folders, sparse checkouts ------------------------------------------------------------------------------------


@pytest.fixture
def modules(here: Host) -> tuple[Case, dict[str, str]]:
    """A submodule `sub` with a conflict, and the commits of the three sides; a fourth is checked out in it."""
    made = here.fresh()
    inner = here.init(f"{made.path}/sub")
    base = inner.commit({"x": b"base\n"}, "base")
    oids = {"base": base}
    for side in ("ours", "theirs", "present"):
        inner.git("checkout", "-q", "--detach", base)
        oids[side] = inner.commit({"x": side.encode()}, side)
    for side, branch in (("base", "main"), ("theirs", "theirs"), ("ours", "main")):
        made.git("checkout", "-q", *(["-b"] if branch == "theirs" else []), branch) if side != "base" else None
        inner.git("checkout", "-q", oids[side])
        made.git("-c", "advice.addEmbeddedRepo=false", "add", "sub")
        made.git("commit", "-q", "-m", side)
    assert made.refused("POST", "merge", {"ref": "theirs"})["files"] == ["sub"]
    inner.git("checkout", "-q", oids["present"])
    return made, oids


@pytest.mark.parametrize("use", ["ours", "theirs", "base", "worktree"])
def test_a_side_of_a_submodule(modules: tuple[Case, dict[str, str]], use: str) -> None:
    case, oids = modules
    settled(case, use, "sub")
    wanted = oids["present" if use == "worktree" else use]
    assert case.git("ls-files", "--stage", "sub") == f"160000 {wanted} 0\tsub"
    assert case.git("-C", "sub", "rev-parse", "HEAD") == oids["present"]
    case.post("merge/continue")
    assert case.git("rev-parse", "HEAD:sub") == wanted


def test_a_submodule_that_a_side_has_removed_keeps_its_folder(here: Host) -> None:
    case = here.fresh()
    inner = here.init(f"{case.path}/sub")
    for name in ("one", "two"):
        inner.commit({"x": name.encode()}, name)
    inner.git("checkout", "-q", "HEAD~1")
    case.git("-c", "advice.addEmbeddedRepo=false", "add", "sub")
    case.git("commit", "-q", "-m", "base")
    case.git("checkout", "-q", "-b", "theirs")
    case.git("rm", "-q", "--cached", "sub")
    case.git("commit", "-q", "-m", "gone")
    case.git("checkout", "-q", "-f", "main")
    inner.git("checkout", "-q", "main")
    case.git("commit", "-q", "-a", "-m", "two")
    assert case.refused("POST", "merge", {"ref": "theirs"})["code"] == "merge_conflict"
    inner.write("x", "precious\n")
    settled(case, "theirs", "sub")
    assert case.git("ls-files") == "" and inner.read("x") == b"precious\n"
    case.post("merge/continue")
    assert case.git("ls-tree", "HEAD") == ""


def test_all_conflicts_in_a_folder(here: Host) -> None:
    case = here.fresh()
    names = ["dd/a", "dd/e/b", "ddx"]
    case.commit(dict.fromkeys(names, b"base\n"), "base")
    case.git("branch", "side")
    case.commit(dict.fromkeys(names, b"ours\n"), "ours")
    case.git("checkout", "-q", "side")
    case.commit(dict.fromkeys(names, b"theirs\n"), "theirs")
    case.refused("POST", "merge", {"ref": "main"})
    assert case.refused("POST", "conflicts/resolve", {"paths": ["d"], "use": "ours"})["code"] == "conflict_not_found"
    left = case.post("conflicts/resolve", paths=["dd"], use="theirs")["items"]
    assert [item["path"] for item in left] == ["ddx"]
    assert [case.read(name) for name in names[:2]] == [b"ours\n"] * 2


@pytest.mark.parametrize("use", ["ours", "theirs", "base", "worktree", "gone"])
def test_conflicts_outside_of_a_sparse_checkout(here: Host, use: str) -> None:
    case = here.fresh()
    case.commit({"in/a": b"a\n", "out/b": b"base\n"}, "base")
    case.git("checkout", "-q", "-b", "side")
    if use == "gone":
        case.git("rm", "-q", "out/b")
    case.commit({} if use == "gone" else {"out/b": b"theirs\n"}, "theirs")
    case.git("checkout", "-q", "main")
    case.commit({"out/b": b"ours\n"}, "ours")
    case.git("sparse-checkout", "set", "in")
    assert case.refused("POST", "merge", {"ref": "side"})["files"] == ["out/b"]
    case.write("out/b", "mine\n")
    settled(case, "theirs" if use == "gone" else use, "out/b")
    case.post("merge/continue")
    if use == "gone":
        assert case.git("ls-files") == "in/a" and not (case.folder / "out/b").exists()
    else:
        assert case.git("show", "HEAD:out/b") == {"worktree": "mine"}.get(use, use)


# --- messages -------------------------------------------------------------------------------------------------------------------


def test_a_rebase_keeps_the_message(case: Case) -> None:
    case.refused("POST", "rebase", {"onto": "side"})
    case.write("a", "resolved\n")
    settled(case)
    assert case.post("rebase/continue")["operation"] is None
    assert message(case) + "\n" == MESSAGE and case.git("show", "HEAD:a") == "resolved"


def test_a_rebase_that_puts_messages_together_keeps_out_the_comments(case: Case) -> None:
    """Begun in a terminal; git's own lines between the messages are no part of them."""
    case.commit({"a": b"more\n"}, "more")
    env = {"GIT_SEQUENCE_EDITOR": "sed -i -e 2s/pick/squash/", "GIT_EDITOR": ":"}
    assert case.host.box.attempt(case.folder, "rebase", "-i", "side", env=env).returncode != 0
    for content, status in (("one\n", 409), ("two\n", 200)):
        case.write("a", content)
        settled(case)
        assert case.ask("POST", "rebase/continue").status == status
    assert (message(case), case.git("show", "HEAD:a")) == ("text\n\nmore", "two")


@pytest.mark.parametrize("kind", ["merge", "cherry-pick", "revert"])
def test_what_is_continued_keeps_the_message(case: Case, kind: str) -> None:
    """And has none of the lines that git writes below it about the conflicts."""
    wanted = "Title\n\n# Heading\ntext"
    if kind == "merge":
        case.refused("POST", "merge", {"ref": "side", "message": wanted})
    elif kind == "cherry-pick":
        wanted = MESSAGE.strip()
        picked = case.head()
        case.git("checkout", "-q", "side")
        assert case.attempt("cherry-pick", picked) != 0
    else:
        case.commit({"a": b"later\n"}, "#43 later")
        case.commit({"a": b"latest\n"}, "latest")
        assert case.attempt("revert", "--no-edit", "HEAD~1") != 0
        wanted = f'Revert "#43 later"\n\nThis reverts commit {case.git("rev-parse", "HEAD~1")}.'
    case.write("a", "resolved\n")
    settled(case)
    assert case.post(f"{kind}/continue")["operation"] is None
    assert message(case) == wanted and case.git("show", "HEAD:a") == "resolved"
    assert len(case.git("rev-list", "--parents", "-1", "HEAD").split()) == (3 if kind == "merge" else 2)


def test_several_picks_go_on_after_one(case: Case) -> None:
    first = case.head()
    case.commit({"b": b"second\n"}, "#second")
    case.git("commit", "-q", "--amend", "--cleanup=verbatim", "-m", "#second")
    case.git("checkout", "-q", "side")
    assert case.attempt("cherry-pick", f"{first}~1..main") != 0
    assert case.refused("POST", "cherry-pick/continue")["code"] == "merge_conflict"
    settled(case, "theirs")
    assert case.post("cherry-pick/continue")["operation"] is None
    assert [message(case, "HEAD~1") + "\n", message(case)] == [MESSAGE, "#second"]


@pytest.mark.parametrize("mode", [None, "squash"])
@pytest.mark.parametrize("ref", ["side", "refs/heads/side", "origin/side", "hidden", "oid"])
def test_the_name_beside_lines_that_conflict(case: Case, ref: str, mode: str | None) -> None:
    oid = case.git("rev-parse", "side")
    wanted = ref
    if ref == "origin/side":
        case.git("update-ref", "refs/remotes/origin/side", oid)
    elif ref == "hidden":  # a tag of the same name goes before the branch
        case.git("branch", "hidden")
        case.git("tag", "hidden", oid)
        wanted = oid
    elif ref == "oid":
        ref = wanted = oid
    case.refused("POST", "merge", {"ref": ref, "mode": mode})
    assert case.read("a").splitlines()[-1].decode() == f">>>>>>> {wanted}"


@pytest.mark.parametrize("given", [None, "mine"])
def test_the_list_of_commits_stands_once(here: Host, given: str | None) -> None:
    case = here.fresh()
    case.commit({"a": b"a\n"}, "base")
    case.git("checkout", "-q", "-b", "side")
    case.commit({"b": b"b\n"}, "the only one")
    case.git("checkout", "-q", "main")
    case.commit({"c": b"c\n"}, "ours")
    case.git("config", "merge.log", "true")
    case.post("merge", ref="side", message=given)
    text = message(case)
    assert text.count("the only one") == 1 and text.startswith(given or "Merge branch 'side'")


# --- what is left, or in the way ------------------------------------------------------------------------------------------------


@pytest.fixture
def behind(case: Case) -> Case:
    """`main` is one commit behind `origin/main`, whose `b` differs from that in the working tree."""
    case.git("branch", "-q", "next")
    case.git("checkout", "-q", "next")
    case.commit({"b": b"next\n"}, "next")
    case.git("checkout", "-q", "main")
    case.git("clone", "-q", "--bare", ".", f"{case.folder}.origin")
    case.git("-C", f"{case.folder}.origin", "update-ref", "refs/heads/main", "next")
    case.git("remote", "add", "origin", f"{case.folder}.origin")
    case.git("config", "branch.main.remote", "origin")
    case.git("config", "branch.main.merge", "refs/heads/main")
    return case


@pytest.mark.parametrize("how", ["rebase", "pull ff-only", "pull rebase", "pull merge", "merge", "merge/continue"])
def test_an_autostash_that_conflicts_is_told(behind: Case, how: str) -> None:
    case = behind
    route, _, mode = how.partition(" ")
    bodies: dict[str, dict[str, Any]] = {
        "rebase": {"onto": "next", "autostash": True},
        "pull": {"mode": mode, "autostash": True},
        "merge": {"ref": "next"},
    }
    if route.startswith("merge"):
        case.git("config", "merge.autoStash", "true")
    case.write("b", "mine\n")
    if route == "merge/continue":
        case.git("checkout", "-q", "-b", "both", "side")
        case.commit({"b": b"other\n"}, "other")
        case.git("checkout", "-q", "main")
        case.write("b", "mine\n")
        case.refused("POST", "merge", {"ref": "both"})
        settled(case, "ours")
    answer = case.post(route, **bodies.get(route, {}))
    assert answer["files"] == ["b"]
    assert [stash["oid"] for stash in case.get("stash")["items"]] == [answer["stash"]]
    assert case.git("show", f"{answer['stash']}:b") == "mine" and case.status()["operation"] is None


@pytest.mark.parametrize("step", ["continue", "abort"])
def test_an_autostash_that_came_back_is_not_told(behind: Case, step: str) -> None:
    case = behind
    case.write("b", "mine\n")
    case.refused("POST", "rebase", {"onto": "side", "autostash": True})
    settled(case)
    answer = case.post(f"rebase/{step}")
    assert (answer["stash"], answer["files"], case.read("b")) == (None, [], b"mine\n")


@pytest.mark.parametrize("how", ["merge", "pull", "rebase"])
def test_staged_changes_in_the_way_are_named(behind: Case, how: str) -> None:
    case = behind
    case.commit({"c": b"c\n"}, "apart")
    case.write("a", "mine\n")
    case.write("new file", "mine\n")
    case.git("add", "a", "new file")
    body: dict[str, Any] = {"merge": {"ref": "next"}, "pull": {"mode": "merge"}, "rebase": {"onto": "next"}}[how]
    problem = case.refused("POST", how, body)
    assert (problem["code"], problem["paths"]) == ("local_changes_in_way", ["a", "new file"])


def test_a_stash_that_conflicts(case: Case) -> None:
    case.write("b", "mine\n")
    case.post("stash", 201)
    case.commit({"b": b"other\n"}, "other")
    for step in ("pop", "apply"):
        problem = case.refused("POST", f"stash/0/{step}")
        assert (problem["code"], problem["files"], problem["operation"]) == ("merge_conflict", ["b"], None)
        assert len(case.get("stash")["items"]) == 1
        case.git("reset", "-q", "--hard")


# --- where the repository is not trusted ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("wary"), env={"TRUST_REPOSITORY": "false"}) as made:
        yield made


@pytest.mark.parametrize(
    "line", ["exec\ttouch ran", "x\ttouch ran", "  exec touch ran", "\tx touch ran", "pick", "link"]
)
def test_commands_of_a_rebase_are_found(wary: Host, line: str) -> None:
    case = wary.fresh()
    case.commit({"a": b"a\n"}, "base")
    case.commit({"a": b"b\n"}, "second")
    env = {"GIT_SEQUENCE_EDITOR": "sed -i s/^pick/edit/"}
    case.git("rebase", "-q", "-i", "HEAD~1", env=env)
    todo = case.folder / ".git/rebase-merge/git-rebase-todo"
    if line == "link":
        (case.folder / ".git/todo").write_text("exec touch ran\n")
        todo.unlink()
        todo.symlink_to("../todo")
    else:
        todo.write_text("" if line == "pick" else line + "\n")
    if line == "pick":
        assert case.post("rebase/continue")["operation"] is None
    else:
        assert case.refused("POST", "rebase/continue")["code"] == "step_not_possible"
    assert not (case.folder / "ran").exists()


def test_nothing_is_pushed_to_a_path(wary: Host, tmp_path: Path) -> None:
    case = wary.fresh()
    case.commit({"a": b"a\n"}, "base")
    wary.box.git(tmp_path, "init", "-q", "--bare", "there")
    hook = tmp_path / "there/hooks/pre-receive"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    case.git("remote", "add", "there", str(tmp_path / "there"))
    assert case.refused("POST", "push", {"remote": "there", "branch": "main"})["code"] == "remote_url_refused"
    assert not (tmp_path / "ran").exists()
