"""Who may connect, at a real server: peers, Host, Origin, token, cookie, tickets, proxies."""

import base64
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from support.guarded_server import NOBODY, as_user, needs_root, read_all
from support.server import ServerProcess, create, running

TOKEN = "t" * 40
SESSIONS = "/api/v1/agent-sessions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tmp_path_factory.mktemp("open")) as process:
        yield process


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    options = ["--allowed-origins", "https://app.example", "--root-path", "/ws/one", "--trusted-proxies", "127.0.0.1"]
    options += ["--allowed-hosts", "proxy.example"]
    folder = tmp_path_factory.mktemp("locked")
    with running(folder, *options, env={"WORKSPACE_TOKEN": TOKEN}) as process:
        process.url = process.url.removesuffix("/ws/one")
        yield process


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


@needs_root
@pytest.mark.parametrize("closes", [False, True])
def test_another_user_is_refused(server: ServerProcess, closes: bool) -> None:
    port = int(server.url.rpartition(":")[2])
    body = b'{"agent": "demo", "title": "intruder"}'
    head = f"POST {SESSIONS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    for _ in range(20 if closes else 1):
        with as_user(NOBODY):
            intruder = socket.create_connection(("127.0.0.1", port))
        with intruder:
            intruder.sendall(head.encode() + b"\r\n\r\n" + body)
            if not closes:
                answer = read_all(intruder)
                assert answer.startswith(b"HTTP/1.1 403") and b"peer_refused" in answer
    with server.client() as client:
        assert client.get(f"{SESSIONS}?q=intruder").json()["items"] == []
        assert client.get("/health").json()["version"]


def test_foreign_names_and_origins(server: ServerProcess) -> None:
    with server.client() as client:
        session = create(client)
        for headers, wanted in (
            ({"Host": "evil.example"}, (421, "host_refused")),
            ({"Host": "localhost:1:2"}, (400, "bad_host")),
            ({"Origin": "https://evil.example"}, (403, "origin_refused")),
            ({"Origin": "null"}, (403, "origin_refused")),
            ({"Sec-Fetch-Site": "cross-site"}, (403, "origin_refused")),
        ):
            assert code(client.get("/api/v1", headers=headers)) == wanted
            assert code(client.post(SESSIONS, json={"agent": "demo"}, headers=headers)) == wanted
            assert client.get("/health", headers=headers).json() == {"status": "ok"}
        port = server.url.rpartition(":")[2]
        own = {"Origin": f"http://localhost:{port}", "Host": f"localhost:{port}"}
        assert client.get("/api/v1", headers=own).status_code == 200
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert client.get("/docs", headers=link).status_code == 200
    for origin in ("https://evil.example", "null"):
        with pytest.raises(InvalidStatus) as refused:
            server.socket(session["id"], origin=origin)
        assert refused.value.response.status_code == 403


def test_every_answer_has_the_fixed_headers(server: ServerProcess) -> None:
    with server.client() as client:
        for path in ("/health", "/docs", "/api/v1/agents", "/nowhere", SESSIONS + "/ses_x"):
            answer = client.get(path)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert answer.headers["x-request-id"]


def test_without_the_token_nothing_is_told(locked: ServerProcess) -> None:
    open_paths = {"/health", "/health/live", "/health/ready", "/api/v1/auth/session"}
    with locked.client() as client, locked.client(headers={"Authorization": f"Bearer {TOKEN}"}) as user:
        paths = user.get("/openapi.json").json()["paths"]
        for path, operations in paths.items():
            for method in operations:
                answer = client.request(method.upper(), path.replace("{", "").replace("}", ""))
                if path in open_paths:
                    assert answer.status_code != 401
                else:
                    assert code(answer) == (401, "auth_required"), path
                    assert answer.headers["www-authenticate"].startswith("Bearer")
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/api/v1", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert user.get("/health").json()["version"]


def test_a_browser_signs_in_by_cookie(locked: ServerProcess) -> None:
    with locked.client() as browser:
        assert browser.get("/api/v1/auth/session").json() == {"required": True, "signed_in": False}
        assert code(browser.post("/api/v1/auth/session", json={"token": "wrong"})) == (401, "auth_required")
        signed = browser.post("/api/v1/auth/session", json={"token": TOKEN})
        cookie = signed.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie and "path=/ws/one" in cookie and TOKEN not in cookie
        value = signed.headers["set-cookie"].split(";")[0]
        assert browser.get("/api/v1", headers={"Cookie": value}).status_code == 200
        foreign = {"Cookie": value, "Origin": "https://evil.example"}
        assert code(browser.get("/api/v1", headers=foreign)) == (403, "origin_refused")
        assert browser.delete("/api/v1/auth/session").status_code == 204


