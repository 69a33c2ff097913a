"""Real git for tests, in a home of its own: nothing of the machine's or the user's git settings has a say.

sandbox = Sandbox(tmp_path)
repository = sandbox.init("work")
oid = sandbox.commit(repository, {"a.txt": b"one\\n"}, "first")
sandbox.git(repository, "status", "--porcelain")
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

CONFIG = """\
[user]
\tname = Ada
\temail = ada@example.org
[init]
\tdefaultBranch = main
[advice]
\tdetachedHead = false
"""


def git_environment(folder: Path, **more: str) -> dict[str, str]:
    """The whole environment of a git that knows only what is in `folder/home`, which is made where it is missing."""
    home = folder / "home"
    config = home / ".gitconfig"
    if not config.exists():
        home.mkdir(parents=True, exist_ok=True)
        config.write_text(CONFIG)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": str(config),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_EDITOR": ":",
        "LC_ALL": "C.UTF-8",
        **more,
    }


class Sandbox:
    """A folder with repositories, and the environment in which git works on them."""

    def __init__(self, folder: Path, **more: str) -> None:
        self.folder = folder
        self.env = git_environment(folder, **more)

    def attempt(
        self,
        cwd: Path,
        *args: str | bytes,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[bytes]":
        """One run of git, however it ends. `env` is added to the sandbox's own."""
        return subprocess.run(
            ["git", *args],
            cwd=cwd,
            env={**self.env, **(env or {})},
            input=b"" if input is None else input,
            capture_output=True,
            timeout=50,
            check=False,
        )

    def git(
        self,
        cwd: Path,
        *args: str | bytes,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> bytes:
        """What a run of git wrote to stdout. With `check`, one that fails is an `AssertionError` with its stderr."""
        done = self.attempt(cwd, *args, input=input, env=env)
        assert not check or done.returncode == 0, (args, done.returncode, done.stderr.decode(errors="replace"))
        return done.stdout

    def init(self, name: str, *args: str) -> Path:
        """A new repository in the sandbox's folder; `args` go to `git init`."""
        path = self.folder / name
        self.git(self.folder, "init", "--quiet", *args, "--", str(path))
        return path

    def commit(self, repository: Path, files: Mapping[str | bytes, bytes], message: str) -> str:
        """Write these files, commit them (and nothing else that is not staged), and return the commit's id."""
        names = [os.fsencode(name) for name in files]
        for name, content in zip(names, files.values(), strict=True):
            path = os.path.join(os.fsencode(repository), name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
        if names:
            add = ("add", "--force", "--pathspec-from-file=-", "--pathspec-file-nul")
            self.git(repository, *add, input=b"\0".join(names), env={"GIT_LITERAL_PATHSPECS": "1"})
        self.git(repository, "commit", "--quiet", "--allow-empty", "--message", message)
        return self.git(repository, "rev-parse", "HEAD").decode().strip()
