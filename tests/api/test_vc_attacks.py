"""Attacks on version control through the running, confined server: a repository that names programs, requests that would be options,
paths and repositories that lead out of the workspace."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import orjson
import pytest

from support.asking import Answer, ask
from support.confined import ConfinedServer, confined
from support.git_home import CONFIG, Sandbox
from support.hostile_repository import TRUSTED, HostileRepository

BASE = "/api/v1/workspaces/default/version-control"
READS = [
    "status", "status?untracked=normal&ignored=true", "status?untracked=no", "log", "log?q=first&author=ada", "log?ref=side..main",
    "log?path=hostile/a.txt", "branches", "tags", "remotes", "diff", "diff?target=index", "diff?target=main...side", "diff?target=HEAD~1",
    "diff?word_diff=true&ignore_whitespace=true", "diff?stat=true", "diff?format=patch", "diff?format=patch&target=index", "show",
    "show?ref=v1", "show?ref=HEAD~1&word_diff=true", "blob?path=hostile/a.txt", "blob?path=hostile/a.txt&ref=index", "blame?path=hostile/a.txt",
    "blame?path=hostile/a.txt&ref=HEAD", "commit/draft", "stash", "conflicts", "worktrees", "locks", "operations",
]  # fmt: skip


class Arena:
    """The server, git for the test itself, and a way to ask."""

    def __init__(self, server: ConfinedServer, sandbox: Sandbox) -> None:
        self.server = server
        self.sandbox = sandbox
        self.root = server.workspace

    def ask(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        """A request; never a failure of the server."""
        data = None if body is None else orjson.dumps(body)
        answer = ask(self.server.url, method, f"{BASE}/{target}", data, {"Content-Type": "application/json", **headers})
        assert answer.status != 500, (method, target, answer)
        return answer

    def post(self, action: str, where: str, **body: Any) -> Answer:
        """A change of the repository in a folder."""
        return self.ask("POST", f"{action}?path={quote(where)}", body)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("attack")
    (folder / "home").mkdir()
    (folder / "home" / ".gitconfig").write_text(CONFIG + '[protocol "file"]\n\tallow = always\n')
    with confined(folder) as server:
        yield Arena(server, Sandbox(folder / "workspace"))


@pytest.fixture(scope="module")
def hostile(arena: Arena) -> HostileRepository:
    return HostileRepository(arena.sandbox, arena.root / "hostile", arena.root / "marks")


def test_the_programs_would_run(arena: Arena, hostile: HostileRepository) -> None:
    """Else the tests below would show nothing: plain git does run them."""
    arena.sandbox.attempt(hostile.path, "-c", "alias.x=status", "status")
    arena.sandbox.attempt(hostile.path, "log", "-1")
    arena.sandbox.attempt(hostile.path, "diff")
    arena.sandbox.attempt(hostile.path, "fetch", "origin")
    arena.sandbox.attempt(hostile.path, "fetch", "secure")
    ran = hostile.ran()
    assert {"filter-process", "gpg", "ssh", "uploadpack"} <= set(ran), ran
    assert any("fsmonitor" in name or name == "included" for name in ran), ran
    hostile.forget()


@pytest.mark.parametrize("target", READS)
def test_no_read_runs_a_program_of_the_repository(arena: Arena, hostile: HostileRepository, target: str) -> None:
    hostile.forget()
    joiner = "&" if "?" in target else "?"
    full = target if "path=" in target else f"{target}{joiner}path=hostile"
    answer = arena.ask("GET", full)
    assert answer.status == 200, answer
    assert hostile.ran() == []


def test_a_read_changes_nothing_in_the_repository(arena: Arena, hostile: HostileRepository) -> None:
    def seen() -> dict[str, tuple[int, int]]:
        return {
            os.path.join(folder, name): (status.st_mtime_ns, status.st_size)
            for folder, _, names in os.walk(hostile.path)
            for name in names
            for status in [os.lstat(os.path.join(folder, name))]
        }

    before = seen()
    for target in READS:
        joiner = "&" if "?" in target else "?"
        arena.ask("GET", target if "path=" in target else f"{target}{joiner}path=hostile")
    assert seen() == before


def test_the_status_of_a_hostile_repository_is_right(arena: Arena, hostile: HostileRepository) -> None:
    files = {file["path"]: file for file in arena.ask("GET", "status?path=hostile").json["files"]}
    assert files["b.txt"]["index"] == "modified" and files["a.txt"]["worktree"] == "modified"
    assert files["new.txt"]["worktree"] == "untracked"
    assert files["inner"]["submodule"] == {"commit_changed": False, "modified": True, "untracked": False}


WRITES: list[tuple[str, dict[str, Any]]] = [
    ("stage", {"all": True}), ("unstage", {"all": True}), ("commit", {"message": "x", "all": True}), ("branches", {"name": "n1"}),
    ("tags", {"name": "t1", "message": "x"}), ("stash", {"include_untracked": True}), ("stash/0/pop", {}),
    ("checkout", {"branch": "side", "local_changes": "stash"}), ("checkout", {"branch": "main"}), ("merge", {"ref": "side"}),
    ("merge/abort", {}), ("rebase", {"onto": "side"}), ("rebase/abort", {}), ("discard", {"all": True, "untracked": True}),
    ("fetch", {"remote": "origin"}), ("fetch", {"remote": "program"}), ("fetch", {"remote": "helper"}), ("fetch", {"remote": "secure"}),
    ("fetch", {"remote": "plain"}), ("fetch", {"remote": "gits"}), ("fetch", {"remote": "rewritten"}), ("fetch", {"all": True}),
    ("pull", {"remote": "origin", "branch": "main", "mode": "merge"}), ("push", {"remote": "origin", "branch": "n1"}),
    ("push", {"remote": "program", "branch": "n1"}), ("push", {"remote": "plain", "branch": "n1"}),
    ("worktrees", {"worktree": "linked", "branch": "w1", "create": True}),
]  # fmt: skip


def test_writes_run_what_is_trusted_and_nothing_that_reaches_out(arena: Arena, hostile: HostileRepository) -> None:
    hostile.forget()
    for action, body in WRITES:
        arena.post(action, "hostile", **body)
        ran = [name for name in hostile.ran() if not name.startswith((*TRUSTED, "included"))]
        assert ran == [], (action, body)
    assert {"hook-pre-push", "filter-process"} <= set(hostile.ran()), "hooks and filters run as git runs them"


def test_without_trust_a_write_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text(CONFIG)
    with confined(tmp_path, "--trust-repository", "false") as server:
        arena = Arena(server, Sandbox(tmp_path / "workspace"))
        hostile = HostileRepository(arena.sandbox, arena.root / "hostile", arena.root / "marks")
        for action, body in WRITES:
            arena.post(action, "hostile", **body)
            assert hostile.ran() == [], (action, body)
        log = arena.ask("GET", "log?path=hostile&limit=1").json["items"]
        assert [commit["subject"] for commit in log] != ["signed"], "and yet it was committed"


# --- what is no name ----------------------------------------------------------------------------------------------------------------

OPTIONS = ["--output=/tmp/x", "-x", "--upload-pack=touch x", "--exec=x", "-", "--", "--all", "-O/etc/passwd"]


@pytest.fixture(scope="module")
def plain(arena: Arena) -> str:
    path = arena.sandbox.init("plain")
    arena.sandbox.commit(path, {"a.txt": b"a\n"}, "first")
    return "plain"


@pytest.mark.parametrize("word", [*OPTIONS, "a\nb", "", "x" * 2000])
def test_options_are_no_names(arena: Arena, plain: str, word: str) -> None:
    made = {"cloned", "made", "wt"}
    before = set(os.listdir(arena.root)) - made
    for route, name in [
        ("log", "ref"), ("diff", "target"), ("show", "ref"), ("blob", "ref"), ("blame", "ref"), ("log", "author"), ("log", "q"),
    ]:  # fmt: skip
        path = "plain/a.txt" if route in ("blob", "blame") else "plain"
        answer = arena.ask("GET", f"{route}?" + urlencode({"path": path, name: word}))
        if name in ("author", "q"):
            assert answer.status in (200, 422), (route, name, answer)
        else:
            assert answer.status in (404, 422), (route, name, answer)
    for action, body in [
        ("checkout", {"branch": word}), ("checkout", {"branch": word, "create": True}), ("checkout", {"branch": word, "detach": True}),
        ("checkout", {"branch": "n", "create": True, "start_point": word}), ("branches", {"name": word}),
        ("branches", {"name": "ok", "start_point": word}), ("branches/rename", {"name": "main", "new_name": word}), ("tags", {"name": word}),
        ("tags", {"name": "ok", "ref": word}), ("merge", {"ref": word}), ("rebase", {"onto": word}), ("push", {"remote": word}),
        ("push", {"branch": word}), ("push", {"remote": "origin", "branch": "main", "force_with_lease": word}), ("pull", {"remote": word}),
        ("pull", {"branch": word}), ("fetch", {"remote": word}), ("remotes", {"name": word, "url": "https://127.0.0.1/x"}),
        ("remotes", {"name": "ok", "url": word}), ("clone", {"url": word, "path": "cloned"}), ("stash/" + quote(word or " "), {}),
        ("clone", {"url": "https://127.0.0.1:9/x", "branch": word, "path": "cloned"}), ("init", {"path": "made", "initial_branch": word}),
        ("worktrees", {"worktree": "wt", "branch": word}), ("worktrees", {"worktree": "wt", "branch": "b", "create": True, "start_point": word}),
    ]:  # fmt: skip
        target = action if action in ("clone", "init") else f"{action}?path=plain"
        answer = arena.ask("POST", f"{target}{'&' if '?' in target else '?'}wait=true", body)
        allowed = (400, 404, 405, 409, 422) if word else (200, 201, 400, 404, 405, 409, 422)
        assert answer.status in allowed, (action, body, answer)
    for route in ("branches", "tags", "remotes"):
        answer = arena.ask("DELETE", f"{route}/{quote(word or ' ', safe='')}?path=plain")
        assert answer.status in (404, 405, 422), (route, answer)
    assert set(os.listdir(arena.root)) - made == before


@pytest.mark.parametrize("path", ["../plain", "/etc", "a/../../x", "./a", "a//b", "%00"])
def test_paths_that_lead_out(arena: Arena, plain: str, path: str) -> None:
    for route in ("status", "log", "diff", "blob", "blame", "branches"):
        assert arena.ask("GET", f"{route}?path={path}").status == 400, route
    body_path = "a\0b" if path == "%00" else path
    for action in ("stage", "unstage", "discard"):
        assert arena.post(action, "plain", paths=[body_path]).status == 400, action
    assert arena.post("commit", "plain", message="x", paths=[body_path]).status == 400
    assert arena.post("conflicts/resolve", "plain", paths=[body_path], use="ours").status == 400
    assert arena.ask("POST", "init", {"path": body_path}).status == 400
    assert arena.ask("POST", "clone", {"url": "https://127.0.0.1:9/x", "path": body_path}).status == 400
    assert arena.post("worktrees", "plain", worktree=body_path, branch="z", create=True).status == 400


# --- repositories that lead out of the workspace --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secret(arena: Arena) -> Path:
    """A repository beside the workspace, with what nobody may read."""
    path = arena.server.folder / "secret"
    sandbox = Sandbox(arena.server.folder)
    sandbox.init("secret")
    sandbox.commit(path, {"secret.txt": b"CANARY\n"}, "CANARY message")
    return path


def _leads_out(arena: Arena, secret: Path, how: str) -> str:
    folder = arena.root / f"out-{how}"
    folder.mkdir()
    git = folder / ".git"
    if how == "file":
        git.write_text(f"gitdir: {secret}/.git\n")
    elif how == "link":
        git.symlink_to(secret / ".git")
    elif how == "commondir":
        arena.sandbox.git(folder, "init", "--quiet", ".")
        (git / "commondir").write_text(f"{secret}/.git\n")
    elif how == "objects":
        arena.sandbox.git(folder, "init", "--quiet", ".")
        for name in ("objects", "refs"):
            for below in sorted((git / name).rglob("*"), reverse=True):
                below.rmdir() if below.is_dir() else below.unlink()
            (git / name).rmdir()
            (git / name).symlink_to(secret / ".git" / name)
    elif how == "worktree":
        arena.sandbox.git(folder, "init", "--quiet", ".")
        arena.sandbox.git(folder, "config", "core.worktree", str(secret))
    elif how == "worktree-relative":
        arena.sandbox.git(folder, "init", "--quiet", ".")
        arena.sandbox.git(folder, "config", "core.worktree", "../../../secret")
    return folder.name


@pytest.mark.parametrize("how", ["file", "link", "commondir", "objects", "worktree", "worktree-relative"])
def test_a_repository_that_leads_out_is_refused(arena: Arena, secret: Path, how: str) -> None:
    name = _leads_out(arena, secret, how)
    for route in (
        "status",
        "log",
        "branches",
        "diff",
        "show",
        "commit/draft",
        "stash",
        "worktrees",
        "tags",
        "remotes",
        "conflicts",
        "locks",
    ):
        answer = arena.ask("GET", f"{route}?path={name}")
        assert (answer.status, answer.code) == (409, "repository_outside_workspace"), (route, answer)
        assert b"CANARY" not in answer.body
    for action, body in (
        ("stage", {"all": True}),
        ("commit", {"message": "x"}),
        ("checkout", {"branch": "main"}),
        ("discard", {"all": True}),
    ):
        assert arena.post(action, name, **body).code == "repository_outside_workspace", action
    assert (secret / "secret.txt").read_bytes() == b"CANARY\n"


def test_a_link_out_of_the_workspace_is_no_way_to_a_repository(arena: Arena, secret: Path) -> None:
    (arena.root / "way-out").symlink_to(secret)
    for route in ("status", "log", "blob", "blame"):
        answer = arena.ask("GET", f"{route}?path=way-out/secret.txt")
        assert answer.status in (403, 404) and b"CANARY" not in answer.body, (route, answer)


def test_clones_and_worktrees_stay_inside(arena: Arena, plain: str, secret: Path) -> None:
    (arena.root / "away").symlink_to(arena.server.folder)
    source = str(arena.root / "plain")
    assert arena.ask("POST", "clone?wait=true", {"url": source, "path": "away/cloned"}).status == 403
    assert arena.post("worktrees", "plain", worktree="away/linked", branch="q", create=True).status == 403
    assert arena.ask("POST", "init", {"path": "away/made"}).status == 403
    assert not {"cloned", "linked", "made"} & set(os.listdir(arena.server.folder))


def test_a_file_through_a_link_is_not_staged_or_restored(arena: Arena, plain: str) -> None:
    outside = arena.server.folder / "victim"
    outside.mkdir(exist_ok=True)
    (outside / "a.txt").write_text("keep\n")
    repository = arena.sandbox.init("linked-inside")
    arena.sandbox.commit(repository, {"d/a.txt": b"tracked\n"}, "first")
    (repository / "d" / "a.txt").unlink()
    (repository / "d").rmdir()
    (repository / "d").symlink_to(outside)
    arena.post("discard", "linked-inside", paths=["d/a.txt"])
    arena.post("discard", "linked-inside", paths=["d"], untracked=True)
    arena.post("discard", "linked-inside", all=True, untracked=True)
    arena.post("checkout", "linked-inside", branch="main", local_changes="discard")
    assert (outside / "a.txt").read_text() == "keep\n"


# --- what would wait for ever ----------------------------------------------------------------------------------------------------------

IN_GIT = [
    "HEAD",
    "config",
    "index",
    "packed-refs",
    "shallow",
    "info/exclude",
    "info/attributes",
    "MERGE_HEAD",
    "commondir",
    "config.worktree",
]


@pytest.mark.parametrize("name", IN_GIT)
def test_a_fifo_in_place_of_gits_own_file(arena: Arena, name: str) -> None:
    folder = "fifo-" + name.replace("/", "-")
    repository = arena.sandbox.init(folder)
    arena.sandbox.commit(repository, {"a.txt": b"a\n"}, "first")
    place = repository / ".git" / name
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    began = time.monotonic()
    for route in ("status", "log", "branches", "diff", "show", "blob?path=" + folder + "/a.txt"):
        answer = arena.ask("GET", route if "?" in route else f"{route}?path={folder}")
        assert answer.status in (404, 409), (route, answer)
    assert time.monotonic() - began < 20, "it waited"


@pytest.mark.parametrize("name", [".git", ".gitmodules", ".mailmap"])
def test_a_fifo_beside_the_files(arena: Arena, name: str) -> None:
    folder = "fifo" + name
    repository = arena.sandbox.init(folder)
    arena.sandbox.commit(repository, {"a.txt": b"a\n"}, "first")
    if name == ".git":
        (repository / ".git").rename(repository / "moved")
    os.mkfifo(repository / name)
    for route in ("status", "log", "diff", f"blame?path={folder}/a.txt"):
        answer = arena.ask("GET", route if "?" in route else f"{route}?path={folder}")
        refused = name == ".git" or (name == ".mailmap" and route.startswith("blame"))
        assert answer.status == (409 if refused else 200), (route, answer)


@pytest.mark.parametrize("name", [".gitignore", ".gitattributes"])
def test_a_git_that_hangs_is_stopped(arena: Arena, name: str) -> None:
    """These git opens itself, in every folder: what would open them is refused, and the file is named."""
    folder = "hang" + name
    repository = arena.sandbox.init(folder)
    arena.sandbox.commit(repository, {"a.txt": b"a\n"}, "first")
    (repository / "a.txt").write_text("changed\n")
    os.mkfifo(repository / name)
    answer = arena.ask("GET", f"status?path={folder}")
    assert (answer.status, answer.code) == (409, "repository_invalid")
    assert name in answer.json["detail"]
    assert arena.ask("GET", f"log?path={folder}").status == 200
