"""Every command that is printed or documented runs as it stands there: in bash and zsh, with a token and without."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.claude_home import NOWHERE
from support.server import ServerProcess, running
from support.terminal import COMMAND, environment

ROOT = Path(__file__).parent.parent.parent
OPEN, VARIABLE, FILE = "no token", "token in a variable", "token in a file"
GUIDES = [
    "README.md",
    *(f"docs/guides/{name}.md" for name in ("clients", "demo", "files", "version-control", "live-events")),
]
TOKEN = "t0ken-" + "x" * 32
# What a refusal may be where the guide's workspace is not this one: the request itself was right.
STATE = {"200", "201", "202", "204", "304", "404", "409", "412", "502"}
# A person is slower than the agent's start.
ASKED = 'until curl -s "$S/$session/permissions?status=pending" 2>/dev/null | grep -q perm_; do sleep 0.1; done\n'
QUIET = {"HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE, "NO_PROXY": "127.0.0.1,localhost", "DISABLE_AUTOUPDATER": "1"}

shells = pytest.mark.parametrize(
    "shell",
    [
        "bash",
        pytest.param(
            "zsh",
            marks=[pytest.mark.long, pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")],
        ),
    ],
)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose folders' names a shell would take apart."""
    folder = tmp_path_factory.mktemp("a server's $HOME (really)")
    arguments, env = [], dict(QUIET)
    if request.param == VARIABLE:
        env["WORKSPACE_TOKEN"] = TOKEN
    elif request.param == FILE:
        (folder / "my token").touch(mode=0o600)
        (folder / "my token").write_text(TOKEN)
        arguments = ["--token-file", "my token"]
    (folder / "workspace").mkdir()
    _fill(folder / "workspace")
    with running(folder, *arguments, env=env) as process:
        yield process


def _fill(workspace: Path) -> None:
    """What the guides speak of."""
    git = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-C", str(workspace)]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    (workspace / "src").mkdir()
    (workspace / ".gitignore").write_text(".venv\ntoken\n*.zip\n")
    for number in range(4):
        (workspace / "src" / "app.py").write_text(f"print({number})\n")
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", f"fix {number}"], check=True)
    subprocess.run([*git, "branch", "feature"], check=True)
    subprocess.run([*git, "update-ref", "refs/remotes/origin/main", "main"], check=True)
    subprocess.run([*git, "config", "user.name", "Ada"], check=True)
    subprocess.run([*git, "config", "user.email", "ada@example.org"], check=True)
    (workspace / "src" / "app.py").write_text("print('changed')\n")
    (workspace / "notes.txt").write_text("a note\n")
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, workspace)
    subprocess.run(["tar", "-czf", "some.tar.gz", "LICENSE"], cwd=workspace, check=True)
    (workspace / "token").touch(mode=0o600)
    (workspace / "token").write_text(TOKEN)
    (workspace / ".venv").symlink_to(sys.prefix)


