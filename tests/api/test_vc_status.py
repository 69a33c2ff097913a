"""`status` by HTTP: each state of a repository, made by real git, is shown as it is."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.server import eventually
from support.version_control import NASTY, Case, Host, host


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("status")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    """A repository with one commit."""
    made = here.fresh()
    made.commit({"a.txt": b"one\ntwo\nthree\n", "b.txt": b"b\n"}, "first")
    return made


def diverged(case: Case) -> str:
    """A branch `other` whose commit conflicts with the one of `main`; its id."""
    case.git("checkout", "-q", "-b", "other")
    other = case.commit({"a.txt": b"theirs\n"}, "other")
    case.git("checkout", "-q", "main")
    case.commit({"a.txt": b"ours\n"}, "ours")
    return other


# --- head -----------------------------------------------------------------------------------------------------------------------


def test_unborn(here: Host) -> None:
    case = here.init("unborn", "--initial-branch=trunk")
    case.write("new.txt", "x\n")
    found = case.status()
    assert found["head"] == {"branch": "trunk", "oid": None, "detached": False, "unborn": True}
    assert case.files() == {"new.txt": (None, "untracked")}
    case.git("add", "new.txt")
    assert case.status()["files"][0] | {"additions": 1, "deletions": 0} == case.status()["files"][0]
    assert case.files() == {"new.txt": ("added", None)}


def test_clean_and_detached(case: Case) -> None:
    oid = case.head()
    clean = case.status()
    assert clean["head"] == {"branch": "main", "oid": oid, "detached": False, "unborn": False}
    assert (clean["files"], clean["file_count"], clean["operation"], clean["upstream"]) == ([], 0, None, None)
    assert not (clean["bare"] or clean["read_only"] or clean["shallow"] or clean["sparse"] or clean["truncated"])
    assert clean["root"] == case.path
    case.git("checkout", "-q", "--detach")
    assert case.status()["head"] == {"branch": None, "oid": oid, "detached": True, "unborn": False}


def test_upstream(case: Case) -> None:
    case.git("branch", "base")
    case.git("branch", "--set-upstream-to=base")
    case.commit({"c.txt": b"c"}, "ahead")
    assert case.status()["upstream"] == {"ref": "base", "ahead": 1, "behind": 0, "gone": False}
    case.git("branch", "-D", "base")
    assert case.status()["upstream"] == {"ref": "base", "ahead": None, "behind": None, "gone": True}


# --- what is under way ------------------------------------------------------------------------------------------------------------


def test_merging(case: Case) -> None:
    other = diverged(case)
    assert case.attempt("merge", "other") == 1
    found = case.status()
    assert found["operation"]["kind"] == "merge" and found["operation"]["oid"] == other
    assert found["operation"]["head_name"] == "main"
    (file,) = found["files"]
    assert (file["path"], file["conflict"], file["index"], file["worktree"]) == ("a.txt", "both_modified", None, None)
    case.write("a.txt", "both\n")
    case.git("add", "a.txt")
    assert case.status()["operation"]["kind"] == "merge"
    assert case.files() == {"a.txt": ("modified", None)}
    case.git("commit", "-q", "--no-edit")
    assert case.status()["operation"] is None


@pytest.mark.parametrize("backend", ["merge", "apply"])
def test_rebasing(case: Case, backend: str) -> None:
    diverged(case)
    onto = case.head()
    case.git("checkout", "-q", "other")
    case.commit({"z.txt": b"z"}, "second")
    assert case.attempt("rebase", f"--{backend}", "main") == 1
    found = case.status()
    assert found["head"]["detached"] and found["head"]["oid"] == onto
    told = found["operation"]
    assert (told["kind"], told["head_name"], told["onto"]) == ("rebase", "other", onto)
    assert (told["step"], told["total"]) == (1, 2)
    assert found["files"][0]["conflict"] == "both_modified"


@pytest.mark.parametrize("kind", ["cherry-pick", "revert"])
def test_picking(case: Case, kind: str) -> None:
    other = diverged(case)
    commit = other if kind == "cherry-pick" else case.git("rev-parse", "HEAD~1")
    if kind == "revert":
        case.commit({"a.txt": b"later\n"}, "later")
        commit = case.git("rev-parse", "HEAD~1")
    assert case.attempt(kind, commit) == 1
    told = case.status()["operation"]
    assert (told["kind"], told["oid"]) == (kind, commit)


def test_a_stopped_sequence(case: Case) -> None:
    other = diverged(case)
    case.git("checkout", "-q", "-b", "more", "other")
    second = case.commit({"z.txt": b"z"}, "second")
    case.git("checkout", "-q", "main")
    assert case.attempt("cherry-pick", other, second) == 1
    case.git("checkout", "-q", "--ours", "a.txt")
    case.git("add", "a.txt")
    assert case.status()["operation"]["kind"] == "cherry-pick"


def test_applying_mails(case: Case) -> None:
    diverged(case)
    case.git("format-patch", "-q", "-1", "other", "-o", str(case.folder.parent / "mails"))
    (mail,) = (case.folder.parent / "mails").iterdir()
    assert case.attempt("am", str(mail)) != 0
    mail.unlink()
    told = case.status()["operation"]
    assert (told["kind"], told["step"], told["total"]) == ("am", 1, 1)


def test_bisecting(case: Case) -> None:
    for number in range(4):
        case.commit({"n": b"%d" % number}, str(number))
    case.git("bisect", "start", "HEAD", "HEAD~4")
    found = case.status()
    assert (found["operation"]["kind"], found["operation"]["head_name"]) == ("bisect", "main")
    assert found["head"]["detached"]


def test_stashes_are_counted(case: Case) -> None:
    for content in ("1", "2"):
        case.write("a.txt", content)
        case.git("stash")
    assert case.status()["stash_count"] == 2


# --- files ----------------------------------------------------------------------------------------------------------------------


def test_each_kind_of_change(case: Case) -> None:
    body = b"".join(b"line %d\n" % number for number in range(30))
    case.commit(
        {"mode": b"m\n", "type": b"t\n", "old name": body, "gone": b"g\n", "staged gone": b"s\n", "bin": b"\0a"}, "more"
    )
    (case.folder / "mode").chmod(0o755)
    (case.folder / "type").unlink()
    (case.folder / "type").symlink_to("mode")
    case.git("mv", "old name", "new name")
    (case.folder / "gone").unlink()
    case.git("rm", "-q", "staged gone")
    case.write("intended", "i\n")
    case.git("add", "--intent-to-add", "intended")
    case.write("staged", "1\n2\n")
    case.git("add", "staged")
    case.write("staged", "1\n2\n3\n")
    case.write("bin", b"\0b")
    case.write("a.txt", "one\n2\nthree\nfour\n")
    assert case.files() == {
        "mode": (None, "modified"), "type": (None, "type_changed"), "new name": ("renamed", None), "gone": (None, "deleted"),
        "staged gone": ("deleted", None), "intended": (None, "added"), "staged": ("added", "modified"), "bin": (None, "modified"),
        "a.txt": (None, "modified"),
    }  # fmt: skip
    by_path = {file["path"]: file for file in case.status()["files"]}
    assert by_path["new name"]["old_path"] == "old name"
    counts = {path: (file["additions"], file["deletions"], file["binary"]) for path, file in by_path.items()}
    assert counts == {
        "mode": (0, 0, False), "type": (1, 1, False), "new name": (0, 0, False), "gone": (0, 1, False), "staged gone": (0, 1, False),
        "intended": (1, 0, False), "staged": (3, 0, False), "bin": (None, None, True), "a.txt": (2, 1, False),
    }  # fmt: skip


def test_a_rename_with_more_changes(case: Case) -> None:
    case.commit({"old": b"".join(b"line %d\n" % number for number in range(30))}, "more")
    case.git("mv", "old", "new")
    case.write("new", b"".join(b"line %d\n" % number for number in range(31)))
    (file,) = case.status()["files"]
    assert (file["path"], file["old_path"], file["index"], file["worktree"]) == ("new", "old", "renamed", "modified")
    assert (file["additions"], file["deletions"]) == (1, 0)


def test_a_file_back_after_it_was_taken_out(case: Case) -> None:
    case.git("rm", "-q", "--cached", "b.txt")
    found = [(file["path"], file["index"], file["worktree"]) for file in case.status()["files"]]
    assert found == [("b.txt", "deleted", None), ("b.txt", None, "untracked")]


def test_names_of_all_kinds(case: Case) -> None:
    for name in NASTY:
        with open(os.path.join(os.fsencode(case.folder), name), "wb") as file:
            file.write(b"x\n")
    found = case.status()["files"]
    assert [file.get("path_bytes") for file in found if "path_bytes" in file] == ["%E9%FF"]
    told = {b"\xe9\xff" if "path_bytes" in file else file["path"].encode() for file in found}
    assert told == set(NASTY)
    case.git("add", "-A")
    case.git("commit", "-q", "-m", "nasty")
    assert case.status()["files"] == []
    for name in NASTY:
        with open(os.path.join(os.fsencode(case.folder), name), "ab") as file:
            file.write(b"y\n")
    found = case.status()["files"]
    assert len(found) == len(NASTY)
    assert all((file["worktree"], file["additions"], file["deletions"]) == ("modified", 1, 0) for file in found)


def test_line_ends(case: Case) -> None:
    case.git("config", "core.autocrlf", "true")
    (case.folder / "a.txt").unlink()
    case.git("checkout", "a.txt")
    assert case.read("a.txt") == b"one\r\ntwo\r\nthree\r\n"
    os.utime(case.folder / "a.txt", (1, 1))
    assert case.files() == {}
    case.write("a.txt", b"one\r\ntwo\r\nfour\r\n")
    (file,) = case.status()["files"]
    assert (file["additions"], file["deletions"]) == (1, 1)


def test_assume_unchanged(case: Case) -> None:
    case.git("update-index", "--assume-unchanged", "a.txt")
    case.write("a.txt", "other\n")
    assert case.files() == {}
    case.git("update-index", "--no-assume-unchanged", "a.txt")
    assert case.files() == {"a.txt": (None, "modified")}


def test_untracked_and_ignored(case: Case) -> None:
    case.write(".gitignore", "*.log\nout/\n")
    case.write("x.log", "x")
    case.write("out/deep/file", "x")
    case.write("new/one", "1")
    case.write("new/two", "2")
    both = {".gitignore": (None, "untracked"), "new/one": (None, "untracked"), "new/two": (None, "untracked")}
    assert case.files() == both
    assert set(case.files(untracked="normal")) == {".gitignore", "new/"}
    assert case.files(untracked="no") == {}
    assert case.files(ignored=True) == both | {"x.log": (None, "ignored"), "out/": (None, "ignored")}
    assert case.files() == both
    case.git("config", "status.showUntrackedFiles", "no")
    assert case.files() == both


def test_the_untracked_are_limited(case: Case) -> None:
    for number in range(10_001):
        (case.folder / f"new{number:05}").touch()
    found = case.status()
    assert (found["truncated"], found["file_count"], len(found["files"])) == (True, 10_001, 10_000)
    (case.folder / "new00000").unlink()
    found = case.status()
    assert (found["truncated"], found["file_count"], len(found["files"])) == (False, 10_000, 10_000)


# --- conditional requests -----------------------------------------------------------------------------------------------------


def test_an_entity_tag_holds_as_long_as_the_state(case: Case) -> None:
    first = case.ask("GET", "status")
    tag = first.headers["etag"]
    assert first.json["etag"] == tag
    again = case.ask("GET", "status", headers={"If-None-Match": tag})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert case.ask("GET", "status", headers={"If-None-Match": f'"x", W/{tag}'}).status == 304
    os.utime(case.folder / "a.txt", (1, 1))
    assert case.ask("GET", "status", headers={"If-None-Match": tag}).status == 304
    case.write("a.txt", "changed\n")
    changed = case.ask("GET", "status", headers={"If-None-Match": tag})
    assert (changed.status, changed.json["files"][0]["path"]) == (200, "a.txt")
    head = case.ask("HEAD", "status")
    assert (head.status, head.body, head.headers["etag"]) == (200, b"", changed.headers["etag"])
    assert int(head.headers["content-length"]) == len(changed.body)


def test_wrong_questions(case: Case) -> None:
    assert case.refused("GET", "status", untracked="some")["status"] == 422
    assert case.refused("GET", "status", ignored="perhaps")["status"] == 422
    for path in ("../x", "/etc", "a//b", "a/./b"):
        assert case.refused("GET", "status", path=path)["code"] == "path_invalid"
    other = case.host.client.get("/api/v1/workspaces/other/version-control/status")
    assert (other.status_code, other.json()["code"]) == (404, "workspace_not_found")


# --- what is remembered ---------------------------------------------------------------------------------------------------------


def rest(path: Path) -> None:
    """Wait until a file has been as it is for a tenth of a second."""
    eventually(lambda: time.time_ns() - path.stat().st_ctime_ns > 100_000_000)


def test_counts_follow_attributes_and_configuration(case: Case) -> None:
    """What decides how a file is read may change, and the file not."""

    def count() -> tuple[int | None, int | None, bool]:
        (file,) = [file for file in case.status()["files"] if file["path"] == "sub/a.txt"]
        return file["additions"], file["deletions"], file["binary"]

    case.commit({"sub/a.txt": b"one\n"}, "in a folder")
    for content, old in ((b"one\ntwo\n", True), (b"one\ntwo\nthree\n", False)):
        changed = case.write("sub/a.txt", content)
        os.utime(changed, (1, 1))
        if old:
            case.git("add", "sub/a.txt")
        expected = (content.count(b"\n") - 1, 0, False)
        # only what has been as it is for a moment is remembered
        rest(changed)
        assert count() == expected
        for place in (".gitattributes", "sub/.gitattributes", ".git/info/attributes"):
            written = case.write(place, "*.txt -diff\n")
            assert count() == (None, None, True)
            written.unlink()
            assert count() == expected
    case.git("config", "core.attributesFile", str(case.write(".git/mine", "*.txt -diff\n")))
    assert count() == (None, None, True)
    case.git("config", "--unset", "core.attributesFile")
    changed = case.write("sub/a.txt", b"one\r\ntwo\r\nthree\r\n")
    rest(changed)
    assert count() == (3, 1, False)
    case.git("config", "core.autocrlf", "true")
    assert count() == (2, 0, False)


@pytest.mark.parametrize("inside", [{}, {"x.log": b"ignored\n"}], ids=["empty", "only-ignored"])
def test_a_repository_that_comes_and_goes_in_a_folder_with_nothing_to_tell(
    here: Host, inside: dict[str, bytes]
) -> None:
    case = here.fresh()
    case.commit({"a": b"a\n", ".gitignore": b"*.log\n"})
    folder = case.folder / "n/inner"
    folder.mkdir(parents=True)
    for name, content in inside.items():
        (folder / name).write_bytes(content)
    for path in (folder, folder.parent, case.folder):
        os.utime(path, (1_700_000_000, 1_700_000_000))  # long enough ago for git to rely on it
    for _ in range(2):
        assert case.get("status")["files"] == []
    for _ in range(2):
        here.box.git(folder, "init", "--quiet")
        assert [file["path"] for file in case.get("status")["files"]] == ["n/inner/"]
        assert [file["path"] for file in case.get("status")["files"]] == ["n/inner/"]
        shutil.rmtree(folder / ".git")
        assert case.get("status")["files"] == []


def test_an_index_that_has_a_cache_of_its_own(here: Host) -> None:
    """With `feature.manyFiles` git keeps its cache in the repository's own index, where it does not tell where that begins."""
    case = here.fresh()
    case.git("config", "feature.manyFiles", "true")
    case.commit({"a": b"a\n"})
    (case.folder / "n").mkdir()
    for path in (case.folder / "n", case.folder):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    case.git("status")
    assert case.get("status")["files"] == []
    here.box.git(case.folder / "n", "init", "--quiet")
    assert [file["path"] for file in case.get("status")["files"]] == ["n/"]


