"""Hunks taken one by one: staged, unstaged and discarded by real git, with everything else left as it was."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.git_home import Sandbox
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import path_bytes
from workspace_runtime.version_control.diff_output import CONFIG, arguments, parse
from workspace_runtime.version_control.hunks import select

APPLY = ("apply", "--unidiff-zero", "--whitespace=nowarn")
NAMES = [b"plain", b"a b", b'"quoted"', b"line\nbreak\t\\", b"caf\xe9", "größe".encode(), b"-n", b"a b/b c", b"b/a"]


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def read(raw: bytes) -> list[dict[str, Any]]:
    return parse(raw, cut=False, max_file_bytes=1 << 30, max_file_lines=1 << 30).files


class Work:
    """A repository, seen as what its three places hold of a file."""

    def __init__(self, sandbox: Sandbox, files: dict[str | bytes, bytes]) -> None:
        self.sandbox = sandbox
        self.path = sandbox.init("work")
        sandbox.commit(self.path, files, "base")

    def git(self, *args: str | bytes, input: bytes | None = None) -> bytes:
        return self.sandbox.git(self.path, *args, input=input)

    def at(self, name: str | bytes) -> Path:
        return self.path / os.fsdecode(name)

    def index(self, name: str | bytes) -> bytes:
        return self.git("cat-file", "blob", b":./" + os.fsencode(name))

    def diff(self, *what: str, context: int = 3) -> bytes:
        pairs = [part for key, value in CONFIG.items() for part in ("-c", f"{key}={value}")]
        return self.git(*pairs, "diff", *arguments(context=context), *what)

    def hunks(self, name: str | bytes, *what: str, context: int = 3) -> list[str]:
        """The ids of a file's hunks."""
        encoded = path_bytes(os.fsencode(name))
        (file,) = [
            file
            for file in read(self.diff(*what, context=context))
            if (file.get("path_bytes") == encoded if encoded else file["path"] == os.fsdecode(name))
        ]
        return [hunk["id"] for hunk in file["hunks"]]

    def stage(self, name: str | bytes, *hunks: str, context: int = 3) -> None:
        patch = select(self.diff(context=context), {os.fsencode(name): set(hunks)})
        self.git(*APPLY, "--cached", "-", input=patch)

    def unstage(self, name: str | bytes, *hunks: str, context: int = 3) -> None:
        patch = select(self.diff("--cached", context=context), {os.fsencode(name): set(hunks)}, reverse=True)
        self.git(*APPLY, "--cached", "--reverse", "-", input=patch)

    def discard(self, name: str | bytes, *hunks: str, context: int = 3) -> None:
        patch = select(self.diff(context=context), {os.fsencode(name): set(hunks)}, reverse=True)
        self.git(*APPLY, "--reverse", "-", input=patch)


def text(*changed: int, end: bytes = b"\n") -> bytes:
    """Thirty lines, all the same, so that a hunk fits anywhere; where changed, two more follow."""
    rows = [b"same" + (end + b"more" + end + b"at %d" % i if i in changed else b"") for i in range(30)]
    return end.join(rows) + end


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("name", NAMES)
def test_one_of_three(sandbox: Sandbox, name: bytes, context: int) -> None:
    work = Work(sandbox, {name: text(), b"other": b"other\n"})
    work.at("other").write_bytes(b"changed\n")
    work.at(name).write_bytes(text(3, 14, 25))
    first, second, third = work.hunks(name, context=context)
    work.stage(name, second, context=context)
    assert work.index(name) == text(14)
    assert work.at(name).read_bytes() == text(3, 14, 25)
    assert work.index("other") == b"other\n"

    work.git("add", "--update")
    first, second, third = work.hunks(name, "--cached", context=context)
    work.unstage(name, second, context=context)
    assert work.index(name) == text(3, 25)
    assert work.at(name).read_bytes() == text(3, 14, 25)
    assert work.index("other") == b"changed\n"

    work.git("reset", "--quiet")
    first, second, third = work.hunks(name, context=context)
    work.discard(name, first, third, context=context)
    assert work.at(name).read_bytes() == text(14)
    assert work.index(name) == text()
    assert work.at("other").read_bytes() == b"changed\n"


