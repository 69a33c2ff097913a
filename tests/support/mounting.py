"""Mounts that only a confined server sees: made in its own mount namespace, so that they go with it."""

import subprocess
from pathlib import Path

import pytest

from support.confined import ConfinedServer
from support.guarded_server import needs_root

__all__ = ["Mounting", "needs_root", "precious"]


def precious(folder: Path) -> Path:
    """A new folder outside of the workspace, with something precious in it."""
    folder.mkdir()
    (folder / "db").write_text("precious")
    return folder


class Mounting:
    """Runs programs in a server's mount namespace."""

    def __init__(self, server: ConfinedServer) -> None:
        self._server = server

    def run(self, *command: "str | Path") -> str:
        """Run a program there; what it says. Skips the test where a namespace may not be entered."""
        enter = ["nsenter", "--mount", "--target", str(self._server.server_pid), "--"]
        done = subprocess.run([*enter, *map(str, command)], capture_output=True, text=True)
        if "nsenter" in done.stderr:
            pytest.skip(done.stderr)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def bind(self, source: Path, target: Path) -> None:
        """Show a file or folder at another place too."""
        self.run("mount", "--bind", source, target)

    def tmpfs(self, target: Path) -> None:
        """A new, empty file system."""
        self.run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", target)

    def unmount(self, target: Path) -> None:
        """Take a mount away."""
        self.run("umount", target)
