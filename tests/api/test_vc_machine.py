"""`status` is never stale: after each random step of any program it is what plumbing reads of the same repository.

A step follows the answer before it at once, in the same tick of the clock where it can: what git calls racy happens all the time.
"""

import itertools
import mmap
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.plumbing import as_read, as_told
from support.version_control import Case, Host, host

NAMES = ["a", "b", "x.log", "sub/c", "sub/deep/d", "with space", "new\nline", "ü", "\udce9", "other/e"]
IGNORED = ["", "*.log\n", "sub/\n", "other\n", "*\n!a\n", "/sub/deep\n", "new*\n", "ü\n"]
CONFIG = [
    ("core.fileMode", "false"), ("core.fileMode", "true"), ("core.autocrlf", "true"), ("core.autocrlf", "false"),
    ("status.showUntrackedFiles", "no"), ("status.showUntrackedFiles", "normal"), ("status.showUntrackedFiles", "all"),
    ("status.renames", "false"), ("diff.renames", "false"), ("core.untrackedCache", "true"), ("core.untrackedCache", "false"),
    ("index.version", "4"), ("core.quotePath", "true"), ("status.relativePaths", "false"), ("core.preloadIndex", "false"),
]  # fmt: skip
_runs = itertools.count()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("machine")) as made:
        yield made


