"""No page, frame or header costs more than it should: every list and replay ends at a bound, and stays inside its session."""

import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.server import (
    ServerProcess,
    create,
    eventually,
    history,
    is_done,
    receive,
    running,
    session_of,
    wait_status,
)

MIB = 1024 * 1024


def path_of(session: dict[str, Any]) -> str:
    return f"/api/v1/agent-sessions/{session['id']}"


def memory_mib(pid: int) -> float:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")) / 1024


def test_a_page_of_the_history_ends_at_a_size(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client, prompt="repeat 40 big 500000", permission_mode="auto")
    session = wait_status(client, session["id"], "idle")
    for order in ("asc", "desc"):
        seqs: list[int] = []
        pages = 0
        edge = ""
        while True:
            answer = client.get(f"{path_of(session)}/events?events=all&order={order}{edge}")
            page = answer.json()
            assert len(answer.content) < 4 * MIB + 1000
            assert page["items"] and page["last_seq"] == session["last_seq"]
            seqs += [item["seq"] for item in page["items"]]
            pages += 1
            if not page["has_more"]:
                break
            edge = f"&after={seqs[-1]}" if order == "asc" else f"&before={seqs[-1]}"
        expected = list(range(1, session["last_seq"] + 1))
        assert seqs == (expected if order == "asc" else expected[::-1])
        assert pages >= 5
    one = client.get(f"{path_of(session)}/events?limit=1").json()
    assert len(one["items"]) == 1 and one["has_more"]
    all_of_one = client.get(f"{path_of(session)}/events?events=turn_started").json()
    assert len(all_of_one["items"]) == 1 and not all_of_one["has_more"]


def test_reading_a_long_history_holds_neither_the_server_nor_its_memory(
    client: httpx.Client, server: ServerProcess
) -> None:
    session = create(client, prompt="repeat 60 big 500000", permission_mode="auto")
    wait_status(client, session["id"], "idle")
    before = memory_mib(server.server_pid)
    over = threading.Event()

    def read() -> None:
        with server.client() as reader:
            while not over.is_set():
                reader.get(f"{path_of(session)}/events")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    most = before
    for _ in range(20):
        assert client.get("/health").status_code == 200
        most = max(most, memory_mib(server.server_pid))
    over.set()
    for reader in readers:
        reader.join()
    assert most - before < 100  # three pages on their way, not three histories of 30 MB


def test_lists_of_sessions_and_permissions_end_at_a_size(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client)
    wait_status(client, session["id"], "idle")
    question = "question " + "q" * 1_500_000
    ids = []
    for _ in range(4):
        asking = create(client, prompt=question)
        wait_status(client, asking["id"], "requires_action")
        ids.append(asking["id"])

    def pages(path: str) -> list[list[Any]]:
        found, cursor = [], ""
        while True:
            answer = client.get(f"{path}{cursor}")
            assert answer.status_code == 200, answer.text
            assert len(answer.content) < 5 * MIB
            found.append(answer.json()["items"])
            if answer.json()["next_cursor"] is None:
                return found
            cursor = f"&cursor={answer.json()['next_cursor']}"

    waiting = pages("/api/v1/permissions?status=pending")
    assert [p["session_id"] for page in waiting for p in page] == ids
    assert len(waiting) > 1
    assert [len(page) for page in pages("/api/v1/permissions?status=pending&limit=1")] == [1] * 4
    assert client.get("/api/v1/permissions?status=pending&cursor=x!").json()["code"] == "cursor_invalid"
    for page in waiting:
        for one in page:
            answer = client.post(
                f"/api/v1/agent-sessions/{one['session_id']}/permissions/{one['id']}", json={"decision": "deny"}
            )
            assert answer.status_code == 200
    answered = pages("/api/v1/permissions?status=resolved")
    assert [p["session_id"] for page in answered for p in page] == ids[::-1]
    assert len(answered) > 1
    assert [len(page) for page in pages("/api/v1/permissions?status=resolved&limit=1")] == [1] * 4


@pytest.mark.long
def test_who_joins_in_a_long_block_needs_no_large_frames(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client)
    wait_status(client, session["id"], "idle")
    with server.socket(session["id"], "?events=text_delta") as first:
        client.post(f"{path_of(session)}/messages", json={"prompt": "stream 4000 1000 1000"})
        receive(first, lambda frame: frame.get("offset", 0) > 1_500_000)
        text = ""
        with server.socket(session["id"], "?events=text_delta,text") as late:
            while True:
                frame = late.recv(timeout=30)
                assert len(frame) <= 512 * 1024
                event = json.loads(frame)
                if event["type"] == "text_delta":
                    assert event["offset"] == len(text)
                    text += event["content"]
                elif event["type"] == "text":
                    break
    whole = client.get(path_of(session) + f"/events/{event['seq']}").json()["content"]
    assert text == whole and len(text) == 4_000_000


