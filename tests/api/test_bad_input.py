"""Bad input: each with its documented code, and nothing changed by it."""

import json
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from support.server import ServerProcess, create, eventually, session_of, wait_status
from workspace_runtime.errors import PROBLEMS

SESSIONS = "/api/v1/agent-sessions"


def check(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == status == PROBLEMS[code].status and body["title"] == PROBLEMS[code].title
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return body


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"agent": "nobody"}, 404, "agent_not_found"),
        ({"agent": "demo", "model": "gpt-x"}, 422, "model_not_found"),
        ({"agent": "demo", "permission_mode": "yolo"}, 422, "mode_not_found"),
        ({"agent": "demo", "effort": "high"}, 422, "effort_not_found"),
        ({"agent": "demo", "system_prompt": "x"}, 409, "not_supported"),
        ({"agent": "demo", "max_turns": 3}, 409, "not_supported"),
        ({"agent": "demo", "env": {"A": "b" * 200_000}}, 422, "validation_failed"),
        ({"agent": "demo", "env": {f"A{number}": "b" * 100 for number in range(1000)}}, 422, "validation_failed"),
        ({"agent": "claude", "system_prompt": "ü" * 60_000}, 422, "validation_failed"),
        ({"agent": "demo", "cwd": "../elsewhere"}, 400, "path_invalid"),
        ({"agent": "demo", "cwd": "/etc"}, 400, "path_invalid"),
        ({"agent": "demo", "cwd": "link"}, 403, "path_outside"),
        ({"agent": "demo", "cwd": "nowhere"}, 400, "path_invalid"),
        ({"agent": "demo", "cwd": "a\0b"}, 400, "path_invalid"),
        ({"agent": 7}, 422, "validation_failed"),
        ({"agent": "demo", "prompt": ""}, 422, "validation_failed"),
        ({"agent": "demo", "prompt": "  \n"}, 422, "validation_failed"),
        ({"agent": "demo", "prompt": []}, 422, "validation_failed"),
        (
            {"agent": "demo", "prompt": [{"type": "image", "mime_type": "image/png", "data": "%%"}]},
            422,
            "validation_failed",
        ),
        ({"agent": "demo", "prompt": [{"type": "file", "path": "../x"}]}, 400, "path_invalid"),
        ({"agent": "demo", "prompt": [{"type": "file", "path": "nowhere"}]}, 404, "file_not_found"),
        ({"agent": "demo", "nonsense": 1}, 422, "validation_failed"),
        ({"agent": "demo", "labels": ["x" * 101]}, 422, "validation_failed"),
        ({"agent": "demo", "permission_timeout_s": -1}, 422, "validation_failed"),
        ({"agent": "demo", "fork": True}, 422, "validation_failed"),
        ({"agent": "demo", "resume": {}}, 422, "validation_failed"),
        ({"agent": "demo", "resume": {"session_id": "ses_x"}}, 404, "session_not_found"),
        ({"agent": "demo", "env": {"A=B": "x"}}, 422, "validation_failed"),
        ([], 422, "validation_failed"),
    ],
)
def test_creating(client: httpx.Client, server: ServerProcess, body: Any, status: int, code: str) -> None:
    link = server.workspace / "link"
    if not link.is_symlink():
        link.symlink_to("/etc")
    before = client.get(SESSIONS + "?limit=1000").json()["items"]
    problem = check(
        client.post(SESSIONS, content=json.dumps(body), headers={"Content-Type": "application/json"}), status, code
    )
    if code == "validation_failed":
        assert problem["errors"] and all(set(row) == {"loc", "msg", "type"} for row in problem["errors"])
    assert client.get(SESSIONS + "?limit=1000").json()["items"] == before


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed_json"),
        (b"\xff\xfe", "application/json", 400, "malformed_json"),
        (b'{"permission_timeout_s": 1e999, "agent": "demo"}', "application/json", 422, "validation_failed"),
        (b'{"permission_timeout_s": NaN, "agent": "demo"}', "application/json", 422, "validation_failed"),
        (b"[" * 100_000, "application/json", 400, "malformed_json"),
        (b'{"agent": "demo", "title": "\\ud800"}', "application/json", 422, "validation_failed"),
        (b'{"agent": "demo", "prompt": "say \\udfff"}', "application/json", 422, "validation_failed"),
        (b'{"agent": "demo", "env": {"A": "\\ud800"}}', "application/json", 422, "validation_failed"),
        (b"agent=demo", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
    ],
)
def test_bodies(client: httpx.Client, content: bytes, content_type: str, status: int, code: str) -> None:
    check(client.post(SESSIONS, content=content, headers={"Content-Type": content_type}), status, code)


