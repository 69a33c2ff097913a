"""A text with a password in it, wherever a client may put one: it comes back in no answer, and stays in nothing that is kept."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from fastapi.routing import APIRoute
from websockets.sync.client import connect

from support.version_control import BASE, Case, Host, as_query, host
from workspace_runtime.version_control.routes import changing, reading, remote

SECRET = "s3cr3t"
ADDRESSES = [
    f"http://u:{SECRET}@127.0.0.1:1/x",
    f"http://u:{SECRET}/more@127.0.0.1:1/x",
    f"https://{SECRET}@127.0.0.1:1",
    f"u:{SECRET}@127.0.0.1:x",
    f"ext::http://u:{SECRET}@127.0.0.1:1/x",
    f"-http://u:{SECRET}@127.0.0.1:1/x",
    f"main..http://u:{SECRET}@127.0.0.1:1/x",
]
# What the other fields of a body must be, for this one to be looked at.
BESIDE: dict[str, dict[str, Any]] = {
    "start_point": {"branch": "n", "name": "n", "worktree": "tree", "create": True},
    "onto": {},
    "use": {"paths": ["a.txt"]},
    "new_name": {"name": "main"},
    "message": {},
}
ROUTES = [route for part in (reading, changing, remote) for route in part.router.routes if isinstance(route, APIRoute)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("secrets"), "--access-log") as made:
        yield made


@pytest.fixture(scope="module")
def case(here: Host) -> Case:
    made = here.init("it")
    made.commit({"a.txt": b"a\n"}, "first")
    made.git("remote", "add", "origin", "http://127.0.0.1:1/x")
    return made


def fields_of(case: Case, route: APIRoute) -> Iterator[tuple[str, str]]:
    """Where a request of this route takes text: the place (`body`, `query`, `path`) and the name."""
    documents = case.host.client.get("/openapi.json").json()
    for method in route.methods or ():
        found = documents["paths"]["/api/v1/workspaces/{id}/version-control" + route.path.replace(":path", "")]
        operation = found[method.lower()]
        for parameter in operation.get("parameters", []):
            if parameter["name"] != "id":
                yield parameter["in"], parameter["name"]
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        if body:
            named = next((one["$ref"] for one in [body, *body.get("anyOf", [])] if "$ref" in one), None)
            assert named is not None
            for name in documents["components"]["schemas"][named.rpartition("/")[2]]["properties"]:
                yield "body", name


def asked(case: Case, route: APIRoute, place: str, name: str, address: str) -> None:
    """One request with an address at this place; what it says of it."""
    method = min(route.methods or ())
    path = route.path
    for parameter in ("name:path", "stash", "operation_id"):
        given = address if (place, name) == ("path", parameter.partition(":")[0]) else "x"
        path = path.replace(f"{{{parameter}}}", as_query({"x": given}).removeprefix("?x="))
    path = path.replace("{kind}", "merge").replace("{step}", "abort")
    query = {"path": case.path, **({name: address} if place == "query" else {})}
    if route.path in ("/init", "/clone") or route.path.startswith("/operations"):
        del query["path"]
    if route.path == "/clone":
        query["wait"] = "true"
    body: dict[str, Any] | None = None
    if place == "body":
        value: Any = [address] if name.startswith("paths") else address
        body = {**BESIDE.get(name, {}), name: {"name": address, "email": "x"} if name == "author" else value}
        if name == "hunks":
            body = {"hunks": [{"path": address, "ids": ["x"]}]}
    elif method in ("POST", "PATCH"):
        body = {"name": "n", "url": "/n"} if route.path == "/remotes" else {"url": "/n"} if method == "PATCH" else {}
    answer = case.host.client.request(method, BASE + path + as_query(query), json=body)
    assert SECRET not in answer.text, (method, path, place, name)
    assert SECRET not in str(answer.headers), (method, path, place, name)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{min(route.methods)} {route.path}")
def test_no_answer_has_it(case: Case, route: APIRoute) -> None:
    for place, name in fields_of(case, route):
        # what a client asks to be written into the repository is there to be read again, and a token is never looked at here
        if place == "body" and name in ("message", "author", "token"):
            continue
        for address in ADDRESSES:
            # what begins otherwise is a good name for a file
            if "://" in address or not name.startswith(("path", "worktree", "hunks")):
                asked(case, route, place, name, address)


def test_nothing_that_is_kept_or_told_has_it(here: Host, case: Case) -> None:
    """Operations, live events, the state folder, and the server's own words."""
    url = here.server.url.replace("http", "ws", 1) + "/api/v1/ws?topics=git"
    with connect(url, proxy=None) as socket:
        for address in ADDRESSES:
            case.ask("POST", "push", {"remote": address})
            case.ask("POST", "pull", {"remote": address, "branch": address})
            case.ask("POST", "fetch", {"remote": address})
            if address.count(":") > 2:  # a user alone is taken: most often it is a name
                case.ask("POST", "remotes", {"name": "x", "url": address})
            here.ask("POST", "clone", {"url": address})
            case.ask("POST", "checkout", {"branch": address})
            if "://" in address:
                case.host.client.delete(f"{BASE}/remotes/{address}")
        case.ask("POST", "branches", {"name": "the-last-one"})
        heard = ""
        while '"create_branch"' not in heard or '"succeeded"' not in heard:
            heard = str(socket.recv(timeout=20))
            assert SECRET not in heard
    assert SECRET not in here.ask("GET", "operations", limit=1000).body.decode()
    kept = [path for path in here.server.state.rglob("*") if path.is_file()]
    assert any(path.parent.name == "operations" for path in kept)
    assert [path for path in kept if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in (case.folder / ".git/config").read_text()
    said = [line for line in here.server.output if SECRET in line and f"/u:{SECRET}@" not in line]
    assert said == []  # but for paths that might be those of files


def asked_plainly(case: Case, route: str, body: dict[str, Any]) -> str:
    """The answer as text, whatever its status."""
    return case.host.client.post(f"{BASE}/{route}{as_query({'path': case.path})}", json=body).text


def test_what_the_configuration_has_is_told_without_it(case: Case) -> None:
    """A repository's own configuration may have addresses with passwords anywhere."""
    made = case.host.fresh()
    made.commit({"a.txt": b"a\n"}, "first")
    address = f"http://u:{SECRET}@127.0.0.1:1/x"
    made.git("remote", "add", "origin", address)
    made.git("remote", "add", "other", f"u:{SECRET}@127.0.0.1:x")
    made.git("remote", "add", "asked", f"http://127.0.0.1:1/x?private_token={SECRET}")
    made.git("config", "remote.pushed.url", "/nowhere")
    made.git("config", "remote.pushed.pushurl", address)
    made.git("config", f"remote.{address}.url", "/nowhere")
    made.git("config", f"url.{address}.insteadOf", "http://rewritten/")
    made.git("config", f"http.{address}.proxy", "http://127.0.0.1:1")
    for body in ({"remote": "origin"}, {"remote": "origin", "token": "t"}, {"remote": "gone"}, {"all": True}, {}):
        assert SECRET not in asked_plainly(made, "fetch", body)
    for route in ("remotes", "branches", "status", "operations"):
        assert SECRET not in made.ask("GET", route, path=None if route == "operations" else made.path).body.decode()
    made.git("config", "branch.main.remote", address)
    made.git("config", "branch.main.merge", "refs/heads/main")
    for route, body in (
        ("push", {}),
        ("pull", {}),
        ("pull", {"mode": "rebase"}),
        ("fetch", {}),
        ("push", {"set_upstream": True}),
    ):
        assert SECRET not in asked_plainly(made, route, body)
    for route in ("branches", "status"):
        assert SECRET not in made.ask("GET", route).body.decode()


@pytest.mark.parametrize("rest", [f"?auth={SECRET}", f"#token={SECRET}", f"?x={SECRET}/y#{SECRET}"])
def test_what_follows_the_path_of_an_address_is_told_nowhere(here: Host, rest: str) -> None:
    """In no answer, event or file of the state: it may be a secret under any name."""
    made = here.fresh()
    made.commit({"a.txt": b"a\n"}, "first")
    address = f"http://127.0.0.1:1/x{rest}"
    made.git("remote", "add", "origin", address)
    made.git("config", "remote.origin.pushurl", address)
    made.git("config", f"http.{address}.proxy", "http://127.0.0.1:1")
    with connect(here.server.url.replace("http", "ws", 1) + "/api/v1/ws?topics=git", proxy=None) as socket:
        (told,) = made.get("remotes")["items"]
        assert told["url"].startswith("http://127.0.0.1:1/x") and told["url"] == told["push_url"]
        said = orjson.dumps(told).decode()
        for route, body in (
            ("fetch", {}),
            ("fetch", {"token": "t"}),
            ("pull", {"branch": "main"}),
            ("push", {"branch": "main"}),
        ):
            said += asked_plainly(made, route, {"remote": "origin", **body})
        made.git("config", "branch.main.remote", address)
        made.git("config", "branch.main.merge", "refs/heads/main")
        for route in ("fetch", "pull", "push"):
            said += asked_plainly(made, route, {})
        said += here.client.post(f"{BASE}/clone?wait=true", json={"url": address}).text
        for route in ("remotes", "branches", "status"):
            said += made.ask("GET", route).body.decode()
        said += here.ask("GET", "operations", limit=1000).body.decode()
        made.post("branches", 201, name="the-last-one")
        heard = ""
        while '"create_branch"' not in heard or '"succeeded"' not in heard:
            heard = str(socket.recv(timeout=20))
            said += heard
    assert "remote_unreachable" in said
    assert SECRET not in said
    kept = [path for path in here.server.state.rglob("*") if path.is_file()]
    assert [path for path in kept if SECRET.encode() in path.read_bytes()] == []
