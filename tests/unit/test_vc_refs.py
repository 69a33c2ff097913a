"""Branches, tags, remotes, stashes and worktrees, held against what git was told to make."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from support.git_home import Sandbox
from support.git_repository import Made, import_history, repository, sandbox
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.version_control.blame import blame
from workspace_runtime.version_control.conflicts import conflicts
from workspace_runtime.version_control.lists import operation, stashes, worktrees
from workspace_runtime.version_control.log import log
from workspace_runtime.version_control.objects import commit_facts
from workspace_runtime.version_control.refs import branches, remotes, tags
from workspace_runtime.version_control.schemas import history

NOON = 1_000_000_000


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Sandbox]:
    with sandbox(tmp_path) as made:
        yield made


def every(listing: Callable[..., dict[str, Any]], limit: int, *known: Any, **asked: Any) -> list[dict[str, Any]]:
    """The items of all pages."""
    cursor, items = None, []
    while True:
        page = listing(*known, limit=limit, cursor=cursor, **asked)
        orjson.dumps(page)
        assert 0 < len(page["items"]) <= limit or page["next_cursor"] is None
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return items


def names(items: list[dict[str, Any]]) -> list[str]:
    return [item["name"] for item in items]


# --- branches -------------------------------------------------------------------------------------------------------------------


def test_branches(box: Sandbox) -> None:
    source = box.init("source")
    box.commit(source, {"a": b"1"}, "one")
    box.git(source, "branch", "topic/ä")
    box.git(box.folder, "clone", "--quiet", str(source), "work")
    folder = box.folder / "work"
    oid = box.commit(folder, {"b": b"1"}, "Zwei\nZeilen\n\nbody")
    box.git(folder, "branch", "--track", "topic", "origin/topic/ä")
    box.git(folder, "branch", "--track", "below", "main")
    box.git(folder, "branch", "alone")
    found = repository(folder)
    items = every(branches, 2, found)
    assert names(items) == ["alone", "below", "main", "topic", "origin/main", "origin/topic/ä"]
    assert items == branches(found)["items"]
    main = items[2]
    assert main["committed_at"].endswith("Z")
    assert {**main, "committed_at": ""} == {
        "name": "main", "full": "refs/heads/main", "oid": oid, "current": True, "remote": False,
        "upstream": {"ref": "origin/main", "remote": "origin", "gone": False}, "ahead": 1, "behind": 0, "committed_at": "",
        "subject": "Zwei Zeilen", "author_name": "Ada", "checked_out": True, "worktree": None,
    }  # fmt: skip
    assert items[0]["upstream"] is None and items[0]["ahead"] is None and items[0]["behind"] is None
    assert items[1]["upstream"] == {"ref": "main", "remote": ".", "gone": False} and items[1]["ahead"] == 0
    assert items[5]["remote"] and items[5]["full"] == "refs/remotes/origin/topic/ä"
    box.git(folder, "update-ref", "-d", "refs/remotes/origin/topic/ä")
    gone = branches(found, q="topic")["items"][0]
    assert gone["upstream"] == {"ref": "origin/topic/ä", "remote": "origin", "gone": True} and gone["ahead"] is None
    assert names(every(branches, 1, found, remote=False, q="AL")) == ["alone"]
    assert names(every(branches, 1, found, remote=True)) == ["origin/main"]


def test_ahead_and_behind(box: Sandbox) -> None:
    folder = box.init("work")
    base = box.commit(folder, {"a": b"1"}, "base")
    box.git(folder, "branch", "side")
    for number in range(3):
        box.commit(folder, {"a": b"a%d" % number}, "main")
    box.git(folder, "checkout", "--quiet", "side")
    box.git(folder, "branch", "--set-upstream-to=main")
    assert (branches(repository(folder), q="side")["items"][0]["behind"], base) == (3, base)
    box.commit(folder, {"b": b"1"}, "side")
    (item,) = branches(repository(folder), q="side")["items"]
    assert (item["ahead"], item["behind"]) == (1, 3)


def test_odd_branches(box: Sandbox) -> None:
    folder = box.init("work")
    assert branches(repository(folder)) == {"items": [], "next_cursor": None}
    oid = box.commit(folder, {"a": b"1"}, "one")
    for name in ("a,b", "x/HEAD", "é", "-", "a'b\"", "@", "refs/heads/x"):
        box.git(folder, "update-ref", f"refs/heads/{name}", oid)
    with (folder / ".git/packed-refs").open("ab") as packed:
        packed.write(oid.encode() + b" refs/heads/\xff\xfe\n" + b"1" * 40 + b" refs/heads/zz-gone\n")
    box.git(folder, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    found = repository(folder)
    items = every(branches, 3, found)
    assert [item["full"].removeprefix("refs/heads/") for item in items] == [
        "-", "@", "a'b\"", "a,b", "alias", "main", "refs/heads/x", "x/HEAD", "zz-gone", "é", "\ufffd\ufffd",
    ]  # fmt: skip
    assert items[8]["subject"] is None and items[8]["committed_at"] is None and items[8]["oid"] == "1" * 40
    box.git(folder, "checkout", "--quiet", "--detach")
    assert not any(item["current"] for item in branches(found)["items"])


def test_a_commit_in_another_encoding(box: Sandbox) -> None:
    folder = box.init("work")
    tree = box.git(folder, "write-tree").decode().strip()
    head = f"tree {tree}\nauthor A <a@x> {NOON} +0000\ncommitter C <c@x> {NOON} +0000\nencoding ISO-8859-1\n\n"
    oid = box.git(folder, "hash-object", "-t", "commit", "-w", "--stdin", input=head.encode() + b"gr\xfcn\n").decode()
    box.git(folder, "update-ref", "HEAD", oid.strip())
    (item,) = branches(repository(folder))["items"]
    assert (item["subject"], item["author_name"], item["committed_at"]) == ("grün", "A", "2001-09-09T01:46:40Z")


def test_a_list_goes_on_although_branches_come_and_go(box: Sandbox) -> None:
    folder = box.init("work")
    oid = box.commit(folder, {"a": b"1"}, "one")
    for name in ("b", "d", "f"):
        box.git(folder, "branch", name)
    found = repository(folder)
    first = branches(found, limit=2)
    assert names(first["items"]) == ["b", "d"]
    box.git(folder, "branch", "-D", "--quiet", "d")
    box.git(folder, "branch", "a")
    box.git(folder, "update-ref", "refs/remotes/a/b", oid)
    rest = branches(found, cursor=first["next_cursor"])
    assert names(rest["items"]) == ["f", "main", "a/b"]
    for asked in ({"q": "x"}, {"remote": True}, {"remote": False}):
        refused(branches, found, cursor=first["next_cursor"], **asked)
    refused(tags, found, cursor=first["next_cursor"])
    for rubbish in ("", "A", "!", "AAAAAAAAAAAAAAAAAAAAAAAA", "ä"):
        refused(branches, found, cursor=rubbish)
        refused(tags, found, cursor=rubbish)


def refused(listing: Callable[..., object], *known: Any, **asked: Any) -> None:
    with pytest.raises(WorkspaceError) as raised:
        listing(*known, **asked)
    assert raised.value.code == "cursor_invalid"


# --- tags -----------------------------------------------------------------------------------------------------------------------


def test_tags(box: Sandbox) -> None:
    folder = box.init("work")
    oid, later = import_history(box, folder, [Made((), NOON), Made((0,), NOON + 100)])
    when = {"GIT_COMMITTER_DATE": f"{NOON + 50} +0300"}
    box.git(folder, "tag", "light", oid)
    box.git(folder, "tag", "light-later", later)
    box.git(folder, "tag", "-a", "-m", "Grüße\n\nbody\n", "noted", oid, env=when)
    box.git(folder, "tag", "-a", "-m", "of a tag", "twice", "noted", env=when)
    box.git(folder, "tag", "-a", "-m", "of a tree", "tree", f"{oid}^{{tree}}", env=when)
    blob = box.git(folder, "rev-parse", f"{oid}:file").decode().strip()
    box.git(folder, "tag", "blob", blob)
    found = repository(folder)
    items = every(tags, 1, found)
    assert items == tags(found)["items"]
    assert names(items) == ["light-later", "noted", "tree", "twice", "light", "blob"]
    noted = items[1]
    assert noted == {
        "name": "noted", "oid": oid, "type": "commit", "tag_oid": noted["tag_oid"], "message": "Grüße\n\nbody",
        "tagger": {"name": "Ada", "email": "ada@example.org", "date": "2001-09-09T01:47:30Z"}, "created_at": "2001-09-09T01:47:30Z",
    }  # fmt: skip
    assert noted["tag_oid"] == box.git(folder, "rev-parse", "noted").decode().strip() != oid
    assert (items[2]["type"], items[3]["type"], items[3]["oid"], items[3]["message"]) == (
        "tree",
        "commit",
        oid,
        "of a tag",
    )
    assert items[4] == {
        "name": "light", "oid": oid, "type": "commit", "tag_oid": None, "message": None, "tagger": None,
        "created_at": "2001-09-09T01:46:40Z",
    }  # fmt: skip
    assert (items[5]["type"], items[5]["oid"], items[5]["created_at"]) == ("blob", blob, None)
    assert names(tags(found, q="LIGHT")["items"]) == ["light-later", "light"]


def test_tags_that_somebody_made_by_hand(box: Sandbox) -> None:
    folder = box.init("work")
    oid = box.commit(folder, {"a": b"1"}, "one")
    signed = b"text\n-----BEGIN PGP SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----\n"
    tagger = b"tagger T <t@x> 1000000000 +0000\n"
    made = {
        "signed": (oid, tagger, signed),
        "nul": (oid, tagger, b"a\0b\0\nrefs/heads/x\0c"),
        "crlf": (oid, tagger, b"one\r\n\r\ntwo\r\n"),
        "empty": (oid, tagger, b""),
        "no-tagger": (oid, b"", b"x"),
        "odd-date": (oid, b"tagger T <t@x> 99999999999999999999999 +0000\n", b"x"),
        "gone": ("1" * 40, tagger, b"x"),
        "latin": (oid, tagger, b"gr\xfcn"),
    }
    for name, (target, who, message) in made.items():
        raw = b"object %b\ntype commit\ntag %b\n%b\n%b" % (target.encode(), name.encode(), who, message)
        tag = box.git(folder, "hash-object", "--literally", "-t", "tag", "-w", "--stdin", input=raw).decode().strip()
        box.git(folder, "update-ref", f"refs/tags/{name}", tag)
    items = {item["name"]: item for item in every(tags, 3, repository(folder))}
    assert items.keys() == made.keys()
    assert items["signed"]["message"] == "text" and items["crlf"]["message"] == "one\r\n\r\ntwo"
    assert items["nul"]["message"].startswith("a") and items["empty"]["message"] == ""
    assert items["latin"]["message"] == "gr\ufffdn" and items["no-tagger"]["tagger"] is None
    assert items["odd-date"]["type"] == "commit"
    assert (items["gone"]["type"], items["gone"]["oid"]) == (None, items["gone"]["tag_oid"])


def test_sha256_refs(box: Sandbox) -> None:
    folder = box.init("work", "--object-format=sha256")
    oid = box.commit(folder, {"a": b"1"}, "one")
    box.git(folder, "tag", "-a", "-m", "t", "v1")
    (branch,), (tag,) = branches(repository(folder))["items"], tags(repository(folder))["items"]
    assert branch["oid"] == tag["oid"] == oid and len(oid) == len(tag["tag_oid"]) == 64


# --- remotes --------------------------------------------------------------------------------------------------------------------


def test_remotes(box: Sandbox) -> None:
    folder = box.init("work")
    assert remotes(repository(folder)) == {"items": [], "next_cursor": None}
    for key, value in (
        ("remote.origin.url", "https://me:secret@example.org/a.git"),
        ("remote.origin.pushurl", "git@example.org:a.git"),
        ("remote.a.b.url", "/srv/a b.git"),
        ("remote.a.b.url", "/srv/second.git"),
        ("remote.half.fetch", "+refs/heads/*:refs/remotes/half/*"),
        ("remotes.group", "origin"),
    ):
        box.git(folder, "config", "--add", key, value)
    with (folder / ".git/config").open("ab") as config:
        config.write(b'[remote "\xff"]\n\turl = /srv/\xff\n[remote "bare"]\n\turl\n')
    told = remotes(repository(folder))
    assert "secret" not in orjson.dumps(told).decode()
    first, origin, odd = told["items"]
    assert first == {"name": "a.b", "url": "/srv/a b.git", "push_url": "/srv/a b.git"}
    assert origin["name"] == "origin" and origin["push_url"] == "git@example.org:a.git"
    assert origin["url"].endswith("example.org/a.git")
    assert odd == {"name": "\ufffd", "url": "/srv/\ufffd", "push_url": "/srv/\ufffd"}


# --- stashes and worktrees ------------------------------------------------------------------------------------------------------


def test_stashes(box: Sandbox) -> None:
    folder = box.init("work")
    found = repository(folder)
    assert stashes(found) == {"items": [], "next_cursor": None}
    oid = box.commit(folder, {"a": b"1"}, "one")
    assert stashes(found) == {"items": [], "next_cursor": None}
    for number, arguments in enumerate((("push",), ("push", "-u", "-m", "mine: ä"), ("push", "-m", "x"))):
        (folder / "a").write_text(f"{number}")
        (folder / "new").write_text("new")
        if number == 2:
            box.git(folder, "checkout", "--quiet", "--detach")
        box.git(folder, "stash", *arguments, "--quiet")
    box.git(folder, "stash", "store", "-m", "by hand", "stash@{1}")
    box.git(folder, "config", "log.date", "iso")
    items = stashes(found)["items"]
    assert [(item["index"], item["branch"], item["message"], item["untracked"]) for item in items] == [
        (0, None, "by hand", True), (1, None, "x", False), (2, "main", "mine: ä", True), (3, "main", f"{oid[:7]} one", False),
    ]  # fmt: skip
    for item in items:
        assert item["oid"] == box.git(folder, "rev-parse", f"stash@{{{item['index']}}}").decode().strip()
        assert item["base"] == oid and item["created_at"].endswith("Z")


def test_worktrees(box: Sandbox) -> None:
    folder = box.init("space/work")
    workspace = (box.folder / "space").resolve()
    root = str(workspace).encode()
    assert worktrees(repository(workspace, b"work"), root)["items"][0]["head"] is None
    oid = box.commit(folder, {"a": b"1"}, "one")
    for name, flags in (
        ("../b\nc", ("-b", "x/y")),
        ("../../outside", ("--detach",)),
        ("../gone", ("-b", "g")),
        ("../\udcff", ("-b", "f")),
    ):
        box.git(folder, "worktree", "add", "--quiet", *flags, "--", name.encode(errors="surrogateescape"))
    box.git(folder, "worktree", "lock", "--reason", "in\nuse", "../b\nc")
    box.git(folder, "worktree", "lock", "../../outside")
    (box.folder / "space/gone").rename(box.folder / "gone")
    found = {item["path"]: item for item in worktrees(repository(workspace, b"work"), root)["items"]}
    assert found.keys() == {"work", "b\nc", None, "gone", "\ufffd"}
    assert found["work"] == {
        "path": "work", "head": oid, "branch": "main", "detached": False, "bare": False, "locked": False, "lock_reason": None,
        "prunable": None, "main": True, "current": True,
    }  # fmt: skip
    other = found["b\nc"]
    assert (other["branch"], other["locked"], other["lock_reason"], other["main"], other["current"]) == (
        "x/y", True, "in\nuse", False, False,
    )  # fmt: skip
    assert (found[None]["detached"], found[None]["branch"], found[None]["locked"], found[None]["lock_reason"]) == (
        True, None, True, None,
    )  # fmt: skip
    assert found["gone"]["prunable"] and found["\ufffd"]["path_bytes"] == "%FF"
    linked = worktrees(repository(workspace, b"b\nc"), root)["items"]
    assert [item["path"] for item in linked if item["current"]] == ["b\nc"]
    (folder / "sub").mkdir()
    listed = {item["name"]: item for item in branches(repository(workspace, b"work"))["items"]}
    assert (listed["x/y"]["worktree"], listed["x/y"]["checked_out"], listed["x/y"]["current"]) == ("b\nc", True, False)
    assert listed["main"]["worktree"] is None and listed["main"]["current"]
    assert listed["f"]["worktree"] == "\ufffd" and listed["f"]["worktree_bytes"] == "%FF"
    above = {item["name"]: item for item in branches(repository(folder / "sub"))["items"]}
    assert above["x/y"]["worktree"] is None and above["x/y"]["checked_out"]


def test_worktrees_of_a_bare_repository(box: Sandbox) -> None:
    folder = box.init("work", "--bare")
    root = str(box.folder.resolve()).encode()
    (item,) = worktrees(repository(box.folder, b"work"), root)["items"]
    assert (item["bare"], item["head"], item["branch"], item["current"], item["path"]) == (
        True,
        None,
        None,
        True,
        "work",
    )
    assert folder.exists()


# --- shapes ---------------------------------------------------------------------------------------------------------------------


def test_answers_have_the_shapes_that_are_told(box: Sandbox) -> None:
    source = box.init("source")
    box.commit(source, {b"a\xff": b"1\n"}, "one")
    box.git(box.folder, "clone", "--quiet", str(source), "work")
    folder = box.folder / "work"
    box.git(folder, "tag", "-a", "-m", "t", "v1")
    box.git(folder, "checkout", "--quiet", "-b", "side")
    oid = box.commit(folder, {b"a\xff": b"1\nside\n"}, "two")
    (folder / "new").write_text("1")
    box.git(folder, "stash", "push", "-u", "--quiet")
    box.git(folder, "checkout", "--quiet", "main")
    box.git(folder, "worktree", "add", "--quiet", "-b", "w", "../w")
    box.commit(folder, {b"a\xff": b"1\nmain\n"}, "three")
    box.attempt(folder, "merge", "side")
    found = repository(folder)
    under_way = operation(found)
    assert under_way is not None
    answers: list[tuple[type[BaseModel], dict[str, Any]]] = [
        (history.CommitPage, log(found, limit=2)), (history.CommitFactsView, commit_facts(found, oid)),
        (history.BranchPage, branches(found, limit=2)), (history.TagPage, tags(found)), (history.RemoteList, remotes(found)),
        (history.BlameView, blame(found, b"a\xff")), (history.StashList, stashes(found)),
        (history.WorktreeList, worktrees(found, str(box.folder.resolve()).encode())), (history.ConflictList, conflicts(found)),
        (history.UnderWayView, under_way),
    ]  # fmt: skip
    for shape, answer in answers:
        assert answer.get("items") != []
        assert shape.model_validate(answer, extra="forbid").model_dump(exclude_unset=True) == answer
