"""What the benchmarks share: a server to measure, its CPU time and memory, medians."""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from support.server import ServerProcess  # noqa: E402  # found by the line above

TICK = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def server(*arguments: str, **env: str) -> Iterator[ServerProcess]:
    """A server in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        process = ServerProcess(Path(folder), *arguments, env=env).start()
        try:
            yield process
        finally:
            process.stop()


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, user and system, in seconds."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory of a process in MB: all of it, and its proportional share where pages are shared."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in file if line.startswith(("Rss:", "Pss:"))}
    return sizes["Rss"], sizes["Pss"]


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which `part` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def report(name: str, value: float, unit: str, bar: float, *, at_most: bool = True) -> bool:
    """Print one measured figure beside its bar; whether it holds."""
    holds = value <= bar if at_most else value >= bar
    print(f"{'ok  ' if holds else 'MISS'}  {name}: {value:.3f} {unit} (bar: {'≤' if at_most else '≥'} {bar:g} {unit})")
    return holds


def wait_for(condition, timeout: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def python(*arguments: str) -> "subprocess.Popen[str]":
    """A Python of this environment as a process."""
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
