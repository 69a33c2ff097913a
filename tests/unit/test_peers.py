"""Whose socket it is, by netlink and by /proc alike."""

import contextlib
import errno
import gc
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.guarded_server import NOBODY, as_user, needs_root
from workspace_runtime.security import peers
from workspace_runtime.security.peers import Netlink, Peers, allowed_uids, owner_from_proc

Ends = tuple[socket.socket, socket.socket]


@contextlib.contextmanager
def connected(listen: str = "127.0.0.1", ask: str = "127.0.0.1", bind: tuple[str, int] | None = None) -> Iterator[Ends]:
    """A client's end and ours."""
    with socket.socket(socket.AF_INET6 if ":" in listen else socket.AF_INET) as listener:
        if listen == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((listen, 0))
        listener.listen()
        with socket.socket(socket.AF_INET6 if ":" in ask else socket.AF_INET) as client:
            if bind is not None:
                client.bind(bind)
            client.connect((ask, listener.getsockname()[1]))
            ours, _ = listener.accept()
            with ours:
                yield client, ours


class ByProc(Peers):
    """As on a system without netlink."""

    def __init__(self) -> None:
        super().__init__()
        self._netlink = None


@pytest.fixture(params=[Peers, ByProc])
def lookup(request: pytest.FixtureRequest) -> Iterator[Peers]:
    made: Peers = request.param()
    yield made
    made.close()


FAMILIES = [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("127.0.0.1", "::ffff:127.0.0.1")]


@pytest.mark.parametrize("listen, ask", FAMILIES)
def test_the_users_own_socket(lookup: Peers, listen: str, ask: str) -> None:
    with connected(listen, ask) as (_, ours):
        assert lookup.uid(ours.getsockname(), ours.getpeername()) == os.geteuid()


@needs_root
@pytest.mark.parametrize("listen, ask", FAMILIES)
def test_another_users_socket(lookup: Peers, listen: str, ask: str) -> None:
    with as_user(NOBODY), connected(listen, ask) as (_, ours):
        assert lookup.uid(ours.getsockname(), ours.getpeername()) == NOBODY


@pytest.mark.parametrize("listen, ask", FAMILIES)
def test_a_closed_socket_is_nobodys_and_a_half_closed_one_still_its_users(lookup: Peers, listen: str, ask: str) -> None:
    with connected(listen, ask) as (client, ours):
        ends = ours.getsockname(), ours.getpeername()
        client.shutdown(socket.SHUT_WR)
        assert lookup.uid(*ends) == os.geteuid()
        client.close()
        assert lookup.uid(*ends) is None


def test_a_reset_socket_is_nobodys(lookup: Peers) -> None:
    with connected() as (client, ours):
        ends = ours.getsockname(), ours.getpeername()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        assert lookup.uid(*ends) is None


def test_the_whole_pair_of_addresses_counts(lookup: Peers) -> None:
    with connected() as (client, ours):
        (_, local), (_, port) = ours.getsockname(), client.getsockname()
        assert lookup.uid(("127.0.0.1", local), ("127.0.0.1", port)) == os.geteuid()
        assert lookup.uid(("127.0.0.1", local), ("127.0.0.2", port)) is None
        assert lookup.uid(("127.0.0.2", local), ("127.0.0.1", port)) is None
        assert lookup.uid(("::1", local), ("::1", port)) is None
        assert lookup.uid(("127.0.0.1", local), ("::1", port)) is None


@needs_root
def test_the_same_port_on_127_0_0_2_is_another_socket(lookup: Peers) -> None:
    with connected() as (client, ours):
        port = client.getsockname()[1]
        with as_user(NOBODY), connected(bind=("127.0.0.2", port)) as (_, theirs):
            assert lookup.uid(theirs.getsockname(), theirs.getpeername()) == NOBODY
        assert lookup.uid(ours.getsockname(), ours.getpeername()) == os.geteuid()


