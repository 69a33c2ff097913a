"""A token is for one call and one host: nobody else gets it, and nothing keeps or tells it.

While a call is held in the middle all its processes, files and answers are there to be looked at.
"""

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.git_bench import Bench, Gate, Listener, done, files_with, fresh_name, git_server, refused
from support.git_remotes import HttpRemote, http_remote
from support.processes import marked
from support.server import ServerProcess, eventually, processes_with

TOKEN = "tok-secret-5d2e7c41"
USER = "x-access-token"
BASIC = base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
SECRETS = (TOKEN, BASIC, base64.b64encode(TOKEN.encode()).decode().rstrip("="))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    # what would make git and curl write down everything
    loud = {
        "GIT_TRACE_CURL": "1",
        "GIT_TRACE": "1",
        "GIT_CURL_VERBOSE": "1",
        "GIT_TRACE_REDACT": "0",
        "GIT_TRACE2": "1",
    }
    with git_server(tmp_path_factory.mktemp("tokens"), env=loud) as process:
        (process.folder / "remotes").mkdir()
        yield process


@pytest.fixture
def guarded(server: ServerProcess) -> Iterator[HttpRemote]:
    with http_remote(server.folder / "remotes", user=USER, password=TOKEN) as remote:
        yield remote


@pytest.fixture
def elsewhere(server: ServerProcess) -> Iterator[HttpRemote]:
    """Another host, which would like to have the token."""
    with http_remote(server.folder / "remotes", user=USER, password=TOKEN) as remote:
        yield remote


@pytest.fixture
def bench(server: ServerProcess, guarded: HttpRemote) -> Iterator[Bench]:
    made = Bench(server, fresh_name())
    made.git("remote", "set-url", "origin", f"{guarded.url}/{made.name}.git")
    yield made
    made.close()


def command_lines() -> list[int]:
    """Processes with the secret in their arguments."""
    return [pid for secret in SECRETS for pid in processes_with(secret)]


def kept(server: ServerProcess) -> list[Path]:
    """Files with the secret in all that the server and git write to."""
    folders = (server.state, server.workspace, server.folder / "home")
    return [path for secret in SECRETS for path in files_with(secret, *folders)]


