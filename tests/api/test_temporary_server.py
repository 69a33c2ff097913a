"""`run` without a server: all that come share a temporary one, which ends with the last of them. `serve` waits for it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.server import eventually, processes_with
from support.terminal import COMMAND, environment

LONG = 30.0


class Place:
    """A workspace that nobody serves, with the commands that are started in it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.root = folder / "workspace"
        self.state = self.home / ".local" / "state" / "workspace-runtime"
        for path in (self.home, self.root):
            path.mkdir()
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, cwd: Path | None = None) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=cwd or self.root, env=environment(self.home), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, prompt: str, *more: str, cwd: Path | None = None) -> "subprocess.Popen[str]":
        return self.start("run", "--agent", "demo", *more, prompt, cwd=cwd)

    def servers(self) -> list[int]:
        """The processes of servers for this workspace, keepers too."""
        return [pid for pid in processes_with(str(self.home)) if pid not in [process.pid for process in self.started]]

    def interrupt(self) -> None:
        """Stop all turns, as any client may."""
        with httpx.Client(base_url=str((self.told() or {})["url"]), timeout=LONG) as client:
            for session in client.get("/api/v1/agent-sessions?status=running").json()["items"]:
                client.post(f"/api/v1/agent-sessions/{session['id']}/interrupt", json={})

    def told(self) -> dict[str, object] | None:
        """What the running server tells of itself."""
        for path in self.state.glob("*/server.json"):
            return dict(json.loads(path.read_text()))
        return None


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.terminate()
            process.wait(LONG)
        if process.stdout is not None:
            process.stdout.close()
    eventually(lambda: not made.servers())


def said(process: "subprocess.Popen[str]", words: str) -> str:
    """The output up to a line that holds these words."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"it ended before {words!r}: {lines}")


def ended(process: "subprocess.Popen[str]", status: int = 0) -> str:
    """The rest of the output of a command that ends with this status."""
    output, _ = process.communicate(timeout=50)
    assert process.returncode == status, output
    return output


def test_the_first_to_end_leaves_the_others_alone_and_the_last_leaves_nothing(place: Place) -> None:
    first = place.run("say A")
    said(first, "A")
    second = place.run("say B\n" + "wait 0.1\n" * 5 + "say Bend")
    assert "Bend" in ended(second)
    ended(first)
    assert place.servers() == [] and place.told() is None


def test_the_others_go_on_when_the_one_that_started_it_is_killed(place: Place) -> None:
    first = place.run("say A\nwait 60")
    said(first, "A")
    second = place.run("say B\nwait 1\nsay Bend")
    said(second, "B")
    first.kill()
    first.wait(LONG)
    assert "Bend" in ended(second)
    eventually(lambda: not place.servers())


def test_nothing_stays_of_a_command_that_is_killed(place: Place) -> None:
    only = place.run("say A\nwait 60")
    said(only, "A")
    assert place.servers()
    only.kill()
    only.wait(LONG)
    eventually(lambda: not place.servers(), timeout=15)


@pytest.mark.parametrize("count", [3, pytest.param(12, marks=pytest.mark.long)])
def test_started_at_the_same_instant_all_work_and_share_one_server(place: Place, count: int) -> None:
    processes = [place.run(f"say number {number}.") for number in range(count)]
    for number, process in enumerate(processes):
        assert f"number {number}." in ended(process)
    eventually(lambda: not place.servers())
    assert len(list(place.state.glob("*/log.sqlite3"))) == 1


def test_serve_waits_for_the_last_client_and_takes_over(place: Place) -> None:
    running = place.run("say A\nwait 60")
    said(running, "A")
    server = place.start("serve", "--port", "0")
    said(server, "A temporary server")
    place.interrupt()
    assert "Interrupted." in ended(running, 130)
    said(server, "Ctrl-C stops")
    assert (place.told() or {})["temporary"] is False
    assert "Hello" in ended(place.run("say Hello"))


def test_the_waiting_of_serve_can_be_given_up(place: Place) -> None:
    running = place.run("say A\nwait 60")
    said(running, "A")
    server = place.start("serve", "--port", "0")
    said(server, "A temporary server")
    server.send_signal(signal.SIGINT)
    ended(server, 130)
    place.interrupt()
    assert "Interrupted." in ended(running, 130)


def test_whoever_is_connected_is_a_client_too(place: Place) -> None:
    """Somebody who found the temporary server, and looks on."""
    running = place.run("say A\nwait 60")
    said(running, "A")
    told = place.told()
    assert told is not None
    with httpx.Client(base_url=str(told["url"])) as client, client.stream("GET", "/api/v1/events") as events:
        running.terminate()
        running.wait(LONG)
        with httpx.Client(base_url=str(told["url"])) as other:
            assert other.get("/health").json()["status"] == "ok"
        assert events.status_code == 200 and place.told() == told
    eventually(lambda: not place.servers())


def test_below_a_served_folder_its_server_is_found_as_git_does(place: Place) -> None:
    folder = place.root / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "here.txt").write_text("found me")
    server = place.start("serve", "--port", "0")
    said(server, "Ctrl-C stops")
    assert "found me" in ended(place.run("read here.txt", cwd=folder))
    assert len(list(place.state.iterdir())) == 1
    report = place.start("doctor", cwd=folder)
    assert str((place.told() or {})["url"]) in report.communicate(timeout=50)[0]


def test_a_server_that_cannot_start_is_told_with_its_reason(place: Place) -> None:
    place.state.parent.mkdir(parents=True)
    place.state.write_text("no folder")
    output, _ = place.run("say x").communicate(timeout=50)
    assert "can't be written" in output and "Traceback" not in output


def test_nothing_of_the_workspace_is_imported_by_the_temporary_server(place: Place) -> None:
    """The workspace may hold what nobody has looked at."""
    package = place.root / "workspace_runtime"
    package.mkdir()
    for name in ("__init__.py", "json.py"):
        (package / name).write_text("raise SystemExit('imported')")
    (place.root / "json.py").write_text("raise SystemExit('imported')")
    script = Path(sys.executable).parent / "workspace-runtime"
    output = subprocess.run(
        [str(script), "run", "--agent", "demo", "say Safe"], cwd=place.root, env=environment(place.home),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert output.stdout == "Safe\n", output.stderr


def test_a_start_waits_for_a_server_that_is_ending(place: Place) -> None:
    first = place.start("serve", "--port", "0")
    said(first, "Ctrl-C stops")
    running = place.run("say A\nwait 60")
    said(running, "A")
    os.kill(first.pid, signal.SIGKILL)  # its keeper: the server ends by itself, and takes a moment
    second = place.start("serve", "--port", "0")
    said(second, "Ctrl-C stops")
    running.wait(LONG)


def test_a_second_server_is_told_where_the_first_is(place: Place) -> None:
    first = place.start("serve", "--port", "0")
    said(first, "Ctrl-C stops")
    url = str((place.told() or {})["url"])
    second = place.start("serve", "--port", url.rsplit(":", 1)[1])
    output, _ = second.communicate(timeout=50)
    assert second.returncode == 2 and url in output and "already uses" in output
