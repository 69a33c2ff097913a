"""Attacks on the HTTP connection by raw sockets: nothing hides in a body, and nothing grows without bound."""

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from support.guarded_server import TIMEOUT_S, Guarded, guarded, read_all, request, status

HOST = b"Host: localhost\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def shared(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    with guarded(loop=request.param) as server:
        yield server


@pytest.fixture
def served(shared: Guarded) -> Guarded:
    shared.ran.clear()
    shared.ended.clear()
    shared.seen.clear()
    while shared.done.acquire(blocking=False):
        pass
    return shared


def code(answer: bytes) -> str:
    """The code in a problem document that is the whole answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json\r\n" in head
    assert b"connection: close\r\n" in head + b"\r\n"
    told = json.loads(body)
    assert set(told) == {"type", "title", "status", "detail", "code", "request_id"}
    assert told["status"] == status(answer)
    return str(told["code"])


FRAMING = {
    "length and chunked": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
    "the same length twice": b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "a list of lengths": b"Content-Length: 0, 5\r\n\r\n",
    "a signed length": b"Content-Length: +0\r\n\r\n",
    "a hexadecimal length": b"Content-Length: 0x0\r\n\r\n",
    "an endless length": b"Content-Length: 18446744073709551616\r\n\r\n",
    "an unknown encoding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": b"Transfer-Encoding: identity\r\n\r\n",
    "gzip, chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, gzip": b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, quoted": b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded header": b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bare line feed": b"X: a\nContent-Length: 5\r\n\r\n",
    "a bare carriage return": b"X: a\rContent-Length: 5\r\n\r\n",
    "a NUL": b"X: a\0\r\n\r\n",
    "a size that is none": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a size with 0x": b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "a negative size": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "an endless size": b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "a size ended by a line feed": b"Transfer-Encoding: chunked\r\n\r\n0\n\r\n",
    "a chunk longer than said": b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("framing", FRAMING.values(), ids=FRAMING.keys())
@pytest.mark.parametrize("path", [b"/body", b"/now"])
def test_a_request_of_doubtful_length_never_runs_nor_what_follows(served: Guarded, framing: bytes, path: bytes) -> None:
    answer = served.talk(b"POST " + path + b" HTTP/1.1\r\n" + HOST + framing + HIDDEN)
    assert status(answer) == 400
    assert code(answer) == "malformed_request"
    assert served.ran == []


def test_a_body_that_breaks_later_cuts_the_request_that_reads_it(served: Guarded) -> None:
    with served.connect() as client:
        client.sendall(b"POST /body HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        served.talk(request("GET /other HTTP/1.1"))
        client.sendall(b"zz\r\n" + HIDDEN)
        answer = read_all(client)
    assert code(answer) == "malformed_request"
    assert served.done.acquire(timeout=TIMEOUT_S)
    assert served.done.acquire(timeout=TIMEOUT_S)
    assert "POST /body cut" in served.ended
    assert served.ran == ["POST /body", "GET /other"]


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0", "3.0", "9.9"])
def test_other_versions_are_refused(served: Guarded, version: str) -> None:
    assert code(served.talk(request(f"GET / HTTP/{version}"))) == "malformed_request"
    assert served.ran == []


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\nHost: localhost\n\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost:22\r\n\r\n",
        b"CONNECT /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET localhost HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET ftp://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_and_the_connection_closed(served: Guarded, data: bytes) -> None:
    assert code(served.talk(data + HIDDEN)) == "malformed_request"
    assert served.ran == []


def test_an_upgrade_does_not_turn_a_body_into_a_request(served: Guarded) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    head = b"POST /body HTTP/1.1\r\n" + HOST + offer + b"Content-Length: %d\r\n\r\n" % len(HIDDEN)
    last = request("GET /last HTTP/1.1")
    whole = served.talk(head + HIDDEN + last)
    with served.connect() as client:  # and in pieces
        client.sendall(head)
        served.talk(request("GET /other HTTP/1.1"))
        client.sendall(HIDDEN)
        served.talk(request("GET /other HTTP/1.1"))
        client.sendall(last)
        pieces = read_all(client)
    for answer in (whole, pieces):
        assert b"<" + HIDDEN + b">" in answer
    assert "GET /hidden" not in served.ran
    assert served.ran.count("GET /last") == 2


@pytest.mark.parametrize(
    "change",
    [
        (b"GET", b"POST"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN)),
        (b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
def test_a_websocket_begins_with_a_plain_get(served: Guarded, change: tuple[bytes, bytes]) -> None:
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + b"A" * 22
    )
    data = (b"GET /ws HTTP/1.1\r\n" + HOST + upgrade + b"==\r\n\r\n").replace(*change)
    assert status(served.talk(data + HIDDEN)) == 400
    assert served.ran == []


@pytest.mark.parametrize("extra", [b"X: " + b"a" * 9000 + b"\r\n", b"".join(b"X%d: a\r\n" % n for n in range(150))])
def test_a_websocket_with_more_headers_than_its_library_takes_is_answered(served: Guarded, extra: bytes) -> None:
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + b"A" * 22
    )
    answer = served.talk(b"GET /ws HTTP/1.1\r\n" + HOST + extra + upgrade + b"==\r\n\r\n")
    assert code(answer) == "headers_too_large"
    assert served.ran == []


def test_an_upgrade_behind_a_request_that_is_not_answered_yet_ends_after_that_answer(served: Guarded) -> None:
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + b"A" * 22
    )
    first = b"GET /first HTTP/1.1\r\n" + HOST + b"\r\n"
    answer = served.talk(first + b"GET /ws HTTP/1.1\r\n" + HOST + upgrade + b"==\r\n\r\n")
    assert status(answer) == 200
    assert answer.count(b"HTTP/1.1") == 1
    assert served.ran == ["GET /first"]


# --- targets --------------------------------------------------------------------------------------------------------------


def test_an_absolute_target_is_served_by_its_path_and_its_host_is_checked(served: Guarded) -> None:
    assert status(served.talk(request(f"GET http://localhost:{served.port}/a?b=c HTTP/1.1"))) == 200
    assert (served.seen[-1]["path"], served.seen[-1]["query_string"]) == ("/a", b"b=c")
    assert status(served.talk(request("GET http://127.0.0.1 HTTP/1.1"))) == 200
    assert status(served.talk(request("GET HTTPS://[::1]?b HTTP/1.1"))) == 200
    assert (served.seen[-1]["path"], served.seen[-1]["query_string"]) == ("/", b"b")
    served.ran.clear()
    assert status(served.talk(request("GET http://evil.example/ HTTP/1.1"))) == 421
    assert status(served.talk(request("GET http://localhost@evil.example/ HTTP/1.1"))) == 400
    assert status(served.talk(request("GET http:///x HTTP/1.1"))) == 400
    assert status(served.talk(request("GET http://localhost/ HTTP/1.1", host="evil.example"))) == 421
    assert served.ran == []


def test_the_target_of_one_request_does_not_stay_for_the_next(served: Guarded) -> None:
    refused = b"GET http://evil.example/ HTTP/1.1\r\n" + HOST + b"\r\n"
    answer = served.talk(refused + request("GET /next HTTP/1.1"))
    assert (answer.count(b"HTTP/1.1 421"), answer.count(b"HTTP/1.1 200")) == (1, 1)
    assert served.ran == ["GET /next"]


# --- bounds ---------------------------------------------------------------------------------------------------------------


def padded(size: int) -> bytes:
    """A request whose head has this many bytes as they are counted: target, names, values and 4 for each header."""
    head = b"Host: localhost\r\nConnection: close\r\n"
    used = len(b"/") + len("Hostlocalhost") + len("Connectionclose") + 3 * 4 + 1
    return b"GET / HTTP/1.1\r\n" + head + b"X: " + b"a" * (size - used) + b"\r\n\r\n"


def test_64_kib_of_headers_pass_and_a_byte_more_does_not(served: Guarded) -> None:
    assert status(served.talk(padded(64 * 1024))) == 200
    assert code(served.talk(padded(64 * 1024 + 1))) == "headers_too_large"
    assert served.ran == ["GET /"]


def test_200_headers_pass_and_one_more_does_not(served: Guarded) -> None:
    assert status(served.talk(request("GET / HTTP/1.1", *(f"X{n}: a" for n in range(198))))) == 200
    assert code(served.talk(request("GET / HTTP/1.1", *(f"X{n}: a" for n in range(199))))) == "headers_too_large"
    assert served.ran == ["GET /"]


FLOODS = {
    "a target": [b"GET /", b"a" * 16384],
    "one header's value": [b"GET / HTTP/1.1\r\nX: ", b"a" * 16384],
    "one header's name": [b"GET / HTTP/1.1\r\n", b"a" * 16384],
    "headers": [b"GET / HTTP/1.1\r\n", b"X: a\r\n" * 2048],
    "empty lines": [b"", b"\r\n" * 8192],
    "a method": [b"", b"G" * 16384],
    "trailers": [b"POST /body HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n" * 2048],
    "one trailer": [b"POST /body HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 16384],
    "a chunk's extension": [b"POST /body HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 16384],
    "a chunk's size": [b"POST /body HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 16384],
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_is_answered_soon_and_ended(served: Guarded, flood: list[bytes]) -> None:
    with served.connect() as client:
        sent = 0
        with contextlib.suppress(ConnectionError):
            client.sendall(flood[0])
            for _ in range(64):  # 1 MiB, far beyond the bound
                client.sendall(flood[1])
                sent += len(flood[1])
        with contextlib.suppress(OSError):  # the server may be gone
            client.shutdown(socket.SHUT_WR)
        answer = read_all(client)
    assert status(answer) in (400, 431)
    assert "hidden" not in str(served.ran)
    if served.ran:
        assert served.done.acquire(timeout=TIMEOUT_S)
        assert "POST /body cut" in served.ended


def test_trailers_do_not_become_headers(served: Guarded) -> None:
    head = b"POST /body HTTP/1.1\r\n" + HOST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = served.talk(head + b"3\r\nabc\r\n0\r\nAuthorization: x\r\nHost: evil\r\n\r\n")
    assert answer.endswith(b"<abc>")
    names = [name for name, _ in served.seen[-1]["headers"]]
    assert names == [b"host", b"connection", b"transfer-encoding"]


def test_requests_in_one_go_are_answered_in_order_up_to_a_bound(served: Guarded) -> None:
    some = b"".join(b"GET /%d HTTP/1.1\r\n" % n + HOST + b"\r\n" for n in range(20))
    answer = served.talk(some + request("GET /last HTTP/1.1"))
    assert answer.count(b"HTTP/1.1 200") == 21
    assert served.ran == [*(f"GET /{n}" for n in range(20)), "GET /last"]
    served.ran.clear()
    many = b"".join(b"GET /%d HTTP/1.1\r\n" % n + HOST + b"\r\n" for n in range(2000))
    answer = served.talk(many)
    assert served.ran == [f"GET /{n}" for n in range(len(served.ran))]
    assert 1 <= len(served.ran) <= 40
    assert answer.count(b"HTTP/1.1 200") == len(served.ran)


def test_garbage_behind_a_good_request_leaves_its_answer_whole(served: Guarded) -> None:
    answer = served.talk(b"GET /good HTTP/1.1\r\n" + HOST + b"\r\n" + b"garbage\r\n\r\n" + HIDDEN)
    assert status(answer) == 200
    assert answer.count(b"HTTP/1.1") == 1
    assert served.ran == ["GET /good"]


def test_a_request_that_breaks_while_it_waits_never_runs() -> None:
    with guarded() as server, server.connect() as client:
        client.sendall(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        client.sendall(b"POST /now HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        server.talk(request("GET /other HTTP/1.1"))
        client.sendall(b"zz\r\n" + HIDDEN)
        for _ in range(10):  # so that the loop has surely read what came before on the other connection
            server.talk(request("GET /other HTTP/1.1"))
        server.loop.call_soon_threadsafe(server.release.set)
        answer = read_all(client)
    assert status(answer) == 200
    assert answer.count(b"HTTP/1.1") == 1
    assert server.ran == ["GET /wait", *["GET /other"] * 11]


@pytest.mark.parametrize("data", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: loc", b"\r\n"])
def test_a_head_that_does_not_come_ends_the_connection(data: bytes) -> None:
    with guarded(HEAD_TIMEOUT_S=0.1) as server, server.connect() as client:
        client.sendall(data)
        assert read_all(client) == b""
        client.close()
        with server.connect() as again:  # and on a connection that has served a request
            again.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"peer" in again.recv(65536)
            again.sendall(data or b"G")
            assert read_all(again) == b""
        assert server.ran == ["GET /"]


def test_a_slow_head_behind_a_slow_answer_does_not_cut_the_answer() -> None:
    with guarded(HEAD_TIMEOUT_S=0.1) as server, server.connect() as client:
        client.sendall(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\nGET /ne")
        with server.connect() as other:
            assert read_all(other) == b""  # so late now
        server.loop.call_soon_threadsafe(server.release.set)
        answer = read_all(client)
        assert status(answer) == 200
        assert server.ran == ["GET /wait"]


# --- ends -----------------------------------------------------------------------------------------------------------------


def test_a_half_closed_client_gets_its_answer(served: Guarded) -> None:
    with served.connect() as client:
        client.sendall(b"POST /body HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc")
        client.shutdown(socket.SHUT_WR)
        answer = read_all(client)
    assert status(answer) == 200
    assert answer.endswith(b"<abc>")


def test_a_client_that_is_gone_is_told_to_the_request_soon() -> None:
    with guarded(HALF_CLOSED_S=0.1) as server:
        with server.connect() as client:
            client.sendall(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
            server.talk(request())  # the first has begun by now
        server.await_lost(2)
        for _ in range(2):
            assert server.done.acquire(timeout=TIMEOUT_S)
        assert server.ended == ["GET /", "left", "GET /wait"]


def test_a_client_that_is_gone_is_told_to_the_first_of_several_requests() -> None:
    with guarded() as server:
        with server.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall((b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n") * 2)
            server.talk(request())
        server.await_lost(2)
        for _ in range(2):
            assert server.done.acquire(timeout=TIMEOUT_S)
        assert server.ran == ["GET /wait", "GET /"]


def test_a_client_that_stops_in_mid_body_cuts_the_request(served: Guarded) -> None:
    with served.connect() as client:
        client.sendall(b"POST /body HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nabc")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    assert served.done.acquire(timeout=TIMEOUT_S)
    assert "POST /body cut" in served.ended
