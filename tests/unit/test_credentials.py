"""Credentials: real git gets a token for the host it was given for, and nobody else does; only places are taken as addresses."""

import base64
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.git_home import Sandbox
from support.git_remotes import HttpRemote, http_remote, ssh_remote
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.version_control.cloning import folder_name
from workspace_runtime.version_control.credentials import (
    Credentials,
    askpass_script,
    bind,
    carries_password,
    check_url,
    environment,
    origin_of,
    redact,
    safe_url,
)

TOKEN = "s3cret/tok+en='\"$(id)`\\ %20é"


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


@pytest.fixture
def served(sandbox: Sandbox) -> Path:
    """A folder with one bare repository, `project.git`, too large for one piece."""
    work = sandbox.init("work")
    sandbox.commit(work, {"big": os.urandom(300_000)}, "first")
    sandbox.git(sandbox.folder, "clone", "--quiet", "--bare", str(work), "served/project.git")
    return sandbox.folder / "served"


@pytest.fixture
def guarded(served: Path) -> Iterator[HttpRemote]:
    with http_remote(served, user="x-access-token", password=TOKEN) as remote:
        yield remote


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return askpass_script(tmp_path)


def clone(
    sandbox: Sandbox, url: str, credentials: Credentials | None, script: Path, *options: str
) -> "subprocess.CompletedProcess[bytes]":
    return sandbox.attempt(sandbox.folder, *options, "clone", "--", url, "copy", env=environment(credentials, script))


# --- with real git ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("-c", "credential.useHttpPath=true")])
def test_the_right_token_is_let_in(
    sandbox: Sandbox, guarded: HttpRemote, script: Path, options: tuple[str, ...]
) -> None:
    done = clone(sandbox, f"{guarded.url}/project.git", bind(guarded.url, None, TOKEN), script, *options)
    assert done.returncode == 0, done.stderr
    assert (sandbox.folder / "copy" / "big").stat().st_size == 300_000
    right = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
    assert set(guarded.authorizations) == {f"Basic {right}"}
    # and nothing of it stays
    held = (sandbox.folder / "copy" / ".git" / "config").read_text()
    assert TOKEN not in held
    assert "x-access-token" not in held


def test_a_push_with_the_token(sandbox: Sandbox, guarded: HttpRemote, script: Path) -> None:
    url = f"{guarded.url}/project.git"
    credentials = bind(url, None, TOKEN)
    assert clone(sandbox, url, credentials, script).returncode == 0
    sandbox.commit(sandbox.folder / "copy", {"more": os.urandom(3_000_000)}, "second")  # more than one request holds
    done = sandbox.attempt(sandbox.folder / "copy", "push", env=environment(credentials, script))
    assert done.returncode == 0, done.stderr
    assert any(request.chunked for request in guarded.requests)


