"""The command line itself: each command takes what means something to it, and finds its place."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.server import running
from support.terminal import COMMAND, environment
from workspace_runtime.cli import parser


def said(folder: Path, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env={**environment(folder), **env}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=50, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("command", [["run", "x"], ["doctor"], ["agents"]])
def test_what_means_nothing_to_a_client_is_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([command[0], "--help"])
    shown = capsys.readouterr().out
    assert "--state-path" in shown
    for flag in ("--port", "--host", "--allowed-hosts", "--max-upload-bytes", "--root-path", "--temporary"):
        assert flag not in shown
        with pytest.raises(SystemExit) as refused:
            parser().parse_args([*command, flag, "5999"])
        assert refused.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--access-log", "nowhere"], ["--trust-repository", "nowhere"], ["--access-log=yes", "nowhere"]]
)
def test_a_flag_does_not_eat_the_path(tmp_path: Path, words: list[str]) -> None:
    result = said(tmp_path, "serve", *words)
    assert result.returncode == 2 and "The workspace nowhere is not a folder" in result.stderr


def test_a_flag_takes_its_own_word(tmp_path: Path) -> None:
    assert "nowhere is not a folder" in said(tmp_path, "serve", "--access-log", "false", "nowhere").stderr
    assert "must be true or false" in said(tmp_path, "serve", "--access-log=maybe").stderr


@pytest.mark.parametrize("address", ["::1", "[::1]"])
def test_an_address_of_ipv6_is_taken_with_and_without_brackets(tmp_path: Path, address: str) -> None:
    with running(tmp_path, "--host", address) as server, server.client() as client:
        assert server.url.startswith("http://[::1]:") and client.get("/health").json()["status"] == "ok"
        asked = said(
            tmp_path,
            "run",
            "--workspace",
            str(server.workspace),
            "--state-path",
            str(server.state),
            "--agent",
            "demo",
            "say v6",
        )
        assert asked.stdout == "v6\n", asked.stderr


@pytest.mark.parametrize(("address", "url"), [("0.0.0.0", "http://127.0.0.1:"), ("::", "http://[::1]:")])
def test_every_address_is_told_as_one_that_can_be_reached(tmp_path: Path, address: str, url: str) -> None:
    with running(tmp_path, "--host", address, env={"WORKSPACE_TOKEN": "x" * 32}) as server:
        assert server.url.startswith(url)
        with server.client(headers={"Authorization": f"Bearer {'x' * 32}"}) as client:
            assert client.get("/api/v1").status_code == 200


def test_a_home_folder_can_be_doctored_and_used(tmp_path: Path) -> None:
    elsewhere: set[Path] = set()
    try:
        report = said(tmp_path, "doctor")
        assert report.returncode == 0, report.stdout + report.stderr
        (line,) = [line for line in report.stdout.splitlines() if line.startswith("ok       state:")]
        elsewhere.add(Path(line.split(": ", 1)[1]))
        result = said(tmp_path, "run", "--agent", "demo", "say At home")
        assert result.stdout == "At home\n", result.stderr
        (state,) = elsewhere
        assert tmp_path not in state.parents and (state / "log.sqlite3").exists()
        assert state.stat().st_mode & 0o777 == 0o700
    finally:
        for path in elsewhere:
            shutil.rmtree(path, ignore_errors=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_a_place_for_state_that_somebody_else_made_is_refused(tmp_path: Path) -> None:
    """In a folder where everybody may make some, such as /var/tmp."""
    shared = tmp_path / "shared"
    (shared / "theirs").mkdir(parents=True)
    shared.chmod(0o1777)
    os.chown(shared / "theirs", 12345, 12345)
    result = said(
        tmp_path,
        "serve",
        "--port",
        "0",
        "--state-path",
        str(shared / "theirs" / "state"),
        str(tmp_path / "shared" / "theirs"),
    )
    assert result.returncode == 2 and "lies inside" in result.stderr
    (tmp_path / "w").mkdir()
    result = said(tmp_path, "serve", "--port", "0", "--state-path", str(shared / "theirs" / "state"), "w")
    assert result.returncode == 2 and "can't be written" in result.stderr and "Traceback" not in result.stderr


def test_a_prompt_that_is_no_text_is_refused_with_a_sentence(tmp_path: Path) -> None:
    result = subprocess.run(
        [*COMMAND, "run", "--agent", "demo", "-"],
        cwd=tmp_path,
        env=environment(tmp_path),
        input=b"say \xff",
        capture_output=True,
        timeout=50,
    )
    assert result.returncode == 2 and b"not UTF-8" in result.stderr and b"Traceback" not in result.stderr
