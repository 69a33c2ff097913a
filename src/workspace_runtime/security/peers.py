"""Whose process is at the other end of a loopback connection: the kernel knows, and is asked.

The kernel's socket table is asked for the one socket whose own address is the peer's and whose remote address is ours: by the
whole 4-tuple, since another user may hold the same port on 127.0.0.2. Netlink (`inet_diag`) answers such a question within the
`send` itself, so nothing waits here; where it is missing, `/proc/net/tcp` and `tcp6` are read.

The invariant: whatever is not certain is nobody. A socket that its process has closed shows user 0 and inode 0, which is not
root's but nobody's any more.
"""

import contextlib
import errno
import os
import socket
import struct
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

Address = tuple[str, int]

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLM_F_REQUEST = 1
_ANY_COOKIE = b"\xff" * 8
_TCP_LISTEN = 10
_ATTEMPTS = 16
_NOT_OFFERED = frozenset(
    {errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EACCES}
)
_MAPPED = b"\0" * 10 + b"\xff\xff"

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBBI")  # family, protocol, extensions, padding, states
# family, state, timer, retransmits | ports | addresses | interface, cookie | expires, queues, uid, inode
_ANSWER = struct.Struct("=BBBB4s16s16s12sIIIII")
_REFUSAL = struct.Struct("=i")


class Owner(NamedTuple):
    """A socket's user and its inode."""

    uid: int
    inode: int


class Netlink:
    """The kernel's socket table, asked through a netlink socket that stays open.

    Every method raises `OSError` where the kernel does not offer this, or its answer can't be had at once.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process = 0
        self._sequence = 0
        self._open()

    def close(self) -> None:
        """Close the socket; the next question opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def owner(self, peer: Address, local: Address) -> Owner | None:
        """Who holds the socket from `peer` to `local`; None when the kernel knows no such socket."""
        ends = _packed(peer), _packed(local)
        if (ends[0][:12] == _MAPPED) != (ends[1][:12] == _MAPPED):
            return None
        table = self._open()
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        table.send(self._question(peer[1], local[1], *ends))
        for _ in range(_ATTEMPTS):  # an answer to an older question, or a message of someone else's, is passed over
            data, (sender, _) = table.recvfrom(4096)
            if sender != 0 or len(data) < _HEADER.size:
                continue
            length, kind, _, sequence, _ = _HEADER.unpack_from(data)
            if sequence != self._sequence or length > len(data):
                continue
            return _read_answer(kind, data[_HEADER.size : length], peer[1], local[1], *ends)
        raise OSError(errno.EAGAIN, "No answer from the kernel's socket table.")

    def _open(self) -> socket.socket:
        if self._socket is None or self._process != os.getpid():  # a child must not read its parent's answers
            self.close()
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
            self._process = os.getpid()
            weakref.finalize(self, self._socket.close)  # whoever forgets us leaves nothing open
            self._socket.connect((0, 0))
        return self._socket

    def _question(self, peer_port: int, local_port: int, peer: bytes, local: bytes) -> bytes:
        if peer[:12] == _MAPPED:
            family, source, target = socket.AF_INET, peer[12:] + b"\0" * 12, local[12:] + b"\0" * 12
        else:
            family, source, target = socket.AF_INET6, peer, local
        body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
        body += struct.pack(">HH", peer_port, local_port) + source + target + b"\0" * 4 + _ANY_COOKIE
        return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, self._sequence, 0) + body


