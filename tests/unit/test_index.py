"""The list of all paths: exact at any time, as git sees the folder."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workspace_runtime.files.index import FileIndex, Snapshot, fold
from workspace_runtime.paths import WorkspaceRoot


@pytest.fixture
def root(tmp_path: Path) -> Iterator[WorkspaceRoot]:
    folder = tmp_path / "root"
    folder.mkdir()
    opened = WorkspaceRoot(folder)
    yield opened
    opened.close()


def git(folder: str, *arguments: str) -> bytes:
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent"}
    return subprocess.run(["git", *arguments], cwd=folder, env=env, check=True, capture_output=True).stdout


def files(snapshot: Snapshot) -> set[str]:
    listed = list(snapshot.files())
    assert len(listed) == len(set(listed))
    return set(listed)


def both(snapshot: Snapshot) -> set[str]:
    return files(snapshot) | {path + "/" for path in snapshot.folders()}


def touch(root: WorkspaceRoot, *names: str) -> None:
    for name in names:
        path = root.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_what_is_listed(root: WorkspaceRoot) -> None:
    touch(
        root,
        "a",
        "sub/b",
        ".hidden/c",
        ".git/HEAD",
        "log/x",
        "node_modules/y",
        ".workspace-runtime-0123456789abcdef.tmp",
    )
    (root.path / ".gitignore").write_text("log\n")
    (root.path / "link").symlink_to("sub")
    (root.path / "loop").symlink_to(".")
    (root.path / "dangling").symlink_to("nothing")
    (root.path / "empty").mkdir()
    os.mkfifo(root.path / "fifo")
    index = FileIndex(root)
    expected = {"a", "sub/", "sub/b", ".hidden/", ".hidden/c", "link", "loop", "dangling", "empty/", ".gitignore"}
    assert both(index.refresh()) == expected | {"node_modules/", "node_modules/y"}
    shutil.rmtree(root.path / ".git")
    assert both(index.refresh()) == expected


def test_nothing_changed_costs_nothing(root: WorkspaceRoot) -> None:
    touch(root, "a", "sub/b")
    for name in (".", "sub"):
        os.utime(root.path / name)
    index = FileIndex(root)
    first = index.refresh()
    assert wait_until_settled(index) is index.refresh()
    assert both(first) == {"a", "sub/", "sub/b"}


def wait_until_settled(index: FileIndex) -> Snapshot:
    """Read again until no folder had changed just before it was read."""
    snapshot = index.refresh()
    while (following := index.refresh()) is not snapshot:
        snapshot = following
    return snapshot


def test_a_change_in_the_same_tick_is_seen(root: WorkspaceRoot) -> None:
    index = FileIndex(root)
    (root.path / "sub").mkdir()
    for number in range(300):
        touch(root, f"sub/{number}")
        assert files(index.refresh()) == {f"sub/{n}" for n in range(number + 1)}


def test_unchanged_folders_keep_their_pieces(root: WorkspaceRoot) -> None:
    touch(root, "a/x", "b/y")
    index = FileIndex(root)
    before = {piece.prefix: piece for piece in wait_until_settled(index).pieces}
    touch(root, "b/z")
    after = {piece.prefix: piece for piece in index.refresh().pieces}
    assert after["a/"] is before["a/"] and after["b/"] is not before["b/"]


def test_rules_that_change_without_their_folder(root: WorkspaceRoot) -> None:
    touch(
        root, "sub/.gitignore", "sub/a", "sub/deep/b", "c", ".git/info/exclude", "nested/.git/info/exclude", "nested/d"
    )
    index = FileIndex(root)
    assert files(wait_until_settled(index)) == {"sub/.gitignore", "sub/a", "sub/deep/b", "c", "nested/d"}
    (root.path / "sub/.gitignore").write_text("a\nb\n")
    assert files(index.refresh()) == {"sub/.gitignore", "c", "nested/d"}
    (root.path / ".git/info/exclude").write_text("c\n")
    assert files(index.refresh()) == {"sub/.gitignore", "nested/d"}
    (root.path / "nested/.git/info/exclude").write_text("d\n")
    assert files(index.refresh()) == {"sub/.gitignore"}
    (root.path / "sub/.gitignore").write_text("b\n")
    assert files(index.refresh()) == {"sub/.gitignore", "sub/a"}


def test_a_folder_that_becomes_a_repository(root: WorkspaceRoot) -> None:
    touch(root, ".git/HEAD", "sub/a.log", "sub/b")
    (root.path / ".gitignore").write_text("*.log\n")
    index = FileIndex(root)
    assert files(wait_until_settled(index)) == {".gitignore", "sub/b"}
    (root.path / "sub/.git").mkdir()
    assert files(index.refresh()) == {".gitignore", "sub/b", "sub/a.log"}


def test_folders_moved_replaced_and_made_links(root: WorkspaceRoot) -> None:
    touch(root, "a/b/c/x", "d/y")
    index = FileIndex(root)
    wait_until_settled(index)
    (root.path / "a/b").rename(root.path / "d/b")
    assert both(index.refresh()) == {"a/", "d/", "d/b/", "d/b/c/", "d/b/c/x", "d/y"}
    shutil.rmtree(root.path / "d")
    touch(root, "d/b/z")
    assert both(index.refresh()) == {"a/", "d/", "d/b/", "d/b/z"}
    (root.path / "d").rename(root.path / "e")
    (root.path / "d").symlink_to("e")
    assert both(index.refresh()) == {"a/", "d", "e/", "e/b/", "e/b/z"}


def test_names_that_are_not_utf8_and_odd_ones(root: WorkspaceRoot) -> None:
    names = [b"n\xe9", b"new\nline", "İstanbul".encode(), b"a b", "ÄÖ".encode()]
    for name in names:
        with open(os.path.join(os.fsencode(root.path), name), "wb"):
            pass
    assert files(FileIndex(root).refresh()) == {os.fsdecode(name) for name in names}


@given(st.text())
def test_folding_keeps_every_place(text: str) -> None:
    assert len(fold(text)) == len(text)
    assert fold(fold(text)) == fold(text)


def test_a_thousand_folders_deep(root: WorkspaceRoot) -> None:
    held = os.open(root.path, os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("d", dir_fd=held)
        below = os.open("d", os.O_RDONLY, dir_fd=held)
        os.close(held)
        held = below
    os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=held))
    os.close(held)
    snapshot = FileIndex(root).refresh()
    subprocess.run(["rm", "-rf", root.path / "d"], check=True)  # what pytest removes its folders with recurses
    assert files(snapshot) == {"d/" * 1000 + "x"}
    assert len(list(snapshot.folders())) == 1000


def test_a_path_longer_than_the_system_takes_is_left_out(root: WorkspaceRoot) -> None:
    held = os.open(root.path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=held)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=held)
        os.close(held)
        held = below
    os.close(held)
    touch(root, "a")
    index = FileIndex(root)
    assert files(index.refresh()) == files(index.refresh()) == {"a"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(root: WorkspaceRoot) -> None:
    touch(root, "sub/a")
    (root.path / "sub").chmod(0)
    index = FileIndex(root)
    assert both(wait_until_settled(index)) == {"sub/"}
    (root.path / "sub").chmod(0o700)
    assert both(index.refresh()) == {"sub/", "sub/a"}


def test_a_root_that_is_gone_and_back(root: WorkspaceRoot) -> None:
    touch(root, "a")
    index = FileIndex(root)
    index.refresh()
    shutil.rmtree(root.path)
    assert both(index.refresh()) == set()
    root.path.mkdir()
    touch(root, "b")
    assert files(index.refresh()) == {"b"}


# --- against git ------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "B.py", "log", "x y", "ä"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
PATTERNS = st.sampled_from(["a", "b/", "/log", "*.py", "!a", "!B.py", "a/b", "**/log", "# no", "x\\ y", "ä"])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("touch"), PATHS),
        st.tuples(st.just("remove"), PATHS),
        st.tuples(st.just("move"), st.tuples(PATHS, PATHS)),
        st.tuples(st.just("rules"), st.tuples(st.one_of(st.just(""), PATHS), st.lists(PATTERNS, max_size=3))),
        st.tuples(st.just("exclude"), st.lists(PATTERNS, max_size=2)),
        st.tuples(st.just("look"), st.none()),
    ),
    max_size=12,
)


def act(top: str, what: str, how: object) -> None:
    """Make one change, where it is possible."""
    try:
        if what == "touch":
            path = os.path.join(top, str(how))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "a"):
                pass
        elif what == "remove":
            path = os.path.join(top, str(how))
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        elif what == "move":
            assert isinstance(how, tuple)
            os.rename(os.path.join(top, how[0]), os.path.join(top, how[1]))
        elif what == "rules":
            assert isinstance(how, tuple)
            with open(os.path.join(top, how[0], ".gitignore"), "w") as file:
                file.write("\n".join(how[1]))
        elif what == "exclude":
            assert isinstance(how, list)
            with open(os.path.join(top, ".git/info/exclude"), "w") as file:
                file.write("\n".join(how))
    except OSError:
        pass


def walk(top: str) -> set[str]:
    """What the index lists of files, by git's own word."""
    listed = git(top, "ls-files", "-co", "--exclude-standard", "-z").split(b"\0")[:-1]
    return {os.fsdecode(path) for path in listed}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS)
def test_it_lists_what_git_lists(actions: list[tuple[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as top:
        git(top, "init", "-q")
        root = WorkspaceRoot(Path(top))
        index = FileIndex(root)
        for what, how in actions:
            if what == "look":
                assert files(index.refresh()) == walk(top)
            act(top, what, how)
        assert files(index.refresh()) == walk(top)
        assert both(index.refresh()) == both(FileIndex(root).refresh())
        root.close()
