"""The command: settings, starting, failing to start with a sentence, one turn in the terminal, the keeper."""

import contextlib
import json
import os
import pty
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.server import ServerProcess, children, create, eventually, processes_with, running, wait_status

COMMAND = [sys.executable, "-m", "workspace_runtime"]


def run(
    folder: Path, *arguments: str, stdin: str | None = None, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "DEMO_WORD_DELAY_S": "0", **(env or {})}
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environ,
        input=stdin,
        text=True,
        capture_output=True,
        timeout=50,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tmp_path_factory.mktemp("server")) as process:
        yield process


# --- failing to start ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (["--port", "http"], {}, "--port is 'http', but it must be a whole number"),
        ([], {"WORKSPACE_RUNTIME_PORT": "99999"}, "WORKSPACE_RUNTIME_PORT is '99999'"),
        (["--host", "0.0.0.0"], {}, "needs a token"),
        ([], {"WORKSPACE_RUNTIME_TOKEN": "short"}, "16 to 512"),
        (["--token-file", "nowhere"], {}, "can't be read"),
        (["--state-path", "inside"], {}, "inside the workspace"),
        (["/nowhere"], {}, "is not a folder"),
        (["--state-path", "/proc/nowhere"], {}, "can't be written"),
        (["--allowed-origins", "example.org"], {}, "origins such as"),
        (["--host", "no such host"], {}, "a host name or an address"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_a_sentence(
    tmp_path: Path, arguments: list[str], env: dict[str, str], words: str
) -> None:
    port = [] if "WORKSPACE_RUNTIME_PORT" in env else ["--port", "0"]  # the usual one may be in use
    result = run(tmp_path, "serve", *port, *arguments, env=env)
    assert result.returncode == 2 and words in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_the_token_is_never_said(tmp_path: Path) -> None:
    result = run(tmp_path, "serve", env={"WORKSPACE_RUNTIME_TOKEN": "my secret is short"})
    assert result.returncode == 2 and "secret" not in result.stderr


def test_a_token_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("x" * 32)
    path.chmod(0o644)
    assert "chmod 600" in run(tmp_path, "serve", "--token-file", str(path)).stderr


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(tmp_path, "serve", "--port", str(port), "--state-path", str(tmp_path.parent / "state-p"))
    assert result.returncode == 2 and f"Port {port} is in use" in result.stderr


def test_a_second_server_on_the_same_state(tmp_path: Path, server: ServerProcess) -> None:
    result = run(tmp_path, "serve", str(server.workspace), "--port", "0", "--state-path", str(server.state))
    assert result.returncode == 2 and f"Another server at {server.url}" in result.stderr


@pytest.mark.parametrize(
    ("command", "module"), [("serve", "cli"), ("serve", "server"), ("doctor", "cli"), ("doctor", "cli.doctor")]
)
def test_ctrl_c_while_the_command_loads_is_no_failure_to_be_read(tmp_path: Path, command: str, module: str) -> None:
    code = (
        "import sys\n"
        "class Key:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == 'workspace_runtime.{module}': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Key())\n"
        f"sys.argv = ['workspace-runtime', {command!r}, '--state-path', {str(tmp_path.parent / 'state-k')!r}]\n"
        "from workspace_runtime.__main__ import main\n"
        "sys.exit(main())\n"
    )
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, text=True, capture_output=True)
    assert (result.returncode, result.stderr) == (130, "")


def test_what_the_machine_refuses_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "state" / "temporaries").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    result = run(tmp_path, "serve", "work", "--port", "0", "--state-path", "state")
    assert result.returncode == 2 and "temporaries: Is a directory." in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and result.stderr.count("workspace-runtime: ") == 1


def test_a_log_of_another_version(tmp_path: Path) -> None:
    state = tmp_path.parent / f"{tmp_path.name}-state"
    state.mkdir()
    with contextlib.closing(sqlite3.connect(state / "log.sqlite3")) as log:
        log.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        log.execute("INSERT INTO meta VALUES ('schema_version', '99')")
        log.commit()
    result = run(tmp_path, "serve", "--port", "0", "--state-path", str(state))
    assert result.returncode == 2 and "written by another version" in result.stderr
    assert "Traceback" not in result.stderr


# --- one turn in the terminal -------------------------------------------------------------------------------------------


def test_run_uses_the_running_server(tmp_path: Path, server: ServerProcess) -> None:
    place = ["--workspace", str(server.workspace), "--state-path", str(server.state)]
    result = run(tmp_path, "run", *place, "--agent", "demo", "think hm\nsay Hello you\nread nothing")
    assert result.returncode == 0, result.stderr
    assert "(thinking) hm\nHello you\n" in result.stdout and "▸ Read" in result.stdout
    with server.client() as client:
        (session,) = client.get("/api/v1/agent-sessions?q=think").json()["items"]
    assert session["status"] == "terminated" and session["turn_count"] == 1