class Peers:
    """Tells the user behind a TCP connection of this machine. One for a process; used by one thread."""

    def __init__(self) -> None:
        self._netlink: Netlink | None = None
        with contextlib.suppress(OSError, AttributeError):  # no such socket family here
            self._netlink = Netlink()

    @property
    def source(self) -> str | None:
        """Where answers come from: `netlink`, `/proc`, or None where this system tells nothing."""
        if self._netlink is not None:
            return "netlink"
        return "/proc" if os.path.exists("/proc/net/tcp") else None

    def close(self) -> None:
        """Release the netlink socket."""
        if self._netlink is not None:
            self._netlink.close()

    def uid(self, local: Sequence[Any], peer: Sequence[Any]) -> int | None:
        """The user id of the process that holds the socket `peer`, connected to our socket `local` (as `getpeername` and
        `getsockname` give them).

        None when it can't be told: no such socket on this machine, or one that was closed already. Never raises, and never
        waits for anything but the kernel's own work.
        """
        try:
            owner = self._ask((peer[0], peer[1]), (local[0], local[1]))
        except (OSError, ValueError, TypeError, IndexError, struct.error):
            return None
        return owner.uid if owner is not None and owner.inode else None

    def _ask(self, peer: Address, local: Address) -> Owner | None:
        netlink = self._netlink
        for _ in range(2 if netlink is not None else 0):  # twice: the first socket may have been overrun
            assert netlink is not None
            try:
                return netlink.owner(peer, local)
            except OSError as fault:
                netlink.close()
                if fault.errno in _NOT_OFFERED:
                    self._netlink = None
                    break
        return owner_from_proc(peer, local)


def owner_from_proc(peer: Address, local: Address, folder: str = "/proc/net") -> Owner | None:
    """The same from the text tables `tcp` and `tcp6` in `folder`: slower the more sockets there are.

    Raises `OSError` or `ValueError` for addresses that are none.
    """
    ends = _packed(peer), _packed(local)
    wanted = {"tcp6": b"%s %s" % (_hex(ends[0], peer[1]), _hex(ends[1], local[1]))}
    if ends[0][:12] == _MAPPED and ends[1][:12] == _MAPPED:
        wanted = {"tcp": b"%s %s" % (_hex(ends[0][12:], peer[1]), _hex(ends[1][12:], local[1])), **wanted}
    for table, pair in wanted.items():
        with contextlib.suppress(FileNotFoundError), open(f"{folder}/{table}", "rb") as file:
            for line in file:
                if pair in line:
                    fields = line.split()
                    if b" ".join(fields[1:3]) == pair and len(fields) > 9 and int(fields[3], 16) != _TCP_LISTEN:
                        return Owner(int(fields[7]), int(fields[9]))
    return None


def allowed_uids(more: Sequence[int]) -> frozenset[int]:
    """The users whose processes may connect: our own, root, and those of the settings."""
    return frozenset({0, os.geteuid(), *more})


def _read_answer(kind: int, body: bytes, peer_port: int, local_port: int, peer: bytes, local: bytes) -> Owner | None:
    if kind == _NLMSG_ERROR:
        (code,) = _REFUSAL.unpack_from(body)
        if -code == errno.ENOENT:
            return None
        raise OSError(-code or errno.EIO, "The kernel's socket table refused the question.")
    if kind != _SOCK_DIAG_BY_FAMILY:
        raise OSError(errno.EIO, "An unknown answer from the kernel's socket table.")
    family, state, _, _, ports, source, target, _, _, _, _, uid, inode = _ANSWER.unpack_from(body)
    if family == socket.AF_INET:
        source, target = _MAPPED + source[:4], _MAPPED + target[:4]
    # The kernel falls back to a listening socket on the peer's port: that one is not the peer.
    if state == _TCP_LISTEN or (source, target) != (peer, local) or ports != struct.pack(">HH", peer_port, local_port):
        return None
    return Owner(uid, inode)


def _packed(address: Address) -> bytes:
    """An address as 16 bytes, an IPv4 one mapped, so that both families compare alike."""
    host = address[0]
    if ":" in host:
        return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return _MAPPED + socket.inet_pton(socket.AF_INET, host)


def _hex(packed: bytes, port: int) -> bytes:
    """As the tables write it: words of 32 bits in the machine's order, a colon, the port."""
    words = struct.unpack(f"={len(packed) // 4}I", packed)  # native order
    return b"".join(b"%08X" % word for word in words) + b":%04X" % port
