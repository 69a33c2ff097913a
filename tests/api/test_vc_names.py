"""Names that git or we use for something, taken by a branch, a tag or a file: each still means what it meant."""

import itertools
from collections.abc import Iterator

import pytest

from support.version_control import Case, Host, host

# `<oid>` and `<short>`: the id of the commit that is checked out, whole and in short; `<old>` is another commit's.
NAMES = ["stash", "HEAD", "<oid>", "refs/heads/main", "index"]
MORE = [
    "refs/stash",
    "heads/main",
    "FETCH_HEAD",
    "ORIG_HEAD",
    "MERGE_HEAD",
    "worktree",
    "base",
    "config",
    "origin",
    "<old>",
    "<short>",
]
KINDS = ["branch", "tag", "file"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("names")) as made:
        yield made


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def case(here: Host) -> Case:
    """Two commits on `main`, and a branch `side` from the first."""
    made = here.fresh()
    made.commit({"a.txt": b"one\n", "b.txt": b"b\n"}, "first")
    made.git("branch", "side")
    made.commit({"a.txt": b"two\n"}, "second")
    return made


def take(case: Case, kind: str, name: str) -> str:
    """Have something else called so: a branch or a tag of a commit that is neither, or a file. The name itself."""
    old, oid = case.git("rev-parse", "main~1", "main").split("\n")
    name = name.replace("<oid>", oid).replace("<old>", old).replace("<short>", oid[:8])
    if kind == "file":
        case.write(name, "a file\n")
        return name
    tree = case.git("rev-parse", "main~1^{tree}")
    elsewhere = case.git("commit-tree", "-p", old, "-m", "elsewhere", tree)
    case.git("update-ref", f"refs/{'heads' if kind == 'branch' else 'tags'}/{name}", elsewhere)
    return name


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.long) for name in MORE)])
@pytest.mark.parametrize("kind", KINDS)
def test_all_means_what_it_meant(case: Case, kind: str, name: str, numbers: Iterator[int]) -> None:
    head, old = case.head(), case.git("rev-parse", "main~1")
    stash_is_free = kind == "file" or name != "refs/stash"
    if not stash_is_free:  # git itself makes no first stash then
        case.write("a.txt", "below\n")
        case.git("stash", "push", "-q")
    name = take(case, kind, name)
    many = 0 if stash_is_free else 1
    for way in ("pop", "drop"):
        case.write("a.txt", f"changed for {way}\n")
        made = case.post("stash", 201)["stash"]
        assert case.get("stash")["items"][0]["oid"] == made["oid"]
        assert case.status()["stash_count"] == many + 1
        if way == "pop":
            assert case.post("stash/0/pop")["stash"] == made
            assert case.read("a.txt") == b"changed for pop\n"
            case.post("discard", paths=["a.txt"])
        else:
            assert case.ask("DELETE", f"stash/{made['oid']}").json["stash"] == made
        assert len(case.get("stash")["items"]) == case.status()["stash_count"] == many
    assert case.get("log", ref="main")["items"][0]["oid"] == case.get("log")["items"][0]["oid"] == head
    assert case.get("log", q=head[:8])["items"][0]["oid"] == head
    assert case.get("show")["commit"]["oid"] == head and case.get("show", ref=old)["commit"]["oid"] == old
    case.write("a.txt", "three\n")
    assert [file["path"] for file in case.get("diff")["files"]] == ["a.txt"]
    assert [file["path"] for file in case.get("diff", target=old)["files"]] == ["a.txt"]
    assert "three" in case.ask("GET", "diff", format="patch", target=head).body.decode()
    case.post("stage", paths=["a.txt"])
    assert [file["path"] for file in case.get("diff", target="index")["files"]] == ["a.txt"]
    assert case.get("commit/draft")["files"][0]["path"] == "a.txt"
    case.post("unstage", paths=["a.txt"])
    case.post("discard", paths=["a.txt"])
    assert case.post("branches", 201, name="made")["oid"] == head
    assert case.post("branches", 201, name="made-old", start_point=old)["oid"] == old
    assert case.post("tags", 201, name="tagged", ref=old)["oid"] == old
    tree = f"{case.path}-tree-{next(numbers)}"
    for how in ({"branch": "fresh", "create": True}, {"detach": True, "start_point": old}):
        made = case.post("worktrees", 201, worktree=tree, **how)["worktree"]
        assert made["head"] == (old if "detach" in how else head)
        assert case.ask("DELETE", "worktrees", worktree=tree).status == 200
    assert case.post("checkout", branch=old, detach=True)["head"]["oid"] == old
    assert case.post("checkout", branch="side")["head"] == {
        "branch": "side",
        "oid": old,
        "detached": False,
        "unborn": False,
    }
    assert case.post("merge", ref="main")["head"]["oid"] == head
    assert case.post("checkout", branch="main")["head"]["oid"] == head
    oid = case.post("commit", message="third", paths=["a.txt"], amend=True)["oid"]
    assert case.head() == oid and case.get("log")["items"][0]["oid"] == oid


