"""Operations: whoever comes to a repository has its turn in that order, and never together with another."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from support.waiting import until
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.version_control.operations import MAX_QUEUED, Operation, Operations

pytestmark = pytest.mark.anyio


class SlowDisk(Operations):
    """Operations whose state folder takes its time, for as long as the test wants."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ready = threading.Event()

    def _write(self, operation: Operation) -> None:
        self.ready.wait(20)
        super()._write(operation)


class Writers:
    """Pieces of work that note who is at it, and end when told."""

    def __init__(self) -> None:
        self.at_work: list[str] = []
        self.begun: list[str] = []
        self.most = 0
        self.go_on = asyncio.Event()

    def named(self, name: str) -> Any:
        async def work(_: Operation) -> dict[str, Any]:
            self.begun.append(name)
            self.at_work.append(name)
            self.most = max(self.most, len(self.at_work))
            await self.go_on.wait()
            self.at_work.remove(name)
            return {"name": name}

        return work


async def test_one_that_is_still_being_written_down_keeps_its_place(tmp_path: Path) -> None:
    operations, writers = SlowDisk(tmp_path), Writers()
    first = await operations.begin("first", "", b"line", writers.named("first"))
    second = asyncio.create_task(operations.begin("second", "", b"line", writers.named("second"), kept=True))
    await until(lambda: len(operations.all()) == 2)
    writers.go_on.set()
    await operations.result(first)
    writers.go_on.clear()
    third = await operations.begin("third", "", b"line", writers.named("third"))
    operations.ready.set()
    await until(lambda: len(writers.begun) == 2)
    writers.go_on.set()
    await operations.result(third)
    assert (await operations.result(await second))["name"] == "second"
    assert writers.begun == ["first", "second", "third"]
    assert writers.most == 1
    await operations.close()


async def test_no_more_than_may_wait_even_when_they_come_at_once(tmp_path: Path) -> None:
    operations, writers = Operations(tmp_path), Writers()
    calls = (operations.begin("x", "", b"line", writers.named(str(n)), kept=True) for n in range(2 * MAX_QUEUED))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(answers) - len(refused) == MAX_QUEUED + 1
    assert {answer.code for answer in refused if isinstance(answer, WorkspaceError)} == {"repository_busy"}
    writers.go_on.set()
    for operation in operations.all():
        await operations.result(operation)
    assert writers.most == 1
    assert writers.begun == [str(n) for n in range(MAX_QUEUED + 1)]
    await operations.begin("x", "", b"line", writers.named("later"))
    await operations.close()


async def test_one_that_can_not_be_written_down_does_not_begin(tmp_path: Path) -> None:
    (tmp_path / "operations").write_bytes(b"in the way")
    operations, writers = Operations(tmp_path / "operations"), Writers()
    with pytest.raises(WorkspaceError) as caught:
        await operations.begin("x", "", b"line", writers.named("x"), kept=True)
    assert caught.value.code == "storage_unavailable"
    assert operations.all() == []
    writers.go_on.set()
    assert (await operations.result(await operations.begin("y", "", b"line", writers.named("y"))))["name"] == "y"
    assert writers.begun == ["y"]
    await operations.close()


async def test_the_end_of_the_server_ends_those_that_wait_too(tmp_path: Path) -> None:
    operations, writers = Operations(tmp_path), Writers()
    begun = [await operations.begin("x", "", b"line", writers.named(str(n)), kept=True) for n in range(3)]
    await until(lambda: writers.at_work)
    await operations.close()
    assert [operation.error.code for operation in begun if operation.error] == ["operation_cut"] * 3
    with pytest.raises(WorkspaceError) as caught:
        await operations.begin("x", "", b"line", writers.named("late"))
    assert caught.value.code == "shutting_down"
    again = Operations(tmp_path)
    assert again.load() == []
    assert [operation.view() for operation in again.all()] == [operation.view() for operation in operations.all()]
