"""Writing at the room: what a crash, a lack of rights, and another writer leave."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.guarded_server import NOBODY, as_user, needs_root
from workspace_runtime.conditions import Conditions
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.files.changes import copy, delete, move
from workspace_runtime.files.temporary import Temporaries, is_temporary
from workspace_runtime.files.writing import Writer, Written, numbered
from workspace_runtime.paths import WorkspaceRoot, etag_of


@pytest.fixture
def root(tmp_path: Path) -> Iterator[WorkspaceRoot]:
    (tmp_path / "root").mkdir()
    made = WorkspaceRoot(tmp_path / "root")
    yield made
    made.close()


@pytest.fixture
def temporaries(tmp_path: Path) -> Iterator[Temporaries]:
    made = Temporaries(tmp_path / "journal")
    yield made
    made.close()


@pytest.fixture
def writer(root: WorkspaceRoot, temporaries: Temporaries) -> Writer:
    return Writer(root, temporaries)


def put(writer: Writer, path: bytes, content: bytes = b"x", *, if_match: str | None = None) -> Written:
    new = writer.begin(path, Conditions(if_match))
    try:
        new.write(content)
        return new.commit()
    finally:
        new.close()


@pytest.fixture
def names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that knows no files without names."""
    monkeypatch.delattr(os, "O_TMPFILE")


def test_a_file_on_its_way_has_no_name(root: WorkspaceRoot, writer: Writer) -> None:
    (root.path / "f").write_text("old")
    for path in (b"f", b"g", b"not/there/yet"):
        new = writer.begin(path)
        new.write(b"half")
        assert os.listdir(root.path) == ["f"]
        new.close()


@pytest.mark.usefixtures("names_only")
def test_what_a_crash_left_is_removed_and_nothing_else(root: WorkspaceRoot, writer: Writer, tmp_path: Path) -> None:
    (root.path / "f").write_text("old")
    (root.path / "a/b").mkdir(parents=True)
    for path in (b"f", b"a/b/c", b"not/there/yet"):
        writer.begin(path).write(b"half")  # and never closed: as a kill leaves it
    left = [path for path in root.path.rglob("*") if is_temporary(path.name)]
    assert len(left) == 3
    alike = root.path / ".workspace-runtime-0123456789abcdef.tmp"
    alike.write_text("of somebody else")
    with open(tmp_path / "journal", "ab") as journal:
        journal.write(
            b"f\0../outside/.workspace-runtime-0123456789abcdef.tmp\0a/.workspace-runtime-0000000000000000.tmp\0half a no"
        )
    again = Temporaries(tmp_path / "journal")
    assert again.clean(root) == 3
    assert sorted(str(path.relative_to(root.path)) for path in root.path.rglob("*")) == [alike.name, "a", "a/b", "f"]
    assert (root.path / "f").read_text() == "old"
    assert again.clean(root) == 0


@pytest.mark.usefixtures("names_only")
def test_names_do_the_same(root: WorkspaceRoot, writer: Writer) -> None:
    assert put(writer, b"a/f", b"1").result == "created"
    assert put(writer, b"a/f", b"2").result == "replaced"
    new = writer.begin(b"a/f", on_conflict="rename")
    assert new.commit().path == b"a/f (1)"
    new.close()
    assert sorted(os.listdir(root.path / "a")) == ["f", "f (1)"] and (root.path / "a/f").read_bytes() == b"2"


def test_the_journal_does_not_grow(writer: Writer, tmp_path: Path) -> None:
    for number in range(50):
        put(writer, b"f%d" % (number % 5))
    assert (tmp_path / "journal").stat().st_size == 0


def test_etags_of_our_own_contents_never_come_again(writer: Writer) -> None:
    """Inode numbers and sizes come again; the time of change is later each time."""
    etags = [put(writer, b"f", b"same size").etag for _ in range(300)]
    assert len(set(etags)) == 300


def test_a_change_by_somebody_else_while_the_body_came(root: WorkspaceRoot, writer: Writer) -> None:
    etag = put(writer, b"f", b"one").etag
    new = writer.begin(b"f", Conditions(etag))
    new.write(b"mine")
    (root.path / "f").write_text("theirs")
    with pytest.raises(WorkspaceError) as refused:
        new.commit()
    new.close()
    assert refused.value.code == "precondition_failed"
    assert (root.path / "f").read_text() == "theirs" and os.listdir(root.path) == ["f"]


