"""What was committed, by HTTP: log, branches, tags, show, blob, blame; conditional requests, HEAD, and wrong questions."""

import hashlib
from collections.abc import Iterator

import pytest

from support.version_control import NASTY, Case, Host, host

READS = (
    "status", "log", "branches", "tags", "remotes", "diff", "show", "blob", "blame", "commit/draft", "stash", "conflicts", "worktrees",
    "locks", "operations",
)  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("history")) as made:
        yield made


@pytest.fixture(scope="module")
def case(here: Host) -> Case:
    """A history that tests read and do not change: two branches with a merge, a tag of each kind, nasty names."""
    made = here.init("read")
    made.commit({"a.txt": b"one\ntwo\n", "sub/b.txt": b"b\n"}, "first\n\nWith a body.\n")
    made.git("tag", "light")
    made.git("checkout", "-q", "-b", "side")
    made.commit({"side.txt": b"s\n"}, "on the side")
    made.git("checkout", "-q", "main")
    made.git("-c", "user.name=Bob", "commit", "-q", "--allow-empty", "-m", "empty, by Bob")
    made.commit({"a.txt": b"one\n2\nthree\n", "bin": b"\0\xff"}, "second")
    made.git("merge", "-q", "--no-ff", "-m", "a merge", "side")
    made.commit(dict.fromkeys(NASTY, b"x\n"), "nasty")
    made.git("tag", "-a", "v1", "-m", "the first\n\nof all")
    return made


