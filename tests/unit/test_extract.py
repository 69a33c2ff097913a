"""Unpacking: what real tools pack comes out; every attack on paths, memory and time is refused."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.files.archive import pack
from workspace_runtime.files.extract import extract, is_archive
from workspace_runtime.files.stopping import Stopped
from workspace_runtime.files.unpack.work import ArchiveError, Extracted, Limits
from workspace_runtime.paths import WorkspaceRoot

LIMITS = Limits(max_bytes=1 << 30, max_entries=10_000, max_ratio=100)
MB = 1024 * 1024


class Disk:
    """A sink that writes below a folder."""

    def __init__(self, top: Path) -> None:
        self.top = os.fsencode(top)

    def folder(self, path: bytes) -> None:
        os.makedirs(os.path.join(self.top, path), exist_ok=True)

    @contextlib.contextmanager
    def file(self, path: bytes, executable: bool) -> Iterator[BinaryIO]:
        target = os.path.join(self.top, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            with open(target + b".new", "wb") as file:
                yield file
            os.chmod(target + b".new", 0o755 if executable else 0o644)
            os.rename(target + b".new", target)
        except BaseException:
            os.unlink(target + b".new")
            raise


def never() -> bool:
    return False


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    top = tmp_path / "into"
    top.mkdir()
    return Disk(top)


def unpack(data: bytes, disk: Disk, limits: Limits = LIMITS) -> list[Extracted]:
    return extract(io.BytesIO(data), "x", disk, limits, never)


def there(disk: Disk) -> dict[bytes, bytes | None]:
    """All that was written: the content, or None for a folder."""
    found: dict[bytes, bytes | None] = {}
    for folder, folders, files in os.walk(disk.top):
        for name in folders:
            found[os.path.relpath(os.path.join(folder, name), disk.top)] = None
        for name in files:
            with open(os.path.join(folder, name), "rb") as file:
                found[os.path.relpath(os.path.join(folder, name), disk.top)] = file.read()
    return found


def refused(found: list[Extracted]) -> list[bytes]:
    return [each.path for each in found if each.result == "refused"]


def invalid(data: bytes, disk: Disk, match: str = "can't be unpacked", limits: Limits = LIMITS) -> ArchiveError:
    with pytest.raises(ArchiveError, match=match) as caught:
        unpack(data, disk, limits)
    assert caught.value.code == "archive_invalid"
    return caught.value


def tar_of(*entries: tuple[str, bytes, dict[str, Any]], form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, content, more in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in more.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zip_of(*entries: tuple[str, bytes, dict[str, Any]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content, more in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            for key, value in more.items():
                setattr(info, key, value)
            archive.writestr(info, content)
    return out.getvalue()


Form = Literal["zip", "tar"]
FORMS: tuple[Form, ...] = ("zip", "tar")


def archive_of(form: Form, *names: str) -> bytes:
    entries: list[tuple[str, bytes, dict[str, Any]]] = [(name, b"content", {}) for name in names]
    return zip_of(*entries) if form == "zip" else tar_of(*entries)


# --- what real tools pack ---------------------------------------------------------------------------------------------


def fill(top: Path) -> dict[bytes, bytes | None]:
    content: dict[bytes, bytes | None] = {
        b"t": None,
        b"t/empty": None,
        b"t/run": b"#!/bin/sh\n",
        b"t/nothing": b"",
        "t/grün".encode(): os.urandom(300_000),
        b"t/caf\xe9 \xff": b"odd",
        b"t/" + b"d" * 250: None,
        b"t/" + b"d" * 250 + b"/" + b"f" * 250: b"long" * 100_000,
    }
    for path, data in content.items():
        full = os.path.join(os.fsencode(top), path)
        if data is None:
            os.mkdir(full)
        else:
            with open(full, "wb") as file:
                file.write(data)
    (top / "t/run").chmod(0o4755)
    return content


@pytest.mark.parametrize(
    "command",
    [
        "tar cf - t",
        "tar cf - ./t",
        "tar c --format=v7 --exclude=ddd* -f - t",
        "tar c --format=ustar --exclude=ddd* -f - t",
        "tar c --format=pax -f - t",
        "tar c --format=oldgnu -f - t",
        "tar czf - t",
        "tar cjf - t",
        "tar cJf - t",
        "tar cf - . | gzip -1 > ../g; cat ../g",
        "tar cf - t | split -b 100000 --filter=gzip - ../part",
        "zip -qr - t",
        "zip -qr ../z t; cat ../z.zip",
        "zip -0qr ../z t; cat ../z.zip",
        "zip -qr -Z bzip2 ../z t; cat ../z.zip",
    ],
)
def test_what_real_tools_pack(command: str, tmp_path: Path, disk: Disk) -> None:
    source = tmp_path / "source"
    source.mkdir()
    content = fill(source)
    run = subprocess.run(["sh", "-ec", command], cwd=source, check=True, capture_output=True)
    assert is_archive(run.stdout[:512])
    found = unpack(run.stdout, disk)
    if "exclude" in command:
        content = {path: data for path, data in content.items() if b"ddd" not in path}
    assert there(disk) == content
    assert {each.path: None if each.is_folder else content[each.path] for each in found} == content
    assert {each.result for each in found} == {"written"}
    assert stat.S_IMODE(os.stat(os.path.join(disk.top, b"t/run")).st_mode) == 0o755
    assert stat.S_IMODE(os.stat(os.path.join(disk.top, b"t/nothing")).st_mode) == 0o644


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_what_we_pack_ourselves(kind: Literal["zip", "tar.gz"], tmp_path: Path, disk: Disk) -> None:
    (tmp_path / "source").mkdir()
    content = fill(tmp_path / "source")
    with contextlib.closing(WorkspaceRoot(tmp_path / "source")) as root:
        unpack(b"".join(pack(root, b"t", kind, stopped=never)), disk)
    assert there(disk) == content


NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..") and name.lower() != b".git"
)
TREES: st.SearchStrategy[Any] = st.recursive(
    st.binary(max_size=300) | st.integers(0, 200_000).map(bytes),
    lambda below: st.dictionaries(NAMES, below, max_size=5),
    max_leaves=20,
)


def plant(folder: bytes, tree: dict[bytes, Any]) -> None:
    for name, below in tree.items():
        path = os.path.join(folder, name)
        if isinstance(below, dict):
            os.mkdir(path)
            plant(path, below)
        else:
            with open(path, "wb") as file:
                file.write(below)


def harvest(folder: bytes) -> dict[bytes, Any]:
    found: dict[bytes, Any] = {}
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            found[name] = harvest(path)
        else:
            with open(path, "rb") as file:
                found[name] = file.read()
    return found


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, TREES, max_size=5), st.sampled_from(["zip", "tar.gz"]))
def test_any_tree_comes_back(tree: dict[bytes, Any], kind: Literal["zip", "tar.gz"]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, into = Path(folder, "work"), Path(folder, "into")
        source.mkdir()
        into.mkdir()
        plant(os.fsencode(source), tree)
        with contextlib.closing(WorkspaceRoot(source)) as root:
            data = b"".join(pack(root, b"", kind, stopped=never))
        found = unpack(data, Disk(into), Limits(1 << 30, 10_000, 2000))
        assert refused(found) == []
        assert harvest(os.fsencode(into)) == {b"work": tree}


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name",
    ["/etc/x", "../x", "a/../../x", "a/../x", "..", "a//x", "a/./x", "C:/x", "C:\\x", "c:", ".git/config", "a/.GIT/hooks/x",
     ".git", "sub/.Git", ".workspace-runtime-0123456789abcdef.tmp", "a/.workspace-runtime-0123456789abcdef.tmp/x",
     "x/" * 2500 + "x", "./../x", "././/x"],
)  # fmt: skip
def test_paths_that_do_not_come_out(form: Form, name: str, disk: Disk, tmp_path: Path) -> None:
    found = unpack(archive_of(form, "before", name, "after"), disk)
    # no name of this zip has a slash: so backslashes part them
    shown = name.replace("\\", "/") if form == "zip" else name
    assert refused(found) == [shown.encode()[:4095]]
    assert there(disk) == {b"before": b"content", b"after": b"content"}
    assert sorted(os.listdir(tmp_path)) == ["into"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "path"),
    [("./a", b"a"), ("././a/b", b"a/b"), ("a\\b", b"a\\b"), ("-rf", b"-rf"), (".gitignore", b".gitignore"), ("...", b"..."),
     ("a:b", b"a:b"), ("git", b"git"), ("..a", b"..a")],
)  # fmt: skip
def test_paths_that_do(form: Form, name: str, path: bytes, disk: Disk) -> None:
    if form == "zip":  # no name of it has a slash: so backslashes part them
        path = path.replace(b"\\", b"/")
    assert unpack(archive_of(form, name), disk) == [Extracted(path, "written")]


def test_an_empty_path_and_a_nul(disk: Disk) -> None:
    data = archive_of("zip", "XXXX", "YaaY", "fine").replace(b"YaaY", b"Y\0aY")
    data = data.replace(b"XXXX", b"a/\0/")
    assert refused(unpack(data, disk)) == [b"a/\0/", b"Y\0aY"]
    pax = tar_of(("x", b"1", {"pax_headers": {"path": "a"}}), form=tarfile.PAX_FORMAT)
    assert refused(unpack(pax.replace(b"path=a\n", b"path=\0\n"), disk)) == [b"\0"]


def test_windows_separators(disk: Disk) -> None:
    data = zip_of(
        ("a\\b\\c", b"1", {"create_system": 0}),
        ("..\\x", b"", {"create_system": 10}),
        ("d\\", b"", {"create_system": 0}),
    )
    found = unpack(data, disk)
    assert refused(found) == [b"../x"]
    assert there(disk) == {b"a": None, b"a/b": None, b"a/b/c": b"1", b"d": None}


@pytest.mark.parametrize(
    ("stored", "flags", "system", "path"),
    [(b"gr\xc3\xbcn", 0, 0, "grün".encode()), (b"gr\x81n", 0, 0, "grün".encode()), (b"gr\x81n", 0, 3, b"gr\x81n"),
     (b"gr\x81n", 0x800, 0, b"gr\x81n"), (b"gr\xc3\xbcn", 0x800, 3, "grün".encode())],
)  # fmt: skip
def test_names_of_a_zip(stored: bytes, flags: int, system: int, path: bytes, disk: Disk) -> None:
    data = bytearray(zip_of(("x" * len(stored), b"1", {"create_system": system})).replace(b"x" * len(stored), stored))
    at = data.index(b"PK\1\2")
    data[at + 8 : at + 10] = struct.pack("<H", flags)
    assert unpack(bytes(data), disk) == [Extracted(path, "written")]


@pytest.mark.parametrize("form", FORMS)
def test_the_last_of_a_name_wins(form: Form, disk: Disk) -> None:
    with pytest.warns(UserWarning) if form == "zip" else contextlib.nullcontext():
        entries: list[tuple[str, bytes, dict[str, Any]]] = [("a", b"1", {}), ("b", b"", {}), ("a", b"2", {})]
        data = zip_of(*entries) if form == "zip" else tar_of(*entries)
    assert [each.path for each in unpack(data, disk)] == [b"a", b"b"]
    assert there(disk)[b"a"] == b"2"


# --- kinds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", [b"1", b"2", b"3", b"4", b"6", b"V", b"M", b"Z"])
def test_kinds_of_a_tar_that_are_refused(type_: bytes, disk: Disk) -> None:
    data = tar_of(("l", b"", {"type": type_, "linkname": "/etc/passwd"}), ("l/x", b"1", {}), ("m", b"2", {}))
    assert refused(unpack(data, disk)) == [b"l"]
    assert there(disk) == {b"l": None, b"l/x": b"1", b"m": b"2"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_kinds_of_a_zip_that_are_refused(kind: int, disk: Disk) -> None:
    data = zip_of(("l", b"/etc/passwd", {"external_attr": (kind | 0o777) << 16}), ("m", b"2", {}))
    assert refused(unpack(data, disk)) == [b"l"]
    assert there(disk) == {b"m": b"2"}


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_are_refused(form: str, tmp_path: Path, disk: Disk) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        for number in range(200):
            file.seek(number * 100_000)
            file.write(b"data" * 1024)
    (tmp_path / "z").write_text("z")
    option = ["--format=gnu"] if form == "gnu" else ["--format=pax", f"--sparse-version={form}"]
    run = subprocess.run(["tar", "cSf", "-", *option, "sparse", "z"], cwd=tmp_path, check=True, capture_output=True)
    assert [each.result for each in unpack(run.stdout, disk)] == ["refused", "written"]
    assert there(disk) == {b"z": b"z"}


def test_an_unknown_compression_is_refused(disk: Disk) -> None:
    data = zip_of(("a", b"1", {}), ("b", b"2", {}), method=zipfile.ZIP_LZMA)
    assert [each.result for each in unpack(data, disk)] == ["refused", "refused"]


# --- archives that are broken -----------------------------------------------------------------------------------------


def compressed(form: str) -> bytes:
    tar = tar_of(("a", os.urandom(200_000), {}), ("b", os.urandom(200_000), {}))
    packers: dict[str, Callable[[bytes], bytes]] = {
        "tar": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress
    }  # fmt: skip
    if form == "zip":
        return zip_of(("a", os.urandom(200_000), {}), ("b", os.urandom(200_000), {}))
    return packers[form](tar)


@pytest.mark.parametrize("form", ["zip", "tar", "gzip", "bzip2", "xz"])
@pytest.mark.parametrize("part", [0.001, 0.3, 0.7, 0.95])
def test_an_archive_that_is_cut(form: str, part: float, disk: Disk) -> None:
    data = compressed(form)
    error = invalid(data[: int(len(data) * part)], disk)
    assert {each.path for each in error.extracted} == there(disk).keys()


@pytest.mark.parametrize("form", ["zip", "tar", "gzip", "bzip2", "xz"])
def test_an_archive_whose_last_bytes_are_missing(form: str, disk: Disk) -> None:
    data = compressed(form).rstrip(b"\0") if form == "tar" else compressed(form)[:-1]
    invalid(data, disk)


@pytest.mark.parametrize("form", ["zip", "gzip", "bzip2", "xz"])
def test_an_archive_with_a_bit_changed(form: str, disk: Disk) -> None:
    data = bytearray(compressed(form))
    data[len(data) // 3] ^= 1
    invalid(bytes(data), disk)
    assert b"b" not in there(disk) or form == "gzip"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["zip", "tar", "gzip", "xz"]), st.data())
def test_any_damage_ends_in_our_own_error(form: str, data: st.DataObject) -> None:
    content = {"zip": SMALL_ZIP, "tar": SMALL_TAR, "gzip": gzip.compress(SMALL_TAR), "xz": lzma.compress(SMALL_TAR)}
    broken = bytearray(content[form])
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(broken) - 1))
        broken[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        is_archive(bytes(broken[:512]))
        with contextlib.suppress(ArchiveError):
            unpack(bytes(broken), Disk(Path(folder)))


SMALL_TAR = tar_of(("a" * 120, b"1" * 600, {}), ("b", b"2", {}), form=tarfile.PAX_FORMAT)
SMALL_ZIP = zip_of(("a", b"1" * 600, {}), ("b/c", b"2", {}))


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\0" * 10240, b"\xc3\x28" * 2500, gzip.compress(b"text" * 1000, mtime=0)]
)
def test_no_archive(data: bytes, disk: Disk) -> None:
    assert not is_archive(data[:512])
    invalid(data, disk)


def test_is_archive() -> None:
    tar = tar_of(("a", os.urandom(5000), {}))
    for data in (tar, gzip.compress(tar), bz2.compress(tar), lzma.compress(tar), zip_of(("a", b"", {})), zip_of()):
        assert is_archive(data[:512])


def test_an_empty_zip(disk: Disk) -> None:
    assert unpack(zip_of(), disk) == []


def test_an_encrypted_zip(tmp_path: Path, disk: Disk) -> None:
    (tmp_path / "a").write_text("secret")
    subprocess.run(["zip", "-qP", "word", "x.zip", "a"], cwd=tmp_path, check=True)
    invalid((tmp_path / "x.zip").read_bytes(), disk, "encrypted")


def test_a_size_that_is_negative_or_absurd(disk: Disk) -> None:
    for size in (-1, -(2**70), 2**80):
        block = bytearray(tar_of(("a", b"", {}))[:512])
        block[124:136] = (
            b"\x80" + size.to_bytes(11, "big") if size > 0 else b"\xff" + size.to_bytes(11, "big", signed=True)
        )
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        invalid(bytes(block) + bytes(10240), disk)
    pax = tar_of(("a", b"1", {"pax_headers": {"comment": "12"}}), form=tarfile.PAX_FORMAT)
    for text in (b"size=-1234", b"size=1234x", b"size=99999"):
        invalid(pax.replace(b"comment=12", text), disk)


def test_a_long_name_of_a_gigabyte(disk: Disk) -> None:
    for type_ in (b"L", b"K", b"x", b"g"):
        info = tarfile.TarInfo("x")
        info.type, info.size = type_, 1 << 30
        data = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(50 * MB))
        invalid(data, disk, "too long")


def test_headers_without_end(disk: Disk) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = b"x", 0
    invalid(info.tobuf(tarfile.GNU_FORMAT) * 5000, disk, "too many headers")


def test_streams_without_end(disk: Disk) -> None:
    start = time.monotonic()
    invalid(gzip.compress(SMALL_TAR) + gzip.compress(b"") * 100_000, disk, "too many pieces")
    assert time.monotonic() - start < 10


# --- limits -----------------------------------------------------------------------------------------------------------


def too_large(data: bytes, disk: Disk, limits: Limits) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        unpack(data, disk, limits)
    assert caught.value.code == "archive_too_large"
    return caught.value


@pytest.mark.parametrize("form", FORMS)
def test_more_bytes_than_the_limit(form: Form, disk: Disk) -> None:
    entries: list[tuple[str, bytes, dict[str, Any]]] = [(name, os.urandom(1000), {}) for name in "abc"]
    data = zip_of(*entries) if form == "zip" else tar_of(*entries)
    error = too_large(data, disk, Limits(2500, 10, 100))
    assert [each.path for each in error.extracted] == [b"a", b"b"]
    assert there(disk).keys() == {b"a", b"b"}
    assert len(unpack(data, disk, Limits(3000, 3, 100))) == 3


@pytest.mark.parametrize("form", FORMS)
def test_more_entries_than_the_limit(form: Form, disk: Disk) -> None:
    too_large(archive_of(form, "a", "b", "c"), disk, Limits(1000, 2, 100))


def test_what_is_refused_counts(disk: Disk) -> None:
    too_large(tar_of((".git/a", bytes(2000), {})), disk, Limits(1000, 10, 100))


def overlapping(count: int) -> bytes:
    """A directory whose entries all have the same bytes."""
    body = zip_of(("a", bytes(1_000_000), {}))
    at = body.index(b"PK\1\2")
    record = body[at : body.index(b"PK\5\6")]
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(record) * count, at, 0)
    return body[:at] + record * count + end


def test_entries_that_overlap(disk: Disk) -> None:
    invalid(overlapping(1000), disk, "overlap", Limits(1 << 40, 10_000, 1 << 30))


def test_a_directory_that_says_less(disk: Disk) -> None:
    """Neither a count nor a size that is too small lets more through."""
    data = bytearray(zip_of(*((name, bytes(3000), {}) for name in "abcd")))
    at = data.rindex(b"PK\5\6")
    data[at + 8 : at + 12] = struct.pack("<2H", 1, 1)
    too_large(bytes(data), disk, Limits(10_000, 3, 1000))
    data = bytearray(zip_of(("a", bytes(3000), {})))
    at = data.rindex(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<L", 10)
    too_large(bytes(data), disk, Limits(1000, 3, 1000))
    invalid(bytes(data), disk, "damaged")


def test_a_ratio_that_is_too_high(disk: Disk) -> None:
    for data in (zip_of(("a", bytes(20 * MB), {})), gzip.compress(tar_of(("a", bytes(20 * MB), {})))):
        too_large(data, disk, Limits(1 << 30, 10, 100))
        assert len(unpack(data, disk, Limits(1 << 30, 10, 2000))) == 1


BOMB = """
import os, re, resource, sys, time
from workspace_runtime.files.extract import extract
from workspace_runtime.files.unpack.work import ArchiveError, Limits
from unit.test_extract import Disk
from pathlib import Path
limit = 600 << 20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
def peak():  # not ru_maxrss, which a process inherits
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1])
with open(sys.argv[1], "rb") as source:
    before = peak()
    start = time.monotonic()
    try:
        extract(source, "bomb", Disk(Path(sys.argv[2])), Limits(int(sys.argv[3]), 200_000, int(sys.argv[4])), lambda: False)
        code = "none"
    except ArchiveError as error:
        code = error.code
    print(code, (peak() - before) // 1024, time.monotonic() - start)
"""


def explode(data: bytes, tmp_path: Path, limits: tuple[int, int] = (1 << 30, 100)) -> tuple[str, int, float]:
    """Code, growth of memory in MiB, and seconds, in a process whose memory is capped."""
    (tmp_path / "bomb").write_bytes(data)
    (tmp_path / "crater").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", BOMB, tmp_path / "bomb", tmp_path / "crater", *map(str, limits)],
        check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "tests"},
    )  # fmt: skip
    code, growth, seconds = run.stdout.split()
    return code, int(growth), float(seconds)


def zeros(kind: str, count: int) -> bytes:
    """A tar of one file of zeros, compressed."""
    info = tarfile.TarInfo("zeros")
    info.size = count * MB
    head = info.tobuf(tarfile.GNU_FORMAT)
    if kind == "gzip":
        packer: Any = zlib.compressobj(9, zlib.DEFLATED, 31)
    else:
        packer = bz2.BZ2Compressor() if kind == "bzip2" else lzma.LZMACompressor(preset=0)
    return bytes(packer.compress(head) + b"".join(packer.compress(bytes(MB)) for _ in range(count)) + packer.flush())


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_a_bomb_of_zeros(kind: str, tmp_path: Path) -> None:
    code, growth, seconds = explode(zeros(kind, 300), tmp_path)
    assert (code, growth < 32, seconds < 5) == ("archive_too_large", True, True)


@pytest.mark.parametrize("limits", [(1 << 40, 100), (100 * MB, 1 << 40)])
def test_a_bomb_of_ten_gigabytes(limits: tuple[int, int], tmp_path: Path) -> None:
    """The ratio stops it soon; where that is no limit, the bytes do."""
    info = tarfile.TarInfo("zeros")
    info.size = 10 << 30
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(info.tobuf(tarfile.GNU_FORMAT)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MB)) + packer.flush(zlib.Z_FULL_FLUSH)
    code, growth, seconds = explode(head + block * 10 * 1024, tmp_path, limits)
    assert (code, growth < 32, seconds < 5) == ("archive_too_large", True, True)


@pytest.mark.long
def test_a_bomb_that_only_its_bytes_stop(tmp_path: Path) -> None:
    code, growth, seconds = explode(zeros("bzip2", 300), tmp_path, (50 * MB, 1 << 40))
    assert (code, growth < 32, seconds < 5) == ("archive_too_large", True, True)


def test_a_dictionary_that_is_too_large(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 26}]
    small = lzma.compress(SMALL_TAR, filters=filters)
    code, growth, _ = explode(small, tmp_path)
    assert (code, growth < 8) == ("archive_invalid", True)


def test_many_long_names(tmp_path: Path) -> None:
    """A small archive can name many long paths, all of which would be held for the answer."""
    out = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = b""
    for number in range(20_000):
        info = tarfile.TarInfo("../" + f"{number}/" + "x" * 4000)
        data += out.compress(info.tobuf(tarfile.GNU_FORMAT))
    code, growth, _ = explode(data + out.compress(bytes(1024)) + out.flush(), tmp_path, (1 << 30, 10_000))
    assert (code, growth < 40) == ("archive_too_large", True)


@pytest.mark.long
@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_memory_with_many_entries(form: Literal["zip", "tar.gz"], tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(20_000):
        os.close(os.open(tmp_path / f"many/some file of a longer name {number}", os.O_CREAT))
    with contextlib.closing(WorkspaceRoot(tmp_path)) as root:
        data = b"".join(pack(root, b"many", form, stopped=never))
    code, growth, _ = explode(data, tmp_path)
    assert (code, growth < 16) == ("none", True)


# --- the sink ---------------------------------------------------------------------------------------------------------


class Failing(Disk):
    """Fails at one path: when it is opened, while it is written, or at the end."""

    def __init__(self, top: Path, fault: Exception, when: str) -> None:
        super().__init__(top)
        self.fault, self.when = fault, when

    @contextlib.contextmanager
    def file(self, path: bytes, executable: bool) -> Iterator[BinaryIO]:
        if path != b"b":
            with super().file(path, executable) as file:
                yield file
            return
        if self.when == "open":
            raise self.fault
        yield self if self.when == "write" else io.BytesIO()  # type: ignore[misc]
        raise self.fault

    def write(self, data: bytes) -> int:
        raise self.fault


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("when", ["open", "write", "end"])
@pytest.mark.parametrize("fault", [PermissionError(13, "no"), WorkspaceError("file_exists", "There is one.")])
def test_what_the_sink_refuses(form: Form, when: str, fault: Exception, disk: Disk) -> None:
    failing = Failing(Path(os.fsdecode(disk.top)), fault, when)
    found = unpack(archive_of(form, "a", "b", "c"), failing)
    assert [each.result for each in found] == ["written", "refused", "written"]
    assert found[1].reason


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fault", [OSError(28, "full"), WorkspaceError("disk_full", "Full.")])
def test_a_full_disk_stops_it(form: Form, fault: Exception, disk: Disk) -> None:
    failing = Failing(Path(os.fsdecode(disk.top)), fault, "write")
    with pytest.raises(ArchiveError) as caught:
        unpack(archive_of(form, "a", "b", "c"), failing)
    assert caught.value.code == "disk_full"
    assert [each.path for each in caught.value.extracted] == [b"a"]


def test_a_file_below_a_file(disk: Disk) -> None:
    assert refused(unpack(archive_of("tar", "a", "a/b", "c"), disk)) == [b"a/b"]


@pytest.mark.parametrize("form", FORMS)
def test_it_can_be_stopped(form: Form, disk: Disk) -> None:
    data = zip_of(("a", bytes(3 * MB), {})) if form == "zip" else tar_of(("a", bytes(3 * MB), {}))
    calls = iter(range(1000))
    with pytest.raises(Stopped):
        extract(io.BytesIO(data), "x", disk, LIMITS, lambda: next(calls) > 10)
    assert there(disk) == {}


@pytest.mark.parametrize("system", [0, 3, 6, 10, 11, 14])
def test_backslashes_part_names_where_no_slash_does(disk: Disk, system: int) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("dir\\win.txt", "dir\\sub\\other.txt", "top.txt"):
            info = zipfile.ZipInfo(name)
            info.create_system = system
            archive.writestr(info, "x")
    assert {entry.path for entry in unpack(packed.getvalue(), disk)} == {
        b"dir/win.txt",
        b"dir/sub/other.txt",
        b"top.txt",
    }


def test_a_backslash_is_a_letter_on_unix(disk: Disk) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("dir/back\\slash", "odd\\one"):
            archive.writestr(zipfile.ZipInfo(name), "x")
    assert {entry.path for entry in unpack(packed.getvalue(), disk)} == {b"dir/back\\slash", b"odd\\one"}