def test_run_brings_its_own_server_and_leaves_nothing(tmp_path: Path) -> None:
    state = tmp_path.parent / f"{tmp_path.name}-state"
    result = run(tmp_path, "run", "--state-path", str(state), "--agent", "demo", "--json", "-", stdin="say from a pipe")
    assert result.returncode == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["type"] for event in events if event["type"] in ("text", "done")] == ["text", "done"]
    assert processes_with(str(state)) == []


@pytest.mark.parametrize(("script", "status"), [("fail", 1), ("crash", 1)])
def test_run_tells_a_failed_turn_by_its_status(tmp_path: Path, server: ServerProcess, script: str, status: int) -> None:
    place = ["--workspace", str(server.workspace), "--state-path", str(server.state)]
    result = run(tmp_path, "run", *place, "--agent", "demo", script)
    assert result.returncode == status and "error (agent_" in result.stderr


def test_run_refuses_what_makes_no_sense(tmp_path: Path, server: ServerProcess) -> None:
    place = ["--workspace", str(server.workspace), "--state-path", str(server.state)]
    assert "no agent 'nobody'" in run(tmp_path, "run", *place, "--agent", "nobody", "x").stderr
    assert run(tmp_path, "run", *place, "--agent", "demo", "  ").returncode == 2


@pytest.mark.parametrize(("key", "made"), [("1\n", True), ("4\n", False)])
def test_run_asks_permissions_on_the_keyboard(tmp_path: Path, server: ServerProcess, key: str, made: bool) -> None:
    name = f"made-{made}.txt"
    command = [*COMMAND, "run", "--workspace", str(server.workspace), "--state-path", str(server.state)]
    command += ["--agent", "demo", f"write {name} hello"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, command, {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TERM": "xterm"})
    seen = b""
    while b"number:" not in seen:
        seen += os.read(terminal, 4096)
    os.write(terminal, key.encode())
    status = None
    while status is None:
        try:
            seen += os.read(terminal, 4096)
        except OSError:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    assert status == 0, seen.decode()
    assert (server.workspace / name).exists() is made


# --- other commands -----------------------------------------------------------------------------------------------------


def test_doctor_and_the_small_commands(tmp_path: Path, server: ServerProcess) -> None:
    state = ["--state-path", str(server.state)]
    report = run(tmp_path, "doctor", str(server.workspace), *state)
    assert report.returncode == 0, report.stdout
    for words in (server.url, "git", "ripgrep", "Node.js", "openat2", "inotify", "Demo", "Claude Code"):
        assert words in report.stdout
    assert "demo" in run(tmp_path, "agents", *state).stdout
    token = run(tmp_path, "token").stdout.strip()
    assert len(token) == 64
    assert json.loads(run(tmp_path, "openapi").stdout)["openapi"].startswith("3.")
    assert json.loads(run(tmp_path, "asyncapi").stdout)["asyncapi"] == "3.0.0"
    assert run(tmp_path, "--version").stdout.startswith("workspace-runtime ")
    assert run(tmp_path).returncode == 2


# --- ending -------------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_a_terminal_drains_and_ends_everything(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path)
    command = [*COMMAND, "serve", str(server.workspace), "--port", "0", "--state-path", str(server.state)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, command, server.env)
    seen = b""
    while b"Ctrl-C stops" not in seen:
        seen += os.read(terminal, 4096)
    server.url = seen.decode().split("at ")[1].split()[0]
    with server.client() as client:
        session = create(client, prompt="run (setsid env -i sleep 6161 &); sleep 6161", permission_mode="auto")
        eventually(lambda: len(processes_with("sleep\x006161")) == 2)
    os.write(terminal, b"\x03")
    status = None
    while status is None:
        try:
            seen += os.read(terminal, 4096)
        except OSError:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    assert status == 0 and b"Traceback" not in seen, seen.decode()
    assert processes_with("sleep\x006161") == [] and processes_with(str(server.state)) == []
    with running(tmp_path) as again, again.client() as client:
        ends = client.get(f"/api/v1/agent-sessions/{session['id']}/events?events=done,error").json()["items"]
        assert [e.get("stop_reason") or e["code"] for e in ends] == ["server_restarted", "server_restarted"]


def test_the_keeper_killed_ends_everything(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path).start()
    assert server.process is not None
    pid = server.server_pid
    with server.client() as client:
        session = create(client, prompt="run sleep 7171", permission_mode="auto")
        wait_status(client, session["id"], "running")
        eventually(lambda: processes_with("sleep\x007171"))
    server.process.send_signal(signal.SIGKILL)
    server.wait()
    eventually(lambda: not processes_with("sleep\x007171") and not os.path.exists(f"/proc/{pid}/fd/0"), timeout=10)
    assert children(pid) == []
