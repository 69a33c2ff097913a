"""Conflicts by HTTP: all seven kinds, their three sides, and each way to settle them."""

import os
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from support.version_control import NASTY, Case, Host, host

SIDES = ("base", "ours", "theirs")
# By kind: what base, ours and theirs have.
KINDS = {
    "both_modified": (b"base\n", b"ours\n", b"theirs\n"), "both_added": (None, b"ours\n", b"theirs\n"), "deleted_by_us": (b"base\n", None, b"theirs\n"),
    "deleted_by_them": (b"base\n", b"ours\n", None), "added_by_us": (None, b"ours\n", None), "added_by_them": (None, None, b"theirs\n"),
    "both_deleted": (b"base\n", None, None),
}  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("conflicts")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    """A merge with a conflict of each kind, in the file of its name; `clean` has none.

    Those that an index has of one side alone come of a rename on both sides to different names.
    """
    made = here.fresh()
    long = b"".join(b"line %d\n" % number for number in range(30))
    both = {
        name: sides for name, sides in KINDS.items() if name not in ("added_by_us", "added_by_them", "both_deleted")
    }
    made.commit(
        {"clean": b"c\n", "both_deleted": long, **{name: base for name, (base, _, _) in both.items() if base}}, "base"
    )
    for branch, side in (("side", 2), ("main", 1)):
        made.git("checkout", "-q", "-B", branch, "main~0")
        made.git("mv", "both_deleted", "added_by_us" if side == 1 else "added_by_them")
        for name, sides in both.items():
            content = sides[side]
            if content is None:
                made.git("rm", "-q", name)
            else:
                made.write(name, content)
                made.git("add", name)
        made.git("commit", "-q", "-m", branch)
        if branch == "side":
            made.git("checkout", "-q", "-B", "main", "side~1")
    assert made.attempt("merge", "side") == 1
    return made


def test_all_seven(case: Case) -> None:
    items = {item["path"]: item for item in case.get("conflicts")["items"]}
    assert {path: item["kind"] for path, item in items.items()} == {kind: kind for kind in KINDS}
    by_status = {file["path"]: file["conflict"] for file in case.status()["files"]}
    assert by_status == {kind: kind for kind in KINDS}
    for path, sides in KINDS.items():
        for side, content in zip(SIDES, sides, strict=True):
            told = items[path][side]
            assert (told is None) is (content is None), (path, side)
            given = case.ask("GET", "blob", path=f"{case.path}/{path}", ref=side)
            if told is None:
                assert given.code == "file_not_found"
            else:
                assert given.status == 200 and given.headers["etag"] == f'"{told["oid"]}"'
                if path in ("both_modified", "both_added", "deleted_by_us", "deleted_by_them"):
                    assert given.body == content
        assert items[path]["exists"] is (case.folder / path).exists()
    unmerged = [file for file in case.get("diff")["files"] if file["status"] == "unmerged"]
    assert {file["path"] for file in unmerged} == set(KINDS) and len(unmerged) == len(KINDS)
    assert case.get("commit/draft")["operation"]["kind"] == "merge"


@pytest.mark.parametrize("use", SIDES)
def test_resolve_by_a_side(case: Case, use: str) -> None:
    sides = {item["path"]: item[use] for item in case.get("conflicts")["items"]}
    case.write("clean", "precious\n")
    left = set(KINDS)
    for path, side in sides.items():
        items = case.post("conflicts/resolve", paths=[path], use=use)["items"]
        left.remove(path)
        assert {item["path"] for item in items} == left
        staged = case.git("ls-files", "-s", "--", path)
        if side is None:
            assert staged == "" and not (case.folder / path).exists()
        else:
            assert staged.split() == [side["mode"], side["oid"], "0", path]
            assert case.git("hash-object", path) == side["oid"]
    assert case.files()["clean"] == (None, "modified")
    assert case.post("merge/continue")["operation"] is None
    assert case.read("clean") == b"precious\n"


@pytest.mark.parametrize("use", SIDES)
def test_resolve_all_at_once(case: Case, use: str) -> None:
    assert case.post("conflicts/resolve", paths=list(KINDS), use=use) == {"items": [], "next_cursor": None}
    assert case.post("merge/continue")["operation"] is None


