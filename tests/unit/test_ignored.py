"""What git ignores, held against git itself."""

import os
import string
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workspace_runtime.files.ignored import Rules, _patterns, root_rules
from workspace_runtime.paths import WorkspaceRoot


def git(folder: Path, *arguments: str) -> str:
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environ, capture_output=True, check=True)
    return os.fsdecode(done.stdout)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def kept(root: WorkspaceRoot) -> set[str]:
    """All files that are not ignored, ignored folders not entered."""
    found: set[str] = set()

    def walk(folder: int, rules: Rules, prefix: str) -> None:
        for item in list(os.scandir(folder)):
            is_dir = item.is_dir(follow_symlinks=False)
            if rules.ignores(item.name, is_dir=is_dir):
                continue
            if not is_dir:
                found.add(prefix + item.name)
                continue
            below = os.open(item.name, os.O_RDONLY, dir_fd=folder)
            walk(below, rules.below(item.name, below), f"{prefix}{item.name}/")
            os.close(below)

    top = os.open(root.path, os.O_RDONLY)
    walk(top, root_rules(root), "")
    os.close(top)
    return found


def said_by_git(folder: Path) -> set[str]:
    return set(git(folder, "ls-files", "-co", "--exclude-standard", "-z").split("\0")) - {""}


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    git(tmp_path, "init", "-q")
    yield tmp_path


def check(folder: Path) -> None:
    root = WorkspaceRoot(folder)
    try:
        assert kept(root) == said_by_git(folder)
    finally:
        root.close()


NAMES = ("a", "b", "ab", "a.b", "build", "x.log", "keep.log", "#h", "!n", "sp ace", "[x]", "B")
PATTERN = st.one_of(
    st.sampled_from(
        ["*.log", "!keep.log", "/build", "build/", "a/", "/a/*", "!/a/b", "**/ab", "a/**", "a/**/b", "a*", "[ab]", "[!a]*", "\\#h",
         "\\!n", "sp\\ ace", "sp ace ", "a.b", "*", "!*/", "!*.b", "b/x.log", "[", "\\", "", "# comment", "***", "?", "B", "[[]x]", "a/b/",
         "a/**/", "!a/b", "!a/", "**", "**/", "!**/", "/**", "/*", "/*/", "*/", "!b/**", "a/**/*", "**/a/**", "\\", "a\\"]
    ),
    st.text("ab*?/!.\\ ", min_size=1, max_size=6),
)  # fmt: skip
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)


@settings(deadline=None, max_examples=200)
@given(st.lists(PATHS, max_size=12), st.dictionaries(st.sampled_from(["", "a/", "build/", "a/b/"]), st.lists(PATTERN, max_size=5), max_size=3), st.lists(PATTERN, max_size=2))  # fmt: skip
def test_the_same_as_git(paths: list[str], rules: dict[str, list[str]], excluded: list[str]) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        git(folder, "init", "-q")
        for path in paths:
            target = folder / path
            if any((folder / part).is_file() for part in map(str, Path(path).parents)) or target.is_dir():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("")
        for name, lines in rules.items():
            if (folder / name).is_dir():
                (folder / name / ".gitignore").write_text("\n".join(lines))
        (folder / ".git/info").mkdir(exist_ok=True)
        (folder / ".git/info/exclude").write_text("\n".join(excluded))
        check(folder)


def test_nested_repositories_have_rules_of_their_own(repository: Path) -> None:
    write(repository, {".gitignore": "*.log\n", "inner/x.log": "", "inner/y.tmp": "", "x.log": ""})
    git(repository / "inner", "init", "-q")
    (repository / "inner/.gitignore").write_text("*.tmp\n")
    root = WorkspaceRoot(repository)
    assert kept(root) == {".gitignore", "inner/.gitignore", "inner/x.log"}
    root.close()


def test_a_root_below_the_top_of_a_repository(repository: Path) -> None:
    write(repository, {".gitignore": "*.log\n/part/only\n", "part/.gitignore": "!keep.log\n", "part/a.log": "", "part/keep.log": "", "part/only": "", "part/x/only": ""})  # fmt: skip
    root = WorkspaceRoot(repository / "part")
    assert kept(root) == {".gitignore", "keep.log", "x/only"}
    root.close()


def test_a_root_that_is_itself_ignored_is_outside(repository: Path) -> None:
    write(repository, {".gitignore": "scratch/\n*.log\n", "scratch/a.log": "", "scratch/node_modules/x": ""})
    root = WorkspaceRoot(repository / "scratch")
    assert kept(root) == {"a.log"}
    root.close()


def test_without_a_repository(tmp_path: Path) -> None:
    write(tmp_path, {"node_modules/a": "", "b/.venv/c": "", "d/__pycache__/e": "", "f": "", "build/g": ""})
    root = WorkspaceRoot(tmp_path)
    assert kept(root) == {"f", "build/g"}
    root.close()


def test_rules_that_are_traps(repository: Path) -> None:
    """A FIFO, a link, a folder and a huge file in place of the rules are no rules, and nothing waits."""
    write(repository, {"a/x.log": "", "b/x.log": "", "c/x.log": "", "outside": "*.log\n"})
    os.mkfifo(repository / "a/.gitignore")
    os.symlink("../outside", repository / "b/.gitignore")
    (repository / "c/.gitignore").mkdir()
    (repository / ".gitignore").write_text("*.tmp\n" + "# x\n" * 400_000)
    root = WorkspaceRoot(repository)
    assert {"a/x.log", "b/x.log", "c/x.log"} <= kept(root)
    root.close()


@given(st.text(string.printable, max_size=30))
def test_no_pattern_breaks_it(text: str) -> None:
    for pattern, ignored in _patterns(text):
        assert pattern.fullmatch("a/b") is None or ignored in (True, False)
