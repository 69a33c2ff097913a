"""The general WebSocket and its SSE twin: file changes and system stats to whoever listens."""

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from support.asking import ask
from support.processes import watches
from support.server import TIMEOUT_S, JsonObject, ServerProcess, eventually, running
from workspace_runtime.streams import live_protocol

FRAMES: TypeAdapter[Any] = TypeAdapter(live_protocol.LiveServerFrame)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tmp_path_factory.mktemp("live")) as process:
        yield process


@pytest.fixture
def root(server: ServerProcess, request: pytest.FixtureRequest) -> Path:
    folder: Path = server.workspace / request.node.name[:60]
    folder.mkdir()
    return folder


class Listener:
    """A client of the general WebSocket that holds every frame against its documented shape."""

    def __init__(self, server: ServerProcess, query: str = "") -> None:
        url = f"{server.url.replace('http', 'ws', 1)}/api/v1/ws{query}"
        self.socket: ClientConnection = connect(url, proxy=None, open_timeout=TIMEOUT_S)
        self.seq = 0

    def frame(self) -> JsonObject:
        """The next frame."""
        data: JsonObject = json.loads(self.socket.recv(timeout=TIMEOUT_S))
        FRAMES.validate_python(data)
        if "seq" in data:
            self.seq += 1
            assert data["seq"] == self.seq
        return data

    def changes(self, until: Callable[[JsonObject], bool]) -> list[JsonObject]:
        """Changes of files up to the first that fits."""
        found = []
        while True:
            frame = self.frame()
            if frame["type"] == "file_changed":
                found.append(frame)
                if until(frame):
                    return found

    def ask(self, **frame: Any) -> JsonObject:
        """Send a frame; its answer."""
        self.socket.send(json.dumps({**frame, "request_id": "r"}))
        while True:
            answer = self.frame()
            if answer.get("request_id") == "r":
                return answer


@pytest.fixture
def listener(server: ServerProcess, root: Path) -> Iterator[Listener]:
    made = Listener(server)
    with made.socket:
        (root / "begin").write_text("")  # what was made before is told now, if the watch ran already
        made.changes(lambda change: change["path"] == f"{root.name}/begin")
        assert made.ask(type="watch", paths=[root.name])["type"] == "ack"
        yield made


def marks(listener: Listener, root: Path, act: Callable[[], object]) -> list[tuple[str, str]]:
    """What `act` causes: event and path (from the folder of the test), up to a mark that is made after it."""
    act()
    # within one short window events come in no particular order: the second mark lies in a later one
    (root / "mark").write_text("x")
    found = listener.changes(lambda change: change["path"].endswith("/mark"))
    (root / "mark").unlink()
    found += listener.changes(lambda change: change["path"].endswith("/mark") and change["event_type"] == "deleted")
    return sorted(
        (change["event_type"], change["path"].partition("/")[2])
        for change in found
        if not change["path"].endswith("/mark")
    )


def test_stats_come_at_once(server: ServerProcess) -> None:
    listener = Listener(server)
    with listener.socket:
        frame = listener.frame()
        assert frame["type"] == "system_stats"
        assert set(frame["stats"]) == {"cpu_percent", "memory_percent", "disk_percent"}
        assert all(0 <= value <= 100 for value in frame["stats"].values())
        assert frame["stats"]["disk_percent"] > 0 and frame["stats"]["memory_percent"] > 0
        assert listener.frame()["type"] == "system_stats"


def test_what_the_api_writes_is_told_once(server: ServerProcess, root: Path, listener: Listener) -> None:
    target = f"/api/v1/files/{root.name}/f"
    etags = []
    for body in (b"1", b"22"):
        etags.append(ask(server.url, "PUT", target, body).json["etag"])
    found = listener.changes(lambda change: change["etag"] == etags[1])
    assert {change["path"] for change in found} == {f"{root.name}/f"}
    assert found[0]["event_type"] == "created" and found[-1]["size"] == 2
    assert len(found) <= 2  # two writes within one short window may be told together
    ask(server.url, "DELETE", target)
    last = listener.changes(lambda change: change["event_type"] == "deleted")
    assert len(last) == 1 and last[0]["etag"] is None
    assert ask(server.url, "GET", target).status == 404


