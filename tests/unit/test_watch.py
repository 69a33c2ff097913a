"""The watcher: every change, exactly once, by its right path."""

import asyncio
import contextlib
import errno
import mmap
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from support.mirror import Mirror, watching
from support.waiting import until
from workspace_runtime import inotify
from workspace_runtime.files.temporary import is_temporary
from workspace_runtime.files.watch import Watcher
from workspace_runtime.files.watching import folders, settling, telling
from workspace_runtime.paths import WorkspaceRoot, etag_of

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's"),
]

TEMPORARY = ".workspace-runtime-0123456789abcdef.tmp"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workspace with a file, older than what counts as just written, and a folder with two."""
    root = tmp_path / "work"
    (root / "folder" / "inner").mkdir(parents=True)
    for name in ("file", "folder/one", "folder/inner/two"):
        (root / name).write_text("before")
        os.utime(root / name, (1e9, 1e9))
    return root


def make(path: Path, text: str = "text") -> None:
    """A file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


async def events_of(mirror: Mirror) -> list[tuple[str, bytes]]:
    """All events of what was done so far; the mirror equals the disk and saw no event that can't be."""
    await mirror.barrier()
    await mirror.settled()
    assert mirror.faults == []
    return mirror.events()


# --- files ------------------------------------------------------------------------------------------------------------


async def test_a_new_file_is_created_once(work: Path) -> None:
    async with watching(work) as (mirror, _):
        make(work / "new", "hello")
        change = await mirror.told(b"new")
        status = (work / "new").stat()
        assert (change.event_type, change.is_dir, change.moved_from) == ("created", False, None)
        assert (change.size, change.modified_ns, change.etag) == (5, status.st_mtime_ns, etag_of(status))
        assert await events_of(mirror) == [("created", b"new")]


async def test_a_write_is_modified_once(work: Path) -> None:
    async with watching(work) as (mirror, _):
        for text in ("a", "bb", "ccc"):
            make(work / "file", text)
            assert await events_of(mirror) == [("modified", b"file")]
        with (work / "folder/one").open("a") as file:
            file.write("more")
        assert await events_of(mirror) == [("modified", b"folder/one")]


async def test_a_deleted_file(work: Path) -> None:
    async with watching(work) as (mirror, _):
        (work / "file").unlink()
        change = await mirror.told(b"file")
        assert (change.event_type, change.size, change.modified_ns, change.etag) == ("deleted", None, None, None)
        assert await events_of(mirror) == [("deleted", b"file")]


async def test_attributes_count_as_modified(work: Path) -> None:
    async with watching(work) as (mirror, _):
        (work / "file").chmod(0o600)
        assert await events_of(mirror) == [("modified", b"file")]
        os.utime(work / "file")
        assert await events_of(mirror) == [("modified", b"file")]
        (work / "folder").chmod(0o700)
        assert await events_of(mirror) == [("modified", b"folder")]


async def test_a_content_with_the_time_of_the_old_one(work: Path) -> None:
    for name, content in (("one", "v=1"), ("two", "v=2")):
        (work / "folder" / name).write_text(content)
        os.utime(work / "folder" / name, (1e9, 1e9))
    shutil.copy2(work / "folder/one", work / "file")
    async with watching(work) as (mirror, _):
        before = mirror.entries[b"file"]
        shutil.copy2(work / "folder/two", work / "file")
        assert await events_of(mirror) == [("modified", b"file")]
        assert mirror.entries[b"file"] == (False, 3, etag_of((work / "file").stat())) != before


async def test_opening_to_write_is_no_change(work: Path) -> None:
    async with watching(work) as (mirror, _):
        with (work / "file").open("r+"):
            pass
        assert await events_of(mirror) == []


async def test_memory_that_is_mapped(work: Path) -> None:
    async with watching(work) as (mirror, _):
        with (work / "file").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[0:1] = b"B"
            memory.flush()
        assert await events_of(mirror) == [("modified", b"file")]


async def test_a_file_written_slowly_is_told_as_it_is_at_last(work: Path) -> None:
    async with watching(work) as (mirror, _):
        with (work / "slow").open("w", buffering=1) as file:
            for number in range(60):
                file.write(f"line {number}\n")
                await asyncio.sleep(0.002)
        types = [event for event, _ in await events_of(mirror)]
        assert types[0] == "created"
        assert len(types) < 10


