"""Refusals: what real git says when it can't becomes the right code, and nothing a remote says becomes another."""

import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.git_home import Sandbox
from support.git_remotes import http_remote, ssh_remote
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.version_control.account import Account
from workspace_runtime.version_control.credentials import Credentials
from workspace_runtime.version_control.failures import failure as meaning
from workspace_runtime.version_control.push_output import push_refs

MAIN = "refs/heads/main"

# As of a run that speaks with a remote, where all that is known is what it printed.
failure = partial(meaning, network=True)


class Two:
    """Two clones of one bare repository that have diverged: `theirs` is pushed, `ours` is not."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.folder = sandbox.folder
        first = sandbox.init("first")
        sandbox.commit(first, {"a": b"1\n", "b": b"1\n"}, "first")
        self.bare = self.folder / "served" / "project.git"
        sandbox.git(self.folder, "clone", "--quiet", "--bare", str(first), str(self.bare))
        self.ours, self.theirs = self.folder / "ours", self.folder / "theirs"
        for clone in (self.ours, self.theirs):
            sandbox.git(self.folder, "clone", "--quiet", str(self.bare), str(clone))
        sandbox.commit(self.theirs, {"a": b"2\n"}, "theirs")
        sandbox.git(self.theirs, "push", "--quiet")
        sandbox.commit(self.ours, {"a": b"3\n"}, "ours")

    def run(self, *args: str, cwd: Path | None = None, **env: str) -> WorkspaceError:
        """What a run of git that must fail means."""
        done = self.sandbox.attempt(cwd or self.ours, *args, env=env)
        assert done.returncode != 0, done
        return failure(said(done))

    def push(self, *args: str) -> tuple[list[dict[str, Any]], WorkspaceError | None]:
        """The refs of a push, and what it means where it failed."""
        done = self.sandbox.attempt(self.ours, "push", "--porcelain", *args)
        refs = push_refs(done.stdout)
        return refs, failure(done.stderr.decode(), refs) if done.returncode else None

    def hook(self, repository: Path, name: str, script: str = "echo no >&2; exit 1") -> None:
        path = repository / "hooks" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


def said(done: "subprocess.CompletedProcess[bytes]") -> str:
    return (done.stderr + done.stdout).decode(errors="replace")


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(Sandbox(tmp_path))


# --- pushes -------------------------------------------------------------------------------------------------------------------


def test_all_that_can_become_of_a_ref(two: Two) -> None:
    two.sandbox.git(two.ours, "fetch", "--quiet")
    old = two.sandbox.git(two.ours, "rev-parse", "HEAD~1").decode().strip()
    refs, fault = two.push("origin", "main", f"{old}:refs/heads/old", f"{old}:refs/tags/v1")
    assert refs == [
        {"ref": "refs/heads/old", "local": old, "status": "new", "summary": "[new branch]", "reason": None},
        {"ref": "refs/tags/v1", "local": old, "status": "new", "summary": "[new tag]", "reason": None},
        {"ref": MAIN, "local": MAIN, "status": "rejected", "summary": "[rejected]", "reason": "non-fast-forward"},
    ]
    assert fault is not None
    assert (fault.code, fault.data["refs"]) == ("push_rejected", refs)
    assert "Pull" in fault.detail

    refs, fault = two.push("origin", "+main", "HEAD:refs/heads/old", f"{old}:refs/tags/v1")
    assert fault is None
    assert {(ref["ref"], ref["status"], ref["reason"]) for ref in refs} == {
        ("refs/tags/v1", "up_to_date", None),
        ("refs/heads/old", "fast_forward", None),
        (MAIN, "forced", "forced update"),
    }
    assert two.push("origin", ":refs/heads/old")[0] == [
        {"ref": "refs/heads/old", "local": None, "status": "deleted", "summary": "[deleted]", "reason": None}
    ]


def test_a_tag_that_is_another_there(two: Two) -> None:
    two.sandbox.git(two.ours, "push", "--quiet", "origin", "HEAD~1:refs/tags/v1")
    refs, fault = two.push("origin", "HEAD:refs/tags/v1")
    assert refs[0]["reason"] == "already exists"
    assert fault is not None
    assert fault.code == "push_rejected"
    assert "tag" in fault.detail


def test_a_stale_lease(two: Two) -> None:
    refs, fault = two.push("--force-with-lease", "origin", "main")
    assert (refs[0]["status"], refs[0]["reason"]) == ("rejected", "stale info")
    assert fault is not None
    assert (fault.code, fault.data["refs"]) == ("lease_stale", refs)


def test_what_an_atomic_push_takes_along_is_not_the_cause(two: Two) -> None:
    two.hook(two.bare, "update", 'test "$1" != refs/heads/x')
    refs, fault = two.push("--atomic", "--force", "origin", "main:refs/heads/a", "main:refs/heads/x")
    assert {ref["status"] for ref in refs} == {"remote_rejected"}
    assert fault is not None
    assert fault.code == "push_rejected"
    refs, fault = two.push("--atomic", "origin", "main", "HEAD:refs/heads/a")
    assert [ref["reason"] for ref in refs] == ["fetch first", "atomic push failed"]
    assert fault is not None
    assert "Pull" in fault.detail


@pytest.mark.parametrize(
    ("hook", "reason"), [("pre-receive", "pre-receive hook declined"), ("update", "hook declined")]
)
def test_a_hook_of_the_remote(two: Two, hook: str, reason: str) -> None:
    two.hook(two.bare, hook, "echo 'fatal: Authentication failed for x'; exit 1")
    refs, fault = two.push("--force", "origin", "main")
    assert (refs[0]["status"], refs[0]["reason"]) == ("remote_rejected", reason)
    assert fault is not None
    assert fault.code == "push_rejected"
    assert reason in fault.detail
    assert "remote: fatal: Authentication failed" in fault.data["output"]


def test_a_hook_of_ours(two: Two) -> None:
    two.hook(two.ours / ".git", "pre-push")
    done = two.sandbox.attempt(two.ours, "push", "--porcelain", "--force", "origin", "main")
    fault = failure(said(done), push_refs(done.stdout), hook="pre-push")
    assert (fault.code, fault.data["hook"]) == ("hook_refused", "pre-push")
    assert fault.data["output"].startswith("no\n")
    assert failure(said(done)).code == "push_rejected", "git does not say that it was a hook"


@given(
    st.lists(
        st.binary(max_size=12) | st.sampled_from([b"!", b"*", b" ", b"\t", b":", b"\n", b"[x] (y)", b"refs/heads/a"])
    )
)
def test_no_output_of_a_push_crashes(pieces: list[bytes]) -> None:
    refs = push_refs(b"".join(pieces))
    orjson.dumps(refs)
    assert all(ref["ref"] for ref in refs)
    failure("error: failed to push some refs", refs)


def test_odd_lines_of_a_push() -> None:
    lines = b"To x\n!\ta:refs/heads/\xff\t[remote rejected] (why (not)\there)\n!\ta:b\t[remote failure] (gone)\n!\t:\t[x]\n?\ta:b\tx\n-\t:c\n"
    assert push_refs(lines) == [
        {
            "ref": "refs/heads/\ufffd",
            "local": "a",
            "status": "remote_rejected",
            "summary": "[remote rejected]",
            "reason": "why (not)\there",
        },
        {"ref": "b", "local": "a", "status": "remote_rejected", "summary": "[remote failure]", "reason": "gone"},
    ]


# --- one repository -------------------------------------------------------------------------------------------------------------


def test_pulls_that_diverge(two: Two) -> None:
    assert two.run("pull").code == "diverged"
    assert two.run("pull", "--ff-only").code == "diverged"


@pytest.mark.parametrize("mode", ["--no-rebase", "--rebase"])
def test_conflicts(two: Two, mode: str) -> None:
    fault = two.run("pull", mode)
    assert fault.code == "merge_conflict"
    assert "Merge conflict in a" in fault.data["output"]
    assert two.run("commit", "--message", "x").code == "merge_conflict"
    assert two.run("checkout", "HEAD~1").code == "merge_conflict"
    assert two.run("pull", mode).code in ("merge_conflict", "operation_in_progress")


def test_a_rebase_that_is_not_finished(two: Two) -> None:
    two.run("pull", "--rebase")
    assert two.run("rebase", "origin/main").code == "operation_in_progress"
    two.sandbox.git(two.ours, "rebase", "--abort")
    two.run("pull", "--no-rebase")
    two.sandbox.git(two.ours, "add", "a")
    assert two.run("merge", "origin/main").code == "operation_in_progress"


def test_a_stash_that_conflicts(two: Two) -> None:
    (two.ours / "a").write_bytes(b"stashed\n")
    two.sandbox.git(two.ours, "stash")
    two.sandbox.commit(two.ours, {"a": b"other\n"}, "other")
    assert two.run("stash", "pop").code == "merge_conflict"


def test_local_changes_in_the_way(two: Two) -> None:
    two.sandbox.git(two.ours, "fetch", "--quiet")
    (two.ours / "a").write_bytes(b"dirty\n")
    for command in (("pull", "--no-rebase"), ("checkout", "origin/main")):
        fault = two.run(*command)
        assert (fault.code, fault.data["paths"]) == ("local_changes_in_way", ["a"])
    assert two.run("pull", "--rebase").code == "local_changes_in_way"
    two.sandbox.git(two.ours, "add", "a")
    assert two.run("pull", "--rebase").code == "local_changes_in_way"
    assert two.run("merge", "origin/main").code == "local_changes_in_way"


def test_untracked_files_in_the_way(two: Two) -> None:
    names: list[bytes] = [b"\ttab", b"\xff", b'quo"te', b"two words"]
    two.sandbox.commit(two.theirs, dict.fromkeys(names, b"1"), "names")
    two.sandbox.git(two.theirs, "push", "--quiet")
    two.sandbox.git(two.ours, "reset", "--quiet", "--hard", "HEAD~1")
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(two.ours), name))).write_bytes(b"2")
    for command in (("pull",), ("checkout", "origin/main")):
        fault = two.run(*command)
        assert fault.code == "local_changes_in_way"
        assert sorted(fault.data["paths"]) == ["\ttab", 'quo"te', "two words", "\ufffd"]


def test_no_upstream(two: Two) -> None:
    two.sandbox.git(two.ours, "checkout", "--quiet", "-b", "lonely")
    assert two.run("push").code == "no_upstream"
    assert two.run("pull").code == "no_upstream"
    assert two.run("rev-parse", "--verify", "@{upstream}").code == "no_upstream"
    two.sandbox.git(two.ours, "checkout", "--quiet", "--detach")
    for command in ("push", "pull"):
        fault = two.run(command)
        assert fault.code == "no_upstream"
        assert "No branch is checked out" in fault.detail
    two.sandbox.git(two.folder, "init", "--quiet", "alone")
    two.sandbox.commit(two.folder / "alone", {}, "x")
    assert two.run("push", cwd=two.folder / "alone").code == "no_upstream"


def test_refs_that_are_not_there(two: Two) -> None:
    assert two.run("fetch", "origin", "nothing").code == "remote_ref_not_found"
    assert two.run("pull", "origin", "nothing").code == "remote_ref_not_found"
    assert two.run("push", "--delete", "origin", "nothing").code == "remote_ref_not_found"
    assert two.run("clone", "--branch", "nothing", str(two.bare), "../copy").code == "remote_ref_not_found"
    two.sandbox.git(two.ours, "config", "branch.main.merge", "refs/heads/gone")
    assert two.run("pull").code == "remote_ref_not_found"
    assert two.run("push", "origin", "nothing").code == "ref_not_found"


def test_locks(two: Two) -> None:
    for lock, command in (
        ("index.lock", ("add", ".")),
        ("index.lock", ("commit", "--all", "--message", "x")),
        ("refs/heads/new.lock", ("branch", "new")),
        ("config.lock", ("config", "a.b", "c")),
        ("HEAD.lock", ("checkout", "--detach")),
    ):
        path = two.ours / ".git" / lock
        path.write_bytes(b"")
        fault = two.run(*command)
        assert fault.code == "repository_locked", fault.data
        path.unlink()
    assert two.run("branch", "main/below").code == "ref_exists", "a branch in the way of another is no lock"


def test_an_owner_and_an_identity(two: Two) -> None:
    assert two.run("status", GIT_TEST_ASSUME_DIFFERENT_OWNER="1").code == "repository_not_owned"
    (two.folder / "config").write_text("[user]\n\tuseConfigOnly = true\n")
    commit = ("commit", "--allow-empty", "--message", "x")
    assert two.run(*commit, GIT_CONFIG_GLOBAL=str(two.folder / "config")).code == "identity_missing"
    assert two.run(*commit, GIT_AUTHOR_NAME="", GIT_COMMITTER_NAME="").code == "identity_missing"


def test_the_rest_is_given_in_gits_words(two: Two) -> None:
    fault = two.run("mv", "nothing", "elsewhere")
    assert fault.code == "git_failed"
    assert fault.data["output"].startswith("fatal: bad source, source=nothing")


# --- remotes ----------------------------------------------------------------------------------------------------------------------


def test_addresses_with_nothing_behind(two: Two) -> None:
    def clone(url: str) -> str:
        return two.run("clone", "--", url, "copy", cwd=two.folder, GIT_SSH_COMMAND="ssh -F none -o BatchMode=yes").code

    assert clone(str(two.folder / "nothing")) == "remote_not_found"
    assert clone(f"file://{two.folder}/nothing") == "remote_not_found"
    assert clone("http://127.0.0.1:1/x") == "remote_unreachable"
    assert clone("ssh://ada@127.0.0.1:1/x") == "remote_unreachable"
    assert clone("ext::sh -c true") == "remote_url_refused"
    assert clone("ssh://-option/x") == "remote_url_refused"
    assert two.run("fetch", "nowhere").code == "remote_not_found"
    assert two.run("remote", "get-url", "nowhere").code == "remote_not_found"


def test_http(two: Two) -> None:
    with http_remote(two.folder / "served", user="ada", password="right") as remote:

        def clone(url: str) -> WorkspaceError:
            return two.run("clone", "--", url, "copy", cwd=two.folder)

        def as_ada(password: str) -> str:
            return remote.url.replace("://", f"://ada:{password}@")

        assert clone(f"{remote.url}/project.git").code == "remote_auth_failed"
        assert clone(f"{as_ada('wrong')}/project.git").code == "remote_auth_failed"
        missing = clone(f"{as_ada('right')}/nothing.git")
        assert missing.code == "remote_not_found"
        assert "right" not in missing.data["output"]
        tls = clone(f"{as_ada('right').replace('http:', 'https:')}/project.git")
        assert tls.code == "remote_unreachable"
        assert "TLS" in tls.detail
        # a server that stops in the middle
        remote.password, remote.slow = None, True
        two.sandbox.commit(two.theirs, {"big": os.urandom(300_000)}, "big")
        two.sandbox.git(two.theirs, "push", "--quiet")
        process = subprocess.Popen(
            ["git", "clone", f"{remote.url}/project.git", "copy"],
            cwd=two.folder,
            env=two.sandbox.env,
            stderr=subprocess.PIPE,
        )
        assert remote.held.wait(20)
    _, err = process.communicate(timeout=20)
    assert failure(err.decode()).code == "remote_unreachable", err


def test_ssh(two: Two) -> None:
    with ssh_remote(two.folder / "served") as remote:

        def clone(name: str, **how: Any) -> WorkspaceError:
            command = remote.command(**how)
            return two.run("clone", f"{remote.url}/{name}", "copy", cwd=two.folder, GIT_SSH_COMMAND=command)

        assert clone("project.git", key="stranger").code == "remote_auth_failed"
        assert clone("nothing.git").code == "remote_not_found"
        unknown = clone("project.git", known=False)
        assert unknown.code == "remote_host_unknown"
        assert "not known" in unknown.detail
        another_key = (remote.keys / "client.pub").read_text()
        (remote.keys / "known_hosts").write_text(f"[127.0.0.1]:{remote.port} {another_key}")
        changed = clone("project.git")
        assert changed.code == "remote_host_unknown"
        assert "not the one that is known" in changed.detail


@pytest.mark.parametrize(
    ("words", "code"),
    [
        # from git's and ssh's sources, and the large hosts: what can't be had here
        ("fatal: unable to access 'https://h/': The requested URL returned error: 403", "remote_auth_failed"),
        ("fatal: unable to access 'https://h/': The requested URL returned error: 503", "remote_unreachable"),
        ("fatal: unable to access 'https://h/': Could not resolve host: h", "remote_unreachable"),
        (
            "fatal: unable to access 'https://h/': server certificate verification failed. CAfile: none CRLfile: none",
            "remote_unreachable",
        ),
        (
            "ssh: Could not resolve hostname h: Name or service not known\nfatal: Could not read from",
            "remote_unreachable",
        ),
        ("ERROR: Repository not found.\nfatal: Could not read from remote repository.", "remote_not_found"),
        ("remote: Repository not found.\nfatal: repository 'https://h/' not found", "remote_not_found"),
        ("error: RPC failed; curl 56 GnuTLS recv error (-9)\nfatal: early EOF", "remote_unreachable"),
        ("hint: Diverging branches can't be fast-forwarded, you need to either:", "diverged"),
    ],
)
def test_words_of_others(words: str, code: str) -> None:
    assert failure(words).code == code


# --- what is shown ----------------------------------------------------------------------------------------------------------------


def test_the_remote_cannot_choose_the_code() -> None:
    assert failure("remote: fatal: Authentication failed for 'x'\nremote: .lock': File exists\n").code == "git_failed"


def test_words_about_a_remote_count_where_one_is_talked_to() -> None:
    words = "fatal: Could not read from remote repository."
    assert meaning(words).code == "git_failed"
    assert meaning(words, network=True).code == "remote_unreachable"


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("hooks", [False, True])
def test_what_a_program_prints_does_not_choose_the_code(network: bool, hooks: bool) -> None:
    """Whatever it is, where git says itself what was wrong."""
    printed = "fatal: Authentication failed for 'x'\nx.lock': File exists\nnothing to commit\nCONFLICT (content)\n"
    account = Account(errors=["a branch named 'x' already exists"], hooks=hooks)
    assert meaning(printed, account=account, network=network).code == "ref_exists"
    unknown = Account(errors=["something else"], hooks=hooks)
    if hooks or not network:
        assert meaning(printed, account=unknown, network=network).code == "git_failed"
    assert meaning("fatal: Authentication failed for 'x'\n", account=Account()).code == "git_failed"
    assert (
        meaning("", out="nothing to commit", account=Account(hooks=hooks), network=network).code == "nothing_to_commit"
    )


def test_output_is_redacted_before_it_is_bounded() -> None:
    credentials = Credentials(None, "0123456789" * 4, "https://host")
    fault = failure(f"{credentials.password}{'x' * 4080}é", credentials=credentials)
    assert len(fault.data["output"].encode()) <= 4096
    assert "0123456789" not in fault.data["output"]
    ref = {
        "ref": "r",
        "local": "l",
        "status": "remote_rejected",
        "summary": "[remote rejected]",
        "reason": "no " + "0123456789" * 4,
    }
    fault = failure("", [ref], credentials=credentials)
    assert "0123456789" not in fault.detail + str(fault.data)


def test_lines_that_were_written_over_are_gone() -> None:
    fault = failure("Rebasing (1/2)\rRebasing (2/2)\rerror: could not apply abc... x\r\n")
    assert fault.code == "merge_conflict"
    assert fault.data["output"] == "error: could not apply abc... x"


def test_long_output_is_no_burden() -> None:
    """Seconds where an expression is not linear, more than the time limit where it is cubic."""
    for piece in (
        "would be overwritten by ",
        "fatal: repository '",
        "\r",
        "a" * 80,
        "Unable to create '",
        "\tx\n",
        "remote: x\n",
    ):
        failure(piece * (500_000 // len(piece)))
