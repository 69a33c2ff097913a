"""Search in the content of files: right lines and places, nothing outside, no process left, bounded memory."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.files import content_search, ripgrep
from workspace_runtime.files.content_search import ContentQuery, search
from workspace_runtime.files.ripgrep import can_be_confined
from workspace_runtime.paths import WorkspaceRoot


@pytest.fixture
def root(tmp_path: Path) -> Iterator[WorkspaceRoot]:
    folder = tmp_path / "root"
    folder.mkdir()
    opened = WorkspaceRoot(folder)
    yield opened
    opened.close()


async def _collect(root: WorkspaceRoot, query: ContentQuery) -> list[dict[str, Any]]:
    async with contextlib.aclosing(search(root, query)) as blocks:
        return [orjson.loads(line) for block in [b async for b in blocks] for line in block.splitlines()]


def found(root: WorkspaceRoot, q: str, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All lines but the last, in order of path and line, and the summary."""
    *items, summary = asyncio.run(_collect(root, ContentQuery(q, **options)))
    assert summary["type"] == "summary"
    return sorted(items, key=lambda item: (item["path"], item["line"])), summary


def paths(root: WorkspaceRoot, q: str, **options: Any) -> set[str]:
    return {item["path"] for item in found(root, q, **options)[0]}


def children() -> set[int]:
    """This process's children, zombies too."""
    result = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    result.add(int(entry))
    return result


