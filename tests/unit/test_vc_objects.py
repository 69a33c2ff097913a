"""Files of the history, who wrote their lines, conflicts, and what is under way: held against a second reading by git."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.git_home import Sandbox
from support.git_repository import Made, import_history, repository, sandbox
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.version_control import blame as blame_module
from workspace_runtime.version_control import objects
from workspace_runtime.version_control.blame import blame
from workspace_runtime.version_control.conflicts import conflicts
from workspace_runtime.version_control.lists import operation
from workspace_runtime.version_control.log import log
from workspace_runtime.version_control.objects import blob, commit_facts
from workspace_runtime.version_control.quoting import unquoted
from workspace_runtime.version_control.refs import remotes

ODD: tuple[bytes, ...] = (
    b"a\nb",
    b'q"\\t\t',
    b"-x",
    b"*",
    b":(top)a",
    b"\xff\xfe",
    b"dir/ in ",
    b"\xc3\xa4",
    b'"',
    b'"a"',
)
NOON = 1_000_000_000


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(tmp_path_factory.mktemp("objects")) as made:
        made.init("drawn")
        yield made


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Sandbox]:
    with sandbox(tmp_path) as made:
        yield made


def refused(code: str, call: Callable[..., object], *known: Any, **asked: Any) -> WorkspaceError:
    with pytest.raises(WorkspaceError) as raised:
        call(*known, **asked)
    assert raised.value.code == code
    return raised.value


# --- files and commits ------------------------------------------------------------------------------------------------------------


def test_blobs(box: Sandbox) -> None:
    folder = box.init("work")
    content: dict[str | bytes, bytes] = {name: b"%d\r\n\0\xff" % number for number, name in enumerate(ODD)}
    box.commit(folder, content, "one")
    (folder / "run").write_bytes(b"#!")
    (folder / "run").chmod(0o755)
    os.symlink("../away\n", folder / "link")
    box.git(folder, "add", ".")
    box.git(folder, "commit", "--quiet", "-m", "two")
    found = repository(folder)
    for name, data in content.items():
        for ref in ("HEAD", "index", "main~1"):
            told = blob(found, os.fsencode(name), ref=ref)
            assert (told.content, told.mode, told.size) == (data, "100644", len(data))
            assert told.oid == box.git(folder, "hash-object", "--stdin", input=data).decode().strip()
    for ref in ("HEAD", "index"):
        assert (blob(found, b"run", ref=ref).mode, blob(found, b"link", ref=ref).mode) == ("100755", "120000")
        assert blob(found, b"link", ref=ref).content == b"../away\n"
        for path in (b"", b"dir"):
            refused("is_directory", blob, found, path, ref=ref)
        for path in (b"none", b"run/x", b"dir/none", b"**", b"ru", b"di", b"link/x"):
            refused("file_not_found", blob, found, path, ref=ref)
    refused("file_not_found", blob, found, b"run", ref="main~1")
    refused("file_not_found", blob, found, b"run", ref="ours")
    refused("ref_not_found", blob, found, b"run", ref="nothing")
    refused("ref_invalid", blob, found, b"run", ref="--batch")
    tree = box.git(folder, "rev-parse", "HEAD:dir").decode().strip()
    assert blob(found, b" in ", ref=tree).content == content[b"dir/ in "]


def test_a_blob_is_what_git_stored(box: Sandbox) -> None:
    folder = box.init("work")
    (folder / ".gitattributes").write_text("a filter=f diff=d eol=crlf\n")
    box.commit(folder, {"a": b"one\ntwo\n", ".gitattributes": (folder / ".gitattributes").read_bytes()}, "one")
    for key in ("filter.f.smudge", "filter.f.clean", "diff.d.textconv"):
        box.git(folder, "config", key, f"touch {folder}/ran; cat")
    assert blob(repository(folder), b"a", ref="HEAD").content == b"one\ntwo\n"
    assert blame(repository(folder), b"a", ref="HEAD")["lines"][0]["count"] == 2
    assert not (folder / "ran").exists()


def test_blobs_have_a_limit(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = box.init("work")
    box.commit(folder, {"fits": b"x" * 5000, "more": b"x" * 5001}, "one")
    monkeypatch.setattr(objects, "MAX_OUTPUT", 5000)
    assert blob(repository(folder), b"fits", ref="HEAD").size == 5000
    refused("git_output_too_large", blob, repository(folder), b"more", ref="HEAD")


def test_a_submodule_is_no_file(box: Sandbox) -> None:
    inner = box.init("inner")
    box.commit(inner, {"a": b"1"}, "one")
    folder = box.init("work")
    box.git(folder, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner), "sub")
    box.git(folder, "commit", "--quiet", "-m", "one")
    found = repository(folder)
    for ref in ("HEAD", "index"):
        refused("not_a_file", blob, found, b"sub", ref=ref)
    refused("is_directory", blame, found, b"sub", ref="HEAD")
    refused("is_directory", blame, found, b"sub")
    refused("file_not_found", blame, found, b"sub/a", ref="HEAD")


def test_facts_of_a_commit(box: Sandbox) -> None:
    folder = box.init("work")
    root = box.commit(folder, {"secret": b"1"}, "outside")
    box.git(folder, "checkout", "--quiet", "-b", "side")
    side = box.commit(folder, {"sub/a": b"1"}, "inside")
    box.git(folder, "checkout", "--quiet", "main")
    box.commit(folder, {"other": b"1"}, "outside")
    box.git(folder, "merge", "--quiet", "-m", "merge", "side")
    found = repository(folder)
    for item in log(found)["items"]:
        tree = box.git(folder, "rev-parse", f"{item['oid']}^{{tree}}").decode().strip()
        assert commit_facts(found, item["oid"]) == {**item, "tree": tree}
    above = repository(folder / "sub")
    assert commit_facts(above, side)["subject"] == "inside"
    refused("ref_not_found", commit_facts, above, root)
    assert blob(above, b"a", ref="HEAD").content == b"1"
    refused("file_not_found", blob, above, b"secret", ref="HEAD")
    refused("is_directory", blob, above, b"", ref="HEAD")


# --- lines ------------------------------------------------------------------------------------------------------------------------


def lines_of(told: dict[str, Any]) -> list[tuple[str | None, int, str]]:
    """Each line's commit, its number there, and the name of its file there."""
    orjson.dumps(told)
    lines: list[tuple[str | None, int, str]] = []
    for group in told["lines"]:
        assert group["line"] == len(lines) + 1
        name = group.get("original_path", told["path"])
        lines += [(group["oid"], group["original_line"] + at, name) for at in range(group["count"])]
    return lines


