"""Sessions over HTTP, with the demo agent in a real server."""

import json
import time
from functools import partial

import httpx
import pytest
from pydantic import TypeAdapter

from support.server import ServerProcess, create, eventually, history, processes_with, receive, session_of, wait_status
from workspace_runtime.sessions.routes import AgentList
from workspace_runtime.sessions.schemas import PermissionView, SessionView
from workspace_runtime.streams.protocol import StoredEvent

EVENT: TypeAdapter[object] = TypeAdapter(StoredEvent)


def test_a_turn_as_a_client_of_the_six_types_sees_it(client: httpx.Client) -> None:
    session = create(client, prompt="think hm\nsay Hello world\nread nothing.txt", title="First")
    SessionView.model_validate(session)
    assert session["status"] == "starting" and session["title"] == "First"
    wait_status(client, session["id"], "idle")
    events = history(client, session["id"], "")
    assert [event["type"] for event in events] == ["thinking", "text", "tool_use", "tool_result", "done"]
    assert events[1]["content"] == "Hello world"
    assert events[3]["status"] == "failed" and events[3]["is_error"] is True and isinstance(events[3]["output"], str)
    assert events[4]["stop_reason"] == "end_turn"
    for event in history(client, session["id"]):
        EVENT.validate_python(event)


def test_the_list_pages_newest_first_and_filters(client: httpx.Client) -> None:
    made = [create(client, title=f"Listed {number}", labels=["blue"] if number % 2 else []) for number in range(5)]
    first = client.get("/api/v1/agent-sessions", params={"limit": 2, "q": "listed"}).json()
    assert [item["id"] for item in first["items"]] == [made[4]["id"], made[3]["id"]]
    second = client.get(
        "/api/v1/agent-sessions", params={"limit": 9, "q": "listed", "cursor": first["next_cursor"]}
    ).json()
    assert [item["id"] for item in second["items"]] == [made[n]["id"] for n in (2, 1, 0)]
    assert second["next_cursor"] is None
    blue = client.get("/api/v1/agent-sessions?label=blue").json()["items"]
    assert {item["id"] for item in blue} == {made[1]["id"], made[3]["id"]}
    assert client.get("/api/v1/agent-sessions?agent=claude").json()["items"] == []


def is_resolved(client: httpx.Client, session_id: str, permission_id: str) -> bool:
    return permission_id not in session_of(client, session_id)["pending_permissions"]


def test_permissions_by_http(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client, prompt="write a.txt one\nwrite b.txt two\nwrite c.txt three")
    path = f"/api/v1/agent-sessions/{session['id']}"
    for option in ("deny", "allow"):
        wait_status(client, session["id"], "requires_action")
        (waiting,) = client.get(path + "/permissions").json()["items"]
        PermissionView.model_validate(waiting)
        assert session_of(client, session["id"])["pending_permissions"] == [waiting["id"]]
        answer = client.post(f"{path}/permissions/{waiting['id']}", json={"option_id": option})
        assert answer.status_code == 200 and answer.json()["resolution"]["decision"] == option
        again = client.post(f"{path}/permissions/{waiting['id']}", json={"decision": "deny"})
        assert again.status_code == 409 and again.json()["code"] == "permission_resolved"
        assert again.json()["resolution"]["option_id"] == option
        eventually(partial(is_resolved, client, session["id"], waiting["id"]))
    wait_status(client, session["id"], "requires_action")
    (waiting,) = client.get("/api/v1/permissions").json()["items"]
    edited = {"decision": "allow", "updated_input": {"path": "c.txt", "content": "edited"}}
    assert client.post(f"{path}/permissions/{waiting['id']}", json=edited).status_code == 200
    wait_status(client, session["id"], "idle")
    assert not (server.workspace / "a.txt").exists()
    assert (server.workspace / "b.txt").read_text().strip() == "two"
    assert (server.workspace / "c.txt").read_text().strip() == "edited"
    answered = client.get(path + "/permissions?status=resolved").json()["items"]
    assert [item["resolution"]["decision"] for item in answered] == ["allow", "allow", "deny"]


