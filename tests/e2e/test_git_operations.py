"""Long work as operations: watched, waited for, cancelled, kept over restarts, cut by a crash; and the turns that writers take."""

import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from support.git_bench import BASE, Bench, Gate, Json, Listener, done, fresh_name, git_server, refused
from support.git_remotes import HttpRemote, http_remote
from support.processes import marked
from support.server import ServerProcess, eventually

SOON_S = 10.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with git_server(tmp_path_factory.mktemp("operations")) as process:
        yield process


@pytest.fixture
def bench(server: ServerProcess) -> Iterator[Bench]:
    yield from benches(server)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that a test may end."""
    with git_server(tmp_path) as process:
        yield process


@pytest.fixture
def frail(own: ServerProcess) -> Iterator[Bench]:
    yield from benches(own)


def benches(server: ServerProcess) -> Iterator[Bench]:
    made = Bench(server, fresh_name(), files={"big": os.urandom(400_000)})
    yield made
    made.close()


@pytest.fixture
def slow(request: pytest.FixtureRequest) -> Iterator[HttpRemote]:
    """A remote that stops in the middle of a pack."""
    bench = request.getfixturevalue("frail" if "frail" in request.fixturenames else "bench")
    with http_remote(bench.served, slow=True) as remote:
        yield remote


def begun(bench: Bench, slow: HttpRemote, path: str = "slow-clone") -> Json:
    """A clone that is held in the middle."""
    operation = done(bench.post("clone", {"url": f"{slow.url}/{bench.name}.git", "path": path}), 202)
    assert slow.held.wait(30)
    return operation


def rubbish(server: ServerProcess) -> list[str]:
    return [
        name for name in os.listdir(server.workspace) if name.startswith(".workspace-runtime") or name == "slow-clone"
    ]


# --- watched --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["fetch", "pull", "push"])
def test_not_waited_for(bench: Bench, action: str) -> None:
    if action == "push":
        bench.commit({"b": b"b"})
    else:
        bench.pushed_by_another({"b": b"b"})
    answer = bench.post(action, {}, wait="false")
    view = done(answer, 202)
    assert (view["kind"], view["root"], view["result"], view["error"]) == (action, bench.name, None, None)
    assert answer.headers["location"] == f"{BASE}/operations/{view['id']}"
    with bench.server.client() as client:
        eventually(lambda: client.get(answer.headers["location"]).json()["ended_at"])
        ended = client.get(answer.headers["location"]).json()
        assert client.head(answer.headers["location"]).status_code == 200
    assert (ended["status"], ended["error"], ended["progress"]) == ("succeeded", None, None)
    assert ended["created_at"] <= ended["started_at"] <= ended["ended_at"]
    assert ended["result"]["refs" if action != "pull" else "head"]
    assert bench.tip() == bench.tip(bench.copy, "refs/remotes/origin/main")


def test_a_failure_is_kept_with_its_code(bench: Bench) -> None:
    bench.git("remote", "set-url", "origin", "/nowhere/at/all.git")
    ended = bench.ended(done(bench.post("fetch", {}, wait="false"), 202)["id"])
    assert (ended["status"], ended["result"]) == ("failed", None)
    assert (ended["error"]["code"], ended["error"]["status"]) == ("remote_not_found", 404)
    assert ended["error"]["detail"]


def test_what_is_wrong_from_the_start_is_refused_at_once(bench: Bench) -> None:
    refused(bench.post("fetch", {}, path="nowhere/../x", wait="false"), 400, "path_invalid")
    refused(bench.post("fetch", {}, path="", wait="false"), 404, "repository_not_found")
    assert bench.post("fetch", {"wait": False}).status_code == 422
    assert bench.post("fetch", {}, wait="perhaps").status_code == 422


def test_it_is_told_how_far_it_is(bench: Bench, slow: HttpRemote) -> None:
    operation = begun(bench, slow)
    with Listener(bench.server, f"{BASE}/operations/{operation['id']}") as stream, \
         Listener(bench.server, f"{BASE}/operations/{operation['id']}") as second:  # fmt: skip
        progress = eventually(lambda: bench.operation(operation["id"])["progress"])
        assert set(progress) == {"phase", "percent", "done", "total", "bytes", "rate"}
        eventually(lambda: any(event["progress"] for event in stream.events))
        slow.go_on.set()
        events = stream.to_the_end()
        assert second.to_the_end()[-1] == events[-1]
    assert len(events) >= 2
    assert {event["id"] for event in events} == {operation["id"]}
    assert events[0]["status"] == "running"
    assert [event["status"] for event in events].count("succeeded") == 1
    assert events[-1]["status"] == "succeeded"
    assert events[-1] == bench.operation(operation["id"])
    with Listener(bench.server, f"{BASE}/operations/{operation['id']}") as late:
        assert late.to_the_end() == [events[-1]]
    with bench.server.client() as client:
        client.delete("/api/v1/files/slow-clone", params={"recursive": "true"}).raise_for_status()


def test_operations_that_are_not_there(bench: Bench) -> None:
    for name in ("op_0", "x", "op_" + "0" * 24, "%00", "-x"):
        for method in ("GET", "DELETE"):
            refused(bench.ask(method, f"operations/{name}"), 404, "operation_not_found")


def test_a_client_that_goes_away_does_not_end_it(bench: Bench) -> None:
    gate = Gate(bench.server.folder, f"{bench.name}-gate")
    bench.hook("pre-push", gate.script)
    new = bench.commit({"b": b"b"})
    with bench.server.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{BASE}/push", params={"path": bench.name}, timeout=0.5)
    eventually(gate.here.exists)
    gate.open()
    eventually(lambda: bench.tip() == new)


# --- cancelled ------------------------------------------------------------------------------------------------------------------


def test_a_clone_is_cancelled_in_the_middle(bench: Bench, slow: HttpRemote) -> None:
    operation = begun(bench, slow)
    assert rubbish(bench.server)
    assert marked(slow.url)
    began = time.monotonic()
    answer = done(bench.ask("DELETE", f"operations/{operation['id']}"))
    assert time.monotonic() - began < SOON_S
    assert (answer["status"], answer["error"]["code"]) == ("cancelled", "operation_cancelled")
    assert rubbish(bench.server) == []
    assert marked(slow.url) == []
    assert done(bench.ask("DELETE", f"operations/{operation['id']}")) == answer
    # and the place is free
    slow.slow = False
    body = {"url": f"{slow.url}/{bench.name}.git", "path": "slow-clone"}
    done(bench.post("clone", body, wait="true"), 201)
    with bench.server.client() as client:
        client.delete("/api/v1/files/slow-clone", params={"recursive": "true"}).raise_for_status()


@pytest.mark.parametrize("action", ["fetch", "pull"])
def test_a_fetch_is_cancelled_in_the_middle(bench: Bench, slow: HttpRemote, action: str) -> None:
    bench.pushed_by_another({"more": os.urandom(400_000)})
    bench.git("remote", "set-url", "origin", f"{slow.url}/{bench.name}.git")
    before = bench.git("for-each-ref")
    operation = done(bench.post(action, {}, wait="false"), 202)
    assert slow.held.wait(30)
    assert done(bench.ask("DELETE", f"operations/{operation['id']}"))["status"] == "cancelled"
    assert marked(slow.url) == []
    assert bench.git("for-each-ref") == before
    assert [path.name for path in (bench.copy / ".git").rglob("*.lock")] == []
    bench.git("prune", "--expire=now")  # an object that git was just writing may be left, and is git's own to remove
    assert [path.name for path in (bench.copy / ".git" / "objects").rglob("tmp_*")] == []
    slow.slow = False
    done(bench.post(action))


def test_one_that_waits_for_its_turn_is_cancelled(bench: Bench) -> None:
    gate = Gate(bench.server.folder, f"{bench.name}-gate")
    bench.hook("pre-push", gate.script)
    bench.commit({"b": b"b"})
    first = done(bench.post("push", {}, wait="false"), 202)
    eventually(gate.here.exists)
    second = done(bench.post("fetch", {}, wait="false"), 202)
    assert bench.operation(second["id"])["status"] == "queued"
    answer = done(bench.ask("DELETE", f"operations/{second['id']}"))
    assert (answer["status"], answer["started_at"]) == ("cancelled", None)
    assert bench.operation(first["id"])["status"] == "running"
    gate.open()
    assert bench.ended(first["id"])["status"] == "succeeded"


def test_one_that_is_waited_for_is_cancelled_by_another_client(bench: Bench, slow: HttpRemote) -> None:
    with ThreadPoolExecutor(1) as pool:
        body = {"url": f"{slow.url}/{bench.name}.git", "path": "slow-clone"}
        waiting = pool.submit(bench.post, "clone", body, wait="true")
        assert slow.held.wait(30)
        with bench.server.client() as client:
            item = next(one for one in client.get(f"{BASE}/operations").json()["items"] if one["status"] == "running")
            client.delete(f"{BASE}/operations/{item['id']}").raise_for_status()
        refused(waiting.result(30), 409, "operation_cancelled")
    assert rubbish(bench.server) == []


# --- turns ----------------------------------------------------------------------------------------------------------------------


def test_writers_take_turns_in_the_order_they_came(bench: Bench) -> None:
    gate = Gate(bench.server.folder, f"{bench.name}-gate")
    bench.hook("pre-push", gate.script)
    bench.commit({"b": b"b"})
    first = done(bench.post("push", {}, wait="false"), 202)
    eventually(gate.here.exists)
    waiting = [done(bench.post("fetch", {}, wait="false"), 202)["id"] for _ in range(10)]
    # readers do not wait
    assert done(bench.get("status"))["head"]["branch"] == "main"
    assert done(bench.get("log"))["items"]
    assert {bench.operation(id)["status"] for id in waiting} == {"queued"}
    gate.open()
    ended = [bench.ended(id) for id in [first["id"], *waiting]]
    assert {one["status"] for one in ended} == {"succeeded"}
    for before, after in itertools.pairwise(ended):
        assert before["ended_at"] <= after["started_at"]


def test_another_repository_does_not_wait(bench: Bench, slow: HttpRemote) -> None:
    bench.pushed_by_another({"more": os.urandom(400_000)})
    bench.git("remote", "set-url", "origin", f"{slow.url}/{bench.name}.git")
    operation = done(bench.post("fetch", {}, wait="false"), 202)
    assert slow.held.wait(30)
    done(bench.post("init", {"path": f"{bench.name}-other"}), 201)
    (bench.server.workspace / f"{bench.name}-other" / "x").write_bytes(b"x")
    done(bench.post("stage", {"paths": ["x"]}, path=f"{bench.name}-other"))
    assert bench.operation(operation["id"])["status"] == "running"
    slow.go_on.set()
    assert bench.ended(operation["id"])["status"] == "succeeded"


def test_too_many_that_wait(bench: Bench) -> None:
    gate = Gate(bench.server.folder, f"{bench.name}-gate")
    bench.hook("pre-push", gate.script)
    bench.commit({"b": b"b"})
    first = done(bench.post("push", {}, wait="false"), 202)
    eventually(gate.here.exists)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: bench.post("fetch", {}, wait="false"), range(40)))
    assert sorted({answer.status_code for answer in answers}) == [202, 409]
    accepted = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    assert len(accepted) == 32
    problem = refused(next(answer for answer in answers if answer.status_code == 409), 409, "repository_busy")
    assert problem["operation_id"] == first["id"]
    refused(bench.post("stage", {"all": True}), 409, "repository_busy")
    gate.open()
    assert {bench.ended(id)["status"] for id in [first["id"], *accepted]} == {"succeeded"}
    done(bench.post("fetch"))


def test_many_writers_at_once_lose_nothing(bench: Bench) -> None:
    def commit(number: int) -> int:
        (bench.copy / f"f{number}").write_bytes(b"%d" % number)
        with bench.server.client() as client:
            body = {"message": f"number {number}", "paths": [f"f{number}"]}
            staged = client.post(f"{BASE}/stage", params={"path": bench.name}, json={"paths": [f"f{number}"]})
            made = client.post(f"{BASE}/commit", params={"path": bench.name}, json=body)
        return max(staged.status_code, made.status_code)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(commit, range(16))) == {200}
    assert sorted(bench.git("log", "--format=%s", "-16").split("\n")) == sorted(f"number {n}" for n in range(16))
    assert bench.git("status", "--porcelain") == ""


# --- the server ends --------------------------------------------------------------------------------------------------------------


def test_what_came_of_it_is_kept_over_a_restart(frail: Bench, own: ServerProcess) -> None:
    frail.pushed_by_another({"b": b"b"})
    fetched = frail.ended(done(frail.post("fetch", {}, wait="false"), 202)["id"])
    refused(frail.post("push", {"remote": "nobody"}), 404, "remote_not_configured")
    failed = done(frail.get("operations"))["items"][0]
    assert own.stop() == 0
    own.start()
    frail.reconnect()
    assert frail.operation(fetched["id"]) == fetched
    assert frail.operation(failed["id"]) == failed
    assert [one["id"] for one in done(frail.get("operations"))["items"]] == [failed["id"], fetched["id"]]
    assert done(frail.ask("DELETE", f"operations/{fetched['id']}")) == fetched
    with Listener(own, f"{BASE}/operations/{fetched['id']}") as late:
        assert late.to_the_end() == [fetched]


def test_the_server_is_killed_in_the_middle_of_a_clone(frail: Bench, own: ServerProcess, slow: HttpRemote) -> None:
    operation = begun(frail, slow)
    assert rubbish(own)
    own.kill_server()
    eventually(lambda: not marked(slow.url))
    own.start()
    assert rubbish(own) == []
    frail.reconnect()
    ended = frail.operation(operation["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "operation_cut")
    assert ended["ended_at"]
    slow.slow = False
    done(frail.post("clone", {"url": f"{slow.url}/{frail.name}.git", "path": "slow-clone"}, wait="true"), 201)


def test_the_server_is_killed_in_the_middle_of_a_fetch(frail: Bench, own: ServerProcess, slow: HttpRemote) -> None:
    frail.pushed_by_another({"more": os.urandom(400_000)})
    frail.git("remote", "set-url", "origin", f"{slow.url}/{frail.name}.git")
    operation = done(frail.post("fetch", {}, wait="false"), 202)
    assert slow.held.wait(30)
    own.kill_server()
    own.start()
    frail.reconnect()
    assert frail.operation(operation["id"])["error"]["code"] == "operation_cut"
    slow.slow = False
    done(frail.post("fetch"))
    assert frail.git("fsck", "--no-dangling") == ""


def test_the_end_of_the_server_is_quick_and_leaves_nothing(frail: Bench, own: ServerProcess, slow: HttpRemote) -> None:
    operation = begun(frail, slow)
    with ThreadPoolExecutor(1) as pool, own.client() as client:
        waiting = pool.submit(client.post, f"{BASE}/fetch", params={"path": frail.name})
        began = time.monotonic()
        assert own.stop() == 0
        assert time.monotonic() - began < SOON_S
        assert waiting.result(30).status_code in (200, 503)
    assert marked(slow.url) == []
    assert rubbish(own) == []
    own.start()
    frail.reconnect()
    ended = frail.operation(operation["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "operation_cut")


def test_rubbish_among_the_kept_ones_does_not_stop_the_server(frail: Bench, own: ServerProcess) -> None:
    kept = done(frail.post("fetch", {}, wait="false"), 202)["id"]
    frail.ended(kept)
    assert own.stop() == 0
    folder = own.state / "operations"
    precious = own.workspace / "precious"
    precious.mkdir()
    whole = (folder / f"{kept}.json").read_bytes()
    (folder / "op_000000000000000000000001.json").write_bytes(whole[:40])
    (folder / "op_000000000000000000000002.json").write_bytes(b"[]")
    (folder / "op_000000000000000000000003.json").write_bytes(b"\xff")
    (folder / "half.new").write_bytes(whole)
    evil = whole.replace(kept.encode(), b"op_000000000000000000000004").replace(b"succeeded", b"running")
    evil = evil.replace(b'"leftovers":[]', b'"leftovers":["%b"]' % os.fsencode(precious))
    (folder / "op_000000000000000000000004.json").write_bytes(evil)
    own.start()
    frail.reconnect()
    found = {one["id"]: one["status"] for one in done(frail.get("operations"))["items"]}
    assert found == {kept: "succeeded", "op_000000000000000000000004": "failed"}
    assert precious.exists(), "only what has a name of ours is removed"
