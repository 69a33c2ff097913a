"""Fetch, push, pull and clone over HTTP with a real `git http-backend` that asks for a password: right, wrong, none, a helper's."""

import base64
import os
import time
from collections.abc import Iterator

import pytest

from support.git_bench import Bench, Json, Trap, done, fresh_name, git_server, refused
from support.git_remotes import HttpRemote, http_remote
from support.server import ServerProcess

TOKEN = "tok-9f3a/+='\"$(id)` %20é"
USER = "x-access-token"
# A refusal is no matter of waiting: git has asked twice at most. Wide, for a busy machine.
SOON_S = 10.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with git_server(tmp_path_factory.mktemp("http")) as process:
        yield process


@pytest.fixture
def guarded(server: ServerProcess) -> Iterator[HttpRemote]:
    (server.folder / "remotes").mkdir(exist_ok=True)
    with http_remote(server.folder / "remotes", user=USER, password=TOKEN) as remote:
        yield remote


@pytest.fixture
def bench(server: ServerProcess, guarded: HttpRemote) -> Iterator[Bench]:
    """A clone whose origin is the guarded address."""
    made = Bench(server, fresh_name())
    made.git("remote", "set-url", "origin", f"{guarded.url}/{made.name}.git")
    yield made
    made.close()


@pytest.fixture
def helper(server: ServerProcess, bench: Bench) -> Iterator[Trap]:
    """The user's own credential helper, which knows the right password."""
    answer = f"username={USER}\npassword={TOKEN}"
    trap = Trap(server.folder, f"helper-{bench.name}", f"cat >/dev/null; cat <<'END'\n{answer}\nEND")
    bench.sandbox.git(server.folder, "config", "--global", "credential.helper", str(trap.path))
    yield trap
    bench.sandbox.git(server.folder, "config", "--global", "--unset", "credential.helper")


def right(user: str = USER) -> str:
    return "Basic " + base64.b64encode(f"{user}:{TOKEN}".encode()).decode()


ACTIONS = ("fetch", "pull", "push")


def prepared(bench: Bench, action: str) -> None:
    """Something for the action to bring over."""
    if action == "push":
        bench.commit({"mine.txt": b"mine\n"})
    else:
        bench.pushed_by_another({"theirs.txt": b"theirs\n"})


def in_step(bench: Bench) -> bool:
    return bench.tip() == bench.tip(bench.copy, "refs/remotes/origin/main") != bench.tip(bench.copy, "HEAD~1")


# --- right, wrong, none -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
def test_the_right_token_is_let_in(bench: Bench, guarded: HttpRemote, action: str) -> None:
    prepared(bench, action)
    done(bench.post(action, {"token": TOKEN}))
    assert in_step(bench)
    assert set(guarded.authorizations) == {right()}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("body", [{"token": "wrong"}, {}], ids=["wrong", "none"])
def test_without_the_right_token_it_is_refused_at_once(
    bench: Bench, guarded: HttpRemote, action: str, body: Json
) -> None:
    prepared(bench, action)
    before = bench.tip()
    began = time.monotonic()
    problem = refused(bench.post(action, body), 403, "remote_auth_failed")
    assert time.monotonic() - began < SOON_S
    assert guarded.requests
    assert len(guarded.authorizations) == len(body)
    assert "wrong" not in problem["output"]
    assert str(bench.server.state) not in problem["output"]
    assert bench.name in problem["output"] or "Username" in problem["output"]
    assert bench.tip() == before
    assert not in_step(bench)


def test_a_clone_with_the_right_token(bench: Bench, guarded: HttpRemote) -> None:
    url = f"{guarded.url}/{bench.name}.git"
    answer = bench.post("clone", {"url": url, "path": f"{bench.name}-2", "token": TOKEN}, wait="true")
    assert done(answer, 201)["path"] == f"{bench.name}-2"
    made = bench.server.workspace / f"{bench.name}-2"
    assert (made / "a.txt").read_bytes() == b"one\n"
    assert bench.sandbox.git(made, "config", "remote.origin.url").decode().strip() == url
    assert bench.sandbox.git(made, "status", "--porcelain", "--branch").decode() == "## main...origin/main\n"


@pytest.mark.parametrize("token", ["wrong", None])
def test_a_clone_without_the_right_token_leaves_nothing(bench: Bench, guarded: HttpRemote, token: str | None) -> None:
    body = {"url": f"{guarded.url}/{bench.name}.git", "path": f"{bench.name}-2"} | ({"token": token} if token else {})
    before = sorted(bench.server.workspace.iterdir())
    began = time.monotonic()
    refused(bench.post("clone", body, wait="true"), 403, "remote_auth_failed")
    assert time.monotonic() - began < SOON_S
    assert sorted(bench.server.workspace.iterdir()) == before


def test_a_user_that_the_client_names(bench: Bench, guarded: HttpRemote) -> None:
    guarded.user = "ada@example.org"
    bench.pushed_by_another({"b": b"b"})
    done(bench.post("fetch", {"username": "ada@example.org", "token": TOKEN}))
    assert set(guarded.authorizations) == {right("ada@example.org")}


