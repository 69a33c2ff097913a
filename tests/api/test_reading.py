"""Reading a session: WebSocket, SSE and history give the same bytes, each event once, over drops, restarts and kills."""

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from support.server import (
    ServerProcess,
    create,
    eventually,
    history,
    is_done,
    processes_with,
    receive,
    running,
    session_of,
    wait_status,
)


def sse(
    client: httpx.Client, session_id: str, query: str, headers: dict[str, str], enough: Any
) -> list[tuple[int | None, str]]:
    """Events of an SSE stream, id and data, up to the first whose data is enough."""
    events: list[tuple[int | None, str]] = []
    headers = {"Accept": "text/event-stream", **headers}
    with client.stream("GET", f"/api/v1/agent-sessions/{session_id}/events{query}", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        number = None
        for line in answer.iter_lines():
            if line.startswith("id: "):
                number = int(line[4:])
            elif line.startswith("data: "):
                events.append((number, line[6:]))
                number = None
                if enough(json.loads(events[-1][1])):
                    return events
    return events


def test_the_same_bytes_everywhere(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client)
    got: list[tuple[int | None, str]] = []
    reader = threading.Thread(target=lambda: got.extend(sse(client, session["id"], "?events=all", {}, is_done)))
    reader.start()
    with server.socket(session["id"], "?events=all") as socket:
        client.post(
            f"/api/v1/agent-sessions/{session['id']}/messages", json={"prompt": "think é𝄞\nsay one two\nread x"}
        )
        frames: list[str] = []
        while not is_done(json.loads(frames[-1])) if frames else True:
            frames.append(str(socket.recv(timeout=20)))
    reader.join(20)
    live = [frame for frame in frames if '"seq"' in frame and json.loads(frame)["type"] not in ("ready", "session")]
    page = client.get(f"/api/v1/agent-sessions/{session['id']}/events?events=all").text
    stored = [frame for frame in live if json.loads(frame).get("seq")]
    for frame in stored:
        assert frame in page
    assert [data for number, data in got if number is not None] == stored
    assert [number for number, _ in got if number is not None] == list(range(1, len(stored) + 1))
    deltas = [json.loads(frame) for frame in frames if "_delta" in frame]
    for block in (json.loads(f) for f in stored if json.loads(f)["type"] in ("text", "thinking")):
        pieces = [d for d in deltas if d["id"] == block["id"]]
        assert "".join(d["content"] for d in pieces) == block["content"]
        assert [d["offset"] for d in pieces] == [sum(len(p["content"]) for p in pieces[:n]) for n in range(len(pieces))]


def test_who_joins_in_the_middle_of_a_block_gets_it_from_its_beginning(
    client: httpx.Client, server: ServerProcess
) -> None:
    session = create(client, env={"DEMO_WORD_DELAY_S": "0.05"}, prompt="say " + " ".join(f"w{n}" for n in range(60)))
    with server.socket(session["id"], "?events=text_delta,text") as first:
        receive(first, lambda f: f["type"] == "text_delta" and f["offset"] > 20)
        with server.socket(session["id"], "?events=text_delta,text&tail=0") as second:
            frames = receive(second, lambda f: f["type"] == "text")
    deltas = [frame for frame in frames if frame["type"] == "text_delta"]
    assert deltas[0]["offset"] == 0 and len(deltas[0]["content"]) > 20
    assert "".join(d["content"] for d in deltas) == frames[-1]["content"]


def test_a_client_that_knows_nothing_gets_the_six_types_from_the_start(
    client: httpx.Client, server: ServerProcess
) -> None:
    session = create(client, prompt="think a\nsay b\nplan x | y\nread q")
    wait_status(client, session["id"], "idle")
    with server.socket(session["id"]) as socket:
        frames = receive(socket, is_done)
    assert [f["type"] for f in frames] == ["thinking", "text", "tool_use", "tool_result", "done"]


def test_tail_and_paging(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client)
    path = f"/api/v1/agent-sessions/{session['id']}"
    for number in range(1, 5):
        client.post(path + "/messages", json={"prompt": f"say turn {number}"})
    eventually(lambda: len(history(client, session["id"], "?events=done")) == 4)
    with server.socket(session["id"], "?tail=2") as socket:
        texts = [f["content"] for f in receive(socket, lambda f: f.get("content") == "turn 4") if f["type"] == "text"]
    assert texts == ["turn 3", "turn 4"]
    page = client.get(path + "/events?events=text&limit=2").json()
    assert [e["content"] for e in page["items"]] == ["turn 1", "turn 2"] and page["has_more"] is True
    page = client.get(path + f"/events?events=text&order=desc&limit=2&before={page['items'][1]['seq']}").json()
    assert [e["content"] for e in page["items"]] == ["turn 1"] and page["has_more"] is False
    assert client.get(path + "/events?tail=0").json()["items"] == []
    assert len(client.get(path + "/events?tail=2&events=done").json()["items"]) == 2
    page = client.get(path + "/events?turns=1").json()
    assert [e["type"] for e in page["items"]] == ["text", "done"] and page["items"][0]["content"] == "turn 4"


def test_positions_that_can_not_be_read_on_from(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client, prompt="say hi")
    session = wait_status(client, session["id"], "idle")
    path = f"/api/v1/agent-sessions/{session['id']}/events"
    beyond = client.get(path + f"?after={session['last_seq'] + 1}")
    assert (beyond.status_code, beyond.json()["code"]) == (409, "after_beyond_end")
    assert client.get(path + "?after=1&log_id=log_other").json()["code"] == "after_beyond_end"
    assert client.get(path + f"?after=1&log_id={session['log_id']}").status_code == 200
    for query, code in (
        ("?after=x", 4422),
        ("?events=nonsense", 4422),
        ("?after=999999", 4409),
        ("?after=1&tail=1", 4422),
    ):
        with server.socket(session["id"], query) as socket, pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=20)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == code
    with server.socket("ses_unknown") as socket, pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=20)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4404, "session_not_found")


