"""Repositories for tests of what is read of them: made by real git in a home of its own, found as the product finds them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.git_home import Sandbox
from workspace_runtime.paths import WorkspaceRoot
from workspace_runtime.version_control.discovery import Known, find
from workspace_runtime.version_control.git import Stop
from workspace_runtime.version_control.repository import Repository


@contextmanager
def sandbox(folder: Path) -> Iterator[Sandbox]:
    """A sandbox whose environment is this process's own, so that the product's git lives in it, too."""
    made = Sandbox(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("GIT_")]:
            patch.delenv(name)
        for name, value in made.env.items():
            patch.setenv(name, value)
        yield made


def repository(workspace: Path, path: bytes = b"") -> Repository:
    """The repository that a path of the workspace lies in."""
    root = WorkspaceRoot(workspace)
    try:
        return find(root, path, Known(), Stop())[0]
    finally:
        root.close()


@dataclass(frozen=True)
class Made:
    """A commit to be made: the numbers of its parents (earlier ones), its date in seconds, and its message."""

    parents: Sequence[int] = ()
    date: int = 1_000_000_000
    message: bytes = b"x"
    author: bytes = b"Ada <ada@example.org>"
    file: tuple[bytes, bytes] | None = None  # name, content


def import_history(box: Sandbox, folder: Path, commits: Sequence[Made], ref: str = "refs/heads/main") -> list[str]:
    """Make commits by `git fast-import`, the last of them the ref's; their ids in order."""
    stream = [b"feature done\n"]
    for number, commit in enumerate(commits, 1):
        who = b"%b %d +0200\n" % (commit.author, commit.date)
        stream.append(b"commit refs/import/at\nmark :%d\nauthor %bcommitter %b" % (number, who, who))
        stream.append(b"data %d\n%b\n" % (len(commit.message), commit.message))
        for place, parent in enumerate(commit.parents):
            stream.append(b"%b :%d\n" % (b"merge" if place else b"from", parent + 1))
        if not commit.parents:
            stream.append(b"deleteall\n")
        name, content = commit.file or (b"file", b"%d" % number)
        stream.append(b"M 100644 inline %b\ndata %d\n%b\n" % (name, len(content), content))
        stream.append(b"reset refs/import/at\n\n" if commit is not commits[-1] else b"")
    marks = folder.parent / f"{folder.name}.marks"
    stream.append(b"reset %b\nfrom :%d\n\ndone\n" % (ref.encode(), len(commits)))
    box.git(folder, "fast-import", "--quiet", "--force", f"--export-marks={marks}", input=b"".join(stream))
    box.git(folder, "update-ref", "-d", "refs/import/at")
    ids = dict(line.split() for line in marks.read_text().splitlines())
    return [ids[f":{number}"] for number in range(1, len(commits) + 1)]