def said_by_git(box: Sandbox, folder: Path, *arguments: str) -> list[tuple[str | None, int, str]]:
    lines: list[tuple[str | None, int, str]] = []
    head: list[str] = []
    name = ""
    for line in box.git(folder, "blame", "--line-porcelain", *arguments).decode(errors="replace").split("\n")[:-1]:
        if line.startswith("\t"):
            lines.append((None if head[0].strip("0") == "" else head[0], int(head[1]), name))
            head = []
        elif not head:
            head = line.split()
        elif line.startswith("filename "):
            name = line.removeprefix("filename ")
    return lines


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=12), min_size=2, max_size=6), st.booleans())
def test_lines_are_whose_git_says(shared: Sandbox, versions: list[list[str]], renamed: bool) -> None:
    folder = shared.folder / "drawn"
    contents = ["".join(f"{word}\n" for word in version).encode() for version in versions]
    import_history(
        shared,
        folder,
        [Made([n - 1] if n else [], NOON + n, file=(b"f", text)) for n, text in enumerate(contents[:-1])],
    )
    shared.git(folder, "reset", "--quiet", "--hard")
    name = "f"
    if renamed:
        shared.git(folder, "mv", "f", "g")
        shared.git(folder, "commit", "--quiet", "-m", "renamed")
        name = "g"
    found = repository(folder)
    assert lines_of(blame(found, name.encode(), ref="HEAD")) == said_by_git(shared, folder, "HEAD", "--", name)
    (folder / name).write_bytes(contents[-1])
    told = blame(found, name.encode())
    assert lines_of(told) == said_by_git(shared, folder, "--", name)
    assert told["ref"] is None and told["commits"].keys() == {line["oid"] for line in told["lines"]} - {None}


