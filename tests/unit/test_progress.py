"""Progress: what real git tells comes out, however it is cut; nothing a remote sends costs more than a line."""

import itertools
import os
import re
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.git_home import Sandbox
from support.git_remotes import http_remote
from workspace_runtime.version_control.progress import MAX_LINE, MAX_MESSAGES, Progress, ProgressReader

CLONE = (
    b"Cloning into 'copy'...\n"
    b"remote: Enumerating objects: 403, done.        \n"
    b"remote: Counting objects:   0% (1/403)        \rremote: Counting objects: 100% (403/403), done.        \n"
    b"remote: Compressing objects: 100% (12/12), done.\x1b[K\n"
    b"Receiving objects:  45% (180/403), 1.20 MiB | 600.00 KiB/s\r"
    b"Receiving objects:  46% (186/403), 1.25 MiB | 600.00 KiB/s\r"
    b"remote: Total 403 (delta 0), reused 0 (delta 0), pack-reused 0        \n"
    b"remote: \n"
    b"Receiving objects: 100% (403/403), 2.50 MiB | 1.00 GiB/s, done.\n"
)


def read(*pieces: bytes) -> ProgressReader:
    reader = ProgressReader()
    for piece in pieces:
        reader.feed(piece)
    reader.finish()
    return reader


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (b"remote: Enumerating objects: 403\r", Progress("Enumerating objects", None, 403)),
        (b"remote: Enumerating objects: 403, done.        \n", Progress("Enumerating objects", None, 403)),
        (b"Counting objects:   7% (1/14)\r", Progress("Counting objects", 7, 1, 14)),
        (b"Resolving deltas: 100% (2/2), done.\n", Progress("Resolving deltas", 100, 2, 2)),
        (
            b"Receiving objects:  45% (9/20), 1.50 MiB | 600.00 KiB/s\r",
            Progress("Receiving objects", 45, 9, 20, 1572864, 614400),
        ),
        (b"Writing objects:  45% (9/20), 312 bytes\r", Progress("Writing objects", 45, 9, 20, 312)),
        (b"Writing objects: 100% (3/3), 1 byte | 1 byte/s, done.\n", Progress("Writing objects", 100, 3, 3, 1, 1)),
        (
            b"Filtering content:  50% (1/2), 10.00 MiB | 2.00 MiB/s\r",
            Progress("Filtering content", 50, 1, 2, 10 << 20, 2 << 20),
        ),
        (
            b"Downloading LFS objects:  50% (1/2), 10 MB | 5 MB/s\r",
            Progress("Downloading LFS objects", 50, 1, 2, 10_000_000, 5_000_000),
        ),
        (b"Rebasing (2/3)\r", Progress("Rebasing", 66, 2, 3)),
        (b"Rebasing (0/0)\r", Progress("Rebasing", None, 0, 0)),
    ],
)
def test_each_form_of_progress(line: bytes, wanted: Progress) -> None:
    reader = ProgressReader()
    assert reader.feed(line)
    assert reader.current == wanted
    assert reader.messages == []
    assert not reader.feed(line), "the same again is no change"


@pytest.mark.parametrize(
    "line",
    [
        b"remote: count: 5",
        b"remote: Count: 5",  # a number alone, ended by a new line: nobody goes on counting
        b"Receiving objects:  45% (180/403), maybe",
        b"fatal: early EOF",
        b"warning: 50% (1/2)",
        b"Rebasing (a/b)",
        b"Receiving objects: 1%",
    ],
)
def test_all_else_is_a_message(line: bytes) -> None:
    reader = read(line + b"\n")
    assert reader.current is None
    assert reader.messages == [line.decode()]


def test_a_clone() -> None:
    reader = read(CLONE)
    assert reader.current == Progress("Receiving objects", 100, 403, 403, 2621440, 1 << 30)
    assert reader.messages == [
        "Cloning into 'copy'...",
        "remote: Total 403 (delta 0), reused 0 (delta 0), pack-reused 0",
    ]


@given(st.lists(st.integers(0, len(CLONE)), max_size=20))
def test_any_cutting_gives_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(CLONE)]
    pieces = [CLONE[start:end] for start, end in itertools.pairwise(edges)]
    whole, cut = read(CLONE), read(*pieces)
    assert (cut.current, cut.messages) == (whole.current, whole.messages)


