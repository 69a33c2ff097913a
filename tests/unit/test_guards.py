"""The tests' own guards: a skip that may not be fails the run, and an open socket is told with the test that made it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.skips import is_allowed

TESTS = Path(__file__).parent.parent


def ran(folder: Path, body: str) -> "subprocess.CompletedProcess[str]":
    """A run of pytest with our guards on one file."""
    (folder / "test_it.py").write_text(body)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "--known-skips", "-q", "-W", "error", "test_it.py"]
    environ = os.environ | {"PYTHONPATH": str(TESTS), "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=folder, env=environ, text=True, capture_output=True, check=False)


@pytest.mark.parametrize(("reason", "status"), [("git-lfs is not installed", 1), ("the kernel has no Landlock", 0)])
def test_a_skip_that_may_not_be_is_a_failure(tmp_path: Path, reason: str, status: int) -> None:
    done = ran(tmp_path, f"import pytest\ndef test_a(): pytest.skip({reason!r})\ndef test_b(): pass\n")
    assert done.returncode == status, done.stdout
    assert ("may not be" in done.stdout) is bool(status)


def test_root_is_an_excuse_for_root_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for uid, allowed in ((0, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert is_allowed("root may read all") is allowed


def test_an_open_socket_is_told_with_its_test(tmp_path: Path) -> None:
    body = (
        "import gc, socket\n"
        "def test_guilty():\n"
        "    made = [socket.create_server(('127.0.0.1', 0))]\n"
        "    made.append(made)\n"
        "def test_innocent(): gc.collect()\n"
    )
    done = ran(tmp_path, body)
    assert done.returncode == 1
    assert "test_it.py::test_guilty (call) left open <socket.socket" in done.stdout, done.stdout