def told(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


# --- nothing keeps or tells it ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc to see command lines in")
@pytest.mark.parametrize("action", ["clone", "fetch", "pull", "push"])
@pytest.mark.parametrize("right", [True, False], ids=["succeeds", "fails"])
def test_the_token_is_nowhere(bench: Bench, guarded: HttpRemote, action: str, right: bool) -> None:
    server = bench.server
    gate = Gate(server.folder, f"{bench.name}-gate")
    body: dict[str, str] = {"token": TOKEN}
    if action == "push":
        bench.commit({"mine": os.urandom(100_000)})
        bench.hook("pre-push", gate.script)
    else:
        bench.pushed_by_another({"theirs": os.urandom(500_000)})
        guarded.slow = True
    if action == "clone":
        body |= {"url": f"{guarded.url}/{bench.name}.git", "path": f"{bench.name}-2"}
    with Listener(server, "/api/v1/events?topics=git") as general:
        begun = bench.post(action, body, wait="false")
        with Listener(server, begun.headers["location"]) as stream:
            eventually(lambda: gate.here.exists() or guarded.held.is_set())
            # in the middle of it
            assert guarded.authorizations
            assert marked(TOKEN), "git does have it, in its environment"
            assert command_lines() == []
            assert kept(server) == []
            listed = bench.get("operations").text
            if not right:
                guarded.password = "changed meanwhile"
            if not right and action != "push":
                bench.ask("DELETE", f"operations/{done(begun, 202)['id']}")
            gate.open()
            guarded.go_on.set()
            ended = stream.to_the_end()[-1]
            assert (ended["status"] == "succeeded") == right, ended
            assert told(listed + begun.text + stream.said + general.said) == []
    # and afterwards
    assert marked(TOKEN) == []
    assert kept(server) == []
    assert told(bench.get("operations").text + bench.get("remotes").text + bench.get("status").text) == []
    assert told("".join(server.output)) == []
    assert [path.name for path in (server.state / "run").iterdir() if path.name.startswith("trace")] == []


def test_a_remote_that_repeats_the_token_is_not_passed_on(bench: Bench, guarded: HttpRemote) -> None:
    """Its hook tells what it was given, in every form that it can think of."""
    bench.hook(
        "pre-receive",
        f"cat >/dev/null; echo 'you are {TOKEN}, {BASIC}, https://ada:{TOKEN}@host/' >&2; exit 1",
        bench.origin,
    )
    bench.commit({"mine": b"mine"})
    answer = bench.post("push", {"token": TOKEN})
    problem = refused(answer, 409, "push_rejected")
    assert "you are" in problem["output"]
    assert told(answer.text + bench.get("operations").text) == []
    assert kept(bench.server) == []


def test_a_password_in_an_address_is_shown_nowhere(bench: Bench, guarded: HttpRemote) -> None:
    """It stands in the user's own configuration: git uses it, and we do not tell it."""
    address = guarded.url.replace("://", f"://{USER}:{TOKEN}@") + f"/{bench.name}.git"
    bench.git("remote", "set-url", "origin", address)
    bench.git("remote", "add", "broken", address.replace(bench.name, "nowhere"))
    said = bench.get("remotes").text
    bench.pushed_by_another({"b": b"b"})
    for action, body in (
        ("fetch", {}),
        ("fetch", {"all": True}),
        ("fetch", {"remote": "broken"}),
        ("pull", {}),
        ("push", {"remote": "broken", "branch": "main"}),
        ("push", {}),
    ):
        said += bench.post(action, body).text
    said += bench.get("operations").text + bench.get("status").text + bench.get("branches").text
    assert "remote_not_found" in said
    assert guarded.url.removeprefix("http://") in said
    assert told(said + "".join(bench.server.output)) == []
    assert [path for secret in SECRETS for path in files_with(secret, bench.server.state)] == []


@pytest.mark.parametrize("what", ["add", "change", "clone"])
def test_a_password_in_a_new_address_is_refused(bench: Bench, guarded: HttpRemote, what: str) -> None:
    url = guarded.url.replace("://", f"://{USER}:{TOKEN}@") + f"/{bench.name}.git"
    before = bench.git("config", "--list", "--local")
    if what == "add":
        answer = bench.post("remotes", {"name": "new", "url": url})
    elif what == "change":
        answer = bench.ask("PATCH", "remotes/origin", {"url": url})
    else:
        answer = bench.post("clone", {"url": url, "path": "never"}, wait="true")
    refused(answer, 422, "remote_url_refused")
    assert told(answer.text + "".join(bench.server.output)) == []
    assert bench.git("config", "--list", "--local") == before
    assert guarded.requests == []


# --- nobody else gets it --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["fetch", "pull", "push"])
def test_a_redirect_to_another_host_gets_nothing(
    bench: Bench, guarded: HttpRemote, elsewhere: HttpRemote, action: str
) -> None:
    guarded.redirect = elsewhere.url
    bench.git("remote", "set-url", "origin", f"{guarded.url}/moved/{bench.name}.git")
    refused(bench.post(action, {"token": TOKEN}), 403, "remote_auth_failed")
    assert elsewhere.requests, "git did follow"
    assert elsewhere.authorizations == []


def test_a_clone_that_is_led_to_another_host_gives_nothing(
    bench: Bench, guarded: HttpRemote, elsewhere: HttpRemote
) -> None:
    guarded.redirect = elsewhere.url
    body = {"url": f"{guarded.url}/moved/{bench.name}.git", "path": "never", "token": TOKEN}
    refused(bench.post("clone", body, wait="true"), 403, "remote_auth_failed")
    assert elsewhere.requests
    assert elsewhere.authorizations == []
    assert not (bench.server.workspace / "never").exists()


@pytest.mark.parametrize("action", ["fetch", "pull", "push"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("url.{elsewhere}/.insteadOf", "{guarded}/"),
        ("http.proxy", "{elsewhere}"),
        ("remote.origin.proxy", "{elsewhere}"),
        ("http.{guarded}.proxy", "{elsewhere}"),
        ("http.curloptResolve", "127.0.0.1:1:127.0.0.1"),
        ("http.sslCAInfo", "/tmp/ca.pem"),
        ("http.cookieFile", "/tmp/cookies"),
        ("http.followRedirects", "true"),
    ],
)
def test_a_repository_that_leads_a_token_elsewhere_is_given_none(
    bench: Bench, guarded: HttpRemote, elsewhere: HttpRemote, action: str, key: str, value: str
) -> None:
    places = {"guarded": guarded.url, "elsewhere": elsewhere.url}
    key = key.format(**places)
    bench.config(key, value.format(**places))
    problem = refused(bench.post(action, {"token": TOKEN}), 409, "credentials_refused")
    assert [setting.lower() for setting in problem["settings"]] == [key.lower()]
    assert guarded.requests == elsewhere.requests == []


def test_a_push_address_that_the_repository_rewrites(bench: Bench, guarded: HttpRemote, elsewhere: HttpRemote) -> None:
    bench.config(f"url.{elsewhere.url}/.pushInsteadOf", f"{guarded.url}/")
    bench.commit({"mine": b"mine"})
    refused(bench.post("push", {"token": TOKEN}), 409, "credentials_refused")
    assert elsewhere.requests == []


def test_settings_that_the_repository_includes_count_as_its_own(bench: Bench, elsewhere: HttpRemote) -> None:
    (bench.copy / "more").write_text(f"[http]\n\tproxy = {elsewhere.url}\n")
    bench.config("include.path", "../more")
    refused(bench.post("fetch", {"token": TOKEN}), 409, "credentials_refused")
    assert elsewhere.requests == []


def test_a_remote_with_two_push_addresses_tells_the_token_to_the_first_alone(
    bench: Bench, guarded: HttpRemote, elsewhere: HttpRemote
) -> None:
    for remote in (guarded, elsewhere):
        bench.git("remote", "set-url", "--push", "--add", "origin", f"{remote.url}/{bench.name}.git")
    bench.commit({"mine": b"mine"})
    refused(bench.post("push", {"token": TOKEN}), 403, "remote_auth_failed")
    assert guarded.authorizations
    assert elsewhere.requests
    assert elsewhere.authorizations == []


def test_the_users_own_rewriting_of_an_address_is_followed(
    bench: Bench, guarded: HttpRemote, elsewhere: HttpRemote
) -> None:
    key = f"url.{guarded.url}/.insteadOf"
    bench.git("config", "--global", key, "work:")
    try:
        bench.git("remote", "set-url", "origin", f"work:{bench.name}.git")
        done(bench.post("fetch", {"token": TOKEN}))
        assert guarded.authorizations
    finally:
        bench.git("config", "--global", "--unset", key)


def test_a_token_for_all_remotes_is_refused(bench: Bench, guarded: HttpRemote) -> None:
    refused(bench.post("fetch", {"all": True, "token": TOKEN}), 422, "credentials_invalid")
    assert guarded.requests == []


def test_the_submodules_of_another_host_are_not_told(bench: Bench, guarded: HttpRemote, elsewhere: HttpRemote) -> None:
    """What a commit names is never followed."""
    oid = bench.tip()
    modules = f'[submodule "m"]\n\tpath = m\n\turl = {elsewhere.url}/{bench.name}.git\n'
    (bench.other / ".gitmodules").write_text(modules)
    bench.sandbox.git(bench.other, "update-index", "--add", "--cacheinfo", f"160000,{oid},m")
    bench.sandbox.git(bench.other, "add", ".gitmodules")
    bench.pushed_by_another({}, "with a submodule")
    body = {"url": f"{guarded.url}/{bench.name}.git", "path": f"{bench.name}-2", "token": TOKEN}
    done(bench.post("clone", body, wait="true"), 201)
    bench.config("submodule.recurse", "true")
    bench.config("fetch.recurseSubmodules", "true")
    done(bench.post("pull", {"token": TOKEN}))
    assert elsewhere.requests == []
