"""git empties what is mounted in what it deletes: so nothing is deleted where something is mounted, and the mount point is named."""

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.confined import ConfinedServer, confined
from support.git_home import Sandbox
from support.mounting import Mounting, needs_root, precious
from support.version_control import Case, Host
from support.waiting import until

pytestmark = needs_root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConfinedServer]:
    with confined(tmp_path_factory.mktemp("mounts"), env={"GIT_CONFIG_NOSYSTEM": "1"}) as started:
        yield started


@pytest.fixture(scope="module")
def here(server: ConfinedServer) -> Iterator[Host]:
    with server.client() as client:
        yield Host(server, Sandbox(server.folder), client)


@pytest.fixture
def mounts(server: ConfinedServer) -> Mounting:
    return Mounting(server)


@pytest.fixture
def case(here: Host) -> Case:
    made = here.fresh()
    made.commit({"f": b"1\n", "t/x": b"1\n", ".gitignore": b"*.log\n"}, "first")
    return made


@pytest.fixture
def outside(server: ConfinedServer, case: Case) -> Path:
    """A folder outside of the workspace, with something precious in it."""
    return precious(server.folder / f"outside-{case.folder.name}")


def bound(mounts: Mounting, source: Path, case: Case, name: str) -> None:
    """Show something at this place of the working tree, too."""
    target = case.folder / name
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mounts.bind(source, target)


def is_refused(case: Case, route: str, point: str, /, **body: object) -> None:
    problem = case.refused("POST", route, body)
    assert (problem["code"], problem["status"], problem.get("path")) == ("file_busy", 409, point), problem
    assert repr(point) in problem["detail"]


DISCARDS = [{"paths": ["unt"]}, {"all": True}]
STASHES: list[dict[str, object]] = [{}, {"paths": ["unt"]}]


# --- discard ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["unt/data", "unt/a b/\"q'/é"])
@pytest.mark.parametrize("body", DISCARDS)
def test_a_discard_refuses_what_has_a_mount_in_it(
    case: Case, mounts: Mounting, outside: Path, place: str, body: dict[str, object]
) -> None:
    case.write("f", "changed\n")
    case.write("unt/src", "x")
    bound(mounts, outside, case, place)
    is_refused(case, "discard", place, untracked=True, **body)
    assert (outside / "db").read_text() == "precious"
    assert (case.read("f"), case.read("unt/src")) == (b"changed\n", b"x"), "nothing was touched"
    mounts.unmount(case.folder / place)
    case.post("discard", untracked=True, **body)
    assert not (case.folder / "unt").exists()


@pytest.mark.parametrize("body", [*DISCARDS, {"paths": ["unt/file"]}])
def test_a_file_that_is_mounted_counts(case: Case, mounts: Mounting, outside: Path, body: dict[str, object]) -> None:
    case.write("unt/a", "x")
    bound(mounts, outside / "db", case, "unt/file")
    is_refused(case, "discard", "unt/file", untracked=True, **body)
    assert case.read("unt/a") == b"x"


def test_a_discard_of_all_does_not_go_into_a_mount_over_a_tracked_folder(
    case: Case, mounts: Mounting, outside: Path
) -> None:
    (outside / "x").write_text("1\n")
    bound(mounts, outside, case, "t")
    is_refused(case, "discard", "t", untracked=True, all=True)
    assert (outside / "db").read_text() == "precious"
    # what is named inside of it is meant
    case.post("discard", untracked=True, paths=["t/db"])
    assert not (outside / "db").exists()


def test_a_discard_of_what_stands_in_place_of_a_file_refuses_mounts(
    case: Case, mounts: Mounting, outside: Path
) -> None:
    (case.folder / "f").unlink()
    bound(mounts, outside, case, "f/data")
    is_refused(case, "discard", "f/data", untracked=True, all=True)
    assert (outside / "db").read_text() == "precious"


def test_a_discard_of_what_is_announced_refuses_mounts(case: Case, mounts: Mounting, outside: Path) -> None:
    case.write("g", "x")
    case.write("h", "x")
    case.git("add", "--intent-to-add", "g", "h")
    mounts.bind(outside / "db", case.folder / "h")
    is_refused(case, "discard", "h", untracked=True, all=True)
    assert case.read("g") == b"x"


def test_a_mount_elsewhere_blocks_no_discard(case: Case, mounts: Mounting, outside: Path) -> None:
    case.write("f", "changed\n")
    case.write("unt/src", "x")
    case.write("untouched", "x")
    bound(mounts, outside, case, "elsewhere")
    bound(mounts, outside, case, "unt2")
    case.post("discard", untracked=True, paths=["f", "unt"])
    assert (case.read("f"), (case.folder / "unt").exists()) == (b"1\n", False)
    assert (outside / "db").read_text() == "precious"


@pytest.mark.parametrize("place", ["unt/kept.log/data", "unt/nested/data"])
def test_a_mount_in_what_stays_blocks_no_discard(case: Case, mounts: Mounting, outside: Path, place: str) -> None:
    case.write("unt/src", "x")
    case.host.box.git(case.folder, "init", "--quiet", "unt/nested")
    bound(mounts, outside, case, place)
    case.post("discard", untracked=True, all=True)
    assert not (case.folder / "unt/src").exists()
    assert (outside / "db").read_text() == "precious"


