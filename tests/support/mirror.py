"""A client of the watcher that knows only what it is told, and a process that changes a folder at random.

`Mirror` lists the workspace once, then applies events; it must come to equal the disk. It also counts what it was told.
Run as a program (`mirror.py ROOT SEED SECONDS`), this file is the process.
"""

import asyncio
import contextlib
import os
import random
import shutil
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from workspace_runtime.files.ignored import root_rules
from workspace_runtime.files.temporary import is_temporary
from workspace_runtime.files.watch import Watcher
from workspace_runtime.files.watching.telling import Change
from workspace_runtime.paths import WorkspaceRoot, etag_of

Entry = tuple[bool, int | None, str | None]  # is_dir, size, etag


class Mirror:
    """What a client believes. An event that can't be true of that is noted in `faults`, until something was listed again: then
    what was on its way may be in the list already."""

    def __init__(self, root: WorkspaceRoot) -> None:
        self.root = root
        self.entries: dict[bytes, Entry] = {}
        self.changes: list[Change] = []
        self.resyncs: list[bytes] = []
        self.batches: list[int] = []
        self.faults: list[str] = []
        self.exact = True  # else the time of change does not count: it changes with a file's other names, of which no event tells

    def changed(self, changes: Sequence[Change]) -> None:
        """Apply a batch."""
        self.batches.append(len(changes))
        for change in changes:
            self.changes.append(change)
            self._apply(change)

    def resync(self, paths: Sequence[bytes]) -> None:
        """List these folders again."""
        for path in paths:
            self.resyncs.append(path)
            self._remove_below(path)
            found, _ = on_disk(self.root, path)
            self.entries.update(found)

    def _apply(self, change: Change) -> None:
        known = self.entries.get(change.path)
        if change.event_type == "deleted":
            if known is None and not self.resyncs:
                self.faults.append(f"deleted, but not known: {change.path!r}")
            self.entries.pop(change.path, None)
            if change.is_dir:
                self._remove_below(change.path)
            return
        above = change.path.rpartition(b"/")[0]
        if self.resyncs:
            pass
        elif (change.event_type == "created") is (known is not None):
            self.faults.append(f"{change.event_type}, but known is {known}: {change.path!r}")
        elif above and above not in self.entries:
            self.faults.append(f"{change.event_type} in a folder that is not known: {change.path!r}")
        self.entries[change.path] = (change.is_dir, change.size, change.etag)

    def _remove_below(self, path: bytes) -> None:
        prefix = path + b"/" if path else b""
        for below in [known for known in self.entries if known.startswith(prefix)]:
            del self.entries[below]

    def difference(self) -> set[tuple[bytes, Entry]]:
        """What it and the disk do not have in common; what lies in folders that are ignored by now does not count."""
        found, ignored = on_disk(self.root)
        kept = {}
        for path, entry in self.entries.items():
            parts = path.split(b"/")
            if ignored.isdisjoint(b"/".join(parts[:count]) for count in range(1, len(parts))):
                kept[path] = entry
        if not self.exact:
            found, kept = _without_times(found), _without_times(kept)
        return set(kept.items()) ^ set(found.items())

    async def settled(self, timeout: float = 15.0) -> None:
        """Wait until it equals the disk; fails with the difference."""
        deadline = time.monotonic() + timeout
        while difference := self.difference():
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(difference)} differ, such as {sorted(difference)[:6]}")
            await asyncio.sleep(0.02)

    async def told(self, path: bytes, event_type: str | None = None, timeout: float = 15.0) -> Change:
        """Wait for a change of a path."""
        async with asyncio.timeout(timeout):
            while True:
                for change in self.changes:
                    if change.path == path and event_type in (None, change.event_type):
                        return change
                await asyncio.sleep(0.002)

    async def barrier(self) -> None:
        """Wait until all that was done before is told: a file is made and removed, whose events are taken away again."""
        name = b"barrier-%d" % time.monotonic_ns()
        full = os.path.join(os.fsencode(self.root.path), name)
        with open(full, "wb"):
            pass
        await self.told(name, "created")
        os.unlink(full)  # a second round, for what was put off in the first
        await self.told(name, "deleted")
        self.changes = [change for change in self.changes if change.path != name]

    def events(self) -> list[tuple[str, bytes]]:
        """Type and path of all changes so far, and forget them."""
        changes, self.changes = self.changes, []
        return [(change.event_type, change.path) for change in changes]