def test_a_terminated_session_is_read_to_its_end(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client, prompt="wait 60")
    wait_status(client, session["id"], "running")
    frames = []
    with server.socket(session["id"]) as socket:
        client.delete(f"/api/v1/agent-sessions/{session['id']}")
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                frames.append(json.loads(socket.recv(timeout=20)))
    assert frames[-1]["stop_reason"] == "terminated"
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1000
    events = sse(client, session["id"], "", {}, lambda event: False)
    assert json.loads(events[-1][1])["type"] == "done"
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(session_of(client, session["id"])["last_seq"])}
    assert client.get(f"/api/v1/agent-sessions/{session['id']}/events", headers=headers).status_code == 204


def test_a_reader_that_stops_slows_nobody_and_loses_nothing(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client)
    with server.socket(session["id"], max_queue=1) as slow, server.socket(session["id"]) as fast:
        client.post(f"/api/v1/agent-sessions/{session['id']}/messages", json={"prompt": "flood 3000 4000"})
        assert len(receive(fast, is_done)) == 3001
        seqs = [frame["seq"] for frame in receive(slow, is_done)]
    assert len(seqs) == 3001 and seqs == sorted(set(seqs))


def test_trimmed_history(tmp_path: Path) -> None:
    with running(tmp_path, "--history-max-events", "30") as server, server.client() as client:
        session = create(client)
        path = f"/api/v1/agent-sessions/{session['id']}"
        for number in range(12):
            client.post(path + "/messages", json={"prompt": f"say {number}"})
            eventually(lambda number=number: session_of(client, session["id"])["turn_count"] == number + 1)  # type: ignore[misc]
            wait_status(client, session["id"], "idle")
        first = eventually(lambda: (s := session_of(client, session["id"]))["first_seq"] > 1 and s)["first_seq"]
        trimmed = client.get(path + "/events?after=1")
        assert trimmed.status_code == 410
        assert trimmed.json()["code"] == "history_trimmed" and trimmed.json()["first_seq"] >= first
        assert history(client, session["id"])[0]["type"] == "turn_started"


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_server_that_ends_in_the_middle_of_a_turn(tmp_path: Path, how: str) -> None:
    server = ServerProcess(tmp_path).start()
    script = "say before\nrun (setsid env -i sleep 5151 &) ; sleep 5151"
    with server.client() as client:
        session = create(client, prompt=script, permission_mode="auto")
        path = f"/api/v1/agent-sessions/{session['id']}"
        client.post(path + "/messages", json={"prompt": "say queued"})
        seen: list[dict[str, Any]] = []
        closed = None
        with server.socket(session["id"], "?events=all") as socket:
            seen += receive(socket, lambda f: f["type"] == "tool_use")
            eventually(lambda: len(processes_with("sleep\x005151")) == 2)
            server.kill_server() if how == "kill" else server.stop()
            try:
                while True:
                    seen.append(json.loads(socket.recv(timeout=20)))
            except ConnectionClosed as fault:
                closed = fault.rcvd.code if fault.rcvd else None
    assert closed == (None if how == "kill" else 1012)
    eventually(lambda: not processes_with("sleep\x005151"), timeout=5)
    assert processes_with(str(server.state)) == []
    last = max(frame.get("seq", 0) for frame in seen if frame["type"] not in ("ready", "session"))
    server.start()
    with server.client() as client:
        back = session_of(client, session["id"])
        assert back["status"] == "idle" and back["queue"] == {"length": 1, "paused": True}
        with server.socket(session["id"], f"?events=all&after={last}") as socket:
            client.post(path + "/messages", json={"prompt": "recall"})
            later = receive(socket, lambda f: f["type"] == "text" and "asked me before" in f["content"])
        events = history(client, session["id"])
    stored = [f for f in (*seen, *later) if f.get("seq") and f["type"] not in ("ready", "session")]
    assert [f["seq"] for f in stored] == list(range(1, len(stored) + 1))
    assert stored == events[: len(stored)]
    ends = [(e["type"], e.get("code") or e.get("stop_reason")) for e in events if e["type"] in ("error", "done")]
    assert ends[:2] == [("error", "server_restarted"), ("done", "server_restarted")]
    texts = [e["content"] for e in events if e["type"] == "text"]
    assert texts[0] == "before" and "queued" in texts and script.splitlines()[0] in texts[-1]
    assert server.stop() == 0