def test_a_listener_on_the_peers_port_is_not_the_peer(lookup: Peers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert lookup.uid(("127.0.0.1", 9), listener.getsockname()) is None


@pytest.mark.parametrize(
    "ends", [((), ()), (("x", 1), ("y", 2)), ((None, None), (None, None)), (("", 0), ("", 0)), ("a", "b")]
)
def test_what_is_no_address_is_nobody(lookup: Peers, ends: tuple[tuple[str, int], tuple[str, int]]) -> None:
    assert lookup.uid(*ends) is None


@pytest.mark.parametrize("port", [-1, 65536])
def test_what_is_no_port_is_nobody(lookup: Peers, port: int) -> None:
    assert lookup.uid(("127.0.0.1", port), ("127.0.0.1", port)) is None


# --- netlink --------------------------------------------------------------------------------------------------------------


def test_one_socket_serves_all_questions_and_is_closed_with_its_owner() -> None:
    gc.collect()  # what other tests left to be closed must not be counted
    lookup = Peers()
    before = len(os.listdir("/proc/self/fd"))
    with connected() as (_, ours):
        for _ in range(100):
            assert lookup.uid(ours.getsockname(), ours.getpeername()) == os.geteuid()
    assert len(os.listdir("/proc/self/fd")) == before
    del lookup
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_answers_to_other_questions_are_passed_over() -> None:
    netlink = Netlink()
    with connected() as (client, ours):
        peer, local = client.getsockname(), ours.getsockname()
        for _ in range(5):  # asked and given up: the answers wait before ours
            netlink._open().send(netlink._question(peer[1], local[1], *map(peers._packed, (peer, local))))
            netlink._sequence += 1
        found = netlink.owner(peer, local)
        assert found is not None
        assert found.uid == os.geteuid()
    netlink.close()


def test_an_overrun_socket_is_replaced() -> None:
    lookup = Peers()
    netlink = lookup._netlink
    assert netlink is not None
    with connected() as (client, ours):
        peer, local = client.getsockname(), ours.getsockname()
        with contextlib.suppress(OSError):
            for _ in range(5000):
                netlink._open().send(netlink._question(peer[1], local[1], *map(peers._packed, (peer, local))))
        assert lookup.uid(local, peer) == os.geteuid()
        assert lookup.source == "netlink"
    lookup.close()


class Fake:
    """A kernel that answers as told."""

    def __init__(self, *answers: bytes | OSError) -> None:
        self.answers = list(answers)

    def send(self, data: bytes) -> int:
        return len(data)

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        answer = self.answers.pop(0) if self.answers else OSError(errno.EAGAIN, "nothing")
        if isinstance(answer, OSError):
            raise answer
        return answer, (0, 0)

    def close(self) -> None:
        pass


def header(kind: int, body: bytes, sequence: int = 1, length: int | None = None) -> bytes:
    return struct.pack("=IHHII", 16 + len(body) if length is None else length, kind, 0, sequence, 0) + body


@pytest.mark.parametrize(
    "answer",
    [
        OSError(errno.ENOBUFS, "overrun"),
        OSError(errno.EAGAIN, "nothing"),
        header(2, struct.pack("=i", -errno.EPERM)),
        header(2, struct.pack("=i", 0)),
        header(20, b""),
        header(20, b"\2\1\0\0"),
        header(3, b"\0" * 72),
        header(20, b"\0" * 72, sequence=7),
        header(20, b"\0" * 72, length=4000),
        b"",
        b"\0" * 15,
    ],
)
def test_an_answer_that_is_none_falls_back_and_never_admits(
    answer: bytes | OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookup = Peers()
    assert lookup._netlink is not None
    monkeypatch.setattr(lookup._netlink, "_open", lambda: Fake(*[answer] * 4))
    with connected() as (client, ours):
        assert lookup.uid(ours.getsockname(), client.getsockname()) in (os.geteuid(), None)
    assert lookup.uid(("127.0.0.1", 1), ("127.0.0.1", 2)) is None


def test_an_answer_about_another_socket_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected() as (client, ours), connected() as (other, _):
        peer, local = client.getsockname(), ours.getsockname()
        netlink = Netlink()
        question = netlink._question(peer[1], local[1], *map(peers._packed, (peer, local)))
        netlink._open().send(question)
        answer, _ = netlink._open().recvfrom(4096)
        monkeypatch.setattr(netlink, "_open", lambda: Fake(header(20, answer[16:])))
        assert netlink.owner(peer, local) is not None
        netlink._sequence = 0
        monkeypatch.setattr(netlink, "_open", lambda: Fake(header(20, answer[16:])))
        assert netlink.owner(other.getsockname(), local) is None
        netlink._sequence = 0
        moved = answer[16:].replace(socket.inet_aton("127.0.0.1"), socket.inet_aton("127.0.0.2"), 1)
        monkeypatch.setattr(netlink, "_open", lambda: Fake(header(20, moved)))
        assert netlink.owner(peer, local) is None


# --- /proc ----------------------------------------------------------------------------------------------------------------


def test_tables_that_are_missing_or_broken_know_nobody(tmp_path: Path) -> None:
    ends = ("127.0.0.1", 1), ("127.0.0.1", 2)
    assert owner_from_proc(*ends, folder=str(tmp_path)) is None
    (tmp_path / "tcp").write_bytes(b"sl local rem st\n 0: 0100007F:0001 0100007F:0002 01\nx\n")
    assert owner_from_proc(*ends, folder=str(tmp_path)) is None
    row = b" 0: 0100007F:0001 0100007F:0002 %b 0:0 0:0 0 1000 0 77 1 0\n"
    (tmp_path / "tcp").write_bytes(row % b"0A")
    assert owner_from_proc(*ends, folder=str(tmp_path)) is None
    (tmp_path / "tcp").write_bytes(row % b"0A" + row % b"01")
    assert owner_from_proc(*ends, folder=str(tmp_path)) == (1000, 77)


def test_allowed_users() -> None:
    assert allowed_uids([5]) == {0, 5, os.geteuid()}
