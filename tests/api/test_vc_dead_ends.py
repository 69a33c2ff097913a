"""What git leaves a person alone with: each is told with its way out, and the way out works."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.version_control import Case, Host, host
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.version_control import confinement


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("dead-ends")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    made = here.fresh()
    made.commit({"a.txt": b"a\n", "d/b.txt": b"b\n"}, "first")
    made.git("branch", "side")
    return made


def test_a_working_tree_whose_folder_is_gone(case: Case) -> None:
    tree = f"{case.path}-gone"
    case.post("worktrees", 201, worktree=tree, branch="side")
    for path in sorted(case.host.workspace.joinpath(tree).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    case.host.workspace.joinpath(tree).rmdir()
    for method, route, body in (
        ("POST", "worktrees", {"worktree": tree, "branch": "side"}), ("POST", "checkout", {"branch": "side"}), ("DELETE", "branches/side", None),
        ("POST", "worktrees", {"worktree": f"{tree}-2", "branch": "side"}),
    ):  # fmt: skip
        problem = case.refused(method, route, body)
        assert (problem["code"], problem["worktree"]) == ("worktree_gone", tree), (route, problem)
        assert tree in problem["detail"]
    assert case.ask("DELETE", "worktrees", worktree=tree).status == 200
    assert case.post("checkout", branch="side")["head"]["branch"] == "side"


def test_a_branch_in_a_working_tree_that_is_there(case: Case) -> None:
    tree = f"{case.path}-there"
    case.post("worktrees", 201, worktree=tree, branch="side")
    problem = case.refused("POST", "checkout", {"branch": "side"})
    assert (problem["code"], problem["worktree"]) == ("branch_checked_out", tree)


def test_a_repository_in_this_one_is_told(case: Case) -> None:
    inner = case.host.at(case.folder / "inner")
    inner.folder.mkdir()
    inner.git("init", "-q")
    inner.commit({"x": b"x\n"}, "inner")
    for body in ({"all": True}, {"paths": ["inner"]}):
        warnings = case.post("stage", **body)["warnings"]
        assert any("embedded git repository" in warning and "inner" in warning for warning in warnings)
        case.post("unstage", all=True)
    case.write("plain", "p\n")
    assert case.post("stage", paths=["plain"]) == {}


@pytest.mark.parametrize(
    ("route", "body"), [("checkout", {"branch": "main"}), ("merge", {"ref": "main"}), ("rebase", {"onto": "main"})]
)
def test_a_write_that_could_not_remove_a_file(case: Case, route: str, body: dict[str, str]) -> None:
    """A mount point, or another's folder: git goes on, and so says the answer. Not so what a hook says in its words."""
    hook = case.folder / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'error: a hook can not do it' >&2\n")
    hook.chmod(0o755)
    case.git("rm", "-q", "-r", "d")
    case.git("commit", "-q", "-m", "without")
    assert "warnings" not in case.post("checkout", branch="side")
    folder = case.folder / "d"
    held = ["chattr", "+i", str(folder)] if os.geteuid() == 0 else ["chmod", "a-w", str(folder)]
    if subprocess.run(held, capture_output=True, check=False).returncode != 0:
        pytest.skip("nothing here keeps root from removing a file")
    try:
        warnings = case.post(route, **body)["warnings"]
    finally:
        subprocess.run([held[0], held[1].translate(str.maketrans("+-", "-+")), held[2]], check=True)
    assert any("unable to unlink" in warning and "d/b.txt" in warning for warning in warnings)
    assert not any("hook" in warning for warning in warnings)


@pytest.mark.parametrize("own", [True, False])
def test_a_list_of_ignored_commits_that_is_not_there(case: Case, own: bool) -> None:
    config = case.folder / ".git/config" if own else Path(case.host.box.env["GIT_CONFIG_GLOBAL"])
    before = config.read_text()
    try:
        config.write_text(before + "\n[blame]\n\tignoreRevsFile = .no-such-file\n")
        problem = case.refused("GET", "blame", path=f"{case.path}/a.txt")
        assert (problem["code"], ".no-such-file" in problem["detail"]) == ("repository_invalid", True)
        case.write(".no-such-file", "")
        assert case.get("blame", path=f"{case.path}/a.txt")["lines"]
    finally:
        config.write_text(before)


