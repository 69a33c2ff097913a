"""Packing: real tools get back what was there, nothing is followed or opened that should not be, and memory stays small."""

import contextlib
import errno
import io
import os
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.files.archive import pack
from workspace_runtime.files.stopping import Stopped
from workspace_runtime.paths import WorkspaceRoot

Kind = Literal["zip", "tar.gz"]
KINDS: tuple[Kind, ...] = ("zip", "tar.gz")
ODD = b"caf\xe9 \x80"  # unzip loses a byte 255 of a name


def never() -> bool:
    return False


@pytest.fixture
def top(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def root(top: Path) -> Iterator[WorkspaceRoot]:
    with contextlib.closing(WorkspaceRoot(top)) as opened:
        yield opened


def packed(root: WorkspaceRoot, kind: Kind, path: bytes = b"") -> bytes:
    return b"".join(pack(root, path, kind, stopped=never))


def unpacked(data: bytes, kind: Kind, into: Path) -> bytes:
    """What the real tools make of it; `unzip` for a zip."""
    into.mkdir()
    if kind == "zip":
        file = into.parent / "archive.zip"
        file.write_bytes(data)
        subprocess.run(["unzip", "-q", file, "-d", into], check=True, env={"LC_ALL": "C.UTF-8", "PATH": os.defpath})
    else:
        subprocess.run(["tar", "xzpf", "-"], cwd=into, input=data, check=True)
    return os.fsencode(into)


def tree(top: bytes) -> dict[bytes, tuple[object, ...]]:
    """All below a folder: kind, rights, time in seconds, and content or target."""
    found: dict[bytes, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            key = os.path.relpath(path, top)
            mode, when = stat.S_IMODE(status.st_mode), int(status.st_mtime)
            if stat.S_ISLNK(status.st_mode):
                found[key] = ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                found[key] = ("folder", mode, when)
            else:
                with open(path, "rb") as file:
                    found[key] = ("file", mode, when, file.read())
    return found


def fill(top: Path) -> None:
    """Every kind of thing that is packed."""
    base = os.fsencode(top)
    (top / "empty").mkdir()
    (top / "sub/deep").mkdir(parents=True)
    (top / "sub/deep/a.txt").write_text("hello\n" * 1000)
    (top / "nothing").touch()
    (top / "large").write_bytes(os.urandom(700_000) + bytes(700_000))
    (top / "run.sh").write_text("#!/bin/sh\n")
    (top / "run.sh").chmod(0o751)
    (top / "grün ☃").write_text("snow")
    with open(os.path.join(base, ODD), "wb") as file:
        file.write(b"odd")
    os.mkdir(os.path.join(base, b"f" + ODD))
    (top / ("n" * 250)).write_text("long")
    (top / "sub" / ("d" * 250)).mkdir()
    (top / "sub" / ("d" * 250) / ("f" * 250)).write_text("longer")
    (top / "back\\slash").write_text("a\\b")
    (top / "link").symlink_to("sub/deep/a.txt")
    (top / "out").symlink_to("/etc/passwd")
    (top / "dangling").symlink_to("x" * 300)
    (top / "to folder").symlink_to("sub")
    # by hand: `rglob` of Python 3.11 fails at a link to a name that is too long
    for folder, folders, files in os.walk(os.fsencode(top)):
        for name in (*folders, *files):
            os.utime(os.path.join(folder, name), (1_600_000_001, 1_600_000_001), follow_symlinks=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_real_tools_get_back_what_was_there(top: Path, root: WorkspaceRoot, kind: Kind, tmp_path: Path) -> None:
    fill(top)
    into = unpacked(packed(root, kind), kind, tmp_path / "out")
    assert tree(os.path.join(into, b"work")) == tree(os.fsencode(top))


@pytest.mark.parametrize("kind", KINDS)
def test_the_standard_library_reads_it(top: Path, root: WorkspaceRoot, kind: Kind) -> None:
    fill(top)
    data = io.BytesIO(packed(root, kind))
    if kind == "zip":
        with zipfile.ZipFile(data) as archive:
            assert archive.testzip() is None
            assert "work/grün ☃" in archive.namelist()
            assert archive.getinfo("work/link").external_attr >> 16 == stat.S_IFLNK | 0o777
            assert archive.read("work/link") == b"sub/deep/a.txt"
    else:
        with tarfile.open(fileobj=data) as tar:
            assert "work/grün ☃" in tar.getnames()
            assert os.fsdecode(b"work/" + ODD) in tar.getnames()


def test_busy_tools_agree(top: Path, root: WorkspaceRoot, tmp_path: Path) -> None:
    fill(top)
    file = tmp_path / "x.zip"
    file.write_bytes(packed(root, "zip"))
    subprocess.run(["unzip", "-tqq", file], check=True)
    subprocess.run(["gzip", "-t"], input=packed(root, "tar.gz"), check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_names_begin_with_the_folder_and_are_sorted(top: Path, root: WorkspaceRoot, kind: Kind) -> None:
    for name in ("b/x", "b/a", "a/z", "c/n"):
        (top / "some" / name).parent.mkdir(parents=True, exist_ok=True)
        (top / "some" / name).touch()
    data = packed(root, kind, b"some")
    assert names(data, kind) == [
        "some/", "some/a/", "some/a/z", "some/b/", "some/b/a", "some/b/x", "some/c/", "some/c/n"
    ]  # fmt: skip
    assert data == packed(root, kind, b"some")


def names(data: bytes, kind: Kind) -> list[str]:
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.namelist()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [each.name + "/" * each.isdir() for each in tar]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out(top: Path, root: WorkspaceRoot, kind: Kind) -> None:
    (top / ".git").mkdir()
    (top / ".git/config").touch()
    (top / "module").mkdir()
    (top / "module/.git").write_text("gitdir: ../x")
    (top / ".workspace-runtime-0123456789abcdef.tmp").touch()
    (top / ".gitignore").touch()
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(top / "socket"))
        assert names(packed(root, kind), kind) == ["work/", "work/.gitignore", "work/module/"]


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_named(top: Path, root: WorkspaceRoot, kind: Kind) -> None:
    (top / "a").touch()
    data = packed(root, kind)
    if kind == "tar.gz":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert {(each.uid, each.gid, each.uname, each.gname) for each in tar} == {(0, 0, "", "")}
    else:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert {each.extra[:2] for each in archive.infolist()} == {b"UT"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", [0, -86400, 2**33, 1e11])
def test_odd_times(top: Path, root: WorkspaceRoot, kind: Kind, moment: float, tmp_path: Path) -> None:
    (top / "a").write_text("a")
    os.utime(top / "a", (moment, moment))
    moment = os.stat(top / "a").st_mtime  # the file system may know fewer years
    into = unpacked(packed(root, kind), kind, tmp_path / "out")
    if kind == "tar.gz" or 0 <= moment < 2**31:
        assert os.stat(os.path.join(into, b"work/a")).st_mtime == moment


def test_a_folder_of_a_folder_that_is_a_link(top: Path, root: WorkspaceRoot, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (top / "out").symlink_to(tmp_path / "outside")
    with pytest.raises(WorkspaceError) as caught:
        packed(root, "zip", b"out")
    assert caught.value.code == "path_outside"


@pytest.mark.parametrize(("path", "code"), [(b"file", "not_a_directory"), (b"none", "file_not_found")])
def test_no_folder(top: Path, root: WorkspaceRoot, path: bytes, code: str) -> None:
    (top / "file").touch()
    with pytest.raises(WorkspaceError) as caught:
        next(pack(root, path, "zip", stopped=never))
    assert caught.value.code == code


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_becomes_shorter_cuts_the_download(top: Path, root: WorkspaceRoot, kind: Kind) -> None:
    (top / "a").write_bytes(os.urandom(3_000_000))
    pieces = pack(root, b"", kind, stopped=never)
    next(pieces)
    os.truncate(top / "a", 1_000_000)
    with pytest.raises(WorkspaceError, match="shorter"):
        list(pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_grows_has_the_size_it_had(top: Path, root: WorkspaceRoot, kind: Kind) -> None:
    content = os.urandom(3_000_000)
    (top / "a").write_bytes(content)
    pieces = pack(root, b"", kind, stopped=never)
    data = next(pieces)
    with open(top / "a", "ab") as file:
        file.write(b"more")
    data += b"".join(pieces)
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.read("work/a") == content
    else:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            file_in = tar.extractfile("work/a")
            assert file_in is not None and file_in.read() == content


def test_what_disappears_is_left_out(top: Path, root: WorkspaceRoot) -> None:
    (top / "a").write_bytes(os.urandom(1_000_000))
    (top / "b").touch()
    (top / "c").mkdir()
    (top / "d").touch()
    pieces = pack(root, b"", "zip", stopped=never)
    data = next(pieces)
    (top / "b").unlink()
    (top / "c").rmdir()
    assert names(data + b"".join(pieces), "zip") == ["work/", "work/a", "work/d"]


def test_a_folder_that_is_moved_away_cuts_the_download(top: Path, root: WorkspaceRoot, tmp_path: Path) -> None:
    (top / "a").mkdir()
    (top / "a/a").write_bytes(os.urandom(1_000_000))
    (top / "b").touch()
    pieces = pack(root, b"", "zip", stopped=never)
    next(pieces)
    (top / "a").rename(tmp_path / "elsewhere")
    with pytest.raises(WorkspaceError, match="moved"):
        list(pieces)


def test_a_file_that_became_a_link_is_not_followed(top: Path, root: WorkspaceRoot, tmp_path: Path) -> None:
    """Swapped all the time while it is packed again and again: the secret never comes out."""
    (tmp_path / "secret").write_bytes(b"SECRET" * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/secret").write_bytes(b"SECRET" * 100)
    for name, target in (("f", "secret"), ("d", "folder")):
        (tmp_path / f"{name}.link").symlink_to(tmp_path / target)
    (top / "f").touch()
    (top / "d").mkdir()
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for name in ("f", "d"):
                (top / name).rename(tmp_path / f"{name}.real")
                (tmp_path / f"{name}.link").rename(top / name)
                (top / name).rename(tmp_path / f"{name}.link")
                (tmp_path / f"{name}.real").rename(top / name)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for _ in range(300):
            with contextlib.suppress(WorkspaceError), zipfile.ZipFile(io.BytesIO(packed(root, "zip"))) as archive:
                assert not any(b"SECRET" in archive.read(each) for each in archive.namelist())
    finally:
        done.set()
        swapping.join()


@pytest.mark.parametrize("kind", KINDS)
def test_it_can_be_stopped(top: Path, root: WorkspaceRoot, kind: Kind) -> None:
    (top / "a").write_bytes(os.urandom(3_000_000))
    stop = False
    pieces = pack(root, b"", kind, stopped=lambda: stop)
    next(pieces)
    stop = True
    with pytest.raises(Stopped):
        next(pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_no_descriptor_is_left(top: Path, root: WorkspaceRoot, kind: Kind) -> None:
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/c").write_bytes(os.urandom(1_000_000))
    before = os.listdir("/proc/self/fd")
    pieces = pack(root, b"", kind, stopped=never)
    next(pieces)
    pieces.close()
    packed(root, kind)
    pack(root, b"", kind, stopped=never)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def unreadable(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As for a user who may not read these; root may read all."""
    real = os.open

    def opening(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path in names:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", opening)


@pytest.mark.parametrize("name", ["file", "folder"])
def test_what_may_not_be_read_cuts_the_download(
    top: Path, root: WorkspaceRoot, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top / "file").touch()
    (top / "folder").mkdir()
    unreadable(monkeypatch, name)
    with pytest.raises(WorkspaceError, match="skip=true") as caught:
        packed(root, "zip")
    assert caught.value.code == "permission_denied"


@pytest.mark.parametrize("kind", KINDS)
def test_what_may_not_be_read_is_left_out_and_named(
    top: Path, root: WorkspaceRoot, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "closed/inner", "file", "z"):
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_text(name)
    unreadable(monkeypatch, "closed", "file")
    data = b"".join(pack(root, b"", kind, stopped=never, skip=True))
    base = root.path.name
    assert names(data, kind) == [f"{base}/", f"{base}/a", f"{base}/z", f"{base}.left-out.txt"]
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            told = archive.read(f"{base}.left-out.txt").decode().splitlines()
        assert told[1:] == [f"{base}/closed", f"{base}/file"]
    monkeypatch.undo()
    assert names(b"".join(pack(root, b"", kind, stopped=never, skip=True)), kind)[-1] == f"{base}/z"


def test_what_changes_its_kind_is_what_it_is_then(
    top: Path, root: WorkspaceRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top / "a").write_text("a")
    (top / "odd").write_text("file")
    real, kinds = os.stat, iter(["folder", "link", "file"])

    def looking(path: Any, **options: Any) -> os.stat_result:
        found = real(path, **options)
        if path == "odd" and (kind := next(kinds, None)) is not None:
            (top / "odd").rmdir() if (top / "odd").is_dir() and not (top / "odd").is_symlink() else (
                top / "odd"
            ).unlink()
            if kind == "folder":
                (top / "odd").mkdir()
            elif kind == "link":
                (top / "odd").symlink_to("a")
            else:
                (top / "odd").write_text("again")
        return found

    monkeypatch.setattr(os, "stat", looking)
    with zipfile.ZipFile(io.BytesIO(packed(root, "zip"))) as archive:
        assert archive.read(f"{root.path.name}/odd") in (b"again", b"a")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_deeper_than_descriptors(top: Path, root: WorkspaceRoot, kind: Kind) -> None:
    here = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT, dir_fd=here))
    os.close(here)
    try:
        data = packed(root, kind)
        # Python's own reader of zip files would take the path as text all the same
        assert ("work/" + "d/" * 3000 + "file") in names(data, kind)
    finally:
        subprocess.run(["rm", "-rf", top / "d"], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_of_a_useful_size(top: Path, root: WorkspaceRoot, kind: Kind) -> None:
    for number in range(3000):
        (top / f"{number}").write_text(f"{number}" * 100)
    (top / "random").write_bytes(os.urandom(1_000_000))
    sizes = [len(piece) for piece in pack(root, b"", kind, stopped=never)]
    assert all(64 * 1024 <= size <= 256 * 1024 for size in sizes[:-1])


MEASURE = """
import re, sys
from pathlib import Path
from workspace_runtime.files.archive import pack
from workspace_runtime.paths import WorkspaceRoot
def peak():  # not ru_maxrss, which a process inherits
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1])
root = WorkspaceRoot(Path(sys.argv[1]))
kind = sys.argv[2]
for piece in pack(root, b"small", kind, stopped=lambda: False): pass
before = peak()
for piece in pack(root, b"", kind, stopped=lambda: False): pass
print((peak() - before) // 1024)
"""


def growth(top: Path, kind: Kind) -> int:
    (top / "small").mkdir()
    (top / "small/a").write_bytes(os.urandom(300_000))
    run = subprocess.run([sys.executable, "-c", MEASURE, top, kind], check=True, capture_output=True, text=True)
    return int(run.stdout)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_memory_with_many_files(top: Path, kind: Kind) -> None:
    for number in range(20_000):
        os.close(os.open(top / f"some file of a longer name {number}", os.O_CREAT))
    assert growth(top, kind) < 8


@pytest.mark.parametrize("kind", KINDS)
def test_memory_with_a_large_file(top: Path, kind: Kind) -> None:
    with open(top / "large", "wb") as file:
        file.truncate(1 << 28)
    assert growth(top, kind) < 4


@pytest.mark.long
def test_sizes_of_64_bits(top: Path, root: WorkspaceRoot, tmp_path: Path) -> None:
    """A file beyond 4 GiB, and one behind it; both tools find them whole."""
    with open(top / "a", "wb") as file:
        file.truncate((1 << 32) + 5)
    (top / "b").write_text("behind")
    with open(tmp_path / "x.zip", "wb") as out:
        for piece in pack(root, b"", "zip", stopped=never):
            out.write(piece)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.getinfo("work/a").file_size == (1 << 32) + 5
        assert archive.read("work/b") == b"behind"
    subprocess.run(["unzip", "-tqq", tmp_path / "x.zip"], check=True)


@pytest.mark.long
def test_more_entries_than_16_bits(top: Path, root: WorkspaceRoot, tmp_path: Path) -> None:
    for number in range(0x10001):
        os.close(os.open(top / f"{number}", os.O_CREAT))
    data = packed(root, "zip")
    assert len(names(data, "zip")) == 0x10002
    (tmp_path / "x.zip").write_bytes(data)
    listed = subprocess.run(["unzip", "-l", tmp_path / "x.zip"], check=True, capture_output=True, text=True)
    assert "65538 files" in listed.stdout.splitlines()[-1]