def test_a_question_and_a_plan(client: httpx.Client) -> None:
    session = create(client, prompt="question Which? | red | blue\npropose First this, then that")
    path = f"/api/v1/agent-sessions/{session['id']}/permissions"
    wait_status(client, session["id"], "requires_action")
    (asked,) = client.get(path).json()["items"]
    assert asked["kind"] == "question" and [o["label"] for o in asked["questions"][0]["options"]] == ["red", "blue"]
    wrong = client.post(f"{path}/{asked['id']}", json={"answers": {"q1": ["green"]}})
    assert wrong.status_code == 422 and wrong.json()["code"] == "permission_answer_invalid"
    assert client.post(f"{path}/{asked['id']}", json={"answers": {"q1": ["blue"]}}).status_code == 200
    plan = eventually(lambda: [p for p in client.get(path).json()["items"] if p["kind"] == "plan"])[0]
    assert plan["plan"] == "First this, then that"
    assert client.post(f"{path}/{plan['id']}", json={"decision": "allow"}).status_code == 200
    wait_status(client, session["id"], "idle")
    results = [event["output"] for event in history(client, session["id"], "?events=tool_result")]
    assert results == ["blue", "The plan was accepted."]


@pytest.mark.parametrize(
    ("script", "seen"),
    [("say a b c d e f g h\nwait 60", "text"), ("run sleep 61", "tool_use"), ("ask me", "permission_request")],
)
def test_an_interrupt_ends_the_turn_once_and_leaves_no_process(client: httpx.Client, script: str, seen: str) -> None:
    session = create(client, prompt=script, permission_mode="auto" if seen == "tool_use" else "ask")
    path = f"/api/v1/agent-sessions/{session['id']}"
    eventually(lambda: seen in [event["type"] for event in history(client, session["id"])])
    started = time.monotonic()
    answer = client.post(path + "/interrupt")
    assert answer.status_code == 200 and answer.json()["stop_reason"] == "interrupted"
    assert time.monotonic() - started < 3
    assert [e["stop_reason"] for e in history(client, session["id"], "?events=done")] == ["interrupted"]
    assert history(client, session["id"], "?events=error") == []
    assert session_of(client, session["id"])["status"] == "idle"
    assert processes_with("sleep 61") == []
    assert client.post(path + "/interrupt").status_code == 204


def test_terminate_reopen_and_purge(client: httpx.Client) -> None:
    session = create(client, prompt="run (setsid env -i sleep 4242 &) ; sleep 4242", permission_mode="auto")
    path = f"/api/v1/agent-sessions/{session['id']}"
    eventually(lambda: len(processes_with("sleep\x004242")) == 2)
    assert client.delete(path).status_code == 204
    assert processes_with("sleep\x004242") == []
    assert client.delete(path).status_code == 204
    assert session_of(client, session["id"])["status"] == "terminated"
    refused = client.post(path + "/messages", json={"prompt": "say hi"})
    assert refused.status_code == 409 and refused.json()["code"] == "session_terminated"
    assert client.post(path + "/reopen").json()["status"] == "idle"
    assert client.post(path + "/messages", json={"prompt": "recall"}).status_code == 202
    eventually(lambda: "setsid" in (session_of(client, session["id"])["last_message"] or {})["text"])
    assert client.delete(path + "?purge=true").status_code == 204
    assert client.get(path).status_code == 404
    assert client.delete(path).json()["code"] == "session_not_found"


def test_a_session_works_in_its_folder_with_its_environment(client: httpx.Client, server: ServerProcess) -> None:
    (server.workspace / "sub").mkdir(exist_ok=True)
    session = create(
        client,
        cwd="sub",
        env={"GREETING": "hello-there"},
        permission_mode="auto",
        prompt="run pwd; echo $GREETING; env | grep -c TOKEN",
    )
    wait_status(client, session["id"], "idle")
    (result,) = history(client, session["id"], "?events=tool_result")
    assert result["output"].startswith(f"{server.workspace}/sub\nhello-there\n0")
    assert "hello-there" not in client.get(f"/api/v1/agent-sessions/{session['id']}").text


def test_patch_changes_the_running_agent(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client)
    wait_status(client, session["id"], "idle")
    path = f"/api/v1/agent-sessions/{session['id']}"
    changed = client.patch(path, json={"title": "New", "labels": ["x"], "permission_mode": "auto"})
    assert changed.status_code == 200 and changed.json()["permission_mode"] == "auto"
    client.post(path + "/messages", json={"prompt": "write patched.txt yes"})
    eventually(lambda: (server.workspace / "patched.txt").exists())