def test_a_user_in_the_address_is_kept(sandbox: Sandbox, guarded: HttpRemote, script: Path) -> None:
    guarded.user = "ada@example.org"
    url = guarded.url.replace("://", "://ada%40example.org@") + "/project.git"
    done = clone(sandbox, url, bind(url, None, TOKEN), script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("given_token", ["wrong", None])
def test_without_the_right_token_it_fails_at_once(
    sandbox: Sandbox, guarded: HttpRemote, script: Path, given_token: str | None
) -> None:
    credentials = bind(guarded.url, None, given_token) if given_token else None
    done = clone(sandbox, f"{guarded.url}/project.git", credentials, script)
    assert done.returncode == 128
    assert b"Authentication failed" in done.stderr or b"could not read Username" in done.stderr
    assert not (sandbox.folder / "copy").exists()
    assert len(guarded.authorizations) == (1 if given_token else 0)


def test_another_host_is_not_told(sandbox: Sandbox, guarded: HttpRemote, served: Path, script: Path) -> None:
    """The trusted host leads on to another one, which asks for a password: git follows, and gets nothing to give."""
    with http_remote(served, redirect=guarded.url) as trusted:
        url = f"{trusted.url}/moved/project.git"
        done = clone(sandbox, url, bind(url, None, TOKEN), script)
        assert done.returncode == 128
        assert any(request.path.startswith("/project.git") for request in guarded.requests), "git did follow"
        assert guarded.authorizations == []
        # and with the token bound to where it leads, that host alone is told
        followed = clone(sandbox, url, bind(guarded.url, None, TOKEN), script)
        assert followed.returncode == 0, followed.stderr
        assert guarded.authorizations
        assert trusted.authorizations == []


def test_a_repositorys_own_askpass_never_runs(sandbox: Sandbox, guarded: HttpRemote, script: Path) -> None:
    trap = sandbox.folder / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {sandbox.folder}/sprung\necho {TOKEN!r}\n")
    trap.chmod(0o755)
    clone(sandbox, f"{guarded.url}/project.git", None, script, "-c", f"core.askPass={trap}")
    assert guarded.requests
    assert not (sandbox.folder / "sprung").exists()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc to see command lines in")
def test_the_token_is_in_no_command_line_and_no_output(sandbox: Sandbox, served: Path, script: Path) -> None:
    """A clone that is held in the middle: all its processes are there to be looked at."""
    with http_remote(served, user="x-access-token", password=TOKEN, slow=True) as remote:
        url = f"{remote.url}/project.git"
        credentials = bind(url, None, TOKEN)
        process = subprocess.Popen(
            ["git", "clone", "--progress", "--", url, "copy"],
            cwd=sandbox.folder,
            env={**sandbox.env, **environment(credentials, script), "GIT_TRACE_CURL": "1", "GIT_TRACE_REDACT": "0"},
            stderr=subprocess.PIPE,
        )
        with process:
            said: list[bytes] = []
            assert process.stderr is not None
            reader = threading.Thread(target=lambda: said.append(process.stderr.read() if process.stderr else b""))
            reader.start()
            assert remote.held.wait(20)
            lines = [line for line in _command_lines() if remote.url.encode() in line]
            assert len(lines) >= 3, "git, git remote-http, git-remote-http"
            assert not any(TOKEN.encode() in line for line in lines)
            remote.go_on.set()
            assert process.wait(20) == 0
            reader.join(20)
    output = said[0].decode()
    basic = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
    assert basic in output, "git was told to hide nothing"
    for form in (TOKEN, basic):
        assert form not in redact(output, credentials)


def _command_lines() -> Iterator[bytes]:
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            yield Path("/proc", pid, "cmdline").read_bytes()
        except OSError:
            continue  # ended meanwhile


def test_a_slow_clone_is_cancelled_midway(sandbox: Sandbox, served: Path) -> None:
    with http_remote(served, slow=True) as remote:
        process = subprocess.Popen(
            ["git", "clone", "--quiet", "--", f"{remote.url}/project.git", "copy"],
            cwd=sandbox.folder,
            env=sandbox.env,
            stderr=subprocess.DEVNULL,
        )
        with process:
            assert remote.held.wait(20)
            assert (sandbox.folder / "copy" / ".git").is_dir()
            process.terminate()
        assert process.returncode != 0
    assert not (sandbox.folder / "copy").exists(), "git clears up after SIGTERM"


def test_large_requests_come_compressed(sandbox: Sandbox, served: Path) -> None:
    """A fetch of many branches: git compresses what it asks for, and the remote must understand it."""
    work = sandbox.folder / "work"
    bare = served / "project.git"
    for number in range(30):
        sandbox.commit(work, {"file": str(number).encode()}, str(number))
        sandbox.git(work, "push", "--quiet", str(bare), f"HEAD:refs/heads/branch-{number}")
    with http_remote(served) as remote:
        assert sandbox.attempt(sandbox.folder, "clone", f"{remote.url}/project.git", "copy").returncode == 0
        assert "gzip" in {request.encoding for request in remote.requests}


def test_ssh_uses_the_users_key(sandbox: Sandbox, served: Path, script: Path) -> None:
    with ssh_remote(served) as remote:
        url = f"{remote.url}/project.git"
        check_url(url)
        asked = {**environment(None, script), "GIT_SSH_COMMAND": remote.command()}
        done = sandbox.attempt(sandbox.folder, "clone", "--", url, "copy", env=asked)
        assert done.returncode == 0, done.stderr
        assert remote.connections == 1
        sandbox.commit(sandbox.folder / "copy", {"a": b"1"}, "second")
        done = sandbox.attempt(sandbox.folder / "copy", "push", env=asked)
        assert done.returncode == 0, done.stderr


# --- the program that git asks -----------------------------------------------------------------------------------------------


def ask(script: Path, prompt: str, credentials: Credentials | None) -> tuple[int, str]:
    done = subprocess.run(
        [script, prompt], env=environment(credentials, script), capture_output=True, text=True, check=False, timeout=20
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("origin", ["https://host.example", "https://host.example:8443", "http://[::1]:80"])
def test_what_git_asks_is_answered(script: Path, origin: str) -> None:
    credentials = Credentials("ada", TOKEN, origin)
    with_user = origin.replace("://", "://a%2Fda@")
    assert ask(script, f"Username for '{origin}': ", credentials) == (0, "ada\n")
    assert ask(script, f"Username for '{origin}/some/path.git': ", credentials) == (0, "ada\n")
    assert ask(script, f"Password for '{with_user}': ", credentials) == (0, f"{TOKEN}\n")
    assert ask(script, f"Password for '{with_user}/some/path.git': ", credentials) == (0, f"{TOKEN}\n")
    assert ask(script, f'Username for "{origin}"', credentials) == (0, "ada\n")  # Git LFS
    assert ask(script, f'Password for "{with_user}/path/info/lfs"', credentials) == (0, f"{TOKEN}\n")
    assert ask(script, f"Password for '{with_user}': ", None) == (1, "")


@pytest.mark.parametrize(
    "asked",
    [
        "https://other.example",
        "http://host.example",  # not encrypted
        "https://host.example:444",
        "https://host.example.other.example",
        "https://HOST.example",
        "https://ada@other.example/host.example",
        "https://other.example/@host.example",
        "https://other.example/x@host.example",
        "https://other.example/'https://host.example",
        "https://host.example/@other.example",  # what an older git shows of the user `host.example/`
        "https://x@host.example/y@other.example",
        "https://host.example@other.example",
        "https://ada@host.example@other.example",
        "https://*",
        "https://host?example",
        "https://[h]ost.example",
        "https://host.example\nhttps://other.example",
        "https://other.example': \nPassword for 'https://host.example",
        "host.example",
        "",
        "//host.example",
        "cert:///host.example",
        "$WORKSPACE_GIT_ORIGIN",
        "$(touch sprung)",
        "`touch sprung`",
    ],
)
@pytest.mark.parametrize(
    "form", ["Username for '{}': ", "Password for '{}': ", 'Username for "{}"', 'Password for "{}"']
)
def test_nobody_else_is_answered(script: Path, form: str, asked: str) -> None:
    assert ask(script, form.format(asked), Credentials("ada", TOKEN, "https://host.example")) == (1, "")


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "Passphrase for key '/home/ada/.ssh/id': ",
        "Password for 'https://host.example'",
        "password for 'https://host.example': ",
        "Enter Password for 'https://host.example': ",
        "Are you sure you want to continue connecting (yes/no/[fingerprint])? ",
    ],
)
def test_other_questions_are_not_answered(script: Path, prompt: str) -> None:
    assert ask(script, prompt, Credentials("ada", TOKEN, "https://host.example")) == (1, "")


