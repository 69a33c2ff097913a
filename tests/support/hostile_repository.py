"""A repository whose configuration names a program in every place where git would run one. Each leaves a mark when it runs."""

import os
import stat
from pathlib import Path

from support.git_home import Sandbox

HOOKS = (
    "pre-commit", "prepare-commit-msg", "commit-msg", "post-commit", "pre-merge-commit", "post-merge", "pre-rebase", "post-rewrite",
    "post-checkout", "pre-push", "post-index-change", "reference-transaction", "pre-auto-gc", "fsmonitor-watchman", "applypatch-msg",
    "push-to-checkout", "sendemail-validate", "update", "pre-receive", "post-receive", "post-update", "proc-receive",
)  # fmt: skip
# Only these programs may run in a write, where the repository is trusted.
TRUSTED = ("hook-", "filter", "merge-driver", "gpg", "fsmonitor")

CONFIG = """\
[core]
\tfsmonitor = {mark}fsmonitor
\thooksPath = {hooks}
\tsshCommand = {mark}ssh
\taskPass = {mark}askpass
\tgitProxy = {mark}git-proxy
\tpager = {mark}pager
\teditor = {mark}editor
\talternateRefsCommand = {mark}alternate-refs
[sequence]
\teditor = {mark}sequence-editor
[credential]
\thelper = !{mark}helper
[credential "http://127.0.0.1"]
\thelper = !{mark}helper-for-a-host
[diff]
\texternal = {mark}diff-external
\torderFile = /dev/null
[diff "evil"]
\tcommand = {mark}diff-command
\ttextconv = {mark}textconv
\txfuncname = (((
[filter "evil"]
\tclean = {mark}filter-clean
\tsmudge = {mark}filter-smudge
\tprocess = {mark}filter-process
\trequired = true
[filter "a=b"]
\tclean = {mark}filter-equals-clean
\tsmudge = {mark}filter-equals-smudge
[filter "lfs"]
\tclean = {mark}filter-lfs-clean
\tsmudge = {mark}filter-lfs-smudge
\tprocess = {mark}filter-lfs-process
\trequired = true
[merge "evil"]
\tdriver = {mark}merge-driver %O %A %B
[log]
\tshowSignature = true
[gpg]
\tprogram = {mark}gpg
[gpg "ssh"]
\tprogram = {mark}gpg-ssh
\tdefaultKeyCommand = {mark}gpg-ssh-key
[gpg "x509"]
\tprogram = {mark}gpg-x509
[interactive]
\tdiffFilter = {mark}diff-filter
[pager]
\tstatus = {mark}pager-status
\tlog = {mark}pager-log
\tdiff = {mark}pager-diff
\tshow = {mark}pager-show
\tblame = {mark}pager-blame
[alias]
\tstatus = !{mark}alias-status
\tlog = !{mark}alias-log
\tst = !{mark}alias-st
[remote "origin"]
\turl = {other}
\tfetch = +refs/heads/*:refs/remotes/origin/*
\tuploadpack = {mark}uploadpack
\treceivepack = {mark}receivepack
[remote "program"]
\turl = ext::{mark}ext
\tfetch = +refs/heads/*:refs/remotes/program/*
[remote "helper"]
\turl = {other}
\tvcs = ext
[remote "secure"]
\turl = ssh://git@127.0.0.1:9/none
[remote "plain"]
\turl = http://127.0.0.1:9/none
[remote "gits"]
\turl = git://127.0.0.1:9/none
[url "ext::{mark}instead"]
\tinsteadOf = https://rewritten.invalid/
[remote "rewritten"]
\turl = https://rewritten.invalid/x
[uploadpack]
\tpackObjectsHook = {mark}pack-objects
[submodule]
\trecurse = true
[submodule "inner"]
\turl = {other}
\tupdate = !{mark}submodule-update
\tactive = true
[fetch]
\trecurseSubmodules = true
[push]
\trecurseSubmodules = on-demand
[trailer "x"]
\tcommand = {mark}trailer
\tcmd = {mark}trailer-cmd
[format]
\tpretty = format:%GG
[color]
\tui = always
[include]
\tpath = included
"""