async def test_a_rename_over_a_file_is_one_change(work: Path) -> None:
    async with watching(work) as (mirror, _):
        make(work / "beside", "new")
        (work / "beside").rename(work / "file")
        assert await events_of(mirror) == [("modified", b"file")]
        make(work / "beside", "new")
        (work / "beside").rename(work / "fresh")
        assert await events_of(mirror) == [("created", b"fresh")]


async def test_made_and_gone_is_nothing(work: Path) -> None:
    async with watching(work) as (mirror, _):
        make(work / "brief")
        (work / "brief").unlink()
        (work / "file").rename(work / "elsewhere")
        (work / "elsewhere").rename(work / "file")
        (work / "folder").rename(work / "elsewhere")
        (work / "elsewhere").rename(work / "folder")
        # a rename changes the etag of a file
        assert await events_of(mirror) == [("modified", b"file")]
        make(work / "folder/inner/two", "still watched")
        assert await events_of(mirror) == [("modified", b"folder/inner/two")]


async def test_our_temporary_names_are_never_told(work: Path) -> None:
    assert is_temporary(TEMPORARY)
    async with watching(work) as (mirror, _):
        make(work / TEMPORARY)
        assert await events_of(mirror) == []
        (work / TEMPORARY).rename(work / "file")
        assert (await mirror.told(b"file")).moved_from is None
        assert await events_of(mirror) == [("modified", b"file")]
        make(work / "folder" / TEMPORARY / "below")
        make(work / "new" / TEMPORARY)
        assert await events_of(mirror) == [("created", b"new")]
        (work / "new" / TEMPORARY).rename(work / "new/kept")
        assert await events_of(mirror) == [("created", b"new/kept")]


async def test_a_moved_file(work: Path) -> None:
    async with watching(work) as (mirror, _):
        (work / "file").rename(work / "folder/moved")
        assert (await mirror.told(b"folder/moved")).moved_from == b"file"
        assert sorted(await events_of(mirror)) == [("created", b"folder/moved"), ("deleted", b"file")]
        (work / "folder/moved").rename(work / "folder/one")
        assert (await mirror.told(b"folder/one")).moved_from == b"folder/moved"
        assert sorted(await events_of(mirror)) == [("deleted", b"folder/moved"), ("modified", b"folder/one")]
        (work / "folder/one").rename(work / "x")
        (work / "x").rename(work / "y")
        assert (await mirror.told(b"y")).moved_from == b"folder/one"
        assert sorted(await events_of(mirror)) == [("created", b"y"), ("deleted", b"folder/one")]


async def test_a_move_out_and_in(work: Path, tmp_path: Path) -> None:
    async with watching(work) as (mirror, _):
        (work / "file").rename(tmp_path / "outside")
        assert await events_of(mirror) == [("deleted", b"file")]
        (tmp_path / "outside").rename(work / "file")
        assert (await mirror.told(b"file")).moved_from is None
        assert await events_of(mirror) == [("created", b"file")]


async def test_another_kind_under_the_same_name(work: Path) -> None:
    async with watching(work) as (mirror, _):
        (work / "file").unlink()
        make(work / "file/below")
        assert await events_of(mirror) == [("deleted", b"file"), ("created", b"file"), ("created", b"file/below")]
        shutil.rmtree(work / "file")
        make(work / "file")
        assert await events_of(mirror) == [("deleted", b"file"), ("created", b"file")]
        (work / "file").unlink()
        (work / "file").symlink_to("folder")
        change = await mirror.told(b"file")
        assert (change.event_type, change.is_dir, change.etag) == ("modified", False, None)
        assert await events_of(mirror) == [("modified", b"file")]


async def test_names_are_bytes(work: Path) -> None:
    name = b"\xff\xfe line\nbreak \xe9"
    top = os.fsencode(work)
    async with watching(work) as (mirror, _):
        os.mkdir(top + b"/" + name)
        make(Path(os.fsdecode(top + b"/" + name + b"/" + name)))
        assert await events_of(mirror) == [("created", name), ("created", name + b"/" + name)]
        os.rename(top + b"/" + name, top + b"/\x80")
        assert (await mirror.told(b"\x80/" + name)).moved_from == name + b"/" + name


