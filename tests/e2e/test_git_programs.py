"""Programs that a repository's own configuration names for speaking with others do not run; those that the user named do.

Each trap leaves a mark when it runs, and each is shown to spring for git in a terminal: it is a trap.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.git_bench import Bench, Trap, done, fresh_name, git_server, refused
from support.git_remotes import HttpRemote, http_remote
from support.server import ServerProcess

ACTIONS = ("fetch", "pull", "push")
ASKED = {"fetch": {}, "pull": {}, "push": {"remote": "origin", "branch": "mine"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with git_server(tmp_path_factory.mktemp("programs")) as process:
        yield process


@pytest.fixture
def bench(server: ServerProcess) -> Iterator[Bench]:
    made = Bench(server, fresh_name())
    made.pushed_by_another({"theirs": b"theirs"})
    made.git("switch", "--quiet", "--create", "mine")
    made.commit({"mine": b"mine"})
    made.git("branch", "--quiet", "--set-upstream-to=origin/main")
    yield made
    made.close()


@pytest.fixture
def guarded(bench: Bench) -> Iterator[HttpRemote]:
    """The remote behind a password that nobody knows."""
    with http_remote(bench.served, user="ada", password="secret") as remote:
        bench.git("remote", "set-url", "origin", f"{remote.url}/{bench.name}.git")
        yield remote


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path, "trap")


def in_terminal(bench: Bench, action: str) -> None:
    """What the server is asked for, by git itself."""
    more = {"fetch": [], "pull": ["--rebase"], "push": ["origin", "mine"]}[action]
    bench.sandbox.attempt(bench.copy, action, *more)


def by_the_server(bench: Bench, action: str) -> None:
    """Each way to ask for it, whatever is answered."""
    bodies = {
        "fetch": ({}, {"remote": "origin"}, {"all": True}),
        "pull": ({"mode": "rebase"}, {"remote": "origin", "branch": "main", "mode": "rebase"}),
        "push": ({"remote": "origin", "branch": "mine"}, {"set_upstream": True}, {}),
    }[action]
    for body in bodies:
        answer = bench.post(action, body)
        assert answer.status_code < 500 or answer.json()["code"] == "remote_unreachable", answer.text


@pytest.mark.parametrize(
    ("action", "key"),
    [
        ("fetch", "remote.origin.uploadpack"),
        ("pull", "remote.origin.uploadpack"),
        ("push", "remote.origin.receivepack"),
    ],
)
def test_the_program_of_the_other_side(bench: Bench, trap: Trap, action: str, key: str) -> None:
    bench.config(key, str(trap.path))
    by_the_server(bench, action)
    assert trap.ran == ""
    theirs = bench.tip(ref="refs/heads/mine") if action == "push" else bench.tip()
    assert theirs == bench.tip(
        bench.copy, "refs/remotes/origin/mine" if action == "push" else "refs/remotes/origin/main"
    )
    in_terminal(bench, action)
    assert trap.ran


@pytest.mark.parametrize("action", ACTIONS)
def test_an_ssh_command(bench: Bench, trap: Trap, action: str) -> None:
    bench.git("remote", "set-url", "origin", f"ssh://git@127.0.0.1:1/{bench.name}.git")
    bench.config("core.sshCommand", str(trap.path))
    by_the_server(bench, action)
    assert trap.ran == ""
    in_terminal(bench, action)
    assert trap.ran


@pytest.mark.parametrize("action", ACTIONS)
def test_a_credential_helper(bench: Bench, guarded: HttpRemote, trap: Trap, action: str) -> None:
    bench.config("credential.helper", str(trap.path))
    bench.config(f"credential.{guarded.url}.helper", f"!{trap.path}")
    by_the_server(bench, action)
    assert guarded.requests
    assert trap.ran == ""
    in_terminal(bench, action)
    assert trap.ran


@pytest.mark.parametrize("action", ACTIONS)
def test_an_askpass(bench: Bench, guarded: HttpRemote, trap: Trap, action: str) -> None:
    bench.config("core.askPass", str(trap.path))
    by_the_server(bench, action)
    assert guarded.requests
    assert trap.ran == ""
    in_terminal(bench, action)
    assert trap.ran


@pytest.mark.parametrize("action", ACTIONS)
def test_a_proxy_program_and_an_address_without_encryption(bench: Bench, trap: Trap, action: str) -> None:
    bench.git("remote", "set-url", "origin", f"git://127.0.0.1:1/{bench.name}.git")
    bench.config("core.gitProxy", str(trap.path))
    by_the_server(bench, action)
    refused(bench.post(action, ASKED[action]), 422, "remote_url_refused")
    assert trap.ran == ""
    in_terminal(bench, action)
    assert trap.ran


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("by", ["vcs", "url", "insteadOf", "pushurl"])
def test_a_remote_helper(bench: Bench, trap: Trap, action: str, by: str) -> None:
    address = f"ext::{trap.path} %S"
    bench.config("protocol.ext.allow", "always")
    if by == "vcs":
        bench.config("remote.origin.vcs", "ext")
        bench.git("remote", "set-url", "origin", f"{trap.path} %S")
    elif by == "url":
        bench.git("remote", "set-url", "origin", address)
    elif by == "insteadOf":
        bench.git("remote", "set-url", "origin", "https://harmless/x")
        bench.config(f"url.{address}.insteadOf", "https://harmless/x")
    else:
        bench.config("remote.origin.pushurl", address)
    by_the_server(bench, action)
    assert trap.ran == ""
    if by != "pushurl" or action == "push":
        refused(bench.post(action, ASKED[action]), 422, "remote_url_refused")
        in_terminal(bench, action)
        assert trap.ran


@pytest.mark.parametrize("action", ["fetch", "pull"])
def test_a_command_for_the_refs_of_alternates(bench: Bench, trap: Trap, action: str) -> None:
    alternates = bench.copy / ".git" / "objects" / "info" / "alternates"
    alternates.write_text(f"{bench.origin}/objects\n")
    bench.config("core.alternateRefsCommand", str(trap.path))
    by_the_server(bench, action)
    assert trap.ran == ""
    bench.git("update-ref", "-d", "refs/remotes/origin/main", check=False)
    bench.pushed_by_another({"more": b"more"})
    in_terminal(bench, action)
    assert trap.ran


@pytest.mark.parametrize("what", ["clone", "init"])
def test_what_the_repository_around_a_new_one_says_does_not_count(
    server: ServerProcess, trap: Trap, what: str, tmp_path: Path
) -> None:
    """The workspace's root is itself a repository, and a hostile one."""
    bench = Bench(server, f"inner-{what}")
    sandbox = bench.sandbox
    sandbox.git(server.workspace, "init", "--quiet")
    template = tmp_path / "template" / "hooks"
    template.mkdir(parents=True)
    Trap(template, "post-checkout")
    try:
        for key, value in {
            "core.sshCommand": str(trap.path),
            "core.fsmonitor": str(trap.path),
            "core.hooksPath": str(template),
            "credential.helper": str(trap.path),
            "init.templateDir": str(template.parent),
            "http.proxy": "http://127.0.0.1:1",
            "filter.x.smudge": str(trap.path),
        }.items():
            sandbox.git(server.workspace, "config", key, value)
        if what == "init":
            done(bench.post("init", {"path": "fresh"}), 201)
            assert not (server.workspace / "fresh" / ".git" / "hooks" / "post-checkout").exists()
        else:
            with http_remote(bench.served) as remote:
                done(bench.post("clone", {"url": f"{remote.url}/{bench.name}.git", "path": "got"}, wait="true"), 201)
            refused(
                bench.post("clone", {"url": "ssh://git@127.0.0.1:1/x", "path": "never"}, wait="true"),
                502,
                "remote_unreachable",
            )
        assert trap.ran == ""
        assert not (template / "post-checkout-ran").exists()
    finally:
        sandbox.git(server.workspace, "config", "--unset", "core.fsmonitor")
        shutil.rmtree(server.workspace / ".git")
        bench.close()


# --- the user's own -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def users_own(bench: Bench) -> Iterator[Callable[[str, str], None]]:
    """Sets what the user has configured, for one test."""
    keys: list[str] = []

    def set_(key: str, value: str) -> None:
        bench.git("config", "--global", key, value)
        keys.append(key)

    yield set_
    for key in keys:
        bench.git("config", "--global", "--unset", key)


def test_the_users_own_ssh_command_runs(bench: Bench, trap: Trap, users_own: Callable[[str, str], None]) -> None:
    bench.git("remote", "set-url", "origin", f"git@127.0.0.1:{bench.name}.git")
    bench.config("core.sshCommand", "false")
    users_own("core.sshCommand", str(trap.path))
    answer = bench.post("fetch")
    assert answer.status_code in (404, 502), answer.text
    assert "git-upload-pack" in trap.ran