def test_resolve_by_the_working_tree(case: Case) -> None:
    case.write("both_modified", "mended\n")
    case.write("both_added", "mended\n")
    (case.folder / "both_added").chmod(0o755)
    (case.folder / "deleted_by_us").unlink(missing_ok=True)
    assert case.post("conflicts/resolve", paths=list(KINDS), use="worktree") == {"items": [], "next_cursor": None}
    case.post("merge/continue")
    assert case.files() == {}
    assert case.git("show", "HEAD:both_modified") == "mended"
    assert case.git("ls-tree", "HEAD", "both_added").startswith("100755")
    assert case.git("ls-tree", "HEAD", "deleted_by_us", "both_deleted") == ""


def test_conflicts_are_staged_and_undone(case: Case) -> None:
    case.write("both_modified", "mended\n")
    case.post("stage", paths=["both_modified"])
    assert case.files()["both_modified"] == ("modified", None)
    assert "both_modified" not in {item["path"] for item in case.get("conflicts")["items"]}
    assert case.refused("POST", "discard", {"paths": ["both_added"]})["code"] == "merge_conflict"
    assert case.refused("POST", "commit", {"message": "x", "paths": ["clean"]})["status"] == 409
    assert b"<<<<" in case.read("both_added")
    assert (
        case.refused("POST", "conflicts/resolve", {"paths": ["both_modified"], "use": "ours"})["code"]
        == "conflict_not_found"
    )
    problem = case.refused("POST", "conflicts/resolve", {"paths": ["both_added", "clean"], "use": "ours"})
    assert (problem["code"], problem["path"]) == ("conflict_not_found", "clean")
    assert b"<<<<" in case.read("both_added")
    assert case.post("merge/abort")["operation"] is None
    assert case.files() == {} and case.get("conflicts") == {"items": [], "next_cursor": None}


def test_unstage_keeps_the_merge(case: Case) -> None:
    case.write("clean", "staged\n")
    case.post("stage", paths=["clean"])
    case.post("unstage", paths=["clean"])
    assert case.files()["clean"] == (None, "modified")
    assert case.status()["operation"]["kind"] == "merge" and len(case.get("conflicts")["items"]) == 7


def test_names_of_all_kinds(here: Host) -> None:
    case = here.init("nasty")
    case.commit(dict.fromkeys(NASTY, b"base\n"), "base")
    case.git("checkout", "-q", "-b", "side")
    case.commit(dict.fromkeys(NASTY, b"side\n"), "side")
    case.git("checkout", "-q", "main")
    case.commit(dict.fromkeys(NASTY, b"main\n"), "main")
    problem = case.refused("POST", "merge", {"ref": "side"})
    assert (problem["code"], len(problem["files"])) == ("merge_conflict", len(NASTY))
    items = case.get("conflicts")["items"]
    assert {item.get("path_bytes") or item["path"] for item in items} == {
        "%E9%FF" if name == b"\xe9\xff" else name.decode() for name in NASTY
    }
    for number, name in enumerate(NASTY):
        use = ("ours", "theirs", "base", "worktree")[number % 4]
        left = case.post("conflicts/resolve", paths_bytes=[quote(name)], use=use)["items"]
        assert len(left) == len(NASTY) - number - 1
        with open(os.path.join(os.fsencode(case.folder), name), "rb") as file:
            content = file.read()
        sides = {"ours": b"main\n", "theirs": b"side\n", "base": b"base\n"}
        assert content == sides[use] if use in sides else b"<<<<" in content


def test_a_link_against_a_file(here: Host) -> None:
    case = here.init("kinds")
    case.commit({"x": b"base\n"}, "base")
    case.git("checkout", "-q", "-b", "side")
    (case.folder / "x").unlink()
    (case.folder / "x").symlink_to("/etc/passwd")
    case.git("commit", "-q", "-am", "a link")
    case.git("checkout", "-q", "main")
    case.commit({"x": b"main\n"}, "main")
    case.refused("POST", "merge", {"ref": "side"})
    (item,) = [item for item in case.get("conflicts")["items"] if item["theirs"]]
    assert item["theirs"]["mode"] == "120000"
    assert case.ask("GET", "blob", path=f"kinds/{item['path']}", ref="theirs").body == b"/etc/passwd"
    paths = [item["path"] for item in case.get("conflicts")["items"]]
    assert case.post("conflicts/resolve", paths=paths, use="theirs") == {"items": [], "next_cursor": None}