def _without_times(entries: dict[bytes, Entry]) -> dict[bytes, Entry]:
    return {path: (is_dir, size, etag and etag.rpartition("-")[0]) for path, (is_dir, size, etag) in entries.items()}


def on_disk(root: WorkspaceRoot, start: bytes = b"") -> tuple[dict[bytes, Entry], set[bytes]]:
    """What a listing shows below a folder, and which folders are ignored."""
    found: dict[bytes, Entry] = {}
    ignored: set[bytes] = set()
    rules = root_rules(root)
    todo = [(b"", rules)]
    while todo:
        path, rules = todo.pop()
        with contextlib.ExitStack() as stack:
            try:
                folder = root.open_folder(path)
                stack.callback(os.close, folder)
                entries = [(os.fsencode(entry.name), entry) for entry in stack.enter_context(os.scandir(folder))]
            except OSError:
                continue
            for name, entry in entries:
                full = path + b"/" + name if path else name
                if name == b".git" or is_temporary(name):
                    continue
                try:
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                except OSError:
                    continue
                is_dir = stat.S_ISDIR(status.st_mode)
                if full.startswith(start + b"/") or not start:
                    etag = etag_of(status) if stat.S_ISREG(status.st_mode) else None
                    found[full] = (is_dir, None if is_dir else status.st_size, etag)
                if not is_dir:
                    continue
                if rules.ignores(entry.name, is_dir=True):
                    ignored.add(full)
                elif start.startswith(full) or full.startswith(start) or not start:
                    with contextlib.suppress(OSError):
                        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                        stack.callback(os.close, below)
                        todo.append((full, rules.below(entry.name, below)))
    return found, ignored


@contextlib.asynccontextmanager
async def watching(path: Path, **options: float | bool | None) -> AsyncIterator[tuple[Mirror, Watcher]]:
    """A watcher of a folder, and a mirror that follows it; ends with no fault told."""
    root = WorkspaceRoot(path)
    mirror = Mirror(root)
    watcher = Watcher(root, mirror.changed, mirror.resync, **options)  # type: ignore[arg-type]
    try:
        await watcher.start()
        mirror.entries, _ = on_disk(root)
        yield mirror, watcher
    finally:
        await watcher.stop()
        root.close()


def churn(root: Path, seed: int, seconds: float) -> int:
    """Change a folder at random for some time, without regard for others that do the same; how many changes were made."""
    choose = random.Random(seed)
    names = [f"n{number}" for number in range(8)]
    deadline = time.monotonic() + seconds
    count = 0

    def some(depth: int = 4) -> Path:
        return root.joinpath(*(choose.choice(names) for _ in range(choose.randint(1, depth))))

    def write(path: Path) -> None:
        path.write_bytes(choose.randbytes(choose.randint(0, 3000)))

    def replace(path: Path) -> None:
        beside = path.with_name("tmp" + str(choose.randint(0, 3)))
        write(beside)
        beside.replace(path)

    actions: list[Callable[[], object]] = [
        lambda: write(some()),
        lambda: write(some()),
        lambda: replace(some()),
        lambda: some().mkdir(parents=True),
        lambda: some(7).mkdir(parents=True),
        lambda: some().rename(some()),
        lambda: some(2).rename(some(3)),
        lambda: some().unlink(),
        lambda: shutil.rmtree(some()),
        lambda: some().symlink_to("n1"),
        lambda: some().chmod(choose.choice([0o644, 0o755, 0o700])),
        lambda: os.link(some(), some()),
    ]
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, shutil.Error):
            choose.choice(actions)()
            count += 1
        if choose.random() < 0.02:
            time.sleep(choose.random() * 0.08)
    return count


if __name__ == "__main__":
    print(churn(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
