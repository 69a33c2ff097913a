"""Writing at the room: what a crash, a lack of rights, and another writer leave."""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.guarded_server import NOBODY, as_user, needs_root
from workspace_runtime.conditions import Conditions
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.files import removal, transfers
from workspace_runtime.files.changes import delete
from workspace_runtime.files.temporary import Temporaries, is_temporary
from workspace_runtime.files.transfers import AcrossError, copy, move, move_across
from workspace_runtime.files.writing import Writer, Written, numbered
from workspace_runtime.paths import WorkspaceRoot, etag_of, step_into


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
    assert written.etag != etag_of((root.path / "g").stat())


@pytest.mark.parametrize(
    ("path", "expected"),
    [(b"a.txt", b"a (1).txt"), (b"x/a", b"x/a (1)"), (b".env", b".env (1)"), (b"a.tar.gz", b"a.tar (1).gz"), (b"x.y/a", b"x.y/a (1)"),
     (b"a (1).txt", b"a (2).txt"), (b"a (9)", b"a (10)"), (b" (1)", b" (1) (1)"), (b"a (01).txt", b"a (01) (1).txt"), (b"a (x)", b"a (x) (1)")],
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


# --- what a replacement would take away -------------------------------------------------------------------------------


@needs_root
def test_a_file_of_somebody_else_keeps_its_owner(root: WorkspaceRoot, writer: Writer) -> None:
    foreign = root.path / "foreign"
    foreign.write_text("theirs")
    foreign.chmod(0o666)
    root.path.chmod(0o777)
    with as_user(NOBODY):
        written = put(writer, b"foreign", b"ours")
        mine = put(writer, b"mine")
    assert written.in_place and foreign.read_text() == "ours"
    assert (foreign.stat().st_uid, foreign.stat().st_mode & 0o777) == (0, 0o666)
    assert written.etag == etag_of(foreign.stat())
    assert not mine.in_place
    with as_user(NOBODY):
        again = put(writer, b"mine")
    assert not again.in_place
    assert sorted(os.listdir(root.path)) == ["foreign", "mine"]


@needs_root
def test_a_file_in_a_folder_that_may_not_be_written(root: WorkspaceRoot, writer: Writer, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for above in tmp_path.parents:  # another user must get there
        if above.name.startswith(("pytest-", "popen-")):
            above.chmod(above.stat().st_mode | 0o011)
    (root.path / "kept").write_text("old")
    (root.path / "kept").chmod(0o666)
    (root.path / "fixed").write_text("old")
    etag = etag_of((root.path / "kept").stat())
    with as_user(NOBODY):
        written = put(writer, b"kept", b"new", if_match=etag)
        for name in (b"fixed", b"none"):
            with pytest.raises(WorkspaceError) as refused:
                put(writer, name, b"new")
            assert refused.value.code == "permission_denied"
    assert written.in_place and (root.path / "kept").read_text() == "new"
    assert (root.path / "fixed").read_text() == "old"


def test_attributes_that_cant_be_kept(root: WorkspaceRoot, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.path / "f").write_text("old")
    try:
        os.setxattr(root.path / "f", "user.mark", b"precious")
    except OSError:
        pytest.skip("no attributes here")
    assert not put(writer, b"f", b"new").in_place
    assert os.getxattr(root.path / "f", "user.mark") == b"precious"

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "setxattr", refuse)
    assert put(writer, b"f", b"newer").in_place
    assert ((root.path / "f").read_text(), os.getxattr(root.path / "f", "user.mark")) == ("newer", b"precious")


# --- to another file system -------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(root: WorkspaceRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no rename reached its target's file system."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(transfers, "rename", refuse)


@pytest.mark.usefixtures("elsewhere")
def test_a_move_across_copies_and_then_removes(root: WorkspaceRoot, writer: Writer) -> None:
    tree = root.path / "tree/sub"
    tree.mkdir(parents=True)
    (tree / "f").write_text("content")
    (tree / "f").chmod(0o750)
    os.utime(tree / "f", ns=(1_000_000_000, 2_000_000_000))
    (tree / "link").symlink_to("f")
    with pytest.raises(AcrossError):
        move(root, b"tree", b"moved")
    move_across(writer, b"tree", b"moved")
    status = (root.path / "moved/sub/f").stat()
    assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o750, 2_000_000_000)
    assert os.readlink(root.path / "moved/sub/link") == "f"
    assert os.listdir(root.path) == ["moved"]
    assert move_across(writer, b"moved/sub/f", b"f") is False
    assert ((root.path / "f").read_text(), (root.path / "f").stat().st_mtime_ns) == ("content", 2_000_000_000)
    assert os.listdir(root.path / "moved/sub") == ["link"]


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("how", [copy, move_across])
def test_what_others_put_into_a_copy_that_fails_stays(
    root: WorkspaceRoot, writer: Writer, how: Callable[..., bool]
) -> None:
    for name in ("kept", "changed", "replaced"):
        (root.path / "tree" / name).mkdir(parents=True)
        (root.path / "tree" / name / "f").write_text("x")
        os.symlink("f", root.path / "tree" / name / "link")
    (root.path / "tree/gone").mkdir()
    (root.path / "tree/gone/f").write_text("x")
    seen = 0

    def stopped() -> bool:
        """Called before each file is copied, and before each piece of one: at last all others are there."""
        nonlocal seen
        seen = max(seen, sum(len(files) for _, _, files in os.walk(root.path / "copied")))
        if seen < 6:
            return False
        put(writer, b"copied/mine", b"mine")
        put(writer, b"copied/kept/mine", b"mine")
        with contextlib.suppress(FileNotFoundError), open(root.path / "copied/changed/f", "r+") as file:
            file.write("mine")
        put(writer, b"copied/replaced/f", b"mine")
        return True

    with pytest.raises(WorkspaceError) as raised:
        how(writer, b"tree", b"copied", stopped=stopped)
    assert raised.value.code == "shutting_down"
    left = {str(path.relative_to(root.path / "copied")) for path in (root.path / "copied").rglob("*") if path.is_file()}
    assert {"mine", "kept/mine", "replaced/f"} <= left <= {"mine", "kept/mine", "replaced/f", "changed/f"}
    assert not (root.path / "copied/gone").exists()
    assert all((root.path / "copied" / name).read_text() == "mine" for name in left)
    assert sum(len(files) for _, _, files in os.walk(root.path / "tree")) == 7