class Walk:
    """Random steps in one repository, by files, by git and by the API."""

    def __init__(self, here: Host, seed: int) -> None:
        self.random = random.Random(seed)
        self.case: Case = here.init(f"walk {next(_runs)}")
        self.excludes = here.server.folder / "excludes"
        self.excludes.write_text("")
        here.box.git(here.workspace, "config", "--global", "core.excludesFile", str(self.excludes))
        self.outside = here.server.folder / f"links {self.case.folder.name}"
        self.outside.mkdir()
        self.maps: list[mmap.mmap] = []
        self.told: list[str] = []
        self.case.commit({"a": b"a\n" * 20, "b": b"b\r\n", "sub/c": b"c\n"}, "first")
        self.case.git("branch", "side")

    def close(self) -> None:
        for mapped in self.maps:
            mapped.close()

    def step(self) -> None:
        """One step of some program, and one look."""
        steps = [self.write] * 4 + [
            self.rewrite,
            self.append,
            self.touch,
            self.set_back,
            self.map,
            self.through_a_link,
        ] * 2
        steps += [
            self.rename,
            self.delete,
            self.mode,
            self.folders,
            self.link,
            self.ignore,
            self.configure,
            self.inner,
        ] * 2
        steps += [self.git] * 12 + [self.api] * 6
        chosen: Callable[[], str] = self.random.choice(steps)
        self.told.append(f"{chosen.__name__} {chosen()}")

    def check(self) -> None:
        told = as_told(self.case.status())
        read = as_read(self.case)
        steps = "\n".join(self.told[-12:])
        assert told[0] == read[0], f"{sorted(told[0] ^ read[0], key=str)} after\n{steps}"
        # what the working tree has undone again is no difference from the last commit: git has no line for it
        none = {(None, None), (0, 0)}
        differing = {
            path: (count, read[1].get(path))
            for path, count in told[1].items()
            if count not in ({read[1][path]} if path in read[1] else none) and path not in read[2]
        }
        assert not differing, f"{differing} after\n{steps}"

    # --- files ----------------------------------------------------------------------------------------------------------

    def name(self) -> str:
        return self.random.choice(NAMES)

    def path(self, name: str) -> Path:
        path = self.case.folder / name
        for parent in reversed(path.relative_to(self.case.folder).parents):
            above = self.case.folder / parent
            if above != self.case.folder and not above.is_dir():
                above.unlink(missing_ok=True)
                above.mkdir()
        return path

    def file(self) -> Path | None:
        """A regular file that is there."""
        there = [path for name in NAMES if (path := self.case.folder / name).is_file() and not path.is_symlink()]
        return self.random.choice(there) if there else None

    def content(self) -> bytes:
        line = self.random.choice([b"one\n", b"two\n", b"b\r\n", b"\0\xff", b"a\n"])
        return line * self.random.choice([0, 1, 2, 20])

    def write(self) -> str:
        path = self.path(self.name())
        if path.is_dir():
            return "nothing"
        if path.is_symlink():
            path.unlink()
        path.write_bytes(self.content())
        return path.name

    def rewrite(self) -> str:
        """Other content of the same size."""
        if (path := self.file()) is None:
            return "nothing"
        content = bytes(byte ^ 1 if byte not in b"\r\n\v\f" else byte for byte in path.read_bytes())
        with open(path, "r+b") as file:
            file.write(content)
        return path.name

    def append(self) -> str:
        if (path := self.file()) is None:
            return "nothing"
        with open(path, "ab") as file:
            file.write(b"x\n")
        return path.name

    def touch(self) -> str:
        if (path := self.file()) is not None:
            os.utime(path)
        return str(path)

    def set_back(self) -> str:
        """Another content, and the time of the one before."""
        if (path := self.file()) is None:
            return "nothing"
        before = path.stat()
        word = self.rewrite() if self.random.random() < 0.3 else self.append()
        if path.exists():
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return f"{word} {path.name}"

    def map(self) -> str:
        """A write by memory that stays mapped."""
        if (path := self.file()) is None or not path.stat().st_size:
            return "nothing"
        with open(path, "r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        self.maps.append(mapped)
        mapped[0] = mapped[0] ^ 2
        return path.name

    def through_a_link(self) -> str:
        """A write through another name that lies outside of the repository."""
        if (path := self.file()) is None:
            return "nothing"
        other = self.outside / str(path.stat().st_ino)
        other.unlink(missing_ok=True)
        os.link(path, other)
        with open(other, "r+b") as file:
            file.write(b"L")
        return path.name

    def rename(self) -> str:
        path = self.file()
        target = self.path(self.name())
        if path is None or target.is_dir() or not path.exists():
            return "nothing"
        path.rename(target)
        return f"{path.name} {target.name}"

    def delete(self) -> str:
        if (path := self.file()) is not None:
            path.unlink()
        return str(path)

    def mode(self) -> str:
        if (path := self.file()) is not None:
            path.chmod(path.stat().st_mode ^ 0o111)
        return str(path)

    def folders(self) -> str:
        folder = self.case.folder / self.random.choice(["sub/empty", "other/deep/empty", "new folder"])
        if folder.is_dir():
            folder.rmdir() if not any(folder.iterdir()) else None
        else:
            self.path(f"{folder.relative_to(self.case.folder)}/x")
        return folder.name

    def inner(self) -> str:
        """Another repository in a folder comes or goes."""
        folder = self.case.folder / self.random.choice(["other/deep/empty", "new folder", "plain"])
        if (folder / ".git").is_dir():
            shutil.rmtree(folder / ".git")
            return f"{folder.name} goes"
        self.path(f"{folder.relative_to(self.case.folder)}/x")
        self.case.attempt("init", "-q", str(folder))
        return f"{folder.name} comes"

    def link(self) -> str:
        path = self.path(self.name())
        if path.is_dir() and not path.is_symlink():
            return "nothing"
        path.unlink(missing_ok=True)
        path.symlink_to(self.random.choice(["a", "gone", "sub"]))
        return path.name

    def ignore(self) -> str:
        place = self.random.choice(
            [
                self.case.folder / ".gitignore",
                self.case.folder / ".git/info/exclude",
                self.excludes,
                self.path("sub/.gitignore"),
            ]
        )
        if place.is_dir():
            return "nothing"
        place.write_text(text := self.random.choice(IGNORED))
        return f"{place.name} {text!r}"

    # --- git --------------------------------------------------------------------------------------------------------------

    def configure(self) -> str:
        key, value = self.random.choice(CONFIG)
        self.case.attempt("config", *self.random.choice((["--local"], ["--global"])), key, value)
        return f"{key} {value}"

    def git(self) -> str:
        name = os.fsencode(self.name())
        commands: list[list[str | bytes]] = [
            ["add", "--", name], ["add", "--", name], ["add", "-A"], ["add", "-N", "--", name], ["add", "-u"], ["rm", "-q", "--cached", "--", name],
            ["rm", "-q", "-f", "--", name], ["reset", "-q"], ["reset", "-q", "--hard"], ["reset", "-q", "--soft", "HEAD~1"], ["reset", "-q", "--", name],
            ["commit", "-q", "-a", "-m", "x"], ["commit", "-q", "-m", "x"], ["commit", "-q", "--amend", "--no-edit"], ["checkout", "-q", "side"],
            ["checkout", "-q", "main"], ["checkout", "-q", "--", name], ["stash", "-q"], ["stash", "-q", "-u"], ["stash", "pop", "-q"], ["merge", "-q", "side"],
            ["merge", "-q", "main"], ["merge", "--abort"], ["update-index", "-q", "--refresh"], ["update-index", "--assume-unchanged", name],
            ["update-index", "--no-assume-unchanged", name], ["update-index", "--chmod=+x", name], ["mv", "-f", name, b"moved"], ["status"], ["clean", "-fdq"],
            ["gc", "-q"], ["update-index", "--force-remove", name], ["checkout", "-q", "-f", "side"], ["update-index", "--split-index"],
            ["update-index", "--no-split-index"], ["update-index", "--really-refresh", "-q"],
        ]  # fmt: skip
        command = self.random.choice(commands)
        status = self.case.attempt(*command)
        return f"{command} {status}"

    def api(self) -> str:
        name = self.name()
        encoded = "%E9" if name == "\udce9" else None
        paths = {"paths_bytes": [encoded]} if encoded else {"paths": [name]}
        bodies: list[tuple[str, dict[str, Any] | None]] = [
            ("stage", paths), ("stage", {"all": True}), ("unstage", paths), ("unstage", {"all": True}), ("discard", paths), ("discard", {"all": True}),
            ("discard", {**paths, "untracked": True}), ("commit", {"message": "x"}), ("commit", {"message": "x", **paths}),
            ("checkout", {"branch": "side", "local_changes": "stash"}), ("checkout", {"branch": "main", "local_changes": "discard"}),
            ("stash", {"include_untracked": True}), ("stash/0/pop", None), ("merge", {"ref": "side"}), ("merge/abort", None),
            ("conflicts/resolve", {**paths, "use": self.random.choice(["ours", "theirs", "base", "worktree"])}),
        ]  # fmt: skip
        route, body = self.random.choice(bodies)
        given = self.case.ask("POST", route, body)
        assert given.status < 500
        return f"{route} {body} {given.status}"


def walk(here: Host, seed: int, steps: int) -> None:
    walking = Walk(here, seed)
    try:
        for _ in range(steps):
            walking.step()
            walking.check()
    finally:
        walking.close()
        here.box.attempt(here.workspace, "config", "--global", "--remove-section", "core")
        here.box.attempt(here.workspace, "config", "--global", "--remove-section", "status")
        here.box.attempt(here.workspace, "config", "--global", "--remove-section", "diff")


@pytest.mark.parametrize("seed", range(5))
def test_status_after_each_step(here: Host, seed: int) -> None:
    walk(here, seed, 60)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(100, 120))
def test_status_after_many_steps(here: Host, seed: int) -> None:
    walk(here, seed, 300)
