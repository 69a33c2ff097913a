"""Many clients at once: one git process for them all, and no one gets what is older than his question."""

import http.client
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import orjson
import pytest

from support.server import TIMEOUT_S, eventually
from support.version_control import BASE, Case, Host, host

CLIENTS = 20
# Notes its start, waits while it is told to, and becomes the real one.
WRAPPER = """#!/bin/sh
case " $* " in *" {command} "*)
  echo "$*" >> '{folder}/starts'
  if [ -e '{folder}/wait' ]; then read _ < '{folder}/wait'; fi;;
esac
exec '{git}' "$@"
"""


class Watched:
    """The git that the server finds, which notes its runs of one command, and waits in them where it shall."""

    def __init__(self, folder: Path, command: str) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        real = shutil.which("git")
        (self.bin / "git").write_text(WRAPPER.format(folder=folder, git=real, command=command))
        (self.bin / "git").chmod(0o755)
        self.forget()

    @property
    def starts(self) -> int:
        return len((self.folder / "starts").read_text().splitlines())

    def forget(self) -> None:
        (self.folder / "starts").write_text("")

    def hold(self) -> None:
        """The next runs wait."""
        os.mkfifo(self.folder / "wait")

    def release(self) -> None:
        """The run that waits goes on, and later ones don't wait."""
        fifo = self.folder / "wait"
        with open(fifo, "w") as file:
            fifo.unlink()
            file.write("go\n")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return Watched(tmp_path_factory.mktemp("watched"), "status")


@pytest.fixture(scope="module")
def here(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    path = f"{watched.bin}:{os.environ['PATH']}"
    with host(tmp_path_factory.mktemp("crowd"), env={"PATH": path}) as made:
        yield made


@pytest.fixture
def case(here: Host, watched: Watched) -> Case:
    made = here.fresh()
    made.commit({"a.txt": b"a\n"}, "first")
    made.status()
    watched.forget()
    return made


class Asker:
    """A client that asks, and reads the answer later."""

    def __init__(self, case: Case) -> None:
        self.connection = http.client.HTTPConnection(case.host.server.url.removeprefix("http://"), timeout=TIMEOUT_S)
        self.target = f"{BASE}/status?path={quote(case.path)}"
        self.connection.connect()

    def ask(self) -> None:
        self.connection.request("GET", self.target)

    def told(self) -> set[str]:
        """The paths of the answer."""
        answer = self.connection.getresponse()
        assert answer.status == 200
        return {file["path"] for file in orjson.loads(answer.read())["files"]}


@pytest.fixture
def askers(case: Case) -> Iterator[list[Asker]]:
    made = [Asker(case) for _ in range(CLIENTS)]
    yield made
    for asker in made:
        asker.connection.close()


def all_have_asked(case: Case) -> None:
    """Wait until the server has read all that was sent to it, and has got round to it."""

    port = f":{int(case.host.server.url.rpartition(':')[2]):04X}"

    def is_read() -> bool:
        for table in ("tcp", "tcp6"):
            lines = Path(f"/proc/{case.host.server.server_pid}/net/{table}").read_text().splitlines()
            ours = [line.split() for line in lines if line.split()[1].endswith(port)]
            if not all(line[4].endswith(":00000000") for line in ours):
                return False
        return True

    eventually(is_read)
    assert case.host.client.get("/health").status_code == 200


def test_one_process_for_all(case: Case, watched: Watched, askers: list[Asker]) -> None:
    """All that come while a run waits share the one after it."""
    case.write("new", "n")
    watched.hold()
    askers[0].ask()
    eventually(lambda: watched.starts == 1)
    for asker in askers[1:]:
        asker.ask()
    all_have_asked(case)
    assert watched.starts == 1
    watched.release()
    assert [asker.told() for asker in askers] == [{"new"}] * CLIENTS
    assert watched.starts == 2


def test_a_burst_is_one_process(case: Case, watched: Watched, askers: list[Asker]) -> None:
    """Of 20 who ask at once when nothing runs: one process, or two on a machine so busy that the last came late."""
    case.write("new", "n")
    for asker in askers:
        asker.ask()
    assert [asker.told() for asker in askers] == [{"new"}] * CLIENTS
    assert watched.starts <= 2


def test_who_asks_after_a_change_gets_it(case: Case, watched: Watched, askers: list[Asker]) -> None:
    """A run that began before the change is not shared."""
    early, late = askers[:2]
    case.write("before", "b")
    watched.hold()
    early.ask()
    eventually(lambda: watched.starts == 1)
    case.write("after", "a")
    late.ask()
    all_have_asked(case)
    watched.release()
    assert late.told() == {"before", "after"}
    assert early.told() >= {"before"}
    assert watched.starts == 2


def test_never_older_than_the_question(case: Case, askers: list[Asker]) -> None:
    """Many write and ask, each its own file: whoever has written sees it."""

    def work(number: int) -> None:
        for turn in range(5):
            name = f"f{number}-{turn}"
            case.write(name, "x")
            askers[number].ask()
            assert name in askers[number].told()
            (case.folder / name).unlink()
            askers[number].ask()
            assert name not in askers[number].told()

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(work, range(CLIENTS)))


def test_one_who_goes_does_not_take_it_from_the_others(case: Case, watched: Watched, askers: list[Asker]) -> None:
    case.write("new", "n")
    watched.hold()
    for asker in askers[:4]:
        asker.ask()
    all_have_asked(case)
    eventually(lambda: watched.starts == 1)
    askers[0].connection.close()
    askers[2].connection.close()
    watched.release()
    assert askers[1].told() == askers[3].told() == {"new"}
    assert case.status()["file_count"] == 1
