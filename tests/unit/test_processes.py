"""Children: read with back pressure, ended with everything they started, whatever is cancelled or killed meanwhile."""

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from support.processes import assert_gone, child_of, daemons, marked, marking, open_files
from support.waiting import until
from workspace_runtime import config, keeper, processes
from workspace_runtime.processes import Child, agent_environment, end_tree, finish, keeper_wrapper, spawn

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The server runs on uvloop, a command without it on asyncio's own loop."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def mark() -> Iterator[str]:
    """A word that names the test's processes."""
    with marking() as made:
        yield made


@asynccontextmanager
async def child(script: str, *arguments: str, cwd: Path = Path("/")) -> AsyncIterator[Child]:
    """A shell script as a child, ended afterwards."""
    made = await spawn(["/bin/sh", "-c", script, "sh", *arguments], cwd=cwd, env=os.environ)
    try:
        yield made
    finally:
        await made.end(0)


# --- reading and writing ----------------------------------------------------------------------------------------------


async def read_all(made: Child) -> list[bytes]:
    lines = []
    while more := await made.read_lines():
        lines += more
    return lines


async def test_lines_come_whole_and_the_last_one_too() -> None:
    async with child("printf 'one\\n\\ntw'; printf 'o\\nthree'") as made:
        assert await read_all(made) == [b"one", b"", b"two", b"three"]
        assert await made.read_lines() == []
        assert await made.wait() == 0


async def test_what_is_written_arrives_and_its_end_too() -> None:
    data = os.urandom(3_000_000).hex().encode()  # far more than a pipe holds
    async with child("wc -c") as made:
        await asyncio.gather(made.write(data[:1_000_000]), made.write(data[1_000_000:]))
        made.close_stdin()
        assert [int(line) for line in await read_all(made)] == [len(data)]


async def test_a_write_that_is_cancelled_never_cuts_a_message() -> None:
    async with child("cat") as made:
        first = asyncio.create_task(made.write(b"a" * 500_000 + b"\n"))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        second = asyncio.create_task(made.write(b"b\n"))
        lines: list[bytes] = []
        while len(lines) < 2:
            lines += await made.read_lines()
        await second
        assert lines == [b"a" * 500_000, b"b"]


async def test_writing_to_one_that_is_gone_fails() -> None:
    async with child("exit 0") as made:
        await made.wait()
        with pytest.raises(BrokenPipeError):
            await made.write(b"x" * 1_000_000)


async def test_a_long_line_comes_whole_and_one_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with child("head -c 5000000 /dev/zero | tr '\\0' x; echo; echo after") as made:
        assert list(map(len, await read_all(made))) == [5_000_000, 5]
    monkeypatch.setattr(processes, "LINE_LIMIT", 100_000)
    async with child("head -c 1000000 /dev/zero") as made:
        with pytest.raises(processes.LineTooLong):
            await made.read_lines()


async def test_reading_that_is_cancelled_loses_nothing() -> None:
    async with child('while read line; do printf "%s-"; printf "%s\\n" "$line"; done') as made:
        for number in range(20):
            reader = asyncio.create_task(made.read_lines())
            await asyncio.sleep(0)
            await made.write(b"%d\n" % number)
            reader.cancel()
            (said,) = await asyncio.gather(reader, return_exceptions=True)
            if isinstance(said, BaseException):
                said = await made.read_lines()
            assert said == [b"-%d" % number]


async def test_nobody_who_reads_costs_no_memory_and_slows_the_child(tmp_path: Path) -> None:
    script = "i=0; while :; do i=$((i+1)); echo 0123456789012345678901234567890123456789; echo $i > count; done"
    async with child(script, cwd=tmp_path) as made:
        count = tmp_path / "count"
        seen = -1

        def settled() -> bool:
            nonlocal seen
            last, seen = seen, int(count.read_text() or 0) if count.exists() else 0
            return seen == last > 500

        async with asyncio.timeout(20):
            while not settled():
                await asyncio.sleep(0.05)  # how long it has to write nothing more
        assert seen * 41 < 200_000  # what the pipe holds
        assert len(await made.read_lines()) > 500


async def test_errors_are_drained_and_their_tail_is_kept() -> None:
    async with child("head -c 3000000 /dev/zero | tr '\\0' e >&2; echo the end >&2; echo over") as made:
        assert await read_all(made) == [b"over"]
        await made.wait()
        await made.end()
        assert made.stderr_tail.endswith("eee" + "the end\n")
        assert len(made.stderr_tail) == processes.STDERR_TAIL


# --- starting ---------------------------------------------------------------------------------------------------------


async def test_an_unknown_command_or_folder_is_refused(tmp_path: Path) -> None:
    for argv, cwd in ((["no-such-command"], tmp_path), ([str(tmp_path / "no")], tmp_path), (["ls"], tmp_path / "no")):
        with pytest.raises(FileNotFoundError):
            await spawn(argv, cwd=cwd, env=os.environ)