def test_line_ends_are_kept(sandbox: Sandbox) -> None:
    before, after = text(end=b"\r\n"), text(3, 25, end=b"\r\n")
    work = Work(sandbox, {"crlf": before, "none": text()[:-1], "gone": b"a\nb\n"})
    work.at("crlf").write_bytes(after)
    work.at("none").write_bytes(text(3) + b"end")
    work.at("gone").write_bytes(b"a\nb")
    work.stage("crlf", work.hunks("crlf")[1])
    assert work.index("crlf") == text(25, end=b"\r\n")
    work.discard("crlf", *work.hunks("crlf"))
    assert work.at("crlf").read_bytes() == text(25, end=b"\r\n")
    work.stage("none", work.hunks("none")[1])
    assert work.index("none") == text() + b"end"
    work.unstage("none", *work.hunks("none", "--cached"))
    assert work.index("none") == text()[:-1]
    work.stage("gone", *work.hunks("gone"))
    assert work.index("gone") == b"a\nb"


def test_line_ends_that_git_converts(sandbox: Sandbox) -> None:
    work = Work(sandbox, {"a": text()})
    work.git("config", "core.autocrlf", "true")
    work.at("a").write_bytes(text(3, 25, end=b"\r\n"))
    work.stage("a", work.hunks("a")[0])
    assert work.index("a") == text(3)
    work.discard("a", *work.hunks("a"))
    assert work.at("a").read_bytes() == text(3, end=b"\r\n")


def test_files_that_come_and_go(sandbox: Sandbox) -> None:
    work = Work(sandbox, {"gone": b"x\n", "script": b"#!\n"})
    work.at("script").chmod(0o755)
    work.git("add", "script")
    work.git("commit", "--quiet", "--message", "executable")
    work.at("gone").unlink()
    work.at("script").unlink()
    work.at("new").write_bytes(b"y\n")
    work.git("add", "--intent-to-add", "new")
    for name in ("gone", "script", "new"):
        work.stage(name, *work.hunks(name))
    assert work.git("diff") == b""
    assert work.git("ls-files") == b"new\n"
    work.unstage("new", *work.hunks("new", "--cached"))
    work.unstage("script", *work.hunks("script", "--cached"))
    assert work.git("ls-files", "--stage", "script").startswith(b"100755 ")
    work.discard("script", *work.hunks("script"))
    assert work.at("script").stat().st_mode & 0o777 == 0o755
    assert work.git("ls-files") == b"script\n"
    assert work.at("new").read_bytes() == b"y\n"


def test_a_hunk_leaves_the_mode(sandbox: Sandbox) -> None:
    work = Work(sandbox, {"a": text()})
    work.at("a").write_bytes(text(3, 25))
    work.at("a").chmod(0o755)
    work.stage("a", *work.hunks("a"))
    assert work.index("a") == text(3, 25)
    assert work.git("ls-files", "--stage").startswith(b"100644 ")
    assert work.hunks("a") == []
    work.git("add", "a")
    work.unstage("a", work.hunks("a", "--cached")[0])
    assert work.index("a") == text(25)
    assert work.git("ls-files", "--stage").startswith(b"100755 ")
    work.discard("a", *work.hunks("a"))
    assert work.at("a").read_bytes() == text(25)
    assert work.at("a").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", NAMES)
def test_a_hunk_of_a_renamed_file(sandbox: Sandbox, name: bytes) -> None:
    work = Work(sandbox, {"old name": text()})
    work.at(name).parent.mkdir(exist_ok=True)
    work.at("old name").rename(work.at(name))
    work.at(name).write_bytes(text(3, 25))
    work.git("add", "--all")
    work.unstage(name, work.hunks(name, "--cached")[0])
    assert work.index(name) == text(25)
    assert work.git("ls-files", "-z") == name + b"\0"
    # not yet known by its new name, it is staged with it
    work.git("reset", "--quiet")
    work.git("add", "--intent-to-add", "--", b":(literal)" + name)
    work.stage(name, work.hunks(name)[1])
    assert work.index(name) == text(25)
    assert work.git("ls-files", "-z") == name + b"\0"
    work.discard(name, *work.hunks(name))
    assert work.at(name).read_bytes() == text(25)


def test_another_kind_of_thing(sandbox: Sandbox) -> None:
    work = Work(sandbox, {"a": b"file\n"})
    work.at("a").unlink()
    work.at("a").symlink_to("target")
    removed, made = work.hunks("a")
    work.stage("a", removed, made)
    assert work.git("ls-files", "--stage").startswith(b"120000 ")
    work.unstage("a", *work.hunks("a", "--cached"))
    assert work.git("ls-files", "--stage").startswith(b"100644 ")
    work.discard("a", *work.hunks("a"))
    assert work.at("a").read_bytes() == b"file\n"
    assert not work.at("a").is_symlink()