def test_a_star_as_origin_is_no_pattern(script: Path) -> None:
    assert ask(script, "Username for 'https://host': ", Credentials("ada", TOKEN, "https://*"))[0] == 1


def test_the_script_is_private_made_once_and_mended(tmp_path: Path) -> None:
    first = askpass_script(tmp_path)
    status = first.stat()
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert askpass_script(tmp_path).stat() == status
    first.chmod(0o644)
    assert stat.S_IMODE(askpass_script(tmp_path).stat().st_mode) == 0o700
    first.write_bytes(b"#!/bin/sh\nexit 1 \xff\n")
    assert b"\xff" not in askpass_script(tmp_path).read_bytes()
    assert os.listdir(tmp_path) == ["git-askpass"]
    with pytest.raises(OSError, match="No such file"):
        askpass_script(tmp_path / "missing")


# --- what is refused, and what is shown ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["", "a\nb", "a\rb", "a\0b", "a\x7fb", "\x1b[0m", "\ud800", "x" * 16_385])
@pytest.mark.parametrize("name", ["username", "password"])
def test_what_cannot_be_passed_on_is_refused(name: str, bad: str) -> None:
    with pytest.raises(WorkspaceError) as refused:
        Credentials(**{"username": "ada", "password": "x", "origin": "https://host", name: bad})
    assert refused.value.code == "credentials_invalid"
    assert not bad or bad not in refused.value.detail


