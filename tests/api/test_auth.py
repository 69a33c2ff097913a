"""Signing in and out, and tickets, through a real server."""

import base64
from collections.abc import Iterator

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from support.server import ServerProcess, running

TOKEN = "correct-horse-battery-staple"
SESSION = "/api/v1/auth/session"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    env = {"WORKSPACE_TOKEN": TOKEN, "TRUSTED_PROXIES": "127.0.0.1", "ALLOWED_ORIGINS": "http://app.example"}
    with running(tmp_path_factory.mktemp("locked"), env=env) as process:
        yield process


@pytest.fixture
def anonymous(locked: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked.url, trust_env=False) as made:
        yield made


def test_nothing_but_health_and_signing_in_is_open(anonymous: httpx.Client) -> None:
    schema = anonymous.get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    for path, methods in schema["paths"].items():
        for method in methods:
            answer = anonymous.request(method, path.replace("{", "").replace("}", ""))
            if path.startswith("/health") or path == SESSION:
                assert answer.status_code != 401
            else:
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.json()["code"] == "auth_required"
    for path in ("/", "/docs", "/redoc", "/openapi.json", "/nothing"):
        assert anonymous.get(path).status_code == 401
    assert set(anonymous.get("/health").json()) == {"status"}


def test_a_browser_signs_in_and_out(anonymous: httpx.Client) -> None:
    assert anonymous.get(SESSION).json() == {"required": True, "signed_in": False}
    wrong = anonymous.post(SESSION, json={"token": "wrong-token"})
    assert (wrong.status_code, wrong.json()["code"]) == (401, "auth_required")
    assert "wrong-token" not in wrong.text
    assert "set-cookie" not in wrong.headers

    right = anonymous.post(SESSION, json={"token": TOKEN})
    assert (right.status_code, right.json()) == (200, {"required": True, "signed_in": True})
    cookie = right.headers["set-cookie"]
    assert cookie.startswith(f"workspace_runtime_{anonymous.base_url.port}=")
    assert TOKEN not in cookie
    words = {word.strip().lower() for word in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= words
    assert "secure" not in words
    assert right.headers["cache-control"] == "no-store"

    assert anonymous.get(SESSION).json()["signed_in"]
    assert anonymous.get("/api/v1").status_code == 200
    assert anonymous.post("/api/v1/auth/tickets", json={"path": "/x"}, headers={"Origin": "null"}).status_code == 403
    kept = dict(anonymous.cookies)
    assert anonymous.delete(SESSION).status_code == 204
    assert not anonymous.cookies
    assert anonymous.get("/api/v1").status_code == 401
    anonymous.cookies.update(kept)
    assert anonymous.get("/api/v1").status_code == 401
    anonymous.cookies.clear()
    assert anonymous.delete(SESSION).status_code == 204


def test_behind_https_the_cookie_is_secure(anonymous: httpx.Client) -> None:
    answer = anonymous.post(SESSION, json={"token": TOKEN}, headers={"X-Forwarded-Proto": "https"})
    assert "secure" in answer.headers["set-cookie"].lower()


def test_a_ticket_opens_one_path_once(anonymous: httpx.Client) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert anonymous.post("/api/v1/auth/tickets", json={"path": "/api/v1"}).status_code == 401
    answer = anonymous.post("/api/v1/auth/tickets", json={"path": "/api/v1?x=y"}, headers=bearer)
    assert answer.status_code == 201
    assert answer.json()["expires_in_s"] == 30
    ticket = answer.json()["ticket"]
    assert anonymous.get("/api/v1", params={"ticket": ticket}).status_code == 200
    assert anonymous.get("/api/v1", params={"ticket": ticket}).status_code == 401
    other = anonymous.post("/api/v1/auth/tickets", json={"path": "/api/v1/agents"}, headers=bearer).json()["ticket"]
    assert anonymous.get("/api/v1", params={"ticket": other}).status_code == 401
    assert anonymous.post("/api/v1/auth/tickets", json={"path": "x"}, headers=bearer).status_code == 422


def test_a_websocket_is_told_by_a_close_code(locked: ServerProcess) -> None:
    url = locked.url.replace("http", "ws") + "/api/v1/ws/agent-sessions/none"
    right = base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
    for token, code in (("d3Jvbmc", 4401), (right, 4404)):
        offered = [Subprotocol("workspace-runtime.v1"), Subprotocol(f"bearer.{token}")]
        with connect(url, subprotocols=offered) as made, pytest.raises(ConnectionClosed) as closed:
            assert made.subprotocol == "workspace-runtime.v1"
            made.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code


def test_a_preflight_and_what_follows_it(anonymous: httpx.Client) -> None:
    origin = {"Origin": "http://app.example"}
    asked = anonymous.options("/api/v1", headers={**origin, "Access-Control-Request-Method": "GET"})
    assert asked.status_code == 204
    assert asked.headers["access-control-allow-origin"] == "http://app.example"
    for headers, status in (({"Authorization": f"Bearer {TOKEN}"}, 200), ({}, 401)):
        answer = anonymous.get("/api/v1", headers={**origin, **headers})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "http://app.example"
        assert answer.headers.get_list("cross-origin-resource-policy") == ["same-origin"]


def test_without_a_token_signing_in_is_harmless(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.get(SESSION).json() == {"required": False, "signed_in": True}
        answer = client.post(SESSION, json={"token": "anything"})
        assert (answer.status_code, answer.json()) == (200, {"required": False, "signed_in": True})
        assert "set-cookie" not in answer.headers
        assert client.delete(SESSION).status_code == 204
        assert client.post("/api/v1/auth/tickets", json={"path": "/api/v1"}).status_code == 201


def test_the_token_is_never_logged(locked: ServerProcess) -> None:
    assert TOKEN not in "".join(locked.output)