def test_editors_and_tools(root: Path, listener: Listener) -> None:
    (root / "f").write_text("one\n")
    (root / "sub").mkdir()
    listener.changes(lambda change: change["path"].endswith("/sub"))

    def shell(command: str) -> Callable[[], object]:
        return lambda: subprocess.run(command, shell=True, cwd=root, check=True)

    assert marks(listener, root, shell("echo two >> f")) == [("modified", "f")]
    assert marks(listener, root, shell("sed -i s/one/three/ f")) == [("modified", "f")]
    assert marks(listener, root, shell("chmod 600 f")) == [("modified", "f")]
    assert marks(listener, root, shell("cat f > /dev/null; ls > /dev/null")) == []
    # as vim writes: the old file becomes the backup, which is removed in the end
    assert marks(listener, root, shell("mv f f~; echo new > f; rm f~")) == [("modified", "f")]
    assert marks(listener, root, shell("echo x > .tmp.1; mv .tmp.1 f")) == [("modified", "f")]
    assert marks(listener, root, shell("mv f sub/g")) == [("created", "sub/g"), ("deleted", "f")]
    assert marks(listener, root, shell("mkdir -p a/b/c; touch a/b/c/d")) == [
        ("created", "a"), ("created", "a/b"), ("created", "a/b/c"), ("created", "a/b/c/d"),
    ]  # fmt: skip
    assert marks(listener, root, shell("rm -rf a")) == [("deleted", "a")]
    assert marks(listener, root, shell("ln -s nothing link")) == [("created", "link")]


@pytest.mark.skipif(
    subprocess.run(["which", "vim"], capture_output=True).returncode != 0, reason="vim is not installed"
)
def test_vim(root: Path, listener: Listener) -> None:
    (root / "f").write_text("one\n")
    listener.changes(lambda change: change["path"].endswith("/f"))
    found = marks(
        listener, root, lambda: subprocess.run(["vim", "-es", "-u", "NONE", "+s/one/two/", "+wq", "f"], cwd=root)
    )
    assert ("modified", "f") in found and len([change for change in found if change[1] == "f"]) == 1


def test_a_client_that_follows_events_knows_where_things_went(root: Path, listener: Listener) -> None:
    (root / "old/deep").mkdir(parents=True)
    (root / "old/deep/f").write_text("1")
    listener.changes(lambda change: change["path"].endswith("/f"))
    os.rename(root / "old", root / "new")
    found = listener.changes(lambda change: change["path"].endswith("new/deep/f"))
    assert {(change["event_type"], change["path"].partition("/")[2]): change["moved_from"] for change in found} == {
        ("deleted", "old"): None,
        ("created", "new"): f"{root.name}/old",
        ("created", "new/deep"): f"{root.name}/old/deep",
        ("created", "new/deep/f"): f"{root.name}/old/deep/f",
    }
    assert [change["is_dir"] for change in found] == [True, True, True, False]


def test_names_that_are_not_utf8(root: Path, listener: Listener) -> None:
    with open(os.path.join(os.fsencode(root), b"caf\xe9\n"), "wb"):
        pass
    found = listener.changes(lambda change: True)
    assert found[0]["path"] == f"{root.name}/caf\ufffd\n"
    assert found[0]["path_bytes"] == f"{root.name}/caf%E9%0A"
    with open(os.path.join(os.fsencode(root), b"after"), "wb"):
        pass
    assert listener.changes(lambda change: True)[0]["path"] == f"{root.name}/after"


def test_a_narrowed_client_hears_of_the_folder_above(root: Path, listener: Listener, server: ServerProcess) -> None:
    (root / "a/b").mkdir(parents=True)
    (root / "c").mkdir()
    listener.changes(lambda change: change["path"].endswith("/c"))
    assert listener.ask(type="watch", paths=[f"{root.name}/a/b/"])["type"] == "ack"
    (root / "c/x").write_text("")
    (root / "a/x").write_text("")
    (root / "a/b/x").write_text("")
    assert [change["path"].partition("/")[2] for change in listener.changes(lambda change: True)] == ["a/b/x"]
    subprocess.run(["rm", "-rf", str(root / "a")], check=True)
    found = listener.changes(lambda change: change["path"] == f"{root.name}/a")
    assert found[-1]["event_type"] == "deleted" and found[-1]["is_dir"]
    assert listener.ask(type="watch", paths=[])["type"] == "ack"
    witness = Listener(server)
    with witness.socket:
        (root / "quiet").write_text("")
        witness.changes(lambda change: change["path"] == f"{root.name}/quiet")
    assert listener.ask(type="watch", paths=[""], paths_bytes=["caf%E9"])["type"] == "ack"
    (root / "loud").write_text("")
    assert listener.changes(lambda change: True)[0]["path"] == f"{root.name}/loud"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"type": "watch", "paths": ["../x"]}, "path_invalid"), ({"type": "watch", "paths": ["/etc"]}, "path_invalid"),
        ({"type": "watch"}, "frame_invalid"), ({"type": "watch", "paths": "x"}, "frame_invalid"),
        ({"type": "watch", "paths": ["x"] * 1001}, "frame_invalid"), ({"type": "prompt", "prompt": "x"}, "frame_invalid"),
        ({"type": "watch", "paths": ["\ud800"]}, "frame_invalid"), ({"type": "ping", "more": 1}, "frame_invalid"),
    ],
)  # fmt: skip
def test_frames_that_are_wrong(server: ServerProcess, frame: JsonObject, code: str) -> None:
    listener = Listener(server)
    with listener.socket:

        def answered(data: str | bytes) -> JsonObject:
            listener.socket.send(data)
            while (answer := listener.frame())["type"] == "system_stats":
                pass
            return answer

        answer = answered(json.dumps(frame))
        assert (answer["type"], answer["code"]) == ("rejected", code)
        assert listener.ask(type="ping") == {"type": "pong", "request_id": "r"}
        assert answered(b"\x00binary")["code"] == "frame_invalid"