def test_commits_of_lines(box: Sandbox) -> None:
    long = b"long enough to be known again " * 9
    folder = box.init("work")
    first = box.commit(folder, {"a": b"%b\n2\n3\n" % long}, "Eins\n\nbody")
    box.git(folder, "mv", "a", "b\n\udcff".encode(errors="surrogateescape"))
    second = box.commit(folder, {b"b\n\xff": b"%b\n2 ch\n3\n" % long}, "zwei")
    (folder / ".mailmap").write_text("Other <other@x> <ada@example.org>\n")
    (folder / "b\n\udcff").write_bytes(b"%b\n2 ch\n3\nnew\n" % long)
    for key, value in {
        "blame.showRoot": "true", "blame.markIgnoredLines": "true", "blame.markUnblamableLines": "true", "blame.blankBoundary": "true",
        "blame.coloring": "highlightRecent", "color.ui": "always", "core.quotePath": "true", "i18n.logOutputEncoding": "UTF-16",
        "blame.date": "relative", "blame.showEmail": "true", "core.abbrev": "5", "diff.renames": "false",
    }.items():  # fmt: skip
        box.git(folder, "config", key, value)
    told = blame(repository(folder), b"b\n\xff")
    commits = {item["oid"]: item for item in log(repository(folder))["items"]}
    assert told["path"] == "b\n\ufffd" and told["path_bytes"] == "b%0A%FF"
    assert told["lines"] == [
        {"oid": first, "line": 1, "count": 1, "original_line": 1, "original_path": "a"},
        {"oid": second, "line": 2, "count": 1, "original_line": 2},
        {"oid": first, "line": 3, "count": 1, "original_line": 3, "original_path": "a"},
        {"oid": None, "line": 4, "count": 1, "original_line": 4},
    ]
    for oid, facts in told["commits"].items():
        assert {name: facts[name] for name in ("author", "committer", "subject")} == {
            name: commits[oid][name] for name in ("author", "committer", "subject")
        }
    assert (
        told["commits"][second]["previous"] == {"oid": first, "path": "a"} and not told["commits"][second]["boundary"]
    )
    assert told["commits"][first]["previous"] is None and told["commits"][first]["boundary"]


def test_commits_to_be_ignored(box: Sandbox) -> None:
    folder = box.init("work")
    first = box.commit(folder, {"a": b"one\ntwo\n"}, "one")
    second = box.commit(folder, {"a": b"  one\n  two\n"}, "reformatted")
    (folder / "ignored").write_text(f"{second}\n")
    assert {line["oid"] for line in blame(repository(folder), b"a")["lines"]} == {second}
    box.git(folder, "config", "blame.ignoreRevsFile", "ignored")
    assert {line["oid"] for line in blame(repository(folder), b"a")["lines"]} == {first}
    secret = box.folder / "secret"
    secret.write_text("hidden\n")
    os.mkfifo(folder / "fifo")
    os.symlink(secret, folder / "link")
    for name in (str(secret), "fifo", "link", "../secret", "~/.gitconfig", "none"):
        box.git(folder, "config", "blame.ignoreRevsFile", name)
        fault = refused("repository_invalid", blame, repository(folder), b"a")
        assert "hidden" not in f"{fault.detail}{fault.data}"