def test_a_blob_is_read_in_its_own_session_alone(client: httpx.Client, server: ServerProcess) -> None:
    one = create(client, prompt="big 10", permission_mode="auto")
    wait_status(client, one["id"], "idle")
    other = create(client, prompt="big 20\nimage", permission_mode="auto")
    wait_status(client, other["id"], "idle")
    results = [e for e in history(client, other["id"]) if e["type"] == "tool_result"]
    seq, image = results[0]["seq"], results[1]["blocks"][0]["blob_id"]
    assert len(client.get(f"{path_of(other)}/blobs/output-{seq}").content) == 20
    rows = {s["id"] for s in client.get("/api/v1/agent-sessions").json()["items"]}
    assert {one["id"], other["id"]} <= rows
    last = session_of(client, one["id"])["last_seq"]
    for stream in range(1, 6):
        for number in ((stream << 40) | seq, seq + last, 0, 2**40 - 1, 10**13 - 1):
            answer = client.get(f"{path_of(one)}/blobs/output-{number}")
            assert (answer.status_code, answer.json()["code"]) == (404, "blob_not_found")
            if 0 < number < 10**15:
                assert client.get(f"{path_of(one)}/events/{number}").status_code in (404, 422)
    assert client.get(f"{path_of(one)}/blobs/{image}").status_code == 404
    assert client.get(f"{path_of(other)}/blobs/{image}").status_code == 200


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=0-" + "9" * 5000, (200, 206), "0123456789abcdef0123"),
        ("bytes=" + "9" * 5000 + "-", (200, 416), None),
        ("bytes=-" + "9" * 5000, (200, 206), "0123456789abcdef0123"),
        ("bytes=5-9", (206,), "56789"),
        ("bytes=-3", (206,), "123"),
        ("bytes=20-", (416,), None),
        ("bytes=9-5", (200,), "0123456789abcdef0123"),
        ("bytes=٣-", (200,), "0123456789abcdef0123"),
        ("lines=1-2", (200,), "0123456789abcdef0123"),
    ],
)
def test_ranges_of_a_blob(client: httpx.Client, asked: str, status: tuple[int, ...], content: str | None) -> None:
    session = create(client, prompt="big 20", permission_mode="auto")
    wait_status(client, session["id"], "idle")
    seq = next(e["seq"] for e in history(client, session["id"]) if e["type"] == "tool_result")
    answer = client.get(f"{path_of(session)}/blobs/output-{seq}", headers={b"Range": asked.encode()})
    assert answer.status_code in status
    assert content is None or answer.text == content


def test_every_name_of_the_contract_may_be_asked_for(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client)
    names = (
        "text,thinking,tool_use,tool_result,error,done,user_message,turn_started,permission_request,permission_resolved,"
        "queue_updated,plan,usage,status,session_updated,task_updated,commands_updated,mcp_updated,compaction,notice,"
        "text_delta,thinking_delta,tool_input_delta,tool_output_delta,tool_progress,phase"
    )
    wait_status(client, session["id"], "idle")
    with server.socket(session["id"], f"?events={names}") as socket:
        client.post(f"{path_of(session)}/messages", json={"prompt": "say hi"})
        assert receive(socket, is_done)
    assert (
        client.get(f"{path_of(session)}/events?events={names}").json()
        == client.get(f"{path_of(session)}/events?events=all").json()
    )
    assert client.get(f"{path_of(session)}/events?events=phase").json()["items"] == []
    assert client.get(f"{path_of(session)}/events?events=nonsense").status_code == 422


def test_line_ends_of_unicode_stay_inside_an_event(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client)
    word = "one\u2028two\u2029three\u0085four\x0bfive\x1csix\U0001f600"
    client.post(f"{path_of(session)}/messages", json={"prompt": f"say {word}"})
    headers = {"Accept": "text/event-stream"}
    got: list[str] = []
    with client.stream("GET", f"{path_of(session)}/events?events=all", headers=headers) as answer:
        for line in answer.iter_lines():  # cuts at whatever Unicode calls the end of a line
            assert not line or line.startswith((":", "id: ", "data: ")), line
            if line.startswith("data: "):
                got.append(line[6:])
                if json.loads(got[-1])["type"] == "done":
                    break
    events = [json.loads(line) for line in got]
    assert [e["content"] for e in events if e["type"] == "text"] == [word]
    page = client.get(f"{path_of(session)}/events?events=all").content
    for line, event in zip(got, events, strict=True):
        assert "seq" not in event or line.encode() in page  # the same bytes everywhere


def test_line_ends_of_unicode_stay_inside_a_line_of_every_stream(client: httpx.Client, server: ServerProcess) -> None:
    name = "re\u2028po\u2029\u0085"
    folder = server.workspace / name
    folder.mkdir()
    subprocess.run(["git", "init", "-q", folder], check=True)
    subprocess.run(["git", "-C", folder, "remote", "add", "origin", "http://127.0.0.1:9/x"], check=True)
    asked = {"path": name, "wait": "false"}
    fetch = client.post("/api/v1/workspaces/default/version-control/fetch", params=asked, json={})
    assert fetch.status_code == 202, fetch.text
    events = {"Accept": "text/event-stream"}

    def lines(target: str, headers: dict[str, str], until: str) -> str:
        found = []
        with client.stream("GET", target, headers=headers) as answer:
            for line in answer.iter_lines():
                assert not line or line.startswith((":", "id: ", "data: ", "{")), line
                found += [line.removeprefix("data: ")] if line.endswith("}") else []
                if until in line:
                    break
        for line in found:
            json.loads(line)
        return "\n".join(found)

    assert "po" in lines(fetch.headers["location"], events, '"failed"')
    with ThreadPoolExecutor(1) as pool:
        live = pool.submit(lines, "/api/v1/events?topics=files", events, "file_changed")
        while not live.done():
            (folder / f"needle {time.monotonic_ns()}").write_text("a\u2028needle\u2029\u0085\n")
            time.sleep(0.2)
    assert "needle" in live.result()
    assert "\\u2028needle" in lines("/api/v1/search/content?q=needle", {}, '"summary"')