@pytest.mark.parametrize("name", [name for name in (*NAMES, *MORE) if name != "HEAD"])
def test_a_branch_of_that_name_is_a_branch(case: Case, name: str) -> None:
    """It can be listed, switched to, merged, renamed and deleted."""
    name = take(case, "branch", name)
    listed = {item["name"]: item["oid"] for item in case.get("branches")["items"]}
    assert listed == {
        "main": case.head(),
        "side": case.git("rev-parse", "main~1"),
        name: case.git("rev-parse", f"refs/heads/{name}"),
    }
    assert case.post("checkout", branch=name)["head"] == {
        "branch": name,
        "oid": listed[name],
        "detached": False,
        "unborn": False,
    }
    assert case.status()["head"]["branch"] == name
    assert case.get("blob", path=f"{case.path}/a.txt", ref=f"refs/heads/{name}") is None
    case.post("checkout", branch="main")
    assert case.post("merge", ref=f"refs/heads/{name}")["head"]["oid"] != listed["main"]
    case.post("branches/rename", name=name, new_name="renamed")
    assert case.ask("DELETE", "branches/renamed", force=True).status == 200
    assert {item["name"] for item in case.get("branches")["items"]} == {"main", "side"}


@pytest.mark.parametrize("kind", ["tag", "other branch"])
def test_a_branch_that_only_a_remote_has(here: Host, case: Case, kind: str) -> None:
    """It is made here, also where a tag is called so; its upstream is told as the list of branches has it."""
    case.git("branch", "feature")
    copy = here.fresh()
    copy.git("pull", "-q", str(case.folder), "main")
    copy.git("remote", "add", "origin", str(case.folder))
    copy.git("fetch", "-q", "origin")
    if kind == "tag":
        copy.git("tag", "feature", "HEAD~1")
    else:
        copy.git("branch", "origin/feature", "HEAD~1")
        copy.git("branch", "refs/remotes/origin/feature", "HEAD~1")
    head = copy.post("checkout", branch="feature")["head"]
    assert (head["branch"], head["oid"]) == ("feature", case.git("rev-parse", "feature"))
    assert copy.status()["upstream"] == {"ref": "origin/feature", "ahead": 0, "behind": 0, "gone": False}
    branch = next(item for item in copy.get("branches")["items"] if item["name"] == "feature")
    assert branch["upstream"]["ref"] == "origin/feature"
    assert copy.post("branches", 201, name="next", start_point="refs/remotes/origin/feature")["oid"] == head["oid"]


def test_a_remote_without_an_address_is_no_folder(here: Host, case: Case) -> None:
    """Where a remote's section has no address, git takes its name for one."""
    case.git("config", "remote.side.fetch", "+refs/heads/*:refs/remotes/side/*")
    here.box.git(case.folder, "init", "-q", "side")
    for route, body in (
        ("fetch", {"remote": "side"}),
        ("pull", {"remote": "side", "branch": "main"}),
        ("push", {"remote": "side"}),
        ("fetch", {}),
    ):
        assert case.refused("POST", route, body)["code"] == "remote_not_configured", (route, body)
    assert case.ask("PATCH", "remotes/side", {"url": "/nowhere"}).status == 200


def test_no_branch_is_made_that_git_takes_for_another(case: Case) -> None:
    for name in ("@", "HEAD"):
        assert case.refused("POST", "branches", {"name": name})["code"] == "ref_invalid"
        assert case.refused("POST", "checkout", {"branch": name, "create": True})["code"] == "ref_invalid"


def test_words_of_stashes_are_utf8(case: Case) -> None:
    """Whatever encoding the user has for what a terminal shows."""
    case.git("config", "i18n.logOutputEncoding", "ISO-8859-1")
    case.git("config", "i18n.commitEncoding", "ISO-8859-1")
    case.git("checkout", "-q", "-b", "ümlaut")
    case.git("commit", "-q", "--allow-empty", "-m", "größer".encode("latin-1"))
    for message in (None, "öde"):
        case.write("a.txt", f"{message}\n")
        case.post("stash", 201, **({"message": message} if message else {}))
    listed = case.get("stash")["items"]
    assert [item["branch"] for item in listed] == ["ümlaut", "ümlaut"]
    assert listed[0]["message"] == "öde" and listed[1]["message"].endswith("größer")
    assert case.get("log")["items"][0]["subject"] == "größer"
    # the stash that a failed command leaves is found by its words
    case.write("b.txt", "b changed\n")
    case.git("checkout", "-q", "main")
    case.write("a.txt", "a changed\n")
    assert case.post("checkout", branch="ümlaut", local_changes="stash")["stash"] is not None
    assert case.get("stash")["items"][0]["message"] == "Before switching to ümlaut"