def test_some_lines(box: Sandbox) -> None:
    folder = box.init("work")
    oid = box.commit(folder, {"a": b"1\n2\n3\n4\n", "empty": b""}, "one")
    found = repository(folder)
    for start, end, wanted in ((2, 3, (2, 2)), (3, None, (3, 2)), (None, 2, (1, 2)), (4, 99, (4, 1))):
        for ref in (None, "HEAD"):
            told = blame(found, b"a", ref=ref, start=start, end=end)
            assert [(line["line"], line["count"], line["oid"]) for line in told["lines"]] == [(*wanted, oid)]
    assert blame(found, b"empty", ref="HEAD")["lines"] == []
    for start, end in ((0, 1), (3, 2), (-1, None), (None, 0), (5, None), (99, 100)):
        refused("validation_failed", blame, found, b"a", start=start, end=end)


def test_lines_of_odd_names(box: Sandbox) -> None:
    folder = box.init("work")
    oid = box.commit(folder, dict.fromkeys(ODD, b"1\n"), "one")
    found = repository(folder)
    for name in ODD:
        for ref in (None, oid):
            told = blame(found, name, ref=ref)
            assert told["lines"] == [{"oid": oid, "line": 1, "count": 1, "original_line": 1}]
    second = box.commit(folder, dict.fromkeys(ODD, b"1\n2\n"), "two")
    for name in ODD:
        previous = blame(found, name, ref="HEAD")["commits"][second]["previous"]
        assert os.fsencode(previous.get("path_bytes", "")) or previous["path"].encode() == name


def test_lines_of_what_is_no_file(box: Sandbox) -> None:
    folder = box.init("work")
    (folder / "new").write_text("x\n")
    refused("ref_not_found", blame, repository(folder), b"new")
    box.commit(folder, {"dir/a": b"1\n", "gone": b"1\n"}, "one")
    (folder / "gone").unlink()
    os.mkfifo(folder / "fifo")
    os.symlink(box.folder, folder / "out")
    box.git(folder, "add", "-N", "out")
    found = repository(folder)
    for ref in (None, "HEAD"):
        refused("is_directory", blame, found, b"dir", ref=ref)
        refused("is_directory", blame, found, b"", ref=ref)
        for path in (b"none", b"new", b"dir/a/b", b"out/home/.gitconfig", b"out/home"):
            refused("file_not_found", blame, found, path, ref=ref)
    refused("file_not_found", blame, found, b"gone")
    refused("not_a_file", blame, found, b"fifo")
    refused("ref_not_found", blame, found, b"dir/a", ref="none")
    refused("ref_invalid", blame, found, b"dir/a", ref="--output=x")
    box.git(box.folder, "clone", "--quiet", "--bare", str(folder), "bare.git")
    bare = repository(box.folder / "bare.git")
    refused("repository_bare", blame, bare, b"dir/a")
    refused("repository_bare", blob, bare, b"dir/a", ref="index")
    assert blame(bare, b"dir/a", ref="HEAD")["lines"][0]["count"] == 1


def test_lines_never_wait_for_a_fifo(box: Sandbox) -> None:
    folder = box.init("work")
    box.commit(folder, {"dir/a": b"1\n"}, "one")
    os.mkfifo(folder / "names")
    box.git(folder, "config", "mailmap.file", "names")
    for name in (".mailmap", ".gitattributes", "dir/.gitattributes"):
        os.mkfifo(folder / name)
        refused("repository_invalid", blame, repository(folder), b"dir/a")
        (folder / name).unlink()
    assert blame(repository(folder), b"dir/a")["lines"]


