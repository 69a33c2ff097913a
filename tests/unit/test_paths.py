"""The gate: what a path may be, and that nothing leads out, by the kernel's way and by the walk."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace_runtime import paths
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.mounts import file_system_type, mounts
from workspace_runtime.paths import (
    WorkspaceRoot,
    from_path_bytes,
    parse,
    path_bytes,
    refusal,
    shown,
)  # fmt: skip


@pytest.fixture(params=["kernel", "walk"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WorkspaceRoot]:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "root-evil").mkdir()
    for folder in ("outside", "root-evil"):
        (tmp_path / folder / "secret").write_text("secret")
    made = WorkspaceRoot(tmp_path / "root", walk_only=request.param == "walk")
    assert made.kernel == (request.param == "kernel")
    yield made
    made.close()


@pytest.mark.parametrize(
    "raw", [b"", b"/", b"//", b"/a", b"a//b", b"a//", b".", b"..", b"./a", b"a/.", b"a/./b", b"../a", b"a/..", b"a/../b", b"a\0b", b"/a/"]
)  # fmt: skip
def test_what_is_no_path(raw: bytes) -> None:
    with pytest.raises(WorkspaceError) as refused:
        parse(raw)
    assert refused.value.code == "path_invalid"


@pytest.mark.parametrize(
    "raw", [b"a", b"a/b", b"a/", b"...", b"a..b", b" ", b"\xff", b"a\nb", b"~", b"-", b"\\..\\x", b"%2e%2e"]
)
def test_what_is_one(raw: bytes) -> None:
    assert parse(raw) == raw.removesuffix(b"/")


@given(st.binary(max_size=40))
def test_a_path_that_passes_has_no_way_up(raw: bytes) -> None:
    try:
        path = parse(raw)
    except WorkspaceError:
        return
    assert not {b"", b".", b".."} & set(path.split(b"/")) and b"\0" not in path


@given(st.binary(min_size=1, max_size=40))
def test_the_encoded_form_gives_the_bytes_back(path: bytes) -> None:
    encoded = path_bytes(path)
    assert (encoded is None) == (shown(path).encode() == path)
    if encoded is not None:
        assert encoded.isascii() and from_path_bytes(encoded) == path


def read(root: WorkspaceRoot, path: bytes) -> bytes:
    opened, _ = root.open_file(path)
    with os.fdopen(opened, "rb") as file:
        return file.read()


def links(root: WorkspaceRoot) -> None:
    top = root.path
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/f").write_text("f")
    for name, leads in {
        "file": "a/b/f", "folder": "a", "absolute": str(top / "a/b/f"), "absolute-folder": str(top / "a"), "to-root": str(top),
        "a/up": "../a/b/f", "a/b/over": "../../../root/a/b/f", "out": "../outside/secret", "out-folder": "../outside",
        "sibling": "../root-evil/secret", "absolute-sibling": str(top) + "-evil/secret", "etc": "/etc", "dangling": "nothing",
        "dangling-deep": "no/thing", "loop": "loop", "one": "two", "two": "one", "proc": "/proc/self/root", "dot": ".", "slash": "a/b/",
    }.items():  # fmt: skip
        os.symlink(leads, top / name)
    os.symlink("file", top / "chain0")
    for number in range(1, 45):
        os.symlink(f"chain{number - 1}", top / f"chain{number}")


def test_links_inside_are_followed(root: WorkspaceRoot) -> None:
    links(root)
    for path in (
        b"a/b/f", b"file", b"folder/b/f", b"absolute", b"absolute-folder/b/f", b"to-root/a/b/f", b"a/up", b"dot/a/b/f",
        b"slash/f", b"chain20", b"to-root/to-root/absolute-folder/up",
    ):  # fmt: skip
        assert read(root, path) == b"f", path


def test_links_that_lead_out_are_refused(root: WorkspaceRoot) -> None:
    links(root)
    for path, name in (
        (b"out", "EXDEV"), (b"out-folder/secret", "EXDEV"), (b"sibling", "EXDEV"), (b"absolute-sibling", "EXDEV"), (b"etc/passwd", "EXDEV"),
        (b"a/b/over", "EXDEV"), (b"proc/etc/passwd", "EXDEV"), (b"loop", "ELOOP"), (b"one", "ELOOP"), (b"chain44", "ELOOP"),
        (b"dangling", "ENOENT"), (b"gone", "ENOENT"), (b"a/b/f/x", "ENOTDIR"), (b"x" * 300, "ENAMETOOLONG"),
    ):  # fmt: skip
        with pytest.raises(OSError) as refused:
            read(root, path)
        assert refused.value.errno == getattr(errno, name), path


def test_places(root: WorkspaceRoot) -> None:
    links(root)
    with root.place(b"file", follow=True) as place:
        assert (place.name, place.path) == (b"f", b"a/b/f")
    with root.place(b"file") as place:
        assert (place.name, place.path) == (b"file", b"file")
    with root.place(b"folder/b/new") as place:
        assert (place.path, place.status()) == (b"a/b/new", None)
    with root.place(b"absolute-folder/b/new", follow=True) as place:
        assert place.path == b"a/b/new"
    with root.place(b"x/y/z", make=True) as place:
        os.close(os.open(place.name, os.O_CREAT | os.O_WRONLY, dir_fd=place.folder))
    assert (root.path / "x/y/z").exists()
    for path in (b"dangling", b"dangling-deep", b"dangling/x", b"dangling-deep/x"):
        with pytest.raises(WorkspaceError) as refused, root.place(path, follow=True, make=True):
            pass
        assert refused.value.code == "link_dangling"
    with pytest.raises(OSError), root.place(b"out-folder/new", make=True):
        pass
    assert os.listdir(root.path.parent / "outside") == ["secret"]


def test_no_error_of_the_body_is_taken_for_one_of_the_place(root: WorkspaceRoot) -> None:
    links(root)
    with pytest.raises(FileNotFoundError), root.place(b"file", follow=True):
        raise FileNotFoundError


def test_what_is_no_regular_file_is_never_opened(root: WorkspaceRoot) -> None:
    os.mkfifo(root.path / "fifo")
    os.symlink("fifo", root.path / "link")
    for path in (b"fifo", b"link"):
        with pytest.raises((WorkspaceError, OSError)) as refused:
            root.open_file(path)
        fault = refused.value
        assert (refusal(fault, path) if isinstance(fault, OSError) else fault).code == "not_a_file"  # type: ignore[attr-defined]
    (root.path / "folder").mkdir()
    with pytest.raises(WorkspaceError) as told:
        root.open_file(b"folder")
    assert told.value.code == "is_directory"


def test_a_folder_for_an_agent(root: WorkspaceRoot) -> None:
    links(root)
    assert root.folder("") == root.folder(".") == root.folder("./") == "."
    assert root.folder("a/b/") == "a/b"
    assert root.folder("absolute-folder") == "absolute-folder"
    for path, code in (("out-folder", "path_outside"), ("file", "path_invalid"), ("gone", "path_invalid"), ("/etc", "path_invalid"), ("a/..", "path_invalid"), ("\ud800", "path_invalid")):  # fmt: skip
        with pytest.raises(WorkspaceError) as refused:
            root.folder(path)
        assert refused.value.code == code


def test_a_root_that_was_made_again(root: WorkspaceRoot) -> None:
    (root.path / "f").write_text("old")
    assert read(root, b"f") == b"old"
    os.unlink(root.path / "f")
    os.rmdir(root.path)
    with pytest.raises(FileNotFoundError):
        read(root, b"f")
    root.path.mkdir()
    (root.path / "f").write_text("new")
    assert read(root, b"f") == b"new"


def test_nothing_stays_open(root: WorkspaceRoot) -> None:
    links(root)

    def enter(path: bytes) -> None:
        with root.place(path, follow=True):
            pass

    def visit() -> None:
        for name in os.listdir(root.path):
            for path in (os.fsencode(name), os.fsencode(name) + b"/f", os.fsencode(name) + b"/b/f"):
                with contextlib.suppress(OSError, WorkspaceError):
                    os.close(root.hold(path))
                with contextlib.suppress(OSError, WorkspaceError):
                    os.close(root.open_file(path)[0])
                with contextlib.suppress(OSError, WorkspaceError):
                    os.close(root.open_folder(path))
                with contextlib.suppress(OSError, WorkspaceError):
                    enter(path)

    visit()
    before = len(os.listdir("/proc/self/fd"))
    visit()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_quick_way_never_waits(root: WorkspaceRoot) -> None:
    (root.path / "f").write_text("f")
    if root.kernel and root.quick_device is not None:
        held = root.hold_quickly(b"f")
        assert stat.S_ISREG(os.fstat(held).st_mode)
        os.close(held)
    with pytest.raises(BlockingIOError):
        root.hold_quickly(b"gone")


def test_file_systems() -> None:
    assert file_system_type(b"/proc/self") == "proc"
    assert file_system_type(b"/") != ""


@pytest.mark.parametrize("by_kernel", [True, False])
def test_no_step_goes_into_another_mount(monkeypatch: pytest.MonkeyPatch, by_kernel: bool, tmp_path: Path) -> None:
    if by_kernel and not paths._can_step():
        pytest.skip("no openat2 here")
    monkeypatch.setattr(paths, "_can_step", lambda: by_kernel)
    top = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    here = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError) as refused:
            paths.step_into(top, b"proc")
        assert refused.value.errno == errno.EXDEV
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to("folder")
        os.close(paths.step_into(here, b"folder"))
        with pytest.raises(NotADirectoryError):
            paths.step_into(here, b"link")
    finally:
        os.close(top)
        os.close(here)


def test_mounts_with_odd_names() -> None:
    table = (
        b"22 1 0:21 / / rw - ext4 /dev/root rw\n"
        b"23 22 0:22 / /a\\040b rw shared:1 - nfs4 host rw\n"
        b"24 22 0:23 / /caf\xc3\xa9\\134x rw - tmpfs tmpfs rw\n"
    )
    assert mounts(table) == [(22, b"/", "ext4"), (23, b"/a b", "nfs4"), (24, b"/caf\xc3\xa9\\x", "tmpfs")]
    assert mounts(b"no table") == []