def test_changes_of_tracked_files_are_undone_beside_mounts(case: Case, mounts: Mounting, outside: Path) -> None:
    case.write("f", "changed\n")
    bound(mounts, outside, case, "unt/data")
    case.post("discard", all=True)
    assert case.read("f") == b"1\n"


# --- stashes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", STASHES)
def test_a_stash_of_untracked_files_refuses_mounts(
    case: Case, mounts: Mounting, outside: Path, body: dict[str, object]
) -> None:
    case.write("f", "changed\n")
    case.write("unt/src", "x")
    bound(mounts, outside, case, "unt/data")
    is_refused(case, "stash", "unt/data", include_untracked=True, **body)
    assert (outside / "db").read_text() == "precious"
    assert case.read("f") == b"changed\n"
    assert case.git("stash", "list") == ""
    # one of tracked files alone is fine
    case.post("stash", 201)
    assert case.read("f") == b"1\n"


def test_a_stash_refuses_a_mount_in_what_stands_in_place_of_a_file(case: Case, mounts: Mounting, outside: Path) -> None:
    (case.folder / "f").unlink()
    bound(mounts, outside, case, "f/data")
    is_refused(case, "stash", "f/data")
    assert (outside / "db").read_text() == "precious"


def test_a_checkout_that_stashes_refuses_mounts(case: Case, mounts: Mounting, outside: Path) -> None:
    case.git("branch", "other")
    case.write("f", "changed\n")
    bound(mounts, outside, case, "unt/data")
    is_refused(case, "checkout", "unt/data", branch="other", local_changes="stash")
    assert (outside / "db").read_text() == "precious"
    assert case.git("branch", "--show-current") == "main"


def test_an_abort_refuses_a_mount_in_what_stands_in_place_of_a_file(
    case: Case, mounts: Mounting, outside: Path
) -> None:
    case.git("switch", "-q", "-c", "side")
    case.commit({"f": b"theirs\n"}, "theirs")
    case.git("switch", "-q", "main")
    case.commit({"f": b"ours\n"}, "ours")
    assert case.attempt("rebase", "side") != 0
    (case.folder / "t/x").unlink()
    bound(mounts, outside, case, "t/x/data")
    is_refused(case, "rebase/abort", "t/x/data")
    assert (outside / "db").read_text() == "precious"
    assert case.status()["operation"]["kind"] == "rebase"


# --- working trees and clones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("place", ["mnt", "kept.log"])
def test_a_working_tree_with_a_mount_in_it_is_not_removed(
    case: Case, mounts: Mounting, outside: Path, force: bool, place: str
) -> None:
    tree = f"{case.folder.name}-tree-{force}-{place}"
    case.post("worktrees", 201, worktree=tree, branch="side", create=True)
    added = case.host.at(case.host.workspace / tree)
    bound(mounts, outside, added, place)
    problem = case.refused("DELETE", "worktrees", worktree=tree, force=force)
    assert (problem["code"], problem["path"]) == ("file_busy", f"{tree}/{place}")
    assert (outside / "db").read_text() == "precious"
    assert added.read("f") == b"1\n"
    mounts.unmount(added.folder / place)
    assert case.ask("DELETE", "worktrees", worktree=tree, force=True).status == 200
    assert not added.folder.exists()


def test_a_working_tree_that_failed_is_not_taken_back_with_a_mount_in_it(
    case: Case, server: ConfinedServer, mounts: Mounting, outside: Path
) -> None:
    """A hook hangs when the tree is there, and something is mounted in it meanwhile; then the work is cancelled."""
    tree, made = f"{case.folder.name}-tree", server.folder / "made"
    hook = case.write(".git/hooks/post-checkout", f"#!/bin/sh\ntouch {made}\nsleep 1000\n")
    hook.chmod(0o755)
    with ThreadPoolExecutor() as executor:
        adding = executor.submit(
            case.refused, "POST", "worktrees", {"worktree": tree, "branch": "side", "create": True}
        )
        asyncio.run(until(made.exists))
        bound(mounts, outside, case.host.at(case.host.workspace / tree), "mnt")
        at_work = next(one for one in case.get("operations")["items"] if one["status"] == "running")
        case.ask("DELETE", f"operations/{at_work['id']}")
        assert adding.result()["code"] == "operation_cancelled"
    assert (outside / "db").read_text() == "precious"


def test_half_a_clone_with_a_mount_in_it_stays(server: ConfinedServer, mounts: Mounting, outside: Path) -> None:
    """As a server that was killed has left one."""
    left = server.workspace / ".workspace-runtime-0123456789abcdef.tmp"
    (left / "a").mkdir(parents=True)
    call = (
        "import os, sys; from workspace_runtime.version_control.cloning import remove; remove(os.fsencode(sys.argv[1]))"
    )
    mounts.run(
        "sh",
        "-c",
        f'mkdir "$1/mnt"; mount --bind "$2" "$1/mnt"; {sys.executable} -c "$3" "$1"',
        "sh",
        left,
        outside,
        call,
    )
    assert (outside / "db").read_text() == "precious"
    mounts.unmount(left / "mnt")
    mounts.run(sys.executable, "-c", call, left)
    assert not left.exists()