def test_a_secret_is_not_in_its_own_description() -> None:
    assert TOKEN not in repr(Credentials(None, TOKEN, "https://host"))


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://host/path", "https://host"),
        ("https://host", "https://host"),
        (b"https://ada:x@Host.example:8443/a@b\xff", "https://Host.example:8443"),
        ("http://[::1]:80/x", "http://[::1]:80"),
        ("https://trusted%2f@other/x", "https://other"),
        ("https://a@trusted@other/x", None),
        ("https://host%2eexample/x", None),
        ("https://host\\@other/x", None),
        ("https://host?@other/x", None),
        ("ssh://git@host/path", None),
        ("git@host:path", None),
        ("file:///path", None),
        ("/path", None),
        ("", None),
    ],
)
def test_origins(url: str | bytes, origin: str | None) -> None:
    assert origin_of(url) == origin
    if origin is None:
        with pytest.raises(WorkspaceError, match="leave out the credentials"):
            bind(url if isinstance(url, str) else "", None, "x")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ada:pass@host/x", "https://host/x"),
        ("https://token@host/x@y", "https://host/x@y"),
        ("https://a:p@ss@host/x", "https://host/x"),
        ("ssh://git@host:22/x", "ssh://git@host:22/x"),
        ("ssh://git:pass@host/x", "ssh://git@host/x"),
        ("git@host:x", "git@host:x"),
        ("/a/b@c", "/a/b@c"),
        ("https://host/x?auth=s3cr3t", "https://host/x?***"),
        ("https://host/x?s3cr3t", "https://host/x?***"),
        ("https://host/x?a=1&auth=it's3cr3t/y#z", "https://host/x?***"),
        ("https://host/x#token=s3cr3t", "https://host/x"),
        ("https://host/x#s3cr3t?a=b", "https://host/x"),
        ("https://u:s3#cr?3t@host/x?a=b", "https://host/x?***"),
        ("ssh://git@host/x#s3cr3t", "ssh://git@host/x"),
        ("file:///srv/c#/x?y", "file:///srv/c#/x?y"),
        ("/srv/c#/x?y", "/srv/c#/x?y"),
    ],
)
def test_what_is_shown_of_addresses(text: str, shown: str) -> None:
    assert safe_url(text) == shown
    assert safe_url(text.encode()) == shown
    assert redact(f"fatal: unable to access '{text}': no\n{text}", None) == (
        f"fatal: unable to access '{shown}': no\n{shown}"
    )


@pytest.mark.parametrize(
    "address", ["https://host/x y?auth=a s3cr3t", "https://host/x#a s3cr3t", "https://host/?a='s3cr3t"]
)
@pytest.mark.parametrize(
    "words", ["From {}", "To {}\n! x", "fatal: unable to access '{}/': no", "warning: redirecting to {}"]
)
def test_what_git_says_of_an_address_is_told_without_the_rest(address: str, words: str) -> None:
    said = redact(words.format(address), None)
    assert "s3cr3t" not in said
    assert "https://host/" in said
    assert safe_url(address) in said


def test_a_clone_is_not_named_by_what_follows_the_path() -> None:
    assert folder_name("https://host/x.git?auth=a/s3cr3t#s3cr3t") == "x"
    assert folder_name("https://host/x#s3cr3t") == "x"
    assert folder_name("/srv/c#") == "c#"


def test_the_rest_of_a_line_is_told() -> None:
    said = "see https://host/x?a=s3cr3t or 'https://host/y#s3cr3t': that's it? #1 (https://host/z)"
    assert redact(said, None) == "see https://host/x?*** or 'https://host/y': that's it? #1 (https://host/z)"


def test_what_is_shown_of_other_addresses() -> None:
    assert safe_url("http://u:a b s3cr3t@host/x") == "http://host/x"
    assert redact("fatal: 'http://a s3cr3t@host/x': no", None) == "fatal: 'http://host/x': no"
    assert safe_url("short:x?auth=s3cr3t") == "short:x?***"
    assert safe_url("git@host:x#s3cr3t") == "git@host:x"
    assert safe_url("/x?token=s3cr3t") == "/x?token=***"