def test_a_folder_that_became_a_link_while_the_body_came(root: WorkspaceRoot, writer: Writer, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (root.path / "d").mkdir()
    new = writer.begin(b"d/f")
    new.write(b"x")
    os.rename(root.path / "d", root.path / "moved")
    os.symlink(tmp_path / "outside", root.path / "d")
    with pytest.raises(WorkspaceError) as refused:
        new.commit()
    new.close()
    assert refused.value.code == "path_outside"
    assert os.listdir(tmp_path / "outside") == [] and os.listdir(root.path / "moved") == []


def test_hard_links_keep_the_old_content(root: WorkspaceRoot, writer: Writer) -> None:
    put(writer, b"f", b"old")
    os.link(root.path / "f", root.path / "g")
    put(writer, b"f", b"new")
    assert (root.path / "g").read_bytes() == b"old"


@needs_root
def test_what_the_user_may_not_write(root: WorkspaceRoot, writer: Writer) -> None:
    os.chmod(root.path.parent, 0o755)
    os.chmod(root.path, 0o777)
    for folder in list(root.path.parents)[:3]:
        os.chmod(folder, 0o755)
    put(writer, b"theirs", b"old")
    os.chmod(root.path / "theirs", 0o644)
    (root.path / "closed").mkdir(mode=0o700)
    (root.path / "closed/f").write_text("f")
    (root.path / "open").mkdir(mode=0o777)
    os.chmod(root.path / "open", 0o777)
    with as_user(NOBODY):
        for act in (
            lambda: put(writer, b"theirs", b"new"), lambda: put(writer, b"closed/f", b"new"), lambda: delete(root, b"closed/f"),
            lambda: delete(root, b"closed", recursive=True), lambda: copy(writer, b"closed", b"open/copy"), lambda: move(root, b"closed/f", b"open/f"),
        ):  # fmt: skip
            with pytest.raises(WorkspaceError) as refused:
                act()
            assert refused.value.code == "permission_denied"
        assert put(writer, b"open/mine").result == "created"
    assert (root.path / "theirs").read_text() == "old" and (root.path / "closed/f").exists()
    assert sorted(os.listdir(root.path / "open")) == ["mine"]


def test_the_umask_decides_over_new_files(root: WorkspaceRoot, writer: Writer) -> None:
    before = os.umask(0o027)
    try:
        put(writer, b"f")
        with contextlib.closing(writer.begin(b"g", executable=True)) as new:
            new.write(b"#!")
            new.commit()
    finally:
        os.umask(before)
    assert stat.S_IMODE((root.path / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((root.path / "g").stat().st_mode) == 0o750


def test_an_etag_follows_what_is_there(root: WorkspaceRoot, writer: Writer) -> None:
    written = put(writer, b"f")
    assert written.etag == etag_of((root.path / "f").stat())
    move(root, b"f", b"g")
    assert written.etag == etag_of((root.path / "g").stat())


@pytest.mark.parametrize(
    ("path", "expected"),
    [(b"a.txt", b"a (1).txt"), (b"x/a", b"x/a (1)"), (b".env", b".env (1)"), (b"a.tar.gz", b"a.tar (1).gz"), (b"x.y/a", b"x.y/a (1)")],
)  # fmt: skip
def test_numbered_names(path: bytes, expected: bytes) -> None:
    assert numbered(path, 1) == expected


def test_two_names_of_one_file_become_one(root: WorkspaceRoot, writer: Writer) -> None:
    put(writer, b"one", b"1")
    os.link(root.path / "one", root.path / "two")
    assert move(root, b"one", b"two", overwrite=True)
    assert os.listdir(root.path) == ["two"]
    assert not move(root, b"two", b"two")


def test_into_itself_by_a_link(root: WorkspaceRoot, writer: Writer) -> None:
    put(writer, b"a/f")
    os.symlink("a", root.path / "L")
    for source, target in ((b"a", b"L/x"), (b"a", b"L/new/x"), (b"a", b"a/x/y")):
        with pytest.raises(WorkspaceError) as refused:
            move(root, source, target)
        assert refused.value.code == "into_itself"
        with pytest.raises(WorkspaceError) as refused:
            copy(writer, source, target)
        assert refused.value.code == "into_itself"
    assert sorted(str(path.relative_to(root.path)) for path in root.path.rglob("*")) == ["L", "a", "a/f"]


def test_a_link_replaces_a_file_in_one_step(root: WorkspaceRoot, writer: Writer) -> None:
    put(writer, b"f", b"old")
    os.symlink("elsewhere", root.path / "link")
    assert copy(writer, b"link", b"f", overwrite=True)
    assert os.readlink(root.path / "f") == "elsewhere" and sorted(os.listdir(root.path)) == ["f", "link"]
