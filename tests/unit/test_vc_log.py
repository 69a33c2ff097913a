"""The history, a page at a time, held against git's own walk."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.git_home import Sandbox
from support.git_repository import Made, import_history, repository, sandbox
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.version_control import cursors
from workspace_runtime.version_control.log import log
from workspace_runtime.version_control.repository import Repository

NOON = 1_000_000_000
HEX = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(tmp_path_factory.mktemp("log")) as made:
        made.init("drawn")
        yield made


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Sandbox]:
    with sandbox(tmp_path) as made:
        yield made


def pages(found: Repository, limit: int, **asked: Any) -> list[list[dict[str, Any]]]:
    """All pages, each as the client gets it."""
    cursor, seen = None, []
    while True:
        page = log(found, limit=limit, cursor=cursor, **asked)
        assert len(page["items"]) <= limit
        seen.append(page["items"])
        cursor = page["next_cursor"]
        if cursor is None:
            return seen
        assert page["items"], "a page with a cursor is never empty"


def ids(found: Repository, limit: int, **asked: Any) -> list[str]:
    return [item["oid"] for page in pages(found, limit, **asked) for item in page]


def said_by_git(box: Sandbox, folder: Path, *arguments: str) -> list[str]:
    return box.git(folder, "rev-list", *arguments).decode().split()


def refused(code: str, found: Repository, **asked: Any) -> WorkspaceError:
    with pytest.raises(WorkspaceError) as raised:
        log(found, **asked)
    assert raised.value.code == code
    return raised.value


# --- pages ----------------------------------------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn, *, skewed: bool) -> list[Made]:
    made: list[Made] = []
    for number in range(draw(st.integers(1, 14))):
        earlier = list(range(number))
        parents = draw(st.lists(st.sampled_from(earlier[-5:]), max_size=3, unique=True)) if earlier else []
        # the last one leads to most of the others
        if number and not parents and draw(st.booleans()):
            parents = [number - 1]
        newest = max((made[parent].date for parent in parents), default=NOON)
        date = NOON + draw(st.integers(0, 5)) if skewed else newest + draw(st.sampled_from([0, 0, 1, 3]))
        made.append(Made(parents, date, b"%d" % number))
    return made


@settings(max_examples=40, deadline=None)
@given(histories(skewed=False), st.integers(1, 7))
def test_pages_are_the_walk_where_dates_are_in_order(shared: Sandbox, history: list[Made], limit: int) -> None:
    folder = shared.folder / "drawn"
    import_history(shared, folder, history)
    assert ids(repository(folder), limit) == said_by_git(shared, folder, "HEAD")


@settings(max_examples=40, deadline=None)
@given(histories(skewed=True), st.integers(1, 7))
def test_pages_have_each_commit_once_whatever_the_dates(shared: Sandbox, history: list[Made], limit: int) -> None:
    folder = shared.folder / "drawn"
    import_history(shared, folder, history)
    assert ids(repository(folder), limit) == said_by_git(shared, folder, "HEAD")


@settings(max_examples=20, deadline=None)
@given(histories(skewed=True), st.integers(1, 4), st.data())
def test_pages_of_a_range(shared: Sandbox, history: list[Made], limit: int, data: st.DataObject) -> None:
    folder = shared.folder / "drawn"
    made = import_history(shared, folder, history)
    other = data.draw(st.sampled_from(made))
    for dots in ("..", "..."):
        wanted = f"{other}{dots}{made[-1]}"
        assert ids(repository(folder), limit, ref=wanted) == said_by_git(shared, folder, wanted)


def test_a_deep_page_is_found_without_counting(box: Sandbox) -> None:
    folder = box.init("work")
    made = import_history(box, folder, [Made([n - 1] if n else [], NOON + n) for n in range(300)])
    found = repository(folder)
    first = log(found, limit=7)
    place = cursors.decode_place(first["next_cursor"], _bound(found))
    assert place.frontier == (made[-8],)
    assert (place.count, place.same, place.excluded) == (7, (made[-7],), ())
    assert len(first["next_cursor"]) < 150
    assert ids(found, 7) == made[::-1]


def test_a_commit_of_an_earlier_page_is_not_shown_again(box: Sandbox) -> None:
    folder = box.init("work")
    shown_first = [Made((), NOON), Made((0,), NOON), Made((1,), NOON), Made((0, 2), NOON)]
    import_history(box, folder, [*shown_first, Made((3,), NOON + 1)])
    assert ids(repository(folder), 1) == said_by_git(box, folder, "HEAD")
    # the parent is later than its child, which alone leads to it again
    import_history(
        box, folder, [Made((), NOON + 5), Made((0,), NOON + 1), Made((1,), NOON + 2), Made((0, 2), NOON + 6)]
    )
    assert ids(repository(folder), 1) == said_by_git(box, folder, "HEAD")


def test_equal_dates_beyond_what_a_cursor_notes_are_counted(box: Sandbox) -> None:
    folder = box.init("work")
    made = import_history(box, folder, [Made([n - 1] if n else [], NOON) for n in range(80)])
    found = repository(folder)
    place = cursors.decode_place(log(found, limit=60)["next_cursor"], _bound(found))
    assert (place.frontier, place.count) == ((), 60)
    assert ids(found, 60) == made[::-1]


def test_more_open_ends_than_a_cursor_notes_are_counted(box: Sandbox) -> None:
    folder = box.init("work")
    roots = [Made((), NOON + n) for n in range(210)]
    merges = [Made(range(n * 14, n * 14 + 14), NOON + 1000 + n) for n in range(15)]
    made = import_history(box, folder, [*roots, *merges, Made(range(210, 225), NOON + 2000)])
    found = repository(folder)
    place = cursors.decode_place(log(found, limit=16)["next_cursor"], _bound(found))
    assert (place.frontier, place.count) == ((), 16)
    assert sorted(ids(found, 16)) == sorted(made)


def test_dates_that_no_calendar_has(box: Sandbox) -> None:
    folder = box.init("work")
    made = import_history(box, folder, [Made((), 2**40), Made((0,), 2**52), Made((1,), NOON), Made((2,), 2**60)])
    found = repository(folder)
    assert ids(found, 1) == made[::-1] == said_by_git(box, folder, "HEAD")
    assert [item["author"]["date"] for item in log(found)["items"]] == [None, "2001-09-09T01:46:40Z", None, None]


def test_pages_do_not_shift_when_commits_are_made(box: Sandbox) -> None:
    folder = box.init("work")
    made = [box.commit(folder, {"a": b"%d" % n}, f"{n}") for n in range(6)]
    found = repository(folder)
    for asked in ({}, {"path": b"a"}, {"author": "ada"}, {"ref": "HEAD~5..HEAD"}):
        before = [oid for oid in made[::-1] if oid != made[0] or "ref" not in asked]
        page = log(found, limit=2, **asked)
        box.commit(folder, {"a": f"{asked}".encode()}, "new")
        next_one = log(found, limit=10, cursor=page["next_cursor"], **asked)
        assert [item["oid"] for item in (*page["items"], *next_one["items"])] == before
        box.git(folder, "reset", "--hard", "--quiet", made[-1])


def test_cursors_are_refused(box: Sandbox) -> None:
    folder = box.init("work")
    for number in range(5):
        box.commit(folder, {"a": b"%d" % number}, f"{number}")
    found = repository(folder)
    cursor = log(found, limit=2)["next_cursor"]
    for other in ({"ref": "main"}, {"path": b"a"}, {"author": "x"}, {"q": "x"}):
        refused("cursor_invalid", found, cursor=cursor, **other)
    for rubbish in ("", "A", "!!", "AAAA", cursor[:-3], cursor + "AAAA", "ä", "\ud800", cursor * 20):
        refused("cursor_invalid", found, cursor=rubbish)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 200))
def test_a_changed_cursor_is_a_page_or_a_refusal(shared: Sandbox, change: bytes, at: int) -> None:
    folder = shared.folder / "changed"
    if not folder.exists():
        import_history(shared, shared.init("changed"), [Made([n - 1] if n else [], NOON + n) for n in range(9)])
    found = repository(folder)
    cursor = log(found, limit=2)["next_cursor"]
    raw = cursors._decode(cursor)
    try:
        assert log(found, cursor=cursors._encode(raw[:at] + change + raw[at + len(change) :]))["items"] is not None
    except WorkspaceError as fault:
        assert fault.code == "cursor_invalid"


def test_a_cursor_whose_commits_are_gone(box: Sandbox) -> None:
    folder = box.init("work")
    import_history(box, folder, [Made([n - 1] if n else [], NOON + n) for n in range(9)])
    found = repository(folder)
    cursors_before = [log(found, limit=2, **asked)["next_cursor"] for asked in ({}, {"author": "ada"})]  # type: ignore[arg-type]
    import_history(box, folder, [Made((), NOON + 1)])
    box.git(folder, "reflog", "expire", "--expire=now", "--all")
    box.git(folder, "gc", "--quiet", "--prune=now")
    refused("cursor_invalid", found, cursor=cursors_before[0])
    refused("cursor_invalid", found, cursor=cursors_before[1], author="ada")


def _bound(found: Repository, ref: str | None = None) -> bytes:
    return cursors.binding(found.git_dir, ref, None, None, None)


# --- what is asked for ----------------------------------------------------------------------------------------------------------


def test_no_commit_yet(box: Sandbox) -> None:
    found = repository(box.init("work"))
    assert log(found) == {"items": [], "next_cursor": None}
    refused("ref_not_found", found, ref="HEAD")
    refused("ref_not_found", found, ref="main..HEAD")


def test_revisions_and_ranges(box: Sandbox) -> None:
    folder = box.init("work")
    base = box.commit(folder, {"a": b"1"}, "base")
    main = box.commit(folder, {"a": b"2"}, "main")
    box.git(folder, "checkout", "--quiet", "-b", "side", base)
    side = box.commit(folder, {"b": b"1"}, "side")
    found = repository(folder)
    assert ids(found, 9, ref="main~1") == [base]
    assert ids(found, 9, ref="main..side") == ids(found, 9, ref="main..") == [side]
    assert ids(found, 9, ref="..main") == [main]
    assert set(ids(found, 1, ref="main...side")) == {main, side}
    assert ids(found, 9, ref="side..side") == []
    for ref in ("nothing", "main..nothing", "^main", "main^@", "a....b", f"{base[:-1]}g", "HEAD:a"):
        refused("ref_not_found", found, ref=ref)
    for ref in ("--all", "--output=x", "", "a\nb", "main..--all", "x\ud800"):
        refused("ref_invalid", found, ref=ref)
    assert not (folder / "x").exists()


def test_paths_are_names(box: Sandbox) -> None:
    folder = box.init("work")
    names = (b"a\nb", b'q"t\t', b"-x", b"*", b":(top)a", b"\xff\xfe", b"dir/in", b"other")
    made = {name: box.commit(folder, {name: b"1"}, "one") for name in names}
    found = repository(folder)
    for name, oid in made.items():
        assert ids(found, 9, path=name) == [oid]
    assert ids(found, 9, path=b"dir") == [made[b"dir/in"]]
    assert ids(found, 9, path=b"none") == []
    box.git(folder, "rm", "--quiet", "other")
    gone = box.commit(folder, {}, "gone")
    assert ids(found, 9, path=b"other") == [gone, made[b"other"]]


def test_words_are_words(box: Sandbox) -> None:
    folder = box.init("work")
    history = [
        Made((), NOON, b"Plain subject\n\nwith a Body.* here", b"A.da Lovelace <ada@example.org>"),
        Made((0,), NOON + 1, "Grün STRASSE".encode(), "Jürgen Ä <j@example.org>".encode()),
        Made((1,), NOON + 2, b"not \xff\xfe utf-8 grep", b"Axda <x@example.org>"),
    ]
    plain, green, odd = import_history(box, folder, history)
    found = repository(folder)
    for q, wanted in (
        ("SUBJECT", [plain]), ("body.*", [plain]), ("b.dy", []), ("grün", [green]), ("GRÜN", [green]), ("strasse", [green]),
        ("GREP", [odd]), ("-e", []), ("--all", []), ("\\", []), ("[", []), ("\u00a0", []), ("ada", []),
    ):  # fmt: skip
        assert ids(found, 9, q=q) == wanted, q
    for author, wanted in (
        ("a.da", [plain]), ("lovelace <ADA@", [plain]), ("jürgen ä", [green]), ("example.org", [odd, green, plain]),
        ("1000000000", []), ("^", []), ("committer", []),
    ):  # fmt: skip
        assert ids(found, 1, author=author) == wanted, author
    assert ids(found, 1, author="example", q="r") == [odd, green, plain]
    assert ids(found, 9, author="lovelace", q="grün") == []
    assert ids(found, 9, q="") == [odd, green, plain]
    for bad in ("a\nb", "\0", "x" * 1001, "\ud800"):
        refused("validation_failed", found, q=bad)
        refused("validation_failed", found, author=bad)


def test_an_id_is_found(box: Sandbox) -> None:
    folder = box.init("work")
    first = box.commit(folder, {"a": b"1"}, "first")
    told = box.commit(folder, {"b": b"1"}, f"as {first[:12]} says")
    box.git(folder, "checkout", "--quiet", "-b", "side")
    side = box.commit(folder, {"c": b"1"}, f"reverts {told} and {first[:10]}")
    found = repository(folder)
    assert ids(found, 1, q=first[:10]) == ids(found, 5, q=first[:10].upper()) == [first, side, told]
    assert ids(found, 1, q=told) == [told, side]
    assert ids(found, 9, q=side[:7]) == [side]
    assert ids(found, 9, q=side[:7], ref="main") == []
    assert ids(found, 9, q=first, ref="main..side") == []
    assert ids(found, 9, q=side, ref="main..side") == [side]
    assert ids(found, 9, q=told, path=b"a") == [] and ids(found, 9, q=told, path=b"b") == [told]
    assert ids(found, 9, q=told, author="nobody") == []
    assert ids(found, 9, q=first[:6]) == [side, told] and ids(found, 9, q="0000000") == []
    box.git(folder, "branch", "abcdef0", first)
    assert ids(found, 9, q="abcdef0") == [] or first.startswith("abcdef0")


# --- what is told ---------------------------------------------------------------------------------------------------------------


def test_a_commit(box: Sandbox) -> None:
    folder = box.init("work")
    root = box.commit(folder, {"a": b"1"}, "root")
    env = {
        "GIT_AUTHOR_NAME": "Günter Grün", "GIT_AUTHOR_EMAIL": "g@example.org", "GIT_AUTHOR_DATE": "1700000000 +0530",
        "GIT_COMMITTER_DATE": "1700000001 -0800",
    }  # fmt: skip
    box.git(folder, "commit", "--quiet", "--allow-empty", "-m", "Two\nlines\n\nBody\n\n  end", env=env)
    (item, first) = log(repository(folder))["items"]
    assert HEX.fullmatch(item.pop("oid"))
    assert item == {
        "parents": [root],
        "author": {"name": "Günter Grün", "email": "g@example.org", "date": "2023-11-14T22:13:20Z"},
        "committer": {"name": "Ada", "email": "ada@example.org", "date": "2023-11-14T22:13:21Z"},
        "subject": "Two lines",
        "body": "Body\n\n  end",
        "refs": [
            {"name": "main", "type": "branch", "full": "refs/heads/main"},
            {"name": "HEAD", "type": "head", "full": "HEAD"},
        ],
    }
    assert first["parents"] == [] and first["refs"] == []


def test_refs_of_a_commit(box: Sandbox) -> None:
    folder = box.init("work")
    oid = box.commit(folder, {"a": b"1"}, "one")
    for ref in (
        "refs/heads/a",
        "refs/heads/x,y",
        "refs/remotes/o/main",
        "refs/tags/v1",
        "refs/notes/x",
    ):
        box.git(folder, "update-ref", ref, oid)
    box.git(folder, "symbolic-ref", "refs/remotes/o/HEAD", "refs/remotes/o/main")
    box.git(folder, "tag", "-a", "-m", "t", "v2")
    found = repository(folder)
    refs = log(found)["items"][0]["refs"]
    assert [ref["full"] for ref in refs[:2]] == ["refs/heads/main", "HEAD"]
    assert {(ref["type"], ref["name"]) for ref in refs} == {
        ("branch", "main"), ("head", "HEAD"), ("branch", "a"), ("branch", "x,y"), ("remote", "o/main"), ("tag", "v1"), ("tag", "v2"),
    }  # fmt: skip
    box.git(folder, "checkout", "--quiet", "--detach")
    assert log(found)["items"][0]["refs"][0] == {"name": "HEAD", "type": "head", "full": "HEAD"}


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=60).map(lambda raw: raw.replace(b"\0", b"")), st.binary(min_size=1, max_size=12))
def test_what_somebody_wrote_is_not_taken_for_structure(shared: Sandbox, message: bytes, name: bytes) -> None:
    folder = shared.folder / "written"
    if not folder.exists():
        shared.init("written")
    name = re.sub(rb"[\x00\n<>]", b"", name)
    made = import_history(shared, folder, [Made((), NOON, message, name + b" <e>"), Made((0,), NOON + 1, b"last")])
    last, first = log(repository(folder))["items"]
    assert (last["oid"], last["subject"], last["parents"]) == (made[1], "last", [made[0]])
    # the second reading: the object itself
    lines = re.sub(rb"\A(\s*\n)+", b"", message).split(b"\n")
    paragraph: list[bytes] = []
    for line in lines:
        if not line.strip(b" \t\n\r\v\f"):
            break
        paragraph.append(line.rstrip(b" \t\n\r\v\f"))
    assert first["subject"].split() == b" ".join(paragraph).decode(errors="replace").split()
    assert first["author"]["date"] == "2001-09-09T01:46:40Z"


def test_text_in_another_encoding(box: Sandbox) -> None:
    folder = box.init("work")
    for encoding in ("ISO-8859-1", "UTF-7", "UTF-16", "no-such", "\\"):
        tree = box.git(folder, "write-tree").decode().strip()
        head = f"tree {tree}\nauthor A <a@x> {NOON} +0000\ncommitter C <c@x> {NOON} +0000\nencoding {encoding}\n\n"
        raw = head.encode() + b"gr\xfcn +AAA- +AAo- end\n"
        oid = box.git(folder, "hash-object", "-t", "commit", "-w", "--stdin", input=raw).decode().strip()
        box.git(folder, "update-ref", "HEAD", oid)
        (item,) = log(repository(folder))["items"]
        assert item["oid"] == oid
        if encoding == "ISO-8859-1":
            assert item["subject"] == "grün +AAA- +AAo- end"


def test_configuration_changes_nothing(box: Sandbox) -> None:
    folder = box.init("work")
    box.commit(folder, {"a": b"long enough to be seen as renamed\n" * 9}, "one")
    box.git(folder, "mv", "a", "b")
    box.commit(folder, {}, "Two\n\nbody")
    (folder / ".mailmap").write_text("Other <other@example.org> <ada@example.org>\n")
    box.commit(folder, {".mailmap": (folder / ".mailmap").read_bytes()}, "map")
    box.git(folder, "notes", "add", "-m", "a note")
    box.git(folder, "tag", "v1")
    asked: list[dict[str, Any]] = [
        {},
        {"path": b"b"},
        {"author": "ada"},
        {"q": "t.o"},
        {"ref": "HEAD~1..HEAD"},
        {"q": "TWO"},
    ]
    before = [log(repository(folder), limit=2, **question) for question in asked]
    assert before[0]["items"][0]["author"]["name"] == "Ada"
    for key, value in {
        "log.showSignature": "true", "log.follow": "true", "log.date": "relative", "log.decorate": "no", "log.mailmap": "true",
        "log.excludeDecoration": "refs/*", "log.initialDecorationSet": "all", "log.abbrevCommit": "true", "log.showRoot": "true",
        "log.diffMerges": "on", "format.pretty": "raw", "format.notes": "true", "color.ui": "always", "color.diff": "always",
        "core.abbrev": "5", "core.quotePath": "true", "notes.displayRef": "refs/notes/*", "i18n.logOutputEncoding": "UTF-16",
        "i18n.commitEncoding": "UTF-16", "grep.patternType": "perl", "grep.extendedRegexp": "true", "diff.renames": "copies",
        "diff.noprefix": "true", "core.commentChar": "x", "column.ui": "always", "core.pager": "false", "pager.log": "true",
        "mailmap.file": ".mailmap", "diff.ignoreSubmodules": "all", "core.ignoreCase": "true", "core.precomposeUnicode": "true",
    }.items():  # fmt: skip
        box.git(folder, "config", key, value)
    assert [log(repository(folder), limit=2, **question) for question in asked] == before


def test_a_part_of_a_repository_above(box: Sandbox) -> None:
    folder = box.init("work")
    box.commit(folder, {"secret": b"1"}, "outside")
    inside = [box.commit(folder, {"sub/a": b"%d" % number}, f"in {number}") for number in range(3)]
    hidden = box.commit(folder, {"secret": b"2"}, "outside again")
    found = repository(folder / "sub")
    assert found.prefix == b"sub/"
    assert ids(found, 1) == ids(found, 9, path=b"a") == inside[::-1]
    assert ids(found, 9, path=b"secret") == [] and ids(found, 9, q=hidden) == [] and ids(found, 9, q="outside") == []
    # a cursor that somebody made up leads nowhere else
    place = cursors.decode_place(log(found, limit=1)["next_cursor"], _bound(found))
    forged = cursors.Place(place.binding, (hidden,), (), 0, (hidden,))
    assert [item["oid"] for item in log(found, cursor=cursors.encode_place(forged))["items"]] == inside[::-1]


def test_sha256_shallow_and_bare(box: Sandbox) -> None:
    folder = box.init("work", "--object-format=sha256")
    made = [box.commit(folder, {"a": b"%d" % number}, f"{number}") for number in range(5)]
    found = repository(folder)
    assert ids(found, 2) == made[::-1] and len(made[0]) == 64
    assert ids(found, 2, q=made[1][:9]) == [made[1]]
    source = box.init("source")
    made = [box.commit(source, {"a": b"%d" % number}, f"{number}") for number in range(5)]
    box.git(box.folder, "clone", "--quiet", "--depth=3", f"file://{source}", "shallow")
    shallow = log(repository(box.folder / "shallow"), limit=5)["items"]
    assert [item["oid"] for item in shallow] == made[:1:-1] and shallow[-1]["parents"] == []
    assert [ref["type"] for ref in shallow[0]["refs"]] == ["branch", "head", "remote"] and shallow[-1]["refs"] == []
    box.git(box.folder, "clone", "--quiet", "--bare", str(source), "bare.git")
    assert ids(repository(box.folder / "bare.git"), 2, path=b"a") == made[::-1]