PIECES = st.sampled_from(
    [
        b"\r",
        b"\n",
        b"remote: ",
        b"Counting objects: ",
        b" 5% (1/20)",
        b"7",
        b", done.",
        b"x" * 3000,
        b"\xff",
        b"\x1b[K",
        b" ",
    ]
)


@given(st.lists(PIECES | st.binary(max_size=5), max_size=40))
def test_any_stream_in_single_bytes_gives_the_same(pieces: list[bytes]) -> None:
    stream = b"".join(pieces)
    whole, cut = read(stream), read(*(stream[at : at + 1] for at in range(len(stream))))
    assert (cut.current, cut.messages) == (whole.current, whole.messages)
    assert not any(re.search(r"[\x00-\x08\x0b-\x1f\x7f]", message) for message in whole.messages)


def test_a_line_without_an_end_counts_at_the_end() -> None:
    reader = ProgressReader()
    reader.feed(b"fatal: the remote end hung up")
    assert reader.messages == []
    reader.finish()
    assert reader.messages == ["fatal: the remote end hung up"]


def test_messages_are_bounded_and_the_last_ones_stay() -> None:
    reader = ProgressReader()
    for number in range(20_000):
        reader.feed(b"message %d\n" % number)
    assert reader.messages[-1] == "message 19999"
    kept = sum(len(message) + 1 for message in reader.messages)
    assert MAX_MESSAGES - 20 < kept <= MAX_MESSAGES
    endless = read(*[b"x" * 65536] * 100)
    assert endless.messages == ["x" * MAX_LINE]


def test_a_terminal_is_not_driven() -> None:
    assert read(b"remote: \x1b[31mred\x1b]0;title\x07\x1b[2J\tend\n").messages == ["remote: red]0;title\tend"]


def test_the_largest_figures_can_be_sent() -> None:
    reader = read(b"Receiving objects: 999%% (%b/%b), %b TB | 999999999999999 TB/s\r" % ((b"9" * 15,) * 3))
    assert reader.current is not None
    assert reader.current.percent == 100
    assert orjson.loads(orjson.dumps(reader.current))["rate"] == 2**53 - 1
    assert read(b"Receiving objects: 1% (1/9), 1.2.3 MiB | 1 pc/s\r").current == Progress("Receiving objects", 1, 1, 9)


def test_real_git(tmp_path: Path) -> None:
    """A clone over HTTP, a push with a hook's words, and a rebase: nothing of it is taken for what it is not."""
    sandbox = Sandbox(tmp_path, GIT_PROGRESS_DELAY="0")
    work = sandbox.init("work")
    sandbox.commit(work, {f"folder/{number}": os.urandom(500) for number in range(200)}, "many")
    bare = tmp_path / "served" / "project.git"
    sandbox.git(tmp_path, "clone", "--quiet", "--bare", str(work), str(bare))
    hook = bare / "hooks" / "post-receive"
    hook.write_text("#!/bin/sh\necho thanks\n")
    hook.chmod(0o755)
    with http_remote(tmp_path / "served") as remote:
        done = sandbox.attempt(tmp_path, "clone", "--progress", f"{remote.url}/project.git", "copy")
        told = read(done.stderr)
        assert told.current == Progress("Updating files", 100, 200, 200)
        assert len(told.messages) == 2
        assert told.messages[0] == "Cloning into 'copy'..."
        assert told.messages[1].startswith("remote: Total 203")
        phases = []
        reader = ProgressReader()
        for at in range(0, len(done.stderr), 16):
            if reader.feed(done.stderr[at : at + 16]) and reader.current and reader.current.phase not in phases:
                phases.append(reader.current.phase)
        assert phases[:4] == ["Enumerating objects", "Counting objects", "Compressing objects", "Receiving objects"]
        assert phases[-1] == "Updating files"

        copy = tmp_path / "copy"
        for number in range(3):
            sandbox.commit(copy, {"big": os.urandom(100_000)}, str(number))
        pushed = read(sandbox.attempt(copy, "push", "--progress", "--porcelain").stderr)
        assert pushed.current is not None
        assert (pushed.current.phase, pushed.current.done) == ("Writing objects", 9)
        assert pushed.current.bytes is not None
        assert 300_000 < pushed.current.bytes < 310_000
        assert "remote: thanks" in pushed.messages

        rebased = read(sandbox.attempt(copy, "rebase", "--force-rebase", "HEAD~3").stderr)
        assert rebased.current == Progress("Rebasing", 100, 3, 3)
        assert rebased.messages == ["Successfully rebased and updated refs/heads/main."]