def test_an_unknown_topic_is_told(server: ServerProcess) -> None:
    listener = Listener(server, "?topics=weather")
    with listener.socket, pytest.raises(ConnectionClosed) as closed:
        listener.socket.recv(timeout=TIMEOUT_S)
    assert closed.value.rcvd is not None and (closed.value.rcvd.code, closed.value.rcvd.reason) == (
        4422,
        "validation_failed",
    )
    assert ask(server.url, "GET", "/api/v1/events?topics=weather").code == "validation_failed"
    assert ask(server.url, "GET", "/api/v1/events?watch=..").code == "path_invalid"
    with Listener(server, "?topics=files,stats").socket as socket:
        assert json.loads(socket.recv(timeout=TIMEOUT_S))["type"] == "system_stats"


def test_foreign_pages_are_refused_on_the_upgrade(server: ServerProcess) -> None:
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus) as refused:
        connect(
            f"{server.url.replace('http', 'ws', 1)}/api/v1/ws",
            proxy=None,
            additional_headers={"Origin": "http://evil.example"},
        )
    assert refused.value.response.status_code == 403


def test_the_sse_twin(server: ServerProcess, root: Path) -> None:
    found: list[JsonObject] = []
    stands = threading.Event()

    def listen() -> None:
        with httpx.stream(
            "GET", f"{server.url}/api/v1/events?watch={root.name}", timeout=TIMEOUT_S, trust_env=False
        ) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            stands.set()
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    found.append(json.loads(line[6:]))
                    if found[-1].get("path") == f"{root.name}/here":
                        return

    thread = threading.Thread(target=listen)
    thread.start()
    assert stands.wait(TIMEOUT_S)
    (server.workspace / "elsewhere").write_text("")
    (root / "here").write_text("")
    thread.join(TIMEOUT_S)
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
    assert found[0]["type"] == "system_stats" and found[-1]["path"] == f"{root.name}/here"
    assert not any(event.get("path") == "elsewhere" for event in found)
    assert ask(server.url, "HEAD", "/api/v1/events").status == 200


@pytest.mark.long
def test_everything_a_slow_client_missed_is_a_resync(server: ServerProcess, root: Path) -> None:
    """A client does not read while far more happens than is held for it: it is told to list again, and then goes on."""
    slow, quick = Listener(server), Listener(server)
    long = "n" * 200
    with slow.socket, quick.socket:
        seen: set[str] = set()
        reader = threading.Thread(
            target=lambda: seen.update(
                change["path"] for change in quick.changes(lambda change: change["path"].endswith("/last"))
            )
        )
        reader.start()
        for folder in range(60):
            (root / f"{long}{folder:03d}").mkdir()
        for round_ in range(3):
            for folder in range(60):
                for number in range(200):
                    (root / f"{long}{folder:03d}" / f"{long}{number:04d}").write_text("x" * round_)
        (root / "last").write_text("")
        reader.join(TIMEOUT_S)
        assert not reader.is_alive() and len(seen) > 12_000
        while (frame := slow.frame())["type"] != "resync":
            pass
        assert frame["paths"] == [""]
        (root / "afterwards").write_text("")
        slow.changes(lambda change: change["path"] == f"{root.name}/afterwards")


def test_nothing_is_watched_when_nobody_listens(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        pid = server.server_pid
        before = watches(pid)
        with Listener(server).socket:
            eventually(lambda: watches(pid) == before + 1)
        eventually(lambda: watches(pid) == before)
        # and again
        with Listener(server).socket:
            eventually(lambda: watches(pid) == before + 1)


def test_a_stop_lets_listeners_go_with_1012(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        listener = Listener(server)
        with listener.socket:
            listener.frame()
            server.stop()
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    listener.socket.recv(timeout=TIMEOUT_S)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