# --- sides of different kinds -----------------------------------------------------------------------------------------------------


def make(case: Case, kind: str, content: str = "") -> None:
    """Have a thing of this kind at `f`, and nothing else."""
    case.git("rm", "-r", "-q", "--ignore-unmatch", "f")
    if kind == "file":
        case.write("f", f"{content}\n")
    elif kind == "link":
        (case.folder / "f").symlink_to("x")
    elif kind == "folder":
        case.write("f/in", f"in {content}\n")
    case.git("add", "-A")
    case.git("commit", "-q", "--allow-empty", "-m", kind)


def of_different_kinds(case: Case, base: str, ours: str, theirs: str, label: str) -> None:
    case.commit({"x": b"x\n"}, "first")
    make(case, base, "base")
    case.git("switch", "-q", "-c", label)
    make(case, theirs, "theirs")
    case.git("switch", "-q", "main")
    make(case, ours, "ours")
    assert case.attempt("merge", label) == 1


@pytest.mark.parametrize("use", ["ours", "theirs"])
@pytest.mark.parametrize(
    ("base", "ours", "theirs"),
    [
        ("file", "file", "link"), ("file", "link", "file"), ("nothing", "file", "link"), ("nothing", "link", "file"),
        ("file", "file", "folder"), ("file", "folder", "file"), ("nothing", "file", "folder"), ("nothing", "folder", "file"),
        ("nothing", "link", "folder"),
    ],
)  # fmt: skip
def test_a_side_of_another_kind_gets_its_own_name(here: Host, base: str, ours: str, theirs: str, use: str) -> None:
    """Whichever of the two names is settled: afterwards there is the side that was chosen, at its name, and nothing beside it."""
    for named in ("own", "beside"):
        case = here.fresh()
        of_different_kinds(case, base, ours, theirs, "a/side")
        items = case.get("conflicts")["items"]
        beside = [item for item in items if item["original_path"] is not None]
        assert [item["original_path"] for item in beside] == ["f"] * len(beside)
        assert {item["path"] for item in items if item["original_path"] is None} <= {"f"}
        assert beside, items
        path = "f" if named == "own" else beside[0]["path"]
        assert case.post("conflicts/resolve", paths=[path], use=use) == {"items": [], "next_cursor": None}
        chosen = "main" if use == "ours" else "a/side"
        case.post("merge/continue")
        wanted = case.git("ls-tree", "-r", "main^1" if use == "ours" else "main^2")
        assert case.git("ls-tree", "-r", "main") == wanted, chosen
        assert case.git("status", "--porcelain") == ""
        assert {path.name for path in case.folder.iterdir()} == {".git", "x", "f"}


def test_a_folder_with_other_work_is_not_replaced(here: Host) -> None:
    """Of a folder that gives way to a file nothing goes that is nowhere else."""
    for name in ("new", "in"):
        case = here.fresh()
        of_different_kinds(case, "file", "file", "folder", "side")
        case.write(f"f/{name}", "precious\n")
        problem = case.refused("POST", "conflicts/resolve", {"paths": ["f"], "use": "ours"})
        assert (problem["code"], case.read(f"f/{name}")) == ("local_changes_in_way", b"precious\n")
        assert [item["original_path"] for item in case.get("conflicts")["items"]] == ["f"]
        assert case.post("conflicts/resolve", paths=["f"], use="theirs")["items"] == []


def test_a_name_with_a_tilde_is_its_own(here: Host) -> None:
    """A file that a side really has stands for no other, however it is called."""
    case = here.fresh()
    case.commit({"f": b"f\n", "f~HEAD": b"base\n"}, "first")
    case.git("switch", "-q", "-c", "side")
    case.git("rm", "-q", "f~HEAD")
    case.git("commit", "-q", "-m", "gone")
    case.git("switch", "-q", "main")
    case.commit({"f~HEAD": b"changed\n"}, "changed")
    assert case.attempt("merge", "side") == 1
    (item,) = case.get("conflicts")["items"]
    assert (item["path"], item["original_path"]) == ("f~HEAD", None)
    assert case.post("conflicts/resolve", paths=["f~HEAD"], use="ours")["items"] == []
    assert (case.read("f"), case.read("f~HEAD")) == (b"f\n", b"changed\n")