@pytest.mark.parametrize("mark", ["--skip-worktree", "--assume-unchanged"])
def test_changes_that_no_status_shows(case: Case, mark: str) -> None:
    case.commit({"a.txt": b"changed\n"}, "second")
    case.git("update-index", mark, "a.txt")
    case.write("a.txt", "hidden\n")
    for more in ({}, {"local_changes": "stash"}, {"local_changes": "discard"}):
        if more == {"local_changes": "discard"} and mark == "--assume-unchanged":
            continue  # git takes it at its word, and discards it
        problem = case.refused("POST", "checkout", {"branch": "side", **more})
        assert (problem["code"], problem["hidden"]) == ("local_changes_in_way", ["a.txt"])
        assert "mark" in problem["detail"]
    problem = case.refused("POST", "discard", {"paths": ["a.txt"]})
    assert (problem["code"], problem["hidden"]) == ("local_changes_in_way", ["a.txt"])
    assert case.read("a.txt") == b"hidden\n"
    case.git("update-index", mark.replace("--", "--no-"), "a.txt")
    case.post("discard", paths=["a.txt"])
    assert case.post("checkout", branch="side")["head"]["branch"] == "side"


def test_a_file_that_is_only_announced_is_in_no_stash(case: Case) -> None:
    case.write("new", "new\n")
    case.write("a.txt", "changed\n")
    case.git("add", "--intent-to-add", "new")
    for route, body in (("stash", {}), ("checkout", {"branch": "side", "local_changes": "stash"})):
        problem = case.refused("POST", route, body)
        assert (problem["code"], problem["paths"]) == ("path_intended", ["new"]), route
    case.post("unstage", paths=["new"])
    case.post("stash", 201)
    assert case.read("new") == b"new\n"


@pytest.mark.parametrize("settings", [{"gpg.program": "false"}, {"gpg.program": "/no/such"}, {"gpg.format": "ssh"}])
def test_a_signature_that_fails(case: Case, settings: dict[str, str]) -> None:
    for key, value in {
        "commit.gpgSign": "true",
        "tag.gpgSign": "true",
        "user.signingKey": "/no/such/key",
        **settings,
    }.items():
        case.git("config", key, value)
    assert case.refused("POST", "commit", {"message": "m", "amend": True})["code"] == "signing_failed"
    if "gpg.program" in settings:  # of ssh some versions of git make a tag without a signature
        assert case.refused("POST", "tags", {"name": "v", "message": "m"})["code"] == "signing_failed"


def test_a_commit_of_a_file_that_is_not_tracked(case: Case) -> None:
    case.write("new", "new\n")
    problem = case.refused("POST", "commit", {"message": "m", "paths": ["a.txt", "new"]})
    assert (problem["code"], problem["path"]) == ("file_not_found", "new") and "stage it" in problem["detail"]
    problem = case.refused("POST", "commit", {"message": "m", "paths": ["gone"]})
    assert (problem["code"], problem["path"]) == ("file_not_found", "gone") and "stage it" not in problem["detail"]


def test_what_a_partial_clone_of_a_folder_lacks(here: Host, case: Case) -> None:
    case.git("config", "uploadpack.allowFilter", "true")
    case.git("config", "uploadpack.allowAnySHA1InWant", "true")
    here.box.git(
        here.workspace,
        "clone",
        "-q",
        "--no-checkout",
        "--filter=blob:none",
        f"file://{case.folder}",
        f"{case.path}-partial",
    )
    partial = here.at(here.workspace / f"{case.path}-partial")
    problem = partial.refused("GET", "blob", path=f"{partial.path}/a.txt")
    assert (problem["code"], problem["status"]) == ("object_missing", 409)
    partial.git("fetch", "-q", "--refetch", "--no-filter")
    assert partial.ask("GET", "blob", path=f"{partial.path}/a.txt").body == b"a\n"


@pytest.mark.parametrize("name", [".gitignore", ".gitattributes", "d/.gitignore", "d/.gitattributes"])
def test_what_git_would_wait_for(case: Case, name: str) -> None:
    """It is refused with its name, in a read and in a write, long before git has run out of its time."""
    os.mkfifo(case.folder / name)
    case.write("d/new", "n\n")
    for method, route, body in (("GET", "status", None), ("POST", "stage", {"all": True})):
        problem = case.refused(method, route, body)
        assert (problem["code"], name.rpartition("/")[2] in problem["detail"]) == ("repository_invalid", True), route
    (case.folder / name).unlink()
    assert case.post("stage", all=True) == {}


def test_more_names_than_can_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is behind the last one that is looked at may lead out, so it is refused and not passed over."""
    folder = tmp_path / "workspace/.git/refs/heads"
    folder.mkdir(parents=True)
    for number in range(20):
        (folder / f"b{number}").write_text("x")
    git_dir, workspace = (os.fsencode(path) for path in (tmp_path / "workspace/.git", tmp_path / "workspace"))
    confinement.all_must_stay(git_dir, workspace)
    monkeypatch.setattr(confinement, "_MAX_LOOKED", 20)
    with pytest.raises(WorkspaceError) as refused:
        confinement.all_must_stay(git_dir, workspace)
    assert refused.value.code == "repository_invalid" and "20" in refused.value.detail