# --- what is removed --------------------------------------------------------------------------------------------------


def files_with(server: ServerProcess, word: bytes) -> list[Path]:
    return [p for p in server.state.rglob("*") if p.is_file() and word in p.read_bytes()]


def test_a_purge_leaves_nothing_of_the_conversation(client: httpx.Client, server: ServerProcess) -> None:
    word = "precious"
    kept = create(client, prompt="say kept")
    session = create(client, prompt=f"say {word}\nask {word}\nimage", title=word)
    permission = eventually(lambda: client.get(f"{path_of(session)}/permissions").json()["items"])[0]
    client.post(f"{path_of(session)}/permissions/{permission['id']}", json={"decision": "allow"})
    wait_status(client, session["id"], "idle")
    branch = create(client, resume={"session_id": session["id"]}, fork=True, prompt="recall")
    wait_status(client, branch["id"], "idle")
    assert any("demo" in str(found) for found in files_with(server, word.encode()))
    assert client.delete(f"{path_of(session)}?purge=true").status_code == 204
    assert client.get(path_of(session)).status_code == 404
    assert [
        e["type"] for e in history(client, branch["id"], "?events=text")
    ]  # the branch has a conversation of its own
    assert client.delete(f"{path_of(branch)}?purge=true").status_code == 204
    assert files_with(server, word.encode()) == []
    assert wait_status(client, kept["id"], "idle")["id"] == kept["id"]


def test_trimming_removes_images_and_answered_permissions_too(tmp_path: Path) -> None:
    with running(tmp_path, "--history-max-events", "30") as server, server.client() as client:
        session = create(client, prompt="image\nask first")
        waiting = eventually(lambda: client.get(f"{path_of(session)}/permissions").json()["items"])
        client.post(f"{path_of(session)}/permissions/{waiting[0]['id']}", json={"decision": "allow"})
        wait_status(client, session["id"], "idle")
        results = [e for e in history(client, session["id"]) if e["type"] == "tool_result"]
        blob = f"{path_of(session)}/blobs/{results[0]['blocks'][0]['blob_id']}"
        output = f"{path_of(session)}/blobs/output-{results[0]['seq']}"
        assert client.get(blob).status_code == client.get(output).status_code == 200
        for number in range(10):
            client.post(f"{path_of(session)}/messages", json={"prompt": f"say {number}\nimage"})
            eventually(lambda number=number: session_of(client, session["id"])["turn_count"] == number + 2)  # type: ignore[misc]
            wait_status(client, session["id"], "idle")
        eventually(lambda: session_of(client, session["id"])["first_seq"] > results[-1]["seq"])
        assert client.get(output).status_code == 404
        eventually(lambda: client.get(blob).status_code == 404)
        eventually(lambda: client.get(f"{path_of(session)}/permissions?status=resolved").json()["items"] == [])
        newest = [e for e in history(client, session["id"]) if e["type"] == "tool_result"][-1]
        assert client.get(f"{path_of(session)}/blobs/{newest['blocks'][0]['blob_id']}").status_code == 200


@pytest.mark.long
def test_deltas_to_nobody_cost_about_their_text(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client)
    for _ in range(2):  # during the first the server still loads what agents need
        wait_status(client, session["id"], "idle")
        before = most = memory_mib(server.server_pid)
        client.post(f"{path_of(session)}/messages", json={"prompt": "stream 100000 1"})
        while session_of(client, session["id"])["status"] != "idle":
            most = max(most, memory_mib(server.server_pid))
            time.sleep(0.02)
    assert most - before < 25


@pytest.mark.long
def test_a_large_frame_of_a_client_is_held_for_as_long_as_it_is_looked_at(
    client: httpx.Client, server: ServerProcess
) -> None:
    session = create(client)
    wait_status(client, session["id"], "idle")
    with server.socket(session["id"], "?tail=0") as socket:
        socket.send('{"type":"ping"}')
        receive(socket, lambda frame: frame["type"] == "pong")
        before = memory_mib(server.server_pid)
        for _ in range(3):
            socket.send(json.dumps({"type": "ping", "padding": "x" * 20_000_000}))
            assert receive(socket, lambda frame: True)[0]["code"] == "frame_invalid"
        eventually(lambda: memory_mib(server.server_pid) - before < 40)
        socket.send('{"type":"ping"}')
        receive(socket, lambda frame: frame["type"] == "pong")
