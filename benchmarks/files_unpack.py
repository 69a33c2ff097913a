"""Unpacking an archive of many empty files, over HTTP, against `tar xf` and the flushes that make its files durable.

The peer flushes as ours does: its disk (syncfs) once for each batch, and once at the end. A second peer flushes each file by itself.
All take turns on the same disk; each round gives a ratio, and the median of these counts.
"""

import ctypes
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from common import cpu_s, median, report, server

from support import asking
from support.asking import ask, multipart
from workspace_runtime.files.batch import MAX_FILES

ROUNDS = 5
FILES = 10_000
BAR = 3.0

asking.TIMEOUT_S = 600.0
_libc = ctypes.CDLL(None, use_errno=True)


def archive() -> bytes:
    """A plain tar of empty files in ten folders."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(FILES):
            tar.addfile(tarfile.TarInfo(f"top/part{number % 10}/file{number:05d}"))
    return packed.getvalue()


def flush(folder: Path) -> None:
    """Flush the disk of a folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        if _libc.syncfs(opened) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(opened)


def by_tar(packed: Path, into: Path, *, each: bool) -> float:
    """`tar xf` and the flushes; how long it took."""
    into.mkdir()
    began = time.perf_counter()
    subprocess.run(["tar", "-C", into, "-xf", packed], check=True)
    if each:
        for path in into.rglob("*"):
            opened = os.open(path, os.O_RDONLY)
            os.fsync(opened)
            os.close(opened)
    else:
        for _ in range(FILES // MAX_FILES + 2):
            flush(into)
    return time.perf_counter() - began


def by_us(url: str, body: bytes, headers: dict[str, str], path: str) -> float:
    """The upload; how long it took."""
    began = time.perf_counter()
    answer = ask(url, "POST", f"/api/v1/files/upload?path={path}&extract=true", body, headers)
    took = time.perf_counter() - began
    assert answer.status == 201, answer.body[:500]
    assert len(answer.json["items"]) + answer.json.get("left_out", 0) == FILES
    return took


def main() -> int:
    """Measure and print."""
    with server() as ours:
        packed = ours.folder / "packed.tar"
        packed.write_bytes(archive())
        body, headers = multipart((b"packed.tar", packed.read_bytes()))
        times: dict[str, list[float]] = {"ours": [], "tar and flushes": [], "tar and an fsync of each": []}
        cpu = cpu_s(ours.server_pid)
        for number in range(ROUNDS):
            times["ours"].append(by_us(ours.url, body, headers, f"ours{number}"))
            times["tar and flushes"].append(by_tar(packed, ours.folder / f"tar{number}", each=False))
            times["tar and an fsync of each"].append(by_tar(packed, ours.folder / f"each{number}", each=True))
            for name in (f"workspace/ours{number}", f"tar{number}", f"each{number}"):
                shutil.rmtree(ours.folder / name)
            flush(ours.folder)
        cpu = (cpu_s(ours.server_pid) - cpu) / ROUNDS
        for name, taken in times.items():
            print(f"      {name}: {median(taken):.2f} s")
        print(f"      CPU of ours: {cpu * 1e6 / FILES:.0f} µs a file")
        each = [a / b for a, b in zip(times["ours"], times["tar and an fsync of each"], strict=True)]
        print(f"      {median(each):.2f} × tar with an fsync of each")
        ratios = [a / b for a, b in zip(times["ours"], times["tar and flushes"], strict=True)]
        return 0 if report(f"unpacking {FILES} files against tar", median(ratios), "×", BAR) else 1


if __name__ == "__main__":
    sys.exit(main())