# --- folders ----------------------------------------------------------------------------------------------------------


async def test_folders_made_in_a_burst(work: Path) -> None:
    async with watching(work) as (mirror, watcher):
        wanted = []
        for number in range(40):
            path = b"burst%d" % number
            make(work / f"burst{number}/b/c/d/e")
            for name in (b"", b"/b", b"/c", b"/d", b"/e"):
                path += name
                wanted.append(("created", path))
            if number % 4 == 0:
                await asyncio.sleep(0.005 * (number % 3))
        assert sorted(await events_of(mirror)) == sorted(wanted)
        assert watcher.watched == 3 + 4 * 40


async def test_a_deleted_folder_is_one_event(work: Path) -> None:
    async with watching(work) as (mirror, watcher):
        shutil.rmtree(work / "folder")
        await mirror.told(b"folder", "deleted")
        told = await events_of(mirror)
        assert told[-1] == ("deleted", b"folder")
        assert watcher.watched == 1


async def test_a_folder_moved_inside(work: Path) -> None:
    async with watching(work) as (mirror, watcher):
        (work / "folder").rename(work / "moved")
        await mirror.told(b"moved/inner/two")
        origins = {change.path: change.moved_from for change in mirror.changes if change.event_type == "created"}
        assert origins == {
            b"moved": b"folder",
            b"moved/one": b"folder/one",
            b"moved/inner": b"folder/inner",
            b"moved/inner/two": b"folder/inner/two",
        }
        assert [path for event, path in await events_of(mirror) if event == "deleted"] == [b"folder"]
        assert watcher.watched == 3
        make(work / "moved/inner/two", "after")
        make(work / "moved/inner/three")
        assert await events_of(mirror) == [("modified", b"moved/inner/two"), ("created", b"moved/inner/three")]


async def test_a_folder_moved_into_one_just_made(work: Path) -> None:
    async with watching(work) as (mirror, watcher):
        (work / "new/deep").mkdir(parents=True)
        (work / "folder").rename(work / "new/deep/folder")
        make(work / "new/deep/folder/late")
        await mirror.told(b"new/deep/folder/inner/two")
        origins = {change.path: change.moved_from for change in mirror.changes if change.moved_from}
        assert origins[b"new/deep/folder"] == b"folder"
        assert origins[b"new/deep/folder/inner/two"] == b"folder/inner/two"
        assert b"new/deep/folder/late" not in origins
        await events_of(mirror)
        make(work / "new/deep/folder/inner/two", "after")
        assert await events_of(mirror) == [("modified", b"new/deep/folder/inner/two")]
        assert watcher.watched == 5


async def test_folders_that_change_places(work: Path) -> None:
    make(work / "other/mine")
    async with watching(work) as (mirror, watcher):
        (work / "folder").rename(work / "between")
        (work / "other").rename(work / "folder")
        (work / "between").rename(work / "other")
        await events_of(mirror)
        make(work / "folder/mine", "a")
        make(work / "other/inner/two", "b")
        assert sorted(await events_of(mirror)) == [("modified", b"folder/mine"), ("modified", b"other/inner/two")]
        assert watcher.watched == 4


async def test_a_folder_made_anew_under_its_name(work: Path) -> None:
    async with watching(work) as (mirror, watcher):
        shutil.rmtree(work / "folder")
        make(work / "folder/other")
        told = [event for event in await events_of(mirror) if event[1] in (b"folder", b"folder/other")]
        assert told == [("deleted", b"folder"), ("created", b"folder"), ("created", b"folder/other")]
        make(work / "folder/other", "after")
        assert await events_of(mirror) == [("modified", b"folder/other")]
        assert watcher.watched == 2