def test_lines_have_a_limit(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = box.init("work")
    box.commit(folder, {"a": b"1\n"}, "one")
    monkeypatch.setattr(blame_module, "MAX_OUTPUT", 100)
    refused("git_output_too_large", blame, repository(folder), b"a")


@given(
    st.binary(max_size=80)
    | st.lists(st.sampled_from([b"1" * 40, b" 1 1 1", b"\n", b"filename ", b'"\\', b"previous "])).map(b"".join)
)
def test_an_account_that_is_none_is_a_clear_error(output: bytes) -> None:
    try:
        for group in blame_module._groups(output):
            unquoted(group.facts[b"filename"])
    except WorkspaceError as fault:
        assert fault.code == "git_output_invalid"


# --- conflicts and operations -----------------------------------------------------------------------------------------------------


def both_sides(box: Sandbox) -> Path:
    """A repository whose branches `main` and `side` changed the same files."""
    folder = box.init("work")
    box.commit(folder, {b"both\xff": b"base\n", "sub/gone\nhere": b"base\n", "gone there": b"base\n"}, "base")
    box.git(folder, "checkout", "--quiet", "-b", "side")
    (folder / "gone there").unlink()
    box.git(folder, "add", "--all")
    box.commit(folder, {b"both\xff": b"side\n", "sub/gone\nhere": b"side\n", "added": b"side\n"}, "of the side")
    box.git(folder, "checkout", "--quiet", "main")
    (folder / "sub/gone\nhere").unlink()
    box.git(folder, "add", "--all")
    box.commit(folder, {b"both\xff": b"main\n", "gone there": b"main\n", "added": b"main\n"}, "of main")
    return folder


def test_conflicts(box: Sandbox) -> None:
    folder = both_sides(box)
    found = repository(folder)
    assert conflicts(found) == {"items": [], "next_cursor": None}
    side = box.git(folder, "rev-parse", "side").decode().strip()
    assert box.attempt(folder, "merge", "side").returncode == 1
    items = conflicts(found)["items"]
    assert [(item["path"], item["kind"], item["exists"]) for item in items] == [
        ("added", "both_added", True), ("both\ufffd", "both_modified", True), ("gone there", "deleted_by_them", True),
        ("sub/gone\nhere", "deleted_by_us", True),
    ]  # fmt: skip
    assert items[1]["path_bytes"] == "both%FF" and items[0]["base"] is None and items[3]["ours"] is None
    for item, path in zip(items, (b"added", b"both\xff", b"gone there", b"sub/gone\nhere"), strict=True):
        for name in ("base", "ours", "theirs"):
            if item[name] is None:
                refused("file_not_found", blob, found, path, ref=name)
            else:
                told = blob(found, path, ref=name)
                assert item[name] == {"oid": told.oid, "mode": told.mode}
                wanted = {"base": b"base\n", "ours": b"main\n", "theirs": b"side\n"}[name]
                assert told.content == wanted
        refused("file_not_found", blob, found, path, ref="index")
    told_of = operation(found)
    assert told_of is not None and (told_of["kind"], told_of["head_name"], told_of["oid"]) == ("merge", "main", side)
    assert told_of["message"].startswith("Merge branch 'side'")
    (above,) = conflicts(repository(folder / "sub"))["items"]
    assert above["path"] == "gone\nhere"
    (folder / "added").unlink()
    assert not conflicts(found)["items"][0]["exists"]


def test_every_kind_of_conflict(box: Sandbox) -> None:
    folder = box.init("work")
    oid = box.git(folder, "hash-object", "-w", "--stdin", input=b"x").decode().strip()
    kinds = {"DD": "1", "AU": "2", "UA": "3", "UD": "12", "DU": "13", "AA": "23", "UU": "123"}
    info = "".join(f"100644 {oid} {stage}\t{name}\n" for name, stages in kinds.items() for stage in stages)
    box.git(folder, "update-index", "--index-info", input=info.encode())
    told = {item["path"]: item["kind"] for item in conflicts(repository(folder))["items"]}
    status = box.git(folder, "status", "--porcelain", "-z").decode().split("\0")[:-1]
    assert {line[3:] for line in status} == {line[:2] for line in status} == told.keys()
    assert told == {
        "DD": "both_deleted", "AU": "added_by_us", "UA": "added_by_them", "UD": "deleted_by_them", "DU": "deleted_by_us",
        "AA": "both_added", "UU": "both_modified",
    }  # fmt: skip


def test_no_link_is_followed_to_look_for_a_file(box: Sandbox) -> None:
    folder = box.init("work")
    oid = box.git(folder, "hash-object", "-w", "--stdin", input=b"x").decode().strip()
    box.git(folder, "update-index", "--index-info", input=f"100644 {oid} 1\tout/home\n".encode())
    os.symlink(box.folder, folder / "out")
    assert not conflicts(repository(folder))["items"][0]["exists"]


def test_operations(box: Sandbox) -> None:
    folder = both_sides(box)
    found = repository(folder)
    assert operation(found) is None
    main, side = (box.git(folder, "rev-parse", name).decode().strip() for name in ("main", "side"))
    for arguments, wanted in (
        (("rebase", "side"), {"kind": "rebase", "head_name": "main", "onto": side, "oid": main, "step": 1, "total": 1}),
        (("rebase", "--apply", "side"), {"kind": "rebase", "head_name": "main", "onto": side, "step": 1, "total": 1}),
        (("cherry-pick", "side"), {"kind": "cherry-pick", "head_name": "main", "oid": side}),
        (("revert", "--no-edit", "main~1"), {"kind": "revert", "head_name": "main"}),
    ):
        assert box.attempt(folder, *arguments).returncode != 0
        told = operation(found)
        assert told is not None and {name: told[name] for name in wanted} == wanted
        assert set(told) == {"kind", "head_name", "onto", "oid", "step", "total", "message"}
        orjson.dumps(told)
        box.git(folder, arguments[0], "--abort")
        assert operation(found) is None
    patch = box.git(folder, "format-patch", "--stdout", "side~1..side")
    assert box.attempt(folder, "am", input=patch).returncode != 0
    told = operation(found)
    assert told is not None and (told["kind"], told["step"], told["total"]) == ("am", 1, 1)
    box.git(folder, "am", "--abort")
    box.git(folder, "bisect", "start", "main", "main~1")
    assert operation(found) == {
        "kind": "bisect", "head_name": "main", "onto": None, "oid": None, "step": None, "total": None, "message": None,
    }  # fmt: skip
    box.git(folder, "bisect", "reset")
    box.git(folder, "checkout", "--quiet", "--detach")
    assert box.attempt(folder, "rebase", "side").returncode != 0
    told = operation(found)
    assert told is not None and told["head_name"] is None
    box.git(folder, "rebase", "--abort")
    assert box.attempt(folder, "merge", "side").returncode != 0
    told = operation(found)
    assert told is not None and (told["kind"], told["head_name"]) == ("merge", None)


def test_an_operation_between_two_commits(box: Sandbox) -> None:
    folder = both_sides(box)
    side = box.git(folder, "rev-parse", "side").decode().strip()
    box.git(folder, "checkout", "--quiet", "side")
    box.commit(folder, {"last": b"1"}, "last")
    box.git(folder, "checkout", "--quiet", "main")
    assert box.attempt(folder, "cherry-pick", side, "side").returncode != 0
    box.git(folder, "add", "--all")
    box.git(folder, "commit", "--quiet", "-m", "resolved by hand")
    told = operation(repository(folder))
    status = box.git(folder, "status").decode()
    assert (told is not None and told["kind"] == "cherry-pick") == ("herry-pick" in status) is True


def test_files_of_an_operation_are_not_trusted(box: Sandbox) -> None:
    folder = box.init("work")
    box.commit(folder, {"a": b"1"}, "one")
    git_dir = folder / ".git"
    (git_dir / "rebase-merge").mkdir()
    found = repository(folder)
    for name, content in {"head-name": b"\xff\n", "onto": b"nothing", "msgnum": b"-1e9", "end": b"9" * 5000}.items():
        (git_dir / "rebase-merge" / name).write_bytes(content)
    os.mkfifo(git_dir / "rebase-merge/message")
    os.symlink("/etc/passwd", git_dir / "rebase-merge/stopped-sha")
    assert operation(found) == {
        "kind": "rebase", "head_name": None, "onto": None, "oid": None, "step": None, "total": None, "message": None,
    }  # fmt: skip
    (git_dir / "rebase-merge").rename(git_dir / "x")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(git_dir / "MERGE_HEAD"))
        assert operation(found) is None
    assert remotes(found) == {"items": [], "next_cursor": None}
