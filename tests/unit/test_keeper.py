"""The keeper: a command's status and streams go through it untouched, and nothing of its tree survives any end."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from support.processes import PATIENCE_S, assert_gone, child_of, daemons, marked, marking, told, wait_for
from workspace_runtime import processes
from workspace_runtime.processes import keeper_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and prctl")


@pytest.fixture
def mark() -> Iterator[str]:
    """A word that names the test's processes."""
    with marking() as made:
        yield made


WAYS = tuple(daemons(""))
READY = "echo ready; "


def keep(script: str, *, parent: int | None = None) -> subprocess.Popen[bytes]:
    """Start a shell script under a keeper."""
    command = [*keeper_command(), *(["--parent", str(parent)] if parent else []), "--", "/bin/sh", "-c", script]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)


def read_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


def finished(process: subprocess.Popen[bytes], timeout: float = PATIENCE_S) -> tuple[int, bytes, bytes]:
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output, errors


def ended(process: subprocess.Popen[bytes], timeout: float = 5) -> int:
    """Wait for its end with its input still open; the exit status."""
    status = process.wait(timeout)
    process.communicate()
    return status


# --- status and streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_the_exit_status_is_the_commands(status: int) -> None:
    assert finished(keep(f"exit {status}"))[0] == status


@pytest.mark.parametrize("signo", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGUSR1, signal.SIGPIPE])
def test_a_signal_that_ended_the_command_is_passed_on(signo: signal.Signals) -> None:
    assert finished(keep(f"kill -{signo.value} $$"))[0] == -signo


