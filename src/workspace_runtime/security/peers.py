"""Whose process is at the other end of a loopback connection, as the kernel knows it.

The kernel is asked for exactly the peer's socket, by both addresses and both ports: by the port alone a socket of another
address would do (127.0.0.2). Linux answers through netlink (sock_diag(7), `SOCK_DIAG_BY_FAMILY` for one socket), at once and
without waiting; where that is missing, /proc/net/tcp says the same.

A socket that its process has closed shows inode 0 and uid 0: it tells nothing, and must count as not found.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Sequence

_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NETLINK_SOCK_DIAG = 4
_LISTEN = 10
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI")
_SOCKET_ID = struct.Struct("!HH16s16s")
_REST = struct.Struct("=III")

Address = tuple[str, int]


class Peers:
    """Looks up peers. One for a process; used by one thread."""

    def __init__(self) -> None:
        self._sequence = 0
        self._netlink: socket.socket | None = None
        with contextlib.suppress(OSError, AttributeError):
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
            self._netlink.setblocking(False)

    def close(self) -> None:
        """Close the kernel's socket."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def uid(self, local: Sequence[object], peer: Sequence[object]) -> int | None:
        """The user id that owns the peer's socket; None when it is not found or already closed.

        `local` and `peer` are the connection's two ends as `getsockname` and `getpeername` give them.
        """
        ours, theirs = (str(local[0]), int(str(local[1]))), (str(peer[0]), int(str(peer[1])))
        if self._netlink is not None:
            try:
                return self._ask(self._netlink, ours, theirs)
            except OSError:
                pass
        return _from_proc(ours, theirs)

    def _ask(self, netlink: socket.socket, ours: Address, theirs: Address) -> int | None:
        family = socket.AF_INET6 if ":" in theirs[0] else socket.AF_INET
        source, target = _packed(theirs[0]), _packed(ours[0])
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        wanted = _SOCKET_ID.pack(theirs[1], ours[1], source.ljust(16, b"\0"), target.ljust(16, b"\0"))
        body = (
            _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
            + wanted
            + struct.pack("=III", 0, 2**32 - 1, 2**32 - 1)
        )
        header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, self._sequence, 0)
        netlink.sendto(header + body, (0, 0))
        for _ in range(16):  # answers to earlier questions, which were given up, may stand before ours
            answer = netlink.recv(4096)
            _, kind, _, sequence, _ = _HEADER.unpack_from(answer)
            if sequence == self._sequence:
                return _uid_of(answer, source, target, theirs[1], ours[1]) if kind == _SOCK_DIAG_BY_FAMILY else None
        return None


def _uid_of(answer: bytes, source: bytes, target: bytes, source_port: int, target_port: int) -> int | None:
    """The uid in an `inet_diag_msg`, if it is of the socket that was asked for: the kernel may answer with a listener."""
    state = answer[_HEADER.size + 1]
    ports_and_addresses = _SOCKET_ID.unpack_from(answer, _HEADER.size + 4)
    found = (ports_and_addresses[2], ports_and_addresses[3])
    mapped = tuple((b"\0" * 10 + b"\xff\xff" + part if len(part) == 4 else part) for part in (source, target))
    plain = tuple(part.ljust(16, b"\0") for part in (source, target))
    _, uid, inode = _REST.unpack_from(answer, _HEADER.size + 4 + 48 + 8)
    right = ports_and_addresses[:2] == (source_port, target_port) and found in (plain, mapped)
    return uid if right and inode and state != _LISTEN else None


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address.partition("%")[0])


def _from_proc(ours: Address, theirs: Address) -> int | None:
    """The same from /proc/net/tcp and tcp6, whose addresses are hexadecimal words in the machine's own order."""
    wanted = {(_proc_address(theirs[0], mapped), _proc_address(ours[0], mapped)) for mapped in (False, True)}
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", "rb") as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            local, remote = fields[1].split(b":"), fields[2].split(b":")
            if int(local[1], 16) != theirs[1] or int(remote[1], 16) != ours[1] or int(fields[3], 16) == _LISTEN:
                continue
            if (local[0], remote[0]) in wanted:
                return int(fields[7]) if int(fields[9]) else None
    return None


def _proc_address(address: str, mapped: bool) -> bytes:
    packed = _packed(address)
    if mapped and len(packed) == 4:
        packed = b"\0" * 10 + b"\xff\xff" + packed
    words = struct.unpack(f"!{len(packed) // 4}I", packed)
    return b"".join(b"%08X" % socket.ntohl(word) for word in words)


def allowed_uids(more: Sequence[int]) -> frozenset[int]:
    """The users whose processes may connect: our own, root, and those of the settings."""
    return frozenset({0, os.geteuid(), *more})
