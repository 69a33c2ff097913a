"""Requests that are wrong for any door of version control: each has a clear refusal, and changes nothing."""

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from fastapi.routing import APIRoute

from support.asking import ask
from support.version_control import BASE, Case, Host, host
from workspace_runtime.version_control.routes import changing, reading, remote

ROUTES = sorted(
    (method, route.path)
    for part in (reading, changing, remote)
    for route in part.router.routes
    if isinstance(route, APIRoute)
    for method in route.methods or ()
)
FILLED = {"name:path": "x", "stash": "0", "kind": "merge", "step": "abort", "operation_id": "op_x"}
WITHOUT_PATH = ("/operations", "/operations/{operation_id}", "/init", "/clone")
BODIES = [
    b"{",
    b"\xff",
    b"[" * 9999,
    b"[]",
    b'"x"',
    b"7",
    b'{"no such field": 1}',
    b'{"message": "\\ud800", "branch": "\\ud800"}',
]
JSON = {"Content-Type": "application/json"}
WRITES = [path for method, path in ROUTES if method == "POST"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("requests")) as made:
        yield made


@pytest.fixture(scope="module")
def case(here: Host) -> Case:
    made = here.init("it")
    made.commit({"a.txt": b"a\n"}, "first")
    return made


def filled(path: str) -> str:
    for name, value in FILLED.items():
        path = path.replace(f"{{{name}}}", value)
    assert "{" not in path
    return path


def is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def state(case: Case) -> tuple[str, ...]:
    """All that a write could change."""
    return (
        case.git("for-each-ref"),
        case.git("ls-files", "-s"),
        case.git("stash", "list"),
        case.git("config", "--local", "--list"),
    )


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_another_workspace(here: Host, method: str, path: str) -> None:
    target = BASE.replace("/default/", "/other/") + filled(path)
    answer = ask(here.server.url, method, target, b"{}", JSON)
    assert (answer.status, answer.code) == (404, "workspace_not_found")


@pytest.mark.parametrize("path", [path for path in WRITES if path != "/{kind}/{step}"])
def test_bodies_that_are_none(here: Host, case: Case, path: str) -> None:
    before = state(case)
    for body in BODIES:
        answer = ask(here.server.url, "POST", f"{BASE}{filled(path)}?path=it", body, JSON)
        refused = (answer.status, answer.code)
        assert refused == ((422, "validation_failed") if is_json(body) else (400, "malformed_json")), body
    assert state(case) == before


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[1] not in WITHOUT_PATH])
def test_paths_that_are_none(here: Host, case: Case, method: str, path: str) -> None:
    before = state(case)
    body = b'{"all": true}' if path in ("/stage", "/unstage", "/discard") else b""
    for where in ("../x", "/etc", "a//b", "a/../b", "a\0b"):
        answer = ask(here.server.url, method, f"{BASE}{filled(path)}?path={quote(where)}", body, JSON)
        assert answer.status in (400, 422) and answer.code in ("path_invalid", "validation_failed")
        assert answer.code == "path_invalid" or not (method == "GET" or body)
    assert state(case) == before


@pytest.mark.parametrize(
    ("method", "route", "status"),
    [
        ("GET", "nothing", 404), ("POST", "nothing", 404), ("POST", "log", 405), ("PUT", "status", 405), ("DELETE", "commit", 405),
        ("GET", "operations/op_x", 404), ("DELETE", "operations/op_x", 404), ("PATCH", "branches/main", 405), ("GET", "status/", 404),
    ],
)  # fmt: skip
def test_no_such_door(case: Case, method: str, route: str, status: int) -> None:
    given = case.ask(method, route)
    assert given.status == status and given.code
    if status == 405:
        assert given.headers["allow"]