def test_a_submodule_that_moved(sandbox: Sandbox) -> None:
    inner = sandbox.init("inner")
    sandbox.commit(inner, {"f": b"1\n"}, "inner")
    work = Work(sandbox, {"a": b"a\n"})
    work.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner), "sub")
    work.git("commit", "--quiet", "--message", "sub")
    moved = sandbox.commit(work.path / "sub", {"f": b"2\n"}, "moved")
    work.stage("sub", *work.hunks("sub"))
    assert work.git("ls-files", "--stage", "sub").split()[1].decode() == moved
    work.unstage("sub", *work.hunks("sub", "--cached"))
    assert work.git("ls-files", "--stage", "sub").split()[1].decode() != moved


def test_several_files_at_once(sandbox: Sandbox) -> None:
    work = Work(sandbox, {"a": text(), "b": text(), "c": text()})
    for name in "abc":
        work.at(name).write_bytes(text(3, 14, 25))
    wanted = {b"a": {work.hunks("a")[0]}, b"c": set(work.hunks("c")[1:])}
    work.git(*APPLY, "--cached", "-", input=select(work.diff(), wanted))
    assert [work.index(name) for name in "abc"] == [text(3), text(), text(14, 25)]
    assert select(work.diff(), {}) == b""


def test_a_hunk_that_is_not_there(sandbox: Sandbox) -> None:
    work = Work(sandbox, {b"caf\xe9": text(), "same": b"same\n"})
    work.at(b"caf\xe9").write_bytes(text(3, 14))
    first, second = work.hunks(b"caf\xe9")
    work.at(b"caf\xe9").write_bytes(text(3, 15))
    for path, hunks, missing in (
        (b"caf\xe9", {first, second}, second),
        (b"same", {first}, first),
        (b"nowhere", {first}, first),
    ):
        with pytest.raises(WorkspaceError) as refused:
            select(work.diff(), {path: hunks})
        assert refused.value.code == "hunk_not_found"
        assert refused.value.data["hunk"] == missing
        assert refused.value.data["path"] == path.decode(errors="replace")
        assert refused.value.data.get("path_bytes") == path_bytes(path)


def with_some(before: bytes, hunks: list[dict[str, Any]], chosen: set[str]) -> bytes:
    """The text with the chosen hunks alone, put together by their lines."""
    rows = before.decode().split("\n")
    rows = [row + "\n" for row in rows[:-1]] + rows[-1:]
    done, made = 0, ""
    for hunk in hunks:
        if hunk["id"] in chosen:
            start = hunk["old_start"] - (hunk["old_lines"] > 0)
            made += "".join(rows[done:start])
            for line in hunk["lines"]:
                made += "" if line["type"] == "delete" else line["content"] + "\n" * (not line.get("no_newline"))
            done = start + hunk["old_lines"]
    return (made + "".join(rows[done:])).encode()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), context=st.integers(0, 2))
def test_any_hunks_of_any_texts(sandbox: Sandbox, data: st.DataObject, context: int) -> None:
    """Staged and unstaged, hunks change what they say and nothing else."""
    row = st.sampled_from(["a", "b", "", "c\r", "ü"])
    made = st.tuples(st.lists(row, min_size=1, max_size=30), st.booleans())
    before, after = (
        ("\n".join(rows) + "\n" * (end or not rows[-1])).encode() for rows, end in (data.draw(made), data.draw(made))
    )
    if not (sandbox.folder / "work").exists():
        sandbox.init("work")
    work = Work.__new__(Work)
    work.sandbox, work.path = sandbox, sandbox.folder / "work"

    def is_now(content: bytes) -> None:
        work.at("a").write_bytes(content)
        work.git("add", "a")

    def some(*what: str) -> tuple[list[dict[str, Any]], set[str]]:
        (file,) = read(work.diff(*what, context=context))
        return file["hunks"], data.draw(st.sets(st.sampled_from([hunk["id"] for hunk in file["hunks"]])))

    if before == after:
        return
    is_now(before)
    tree = work.git("write-tree").decode().strip()
    work.at("a").write_bytes(after)
    hunks, chosen = some()
    patch = select(work.diff(context=context), {b"a": chosen})
    if chosen:
        work.git(*APPLY, "--cached", "-", input=patch)
    assert work.index("a") == with_some(before, hunks, chosen)
    is_now(after)
    hunks, chosen = some("--cached", tree)
    patch = select(work.diff("--cached", tree, context=context), {b"a": chosen}, reverse=True)
    if chosen:
        work.git(*APPLY, "--cached", "--reverse", "-", input=patch)
    assert work.index("a") == with_some(before, hunks, {hunk["id"] for hunk in hunks} - chosen)