def run_in(shell: str, script: str, server: ServerProcess, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run it in a shell that knows nothing of the server. curl tells each status on standard error, and waits for no stream."""
    home = server.folder / "home"
    (home / ".curlrc").write_text('write-out = "%{stderr}@@%{http_code} %{url_effective}\\n"\nmax-time = 4\n')
    env = environment(home, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    options = ["-f"] if shell == "zsh" else ["--norc"]
    return subprocess.run(
        [shell, *options],
        cwd=cwd,
        env=env,
        input=script,
        capture_output=True,
        text=True,
        timeout=55,
        start_new_session=True,
    )


def commands_of(page: str) -> str:
    """All commands of a page in their order, those with a token left out."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    # an agent that answers at once, in place of one that is not signed in here
    blocks = [block.replace('run "What', 'run --agent demo "What') for block in blocks]
    return "".join(block for block in blocks if not re.search(r"^git clone|^\./run", block, re.MULTILINE))


@shells
@pytest.mark.parametrize("page", GUIDES)
@pytest.mark.parametrize("server", [OPEN, FILE], indirect=True)
def test_documented_commands_run_as_they_stand_there(page: str, shell: str, server: ServerProcess) -> None:
    script = (
        commands_of(page)
        .replace("http://localhost:3002", server.url)
        .replace("https://git.example.org", "http://127.0.0.1:9")
        .replace('{"cwd"', '{"agent": "demo", "cwd"')
    )
    for branch in ("agent-one", "idea"):  # of the other shell's turn
        subprocess.run(["git", "branch", "-D", branch], cwd=server.workspace, capture_output=True)
    if page.endswith("live-events.md"):
        inline = re.findall(r"`(curl [^`]+)`", (ROOT / page).read_text())
        script = "\n".join(inline).replace("http://localhost:3002", server.url)
    assert script.strip()
    with_token = re.search(r"^```sh with-token\n(.*?)^```$", (ROOT / "docs/guides/clients.md").read_text(), re.M | re.S)
    script = script.replace("permission=$(", ASKED + "permission=$(")
    if server.arguments:
        assert with_token is not None
        script = with_token[1].replace("cat token", f'cat "{server.workspace}/token"'.replace("$", "\\$")) + script
    result = run_in(shell, script, server, server.workspace)
    told = re.findall(r"^@@(\d+) (.*)$", result.stderr, re.MULTILINE)
    refused = [f"{status} {url}" for status, url in told if status not in STATE]
    assert not refused, result.stdout
    said = re.sub(r"^(@@|Starting |Denied|\d of the agent's).*\n", "", result.stderr, flags=re.MULTILINE)
    assert said == "" and '"not_found"' not in result.stdout, result.stderr
    assert told or "workspace-runtime run" in script


@shells
@pytest.mark.parametrize("server", [OPEN, VARIABLE, FILE], indirect=True)
def test_what_serve_prints_runs_in_another_terminal(shell: str, server: ServerProcess, tmp_path: Path) -> None:
    text = "".join(server.output)
    lines = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    assert len(lines) == 5 and "--json" not in text and TOKEN not in text
    script = "\n".join(line.replace(' "What', ' --agent demo "What') for line in lines)
    result = run_in(shell, script + "\n", server, tmp_path)
    assert result.stdout.count("Hello") >= 2, result.stderr  # from `run`, and from the stream
    assert re.findall(r"^@@(\d+)", result.stderr, re.MULTILINE) == ["201", "200"]
    assert f"runs at {server.url}" in result.stdout, "doctor"
    assert "not found" not in result.stderr.replace("agent_not_found", "") and "Traceback" not in result.stderr


@shells
@pytest.mark.parametrize("server", [FILE], indirect=True)
def test_what_doctor_and_the_agents_advise_can_be_typed(shell: str, server: ServerProcess, tmp_path: Path) -> None:
    told = subprocess.run(
        [*COMMAND, "doctor"],
        cwd=tmp_path,
        env=environment(tmp_path, PATH="/nowhere"),
        capture_output=True,
        text=True,
        timeout=50,
    ).stdout
    with server.client(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        told += "".join(agent["sign_in"] for agent in client.get("/api/v1/agents").json()["items"])
    commands = [command for command in re.findall(r"`([^`]+)`", told) if command != "help"]
    assert len(commands) >= 3 and "workspace-runtime[claude]" not in told, told
    for command in commands:
        assert run_in(shell, f"false && {command}", server, tmp_path).stderr == "", command
        program = re.match(r"\(umask 077; (\S+)|('[^']*'|\S+)", command)
        assert program is not None
        if not command.startswith(("apt-get", "sysctl")):
            assert run_in(shell, f"command -v {program[1] or program[2]}", server, tmp_path).stdout, command


@shells
@pytest.mark.parametrize("server", [FILE], indirect=True)
def test_the_way_out_of_a_refused_token_file_works(shell: str, server: ServerProcess, tmp_path: Path) -> None:
    path = tmp_path / "my token's file"
    path.write_text(TOKEN)
    path.chmod(0o644)

    def tried() -> str:
        command = [*COMMAND, "run", "--token-file", str(path), ""]
        return subprocess.run(
            command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=50
        ).stderr

    assert run_in(shell, tried().split("Run: ")[1], server, tmp_path).stderr == ""
    assert "The prompt is empty" in tried()


def test_the_token_is_told_to_its_user_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    with running(tmp_path, env={"WORKSPACE_TOKEN": TOKEN}) as server:
        told = [path for path in server.state.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
        assert told == [server.state / "run" / "token"] and told[0].stat().st_mode & 0o777 == 0o600
    assert not told[0].exists()


def test_nothing_is_documented_that_old_tools_lack_or_strangers_own() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py")]:
        text = page.read_text()
        assert not re.search(r"curl.*--json", text), f"{page}: needs curl 7.82"
        assert not re.search(r"pip install '?workspace-runtime", text), f"{page}: is not published"