def write(root: WorkspaceRoot, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_no_folder_needs_to_be_writable(root: WorkspaceRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("no usable temporary folder")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    write(root, {"a": "needle"})
    assert paths(root, "needle") == {"a"}
    with pytest.raises(WorkspaceError) as refused:
        found(root, "(", regex=True)
    assert refused.value.code == "search_invalid"


def test_an_answer_has_a_bound(root: WorkspaceRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_search, "MAX_ANSWER", 20_000)
    write(root, {f"f{number}": "needle\n" * 500 for number in range(10)})
    items, summary = found(root, "needle", limit=10_000)
    assert len(items) < 5000 and summary["limit_reached"]


def test_a_match_has_its_place_in_code_points(root: WorkspaceRoot) -> None:
    write(root, {"src/a.txt": "nothing\näö foo 😀 foo\r\nlast"})
    items, summary = found(root, "foo")
    assert items == [
        {
            "type": "match",
            "path": "src/a.txt",
            "line": 2,
            "text": "äö foo 😀 foo",
            "column": 4,
            "ranges": [[3, 6], [9, 12]],
        }
    ]
    assert (summary["matches"], summary["files"], summary["limit_reached"]) == (1, 1, False)


LINES = st.lists(st.text(alphabet="abAB äß😀\t.-", max_size=12), max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    files=st.dictionaries(st.sampled_from(["a", "b.py", "sub/c.py", "sub/x/d", ".hid/e"]), LINES, max_size=5),
    ending=st.sampled_from(["\n", "\r\n"]),
    q=st.sampled_from(["a", "ab", "B", "ä", "😀", ".", "a b", "-", "ß a"]),
    regex=st.booleans(),
    case=st.sampled_from(["smart", "sensitive", "insensitive"]),
)
def test_it_finds_what_python_finds(files: dict[str, list[str]], ending: str, q: str, regex: bool, case: str) -> None:
    expected = set()
    flags = re.IGNORECASE if case == "insensitive" or (case == "smart" and q.lower() == q) else 0
    pattern = re.compile(q if regex else re.escape(q), flags)
    for name, lines in files.items():
        for number, line in enumerate(lines, 1):
            if ranges := tuple(match.span() for match in pattern.finditer(line)):
                expected.add((name, number, line, ranges))
    with tempfile.TemporaryDirectory() as folder:
        root = WorkspaceRoot(Path(folder))
        write(root, {name: ending.join(lines) for name, lines in files.items()})
        items, summary = found(root, q, regex=regex, case=case)
        root.close()
    got = {(i["path"], i["line"], i["text"], tuple((a, b) for a, b in i["ranges"])) for i in items}
    assert got == expected
    assert all(item["column"] == item["ranges"][0][0] + 1 for item in items)
    assert summary["matches"] == len(expected)


def test_the_options(root: WorkspaceRoot) -> None:
    write(root, {"a.py": "Foo(1)\nfoobar\n", "b.js": "foo\n", ".env": "foo\n", "sub/c.py": "x\n-foo\ny\n"})
    assert paths(root, "foo") == {"a.py", "b.js", ".env", "sub/c.py"}
    assert paths(root, "foo", hidden=False) == {"a.py", "b.js", "sub/c.py"}
    assert paths(root, "Foo") == {"a.py"}
    assert len(found(root, "foo", word=True)[0]) == 4
    assert paths(root, "foo", globs=["*.py"]) == {"a.py", "sub/c.py"}
    assert paths(root, "foo", globs=["!*.py"]) == {"b.js", ".env"}
    assert paths(root, "foo", path=b"sub") == {"sub/c.py"}
    assert paths(root, "foo", path=b"sub/c.py") == {"sub/c.py"}
    assert paths(root, "-foo") == {"sub/c.py"}
    assert paths(root, "--files") == set()
    assert paths(root, r"foo$", regex=True, path=b"b.js") == {"b.js"}
    items, _ = found(root, "foo", path=b"sub", context=1)
    assert [(item["type"], item["line"], item["text"]) for item in items] == [
        ("context", 1, "x"),
        ("match", 2, "-foo"),
        ("context", 3, "y"),
    ]


def test_git_ours_and_the_ignored_are_left_out(root: WorkspaceRoot) -> None:
    ours = ".workspace-runtime-0123456789abcdef.tmp"
    write(root, {"a": "foo", "log": "foo", ours: "foo", "node_modules/x": "foo", ".gitignore": "log\n"})
    assert paths(root, "foo") == {"a"}
    write(root, {".git/config": "foo"})
    assert paths(root, "foo") == {"a", "node_modules/x"}
    assert paths(root, "foo", globs=[".git/**", "a", ours]) == {"a"}
    assert paths(root, "foo", ignored=True) == {"a", "log", "node_modules/x"}


def test_a_sub_folder_keeps_the_rules_above(root: WorkspaceRoot) -> None:
    write(root, {".git/HEAD": "", ".gitignore": "*.log\n", "sub/a.log": "foo", "sub/b": "foo"})
    assert paths(root, "foo", path=b"sub") == {"sub/b"}


def test_links_and_special_files(root: WorkspaceRoot, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("foo")
    write(root, {"a": "foo"})
    (root.path / "out").symlink_to(tmp_path / "outside")
    (root.path / "file").symlink_to(tmp_path / "outside/secret")
    (root.path / "loop").symlink_to(".")
    os.mkfifo(root.path / "fifo")
    assert paths(root, "foo") == {"a"}
    for path, code in (
        (b"out", "path_outside"),
        (b"file", "path_outside"),
        (b"fifo", "not_a_file"),
        (b"no", "file_not_found"),
    ):
        with pytest.raises(WorkspaceError) as raised:
            found(root, "foo", path=path)
        assert raised.value.code == code


def test_names_and_lines_that_are_not_utf8(root: WorkspaceRoot) -> None:
    with open(os.fsencode(root.path) + b"/n\xe9", "wb") as file:
        file.write(b"x \xff foo\n")
    items, _ = found(root, "foo")
    assert items == [
        {
            "type": "match",
            "path": "n\ufffd",
            "path_bytes": "n%E9",
            "line": 1,
            "text": "x \ufffd foo",
            "column": 5,
            "ranges": [[4, 7]],
        }
    ]


@pytest.mark.parametrize(
    "query",
    [
        ContentQuery(""),
        ContentQuery("(a", regex=True),
        ContentQuery(r"\p{Nope}", regex=True),
        ContentQuery("a{1000}{1000}", regex=True),
        ContentQuery("a\nb"),
        ContentQuery("a\0b"),
        ContentQuery("\ud800"),
        ContentQuery("a", globs=["a{b"]),
        ContentQuery("a", globs=[""]),
        ContentQuery("a", limit=0),
        ContentQuery("a", limit=10_001),
        ContentQuery("a", context=11),
    ],
)
def test_what_can_not_be_searched_for(root: WorkspaceRoot, query: ContentQuery) -> None:
    write(root, {"a": "foo"})
    with pytest.raises(WorkspaceError) as raised:
        asyncio.run(_collect(root, query))
    assert raised.value.code == "search_invalid"
    assert "rg" not in raised.value.detail and "(?:" not in raised.value.detail and "\n" not in raised.value.detail


def test_the_limit(root: WorkspaceRoot) -> None:
    write(root, {f"{name}": "foo\n" * 10 for name in "abc"})
    for limit, reached in ((5, True), (29, True), (30, False)):
        items, summary = found(root, "foo", limit=limit)
        assert (len(items), summary["matches"], summary["limit_reached"]) == (limit, limit, reached)
        assert summary.get("reason") == ("matches" if reached else None)


def test_the_size_of_the_answer_is_limited(root: WorkspaceRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_search, "MAX_ANSWER", 10_000)
    write(root, dict.fromkeys("abc", "foo\n" * 2000))
    items, summary = found(root, "foo", limit=10_000)
    assert 0 < len(items) < 6000 and summary["limit_reached"] and summary["reason"] == "size"


@pytest.mark.skipif(sys.platform != "linux", reason="its memory has a bound on Linux alone")
def test_a_search_that_takes_too_much_memory_says_so(root: WorkspaceRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ripgrep, "MAX_MEMORY", 100 * 1024 * 1024)
    write(root, {"a": b"a" * 10_000_000})
    for path in (b"", b"a"):
        items, summary = found(root, "aaa", path=path)
        assert not items and summary["limit_reached"] and summary["reason"] == "memory"


def test_a_long_line_is_cut_around_its_match(root: WorkspaceRoot) -> None:
    write(root, {"a": "ä" * 5000 + "foo" + "x" * 5000 + "foo"})
    (item,), _ = found(root, "foo", max_line=100)
    assert item["truncated"] and len(item["text"]) == 100 and item["column"] == 5001
    (start, end), *others = item["ranges"]
    assert item["text"][start:end] == "foo" and not others


@pytest.mark.parametrize("start", [b"", b"\xff"])
def test_a_line_too_long_to_be_held(root: WorkspaceRoot, start: bytes) -> None:
    write(root, {"a": b"x\n" + start + b'q"\\' * 3_000_000 + b"foo\nfoo\n"})
    items, summary = found(root, "foo", max_line=100)
    assert [(item["line"], item.get("truncated"), item["column"]) for item in items] == [(2, True, None), (3, None, 1)]
    assert len(items[0]["text"]) == 100 and items[0]["text"].endswith('"\\q' if start == b"" else 'q"\\')
    assert summary["matches"] == 2


def test_the_time_is_limited(root: WorkspaceRoot) -> None:
    with open(root.path / "a", "wb") as file:
        file.truncate(0)
        file.write(b"a" * 20_000_000)
    started = time.monotonic()
    _, summary = found(root, "a", timeout_s=0.3)
    assert summary["limit_reached"] and summary["reason"] == "time" and time.monotonic() - started < 5


async def _leave(root: WorkspaceRoot, how: str) -> None:
    blocks = search(root, ContentQuery("foo", limit=10_000))
    if how == "close":
        await anext(blocks)
        await blocks.aclose()
        return

    async def read() -> None:
        async with contextlib.aclosing(blocks):
            async for _ in blocks:
                reading.set()
                await asyncio.sleep(10)

    reading = asyncio.Event()
    task = asyncio.create_task(read())
    await reading.wait()
    assert children()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_whoever_leaves_ends_the_process(root: WorkspaceRoot, how: str) -> None:
    write(root, {f"d/{number}": "foo bar foo\n" * 500 for number in range(200)})
    before, files = children(), set(os.listdir("/proc/self/fd"))
    asyncio.run(_leave(root, how))
    assert children() <= before
    assert set(os.listdir("/proc/self/fd")) <= files


FLIP = """
import ctypes, os, sys, time
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None)
print("flipping", flush=True)
while True:
    libc.renameat2(-100, b"f", -100, b"link", 2)
"""


@pytest.mark.skipif(not can_be_confined(), reason="the kernel has no Landlock")
def test_a_file_exchanged_for_a_link_meanwhile_shows_nothing(
    root: WorkspaceRoot, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Another process swaps a file and a link that leads out as fast as it can: ripgrep sees one and may open the other."""
    secret = tmp_path_factory.mktemp("outside") / "secret"
    secret.write_text("needle outside\n")
    write(root, {"f": "needle inside\n"})
    os.symlink(secret, root.path / "link")
    with subprocess.Popen([sys.executable, "-c", FLIP, str(root.path)], stdout=subprocess.PIPE) as flipping:
        assert flipping.stdout is not None and flipping.stdout.readline()
        try:
            texts = {item["text"] for _ in range(60) for item in found(root, "needle")[0]}
        finally:
            flipping.kill()
    assert texts == {"needle inside"}


def test_the_start_of_the_search_does_not_confine_this_process(root: WorkspaceRoot) -> None:
    write(root, {"f": "needle\n"})
    assert found(root, "needle")[0]
    with open("/etc/passwd") as file:
        assert file.read()
    assert subprocess.run(["cat", "/etc/passwd"], capture_output=True).returncode == 0
