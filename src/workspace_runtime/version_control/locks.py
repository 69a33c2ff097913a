"""Lock files that a git left which was killed: told with what can be known of them, and taken away when asked.

git makes `index.lock` and the like while it writes, and refuses to work while one is there. Whether its maker still lives can't be
read from it; so a git process that works in one of the repository's working trees counts as the maker.
"""

import contextlib
import datetime
import os
import stat
import time
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import shown

from . import cursors
from .repository import Repository


def locks(repository: Repository, *, limit: int = 50, cursor: str | None = None) -> dict[str, Any]:
    """A page of the locks that are there, by name: `name, created_at, age_s`, and the git processes that work in the repository. Blocks.

    Raises `cursor_invalid`.
    """
    now = time.time()
    items = []
    bound = cursors.binding("locks", repository.git_dir)
    page, after = cursors.page(
        sorted(_found(repository)), lambda row: (0, row[0]), bound, limit, cursor, lambda row: len(row[0])
    )
    for name, path in page:
        with contextlib.suppress(OSError):
            made = os.lstat(path).st_mtime
            created = datetime.datetime.fromtimestamp(made, datetime.UTC).isoformat(timespec="seconds")
            items.append(
                {
                    "name": shown(name),
                    "created_at": created.replace("+00:00", "Z"),
                    "age_s": round(max(0.0, now - made), 1),
                }
            )
    return {"items": items, "next_cursor": after, "processes": processes(repository) if items else []}


def clear(repository: Repository, *, force: bool) -> dict[str, Any]:
    """Take all locks away. Raises `repository_locked` where a git is at work, unless `force`. Blocks."""
    repository.need_write()
    running = processes(repository)
    if running and not force:
        raise WorkspaceError(
            "repository_locked",
            f"A git (process {running[0]['pid']}) works in this repository: wait for it, end it, or say force.",
            processes=running,
        )
    removed = []
    for name, path in _found(repository):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            removed.append(shown(name))
    return {"removed": removed}


def _found(repository: Repository) -> list[tuple[bytes, bytes]]:
    """Name and place of each lock file. Links are not followed."""
    found: dict[bytes, bytes] = {}
    for folder in dict.fromkeys((repository.git_dir, repository.common_dir)):
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(folder)):
                if name.endswith(b".lock"):
                    found.setdefault(name, os.path.join(folder, name))
    for above, _, names in os.walk(os.path.join(repository.common_dir, b"refs")):
        for name in names:
            if name.endswith(b".lock"):
                path = os.path.join(above, name)
                found[os.path.relpath(path, repository.common_dir)] = path
    return [(name, path) for name, path in found.items() if _is_file(path)]


def _is_file(path: bytes) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _parent(pid: str) -> int:
    """The parent of a process (proc(5), /proc/pid/stat)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


def processes(repository: Repository) -> list[dict[str, Any]]:
    """The git processes whose working folder lies in this repository, in any of its working trees. Blocks."""
    found = []
    tops = {repository.top, repository.git_dir, repository.common_dir}
    with contextlib.suppress(WorkspaceError):  # git can't tell: those at least
        tops.update(repository.trees())
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if not entry.isdigit():
            continue
        try:
            if _parent(entry) == os.getpid():
                continue  # a read of ours: it takes no lock
            program = os.path.basename(os.readlink(f"/proc/{entry}/exe".encode()))
            folder = os.readlink(f"/proc/{entry}/cwd".encode())
        except OSError:
            continue
        if program.startswith(b"git") and any(folder == top or folder.startswith(top + b"/") for top in tops):
            found.append({"pid": int(entry), "command": shown(program)})
    return found
