"""Twelve clients who do the same thing at the same moment, over every route that makes or changes something.

Each is answered as if they had come one after the other: never a fault of the server's, never a lock of git's, nothing twice.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from support.version_control import BASE, Case, Host, as_query, host
from workspace_runtime.version_control.routes import changing, remote

CLIENTS = 12
Answers = list[tuple[int, Any]]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("parallel")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    made = here.fresh()
    made.commit({"a.txt": b"a\n", "b.txt": b"b\n"}, "first")
    made.git("branch", "side")
    return made


def together(case: Case, method: str, route: str, body: dict[str, Any] | None = None, /, **query: Any) -> Answers:
    """The same request by all clients at once: status and JSON of each. None may be a fault, or find git in its own way."""
    start = Barrier(CLIENTS)
    target = f"{BASE}/{route}{as_query({'path': case.path, **query})}"

    def ask(_: int) -> tuple[int, Any]:
        with httpx.Client(base_url=case.host.server.url, timeout=60, trust_env=False) as client:
            client.get("/health")
            start.wait(50)
            answer = client.request(method, target, json=body)
            return answer.status_code, answer.json()

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, range(CLIENTS)))
    for status, told in answers:
        assert status < 500, told
        assert told.get("code") not in ("git_failed", "repository_locked", "repository_busy", "internal_error"), told
    assert case.attempt("fsck") == 0 and case.get("locks")["items"] == []
    return answers


def codes(answers: Answers) -> Counter[Any]:
    """How often which status, and of a refusal which code."""
    return Counter(told.get("code", status) if status >= 400 else status for status, told in answers)


def once(good: int, code: str) -> Counter[Any]:
    return Counter({good: 1, code: CLIENTS - 1})


def changed(case: Case) -> None:
    case.write("a.txt", "changed\n")


def conflicted(case: Case) -> None:
    case.git("switch", "-q", "side")
    case.commit({"a.txt": b"theirs\n"}, "theirs")
    case.git("switch", "-q", "main")
    case.commit({"a.txt": b"ours\n"}, "ours")
    assert case.attempt("merge", "side") == 1


def put_away(case: Case) -> None:
    changed(case)
    case.git("stash", "push", "-q")


def with_a_remote(case: Case) -> None:
    bare = case.host.box.folder / f"{case.folder.name}.git"
    case.git("clone", "-q", "--bare", str(case.folder), str(bare))
    case.git("remote", "add", "origin", str(bare))
    case.git("fetch", "-q")
    case.commit({"a.txt": b"more\n"}, "more")


def staged(case: Case) -> None:
    changed(case)
    case.git("add", "-A")


def settled(case: Case) -> None:
    conflicted(case)
    case.write("a.txt", "settled\n")
    case.git("add", "a.txt")


def locked(case: Case) -> None:
    case.write(".git/refs/heads/left.lock", "")


ALL = Counter({200: CLIENTS})
# Route: what is there before, the request, and what becomes of it.
SCENES: dict[str, tuple[Any, str, str, dict[str, Any] | None, Counter[Any]]] = {
    "/stage": (changed, "POST", "stage", {"paths": ["a.txt"]}, ALL),
    "/unstage": (staged, "POST", "unstage", {"all": True}, ALL),
    "/discard": (changed, "POST", "discard", {"paths": ["a.txt"]}, ALL),
    "/commit": (staged, "POST", "commit", {"message": "one"}, once(200, "nothing_to_commit")),
    "/checkout": (None, "POST", "checkout", {"branch": "new", "create": True}, once(200, "ref_exists")),
    "/branches": (None, "POST", "branches", {"name": "new"}, once(201, "ref_exists")),
    "/branches/rename": (None, "POST", "branches/rename", {"name": "side", "new_name": "new"}, once(200, "ref_not_found")),
    "/branches/{name:path}": (None, "DELETE", "branches/side", None, once(200, "ref_not_found")),
    "/tags": (None, "POST", "tags", {"name": "v", "message": "m"}, once(201, "ref_exists")),
    "/tags/{name:path}": (lambda case: case.git("tag", "v"), "DELETE", "tags/v", None, once(200, "ref_not_found")),
    "/stash": (changed, "POST", "stash", {}, once(201, "nothing_to_stash")),
    "/stash/{stash}/apply": (put_away, "POST", "stash/0/apply", None, once(200, "local_changes_in_way")),
    "/stash/{stash}/pop": (put_away, "POST", "stash/0/pop", None, once(200, "stash_not_found")),
    "/stash/{stash}": (put_away, "DELETE", "stash/0", None, once(200, "stash_not_found")),
    "/merge": (lambda case: case.git("commit", "-q", "--allow-empty", "-m", "x"), "POST", "merge", {"ref": "side"}, ALL),
    "/rebase": (lambda case: case.git("commit", "-q", "--allow-empty", "-m", "x"), "POST", "rebase", {"onto": "side"}, ALL),
    "/conflicts/resolve": (conflicted, "POST", "conflicts/resolve", {"paths": ["a.txt"], "use": "ours"}, once(200, "conflict_not_found")),
    "/{kind}/{step}": (settled, "POST", "merge/continue", None, once(200, "not_under_way")),
    "/worktrees": (None, "POST", "worktrees", {"worktree": "<new>", "branch": "tree", "create": True}, once(201, "ref_exists")),
    "/unlock": (locked, "POST", "unlock", None, ALL),
    "/push": (with_a_remote, "POST", "push", {"remote": "origin", "branch": "main"}, ALL),
    "/pull": (with_a_remote, "POST", "pull", {"remote": "origin", "branch": "main"}, ALL),
    "/fetch": (with_a_remote, "POST", "fetch", {}, ALL),
    "/remotes": (None, "POST", "remotes", {"name": "r", "url": "/nowhere"}, once(201, "remote_exists")),
    "PATCH /remotes/{name:path}": (lambda case: case.git("remote", "add", "r", "/x"), "PATCH", "remotes/r", {"new_name": "s"}, once(200, "remote_not_configured")),
    "/remotes/{name:path}": (lambda case: case.git("remote", "add", "r", "/x"), "DELETE", "remotes/r", None, once(200, "remote_not_configured")),
}  # fmt: skip
# They have tests of their own below; what is cancelled twice is in the tests of operations.
APART = {"/clone", "/init", "DELETE /worktrees", "/operations/{operation_id}"}


def test_every_route_is_here() -> None:
    found = {
        (method, route.path)
        for router in (changing.router, remote.router)
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
        if method != "GET"
    }
    for method, path in found:
        assert path in SCENES or f"{method} {path}" in SCENES or path in APART or f"{method} {path}" in APART, (
            method,
            path,
        )


@pytest.mark.parametrize("route", SCENES)
def test_all_at_once(case: Case, route: str) -> None:
    before, method, path, body, wanted = SCENES[route]
    if before is not None:
        before(case)
    body = {**body, "worktree": f"{case.path}-tree"} if body and "worktree" in body else body
    assert codes(together(case, method, path, body)) == wanted


def test_working_trees_are_removed_once(case: Case) -> None:
    tree = f"{case.path}-tree"
    case.git("worktree", "add", "-q", "--detach", f"../{tree}")
    assert codes(together(case, "DELETE", "worktrees", worktree=tree)) == once(200, "worktree_not_found")
    assert not (case.host.workspace / tree).exists()


@pytest.mark.parametrize("route", ["init", "clone"])
def test_one_makes_a_repository(here: Host, case: Case, route: str) -> None:
    """It is whole, and made once: whoever comes after finds it."""
    name = f"{case.path}-made"
    body: dict[str, Any] = {"path": name} if route == "init" else {"path": name, "url": str(case.folder)}
    answers = together(case, "POST", route, body, path=None, wait="true")
    told = codes(answers)
    assert told == (Counter({201: 1, 200: CLIENTS - 1}) if route == "init" else once(201, "file_exists")), told
    made = here.at(here.workspace / name)
    assert made.status()["head"]["oid"] == (None if route == "init" else case.head())
    assert [path.name for path in here.workspace.iterdir() if path.name.startswith(".workspace-runtime")] == []


def test_each_its_own_and_none_is_lost(here: Host, case: Case) -> None:
    """Twelve who commit a file of their own: twelve commits, one after the other."""
    for number in range(CLIENTS):
        case.write(f"own-{number}", "x\n")
        case.git("add", f"own-{number}")
    start = Barrier(CLIENTS)

    def ask(number: int) -> int:
        start.wait(50)
        body = {"message": f"own {number}", "paths": [f"own-{number}"]}
        with httpx.Client(base_url=here.server.url, timeout=60, trust_env=False) as client:
            return client.post(f"{BASE}/commit{as_query({'path': case.path})}", json=body).status_code

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert list(pool.map(ask, range(CLIENTS))) == [200] * CLIENTS
    assert sorted(case.git("log", "--format=%s", f"-{CLIENTS}").splitlines()) == sorted(
        f"own {n}" for n in range(CLIENTS)
    )
    assert case.git("status", "--porcelain") == ""
