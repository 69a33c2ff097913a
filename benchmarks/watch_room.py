"""The watcher alone over 100,000 files in 10,400 folders, 8,000 of which are ignored: set-up, memory, latency, many changes."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import median, memory_mb, report

from workspace_runtime.files.watch import Watcher
from workspace_runtime.files.watching.telling import Change
from workspace_runtime.paths import WorkspaceRoot

FOLDERS, FILES, IGNORED = 2400, 38, 8000
WRITER = """
import os, sys
for line in sys.stdin:
    for path in line.rstrip("\\n").split("\\0"):
        with open(path, "a") as file:
            file.write("more")
    print("done", flush=True)
"""


def make_tree(root: Path) -> None:
    """The workspace: folders three deep, and a large `node_modules`."""
    for number in range(FOLDERS):
        folder = root / f"area{number // 100}" / f"part{number // 10 % 10}" / f"unit{number % 10}"
        folder.mkdir(parents=True)
        for file in range(FILES):
            os.close(os.open(folder / f"module_{file:03}.py", os.O_CREAT | os.O_WRONLY))
    for number in range(IGNORED):
        folder = root / "node_modules" / f"package{number}"
        folder.mkdir(parents=True)
        os.close(os.open(folder / "index.js", os.O_CREAT | os.O_WRONLY))


async def measure(path: Path) -> bool:
    """Measure and print."""
    root = WorkspaceRoot(path)
    told: dict[bytes, int] = {}
    longest = 0

    def changed(changes: Sequence[Change]) -> None:
        nonlocal longest
        longest = max(longest, len(changes))
        for change in changes:
            told[change.path] = told.get(change.path, 0) + 1

    async def until(count: int) -> None:
        async with asyncio.timeout(30):
            while len(told) < count:
                await asyncio.sleep(0.0005)

    before = memory_mb(os.getpid())[0]
    watcher = Watcher(root, changed, lambda paths: print(f"      resync {paths}"))
    began = time.perf_counter()
    await watcher.start()
    ok = report("until all watches stand", time.perf_counter() - began, "s", 1.5)
    ok &= report("memory for it", memory_mb(os.getpid())[0] - before, "MB", 60)
    print(f"      {watcher.watched} folders watched, {watcher.polled} polled")
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 24
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    files = sorted(file for area in path.glob("area*") for file in area.glob("*/*/*.py"))

    latencies = []
    for file in files[:100]:
        told.clear()
        began = time.perf_counter()
        with open(file, "a") as opened:
            opened.write("x")
        await until(1)
        latencies.append(time.perf_counter() - began)
    ok &= report("write to event, p50", median(latencies) * 1000, "ms", 60)

    await asyncio.sleep(0.1)
    told.clear()
    chosen = files[1000:11000]
    began = time.perf_counter()
    writer.stdin.write("\0".join(map(str, chosen)).encode() + b"\n")
    await writer.stdout.readline()
    written = time.perf_counter()
    await until(len(chosen))
    ended = time.perf_counter()
    ok &= report("10,000 changed files, from the first write", ended - began, "s", 2.0)
    print(f"      {ended - written:.3f} s of it after the last write")
    twice = sum(count - 1 for count in told.values())
    print(f"      {twice} told more than once; batches of {longest} at most")

    told.clear()
    began = time.perf_counter()
    (path / "area1").rename(path / "moved")
    await until(1 + 1 + 10 + 100 * (FILES + 1))
    ok &= report("a folder of 3,900 moved", time.perf_counter() - began, "s", 1.0)
    ok &= report("memory after all", memory_mb(os.getpid())[0] - before, "MB", 60)
    writer.stdin.close()
    await writer.wait()
    began = time.perf_counter()
    await watcher.stop()
    ok &= report("stop", time.perf_counter() - began, "s", 1.0)
    root.close()
    return ok


def main() -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        make_tree(Path(folder))
        return 0 if asyncio.run(measure(Path(folder))) else 1


if __name__ == "__main__":
    sys.exit(main())