def test_retries_with_a_key_are_one(client: httpx.Client) -> None:
    body = {"agent": "demo", "title": "Once"}
    answers = [client.post("/api/v1/agent-sessions", json=body, headers={"Idempotency-Key": "k1"}) for _ in range(2)]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    path = f"/api/v1/agent-sessions/{answers[0].json()['id']}/messages"
    message = {"prompt": "say once", "client_message_id": "m1"}
    first, second = client.post(path, json=message), client.post(path, json=message)
    assert first.json() == second.json() and first.status_code == second.status_code == 202
    other = client.post(path, json={**message, "prompt": "say other"})
    assert other.status_code == 422 and other.json()["code"] == "idempotency_conflict"


def test_a_big_output_is_cut_and_can_be_had_whole(client: httpx.Client) -> None:
    session = create(client, prompt="big 5000000\nimage")
    wait_status(client, session["id"], "idle")
    path = f"/api/v1/agent-sessions/{session['id']}"
    big, picture = history(client, session["id"], "?events=tool_result")
    assert big["truncated"] is True and big["size"] == 5_000_000 and len(big["output"]) < 512 * 1024
    whole = client.get(big["href"]).json()
    assert len(whole["output"]) == 5_000_000 and whole["seq"] == big["seq"]
    part = client.get(f"{path}/blobs/{big['blob_id']}", headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.text == whole["output"][10:20]
    assert part.headers["content-range"] == "bytes 10-19/5000000"
    assert client.get(f"{path}/blobs/{big['blob_id']}", headers={"Range": "bytes=9000000-"}).status_code == 416
    (block,) = picture["blocks"]
    image = client.get(f"{path}/blobs/{block['blob_id']}")
    assert image.headers["content-type"] == "image/png" and len(image.content) == block["bytes"]
    assert image.content.startswith(b"\x89PNG")


def test_prompts_with_images_and_files(client: httpx.Client, server: ServerProcess) -> None:
    (server.workspace / "note.txt").write_text("a note")
    picture = "iVBORw0KGgo="
    session = create(
        client,
        prompt=[{"type": "image", "mime_type": "image/png", "data": picture}, {"type": "file", "path": "note.txt"}],
    )
    wait_status(client, session["id"], "idle")
    events = history(client, session["id"])
    (message,) = [event for event in events if event["type"] == "user_message"]
    assert message["prompt"][0]["type"] == "image" and "data" not in message["prompt"][0]
    assert "I see an image of 8 bytes" in next(e["content"] for e in events if e["type"] == "text")
    assert next(e["output"] for e in events if e["type"] == "tool_result") == "a note"


def test_an_agent_that_crashes_in_the_middle_remembers(client: httpx.Client) -> None:
    session = create(client, prompt="say before\ncrash")
    wait_status(client, session["id"], "idle")
    events = history(client, session["id"], "")
    assert [e["type"] for e in events] == ["text", "error", "done"]
    assert events[1]["code"] == "agent_died" and events[2]["stop_reason"] == "agent_died"
    client.post(f"/api/v1/agent-sessions/{session['id']}/messages", json={"prompt": "recall"})
    eventually(lambda: "say before" in history(client, session["id"], "?events=text")[-1]["content"])


def test_frames_on_the_socket(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client)
    with server.socket(session["id"], "?events=all") as socket:
        opening = receive(socket, lambda frame: frame["type"] == "ready")
        assert opening[0]["type"] == "session" and opening[0]["session"]["id"] == session["id"]
        socket.send('{"type": "ping", "request_id": "p"}')
        assert receive(socket, lambda f: f["type"] == "pong")[-1]["request_id"] == "p"
        socket.send('{"type": "prompt", "prompt": "ask me", "request_id": "a"}')
        ack = receive(socket, lambda f: f["type"] == "ack")[-1]
        assert ack["request_id"] == "a" and ack["turn_id"]
        request = receive(socket, lambda f: f["type"] == "permission_request")[-1]
        for frame, code in (
            ("nonsense", "frame_invalid"),
            ('{"type": "unknown"}', "frame_invalid"),
            ("[1]", "frame_invalid"),
            ('{"type": "prompt", "prompt": 7}', "frame_invalid"),
            ('{"type": "permission", "permission_id": "perm_x", "decision": "allow"}', "permission_not_found"),
        ):
            socket.send(frame)
            assert receive(socket, lambda f: f["type"] == "rejected")[-1]["code"] == code
        socket.send(f'{{"type": "permission", "permission_id": "{request["permission_id"]}", "option_id": "allow"}}')
        receive(socket, lambda f: f["type"] == "done")
        socket.send('{"type": "prompt", "prompt": "wait 60"}')
        receive(socket, lambda f: f["type"] == "status" and f["status"] == "running")
        socket.send('{"type": "interrupt", "request_id": "i"}')
        frames = receive(socket, lambda f: f["type"] == "ack" and f["request_id"] == "i")
        assert [f["stop_reason"] for f in frames if f["type"] == "done"] == ["interrupted"]


def test_agents_are_listed_with_what_they_can(client: httpx.Client) -> None:
    agents = AgentList.model_validate(client.get("/api/v1/agents").json()).items
    by_id = {agent.id: agent for agent in agents}
    assert set(by_id) == {"claude", "demo"}
    demo, claude = by_id["demo"], by_id["claude"]
    assert demo.installed and demo.signed_in and "no AI" in demo.name
    assert claude.installed and claude.version and claude.signed_in is False and "ANTHROPIC_API_KEY" in claude.sign_in
    assert {"default", "acceptEdits", "plan", "bypassPermissions"} <= {mode.id for mode in claude.modes}
    assert [mode.id for mode in claude.modes if mode.dangerous]
    assert claude.capabilities["steer"] and claude.capabilities["updated_input"]


def test_a_conversation_is_resumed_and_forked(client: httpx.Client) -> None:
    first = create(client, prompt="say the first thing")
    wait_status(client, first["id"], "idle")
    busy = client.post("/api/v1/agent-sessions", json={"agent": "demo", "resume": {"session_id": first["id"]}})
    assert busy.status_code == 409 and busy.json()["code"] == "session_active"
    fork = create(client, resume={"session_id": first["id"]}, fork=True, prompt="recall")
    wait_status(client, fork["id"], "idle")
    fork = session_of(client, fork["id"])
    native = session_of(client, first["id"])["native_session_id"]
    assert fork["parent_session_id"] == first["id"] and fork["native_session_id"] != native
    client.delete(f"/api/v1/agent-sessions/{first['id']}")
    again = create(client, resume={"native_session_id": native}, prompt="recall")
    wait_status(client, again["id"], "idle")
    assert session_of(client, again["id"])["native_session_id"] == native
    for session in (fork, again):
        assert "say the first thing" in history(client, session["id"], "?events=text")[-1]["content"]
    wrong = create(client, resume={"native_session_id": "never-was"})
    failed = wait_status(client, wrong["id"], "failed")
    assert failed["error"]["code"].startswith("agent_")


def test_nothing_that_was_put_off_runs_after_a_stop(client: httpx.Client, server: ServerProcess) -> None:
    for prompt, stops in (("later 0.5 run touch ran\nwait 20", 200), ("later 0.5 run touch ran\nsay x", 204)):
        session = create(client, prompt=f"pace 0\n{prompt}", permission_mode="auto")
        path = f"/api/v1/agent-sessions/{session['id']}"
        eventually(lambda id=session["id"]: [e for e in history(client, id) if e["type"] == "task_updated"])  # type: ignore[misc]
        if stops == 204:
            wait_status(client, session["id"], "idle")
        assert client.post(f"{path}/interrupt", json={"queue": "drop"}).status_code == stops
        time.sleep(0.8)
        assert not (server.workspace / "ran").exists()
        told = [event["task"]["status"] for event in history(client, session["id"]) if event["type"] == "task_updated"]
        assert told == ["running", "stopped"]
        assert session_of(client, session["id"])["status"] == "idle"
        client.post(f"{path}/messages", json={"prompt": "later 0.1 say afterwards"})
        eventually(lambda id=session["id"]: "afterwards" in str(history(client, id)[-8:]))  # type: ignore[misc]


def test_a_retry_may_take_the_other_way(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client)
    path = f"/api/v1/agent-sessions/{session['id']}/messages"
    with server.socket(session["id"]) as socket:
        for number, delivery in enumerate(("queue", "interrupt")):
            message = {"prompt": "say once", "client_message_id": f"m{number}", "delivery": delivery}
            socket.send(json.dumps({"type": "prompt", "request_id": "r", **message}))
            (ack,) = receive(socket, lambda frame: frame["type"] in ("ack", "rejected"))[-1:]
            answer = client.post(path, json=message)
            assert (answer.status_code, answer.json()["turn_id"]) == (202, ack["turn_id"])


def test_a_refusal_is_no_larger_than_what_may_be_asked(client: httpx.Client, server: ServerProcess) -> None:
    with server.socket(create(client)["id"]) as socket:
        socket.send(json.dumps({"type": "ping", "request_id": "r" * 5_000_000}))
        (refused,) = receive(socket, lambda frame: frame["type"] == "rejected")[-1:]
        assert refused["request_id"] == "r" * 200
