"""What people and tools really do in a workspace: after each, a client that only applied the events has what is on the disk."""

import asyncio
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support import mirror as mirror_module
from support.mirror import Mirror, watching
from workspace_runtime.files.watch import Watcher

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's"),
]

GIT = ("git", "-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgSign=false")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty workspace."""
    root = tmp_path / "work"
    root.mkdir()
    return root


async def run(*command: str | Path, cwd: Path) -> None:
    """A command that must end well."""
    process = await asyncio.create_subprocess_exec(*command, cwd=cwd, stdout=subprocess.DEVNULL)
    assert await process.wait() == 0


async def settled(mirror: Mirror, watcher: Watcher) -> None:
    """The mirror equals the disk, no event was impossible, and each folder's watch leads to its right path."""
    await mirror.settled(30)
    await mirror.barrier()
    await mirror.settled()
    assert mirror.faults == []
    top = os.fsencode(mirror.root.path)
    folders = [path for path, (is_dir, _, _) in mirror.entries.items() if is_dir]
    ignored = mirror_module.on_disk(mirror.root)[1]
    for path in folders:
        if path not in ignored:
            with open(top + b"/" + path + b"/probe", "wb"):
                pass
    await mirror.settled(30)
    await mirror.barrier()
    for path in folders:
        if path not in ignored:
            os.unlink(top + b"/" + path + b"/probe")
    await mirror.settled(30)
    await mirror.barrier()
    assert mirror.faults == []
    mirror.changes.clear()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two branches of 3,000 files; half of them differ, some folders are in one only."""
    top = tmp_path_factory.mktemp("origin")
    subprocess.run([*GIT, "init", "-q", "-b", "first", top], check=True)
    for branch in ("first", "second"):
        if branch == "second":
            subprocess.run([*GIT, "checkout", "-q", "-b", branch], cwd=top, check=True)
            shutil.rmtree(top / "first-only")
        for number in range(3000):
            kind = "shared" if number % 2 else branch if number % 10 == 0 else "both"
            folder = {"shared": "shared", "both": "both", branch: f"{branch}-only"}[kind]
            path = top / folder / f"part{number % 50}" / f"file{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{number}\n" if kind == "shared" else f"{branch} {number}\n")
        (top / ".gitignore").write_text("*.log\nbuild/\n")
        subprocess.run([*GIT, "add", "-A"], cwd=top, check=True)
        subprocess.run([*GIT, "commit", "-q", "-m", branch], cwd=top, check=True)
    return top


@pytest.mark.long
async def test_clone_and_checkout(work: Path, origin: Path) -> None:
    async with watching(work) as (mirror, watcher):
        await run("git", "clone", "-q", origin, "clone", cwd=work)
        await settled(mirror, watcher)
        for branch in ("first", "second", "first"):
            await run("git", "checkout", "-q", branch, cwd=work / "clone")
            await mirror.settled()
            await mirror.barrier()
            paths = [change.path for change in mirror.changes]
            assert all(not path.startswith(b"clone/shared/") for path in paths)  # what git left alone is not told
            assert mirror.resyncs == []
            twice = [change for change in mirror.changes if paths.count(change.path) > 1]
            assert twice == []
            await settled(mirror, watcher)


@pytest.mark.long
async def test_clone_into_the_root(work: Path, origin: Path) -> None:
    async with watching(work) as (mirror, watcher):
        await run("git", "clone", "-q", origin, ".", cwd=work)
        await settled(mirror, watcher)
        await run("git", "checkout", "-q", "first", cwd=work)
        (work / "build/deep").mkdir(parents=True)
        await settled(mirror, watcher)
        assert b"build" in mirror.entries
        assert b"build/deep" not in mirror.entries


@pytest.mark.long
async def test_npm_install(work: Path, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    package = tmp_path / "package"
    for number in range(300):
        path = package / f"lib{number % 30}" / f"module{number}.js"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"exports.n = {number}")
    (package / "package.json").write_text('{"name": "dependency", "version": "1.0.0"}')
    (work / "package.json").write_text('{"name": "top", "version": "1.0.0", "private": true}')
    await run("git", "init", "-q", cwd=work)  # so that node_modules is not ignored
    install = ("npm", "install", "--offline", "--no-audit", "--no-fund", "--install-links", f"--cache={tmp_path}/cache")
    async with watching(work) as (mirror, watcher):
        await run(*install, package, cwd=work)
        await settled(mirror, watcher)
        assert b"node_modules/dependency/lib0/module0.js" in mirror.entries
        shutil.rmtree(work / ".git")
        await asyncio.sleep(0)
        await mirror.settled()


@pytest.mark.long
async def test_pip_install(work: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for number in range(1000):
            archive.writestr(f"thing/part{number % 20}/module{number}.py", f"n = {number}")
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "")
    pip = shutil.which("pip3") or shutil.which("pip")
    if pip is None:
        pytest.skip("pip is not installed")
    command = (pip, "install", "-q", "--no-index", "--root-user-action=ignore", "--disable-pip-version-check")
    async with watching(work) as (mirror, watcher):
        await run(*command, "--target", work / "libraries", wheel, cwd=tmp_path)
        await settled(mirror, watcher)
        assert b"libraries/thing/part0/module0.py" in mirror.entries


@pytest.mark.long
async def test_copy_move_and_remove(work: Path, origin: Path) -> None:
    async with watching(work) as (mirror, watcher):
        await run("cp", "-a", origin, "copy", cwd=work)
        await settled(mirror, watcher)
        await run("mv", "copy", "moved", cwd=work)
        await settled(mirror, watcher)
        await run("rm", "-rf", "moved", cwd=work)
        await mirror.settled()
        await mirror.barrier()
        assert mirror.changes[-1].path == b"moved"
        assert watcher.watched == 1


@pytest.mark.parametrize(
    ("tool", "command"),
    [
        ("sed", ["sed", "-i", "s/old/new/", "file"]),
        ("vim", ["vim", "-u", "NONE", "-es", "-c", "set backup writebackup", "-c", "%s/old/new/", "-c", "wq", "file"]),
        ("vim", ["vim", "-u", "NONE", "-es", "-c", "set backupcopy=no", "-c", "%s/old/new/", "-c", "wq", "file"]),
        ("ed", ["sh", "-c", "printf '%s\\n' ',s/old/new/' w q | ed -s file"]),
        (
            "git",
            ["sh", "-c", "git init -q && git add file && echo dirty > file && git checkout -q file && rm -rf .git"],
        ),
    ],
)
async def test_editors_make_one_change(work: Path, tool: str, command: list[str]) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    (work / "file").write_text("old\n")
    os.utime(work / "file", (1e9, 1e9))
    async with watching(work) as (mirror, _):
        await run(*command, cwd=work)
        await mirror.barrier()
        await mirror.settled()
        changes = [change for change in mirror.changes if change.path == b"file"]
        assert {change.event_type for change in changes} == {"modified"}
        if tool != "git":  # which writes twice, and not at once
            assert len(changes) == 1
        assert mirror.faults == []


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"max_watches": 20, "poll_s": 0.2}, {"force_polling": True, "poll_s": 0.2}])
async def test_two_processes_change_everything(work: Path, seed: int, options: dict[str, float]) -> None:
    async with watching(work, **options) as (mirror, watcher):
        mirror.exact = False  # there are hard links
        program = str(mirror_module.__file__)
        churns = [run(sys.executable, program, work, f"{seed}{number}", "4", cwd=work) for number in range(2)]
        await asyncio.gather(*churns)
        assert len(mirror.changes) > 100
        await settled(mirror, watcher)
        folders = sum(is_dir for is_dir, _, _ in mirror.entries.values())
        async with asyncio.timeout(60):  # what took another's place is found out in the next round of polling
            while watcher.watched + watcher.polled != folders + 1:
                await asyncio.sleep(0.05)
