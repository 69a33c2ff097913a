"""What 300,000 deltas of one character cost a server to which nobody listens: memory while they come and afterwards, and CPU.

The block's text is 300 kB. The memory must be about that, and not about the number of deltas.
"""

import sys
import time

from common import cpu_s, memory_mb, report, server

from support.server import create, session_of, wait_status

DELTAS = 300_000


def main() -> int:
    """Measure and print."""
    with server() as process, process.client() as client:
        time.sleep(3)  # the agents' libraries are loaded soon after the start
        session = create(client)
        wait_status(client, session["id"], "idle")
        before, spent = memory_mb(process.server_pid)[0], cpu_s(process.server_pid)
        most, slowest = before, 0.0
        client.post(f"/api/v1/agent-sessions/{session['id']}/messages", json={"prompt": f"stream {DELTAS} 1"})
        while True:
            asked = time.monotonic()
            status = session_of(client, session["id"])["status"]
            slowest = max(slowest, time.monotonic() - asked)
            most = max(most, memory_mb(process.server_pid)[0])
            if status == "idle":
                break
            time.sleep(0.02)
        after = memory_mb(process.server_pid)[0]
        print(f"      {(cpu_s(process.server_pid) - spent) * 1e6 / DELTAS:.1f} µs CPU a delta")
    ok = report(f"{DELTAS} deltas to nobody: growth at its most", most - before, "MB", 50)
    ok &= report(f"{DELTAS} deltas to nobody: growth that is kept", after - before, "MB", 50)
    return 0 if report("the slowest answer meanwhile", slowest * 1000, "ms", 250) and ok else 1


if __name__ == "__main__":
    sys.exit(main())
