"""The server's log: what happened, one line each, with whose request and session it was, and nothing that is nobody's business."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.server import ServerProcess, create, eventually, running, wait_status

TOKEN = "a-token-that-must-not-be-logged"
SECRET = "a-prompt-that-must-not-be-logged"
Line = dict[str, Any]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    env = {
        "WORKSPACE_RUNTIME_TOKEN": TOKEN,
        "WORKSPACE_RUNTIME_TRUSTED_PROXIES": "127.0.0.1",
        "WORKSPACE_RUNTIME_LOG_FORMAT": "json",
        "WORKSPACE_RUNTIME_ACCESS_LOG": "true",
    }
    with running(tmp_path, env=env) as process:
        yield process


def lines(server: ServerProcess) -> list[Line]:
    """The log so far; all that is not the welcome is JSON."""
    return [json.loads(line) for line in list(server.output) if line.startswith("{")]


def line(server: ServerProcess, message: str, **fields: Any) -> Line:
    """The first line that says this, with these fields."""

    def found() -> list[Line]:
        return [one for one in lines(server) if one["message"] == message and fields.items() <= one.items()]

    return eventually(found)[0]  # type: ignore[no-any-return]


def test_what_happened_is_told_with_its_request_and_session(server: ServerProcess) -> None:
    started = line(server, "server started", root=str(server.workspace), url=server.url)
    assert started["version"] and started["level"] == "info"
    with server.client(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        client.headers["X-Request-ID"] = "first"
        session = create(client, prompt=f"say {SECRET}")["id"]
        wait_status(client, session, "idle")
        client.headers["X-Request-ID"] = "second"
        client.post(f"/api/v1/agent-sessions/{session}/messages", json={"prompt": "crash"})
        line(server, "agent ended by itself", session_id=session)
        line(server, "agent ended", session_id=session)
        wait_status(client, session, "idle")
        client.headers["X-Request-ID"] = "third"
        client.post(f"/api/v1/agent-sessions/{session}/messages", json={"prompt": "say again"})
        line(server, "agent started", session_id=session, request_id="third")
        wait_status(client, session, "idle")
        client.headers["X-Request-ID"] = "fourth"
        assert client.delete(f"/api/v1/agent-sessions/{session}").status_code == 204
        assert client.get(f"/api/v1/files?path=&q={SECRET}").status_code in (200, 422)
    line(server, "session created", session_id=session, agent="demo", request_id="first")
    line(server, "agent started", session_id=session, agent="demo", request_id="first")
    assert line(server, "agent ended", session_id=session, request_id="first")["exit_status"] != 0
    assert "exit_status" in line(server, "agent ended", session_id=session, request_id="fourth")
    line(server, "session terminated", session_id=session, request_id="fourth")
    assert server.stop() == 0
    line(server, "server stops", reason="SIGTERM")
    line(server, "server stopped")
    assert SECRET not in "".join(server.output) and TOKEN not in "".join(server.output)


@pytest.mark.parametrize("how", ["authorization", "cookie", "ticket", "form"])
def test_a_failed_sign_in_names_the_client_and_nothing_that_it_showed(server: ServerProcess, how: str) -> None:
    wrong = "what-was-tried-is-not-logged"
    port = server.url.rpartition(":")[2]
    headers = {"X-Forwarded-For": "192.0.2.66, 203.0.113.7", "X-Request-ID": f"by-{how}"}
    headers |= {"Authorization": f"Bearer {wrong}"} if how == "authorization" else {}
    headers |= {"Cookie": f"workspace_runtime_{port}={wrong}"} if how == "cookie" else {}
    with server.client(headers=headers) as client:
        if how == "form":
            answer = client.post("/api/v1/auth/session", json={"token": wrong})
        else:
            answer = client.get("/api/v1/agents", params={"ticket": wrong} if how == "ticket" else {})
    assert answer.status_code == 401
    told = line(server, "sign-in failed", tried=how, request_id=f"by-{how}")
    assert (told["client"], told["level"], told["code"]) == ("203.0.113.7", "warning", "auth_required")
    assert wrong not in "".join(server.output)


def test_what_a_client_chose_can_not_make_a_line_of_the_log(tmp_path: Path) -> None:
    with running(tmp_path, "--access-log") as server:
        assert httpx.get(f"{server.url}/api/v1/files/a%0AERROR%20forged%1B%5B2J", trust_env=False).status_code == 404
        eventually(lambda: [one for one in server.output if "forged" in one])
    told = [one for one in server.output if "forged" in one]
    assert len(told) == 1 and "workspace_runtime.access: request " in told[0] and "\x1b" not in told[0]