def test_a_submodule_that_no_file_describes(here: Host) -> None:
    case = here.fresh()
    case.commit({"a": b"a\n"})
    here.box.commit(here.box.init(f"workspace/{case.path}/embedded"), {"f": b"1\n"}, "first")
    case.git("add", "embedded")
    case.git("commit", "--quiet", "-m", "embedded")
    assert case.get("status")["files"] == []
    (case.folder / "embedded/f").write_text("2\n")
    (file,) = case.get("status")["files"]
    assert (file["path"], file["worktree"]) == ("embedded", "modified")
    assert file["submodule"]["modified"] and not file["submodule"]["untracked"]


@pytest.mark.parametrize("delay_s", [0, 0.1])
def test_a_cache_that_another_git_has_passed_on_unread(here: Host, delay_s: float) -> None:
    """git compares whole seconds: what changed in the second of its last look counts as unchanged once the index has a later time."""
    case = here.fresh()
    case.git("config", "core.untrackedCache", "true")
    case.git("config", "status.showUntrackedFiles", "all")
    case.commit({"a": b"a\n", "folder/b": b"b\n"})
    second = wait_for_a_second()
    case.write("folder/first", "")
    time.sleep(delay_s)
    case.git("status")
    time.sleep(delay_s)
    case.write("folder/new", "")
    if int(time.time()) != second:
        pytest.skip("the machine was too slow to do it within one second")
    wait_for_a_second()
    case.git("reset", "--quiet", "--", "a")
    os.utime(case.folder / "folder/b")  # so that our git has something to write
    assert "folder/new" in case.files()
    assert "folder/new" in case.files()


def wait_for_a_second() -> int:
    """Returns when the next one has just begun."""
    before = int(time.time())
    return int(eventually(lambda: (now := int(time.time())) != before and now))
