"""What the API says of a repository is what is there: broken ones, git's own messages, where things begin."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.version_control import Case, Host, host


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("truth")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    """A repository with two commits."""
    made = here.fresh()
    made.commit({"a.txt": b"a\n", "b/c": b"c\n"}, "first")
    made.commit({"a.txt": b"b\n"}, "second")
    return made


# --- a repository that is broken is not a new one ---------------------------------------------------------------------------------


def no_object(case: Case) -> None:
    oid = case.head()
    (case.folder / ".git/objects" / oid[:2] / oid[2:]).unlink()


def no_alternates(case: Case) -> None:
    (case.folder / ".git/objects").rename(case.folder / ".git/elsewhere")
    (case.folder / ".git/objects/info").mkdir(parents=True)
    (case.folder / ".git/objects/info/alternates").write_text(str(case.folder / ".git/nowhere"))


def bad_setting(case: Case) -> None:
    case.git("config", "core.commentChar", "abc")


def empty_branch(case: Case) -> None:
    (case.folder / ".git/refs/heads/main").write_bytes(b"")


def no_commit(case: Case) -> None:
    (case.folder / ".git/refs/heads/main").write_text(case.git("rev-parse", "HEAD:a.txt") + "\n")


BREAK = [no_object, no_alternates, bad_setting, empty_branch, no_commit]


@pytest.mark.parametrize("damage", BREAK)
def test_a_broken_repository_is_not_taken_for_a_new_one(case: Case, damage: Callable[[Case], None]) -> None:
    damage(case)
    index = (case.folder / ".git/index").read_bytes()
    for route, query in (("log", {}), ("commit/draft", {}), ("diff", {"target": "index"})):
        assert case.refused("GET", route, **query)["code"] == "repository_invalid"
    assert case.refused("POST", "unstage", {"all": True})["code"] == "repository_invalid"
    assert case.refused("POST", "unstage", {"paths": ["a.txt"]})["status"] == 409
    assert (case.folder / ".git/index").read_bytes() == index


def test_a_shared_clone_without_its_source(case: Case) -> None:
    copy = case.folder.with_name(case.folder.name + "-shared")
    case.git("clone", "-q", "--shared", ".", str(copy))
    shutil.rmtree(case.folder)
    shared = case.host.at(copy)
    assert shared.refused("POST", "unstage", {"all": True})["code"] == "repository_invalid"
    assert shared.git("ls-files").split() == ["a.txt", "b/c"]


def test_a_new_one_is_new(here: Host) -> None:
    case = here.fresh()
    case.write("a", "1")
    case.git("add", "a")
    # of a name that has the beginning of a folder of refs, and of one that leads on to another
    (case.folder / ".git/refs/heads/main/deeper").mkdir(parents=True)
    case.git("symbolic-ref", "refs/heads/first", "refs/heads/main")
    for name in ("refs/heads/main", "refs/heads/first"):
        case.git("symbolic-ref", "HEAD", name)
        assert case.get("log")["items"] == []
        assert case.get("commit/draft")["head"]["unborn"]
        case.post("unstage", all=True)
        assert case.files() == {"a": (None, "untracked")}
        case.post("stage", all=True)


# --- git's own message ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def apart(here: Host) -> Case:
    """Two branches that differ in a file of a nasty name."""
    made = here.fresh()
    made.commit({"f\n\n# Conflicts:\n#": b"base\n"}, "base")
    made.git("branch", "other")
    made.commit({"f\n\n# Conflicts:\n#": b"ours\n"}, "ours")
    made.git("checkout", "-q", "other")
    made.commit({"f\n\n# Conflicts:\n#": b"theirs\n"}, "Theirs\n\n# Heading\ntext")
    # so that the heading is in it
    made.git("commit", "-q", "--amend", "--cleanup=verbatim", "-m", "Theirs\n\n# Heading\ntext")
    made.git("checkout", "-q", "main")
    return made


def begin(case: Case, *command: str) -> None:
    assert case.attempt(*command) != 0
    case.git("add", "--all")


@pytest.mark.parametrize("command", [
    ("merge", "other"), ("merge", "other", "-m", "Title\n\n# Heading\ntext"), ("merge", "other", "-m", "#1 mended\n\n# Heading"),
    ("merge", "other", "--cleanup=scissors"), ("-c", "merge.renames=false", "merge", "other"), ("cherry-pick", "other"),
    ("rebase", "other"),
])  # fmt: skip
@pytest.mark.parametrize("setting", [None, ("core.commentChar", ";"), ("core.commentChar", "auto")])
def test_the_message_without_its_list_of_conflicts(
    apart: Case, command: tuple[str, ...], setting: tuple[str, str] | None
) -> None:
    if setting:
        apart.git("config", *setting)
    begin(apart, *command)
    expected = {"cherry-pick": "Theirs\n\n# Heading\ntext", "rebase": "ours"}.get(command[0], "Merge branch 'other'")
    if "-m" in command:
        expected = command[-1]
    draft = apart.get("commit/draft")
    assert (draft["prepared"], draft["operation"]["message"]) == (expected, expected)
    assert apart.status()["operation"]["message"] == expected
    author = apart.git("log", "-1", "--format=%an %ad", "other")
    apart.post("commit")
    assert apart.git("log", "-1", "--format=%B") == expected
    assert len(apart.git("log", "-1", "--format=%P").split()) == (2 if "merge" in command else 1)
    if command[0] == "cherry-pick":
        assert apart.git("log", "-1", "--format=%an %ad") == author


def test_what_looks_like_a_list_of_conflicts_but_is_none(apart: Case) -> None:
    message = "Title\n\n# Conflicts:\n#\tof interest\n\n# Heading"
    begin(apart, "merge", "other", "-m", message)
    assert apart.get("commit/draft")["prepared"] == message
    apart.post("commit")
    assert apart.git("log", "-1", "--format=%B") == message


def test_a_squash_with_conflicts(apart: Case) -> None:
    begin(apart, "merge", "--squash", "other")
    prepared = apart.get("commit/draft")["prepared"]
    assert prepared.startswith("Squashed commit of the following:") and prepared.endswith("text")


def test_a_rebase_that_puts_messages_together(here: Host) -> None:
    case = here.fresh()
    for text, message in (("base", "base"), ("one", "subject"), ("other", "other"), ("two", "squash! subject")):
        case.commit({"f": text.encode()}, message)
    env = {"GIT_SEQUENCE_EDITOR": ":"}
    with pytest.raises(Exception, match="rebase"):
        case.git("rebase", "-q", "-i", "--autosquash", "HEAD~3", env=env)
    prepared = case.get("commit/draft")["prepared"]
    assert prepared.split("\n")[0] == "subject" and "#" not in prepared


def test_a_message_in_another_encoding(apart: Case) -> None:
    apart.git("config", "i18n.commitEncoding", "ISO-8859-1")
    file = apart.folder.parent / "message"
    file.write_bytes("Gr\u00fc\u00dfe".encode("latin-1"))
    begin(apart, "merge", "other", "--file", str(file))
    apart.post("commit")
    assert apart.git("log", "-1", "--encoding=UTF-8", "--format=%B") == "Gr\u00fc\u00dfe"


def test_a_long_message_is_whole(apart: Case) -> None:
    message = "Title\n\n" + "\n".join(f"line {number}" for number in range(8_000))
    begin(apart, "merge", "other", "-m", message)
    assert apart.get("commit/draft")["prepared"] == message
    assert len(apart.status()["operation"]["message"]) == 8192
    apart.post("commit")
    assert apart.git("log", "-1", "--format=%B") == message


def test_where_git_has_no_message(case: Case) -> None:
    case.git("bisect", "start")
    case.write("a.txt", "x")
    assert case.refused("POST", "commit", {"all": True})["code"] == "message_missing"


# --- commits that can't be --------------------------------------------------------------------------------------------------------


def test_an_amend_of_nothing(here: Host) -> None:
    case = here.fresh()
    for staged in (False, True):
        for message in (None, "x"):
            problem = case.refused("POST", "commit", {"amend": True, "message": message})
            assert problem["code"] == "nothing_to_commit", staged
        case.write("a", "1")
        case.git("add", "a")


def test_an_amend_to_nothing(case: Case) -> None:
    before = case.head()
    case.write("a.txt", "a\n")
    for number in range(300):  # git tells of all of these first
        case.write(f"untracked file with a long name {number}", "")
    assert case.refused("POST", "commit", {"amend": True, "all": True})["code"] == "nothing_to_commit"
    assert case.head() == before


# --- names ------------------------------------------------------------------------------------------------------------------------


def test_revisions_with_a_colon(case: Case) -> None:
    blob, tree = case.git("rev-parse", "HEAD:b/c"), case.git("rev-parse", "HEAD:b")
    for name, ref, oid in (("blob", "HEAD:b/c", blob), ("tree", "HEAD:b", tree), ("staged", ":0:b/c", blob)):
        case.post("tags", 201, name=name, ref=ref)
        assert case.git("rev-parse", f"refs/tags/{name}") == oid
    assert case.get("log", ref=":/first")["items"][0]["subject"] == "first"
    for ref in ("HEAD:none", "HEAD:b/c:", "0" * 39 + "1"):
        assert case.refused("POST", "tags", {"name": "x", "ref": ref})["code"] == "ref_not_found"
    assert case.refused("GET", "log", ref="HEAD:b/c")["code"] == "ref_not_found"


@pytest.mark.parametrize("more", [{}, {"detach": True}])
def test_a_start_that_would_not_count_is_refused(case: Case, more: dict[str, bool]) -> None:
    case.git("branch", "side")
    body = {"worktree": f"{case.path}-tree", "branch": "side", "start_point": "HEAD~1", **more}
    assert case.refused("POST", "worktrees", body)["code"] == "validation_failed"
    assert not Path(f"{case.folder}-tree").exists()


def test_where_a_detached_tree_begins(case: Case) -> None:
    body = {"worktree": f"{case.path}-tree", "start_point": "HEAD~1", "detach": True}
    made = case.post("worktrees", 201, **body)["worktree"]
    assert (made["head"], made["detached"]) == (case.git("rev-parse", "HEAD~1"), True)


def test_where_a_tree_with_a_branch_of_its_own_begins(case: Case) -> None:
    start = case.git("rev-parse", "HEAD~1")
    name = f"{case.path}-tree"
    made = case.post("worktrees", 201, worktree=name, start_point="HEAD~1")["worktree"]
    assert (made["head"], made["branch"]) == (start, name)
    assert case.refused("POST", "worktrees", {"worktree": f"in/{name}", "start_point": "HEAD"})["code"] == "ref_exists"
    assert case.refused("POST", "worktrees", {"worktree": "a b", "start_point": "HEAD"})["code"] == "ref_invalid"


def test_the_branch_that_patches_are_applied_to(case: Case) -> None:
    patch = case.git("format-patch", "--stdout", "HEAD~1")
    case.commit({"a.txt": b"else\n"}, "third")
    file = case.folder.parent / "patch"
    file.write_text(patch + "\n")
    for branch in ("main", None):
        if branch is None:
            case.git("checkout", "-q", "--detach")
        assert case.attempt("am", str(file)) != 0
        operation = case.status()["operation"]
        assert (operation["kind"], operation["head_name"]) == ("am", branch)
        case.git("am", "--abort")
