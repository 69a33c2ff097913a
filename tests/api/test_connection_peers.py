"""Whose process connects: another user on loopback gets nothing, however it comes and goes."""

import base64
import contextlib
import socket
import subprocess
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from support.guarded_server import NOBODY, Guarded, as_user, guarded, needs_root, read_all, request, status
from workspace_runtime.config import Config

TOKEN = "correct-horse-battery-staple"
RESET = b"\1\0\0\0\0\0\0\0"
ASK = r"""
exec 3<>/dev/tcp/127.0.0.1/$0
printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$1" >&3
cat <&3
"""


@pytest.fixture
def server() -> Iterator[Guarded]:
    with guarded() as made:
        yield made


@needs_root
def test_a_process_of_another_user_is_refused_but_for_health(server: Guarded) -> None:
    def ask(path: str) -> bytes:
        command = ["bash", "-c", ASK, str(server.port), path]
        done = subprocess.run(
            command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True, timeout=30, check=True
        )
        return done.stdout

    assert status(ask("/now")) == 403
    assert ask("/now").endswith(b"peer_refused")
    assert ask("/health").endswith(b"stranger")
    assert server.talk(request("GET /health HTTP/1.1")).endswith(b"user")
    assert server.ran == []


@needs_root
@pytest.mark.parametrize("hard", [True, False], ids=["RST", "FIN"])
@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_one_that_sends_and_closes_at_once_never_runs(server: Guarded, hard: bool, uid: int) -> None:
    with server.held():  # so that all of it has happened before the server looks
        for _ in range(20):
            with as_user(uid):
                client = server.connect()
            with client:
                if hard:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.sendall(request("GET /attack HTTP/1.1"))
    server.await_lost(20)
    assert status(server.talk(request("GET /mine HTTP/1.1"))) == 200
    assert server.ran == ["GET /mine"]


@needs_root
def test_an_address_that_was_given_on_to_the_user_does_not_help_its_first_holder(server: Guarded) -> None:
    mine, attempts = None, 0
    while mine is None:
        attempts += 1
        with server.held():
            with as_user(NOBODY):
                client = server.connect()
            end = client.getsockname()
            client.sendall(request("GET /attack HTTP/1.1"))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            # somebody else on this machine may have got the port in between
            with contextlib.suppress(OSError):
                mine = server.connect(bind=end)
    with mine:
        mine.sendall(request("GET /mine HTTP/1.1"))
        assert status(read_all(mine)) == 200
    server.await_lost(attempts + 1)
    assert server.ran == ["GET /mine"]