def test_a_command_that_is_missing_or_no_program_says_so(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    for program, status in ((str(tmp_path / "missing"), 127), ("no-such-command", 127), (str(text), 126)):
        done = subprocess.run([*keeper_command(), "--", program], capture_output=True, timeout=PATIENCE_S)
        assert done.returncode == status
        assert program.encode() in done.stderr


def test_a_folder_of_path_that_can_not_be_looked_into_is_passed_over(tmp_path: Path) -> None:
    unusable = str(
        tmp_path / ("d" * 300)
    )  # too long a name fails for root as well, as a folder without rights does for others
    environ = {**os.environ, "PATH": f"{unusable}:{os.environ['PATH']}:{unusable}"}
    for program, status in (("no-such-command", 127), ("true", 0)):
        done = subprocess.run([*keeper_command(), "--", program], capture_output=True, env=environ, timeout=PATIENCE_S)
        assert done.returncode == status, done.stderr


def test_wrong_arguments_say_how_it_is_used() -> None:
    done = subprocess.run([*keeper_command(), "ls"], capture_output=True, timeout=PATIENCE_S)
    assert done.returncode == 2 and b"COMMAND" in done.stderr


def test_streams_and_arguments_go_through_unchanged() -> None:
    odd: list[str | bytes] = [b"a b", b"'\"$x", b"", b"\xff\xfe", "\N{SNOWMAN}"]
    script = 'printf "%s|" "$@"; cat; echo err >&2'
    command: list[str | bytes] = [*keeper_command(), "--", "/bin/sh", "-c", script, "sh", *odd]
    done = subprocess.run(command, input=b"in\0put", capture_output=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"|".join(map(os.fsencode, odd)) + b"|in\0put", b"err\n")


def test_the_command_begins_with_a_clean_slate() -> None:
    script = "import os, signal; print(signal.pthread_sigmask(0, []), [s for s in signal.Signals if s.value not in (9, 19) and signal.getsignal(s) == signal.SIG_IGN and s.name not in ('SIGPIPE', 'SIGXFSZ')], os.getsid(0) == os.getpid(), sorted(map(int, os.listdir('/proc/self/fd')))[:4])"
    done = subprocess.run(
        [*keeper_command(), "--", sys.executable, "-I", "-S", "-c", script], capture_output=True, timeout=PATIENCE_S
    )
    assert done.stdout == b"set() [] True [0, 1, 2, 3]\n"
    ignored = subprocess.run(
        [*keeper_command(), "--", "grep", "SigIgn", "/proc/self/status"], capture_output=True, timeout=PATIENCE_S
    )
    assert int(ignored.stdout.split()[1], 16) == 0


def test_the_end_of_input_and_of_output_are_seen_through_it() -> None:
    reader = keep("cat; echo over")
    assert finished(reader) == (0, b"over\n", b"")
    silent = keep(READY + "exec >&- 2>&-; read line; exit 5")
    read_ready(silent)
    assert silent.stdout is not None and silent.stdout.read() == b""  # the keeper does not hold it open
    assert silent.poll() is None
    assert finished(silent)[0] == 5


def test_it_is_small() -> None:
    process = keep(READY + "read line")
    read_ready(process)
    with open(f"/proc/{process.pid}/status") as file:
        rss_kb = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
    finished(process)
    assert rss_kb < 16_000


# --- nothing survives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_what_a_command_leaves_ends_with_it(way: str, mark: str) -> None:
    process = keep(f"{daemons(mark)[way]} {READY} exit 4")
    status, output, _ = finished(process, 5)  # the end of output came although they held it
    assert (status, output) == (4, b"ready\n")
    assert marked(mark) == []  # and all of it before the keeper


@pytest.mark.parametrize("way", WAYS)
def test_what_a_killed_command_leaves_ends_with_it(way: str, mark: str) -> None:
    process = keep(f"{daemons(mark)[way]} {READY} read line")
    read_ready(process)
    os.kill(child_of(process.pid), signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    assert marked(mark) == []


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("way", ["own session", "cleared", "stubborn"])
def test_a_signal_to_the_keeper_ends_all(way: str, signo: signal.Signals, mark: str) -> None:
    process = keep(f"{daemons(mark)[way]} {READY} read line")
    read_ready(process)
    process.send_signal(signo)
    assert ended(process) == -(signal.SIGKILL if signo == signal.SIGQUIT else signal.SIGTERM)
    assert marked(mark) == []


def test_the_command_may_end_in_its_own_way_at_sigterm() -> None:
    process = keep("trap 'echo drained; exit 6' TERM; " + READY + "while :; do read line || sleep 0.01; done")
    read_ready(process)
    process.send_signal(signal.SIGTERM)
    assert finished(process) == (6, b"drained\n", b"")


def test_a_command_that_ignores_sigterm_is_killed_at_the_second_or_after_a_grace() -> None:
    for again in (True, False):
        process = keep("trap '' TERM; " + READY + "read line; read line")
        read_ready(process)
        process.send_signal(signal.SIGTERM)
        if again:
            wait_for(partial(taken, process.pid, signal.SIGTERM))
            process.send_signal(signal.SIGTERM)
        assert ended(process) == -signal.SIGKILL


def taken(pid: int, signo: int) -> bool:
    """Whether a signal that was sent has been taken."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return not ((int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)) & (1 << (signo - 1)))


@pytest.mark.parametrize("way", WAYS)
def test_all_ends_when_the_parent_is_killed(way: str, mark: str) -> None:
    script = f"{daemons(mark)[way]} echo ready; exec sh -c 'sleep 1000; : {mark}'"
    command = [*keeper_command(), "--", "/bin/sh", "-c", script]
    parent = subprocess.Popen(["/bin/sh", "-c", '"$@" & wait', "sh", *command], stdout=subprocess.PIPE, bufsize=0)
    read_ready(parent)
    assert len(marked(mark)) >= 2
    parent.kill()
    assert_gone(mark)
    assert finished(parent)[0] == -signal.SIGKILL


def test_a_parent_that_was_gone_before_the_keeper_began() -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    assert finished(keep("echo never", parent=dead.pid))[:2] == (137, b"")


def test_the_command_dies_with_the_keeper(mark: str) -> None:
    process = keep(f"echo ready; exec sh -c 'sleep 1000; : {mark}'")
    read_ready(process)
    command = child_of(process.pid)
    process.kill()
    process.wait(5)
    wait_for(lambda: command not in marked(""))
    # what the command had started is below no keeper any more, but named by it: `processes` sweeps it up
    processes._sweep(process.pid, False)
    process.communicate(timeout=5)
    assert marked(mark) == []


BOMB = """
import os, time
reader, writer = os.pipe()
os.set_blocking(reader, False)
os.write(writer, bytes(200))
while True:
    try:
        os.read(reader, 1)
    except BlockingIOError:
        time.sleep(0.01)
        continue
    if os.fork() == 0 and os.getpid() % 3 == 0:
        os.setsid()
"""


def test_a_fork_bomb_is_ended_while_it_goes_on(mark: str) -> None:
    command = [*keeper_command(), "--", sys.executable, "-I", "-S", "-c", BOMB, mark]
    process = subprocess.Popen(command)
    wait_for(lambda: len(marked(mark)) > 30)
    process.send_signal(signal.SIGQUIT)
    assert process.wait(5) == -signal.SIGKILL
    assert marked(mark) == []


# --- as the server's keeper -------------------------------------------------------------------------------------------

SERVER = """
import os, signal, subprocess, sys, time
from workspace_runtime import keeper

def main():
    from workspace_runtime.processes import keeper_command
    def drain(signo, frame):
        agent.poll()
        print("drains", signal.Signals(signo).name, "agent" if agent.returncode is None else "no agent", flush=True)
        agent.terminate()
        agent.wait()
        os._exit(3)
    for signo in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signo, drain)
    agent = subprocess.Popen([*keeper_command(), "--", "/bin/sh", "-c", sys.argv[1]], stdout=subprocess.PIPE)
    agent.stdout.readline()
    print("ready", os.getpid(), keeper.server_keeper() == os.getppid(), agent.pid, flush=True)
    if sys.argv[2:] == ["leave"]:
        return 7
    while True:
        time.sleep(1000)

sys.exit(keeper.run_kept(main))
"""


def serve(tmp_path: Path, mark: str, *more: str) -> list[str]:
    """The command of a small server with an agent that leaves processes of every kind."""
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    ways = " ".join(daemons(mark).values())
    return [sys.executable, str(script), f"{ways} echo ready; sleep 1000; : {mark}", *more]


def start_server(command: list[str]) -> tuple[subprocess.Popen[bytes], int, int]:
    """The server's keeper, and the process ids of the server and of its agent's keeper."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    words = process.stdout.readline().split()
    assert words[0] == b"ready" and words[2] == b"True"
    return process, int(words[1]), int(words[3])


def test_what_a_server_leaves_ends_with_it_and_its_status_is_told(tmp_path: Path, mark: str) -> None:
    command = serve(tmp_path, mark, "leave")
    process, _, _ = start_server(command)
    assert finished(process, 5)[0] == 7
    assert marked(mark) == [], told(marked(mark))


def test_a_killed_server_leaves_nothing(tmp_path: Path, mark: str) -> None:
    command = serve(tmp_path, mark)
    process, server, _ = start_server(command)
    os.kill(server, signal.SIGKILL)
    assert finished(process, 5)[0] == -signal.SIGKILL
    assert marked(mark) == [], told(marked(mark))


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_servers_keeper_lets_the_server_drain(tmp_path: Path, signo: signal.Signals, mark: str) -> None:
    command = serve(tmp_path, mark)
    process, _, _ = start_server(command)
    process.send_signal(signo)
    status, output, _ = finished(process, 5)
    assert (status, output.split()) == (3, [b"drains", signo.name.encode(), b"agent"])
    assert marked(mark) == [], told(marked(mark))


def test_a_killed_keeper_of_a_server_lets_it_drain(tmp_path: Path, mark: str) -> None:
    command = serve(tmp_path, mark)
    process, _, _ = start_server(command)
    process.kill()
    assert b"drains SIGTERM agent" in finished(process, 5)[1]
    assert_gone(mark)


def test_a_key_of_the_terminal_reaches_the_server_once_and_no_agent(tmp_path: Path, mark: str) -> None:
    command = serve(tmp_path, mark)
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.execv(command[0], command)
        finally:
            os._exit(127)
    output = b""
    while b"ready" not in output:
        output += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    try:
        while data := os.read(terminal, 4096):
            output += data
    except OSError:  # how Linux tells the end of a terminal
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert output.count(b"drains SIGINT agent") == 1
    assert_gone(mark)


def test_the_rest_of_an_agent_whose_keeper_was_killed_can_be_swept(tmp_path: Path, mark: str) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    # nothing names its keeper in the environment of this one
    agent = f"env -i setsid /bin/sh -c 'sleep 1000; : {mark}' & echo ready; sleep 1000; : {mark}"
    process, server, agent_keeper = start_server([sys.executable, str(script), agent])
    left = min(wait_for(partial(cleared, mark)))  # the shell, not what it may just have forked
    os.kill(agent_keeper, signal.SIGKILL)
    wait_for(lambda: int(Path(f"/proc/{left}/stat").read_text().rpartition(") ")[2].split()[1]) == process.pid)
    process.send_signal(signal.SIGUSR2)
    wait_for(lambda: left not in marked(mark), 5)
    os.kill(server, 0)  # it went on
    process.send_signal(signal.SIGTERM)
    assert finished(process, 5)[0] == 3
    assert_gone(mark)


def cleared(mark: str) -> list[int]:
    """The shells with the mark that have no environment at all."""
    shells = [
        pid for pid in marked(mark) if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/bin/sh\0-c\0sleep")
    ]
    return [pid for pid in shells if Path(f"/proc/{pid}/environ").read_bytes() == b""]


def first_process(*command: str) -> list[str]:
    """A command line that runs `command` as the first process of a container; skips the test where that is not permitted."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if os.getuid() == 0:
        unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        allowed = subprocess.run([*unshare, "true"], capture_output=True, timeout=PATIENCE_S).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("no PID namespaces here")
    return [*unshare, *command]


def test_as_the_first_process_of_a_container_it_passes_on_status_and_signals(tmp_path: Path, mark: str) -> None:
    command = serve(tmp_path, mark, "leave")
    assert subprocess.run(first_process(*command), timeout=PATIENCE_S, stdout=subprocess.DEVNULL).returncode == 7
    assert_gone(mark)
    command = serve(tmp_path, mark)
    process = subprocess.Popen(first_process(*command), stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None and process.stdout.readline().startswith(b"ready")
    os.kill(child_of(process.pid), signal.SIGTERM)  # without a handler the first process would ignore it
    status, output, _ = finished(process, 5)
    assert (status, output.split()[:2]) == (3, [b"drains", b"SIGTERM"])
    assert_gone(mark)


def test_as_the_first_process_of_a_container_it_reaps_what_falls_to_it(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(
        "import os, subprocess, sys, time\n"
        "from workspace_runtime.keeper import run_kept\n"
        "def main():\n"
        "    for _ in range(5):\n"
        "        subprocess.run(['/bin/sh', '-c', 'sleep 0.01 &'], check=True)\n"
        "    deadline = time.monotonic() + 10\n"
        "    while time.monotonic() < deadline:\n"
        "        names = [name for name in os.listdir('/proc') if name.isdigit()]\n"
        "        if len(names) == 2:\n"
        "            return 0\n"
        "        time.sleep(0.01)\n"
        "    return 1\n"
        "sys.exit(run_kept(main))\n"
    )
    assert subprocess.run(first_process(sys.executable, str(script)), timeout=PATIENCE_S).returncode == 0
