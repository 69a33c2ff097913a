"""Start to the first 200, and memory when idle (the server and its keeper, after the agents' libraries are loaded)."""

import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from common import median, memory_mb, report, server

from support.server import children


def first_200(folder: str, port: int) -> float:
    """Seconds from the command to the first 200 of /health."""
    command = [
        sys.executable,
        "-m",
        "workspace_runtime",
        "serve",
        folder,
        "--port",
        str(port),
        "--state-path",
        folder + "-state",
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    return time.perf_counter() - started
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.005)
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    """Measure and print."""
    times = []
    for run in range(7):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "w").mkdir()
            times.append(first_200(str(Path(folder, "w")), 39300 + run))
    ok = report("start to first 200 (median of 7)", median(times), "s", 1.0)
    with server() as process, process.client() as client:
        client.get("/health")
        time.sleep(3)  # the agents' libraries are loaded soon after the start
        assert process.process is not None
        keeper, (child, *_) = process.process.pid, children(process.process.pid)
        figures = {"server": memory_mb(child), "keeper": memory_mb(keeper)}
        for name, (resident, share) in figures.items():
            print(f"      {name}: {resident:.1f} MB resident, {share:.1f} MB its share of what is shared")
        ok &= report(
            "idle memory, both, what they share counted once", sum(share for _, share in figures.values()), "MB", 90
        )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