@needs_root
def test_one_that_half_closes_is_judged_by_its_true_user(server: Guarded) -> None:
    for uid, expected in ((NOBODY, 403), (0, 200)):
        with server.held():
            with as_user(uid):
                client = server.connect()
            client.sendall(b"GET /half HTTP/1.1\r\nHost: localhost\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
        with client:
            assert status(read_all(client)) == expected
    assert server.ran == ["GET /half"]


@needs_root
def test_a_request_may_not_follow_a_refused_one(server: Guarded) -> None:
    with as_user(NOBODY):
        client = server.connect()
    with client:
        client.sendall(b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n" + request("POST /b HTTP/1.1"))
        assert read_all(client).count(b"403 Forbidden") == 2
    assert server.ran == []


@needs_root
def test_the_same_port_on_another_loopback_address_is_not_the_same_peer(server: Guarded) -> None:
    with server.connect() as mine:
        port = mine.getsockname()[1]
        with as_user(NOBODY):
            client = server.connect(bind=("127.0.0.2", port))
        with client:
            client.sendall(request("GET /attack HTTP/1.1"))
            assert status(read_all(client)) == 403
        mine.sendall(request("GET /mine HTTP/1.1"))
        assert status(read_all(mine)) == 200
    assert server.ran == ["GET /mine"]


@needs_root
def test_a_socket_opened_by_a_refused_user_stays_refused_in_other_hands(server: Guarded) -> None:
    with as_user(NOBODY):
        client = server.connect()
    with socket.socket(fileno=client.detach()) as inherited:
        inherited.settimeout(10)
        inherited.sendall(request())
        assert status(read_all(inherited)) == 403


@needs_root
@pytest.mark.parametrize(
    "listen, ask", [("::1", "::1"), ("::", "127.0.0.1"), ("::", "::1"), ("127.0.0.1", "::ffff:127.0.0.1")]
)
def test_both_families_and_mapped_addresses(listen: str, ask: str) -> None:
    with guarded(host=listen) as server:
        for uid, expected in ((0, 200), (NOBODY, 403)):
            with as_user(uid):
                client = server.connect(ask)
            with client:
                client.sendall(request())
                assert status(read_all(client)) == expected
        assert server.ran == ["GET /"]


@needs_root
def test_users_can_be_added() -> None:
    with guarded(Config(allowed_peer_uids=(NOBODY,))) as server:
        for uid, expected in ((NOBODY, 200), (NOBODY - 1, 403)):
            with as_user(uid):
                client = server.connect()
            with client:
                client.sendall(request())
                assert status(read_all(client)) == expected


@needs_root
def test_a_websocket_of_another_user_is_refused_on_the_upgrade(server: Guarded) -> None:
    with as_user(NOBODY):
        client = server.connect()
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://localhost:{server.port}/ws", sock=client):
        pass
    assert refused.value.response.status_code == 403
    client.close()
    with connect(f"ws://localhost:{server.port}/ws", sock=server.connect()) as socket_:
        assert socket_.recv() == "peer"
    assert server.ran == ["WS /ws"]


@needs_root
def test_with_a_token_the_user_does_not_matter() -> None:
    with guarded(Config(token=TOKEN)) as server:
        for header, expected in ((f"Authorization: Bearer {TOKEN}", 200), ("X: y", 401)):
            with as_user(NOBODY):
                client = server.connect()
            with client:
                client.sendall(request("GET / HTTP/1.1", header))
                assert status(read_all(client)) == expected


# --- WebSockets and the token ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked() -> Iterator[Guarded]:
    with guarded(Config(token=TOKEN, allowed_origins=("http://app.example",))) as made:
        yield made


def bearer(token: str) -> Subprotocol:
    return Subprotocol("bearer." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("="))


V1 = Subprotocol("workspace-runtime.v1")


def test_a_websocket_takes_each_kind_of_sign_in(locked: Guarded) -> None:
    assert locked.gate.tokens is not None
    url = f"ws://localhost:{locked.port}/ws"
    with connect(url, additional_headers={"Authorization": f"Bearer {TOKEN}"}) as made:
        assert made.recv() == "bearer"
    cookie = f"workspace_runtime_{locked.port}={locked.gate.tokens.make_cookie()}"
    with connect(url, additional_headers={"Cookie": cookie}, origin=Origin(f"http://localhost:{locked.port}")) as made:
        assert made.recv() == "cookie"
    with connect(url, subprotocols=[V1, bearer(TOKEN)]) as made:
        assert made.subprotocol == V1
        assert made.recv() == "subprotocol"
    ticket = locked.gate.tokens.make_ticket("/ws")
    with connect(f"{url}?ticket={ticket}", subprotocols=[V1]) as made:
        assert made.subprotocol == V1
        assert made.recv() == "ticket"
    for again in (url, f"{url}?ticket={ticket}"):
        with connect(again) as made, pytest.raises(ConnectionClosed) as closed:
            made.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4401, "auth_required")


def test_a_page_can_read_why_its_websocket_was_closed(locked: Guarded) -> None:
    with connect(f"ws://localhost:{locked.port}/ws", subprotocols=[V1, bearer("wrong")]) as made:
        assert made.subprotocol == V1  # without it a browser would fail the connection, and lose the code
        with pytest.raises(ConnectionClosed) as closed:
            made.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4401


@pytest.mark.parametrize("origin, code", [("http://evil.example", 403), ("null", 403), ("http://app.example", 0)])
def test_a_websocket_from_a_foreign_page_is_refused_on_the_upgrade(locked: Guarded, origin: str, code: int) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    expected = pytest.raises(InvalidStatus) if code else contextlib.nullcontext()
    url = f"ws://localhost:{locked.port}/ws"
    with expected as refused, connect(url, origin=Origin(origin), additional_headers=headers):
        pass
    if code:
        assert refused is not None
        assert refused.value.response.status_code == code


def test_a_websocket_with_an_absolute_target_has_its_path_and_its_host_checked(server: Guarded) -> None:
    upgrade = ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
    for host, expected in (("localhost", 101), ("evil.example", 421)):
        lines = [f"GET http://{host}/ws HTTP/1.1", "Host: localhost", "Connection: Upgrade", *upgrade, "", ""]
        with server.connect() as client:
            client.sendall("\r\n".join(lines).encode())
            assert status(client.recv(65536)) == expected
    assert server.ran == ["WS /ws"]
