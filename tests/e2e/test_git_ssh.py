"""Remotes over SSH with a real sshd: the user's own key and known hosts decide, and nothing ever asks or waits."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.git_bench import Bench, Trap, done, fresh_name, git_server, refused
from support.git_remotes import SshRemote, ssh_remote
from support.server import ServerProcess

SOON_S = 10.0
ACTIONS = ("fetch", "pull", "push")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ssh")
    (made / "remotes").mkdir()
    return made


@pytest.fixture(scope="module")
def remote(folder: Path) -> Iterator[SshRemote]:
    with ssh_remote(folder / "remotes") as made:
        yield made


@pytest.fixture(scope="module")
def server(folder: Path, remote: SshRemote) -> Iterator[ServerProcess]:
    """`ssh` as the user set it up: a file that a test may change."""
    command = folder / "ssh"
    allow(folder, remote.command())
    with git_server(folder, env={"GIT_SSH": str(command), "GIT_SSH_VARIANT": "ssh"}) as process:
        yield process


def allow(folder: Path, command: str) -> None:
    """Have `GIT_SSH` do this."""
    fresh = folder / "ssh.new"
    fresh.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    fresh.chmod(0o755)
    fresh.rename(folder / "ssh")


@pytest.fixture
def bench(server: ServerProcess, folder: Path, remote: SshRemote, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(server, fresh_name())
    made.git("remote", "set-url", "origin", f"{remote.url}/{made.name}.git")
    yield made
    made.close()
    allow(folder, remote.command())


def test_the_users_own_key_is_let_in(bench: Bench, remote: SshRemote) -> None:
    theirs = bench.pushed_by_another({"theirs": b"theirs"})
    before = remote.connections
    assert done(bench.post("fetch"))["refs"] == [
        {"ref": "refs/remotes/origin/main", "old": bench.head(), "new": theirs}
    ]
    assert done(bench.post("pull"))["head"]["oid"] == theirs
    ours = bench.commit({"ours": b"ours"})
    assert done(bench.post("push"))["refs"][0]["status"] == "fast_forward"
    assert bench.tip() == ours
    made = done(
        bench.post("clone", {"url": f"{remote.url}/{bench.name}.git", "path": f"{bench.name}-2"}, wait="true"), 201
    )
    assert bench.tip(bench.server.workspace / made["path"], "HEAD") == ours
    assert remote.connections == before + 4


@pytest.mark.parametrize("action", [*ACTIONS, "clone"])
@pytest.mark.parametrize(
    ("key", "known", "status", "code"),
    [("stranger", True, 403, "remote_auth_failed"), ("client", False, 409, "remote_host_unknown")],
    ids=["a stranger's key", "an unknown host"],
)
def test_a_refusal_is_quick_and_changes_nothing(
    bench: Bench, remote: SshRemote, folder: Path, action: str, key: str, known: bool, status: int, code: str
) -> None:
    theirs = bench.pushed_by_another({"theirs": b"theirs"})
    ours = bench.commit({"ours": b"ours"})
    allow(folder, remote.command(key=key, known=known))
    body = {"url": f"{remote.url}/{bench.name}.git", "path": "never"} if action == "clone" else {}
    began = time.monotonic()
    refused(bench.post(action, body, wait="true"), status, code)
    assert time.monotonic() - began < SOON_S
    assert bench.tip() == theirs
    assert bench.head() == ours
    assert not (bench.server.workspace / "never").exists()


def test_a_host_key_that_has_changed(bench: Bench, remote: SshRemote, folder: Path, tmp_path: Path) -> None:
    known = (remote.keys / "known_hosts").read_text()
    other = (remote.keys / "stranger.pub").read_text()
    (tmp_path / "known_hosts").write_text(known.split()[0] + " " + other)
    command = remote.command().replace(str(remote.keys / "known_hosts"), str(tmp_path / "known_hosts"))
    assert str(tmp_path) in command
    allow(folder, command)
    problem = refused(bench.post("fetch"), 409, "remote_host_unknown")
    assert "is not the one that is known" in problem["detail"]


@pytest.mark.parametrize("action", [*ACTIONS, "clone"])
def test_a_host_that_is_down(bench: Bench, action: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"ssh://git@127.0.0.1:{port}/x.git"
    bench.git("remote", "set-url", "origin", url)
    began = time.monotonic()
    body = {"url": url, "path": "never"} if action == "clone" else {}
    refused(bench.post(action, body, wait="true"), 502, "remote_unreachable")
    assert time.monotonic() - began < SOON_S


def test_a_repository_that_is_not_there(bench: Bench, remote: SshRemote) -> None:
    bench.git("remote", "set-url", "origin", f"{remote.url}/nowhere.git")
    refused(bench.post("fetch"), 404, "remote_not_found")
    refused(bench.post("push"), 404, "remote_not_found")


def test_the_remotes_own_hook_refuses(bench: Bench) -> None:
    bench.hook("update", "echo 'not on a Friday' >&2; exit 1", bench.origin)
    bench.commit({"ours": b"ours"})
    problem = refused(bench.post("push"), 409, "push_rejected")
    assert "not on a Friday" in problem["output"]
    assert problem["refs"][0]["status"] == "remote_rejected"


@pytest.mark.parametrize("address", ["127.0.0.1:{path}", "{user}@127.0.0.1:{path}"])
def test_an_address_as_scp_has_it(bench: Bench, remote: SshRemote, folder: Path, address: str) -> None:
    user = remote.url.removeprefix("ssh://").partition("@")[0]
    allow(folder, f"{remote.command()} -p {remote.port}")
    url = address.format(user=user, path=bench.origin)
    done(bench.ask("PATCH", "remotes/origin", {"url": url}))
    theirs = bench.pushed_by_another({"theirs": b"theirs"})
    assert done(bench.post("pull"))["head"]["oid"] == theirs


def test_the_users_own_command_in_the_environment(
    folder: Path, remote: SshRemote, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It wins over the user's configuration, as git has it, and over the repository's."""
    with git_server(tmp_path_factory.mktemp("command"), env={"GIT_SSH_COMMAND": remote.command()}) as server:
        bench = Bench(server, fresh_name())
        trap = Trap(server.folder, "trap")
        bench.config("core.sshCommand", str(trap.path))
        bench.git("config", "--global", "core.sshCommand", "false")
        url = remote.url.replace(str(folder / "remotes"), str(bench.origin))
        bench.git("remote", "set-url", "origin", url)
        theirs = bench.pushed_by_another({"theirs": b"theirs"})
        assert done(bench.post("pull"))["head"]["oid"] == theirs
        assert trap.ran == ""
        bench.close()
