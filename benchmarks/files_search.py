"""Searches and pages of a large folder through the running server: 100,000 files by name, content against ripgrep, 100,000 entries.

`/health` is asked every 5 ms meanwhile, as in `files_live.py`. The content search is compared with `rg --json` that writes to a pipe
which is read and thrown away; of ours, the CPU time of the server and of the ripgrep that it ran. Both take turns, and the ratio is
of medians. What it costs ripgrep to be confined by the kernel, as ours is, is printed.
"""

import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import orjson
from common import TICK, median, memory_mb, report, server
from files_live import Health
from files_transfer import peak_mb, rest_and_rewind
from search_room import QUERIES, make_content, make_tree

from support.asking import Answer, ask
from support.server import ServerProcess
from workspace_runtime.files.landlock import restrict_this_thread
from workspace_runtime.files.ripgrep import can_be_confined, program

QUICK_ROUNDS, SEARCH_ROUNDS, PAGE_ROUNDS = 9, 12, 7
ENTRIES = 100_000
NEEDLES = 10_000


def get(process: ServerProcess, path: str, /, **query: object) -> tuple[Answer, float]:
    """One answer, and how long it took in ms."""
    began = time.perf_counter()
    answer = ask(process.url, "GET", f"/api/v1/{path}?{urlencode(query)}")
    took = (time.perf_counter() - began) * 1000
    assert answer.status == 200, answer
    return answer, took


def family_cpu_s(pid: int) -> float:
    """CPU time of a process and of its children that ended, in seconds."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICK


def quick_open() -> bool:
    """Find files by name."""
    with server() as process:
        make_tree(str(process.workspace))
        time.sleep(2)  # the agents' libraries are loaded soon after the start
        before = memory_mb(process.server_pid)[0]
        health, cold = Health("during the first search"), Health("during searches by name")
        with health.asked(process):
            _, took = get(process, "search/files", q="test")
        ok = report("quick open, the first", took, "ms", 2000)
        print(f"      memory of the index and all: {memory_mb(process.server_pid)[0] - before:.1f} MB")
        ok &= health.report()
        time.sleep(0.1)
        worst: tuple[float, str] = (0.0, "")
        times: dict[str, list[float]] = {query: [] for query in QUERIES}
        for _ in range(QUICK_ROUNDS):
            with cold.asked(process):
                for query in QUERIES:
                    times[query].append(get(process, "search/files", q=query, kind="any")[1])
        for query, taken in times.items():
            worst = max(worst, (median(taken), query))
        print(f"      all queries: {' '.join(f'{median(taken):.0f}' for taken in times.values())} ms")
        ok &= report(f"quick open, the slowest query ({worst[1]!r})", worst[0], "ms", 80)
        return cold.report() and ok


def bare(top: Path, *, confined: bool = False) -> tuple[float, float]:
    """`rg --json` read and thrown away: ms, CPU ms."""
    command = [program() or "rg", "--no-config", "--json", "--hidden", "--glob=!.git", "-F", "-e", "needle", "."]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()

    def run() -> None:
        with open(os.devnull, "rb") as nothing:
            if confined:
                places = [str(top), *filter(os.path.isdir, ("/lib", "/lib64", "/usr/lib", "/usr/lib64")), command[0]]
                opened = [os.open(place, os.O_PATH | os.O_CLOEXEC) for place in places]
                restrict_this_thread(opened[:-1], opened[-1:])
                for file in opened:
                    os.close(file)
            with subprocess.Popen(command, cwd=top, stdin=nothing, stdout=subprocess.PIPE, close_fds=False) as process:
                assert process.stdout is not None
                while os.read(process.stdout.fileno(), 128 * 1024):
                    pass
                assert process.wait() == 0

    with ThreadPoolExecutor(1) as thread:  # its own, since what is confined stays so
        thread.submit(run).result()
    took = (time.perf_counter() - began) * 1000
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def content() -> bool:
    """Find lines."""
    with server() as process:
        make_content(str(process.workspace))
        time.sleep(2)
        figures: dict[str, list[tuple[float, float]]] = {"bare": [], "bare, confined": [], "ours": []}
        for turn in range(SEARCH_ROUNDS):
            once = [bare(process.workspace), bare(process.workspace, confined=can_be_confined())]
            before = family_cpu_s(process.server_pid)
            answer, took = get(process, "search/content", q="needle", case="sensitive", limit=NEEDLES)
            once.append((took, (family_cpu_s(process.server_pid) - before) * 1000))
            summary = orjson.loads(answer.body.splitlines()[-1])
            assert summary["matches"] == NEEDLES, summary
            if turn:  # the first warms the cache
                for taken, figure in zip(figures.values(), once, strict=True):
                    taken.append(figure)
        wall = [median([took for took, _ in taken]) for taken in figures.values()]
        cpu = [sum(used for _, used in taken) / len(taken) for taken in figures.values()]  # the clock is coarse
        for name, took, used in zip(figures, wall, cpu, strict=True):
            print(f"      {name}: {took:.0f} ms, CPU {used:.0f} ms")
        print(f"      against the confined: time {wall[2] / wall[1]:.2f} ×, CPU {cpu[2] / cpu[1]:.2f} ×")
        ok = report("content search, time", wall[2] / wall[0], "× rg --json", 1.2)
        ok &= report("content search, CPU", cpu[2] / cpu[0], "× rg --json", 1.2)
        health = Health("during searches of content")
        for _ in range(5):
            with health.asked(process):
                get(process, "search/content", q="needle", limit=NEEDLES)
        return health.report() and ok


def pages() -> bool:
    """A page of a folder of 100,000 entries."""
    with server() as process:
        flat = process.workspace / "flat"
        flat.mkdir()
        for number in range(ENTRIES):
            opened = os.open(flat / f"file_{number * 7919 % ENTRIES:06}.txt", os.O_CREAT | os.O_WRONLY)
            os.write(opened, b"x" * (number % 1000))
            os.close(opened)
        time.sleep(2)
        pid = process.server_pid

        def taken(**query: object) -> list[float]:
            return [get(process, "files", path="flat", **query)[1] for _ in range(PAGE_ROUNDS)]

        ok = True
        before = rest_and_rewind(pid)
        cursor = get(process, "files", path="flat", limit=200)[0].json["next_cursor"]
        for name, bar, query in (
            ("by name", 150, {"sort": "name"}),
            ("by name, the second page", 150, {"sort": "name", "limit": 200, "cursor": cursor}),
            ("by name, backwards", 150, {"sort": "-name"}),
            ("by size", 600, {"sort": "size"}),
            ("by time", 600, {"sort": "modified_at"}),
            ("by time, newest first", 600, {"sort": "-modified_at"}),
        ):
            times = taken(**query)
            ok &= report(f"a page of {ENTRIES} {name}", median(times), "ms", bar)
        ok &= report("memory for it, at the peak", peak_mb(pid) - before, "MB", 20)
        health = Health("during pages by size")
        for _ in range(5):
            with health.asked(process):
                get(process, "files", path="flat", sort="size")
        return health.report() and ok


def main() -> int:
    """Measure and print."""
    held = [quick_open(), content(), pages()]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
