"""What is mounted where, as the kernel tells it in the table of mounts (proc(5), /proc/self/mountinfo).

A device number does not tell a bind mount from its surroundings, a mount's id does: so mounts are always told apart by the table
or by the id, never by `st_dev`.
"""

import contextlib
import os
import select

TABLE = "/proc/self/mountinfo"
# File systems where a look at a file may wait for another machine or process, and whose changes by others the kernel does not tell.
REMOTE = (
    "nfs", "cifs", "smb", "9p", "fuse", "ceph", "afs", "lustre", "gpfs", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "autofs",
)  # fmt: skip


def mounts(table: bytes | None = None) -> list[tuple[int, bytes, str]]:
    """Each mount's id, the absolute path it is mounted at, and its file system's type; in the order they were made, so that of
    several at one path the last one is seen. Empty where there is no table. `table` is its text where it was read already."""
    found = []
    try:
        if table is None:
            with open(TABLE, "rb") as file:
                table = file.read()
        for line in table.splitlines():
            head, _, tail = line.partition(b" - ")
            fields = head.split(b" ")
            # a space, a tabulator, a line's end and a backslash are octal
            point = fields[4].decode("unicode-escape").encode("latin-1")
            found.append((int(fields[0]), point, tail.split(b" ")[0].decode("ascii", "replace")))
    except (OSError, IndexError, ValueError):
        return []
    return found


def file_system_type(path: bytes) -> str:
    """The type of the file system that a path lies on, as the kernel names it (`ext4`, `nfs4`, `fuse.sshfs`); empty if unknown."""
    best, kind = -1, ""
    for _, point, type_of_it in mounts():
        if is_below(path, point) and len(point) >= best:
            best, kind = len(point), type_of_it
    return kind


def mount_points(path: bytes) -> list[bytes]:
    """The mount points at an absolute path and below it, the topmost first."""
    return sorted(point for _, point, _ in mounts() if is_below(point, path))


class MountTable:
    """Tells when something was mounted or unmounted at a folder, below it, or above it. Without a table it tells nothing.

    The kernel wakes whoever polls the table's descriptor (`POLLPRI`), at once and with each change of any mount.
    """

    def __init__(self) -> None:
        self._table = b""
        self._seen: set[bytes] = set()
        try:
            self._fd = os.open(TABLE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def register(self, waiter: "select.poll") -> None:
        """Have the waiter wake up with a change."""
        if self._fd >= 0:
            waiter.register(self._fd, select.POLLPRI)

    def changed(self, path: bytes) -> bool:
        """Whether mounts that concern an absolute path may differ from when this was asked last. To be asked when woken.

        A table that is the same then says that something came and went meanwhile, and not where: that counts as a change.
        """
        if self._fd < 0:
            return False
        before, self._table = (self._table, self._seen), self._read()
        self._seen = {
            b" ".join(line.split(b" ")[:5])  # ids, device, what of it, where
            for line, (_, point, _) in zip(self._table.splitlines(), mounts(self._table), strict=False)
            if is_below(point, path) or is_below(path, point)
        }
        return self._seen != before[1] or self._table == before[0]

    def _read(self) -> bytes:
        """The table as it is once no change comes in while it is read, which would wake the waiter a second time for nothing."""
        waiter = select.poll()
        self.register(waiter)
        table = b""
        for _ in range(20):
            table = b""
            with contextlib.suppress(OSError):
                os.lseek(self._fd, 0, os.SEEK_SET)
                while piece := os.read(self._fd, 65536):
                    table += piece
            if not any(event & select.POLLPRI for _, event in waiter.poll(0)):
                break
        return table

    def close(self) -> None:
        """Let go of the table."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_below(path: bytes, above: bytes) -> bool:
    """Whether an absolute path is `above`, or lies below it."""
    return path == above or path.startswith(above.rstrip(b"/") + b"/")


def mount_id(opened: int) -> int | None:
    """The id of the mount that an open file lies on; None where the kernel does not tell."""
    try:
        with open(f"/proc/self/fdinfo/{opened}", "rb") as file:
            for line in file:
                if line.startswith(b"mnt_id:"):
                    return int(line[7:])
    except (OSError, ValueError):
        pass
    return None


def real_path(opened: int) -> bytes | None:
    """The absolute path of an open folder, all links followed; None where the kernel does not tell."""
    try:
        return os.readlink(b"/proc/self/fd/%d" % opened)
    except OSError:
        return None