class HostileRepository:
    """A repository in `folder/NAME`, and where its programs leave their marks."""

    def __init__(self, sandbox: Sandbox, path: Path, marks: Path) -> None:
        self.path = path
        self.marks = marks
        marks.mkdir(exist_ok=True)
        self._programs(sandbox)

    def _program(self, name: str, status: int = 0) -> None:
        program = self.marks / f"run-{name}"
        program.write_text(f"#!/bin/sh\necho >> '{self.marks}/ran-{name}'\nexit {status}\n")
        program.chmod(0o755)

    def _programs(self, sandbox: Sandbox) -> None:
        path, other = self.path, sandbox.init("other-" + self.path.name)
        sandbox.commit(other, {"o.txt": b"other\n"}, "other")
        path.mkdir(parents=True, exist_ok=True)
        sandbox.git(path, "init", "--quiet", ".")
        inner = sandbox.init("inner-" + self.path.name)
        sandbox.commit(inner, {"i.txt": b"inner\n", ".gitattributes": b"* filter=evil diff=evil\n"}, "inner")
        sandbox.git(
            path,
            "-c",
            "protocol.file.allow=always",
            "submodule",
            "--quiet",
            "add",
            "--name",
            "inner",
            str(inner),
            "inner",
        )
        lines = b"".join(b"line %d\n" % number for number in range(30))
        sandbox.commit(path, {"a.txt": lines, "b.txt": b"b\n", "c=d.bin": b"\0\1"}, "first")
        sandbox.git(path, "branch", "side")
        sandbox.git(path, "tag", "--annotate", "-m", "tagged", "v1")
        sandbox.commit(path, {"a.txt": lines.replace(b"line 3\n", b"ours\n")}, "ours")
        sandbox.git(path, "switch", "--quiet", "side")
        sandbox.commit(path, {"a.txt": lines.replace(b"line 3\n", b"theirs\n")}, "theirs")
        sandbox.git(path, "switch", "--quiet", "main")
        tree = sandbox.git(path, "rev-parse", "HEAD^{tree}").decode().strip()
        parent = sandbox.git(path, "rev-parse", "HEAD").decode().strip()
        signed = (
            f"tree {tree}\nparent {parent}\nauthor a <a@b> 1600000000 +0000\ncommitter a <a@b> 1600000000 +0000\n"
            "gpgsig -----BEGIN PGP SIGNATURE-----\n \n iQ==\n -----END PGP SIGNATURE-----\n\nsigned\n"
        )
        oid = sandbox.git(path, "hash-object", "-t", "commit", "-w", "--stdin", input=signed.encode()).decode().strip()
        sandbox.git(path, "reset", "--quiet", "--hard", oid)
        (path / "b.txt").write_text("changed\n")
        (path / "a.txt").write_bytes(lines.replace(b"line 9\n", b"changed\n"))
        (path / "stashed.txt").write_text("x\n")
        sandbox.git(path, "stash", "push", "--quiet", "--include-untracked")
        (path / "b.txt").write_text("staged\n")
        sandbox.git(path, "add", "b.txt")
        (path / "a.txt").write_bytes(lines.replace(b"line 9\n", b"worktree\n"))
        (path / "inner" / "i.txt").write_text("changed inside\n")
        (path / "new.txt").write_text("new\n")
        # from here on it is hostile
        hooks = self.marks / "hooks"
        hooks.mkdir(exist_ok=True)
        for name in HOOKS:
            self._program(f"hook-{name}")
            os.replace(self.marks / f"run-hook-{name}", hooks / name)
        filled = CONFIG.format(mark=f"{self.marks}/run-", hooks=hooks, other=other)
        for name in {word.partition("run-")[2].split()[0] for word in filled.splitlines() if "run-" in word}:
            self._program(name.rstrip('"]'))
        attributes = "*.txt filter=evil diff=evil merge=evil\n*.bin filter=a=b\n*.dat filter=lfs\n"
        (path / ".gitattributes").write_text(attributes)
        (path / ".git" / "info" / "attributes").write_text(attributes)
        (path / ".git" / "included").write_text(f"[core]\n\tfsmonitor = {self.marks}/run-included\n")
        self._program("included")
        (path / ".git" / "objects" / "info").mkdir(exist_ok=True)
        (path / ".git" / "objects" / "info" / "alternates").write_text(str(other / ".git" / "objects") + "\n")
        with open(path / ".git" / "config", "a") as file:
            file.write(filled)
        with open(path / ".git" / "modules" / "inner" / "config", "a") as file:
            file.write(filled)
        with open(path / ".gitmodules", "a") as file:
            file.write(f"\tupdate = !{self.marks}/run-gitmodules\n")
        self._program("gitmodules")

    def ran(self) -> list[str]:
        """The programs that have run."""
        return sorted(name.removeprefix("ran-") for name in os.listdir(self.marks) if name.startswith("ran-"))

    def forget(self) -> None:
        """Take the marks away."""
        for name in self.ran():
            (self.marks / f"ran-{name}").unlink()


def program(folder: Path, name: str) -> tuple[Path, Path]:
    """A program that passes its input on, and the file that it leaves when it runs."""
    mark = folder / f"ran-{name}"
    path = folder / f"run-{name}"
    path.write_text(f"#!/bin/sh\n: > '{mark}'\ncat\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path, mark