def test_log(case: Case) -> None:
    items = case.get("log")["items"]
    assert [item["oid"] for item in items] == case.git("log", "--format=%H").split()
    assert [item["subject"] for item in items][:2] == ["nasty", "a merge"]
    assert (items[-1]["subject"], items[-1]["body"].strip()) == ("first", "With a body.")
    assert items[-1]["author"]["name"] == "Ada" and items[-1]["author"]["email"] == "ada@example.org"
    assert items[1]["parents"] == case.git("rev-parse", "HEAD~1^1", "HEAD~1^2").split()
    assert {"HEAD", "main", "v1"} <= {ref["name"] for ref in items[0]["refs"]} | {"HEAD"}


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_pages_of_the_log(case: Case, limit: int) -> None:
    found: list[str] = []
    cursor = None
    while True:
        page = case.get("log", limit=limit, cursor=cursor)
        assert len(page["items"]) <= limit
        found += [item["oid"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(found) == sorted(case.git("rev-list", "HEAD").split())


def test_parts_of_the_log(case: Case) -> None:
    def subjects(**query: object) -> list[str]:
        return [item["subject"] for item in case.get("log", **query)["items"]]

    assert subjects(ref="side") == ["on the side", "first"]
    assert subjects(ref="light..side") == ["on the side"]
    assert set(subjects(ref="side...main")) == set(subjects(ref="side..main"))
    assert subjects(author="Bob") == ["empty, by Bob"]
    assert subjects(q="SECOND") == ["second"]
    assert subjects(q="nothing like it") == []
    assert subjects(path=f"{case.path}/a.txt") == ["second", "first"]
    assert subjects(path=f"{case.path}/sub") == ["first"]
    assert subjects(path=f"{case.path}/side.txt", ref="side") == ["on the side"]
    assert subjects(path=f"{case.path}/gone") == []
    for name in NASTY:
        assert subjects(path=f"{case.path}/".encode() + name) == ["nasty"]


def test_branches_and_tags(here: Host, case: Case) -> None:
    items = case.get("branches")["items"]
    assert [(item["name"], item["current"], item["remote"]) for item in items] == [
        ("main", True, False),
        ("side", False, False),
    ]
    assert items[0]["oid"] == case.head()
    assert [item["name"] for item in case.get("branches", q="SID")["items"]] == ["side"]
    page = case.get("branches", limit=1)
    assert [item["name"] for item in case.get("branches", limit=1, cursor=page["next_cursor"])["items"]] == ["side"]
    tags = {item["name"]: item for item in case.get("tags")["items"]}
    assert tags["v1"]["oid"] == case.head() and tags["v1"]["tag_oid"] == case.git("rev-parse", "v1")
    assert tags["light"]["tag_oid"] is None and tags["light"]["tagger"] is None
    copy = here.at(here.workspace / "read copy")
    here.box.git(here.workspace, "clone", "-q", "read", "read copy")
    items = copy.get("branches", remote=True)["items"]
    assert [item["name"] for item in items] == ["origin/main", "origin/side"]
    (local,) = copy.get("branches", remote=False)["items"]
    assert (local["upstream"]["ref"], local["ahead"], local["behind"]) == ("origin/main", 0, 0)
    assert copy.get("remotes")["items"][0]["name"] == "origin"


def test_show(case: Case) -> None:
    found = case.get("show", ref="light")
    assert found["commit"]["subject"] == "first"
    assert [(file["path"], file["status"]) for file in found["files"]] == [("a.txt", "added"), ("sub/b.txt", "added")]
    merge = case.get("show", ref="HEAD~1")
    assert [file["path"] for file in merge["files"]] == ["side.txt"] and len(merge["commit"]["parents"]) == 2
    nasty = case.get("show")
    assert {file.get("path_bytes") or file["path"] for file in nasty["files"]} == {
        "%E9%FF" if name == b"\xe9\xff" else name.decode() for name in NASTY
    }
    assert all(file["additions"] == 1 and len(file["hunks"]) == 1 for file in nasty["files"])
    for name in NASTY:
        (file,) = case.get("show", paths=name)["files"]
        assert file["additions"] == 1
    assert case.get("show", stat=True)["files"][0]["hunks"] == []
    assert case.get("show", ref="v1")["commit"]["oid"] == case.head()


def test_diff_of_revisions(case: Case) -> None:
    found = case.get("diff", target="light..main", paths=["a.txt"])
    (file,) = found["files"]
    assert (found["from"], found["to"]) == (case.git("rev-parse", "light"), case.head())
    assert (file["additions"], file["deletions"], found["additions"], found["deletions"]) == (2, 1, 2, 1)
    lines = [(line["type"], line["content"], line["old_line"], line["new_line"]) for line in file["hunks"][0]["lines"]]
    assert lines == [
        ("context", "one", 1, 1), ("delete", "two", 2, None), ("add", "2", None, 2), ("add", "three", None, 3),
    ]  # fmt: skip
    assert case.get("diff", target="light..")["to"] == case.head()
    assert {file["path"] for file in case.get("diff", target="main...side")["files"]} == set()
    assert {file["path"] for file in case.get("diff", target="light...side")["files"]} == {"side.txt"}
    (binary,) = case.get("diff", target="light..main", paths=["bin"])["files"]
    assert (binary["binary"], binary["additions"], binary["hunks"]) == (True, None, [])
    words = case.get("diff", target="light..main", paths=["a.txt"], word_diff=True)["files"][0]["hunks"][0]["lines"]
    assert {"type": "delete", "content": "two"} in [segment for line in words for segment in line["segments"]]
    text = case.ask("GET", "diff", target="light..main", format="patch")
    assert (
        text.headers["content-type"].startswith("text/x-diff") and "sandbox" in text.headers["content-security-policy"]
    )
    case.git("apply", "--check", "--reverse", "-", input=text.body)


def test_blob(case: Case) -> None:
    def blob(name: "str | bytes", **query: object) -> bytes:
        whole = f"{case.path}/".encode() + (name if isinstance(name, bytes) else name.encode())
        given = case.ask("GET", "blob", path=whole, **query)
        assert given.status == 200, given
        oid = hashlib.sha1(b"blob %d\0%b" % (len(given.body), given.body)).hexdigest()
        assert given.headers["etag"] == f'"{oid}"'
        assert "sandbox" in given.headers["content-security-policy"]
        return given.body

    assert blob("a.txt") == b"one\n2\nthree\n"
    assert blob("a.txt", ref="light") == b"one\ntwo\n"
    assert blob("a.txt", ref="index") == b"one\n2\nthree\n"
    assert blob("bin") == b"\0\xff"
    for name in NASTY:
        assert blob(name) == b"x\n"
    given = case.ask("GET", "blob", path=f"{case.path}/a.txt")
    tag = given.headers["etag"]
    again = case.ask("GET", "blob", path=f"{case.path}/a.txt", headers={"If-None-Match": tag})
    assert (again.status, again.body) == (304, b"")
    for path, ref, code in (
        ("gone", "HEAD", "file_not_found"), ("sub", "HEAD", "is_directory"), ("", "HEAD", "is_directory"), ("a.txt", "gone", "ref_not_found"),
        ("a.txt", "-x", "ref_invalid"), ("a.txt", "ours", "file_not_found"), ("side.txt", "light", "file_not_found"), ("a.txt", "", "ref_invalid"),
    ):  # fmt: skip
        assert case.refused("GET", "blob", path=f"{case.path}/{path}".rstrip("/"), ref=ref)["code"] == code, path


def test_blame(case: Case) -> None:
    first, second = case.git("rev-parse", "light"), case.git("rev-parse", "HEAD~2")
    path = f"{case.path}/a.txt"
    found = case.get("blame", path=path)
    assert [(part["line"], part["count"], part["oid"]) for part in found["lines"]] == [(1, 1, first), (2, 2, second)]
    assert set(found["commits"]) == {first, second} and found["commits"][first]["subject"] == "first"
    assert case.get("blame", path=path, ref="light")["lines"] == [
        {"oid": first, "line": 1, "count": 2, "original_line": 1}
    ]
    assert [part["oid"] for part in case.get("blame", path=path, start=2, end=2)["lines"]] == [second]
    for name in NASTY:
        assert case.get("blame", path=f"{case.path}/".encode() + name)["lines"]
    for query, status in (
        ({"path": f"{case.path}/gone"}, 404), ({"path": case.path}, 409), ({"path": f"{case.path}/sub"}, 409), ({"path": path, "ref": "gone"}, 404),
        ({"path": path, "start": 0}, 422), ({"path": path, "ref": "--help"}, 422), ({"path": path, "start": 99}, 422),
        ({"path": path, "start": 3, "end": 1}, 422),
    ):  # fmt: skip
        assert case.refused("GET", "blame", **query)["status"] == status, query


def test_blame_of_the_file_as_it_is(here: Host) -> None:
    case = here.init("blamed")
    oid = case.commit({"a.txt": b"one\ntwo\n"}, "first")
    case.write("a.txt", "one\nnew\ntwo\n")
    lines = case.get("blame", path="blamed/a.txt")["lines"]
    assert [(part["oid"], part["line"], part["count"]) for part in lines] == [(oid, 1, 1), (None, 2, 1), (oid, 3, 1)]


# --- requests -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", READS)
def test_each_get_has_its_head(case: Case, route: str) -> None:
    query = {"path": f"{case.path}/a.txt"} if route in ("blob", "blame") else {}
    get, head = case.ask("GET", route, **query), case.ask("HEAD", route, **query)
    assert (get.status, head.status, head.body) == (200, 200, b"")
    assert head.headers["content-length"] == str(len(get.body))
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers.get("etag") == get.headers.get("etag")


@pytest.mark.parametrize("route", ["diff", "show", "status"])
def test_entity_tags(case: Case, route: str) -> None:
    given = case.ask("GET", route)
    tag = given.headers["etag"]
    assert given.json["etag"] == tag and given.headers["cache-control"] == "no-cache"
    for asked in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        assert case.ask("GET", route, headers={"If-None-Match": asked}).status == 304
    assert case.ask("GET", route, headers={"If-None-Match": '"x"'}).status == 200


@pytest.mark.parametrize("route", ["log", "show", "blob", "blame", "diff"])
@pytest.mark.parametrize(
    "ref",
    ["--output=x", "-h", "gone", "a\nb", "", "HEAD^{", "@{-1}", "HEAD:a.txt", "x" * 1000, ":(glob)*", "..", "^main"],
)
def test_odd_revisions(case: Case, route: str, ref: str) -> None:
    """Whatever a revision is, there is an answer or a clear refusal, and nothing is written."""
    before = sorted(path.name for path in case.folder.iterdir())
    name = "target" if route == "diff" else "ref"
    path = {"path": f"{case.path}/a.txt"} if route in ("blob", "blame") else {}
    given = case.ask("GET", route, **{name: ref}, **path)
    assert given.status in (200, 404, 422)
    if given.status != 200:
        assert given.code in ("ref_invalid", "ref_not_found", "validation_failed")
    assert sorted(path.name for path in case.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("route", "query", "code"),
    [
        ("log", {"limit": 0}, "validation_failed"), ("log", {"limit": 1001}, "validation_failed"), ("log", {"cursor": "rubbish"}, "cursor_invalid"),
        ("branches", {"cursor": "rubbish"}, "cursor_invalid"), ("tags", {"cursor": "AAAA"}, "cursor_invalid"),
        ("diff", {"context": -1}, "validation_failed"), ("diff", {"format": "xml"}, "validation_failed"), ("diff", {"paths": "../x"}, "path_invalid"),
        ("show", {"paths": "/etc"}, "path_invalid"), ("show", {"ref": "HEAD:a.txt"}, "ref_not_found"),
    ],
)  # fmt: skip
def test_wrong_questions(case: Case, route: str, query: dict[str, object], code: str) -> None:
    assert case.refused("GET", route, **query)["code"] == code


def test_a_cursor_is_of_its_own_question(case: Case) -> None:
    cursor = case.get("log", limit=1)["next_cursor"]
    assert case.refused("GET", "log", limit=1, cursor=cursor, author="Bob")["code"] == "cursor_invalid"
    assert case.refused("GET", "branches", limit=1, cursor=cursor)["code"] == "cursor_invalid"


def test_a_cursor_goes_on_whatever_is_committed(here: Host) -> None:
    case = here.init("goes on")
    oids = [case.commit({"a": b"%d" % number}, str(number)) for number in range(4)]
    page = case.get("log", limit=2)
    case.commit({"a": b"new"}, "new")
    rest = case.get("log", limit=9, cursor=page["next_cursor"])
    assert [item["oid"] for item in page["items"] + rest["items"]] == oids[::-1]


def test_history_before_the_first_commit(here: Host) -> None:
    case = here.init("nothing yet")
    assert case.get("log") == {"items": [], "next_cursor": None}
    for route in ("branches", "tags", "stash", "remotes", "conflicts"):
        assert case.get(route)["items"] == []
    assert case.get("diff")["files"] == case.get("diff", target="index")["files"] == []
    assert case.refused("GET", "show")["code"] == "ref_not_found"
    assert case.refused("GET", "blob", path="nothing yet/a")["status"] == 404
    assert case.get("commit/draft")["recent"] == []