async def test_a_folder_moved_out_is_let_go(work: Path, tmp_path: Path) -> None:
    async with watching(work) as (mirror, watcher):
        (work / "folder").rename(tmp_path / "outside")
        assert await events_of(mirror) == [("deleted", b"folder")]
        await until(lambda: watcher.watched == 1)
        make(tmp_path / "outside/inner/two", "not ours")
        assert await events_of(mirror) == []
        (tmp_path / "outside").rename(work / "back")
        wanted = [b"back", b"back/inner", b"back/inner/two", b"back/one"]
        assert sorted(path for _, path in await events_of(mirror)) == wanted
        assert watcher.watched == 3


def aside(work: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    """Take `folder` away, and put it back."""
    return partial(os.rename, work / "folder", work / "aside"), partial(os.rename, work / "aside", work / "folder")


@contextlib.contextmanager
def at_each_hold(path: bytes, before: Callable[[], object], after: Callable[[], object], times: int) -> Iterator[None]:
    """Somebody acts around each of the first looks into a folder, where the watcher can't know of it yet."""
    real, left = WorkspaceRoot.hold, times

    def hold(root: WorkspaceRoot, wanted: bytes) -> int:
        nonlocal left
        if wanted != path or left == 0 or threading.current_thread().name != "watcher":
            return real(root, wanted)
        left -= 1
        before()
        try:
            return real(root, wanted)
        finally:
            after()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkspaceRoot, "hold", hold)
        yield
    assert left == 0


async def test_a_folder_above_is_away_for_a_moment_while_a_new_one_is_entered(work: Path) -> None:
    async with watching(work) as (mirror, _):
        with at_each_hold(b"folder/new", *aside(work), 1):
            make(work / "folder/new/deep/file")
            await mirror.settled()
        await events_of(mirror)


async def test_a_folder_is_away_at_many_looks_in_a_row(work: Path) -> None:
    async with watching(work) as (mirror, _):
        with at_each_hold(b"folder/inner", *aside(work), 8):
            make(work / "folder/inner/more")
            make(work / "folder/inner/new/file")
            await mirror.settled()
        await events_of(mirror)


async def test_a_folder_found_at_another_place_amid_the_looks(work: Path) -> None:
    make(work / "folder/inner/deep/three")

    def move() -> None:
        os.rename(work / "folder/inner", work / "a/inner")

    def link_then_wait() -> None:
        link = work / "a/inner/deep/link"
        if link.is_symlink():
            time.sleep(0.015)  # so that it is not young any more
        else:
            link.symlink_to("three")

    async with watching(work) as (mirror, _):
        with at_each_hold(b"a", move, lambda: None, 1), at_each_hold(b"a/inner/deep", link_then_wait, lambda: None, 2):
            make(work / "folder/inner/deep/three", "first")
            os.mkdir(work / "a")
            await mirror.settled()
        await events_of(mirror)


async def test_links_are_not_followed(work: Path, tmp_path: Path) -> None:
    make(tmp_path / "outside/secret")
    (work / "link").symlink_to(tmp_path / "outside")
    async with watching(work) as (mirror, watcher):
        assert watcher.watched == 3
        make(tmp_path / "outside/secret", "after")
        (work / "folder").rename(work / "kept")
        (work / "folder").symlink_to(tmp_path / "outside")
        make(tmp_path / "outside/inner/more")
        told = await events_of(mirror)
        assert ("created", b"folder") in told
        assert not [path for _, path in told if path.startswith((b"link", b"folder/"))]
        assert watcher.watched == 3


async def test_a_very_deep_tree() -> None:
    work = Path(tempfile.mkdtemp())  # what pytest removes its folders with recurses
    (work / "folder").mkdir()

    def make_deep(folder: int) -> None:
        for _ in range(1000):
            os.mkdir("d", dir_fd=folder)
            below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = below
        os.close(folder)

    make_deep(os.open(work, os.O_RDONLY | os.O_DIRECTORY))
    try:
        async with watching(work) as (mirror, watcher):
            assert watcher.watched == 1002
            os.rename(work / "d", work / "e")
            await mirror.told(b"e/" + b"/".join([b"d"] * 999))
            make_deep(os.open(work / "folder", os.O_RDONLY | os.O_DIRECTORY))
            await mirror.told(b"folder/" + b"/".join([b"d"] * 1000))
            assert watcher.watched == 2002
    finally:
        subprocess.run(["rm", "-rf", work], check=True)


