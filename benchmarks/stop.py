"""From SIGTERM to the end of the command, with each kind of client connected, and with all of them at once."""

import os
import signal
import sys
import time

from common import median, report, server

from support.stopping import CLIENTS, connected, problems

RUNS = 3
ENOUGH_S = 1.0


def stop(*names: str) -> float:
    """Seconds that a stop takes with these clients (or all) connected."""
    with server() as process:
        assert process.process is not None
        with connected(process, *names):
            started = time.perf_counter()
            os.kill(process.process.pid, signal.SIGTERM)
            status = process.wait()
            took = time.perf_counter() - started
        if status or problems(process):
            print("      ended by", status, *problems(process))
        return took


def main() -> int:
    """Measure and print."""
    ok = True
    for name in CLIENTS:
        ok &= report(f"stop with {name} (median of {RUNS})", median([stop(name) for _ in range(RUNS)]), "s", ENOUGH_S)
    ok &= report(f"stop with all of them (median of {RUNS})", median([stop() for _ in range(RUNS)]), "s", ENOUGH_S)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