def test_sockets_by_header_ticket_and_subprotocol(locked: ServerProcess) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with locked.client(headers=bearer) as client:
        session = create(client)
        path = f"/api/v1/ws/agent-sessions/{session['id']}"
        ticket = client.post("/api/v1/auth/tickets", json={"path": path}).json()["ticket"]
        elsewhere = client.post("/api/v1/auth/tickets", json={"path": "/api/v1"}).json()["ticket"]
    with locked.socket(session["id"], "?events=all", additional_headers=bearer) as socket:
        assert "session" in str(socket.recv(timeout=20))
    with locked.socket(session["id"], f"?events=all&ticket={ticket}") as socket:
        assert "session" in str(socket.recv(timeout=20))
    encoded = base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
    with locked.socket(
        session["id"], "?events=all", subprotocols=["workspace-runtime.v1", f"bearer.{encoded}"]
    ) as socket:
        assert socket.subprotocol == "workspace-runtime.v1"
        assert "session" in str(socket.recv(timeout=20))
    for query in ("", f"?ticket={ticket}", f"?ticket={elsewhere}", "?ticket=nonsense"):
        with locked.socket(session["id"], query) as socket, pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=20)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4401, "auth_required")


def test_cors_for_the_allowed_origin_alone(locked: ServerProcess) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    with locked.client() as client:
        answer = client.options(SESSIONS, headers={"Origin": "https://app.example", **asks})
        assert answer.status_code == 204 and answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert client.options(SESSIONS, headers={"Origin": "https://evil.example", **asks}).status_code == 403
        headers = {"Origin": "https://app.example", "Authorization": f"Bearer {TOKEN}"}
        got = client.get("/api/v1", headers=headers)
        assert got.headers["access-control-allow-origin"] == "https://app.example"
        assert "ETag" in got.headers["access-control-expose-headers"]
        refused = client.get("/api/v1", headers={"Origin": "https://app.example"})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://app.example"


def test_behind_a_proxy_below_a_path(locked: ServerProcess) -> None:
    outer = {
        "Authorization": f"Bearer {TOKEN}",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "proxy.example",
        "Origin": "https://proxy.example",
    }
    with locked.client(headers=outer) as client:
        for prefix in ("", "/ws/one"):  # the proxy takes the prefix away, or leaves it
            made = client.post(prefix + SESSIONS, json={"agent": "demo"})
            assert made.status_code == 201, made.text
            assert made.headers["location"] == f"/ws/one{SESSIONS}/{made.json()['id']}"
            assert client.get(f"{prefix}{SESSIONS}/{made.json()['id']}").status_code == 200
            page = client.get(prefix + "/docs").text
            assert "/ws/one/openapi.json" in page and "/ws/one/static-offline-docs/" in page
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/ws/one"}]
        assert client.get("/").headers["location"] == "/ws/one/docs"
        signed = client.post("/api/v1/auth/session", json={"token": TOKEN})
        assert "secure" in signed.headers["set-cookie"].lower()


def test_the_token_stands_in_no_log_and_no_agents_environment(locked: ServerProcess) -> None:
    with locked.client(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        session = create(client, prompt="run env; true", permission_mode="auto")
        result = None
        while not result:
            result = client.get(f"{SESSIONS}/{session['id']}/events?events=tool_result").json()["items"]
    assert TOKEN not in result[0]["output"] and "WORKSPACE_" not in result[0]["output"].replace(
        "WORKSPACE_RUNTIME_", ""
    )
    assert TOKEN not in "".join(locked.output)


def test_files_of_the_state_are_private(server: ServerProcess) -> None:
    assert oct(server.state.stat().st_mode & 0o777) == "0o700"
    for path in server.state.rglob("*"):
        mode = path.stat().st_mode & 0o777
        assert mode & 0o077 == 0, f"{path}: {mode:o}"


def test_the_server_answers_on_both_loopback_addresses(server: ServerProcess) -> None:
    port = int(server.url.rpartition(":")[2])
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as one:
            one.connect((address, port))
            one.sendall(b"GET /api/v1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert one.recv(100).startswith(b"HTTP/1.1 200")


def test_a_workspace_with_an_odd_name(tmp_path: Path) -> None:
    odd = tmp_path / "a b'ü\n"
    odd.mkdir()
    server = ServerProcess(tmp_path)
    server.workspace = odd
    server.start()
    try:
        with server.client() as client:
            assert client.get("/api/v1").json()["workspace"]["root"] == str(odd)
    finally:
        server.stop()