async def test_folders_that_may_not_be_read(work: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    os.chmod(work, 0o755)
    os.chown(work, 65534, 65534)
    root = WorkspaceRoot(work)
    mirror = Mirror(root)
    watcher = Watcher(root, mirror.changed, mirror.resync)
    (work / "folder/inner").chmod(0)
    os.seteuid(65534)
    try:
        await watcher.start()
        assert watcher.watched == 2
        os.mkdir("closed", 0, dir_fd=root.fd)
        assert (await mirror.told(b"closed")).is_dir
        os.chmod("closed", 0o755, dir_fd=root.fd)
        await mirror.told(b"closed", "modified")
        await until(lambda: watcher.watched == 3)
    finally:
        os.seteuid(0)
        await watcher.stop()
        root.close()


# --- what is not watched ----------------------------------------------------------------------------------------------


async def test_ignored_folders(work: Path) -> None:
    make(work / "node_modules/package/index.js")
    async with watching(work) as (mirror, watcher):
        assert watcher.watched == 3
        make(work / "node_modules/package/more.js")
        make(work / "folder/node_modules/package/index.js")
        assert await events_of(mirror) == [("created", b"folder/node_modules")]
        shutil.rmtree(work / "node_modules")
        assert await events_of(mirror) == [("deleted", b"node_modules")]
        make(work / "node_modules/package/index.js")
        assert await events_of(mirror) == [("created", b"node_modules")]
        (work / "folder/node_modules").rename(work / "folder/seen")
        await mirror.told(b"folder/seen/package/index.js")
        (work / "folder/seen").rename(work / "folder/node_modules")
        await mirror.told(b"folder/seen", "deleted")
        await events_of(mirror)
        await until(lambda: watcher.watched == 3)


async def test_git_and_ignored_files(work: Path) -> None:
    subprocess.run(["git", "init", "-q", work], check=True)
    make(work / ".gitignore", "*.log\nbuild/\n")
    make(work / "build/out")
    async with watching(work) as (mirror, watcher):
        assert watcher.watched == 3
        make(work / "trace.log")
        make(work / "build/more")
        subprocess.run(["git", "add", "-A"], cwd=work, check=True)
        assert await events_of(mirror) == [("created", b"trace.log")]


async def test_rules_that_change(work: Path) -> None:
    subprocess.run(["git", "init", "-q", work], check=True)
    (work / ".git/info").mkdir(exist_ok=True)
    async with watching(work) as (mirror, watcher):
        make(work / ".gitignore", "folder/\n")
        await until(lambda: watcher.watched == 1)
        make(work / "folder/inner/two", "unseen")
        await mirror.barrier()
        (work / ".gitignore").unlink()
        await until(lambda: mirror.resyncs == [b"folder"])
        assert watcher.watched == 3
        await mirror.settled()
        make(work / ".git/info/exclude", "inner\n")
        await until(lambda: watcher.watched == 2)
        make(work / ".git/info/exclude", "")
        await until(lambda: mirror.resyncs == [b"folder", b"folder/inner"])
        make(work / "folder/.gitignore", "inner")
        await until(lambda: watcher.watched == 2)
        make(work / "folder/inner/two", "unseen again")
        await mirror.settled()


async def test_a_repository_that_comes_and_goes(work: Path) -> None:
    make(work / "node_modules/package/index.js")
    async with watching(work) as (mirror, watcher):
        subprocess.run(["git", "init", "-q", work], check=True)
        await until(lambda: mirror.resyncs == [b"node_modules"])  # git ignores it only where it is told to
        assert watcher.watched == 5
        make(work / ".git/info/exclude", "folder\n")  # of a repository that came later
        await until(lambda: watcher.watched == 3)
        shutil.rmtree(work / ".git")
        await until(lambda: watcher.watched == 3 and b"folder" in mirror.resyncs)
        await mirror.settled()
        assert not any(change.path.startswith(b".git") for change in mirror.changes)


# --- when something runs full -----------------------------------------------------------------------------------------


MANY = """
import os, shutil, sys
files = [open(f"{sys.argv[1]}/many{number}/file", "ab", buffering=0) for number in range(100)]
for _ in range(600):
    for file in files:
        file.write(b".")
shutil.rmtree(f"{sys.argv[1]}/many0")
os.mkdir(f"{sys.argv[1]}/late")
"""


@pytest.mark.timeout(150)
async def test_an_overflow_ends_in_a_resync(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "MAX_BATCHES", 1)
    for number in range(100):
        make(work / f"many{number}/file")
    async with watching(work) as (mirror, watcher):
        # the loop takes nothing meanwhile, so that the thread waits, and the kernel's queue runs full
        subprocess.run([sys.executable, "-c", MANY, work], check=True)
        await until(lambda: mirror.resyncs, 40)
        await mirror.settled(40)
        assert set(mirror.resyncs) == {b""}
        await until(lambda: watcher.watched == 3 + 99 + 1)
        mirror.changes.clear()
        make(work / "late/file", "watched again")
        await mirror.told(b"late/file", "created")


async def test_batches_are_bounded(work: Path) -> None:
    async with watching(work) as (mirror, _):
        for number in range(2500):
            make(work / f"file{number}")
        assert len(await events_of(mirror)) == 2500
        assert max(mirror.batches) <= 1000


async def test_folders_beyond_the_limit_are_polled(work: Path) -> None:
    async with watching(work, max_watches=2, poll_s=0.05) as (mirror, watcher):
        assert (watcher.watched, watcher.polled) == (2, 1)
        make(work / "folder/inner/two", "after")
        make(work / "folder/inner/new/deep/file")
        make(work / "file", "after")
        await mirror.told(b"folder/inner/two", "modified")
        await mirror.told(b"folder/inner/new/deep/file", "created")
        await mirror.settled()
        shutil.rmtree(work / "folder")
        await mirror.told(b"folder", "deleted")
        await mirror.settled()
        make(work / "again/deep/file")
        await mirror.told(b"again/deep/file", "created")
        assert mirror.faults == []
        assert (watcher.watched, watcher.polled) == (2, 1)


async def test_a_polled_folder_is_watched_when_it_can_be(work: Path) -> None:
    make(work / "other/file")
    async with watching(work, max_watches=3, poll_s=0.05) as (mirror, watcher):
        assert (watcher.watched, watcher.polled) == (3, 1)
        shutil.rmtree(work / "other")
        await until(lambda: (watcher.watched, watcher.polled) == (3, 0))
        make(work / "folder/inner/two", "after")
        await mirror.told(b"folder/inner/two", "modified")


async def test_polling_alone(work: Path) -> None:
    subprocess.run(["git", "init", "-q", work], check=True)
    (work / ".git/info").mkdir(exist_ok=True)
    async with watching(work, force_polling=True, poll_s=0.05) as (mirror, watcher):
        assert (watcher.watched, watcher.polled) == (0, 3)
        make(work / "file", "after")
        assert await events_of(mirror) == [("modified", b"file")]
        make(work / "a/b/c")
        assert await events_of(mirror) == [("created", b"a"), ("created", b"a/b"), ("created", b"a/b/c")]
        shutil.rmtree(work / "a")
        assert (await events_of(mirror))[-1] == ("deleted", b"a")
        (work / "folder").rename(work / "moved")
        await mirror.told(b"moved/inner/two", "created")
        await mirror.told(b"folder", "deleted")
        await mirror.settled()
        make(work / ".git/info/exclude", "inner\n")
        await until(lambda: watcher.polled == 2)
        (work / ".git/info/exclude").unlink()
        await until(lambda: mirror.resyncs == [b"moved/inner"])
        assert watcher.polled == 3


async def test_no_instance_left(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: inotify.Inotify) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(inotify.Inotify, "__init__", refuse)
    async with watching(work, poll_s=0.05) as (mirror, watcher):
        assert (watcher.watched, watcher.polled) == (0, 3)
        make(work / "file", "after")
        await mirror.told(b"file", "modified")


async def test_other_machines_disks_are_polled(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "file_system_type", lambda path: "nfs4")
    async with watching(work, poll_s=0.05) as (mirror, watcher):
        assert (watcher.watched, watcher.polled) == (0, 3)
        make(work / "folder/one", "after")
        await mirror.told(b"folder/one", "modified")


async def test_a_fault_of_ours_ends_in_a_resync(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with watching(work) as (mirror, _):
        with monkeypatch.context() as patch:
            patch.setattr(folders, "signature", lambda status: 1 / 0)
            patch.setattr(settling, "is_young", lambda status: 1 / 0)
            make(work / "file", "after")
            await until(lambda: mirror.resyncs == [b""])
        await mirror.settled()
        make(work / "file", "again")
        await mirror.told(b"file", "modified")


# --- the root, start and stop -----------------------------------------------------------------------------------------


async def test_a_root_that_is_removed_and_made_again(work: Path) -> None:
    async with watching(work) as (mirror, watcher):
        shutil.rmtree(work)
        await until(lambda: not mirror.entries)
        assert mirror.faults == []
        await until(lambda: watcher.watched == 0)
        make(work / "again/file")
        await until(lambda: mirror.resyncs == [b""])
        await mirror.settled()
        make(work / "again/file", "after")
        await mirror.told(b"again/file", "modified")


async def test_a_root_that_is_exchanged(work: Path, tmp_path: Path) -> None:
    async with watching(work) as (mirror, watcher):
        work.rename(tmp_path / "before")
        make(work / "new/file")
        await until(lambda: mirror.resyncs == [b""])
        await mirror.settled()
        make(tmp_path / "before/folder/one", "nobody hears of it")
        make(work / "new/file", "after")
        await mirror.told(b"new/file", "modified")
        assert b"folder/one" not in [change.path for change in mirror.changes if change.event_type != "deleted"]
        assert watcher.watched == 2


async def test_a_root_that_is_moved_stays_the_workspace(work: Path, tmp_path: Path) -> None:
    async with watching(work) as (mirror, watcher):
        work.rename(tmp_path / "renamed")
        make(tmp_path / "renamed/folder/one", "after")
        await mirror.told(b"folder/one", "modified")
        make(tmp_path / "renamed/a/b")
        await mirror.told(b"a/b", "created")
        assert watcher.watched == 4


async def test_what_begins_after_start_is_told(work: Path) -> None:
    for number in range(200):
        make(work / f"d{number}/file")
    for _ in range(5):
        async with watching(work) as (mirror, watcher):
            make(work / "d150/file", "after")
            assert await events_of(mirror) == [("modified", b"d150/file")]
            assert watcher.watched == 203


def open_files() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


async def test_start_and_stop_leave_nothing(work: Path) -> None:
    root = WorkspaceRoot(work)
    mirror = Mirror(root)
    watcher = Watcher(root, mirror.changed, mirror.resync)
    await watcher.stop()
    files, threads, tasks = open_files(), threading.active_count(), len(asyncio.all_tasks())
    for number in range(10):
        await watcher.start()
        with pytest.raises(RuntimeError):
            await watcher.start()
        make(work / f"new{number}")
        await mirror.told(f"new{number}".encode())
        await watcher.stop()
        await watcher.stop()
        assert watcher.watched == 0
        assert (open_files(), threading.active_count(), len(asyncio.all_tasks())) == (files, threads, tasks)
    count = len(mirror.changes)
    make(work / "after")
    await asyncio.sleep(0)
    assert len(mirror.changes) == count
    root.close()


async def test_stop_during_start(work: Path) -> None:
    for number in range(300):
        make(work / f"d{number}/e/f")
    root = WorkspaceRoot(work)
    files, threads = open_files(), threading.active_count()
    for number in range(20):
        watcher = Watcher(root, lambda changes: None, lambda paths: None)
        starting = asyncio.create_task(watcher.start())
        await asyncio.sleep(number / 2000)
        if number % 2:
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
        await asyncio.gather(watcher.stop(), watcher.stop())
        await asyncio.wait([starting])
        assert (open_files(), threading.active_count()) == (files, threads)
    root.close()


async def test_special_files(work: Path) -> None:
    async with watching(work) as (mirror, _):
        os.mkfifo(work / "fifo")
        change = await mirror.told(b"fifo")
        assert (change.event_type, change.is_dir, change.etag) == ("created", False, None)
        assert stat.S_ISFIFO((work / "fifo").lstat().st_mode)
        assert await events_of(mirror) == [("created", b"fifo")]