def test_a_folder_that_somebody_makes_in_a_copy_meanwhile_is_not_filled(root: WorkspaceRoot, writer: Writer) -> None:
    for name in ("a", "b"):
        (root.path / "tree" / name / "below").mkdir(parents=True)
        (root.path / "tree" / name / "f").write_text("x")

    def stopped() -> bool:
        for name in ("a", "b"):
            (root.path / "copied" / name / "below").mkdir(exist_ok=True)
        return False

    with pytest.raises(WorkspaceError) as raised:
        copy(writer, b"tree", b"copied", stopped=stopped)
    assert raised.value.code == "file_exists"
    assert not [path for path in (root.path / "copied").rglob("*") if path.is_file()]


def test_what_changes_during_a_move_across_is_not_removed(
    root: WorkspaceRoot, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root.path / "tree").mkdir()
    (root.path / "tree/f").write_text("before")

    def interfere(*arguments: object) -> None:
        (root.path / "tree" / changed).write_text("in between")
        removal.remove_tree(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(transfers, "remove_tree", interfere)
    for number, changed in enumerate(("f", "new")):
        with pytest.raises(WorkspaceError) as refused:
            move_across(writer, b"tree", b"moved%d" % number)
        assert refused.value.code == "file_busy"
        assert (root.path / "tree" / changed).read_text() == "in between"


@needs_root
@pytest.mark.usefixtures("elsewhere")
def test_a_move_across_that_would_take_the_owner_away_is_refused(root: WorkspaceRoot, writer: Writer) -> None:
    (root.path / "f").write_text("theirs")
    root.path.chmod(0o777)
    with as_user(NOBODY), pytest.raises(WorkspaceError) as refused:
        move_across(writer, b"f", b"g")
    assert refused.value.code == "permission_denied"
    assert os.listdir(root.path) == ["f"]


# --- removal ----------------------------------------------------------------------------------------------------------


def test_a_delete_that_fails_in_the_middle_says_so(root: WorkspaceRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/f", "b/f", "c/f"):
        (root.path / "tree" / name).parent.mkdir(parents=True)
        (root.path / "tree" / name).touch()
    calls = []

    def step(folder: int, name: bytes) -> int:
        calls.append(name)
        if len(calls) == 3:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return step_into(folder, name)

    monkeypatch.setattr(removal, "step_into", step)
    with pytest.raises(WorkspaceError) as refused:
        delete(root, b"tree", recursive=True)
    assert (refused.value.code, refused.value.data["partial"]) == ("file_busy", True)
    assert refused.value.data["path"] == f"tree/{calls[2].decode()}"
    assert "deleted already" in refused.value.detail
    left = len(list((root.path / "tree").rglob("f")))
    assert left == 2