def test_a_body_too_large(client: httpx.Client) -> None:
    big = b'{"agent": "demo", "title": "' + b"x" * (33 * 1024 * 1024) + b'"}'
    headers = {"Content-Type": "application/json"}
    check(client.post(SESSIONS, content=big, headers=headers), 413, "body_too_large")
    check(client.post(SESSIONS, content=iter([big]), headers=headers), 413, "body_too_large")  # chunked: no length told


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/v1/nonsense", 404, "not_found"),
        ("GET", "/api/v1/agents/", 404, "not_found"),
        ("DELETE", "/api/v1/agents", 405, "method_not_allowed"),
        ("GET", SESSIONS + "/ses_nobody", 404, "session_not_found"),
        ("DELETE", SESSIONS + "/ses_nobody", 404, "session_not_found"),
        ("GET", SESSIONS + "/ses_nobody/events", 404, "session_not_found"),
        ("POST", SESSIONS + "/ses_nobody/interrupt", 404, "session_not_found"),
        ("GET", SESSIONS + "?limit=0", 422, "validation_failed"),
        ("GET", SESSIONS + "?limit=1001", 422, "validation_failed"),
        ("GET", SESSIONS + "?cursor=%00", 400, "cursor_invalid"),
        ("GET", SESSIONS + "?cursor=abcd", 400, "cursor_invalid"),
        ("GET", SESSIONS + "?status=odd", 422, "validation_failed"),
    ],
)
def test_paths_and_queries(client: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    check(client.request(method, path), status, code)


def test_events_and_blobs_that_are_not_there(client: httpx.Client) -> None:
    session = create(client)
    path = f"{SESSIONS}/{session['id']}"
    check(client.get(path + "/events/99999"), 404, "event_not_found")
    check(client.get(path + "/events/x"), 422, "validation_failed")
    check(client.get(path + "/blobs/blob_x"), 404, "blob_not_found")
    check(client.get(path + "/blobs/output-99999"), 404, "blob_not_found")
    check(client.get(path + "/events?after=-1"), 422, "validation_failed")
    check(client.get(path + "/events?after=99999999999999999999"), 422, "validation_failed")
    check(client.get(path + "/events?events=odd"), 422, "validation_failed")


def test_a_full_queue(client: httpx.Client) -> None:
    session = create(client, prompt="wait 60")
    wait_status(client, session["id"], "running")
    path = f"{SESSIONS}/{session['id']}/messages"
    places = [client.post(path, json={"prompt": f"say {n}"}).json()["position"] for n in range(32)]
    assert places == list(range(1, 33))
    check(client.post(path, json={"prompt": "say 33"}), 429, "queue_full")
    assert session_of(client, session["id"])["queue"]["length"] == 32
    client.post(f"{SESSIONS}/{session['id']}/interrupt", json={"queue": "drop"})
    assert session_of(client, session["id"])["queue"] == {"length": 0, "paused": False}


def test_answers_that_can_not_be_passed_on(client: httpx.Client) -> None:
    session = create(client, prompt="ask me")
    wait_status(client, session["id"], "requires_action")
    path = f"{SESSIONS}/{session['id']}/permissions"
    (asked,) = client.get(path).json()["items"]
    for value in ('"\\ud800"', "9" * 30, "[" * 300 + "]" * 300):
        body = f'{{"decision": "allow", "updated_input": {{"text": {value}}}}}'
        answer = client.post(f"{path}/{asked['id']}", content=body, headers={"Content-Type": "application/json"})
        check(answer, 422, "validation_failed")
    lines = [{"type": "file", "path": "a", "start_line": 10**30}]
    check(client.post(f"{SESSIONS}/{session['id']}/messages", json={"prompt": lines}), 422, "validation_failed")
    assert session_of(client, session["id"])["status"] == "requires_action"


def test_a_frame_too_large_closes_with_1009(client: httpx.Client, server: ServerProcess) -> None:
    session = create(client)
    with server.socket(session["id"]) as socket, pytest.raises(ConnectionClosed) as closed:
        socket.send("x" * (33 * 1024 * 1024))
        socket.recv(timeout=20)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
    eventually(lambda: client.get("/health").status_code == 200)


def test_every_get_has_its_head(client: httpx.Client) -> None:
    session = create(client)
    paths = ["/health", "/docs", "/redoc", "/openapi.json", "/api/v1", "/api/v1/agents", SESSIONS]
    paths += [f"{SESSIONS}/{session['id']}", f"{SESSIONS}/{session['id']}/events", "/api/v1/permissions"]
    for path in paths:
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"") == (200, b""), path
        assert head.headers["content-type"] == got.headers["content-type"]
    stream = client.head(f"{SESSIONS}/{session['id']}/events", headers={"Accept": "text/event-stream"})
    assert stream.status_code == 200 and stream.headers["content-type"].startswith("text/event-stream")


def test_the_request_id_is_taken_or_made(client: httpx.Client) -> None:
    assert client.get("/health", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert client.get("/health", headers={"X-Request-ID": "not good"}).headers["x-request-id"] != "not good"


def test_pages_work_without_the_internet(client: httpx.Client) -> None:
    for path in ("/docs", "/redoc"):
        page = client.get(path)
        assert "cdn" not in page.text and "default-src 'self'" in page.headers["content-security-policy"]
    home = client.get("/")
    assert home.status_code == 307 and home.headers["location"] == "/docs"
    about = client.get("/api/v1").json()
    assert about["workspace"]["id"] == "default" and about["limits"]["max_queue_length"] == 32
