"""No orphan, at any instant: parents, keepers and commands killed at moments spread over a start and a fork bomb."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import assert_gone, daemons, marked, marking, wait_for
from workspace_runtime.processes import keeper_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and prctl")

# A server that starts agents at once and is killed meanwhile, itself below a keeper.
SERVER = """
import os, subprocess, sys
from workspace_runtime.keeper import run_kept
from workspace_runtime.processes import keeper_command

def main():
    for script in sys.argv[1:]:
        subprocess.Popen([*keeper_command(), "--parent", str(os.getpid()), "--", "/bin/sh", "-c", script])
    print(os.getpid(), flush=True)
    while True:
        os.waitid(os.P_ALL, 0, os.WEXITED)

sys.exit(run_kept(main))
"""

# 200 processes that fork as fast as they can, some into sessions of their own; the rest waits.
BOMB = """
import os, time
reader, writer = os.pipe()
os.set_blocking(reader, False)
os.write(writer, bytes(200))
while True:
    try:
        os.read(reader, 1)
    except BlockingIOError:
        time.sleep(1000)
    if os.fork() == 0:
        if os.getpid() % 3 == 0:
            os.setsid()
        if os.fork():
            os._exit(0)
"""


@pytest.fixture
def mark() -> Iterator[str]:
    """A word that names the test's processes."""
    with marking() as made:
        yield made


def spend(seconds: float) -> None:
    """Let so much time pass: the moment is what is tried here, so there is nothing to wait for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass


@pytest.mark.parametrize("step", range(12))
def test_a_server_killed_while_it_starts_agents(tmp_path: Path, mark: str, step: int) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    agents = [f"{ways} sleep 1000; : {mark}" for ways in daemons(mark).values()]
    process = subprocess.Popen([sys.executable, str(script), *agents], stdout=subprocess.PIPE)
    assert process.stdout is not None
    server = int(process.stdout.readline())
    spend(step * 0.003)
    os.kill(server, signal.SIGKILL)
    assert process.wait(5) == -signal.SIGKILL
    process.stdout.close()
    assert marked(mark) == []


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGQUIT])
@pytest.mark.parametrize("step", range(8))
def test_a_keeper_ended_while_it_starts(mark: str, step: int, signo: signal.Signals) -> None:
    script = " ".join(daemons(mark).values()) + f" sleep 1000; : {mark}"
    process = subprocess.Popen([*keeper_command(), "--", "/bin/sh", "-c", script], stderr=subprocess.DEVNULL)
    spend(step * 0.004)
    process.send_signal(signo)
    process.wait(5)
    assert_gone(mark)


@pytest.mark.parametrize("step", range(8))
def test_a_fork_bomb_ended_at_any_moment(mark: str, step: int) -> None:
    process = subprocess.Popen([*keeper_command(), "--", sys.executable, "-I", "-S", "-c", BOMB, mark])
    wait_for(lambda: len(marked(mark)) > 2)
    spend(step * 0.01)
    process.send_signal(signal.SIGQUIT)
    assert process.wait(5) == -signal.SIGKILL
    assert marked(mark) == []
