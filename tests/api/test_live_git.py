"""The topic `git` of the general WebSocket: each change of a repository told once, whoever made it, and nothing else."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter
from websockets.sync.client import ClientConnection, connect

from support.git_home import Sandbox
from support.processes import watches
from support.server import TIMEOUT_S, JsonObject, ServerProcess, eventually, running
from workspace_runtime.streams import live_protocol

FRAMES: TypeAdapter[Any] = TypeAdapter(live_protocol.LiveServerFrame)
ROUTES = "/api/v1/workspaces/default/version-control"
ALL = ["status", "head", "branch", "refs", "stash", "operation"]
# Longer than anything takes to be told: what has not come until then does not come.
LATE_S = 0.8


class Listener:
    """A client that keeps the events of the topic, each held against its documented shape."""

    def __init__(self, server: ServerProcess, query: str = "?topics=git") -> None:
        url = f"{server.url.replace('http', 'ws', 1)}/api/v1/ws{query}"
        self.files: list[JsonObject] = []
        self.socket: ClientConnection = connect(url, proxy=None, open_timeout=TIMEOUT_S)

    def _next(self, timeout: float) -> JsonObject | None:
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            try:
                frame: JsonObject = json.loads(self.socket.recv(timeout=left))
            except TimeoutError:
                return None
            FRAMES.validate_python(frame)
            if frame["type"] == "file_changed":
                self.files.append(frame)
            if frame["type"].startswith("git_"):
                return frame
        return None

    def event(self, type: str = "git_changed") -> JsonObject:
        """The next event of this type."""
        while True:
            frame = self._next(TIMEOUT_S)
            assert frame is not None, "nothing was told"
            if frame["type"] == type:
                return frame

    def later(self, type: str = "git_changed") -> list[JsonObject]:
        """All that still comes."""
        found = []
        while (frame := self._next(LATE_S)) is not None:
            if frame["type"] == type:
                found.append(frame)
        return found


class Workspace:
    """A server on a repository, with a client that listens, and the git of a terminal."""

    def __init__(self, server: ServerProcess, box: Sandbox) -> None:
        self.server, self.box = server, box
        self.root = server.workspace
        self.listener = Listener(server)

    def git(self, *arguments: str, cwd: Path | None = None, check: bool = True) -> bytes:
        return self.box.git(cwd or self.root, *arguments, check=check)

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def told(self, *, root: str = "") -> list[str]:
        """What the one event says that comes now, which is what `status` answers."""
        event = self.listener.event()
        assert event["root"] == root
        status = self.status(root)
        assert (event["status_etag"], event["head"]) == (status["etag"], status["head"])
        assert [later["changed"] for later in self.listener.later()] == []
        changed: list[str] = event["changed"]
        return changed

    def nothing_is_told(self) -> None:
        assert self.listener.later() == []

    def status(self, path: str = "") -> JsonObject:
        with self.server.client() as client:
            answer = client.get(f"{ROUTES}/status", params={"path": path} if path else {})
            assert answer.status_code == 200, answer.text
            status: JsonObject = answer.json()
            return status

    def post(self, route: str, expected: int = 200, **body: Any) -> httpx.Response:
        with self.server.client() as client:
            answer = client.post(f"{ROUTES}/{route}", json=body)
            assert answer.status_code == expected, answer.text
            return answer


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Workspace]]:
    """Makes a workspace, with a repository of one commit in it unless `empty`."""
    with ExitStack() as stack:

        def made(*, empty: bool = False, path: str = "") -> Workspace:
            box = Sandbox(tmp_path)
            if not empty:
                box.commit(box.init("workspace"), {"f": b"one\n", "g": b"one\n"}, "first")
            env = {**box.env, "PATH": path + os.environ["PATH"]}
            server = stack.enter_context(running(tmp_path, env=env))
            made = Workspace(server, box)
            stack.enter_context(made.listener.socket)
            return made

        yield made


@pytest.fixture
def work(serve: Callable[..., Workspace]) -> Workspace:
    return serve()


def test_a_file_is_edited_staged_and_committed(work: Workspace) -> None:
    work.write("f", "two\n")
    assert work.told() == ["status"]
    work.git("add", "f")
    assert work.told() == ["status"]
    work.git("commit", "-qm", "second")
    assert work.told() == ["status", "head", "refs"]
    work.write("f", "three\n")
    work.git("commit", "-qam", "third")
    # on a slow machine the file is seen before the commit
    events = [work.listener.event(), *work.listener.later()]
    assert events[-1]["changed"] == ["status", "head", "refs"] and len(events) <= 2
    work.git("commit", "-q", "--amend", "-m", "another message")
    assert work.told() == ["status", "head", "refs"]
    work.write("new", "")
    assert work.told() == ["status"]
    (work.root / "new").unlink()
    assert work.told() == ["status"]


def test_branches_and_tags(work: Workspace) -> None:
    work.git("checkout", "-q", "-b", "topic/deep/one")
    assert work.told() == ["status", "branch", "refs"]
    work.git("branch", "topic/deep/two")
    assert work.told() == ["refs"]
    work.git("tag", "v1")
    assert work.told() == ["refs"]
    work.git("branch", "-D", "topic/deep/two")
    assert work.told() == ["refs"]
    work.git("checkout", "-q", "--detach")
    assert work.told() == ["status", "branch"]
    work.git("checkout", "-q", "main")
    assert work.told() == ["status", "branch"]
    work.git("branch", "-u", "topic/deep/one")
    assert work.told() == ["status"]


def test_a_fetch_tells_only_news(work: Workspace) -> None:
    remote = work.box.init("remote.git", "--bare")
    work.git("remote", "add", "origin", str(remote))
    work.git("push", "-q", "-u", "origin", "main")
    work.listener.event()
    work.listener.later()
    work.git("fetch", "-q", "origin")
    work.nothing_is_told()
    other = work.box.folder / "other"
    work.git("clone", "-q", str(remote), str(other), cwd=work.box.folder)
    work.box.commit(other, {"h": b""}, "theirs")
    work.git("push", "-q", cwd=other)
    work.nothing_is_told()
    work.git("fetch", "-q", "origin")
    assert work.told() == ["status", "refs"]
    assert work.status()["upstream"]["behind"] == 1


def test_the_stash(work: Workspace) -> None:
    for text in ("two\n", "three\n"):
        work.write("f", text)
        assert work.told() == ["status"]
        work.git("stash", "-q")
        assert work.told() == ["status", "stash"]
    work.git("stash", "drop", "-q", "stash@{1}")  # which moves no ref
    assert work.told() == ["status", "stash"]
    work.git("stash", "pop", "-q")
    assert work.told() == ["status", "stash"]


def test_merge_and_rebase_with_conflicts(work: Workspace) -> None:
    work.git("checkout", "-q", "-b", "theirs")
    work.box.commit(work.root, {"f": b"theirs\n"}, "theirs")
    work.git("checkout", "-q", "main")
    work.box.commit(work.root, {"f": b"ours\n"}, "ours")
    work.listener.event()
    work.listener.later()
    work.git("merge", "-q", "theirs", check=False)
    assert work.told() == ["status", "operation"]
    assert work.status()["operation"]["kind"] == "merge"
    work.git("merge", "--abort")
    assert work.told() == ["status", "operation"]
    work.git("rebase", "-q", "theirs", check=False)
    assert work.told() == ["status", "head", "branch", "operation"]
    work.git("rebase", "--abort")
    assert work.told() == ["status", "head", "branch", "operation"]


def test_what_changes_no_fact_is_not_told(work: Workspace) -> None:
    for name in ("a/b", "a/c", "d"):
        work.git("branch", name)
    work.listener.event()
    work.listener.later()
    work.git("pack-refs", "--all", "--prune")
    work.nothing_is_told()
    work.git("gc", "-q")
    work.nothing_is_told()
    os.utime(work.root / "f")
    work.git("status")  # writes the index
    work.git("reflog", "expire", "--expire=all", "--all")
    work.nothing_is_told()
    (work.root / ".git/anything").write_text("")
    (work.root / ".git/index.lock").write_text("")
    (work.root / ".git/index.lock").unlink()
    work.nothing_is_told()
    # and it still looks
    work.git("tag", "v1")
    assert work.told() == ["refs"]


def test_the_api_is_told_once_as_well(work: Workspace) -> None:
    work.write("f", "two\n")
    assert work.told() == ["status"]
    work.post("stage", paths=["f"])
    assert work.listener.event("git_operation")["operation"]["status"] == "running"
    assert work.told() == ["status"]
    work.post("commit", message="second")
    assert work.told() == ["status", "head", "refs"]
    work.post("checkout", branch="api", create=True)
    assert work.told() == ["status", "branch", "refs"]
    work.post("commit", 409, message="nothing")
    operations = [event["operation"] for event in work.listener.later("git_operation")]
    assert [(operation["kind"], operation["status"]) for operation in operations] == [
        ("commit", "running"),
        ("commit", "failed"),
    ]
    assert operations[-1]["error"]["code"]


def test_a_repository_comes_and_goes(serve: Callable[..., Workspace]) -> None:
    work = serve(empty=True)
    work.nothing_is_told()
    work.git("init", "-q", ".")
    event = work.listener.event()
    assert (event["changed"], event["head"]["unborn"]) == (ALL, True)
    work.nothing_is_told()
    work.box.commit(work.root, {"f": b"one\n"}, "first")
    work.listener.event()
    work.listener.later()
    work.git("branch", "x")  # what is made after it is watched as well
    assert work.told() == ["refs"]
    subprocess.run(["rm", "-rf", ".git"], cwd=work.root, check=True)
    event = work.listener.event()
    assert (event["changed"], event["head"], event["status_etag"]) == (ALL, None, None)
    work.nothing_is_told()
    work.git("init", "-q", ".")
    assert work.listener.event()["head"]["unborn"]
    work.nothing_is_told()


@pytest.mark.long
def test_a_clone_into_the_workspace(serve: Callable[..., Workspace]) -> None:
    work = serve(empty=True)
    source = work.box.init("source")
    oid = work.box.commit(source, {f"d/{number}": b"x" for number in range(100)}, "first")
    work.git("clone", "-q", str(source), ".")
    while (event := work.listener.event())["head"]["oid"] != oid or event["status_etag"] != work.status()["etag"]:
        pass
    work.nothing_is_told()


@pytest.mark.long
def test_other_repositories_are_followed_once_they_were_named(work: Workspace) -> None:
    inner = work.box.init("workspace/inner")
    work.box.commit(inner, {"f": b"one\n"}, "first")
    assert work.listener.event()["root"] == ""  # a new folder
    work.listener.later()
    work.git("tag", "v1", cwd=inner)
    work.nothing_is_told()
    work.status("inner")
    # what it was when the client read it is not known: so it is told once
    event = work.listener.event()
    assert (event["root"], event["changed"]) == ("inner", ALL)
    work.nothing_is_told()
    work.git("tag", "v2", cwd=inner)
    assert work.told(root="inner") == ["refs"]
    (inner / "f").write_text("two\n")
    assert work.told(root="inner") == ["status"]
    subprocess.run(["rm", "-rf", "inner"], cwd=work.root, check=True)
    events = {event["root"]: event for event in work.listener.later()}
    assert events["inner"]["head"] is None and set(events) == {"", "inner"}


@pytest.mark.long
@pytest.mark.parametrize("ignored", [False, True])
def test_linked_working_trees(work: Workspace, ignored: bool) -> None:
    if ignored:
        work.box.commit(work.root, {".gitignore": b"trees/\n"}, "ignore")
        work.listener.event()
        work.listener.later()
    work.git("worktree", "add", "-q", "-b", "agent", "trees/agent")
    assert work.told() == (["refs"] if ignored else ["status", "refs"])
    tree = work.root / "trees/agent"
    work.status("trees/agent")
    assert work.listener.event()["root"] == "trees/agent"
    work.nothing_is_told()
    (tree / "f").write_text("two\n")
    assert work.told(root="trees/agent") == ["status"]
    work.git("add", "f", cwd=tree)
    assert work.told(root="trees/agent") == ["status"]
    work.git("commit", "-qm", "agent", cwd=tree)
    events = {event["root"]: event["changed"] for event in work.listener.later()}
    assert events == {"trees/agent": ["status", "head", "refs"], "": ["refs"]}
    work.write("f", "main\n")
    assert work.told() == ["status"]
    work.git("stash", "-q")
    events = {event["root"]: event["changed"] for event in work.listener.later()}
    assert events == {"trees/agent": ["status", "stash"], "": ["status", "stash"]}


def test_a_submodule(work: Workspace) -> None:
    source = work.box.init("source")
    work.box.commit(source, {"f": b"one\n"}, "first")
    work.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", str(source), "libs/sub")
    work.git("commit", "-qm", "sub")
    work.listener.event()
    work.listener.later()
    work.git("commit", "-q", "--allow-empty", "-m", "inside", cwd=work.root / "libs/sub")
    assert work.told() == ["status"]
    assert work.status()["files"][0]["submodule"]["commit_changed"]
    (work.root / "libs/sub/f").write_text("two\n")
    assert work.told() == ["status"]


def test_what_is_tracked_in_a_folder_that_git_ignores(work: Workspace) -> None:
    work.box.commit(work.root, {".gitignore": b"build/\n"}, "ignore")
    (work.root / "build/deep/er").mkdir(parents=True)
    for name in ("build/keep", "build/deep/er/keep", "build/other"):
        work.write(name, "one\n")
    work.listener.event()
    work.listener.later()
    work.git("add", "-f", "build/keep", "build/deep/er/keep")
    assert work.told() == ["status"]
    work.git("commit", "-qm", "keep")
    assert work.told() == ["status", "head", "refs"]
    work.write("build/keep", "two\n")
    assert work.told() == ["status"]
    work.write("build/other", "two\n")
    work.nothing_is_told()
    (work.root / "build/keep").chmod(0o755)
    work.write("build/keep", "one\n")
    assert work.told() == ["status"]
    (work.root / "build/keep").chmod(0o644)
    assert work.told() == ["status"]
    with (work.root / "build/keep").open("a") as file:
        file.write("more\n")
        file.flush()  # and it is not closed
        assert work.told() == ["status"]
    work.git("checkout", "-q", "build/keep")
    assert work.told() == ["status"]
    # folders on the way go and come
    (work.root / "build/deep").rename(work.root / "build/moved")
    assert work.told() == ["status"]
    (work.root / "build/moved").rename(work.root / "build/deep")
    assert work.told() == ["status"]
    work.write("build/deep/er/keep", "two\n")
    assert work.told() == ["status"]
    subprocess.run(["rm", "-rf", "build"], cwd=work.root, check=True)
    work.listener.event()
    work.listener.later()
    (work.root / "build/deep/er").mkdir(parents=True)
    work.nothing_is_told()
    work.write("build/deep/er/keep", "one\n")
    assert work.told() == ["status"]


def test_a_folder_that_is_ignored_from_now_on(work: Workspace) -> None:
    (work.root / "build").mkdir()
    work.box.commit(work.root, {"build/keep": b"one\n"}, "keep")
    work.listener.event()
    work.listener.later()
    for rules in (".gitignore", ".git/info/exclude"):
        work.write(rules, "build/\n.gitignore\n")
        assert work.listener.later() == []
        for text in ("two\n", "one\n"):
            work.write("build/keep", text)
            assert work.told() == ["status"]
        (work.root / rules).unlink()
        work.nothing_is_told()


@pytest.mark.long
def test_a_submodule_that_has_its_repository_in_it(work: Workspace) -> None:
    sub = work.box.init("workspace/libs/sub")
    work.box.commit(sub, {"f": b"one\n"}, "first")
    work.git("add", "libs/sub")
    work.git("commit", "-qm", "sub")
    work.listener.event()
    work.listener.later()
    work.git("commit", "-q", "--allow-empty", "-m", "inside", cwd=sub)
    assert work.told() == ["status"]
    assert work.status()["files"][0]["submodule"]["commit_changed"]
    work.git("reset", "-q", "--soft", "HEAD~1", cwd=sub)
    assert work.told() == ["status"]
    # it goes, and comes again
    sub.rename(work.root / "elsewhere")
    work.listener.event()
    work.listener.later()
    (work.root / "elsewhere").rename(sub)
    work.listener.event()
    work.listener.later()
    (sub / ".git").rename(work.root / ".git/kept")
    work.listener.later()
    (work.root / ".git/kept").rename(sub / ".git")
    work.listener.later()
    work.git("commit", "-q", "--allow-empty", "-m", "inside", cwd=sub)
    assert work.told() == ["status"]


@pytest.mark.long
def test_an_untracked_folder_becomes_a_repository(work: Workspace) -> None:
    (work.root / "new/in").mkdir(parents=True)
    work.write("new/in/f", "")
    assert work.told() == ["status"]
    work.listener.files.clear()
    for _ in range(2):
        work.git("init", "-q", "new/in")
        assert work.told() == ["status"]
        assert [file["path"] for file in work.status()["files"]] == ["new/in/"]
        subprocess.run(["rm", "-rf", "new/in/.git"], cwd=work.root, check=True)
        assert work.told() == ["status"]
        assert [file["path"] for file in work.status()["files"]] == ["new/in/f"]
    assert work.listener.files == []


def test_names_that_are_not_utf8(work: Workspace) -> None:
    inner = os.path.join(os.fsencode(work.root), b"caf\xe9")
    subprocess.run(["git", "init", "-q", inner], env=work.box.env, check=True)
    with work.server.client() as client:
        assert client.get(f"{ROUTES}/status?path_bytes=caf%25E9").status_code == 200
    # the repository around it may tell first that it has an untracked folder
    while not (event := work.listener.event())["root"]:
        pass
    assert (event["root"], event["root_bytes"]) == ("caf\ufffd", "caf%E9")


@pytest.mark.long
def test_all_clients_get_the_same(work: Workspace) -> None:
    other, plain, late = Listener(work.server), Listener(work.server, ""), None
    with other.socket, plain.socket:
        work.git("tag", "v1")
        first, second = work.listener.event(), other.event()
        assert {**first, "seq": 0} == {**second, "seq": 0}
        late = Listener(work.server)
        with late.socket:
            assert late.later() == []  # it reads what it shows by itself
            work.git("tag", "v2")
            assert late.event()["changed"] == ["refs"]
        assert plain.later() == [] and len(other.later()) == len(work.listener.later()) == 1


def test_the_sse_twin(work: Workspace) -> None:
    with work.server.client() as client, client.stream("GET", "/api/v1/events?topics=git") as stream:
        work.git("tag", "v1")
        for line in stream.iter_lines():
            if line.startswith("data: ") and (event := json.loads(line[6:]))["type"] == "git_changed":
                break
    assert event["changed"] == ["refs"]


@pytest.mark.long
def test_many_changes_are_few_events(work: Workspace) -> None:
    with subprocess.Popen(
        ["sh", "-c", "for n in $(seq 1500); do echo > new$n; sleep 0.002; done"], cwd=work.root
    ) as writer:
        events = [work.listener.event()]
        while writer.poll() is None or events[-1]["status_etag"] != work.status()["etag"]:
            events.append(work.listener.event())
    work.nothing_is_told()
    assert 2 <= len(events) <= 300


@pytest.mark.long
def test_git_runs_only_when_something_happens(serve: Callable[..., Workspace], tmp_path: Path) -> None:
    """Every start of git is written down by a program of that name."""
    log, bin = tmp_path / "starts", tmp_path / "bin"
    bin.mkdir()
    git = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    (bin / "git").write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {git} "$@"\n')
    (bin / "git").chmod(0o755)
    work = serve(path=f"{bin}:")

    def starts() -> Sequence[str]:
        return log.read_text().splitlines() if log.exists() else []

    work.nothing_is_told()
    begun = len(starts())
    assert begun > 0
    work.nothing_is_told()
    work.nothing_is_told()
    assert starts()[begun:] == []
    os.utime(work.root / "f")
    work.git("status")
    work.nothing_is_told()
    # the index that somebody else refreshes is read again, and our own reading is no reason for another
    assert 0 < len([start for start in starts()[begun:] if start.startswith("status")]) <= 3


@pytest.mark.long
def test_nothing_is_left_when_nobody_listens(work: Workspace) -> None:
    def threads() -> list[str]:
        folder = Path(f"/proc/{work.server.server_pid}/task")
        found = []
        for task in folder.iterdir():
            with suppress(OSError):  # it has ended meanwhile
                found.append((task / "comm").read_text().strip())
        return found

    assert watches(work.server.server_pid) == 2
    work.listener.socket.close()
    eventually(lambda: watches(work.server.server_pid) == 0)
    # and again
    again = Listener(work.server)
    with again.socket:
        work.git("tag", "v1")
        assert again.event()["changed"] == ["refs"]
        count = len(threads())
        assert watches(work.server.server_pid) == 2
    eventually(lambda: watches(work.server.server_pid) == 0 and len(threads()) < count)