def test_a_user_in_the_address(bench: Bench, guarded: HttpRemote) -> None:
    guarded.user = "ada"
    bench.git("remote", "set-url", "origin", guarded.url.replace("://", "://ada@") + f"/{bench.name}.git")
    bench.pushed_by_another({"b": b"b"})
    done(bench.post("fetch", {"token": TOKEN}))
    assert guarded.authorizations[-1] == right("ada")


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    "body",
    [
        {"token": "two\nlines"},
        {"token": "nul\0"},
        {"token": ""},
        {"token": "x" * 20_000},
        {"token": TOKEN, "username": "a\nb"},
        {"username": "only"},
    ],
    ids=["lines", "nul", "empty", "long", "user", "no token"],
)
def test_what_is_no_token_is_refused_before_anything_is_sent(
    bench: Bench, guarded: HttpRemote, action: str, body: Json
) -> None:
    problem = refused(bench.post(action, body), 422, "credentials_invalid")
    assert str(body.get("token") or "only") not in problem["detail"]
    assert guarded.requests == []


def test_a_token_that_is_no_text_is_not_repeated_to_the_client(bench: Bench) -> None:
    answer = bench.post("fetch", {"token": {"secret": "deep-secret"}})
    assert answer.status_code == 422
    assert "deep-secret" not in answer.text
    answer = bench.post("clone", {"url": "https://127.0.0.1/x", "token": ["deep-secret"]})
    assert answer.status_code == 422
    assert "deep-secret" not in answer.text


@pytest.mark.parametrize("kind", ["path", "ssh"])
def test_a_token_is_of_no_use_for_another_kind_of_remote(bench: Bench, kind: str) -> None:
    address = str(bench.origin) if kind == "path" else f"ssh://git@127.0.0.1:1/{bench.name}"
    bench.git("remote", "set-url", "origin", address)
    refused(bench.post("fetch", {"token": TOKEN}), 422, "credentials_invalid")
    refused(bench.post("clone", {"url": address, "path": "never", "token": TOKEN}), 422, "credentials_invalid")
    assert not (bench.server.workspace / "never").exists()


# --- the user's own helper ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
def test_the_users_own_helper_is_asked_where_there_is_no_token(
    bench: Bench, guarded: HttpRemote, helper: Trap, action: str
) -> None:
    prepared(bench, action)
    done(bench.post(action))
    assert in_step(bench)
    assert set(guarded.authorizations) == {right()}
    assert " get" in helper.ran


@pytest.mark.parametrize("token", [TOKEN, "wrong"])
def test_the_users_own_helper_neither_helps_nor_learns_where_a_token_is_given(
    bench: Bench, guarded: HttpRemote, helper: Trap, token: str
) -> None:
    prepared(bench, "fetch")
    answer = bench.post("fetch", {"token": token})
    assert answer.status_code == (200 if token == TOKEN else 403), answer.text
    assert helper.ran == ""
    assert len(set(guarded.authorizations)) == 1


def test_a_helper_of_one_host_alone_neither_helps_nor_learns(bench: Bench, guarded: HttpRemote) -> None:
    trap = Trap(bench.server.folder, f"host-helper-{bench.name}", "cat >/dev/null")
    key = f"credential.{guarded.url}.helper"
    bench.sandbox.git(bench.copy, "config", "--global", key, str(trap.path))
    try:
        done(bench.post("fetch", {"token": TOKEN}))
        assert trap.ran == ""
        refused(bench.post("fetch"), 403, "remote_auth_failed")
        assert " get" in trap.ran
    finally:
        bench.sandbox.git(bench.copy, "config", "--global", "--unset", key)


def test_the_users_own_helper_is_told_of_a_wrong_password(bench: Bench, guarded: HttpRemote, helper: Trap) -> None:
    guarded.password = "another"
    refused(bench.post("fetch"), 403, "remote_auth_failed")
    assert " erase" in helper.ran


# --- what the remote is, and is not -------------------------------------------------------------------------------------------


def test_a_repository_that_is_not_there(bench: Bench, guarded: HttpRemote) -> None:
    bench.git("remote", "set-url", "origin", f"{guarded.url}/nowhere.git")
    refused(bench.post("fetch", {"token": TOKEN}), 404, "remote_not_found")


def test_a_host_that_is_down(bench: Bench) -> None:
    with http_remote(bench.served) as gone:
        url = gone.url
    bench.git("remote", "set-url", "origin", f"{url}/{bench.name}.git")
    began = time.monotonic()
    for action in ACTIONS:
        refused(bench.post(action), 502, "remote_unreachable")
    assert time.monotonic() - began < 3 * SOON_S


def test_what_is_no_git_server(bench: Bench) -> None:
    """Our own server, for one."""
    bench.git("remote", "set-url", "origin", f"{bench.server.url}/api/v1")
    answer = bench.post("fetch")
    assert answer.status_code in (404, 502), answer.text


def test_a_remote_that_breaks_off(bench: Bench) -> None:
    bench.pushed_by_another({"big": os.urandom(500_000)})
    with http_remote(bench.served, slow=True) as remote:
        bench.git("remote", "set-url", "origin", f"{remote.url}/{bench.name}.git")
        begun = done(bench.post("fetch", wait="false"), 202)
        assert remote.held.wait(30)
    operation = bench.ended(begun["id"])
    assert operation["status"] == "failed"
    assert operation["error"]["code"] == "remote_unreachable"
    assert bench.git("fsck", "--no-dangling") == ""
    assert not list((bench.copy / ".git" / "objects" / "pack").glob("tmp_*"))
    assert bench.tip(bench.copy, "refs/remotes/origin/main") == bench.head()
