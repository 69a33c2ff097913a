"""The topic `git` below its socket: when it reads, what it lets go of, and how it gets on where nothing is watched."""

import asyncio
import contextlib
import itertools
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import given
from hypothesis import strategies as st

from support.git_home import Sandbox
from support.git_repository import sandbox
from workspace_runtime.events.board import Board, LiveEvent, LiveSubscription
from workspace_runtime.files.topic import FilesTopic
from workspace_runtime.inotify import Q_OVERFLOW, Inotify
from workspace_runtime.paths import WorkspaceRoot
from workspace_runtime.version_control import folder_watch, layout, topic
from workspace_runtime.version_control.facts import CHANGES, without_files
from workspace_runtime.version_control.room import VersionControl
from workspace_runtime.version_control.topic import GitTopic

TIMEOUT_S = 20.0
LATE_S = 0.8


class Listening:
    """A board with the topic, a subscriber, and the room behind it."""

    def __init__(self, board: Board, git: VersionControl, topic: GitTopic) -> None:
        self.board, self.git, self.topic = board, git, topic
        self.woken = asyncio.Event()
        self.subscription: LiveSubscription | None = None

    async def listen(self) -> None:
        self.subscription = await self.board.subscribe(frozenset({"git"}), self.woken.set)

    def leave(self) -> None:
        assert self.subscription is not None
        self.subscription.close()

    async def event(self, within: float = TIMEOUT_S) -> dict[str, Any]:
        """The next one. Raises `TimeoutError`."""
        assert self.subscription is not None
        async with asyncio.timeout(within):
            while True:
                self.woken.clear()
                for event in self.subscription.take(1):
                    found: dict[str, Any] = orjson.loads(event.data)
                    return found
                await self.woken.wait()

    async def told(self) -> list[str]:
        changed: list[str] = (await self.event())["changed"]
        return changed

    async def nothing_is_told(self) -> None:
        with pytest.raises(TimeoutError):
            raise AssertionError(await self.event(LATE_S))


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Sandbox]:
    with sandbox(tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def board_on(folder: Path, workspace: Path, **options: bool) -> AsyncIterator[Listening]:
    """The parts as the application puts them together."""
    root = WorkspaceRoot(workspace)
    state = folder / "state"
    state.mkdir(exist_ok=True)
    git = VersionControl(root, state, state, trusted=True)
    files, made = FilesTopic(root), GitTopic(git, lambda: board, **options)
    files.repositories = made.repositories_moved
    board: Board = Board([files, made])
    try:
        yield Listening(board, git, made)
    finally:
        await git.close()
        await board.close()
        root.close()


def commit(box: Sandbox, name: str = "workspace") -> Path:
    folder = box.init(name)
    box.commit(folder, {"f": b"one\n"}, "first")
    return folder


async def terminal(box: Sandbox, folder: Path, *arguments: str) -> None:
    await asyncio.to_thread(box.git, folder, *arguments)


@pytest.mark.parametrize("polling", [False, True, "too many"])
def test_it_tells_the_same_where_nothing_is_watched(
    box: Sandbox, tmp_path: Path, polling: "bool | str", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_watch, "POLL_S", 0.1)
    if polling == "too many":
        monkeypatch.setattr(folder_watch, "MAX_FOLDERS", 3)

    async def main() -> None:
        workspace = commit(box)
        async with board_on(tmp_path, workspace, force_polling=polling is True) as on:
            await on.listen()
            await terminal(box, workspace, "branch", "deep/er/x")
            assert await on.told() == ["refs"]
            await terminal(box, workspace, "branch", "deep/er/y")
            assert await on.told() == ["refs"]
            await terminal(box, workspace, "checkout", "-q", "deep/er/x")
            assert await on.told() == ["status", "branch"]
            await terminal(box, workspace, "pack-refs", "--all")
            await on.nothing_is_told()
            await terminal(box, workspace, "commit", "-q", "--allow-empty", "-m", "second")
            assert await on.told() == ["status", "head", "refs"]
            os.rename(workspace / ".git", workspace / "elsewhere")
            assert (await on.event())["head"] is None
            os.rename(workspace / "elsewhere", workspace / ".git")
            while (await on.event())["head"] is None:
                pass
            await on.nothing_is_told()
            await terminal(box, workspace, "tag", "v1")
            assert await on.told() == ["refs"]

    asyncio.run(main())


def test_what_the_kernel_lost_is_looked_for(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = threading.Event()
    real = Inotify.events

    def events(self: Inotify) -> Iterator[tuple[int, int, int, bytes]]:
        found = list(real(self))
        if found and not lost.is_set() and threading.current_thread().name == "git-watch":
            lost.set()
            found = [(-1, Q_OVERFLOW, 0, b"")]
        yield from found

    async def main() -> None:
        workspace = commit(box)
        async with board_on(tmp_path, workspace) as on:
            await on.listen()
            monkeypatch.setattr(Inotify, "events", events)
            await terminal(box, workspace, "branch", "deep/er/x")
            assert await on.told() == ["refs"] and lost.is_set()
            await terminal(box, workspace, "branch", "deep/er/y")
            assert await on.told() == ["refs"]

    asyncio.run(main())


def test_a_fault_of_the_watch_is_no_silence(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_watch, "_REBUILD_S", 0.0)
    real, failed = layout.meaning, threading.Event()

    def meaning(*arguments: Any) -> int:
        if not failed.is_set():
            failed.set()
            raise ValueError("a fault of ours")
        return real(*arguments)

    async def main() -> None:
        workspace = commit(box)
        async with board_on(tmp_path, workspace) as on:
            await on.listen()
            monkeypatch.setattr(folder_watch, "meaning", meaning)
            await terminal(box, workspace, "tag", "v1")
            assert await on.told() == ["refs"] and failed.is_set()
            await terminal(box, workspace, "tag", "v2")
            assert await on.told() == ["refs"]

    asyncio.run(main())


def test_bare_ones_and_those_above_the_workspace(box: Sandbox, tmp_path: Path) -> None:
    async def main() -> None:
        above = commit(box, "above")
        workspace = above / "workspace"
        workspace.mkdir()
        box.init("above/workspace/bare.git", "--bare")
        async with board_on(tmp_path, workspace) as on:
            await on.git.status(b"bare.git")
            await on.listen()
            await terminal(box, above, "tag", "v1")
            assert await on.told() == ["refs"]
            (above / "not ours").write_text("")
            await on.nothing_is_told()
            (workspace / "ours").write_text("")
            assert await on.told() == ["status"]
            await terminal(box, above, "push", "-q", "workspace/bare.git", "main:main")
            # for git a bare one is a folder with untracked files
            events = [await on.event(), await on.event()]
            told = sorted((event["root"], event["changed"]) for event in events)
            assert told == [("", ["status"]), ("bare.git", ["status", "head", "refs"])]
            await on.nothing_is_told()

    asyncio.run(main())


def test_a_repository_is_read_by_one_at_a_time_and_rests(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[float, float]] = []
    real = VersionControl.status

    async def status(self: VersionControl, path: bytes) -> tuple[bytes, str]:
        began = asyncio.get_running_loop().time()
        try:
            answer = await real(self, path)
            await asyncio.sleep(0.12)
            return answer
        finally:
            runs.append((began, asyncio.get_running_loop().time()))

    monkeypatch.setattr(VersionControl, "status", status)

    async def main() -> None:
        workspace = commit(box)
        async with board_on(tmp_path, workspace) as on:
            await on.listen()
            end = asyncio.get_running_loop().time() + 2.5
            count = 0
            while asyncio.get_running_loop().time() < end:
                (workspace / f"new{count}").write_text("")
                count += 1
                await asyncio.sleep(0.005)
            with contextlib.suppress(TimeoutError):
                while True:
                    last = await on.event(1.5)
            assert last["status_etag"] == (await real(on.git, b""))[1]
        assert 3 <= len(runs) <= 8
        for (began, ended), (next_began, _) in itertools.pairwise(runs):
            assert next_began - began >= max(topic.REST_S, 0.98 * topic.REST_TIMES * (ended - began))

    asyncio.run(main())


def test_what_can_not_be_read_is_told_and_read_again(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic, "RETRY_S", 0.1)

    async def main() -> None:
        workspace = commit(box)
        async with board_on(tmp_path, workspace) as on:
            await on.listen()
            index = workspace / ".git/index"
            good = index.read_bytes()
            index.write_bytes(b"no index")
            event = await on.event()
            assert (event["changed"], event["status_etag"]) == (["status"], None)
            assert event["head"]["branch"] == "main"
            await on.nothing_is_told()
            index.write_bytes(good)
            event = await on.event()
            assert event["changed"] == ["status"]
            assert event["status_etag"] == (await on.git.status(b""))[1]

    asyncio.run(main())


def test_who_has_missed_events_is_told_of_all_repositories(box: Sandbox, tmp_path: Path) -> None:
    async def main() -> None:
        workspace = commit(box)
        box.init("workspace/inner")
        async with board_on(tmp_path, workspace) as on:
            await on.git.status(b"inner")
            await on.listen()
            assert await on.topic.greeting(missed=False) == []
            events = [orjson.loads(event.data) for event in await on.topic.greeting(missed=True)]
            assert [(event["root"], event["changed"]) for event in events] == [("", [*CHANGES]), ("inner", [*CHANGES])]
            assert [event["status_etag"] for event in events] == [
                (await on.git.status(b""))[1],
                (await on.git.status(b"inner"))[1],
            ]

    asyncio.run(main())


def test_files_that_were_missed_are_a_reason_to_read(box: Sandbox, tmp_path: Path) -> None:
    async def main() -> None:
        workspace = commit(box)
        async with board_on(tmp_path, workspace) as on:
            await on.listen()
            (workspace / "new").write_text("")
            # far more than the board holds, before the topic has had its turn
            running = on.board._topics["files"]
            on.board._publish(running, [LiveEvent(b"x" * 1024 * 1024, b"elsewhere")] * 20)
            assert on.subscription is not None
            await on.subscription.start_anew(missed=False)
            assert await on.told() == ["status"]

    asyncio.run(main())


def test_the_first_named_go_when_there_are_too_many(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic, "MAX_REPOSITORIES", 3)

    async def main() -> None:
        workspace = commit(box)
        for name in "abcd":
            box.init(f"workspace/{name}")
        async with board_on(tmp_path, workspace) as on:
            await on.git.status(b"a")
            await on.listen()
            for name in ("b", "c", "d"):
                await on.git.status(name.encode())
                assert (await on.event())["root"] == name
            assert list(on.topic._followed) == [b"", b"c", b"d"] == list(on.topic._roots)

    asyncio.run(main())


def test_nothing_blocks_the_loop_and_nothing_is_left(box: Sandbox, tmp_path: Path) -> None:
    """However far a start has come when it is cancelled."""

    def threads() -> int:
        return sum(thread.name in ("git-watch", "watcher") for thread in threading.enumerate())

    async def main() -> None:
        workspace = commit(box)
        async with board_on(tmp_path, workspace) as on:
            await on.listen()
            on.leave()
            await on.topic.stop()
            on.board._topics["git"].runs = False
            await asyncio.sleep(0)
            tasks = asyncio.all_tasks()
            with blockbuster_ctx("workspace_runtime.version_control"):
                for turns in [*range(0, 60, 3), 200, 1000]:
                    start = asyncio.ensure_future(on.topic.start(lambda _: None))
                    for _ in range(turns):
                        await asyncio.sleep(0.0005 if turns > 50 else 0)
                    start.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await start
                    await on.topic.stop()
                    await on.topic.stop()
                    assert on.topic._followed == {}
                    await until(lambda: asyncio.all_tasks() == tasks)
            assert threads() == 1  # that of the files, which lingers

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert threads() == 0
    assert len(os.listdir("/proc/self/fd")) <= before


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_stop_of_the_server_is_no_error(box: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        workspace = commit(box)
        async with board_on(tmp_path, workspace) as on:
            await on.listen()
            await terminal(box, workspace, "tag", "v1")  # being read when the room closes

    asyncio.run(main())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@given(
    text=st.text(alphabet=st.sampled_from(list(',"files:[]{}\\\n')) | st.characters(codec="utf-8"), max_size=60),
    files=st.lists(st.text(), max_size=3),
)
def test_the_state_without_its_files(text: str, files: list[str]) -> None:
    state = {"root": text, "operation": {"message": text + ',"files":['}, "stash_count": 1}
    assert without_files(orjson.dumps({**state, "files": files, "file_count": 0})) == state