async def test_a_command_is_sought_on_its_own_path(tmp_path: Path) -> None:
    tool = tmp_path / "my tool"
    tool.write_text("#!/bin/sh\npwd\n")
    tool.chmod(0o755)
    made = await spawn(["my tool"], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert await read_all(made) == [os.fsencode(tmp_path)]
    await made.end()


async def test_starting_that_is_cancelled_leaves_nothing(mark: str) -> None:
    before = open_files()
    for turns in range(8):
        task = asyncio.create_task(spawn(["/bin/sh", "-c", f"sleep 1000; : {mark}"], cwd=Path("/"), env=os.environ))
        for _ in range(turns):
            await asyncio.sleep(0.001 if turns > 3 else 0)  # reach every stage of the start
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(result, Child):
            await result.end(0)
        else:
            assert isinstance(result, asyncio.CancelledError)
        assert marked(mark) == []
    assert open_files() == before


async def test_the_environment_of_an_agent_lacks_our_settings() -> None:
    names = [setting.metadata["env"] for setting in config.settings()]
    ours = dict.fromkeys([*names, keeper.MARK], "secret")
    found = agent_environment({**ours, "PATH": "/bin", "JAVA_HOME": "/java"}, {"JAVA_HOME": "/mine", "MORE": "1"})
    assert found == {"PATH": "/bin", "JAVA_HOME": "/mine", "MORE": "1"}
    assert agent_environment(ours, {"LOG_LEVEL": "debug"}) == {"LOG_LEVEL": "debug"}  # asked for, for the agent itself


# --- ending -----------------------------------------------------------------------------------------------------------


async def test_ending_lets_the_command_end_by_itself_first() -> None:
    async with child("echo ready; cat; exit 7") as made:
        await made.read_lines()
        await made.end()
        assert made.returncode == 7
    async with child("trap 'exit 8' TERM; echo ready; while :; do sleep 0.01; done") as made:
        await made.read_lines()
        await made.end(0.2)
        assert made.returncode == 8


@pytest.mark.parametrize("way", tuple(daemons("")))
async def test_ending_leaves_nothing(way: str, mark: str) -> None:
    before = open_files()
    async with child(f"{daemons(mark)[way]} trap '' TERM; echo ready; sleep 1000; sleep 1000; : {mark}") as made:
        await made.read_lines()
        await made.end(0.1)
        assert marked(mark) == []
        assert made.returncode is not None
    assert open_files() == before


async def test_ending_twice_at_once_and_cancelled(mark: str) -> None:
    before = open_files()
    async with child(f"trap '' TERM; echo ready; sleep 1000; sleep 1000; : {mark}") as made:
        await made.read_lines()
        ends = [asyncio.create_task(made.end(0.1)) for _ in range(3)]
        await asyncio.sleep(0)
        for end in ends[1:]:
            end.cancel()
        results = await asyncio.gather(*ends, return_exceptions=True)
        assert results[0] is None and all(isinstance(result, asyncio.CancelledError) for result in results[1:])
        assert marked(mark) == []
        await made.end()
    assert open_files() == before


async def test_ending_wakes_whoever_reads_writes_or_waits() -> None:
    async with child("echo ready; sleep 1000") as made:
        await made.read_lines()
        reader, waiter = asyncio.create_task(made.read_lines()), asyncio.create_task(made.wait())
        writer = asyncio.create_task(made.write(b"x" * 1_000_000))
        await until(lambda: made._stdin._waiter is not None and made._stdout._waiter is not None)
        await made.end(0)
        assert await reader == []
        assert await waiter == -signal.SIGKILL
        with pytest.raises(BrokenPipeError):
            await writer


@pytest.mark.parametrize("way", ["background", "own session", "forked twice", "stubborn", "stopped"])
async def test_a_killed_keeper_leaves_nothing_that_knows_it(way: str, mark: str) -> None:
    async with child(f"{daemons(mark)[way]} echo ready; sleep 1000; : {mark}") as made:
        assert await made.read_lines() == [b"ready"]
        os.kill(made.pid, signal.SIGKILL)
        assert await made.read_lines() == []
        assert await made.wait() == -signal.SIGKILL
        assert marked(mark) == []


async def test_what_just_begins_another_program_is_found_too(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows no environment for a moment, and the keeper's name is in there."""
    looks: dict[str, int] = {}
    environ_of = processes._environ

    def environ(entry: str) -> bytes:
        found = environ_of(entry)
        if keeper.MARK.encode() in found:
            looks[entry] = looks.get(entry, 0) + 1
        return b"" if looks.get(entry, 9) < 4 else found

    async with child(f"{daemons(mark)['forked twice']} echo ready; sleep 1000; : {mark}") as made:
        assert await made.read_lines() == [b"ready"]
        monkeypatch.setattr(processes, "_environ", environ)
        os.kill(made.pid, signal.SIGKILL)
        await made.wait()
        assert marked(mark) == [] and max(looks.values()) >= 4


async def test_a_killed_command_ends_the_output_at_once(mark: str) -> None:
    async with child(f"{' '.join(daemons(mark).values())} echo ready; sleep 1000; : {mark}") as made:
        assert await made.read_lines() == [b"ready"]
        os.kill(child_of(made.pid), signal.SIGKILL)
        async with asyncio.timeout(2):
            assert await made.read_lines() == []
        assert await made.wait() == -signal.SIGKILL
        assert marked(mark) == []


async def test_nothing_of_it_waits_on_the_loop(mark: str) -> None:
    with blockbuster_ctx():
        async with child(f"echo ready; sleep 1000; : {mark}") as made:
            await made.read_lines()
            await made.write(b"x\n")
            await made.end(0)
        async with child(f"echo ready; sleep 1000; : {mark}") as made:
            await made.read_lines()
            os.kill(made.pid, signal.SIGKILL)
            await made.wait()


async def test_without_pidfd_ends_are_seen_too(monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    async with child(f"echo ready; sleep 1000; : {mark}") as made:
        await made.read_lines()
        await made.end(0.05)
        assert made.returncode == -signal.SIGTERM
    assert marked(mark) == []


async def test_finish_passes_on_result_failure_and_cancellation() -> None:
    done = []

    async def work(fault: Exception | None = None) -> None:
        await asyncio.sleep(0.01)
        done.append(1)
        if fault is not None:
            raise fault

    await finish(work())
    with pytest.raises(ValueError):
        await finish(work(ValueError()))
    task = asyncio.create_task(finish(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(done) == 3


# --- for libraries that start processes themselves --------------------------------------------------------------------


def test_the_wrapper_is_made_once_and_is_ours_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    first = keeper_wrapper("/bin/my shell", folder)
    before = first.stat()
    assert keeper_wrapper("/bin/my shell", folder) == first
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert stat.S_IMODE(before.st_mode) == 0o700 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    first.chmod(0o755)
    assert stat.S_IMODE(keeper_wrapper("/bin/my shell", folder).stat().st_mode) == 0o700
    assert keeper_wrapper("/bin/sh", folder) != first
    assert len(list(folder.iterdir())) == 2


async def test_what_the_wrapper_starts_is_ended_whole(tmp_path: Path, mark: str) -> None:
    tool = tmp_path / "a $HOME 'tool'"
    tool.write_text(
        f"#!/bin/sh\n{' '.join(daemons(mark).values())}\ntrap '' TERM; echo \"$@\"; sleep 1000; sleep 1000\n"
    )
    tool.chmod(0o755)
    wrapper = keeper_wrapper(str(tool), tmp_path)
    process = await asyncio.create_subprocess_exec(
        str(wrapper), "a b", "$HOME", stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"a b $HOME\n"
    assert marked(mark)
    await end_tree(process.pid, 0.1)
    assert marked(mark) == []
    assert await process.wait() == -signal.SIGKILL
    await end_tree(process.pid, 0.1)  # harmless: it is gone
    process._transport.close()  # type: ignore[attr-defined]


async def test_ending_what_is_no_child_of_ours_does_nothing() -> None:
    async with child("sleep 1000 & echo $!; wait") as made:
        (line,) = await made.read_lines()
        await end_tree(int(line), 0.1)
        os.kill(int(line), 0)  # it lives


async def test_a_keeper_that_hangs_is_ended_with_its_tree(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "GIVE_UP_S", 0.1)
    async with child(f"{daemons(mark)['own session']} echo ready; sleep 1000; : {mark}") as made:
        await made.read_lines()
        os.kill(made.pid, signal.SIGSTOP)
        await made.end(0.1)
        assert made.returncode == -signal.SIGKILL
    assert_gone(mark, 1)


async def test_many_at_once(mark: str) -> None:
    before = open_files()
    made = await asyncio.gather(
        *(
            spawn([sys.executable, "-I", "-S", "-c", f"input() # {mark}"], cwd=Path("/"), env=os.environ)
            for _ in range(12)
        )
    )
    await asyncio.gather(*(each.end(0.01) for each in made))
    await until(partial(all_ended, made))
    assert marked(mark) == []
    assert open_files() == before


def all_ended(made: list[Child]) -> bool:
    return all(each.returncode is not None for each in made)


async def test_a_cancellation_as_the_work_ends_is_passed_on() -> None:
    outer: asyncio.Task[None]

    async def work() -> None:
        outer.cancel()

    outer = asyncio.create_task(finish(work()))
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert outer.cancelled()


async def test_work_that_is_cancelled_itself_is_told_as_that() -> None:
    work = asyncio.create_task(asyncio.sleep(60))
    outer = asyncio.create_task(finish(work))
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