@given(st.text(st.characters(min_codepoint=33, exclude_characters="\x7f", exclude_categories=["Cs"]), min_size=6))
def test_no_form_of_the_secret_is_left(password: str) -> None:
    credentials = Credentials(None, password, "https://host")
    basic = base64.b64encode(f"{credentials.user}:{password}".encode()).decode()
    text = redact(f"error: {password} Authorization: Basic {basic} end", credentials)
    assert basic not in text
    assert (
        password not in text.removeprefix("error: ").removesuffix(" end") or password in "*** Authorization: Basic ***"
    )


def test_redaction_is_quick_on_what_is_long() -> None:
    """A remote may send anything: no text makes it slow (it would be minutes if it were not linear)."""
    for hostile in (
        "a" * 1_000_000,
        "://" * 300_000,
        "://" + "@" * 1_000_000,
        "://" + "a" * 1_000_000,
        "'://a?" * 200_000,
        "a://b " * 200_000,
    ):
        redact(hostile, Credentials(None, TOKEN, "https://host"))


@pytest.mark.parametrize(
    "url",
    [
        "https://host/path.git",
        "http://127.0.0.1:8080/a%20b",
        "https://ada@host/x",
        "https://ada:pass@host/x",
        "https://[::1]:8443/x",
        "ssh://git@host:22/~ada/x",
        "ssh://host/x",
        "git@github.com:org/project.git",
        "host:path",
        "[::1]:path",
        "ada@[::1]:path",
        "host:a://b::c",
        "file:///srv/project.git",
        "/srv/a:b/-project::x",
        "/srv/with space/é",
    ],
)
def test_addresses_that_are_taken(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "-oProxyCommand=x",
        "--upload-pack=x",
        "ext::sh -c x",
        "fd::17",
        "::x",
        "http::https://host/x",
        "git://host/x",
        "git+ssh://host/x",
        "ssh+git://host/x",
        "ftp://host/x",
        "HTTPS://host/x",
        "ssh://-oProxyCommand=x/y",
        "ssh://-oProxyCommand=x@host/y",
        "ssh://%2DoProxyCommand=x/y",
        "ssh://%2Doption@host/y",
        "ssh://git:hunter2@host/x",
        "ssh://git%3Ahunter2@host/x",
        "ssh://git%40a@host/x",
        "ssh://host:-p/x",
        "-x@host:path",
        "-host:path",
        "git@-host:path",
        "git@host:-path",
        "git@host:",
        "a@b@host:path",
        "https://-host/x",
        "https://-user@host/x",
        "https://host/x\n",
        "https://host/x%0Ahost=other",
        "https://us%0aer@host/x",
        "https://a@trusted@other/x",
        "https://host%2fother/x",
        "https://host\\other/x",
        "https://ho st/x",
        "https:///x",
        "https://host:port/x",
        "file://host/x",
        "file:x\ty",
        "relative/path",
        "../up",
        ".",
        "~/x",
        "name",
        "/srv/\x00",
        "/srv/\x1b[2J",
        "/srv/\ud800",
        "[-x]:path",
        "[git@host:22]:path",
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(WorkspaceError) as refused:
        check_url(url)
    assert refused.value.code == "remote_url_refused"
    assert "hunter2" not in refused.value.detail


def test_a_refusal_shows_no_secret() -> None:
    with pytest.raises(WorkspaceError) as refused:
        check_url("ftp://ada:hunter2@host/x")
    assert "hunter2" not in refused.value.detail


@given(
    st.text(max_size=30) | st.from_regex(r"(https?|ssh|ext|file)?:{0,2}(//)?[-@:/a%\[\]\\2D0]{0,20}", fullmatch=True)
)
def test_no_address_crashes_the_check(url: str) -> None:
    try:
        check_url(url)
    except WorkspaceError as refused:
        refused.detail.encode()
    else:
        assert not url.startswith("-")
        assert "\n" not in url
        assert url.startswith("/") or ":" in url


def test_which_addresses_hold_a_password() -> None:
    assert carries_password("https://ada:x@host/x")
    assert carries_password("https://ghp_abcdefghij@host/x") and carries_password("https://glpat-abc@host/x")
    assert carries_password(f"https://{'0a' * 20}@host/x")
    assert not carries_password("https://x-access-token@host/x")
    assert not carries_password("https://ada@host/x:y@z")
    assert not carries_password("git@host:x")
