"""Lists page, and no answer or frame is without a bound."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from websockets.sync.client import connect

from support.version_control import Case, Host, host
from workspace_runtime.version_control import cursors, objects, operations
from workspace_runtime.version_control.routes import changing, reading, remote

MANY = 7


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("pages")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    made = here.fresh()
    made.commit({"a.txt": b"a\n"}, "first")
    return made


def stashes(case: Case) -> None:
    for number in range(MANY):
        case.write("a.txt", f"{number}\n")
        case.git("stash", "push", "-q", "-m", str(number))


def conflicts(case: Case) -> None:
    names: dict[str | bytes, bytes] = {f"f{number}": b"base\n" for number in range(MANY)}
    case.commit(names, "base")
    case.git("switch", "-q", "-c", "side")
    case.commit(dict.fromkeys(names, b"theirs\n"), "theirs")
    case.git("switch", "-q", "main")
    case.commit(dict.fromkeys(names, b"ours\n"), "ours")
    assert case.attempt("merge", "side") == 1


def worktrees(case: Case) -> None:
    for number in range(MANY - 1):
        case.git("worktree", "add", "-q", "--detach", f"../{case.folder.name}-tree{number}")


def remotes(case: Case) -> None:
    for number in range(MANY):
        case.git("remote", "add", f"r{number}", "/nowhere")


def locks(case: Case) -> None:
    for number in range(MANY):
        case.write(f".git/refs/heads/b{number}.lock", "")


def some_operations(case: Case) -> None:
    for number in range(MANY):
        case.post("branches", 201, name=f"b{number}")


def branches(case: Case) -> None:
    for number in range(MANY - 1):
        case.git("branch", f"b{number}")


def tags(case: Case) -> None:
    for number in range(MANY):
        case.git("tag", f"t{number}")


def log(case: Case) -> None:
    for number in range(MANY - 1):
        case.commit({"a.txt": b"%d\n" % number}, f"commit {number}")


LISTS: dict[str, Callable[[Case], None]] = {
    "stash": stashes, "conflicts": conflicts, "worktrees": worktrees, "remotes": remotes, "locks": locks, "branches": branches, "tags": tags, "log": log,
    "operations": some_operations,
}  # fmt: skip


def test_every_list_is_here() -> None:
    """What answers `items` has `next_cursor`, and takes `limit` and `cursor`."""
    found = set()
    for route in (*reading.router.routes, *changing.router.routes, *remote.router.routes):
        assert isinstance(route, APIRoute)
        fields = getattr(route.response_model, "model_fields", {})
        if "items" in fields and "GET" in (route.methods or ()):
            found.add(route.path.removeprefix("/"))
            assert "next_cursor" in fields, route.path
            assert {"limit", "cursor"} <= {parameter.name for parameter in route.dependant.query_params}, route.path
    assert found == set(LISTS)


@pytest.mark.parametrize("route", LISTS)
def test_a_list_pages(case: Case, route: str) -> None:
    LISTS[route](case)
    where = {} if route != "operations" else {"path": None}
    whole = case.get(route, limit=1000, **where)
    assert whole["next_cursor"] is None
    if route == "locks":  # by the moment
        for item in whole["items"]:
            del item["age_s"]
    assert len(whole["items"]) >= MANY if route == "operations" else len(whole["items"]) == MANY
    for size in (1, 3, MANY):
        items, cursor = [], None
        while True:
            page = case.get(route, limit=size, cursor=cursor, **where)
            assert 0 < len(page["items"]) <= size
            items += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        for item in items if route == "locks" else []:
            del item["age_s"]
        assert items == whole["items"]
    for limit in (0, 1001, -1):
        assert case.ask("GET", route, limit=limit, **where).code == "validation_failed"
    for cursor in ("x", "AAAA", "", "\u00fc"):
        assert case.ask("GET", route, cursor=cursor, **where).code == "cursor_invalid"


def long_tags(case: Case) -> None:
    for number in range(MANY):
        case.git("tag", "-a", "-F", "-", f"t{number}", input=LONG)


def long_stashes(case: Case) -> None:
    case.write("a.txt", "changed\n")
    oid = case.git("stash", "create")
    case.git("update-ref", "--create-reflog", "refs/stash", oid)
    line = f"{oid} {oid} a <a@example.org> 1700000000 +0000\tOn main: ".encode() + b"m" * 1_000_000 + b"\n"
    (case.folder / ".git/logs/refs/stash").write_bytes(line * MANY)


def long_remotes(case: Case) -> None:
    with (case.folder / ".git/config").open("a") as config:
        for number in range(MANY):
            config.write(f'[remote "r{number}"]\n\turl = /{"u" * 1_000_000}\n')


def long_log(case: Case) -> None:
    for _ in range(MANY - 1):
        case.git("commit", "-q", "--allow-empty", "-F", "-", input=LONG)


LONG = b"subject " + b"s" * 2000 + b"\n\n" + b"b" * 1_000_000


@pytest.mark.parametrize(
    ("route", "fill"), [("tags", long_tags), ("stash", long_stashes), ("remotes", long_remotes), ("log", long_log)]
)
def test_a_page_ends_where_it_has_grown_large(case: Case, route: str, fill: Callable[[Case], None]) -> None:
    """And the next one goes on: nothing is left out, and nothing has to be asked for in another way."""
    fill(case)
    items, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        answer = case.ask("GET", route, limit=1000, cursor=cursor)
        assert len(answer.body) <= cursors.MAX_BYTES + 1_000_000
        pages += 1
        items += answer.json["items"]
        cursor = answer.json["next_cursor"]
    assert pages > 1
    assert len(items) == MANY


def test_a_branch_is_named_by_the_beginning_of_a_long_subject(case: Case) -> None:
    long_log(case)
    (branch,) = case.get("branches")["items"]
    assert branch["subject"] == LONG[:1000].decode()
    assert case.get("log", limit=1)["items"][0]["subject"] == LONG.split(b"\n")[0].decode()


HUGE = "é".encode() * 5_000_000  # 10 MB
MESSAGES = {"one line": HUGE, "body": b"subject\n\n" + HUGE, "just too long": b"subject\n\n" + HUGE[: 1024 * 1024 + 2]}


@pytest.mark.parametrize("kind", MESSAGES)
def test_of_a_huge_message_the_beginning_is_told(case: Case, kind: str) -> None:
    """Of commits, tags and stashes; and it is said."""
    message = MESSAGES[kind]
    case.git("commit", "-q", "--allow-empty", "-F", "-", input=message)
    case.git("tag", "-a", "-F", "-", "annotated", input=message)
    for number in range(3):
        case.git("tag", f"plain{number}")
    case.commit({"a.txt": b"b\n"}, "last")
    case.git("tag", "-a", "-m", "short", "short")
    first = case.get("log", limit=1)
    assert "truncated" not in first["items"][0]
    items = [case.get("log", ref="HEAD~1")["items"][0], case.get("log", cursor=first["next_cursor"])["items"][0]]
    items += [case.get("show", ref="HEAD~1")["commit"], case.get("log", q=case.git("rev-parse", "HEAD~1"))["items"][0]]
    for item in items:
        assert item == {**items[0], **{key: value for key, value in item.items() if key == "tree"}}
        assert item["truncated"] is True
        assert len((item["subject"] + item["body"]).encode()) <= objects.MAX_MESSAGE
        assert message.decode().startswith(f"{item['subject']}\n\n{item['body']}" if item["body"] else item["subject"])
    tags = {tag["name"]: tag for tag in case.get("tags")["items"]}
    assert set(tags) == {"annotated", "plain0", "plain1", "plain2", "short"}
    assert tags["annotated"]["truncated"] is True
    assert message.decode().startswith(tags["annotated"]["message"])
    assert 1_000_000 < len(tags["annotated"]["message"].encode()) <= objects.MAX_MESSAGE
    assert tags["annotated"]["tagger"]["name"] and tags["annotated"]["oid"] == case.git("rev-parse", "HEAD~1")
    assert (tags["short"]["message"], "truncated" in tags["short"]) == ("short", False)
    assert tags["plain0"]["message"] is None and "truncated" not in tags["plain0"]


def test_of_the_whole_history_with_huge_messages_nothing_is_left_out(case: Case) -> None:
    for _ in range(3):
        case.git("commit", "-q", "--allow-empty", "-F", "-", input=HUGE)
    items: list[dict[str, Any]] = []
    cursor = None
    while not items or cursor is not None:
        answer = case.ask("GET", "log", cursor=cursor)
        assert len(answer.body) <= cursors.MAX_BYTES + 1_000_000
        items += answer.json["items"]
        cursor = answer.json["next_cursor"]
    assert [item.get("truncated", False) for item in items] == [True, True, True, False]
    assert [item["oid"] for item in items] == case.git("rev-list", "HEAD").split()


def test_of_a_huge_stash_and_a_huge_name_the_beginning_is_told(case: Case) -> None:
    case.write("a.txt", "changed\n")
    oid = case.git("stash", "create")
    case.git("update-ref", "--create-reflog", "refs/stash", oid)
    line = f"{oid} {oid} a <a@example.org> 1700000000 +0000\tOn main: ".encode() + HUGE + b"\n"
    (case.folder / ".git/logs/refs/stash").write_bytes(line)
    (stash,) = case.get("stash")["items"]
    assert (stash["truncated"], stash["branch"]) == (True, "main")
    assert 1_000_000 < len(stash["message"].encode()) <= objects.MAX_MESSAGE
    raw = case.git("cat-file", "commit", "HEAD").replace("author ", "author " + "n" * 5_000_000, 1)
    huge = case.git("hash-object", "-t", "commit", "-w", "--stdin", input=raw.encode() + b"\n")
    for item in (case.get("show", ref=huge)["commit"], case.get("log", ref=huge)["items"][0]):
        assert item["author"]["name"] == "n" * objects.MAX_NAME
        assert item["subject"] == "first"


def test_a_page_of_stashes_goes_on_where_it_ended(case: Case) -> None:
    """Whatever is put away or dropped before it meanwhile; after one that is gone nobody knows."""
    stashes(case)
    first = case.get("stash", limit=3)
    case.write("a.txt", "new\n")
    case.post("stash", 201, message="new")
    second = case.get("stash", limit=2, cursor=first["next_cursor"])
    assert [item["message"] for item in (*first["items"], *second["items"])] == ["6", "5", "4", "3", "2"]
    case.git("stash", "drop", "-q", "1")
    assert case.get("stash", limit=2, cursor=first["next_cursor"])["items"][0]["message"] == "3"
    assert case.ask("DELETE", f"stash/{first['items'][-1]['oid']}").status == 200
    assert case.ask("GET", "stash", cursor=first["next_cursor"]).code == "cursor_invalid"


def test_a_long_result_is_whole_in_one_place(here: Host, case: Case) -> None:
    """In lists and frames it is left out, and said to be."""
    source = here.fresh()
    source.commit({"a.txt": b"a\n"}, "first")
    oid = source.head()
    lines = "".join(f"create refs/heads/{'long-' * 20}{number} {oid}\n" for number in range(1000))
    source.git("update-ref", "--stdin", input=lines.encode())
    case.git("remote", "add", "origin", str(source.folder))
    url = here.server.url.replace("http", "ws", 1) + "/api/v1/ws?topics=git"
    with connect(url, max_size=512 * 1024, proxy=None) as socket:
        refs = case.post("fetch")["refs"]
        assert len(refs) == 1001
        while True:
            frame = json.loads(socket.recv(timeout=20))
            if frame["type"] == "git_operation" and frame["operation"]["status"] == "succeeded":
                break
    told = frame["operation"]
    assert (told["truncated"], told["result"]) == (True, None)
    listed = next(item for item in here.ask("GET", "operations").json["items"] if item["id"] == told["id"])
    assert listed == told and len(json.dumps(listed)) < operations.MAX_BRIEF
    whole = here.ask("GET", f"operations/{told['id']}").json
    assert (whole["truncated"], whole["result"]["refs"]) == (False, refs)


def test_a_difference_of_many_lines_has_a_bound(case: Case) -> None:
    """Short lines are long as data: beyond a number of them files are told without theirs."""
    for number in range(12):
        case.write(f"f{number}", "x\n" * 19_000)
    case.git("add", "-A")
    told = case.get("diff", target="index")
    assert told["complete"] and len(told["files"]) == 12
    assert [file["additions"] for file in told["files"]] == [19_000] * 12
    lines = [sum(len(hunk["lines"]) for hunk in file["hunks"]) for file in told["files"]]
    most = here_limits(case)["max_diff_lines"]
    assert 0 < sum(lines) <= most < 12 * 19_000
    assert [file["truncated"] for file in told["files"]] == [count == 0 for count in lines]


def here_limits(case: Case) -> dict[str, int]:
    found: dict[str, int] = case.host.client.get("/api/v1").json()["limits"]
    return found
