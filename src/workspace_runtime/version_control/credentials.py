"""What a client may give to reach a remote: its address, and a token for one call.

A token is bound to one origin (scheme, host and port) and is given to git by a program that git asks (`GIT_ASKPASS`, see
gitcredentials(7)). It stands in the environment of that one git, never in an argument, in a file or in an answer; the program
answers only when git asks for exactly that origin, so that a redirect, a submodule or an address that a repository rewrote gets
nothing. An address is taken only if git can't read anything else from it than a place: git also takes programs for addresses
(gitremote-helpers(7)), and ssh options for host names.
"""

import base64
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, unquote_to_bytes

from workspace_runtime.errors import WorkspaceError

# What GitHub, GitLab and Gitea take beside a token.
DEFAULT_USERNAME = "x-access-token"
MAX_SECRET = 16 * 1024  # characters; an environment variable holds 128 KB
HIDDEN = "***"
_MAX_SCHEME = 32

_HOST = r"[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\]"
_NETWORK = re.compile(rf"(https?|ssh)://(?:([^@/?#\\\s]+)@)?({_HOST})((?::[0-9]{{1,5}})?)(?:/.*)?", re.DOTALL)
_SCP = re.compile(rf"(?:([^@/:\\\s\[\]]+)@)?({_HOST}):[^-].*", re.DOTALL)
# As git itself tells a helper and a scheme (url.c, is_urlschemechar).
_HELPER = re.compile(r"[A-Za-z0-9+.-]*::")
_SCHEME = re.compile(r"[A-Za-z0-9+.-]*://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What the tokens of GitHub and GitLab begin with, and what is too long for the name of a user or an organization.
_TOKEN = re.compile(r"gh[a-z]_|github_pat_|gl[a-z]{2,5}-|[^@]{40}")
# What stands before the host. A password may hold a slash where somebody forgot to encode it; what begins with a port holds none.
_USERINFO = re.compile(r"://([^\s/:@]*:(?!\d{1,5}(?:[/?#'\"\s]|$))\S{0,512}@|[^\s/]*@)")
# The same where it is known that all of it is an address: then it may hold spaces, too.
_USERINFO_OF_ALL = re.compile(r"://([^/:@]*:(?!\d{1,5}(?:[/?#]|$)).{0,512}@|[^/]*@)", re.DOTALL)
_SCP_SECRET = re.compile(r"([^@/:\\\s\[\]]+):[^/\s]*@")
_IN_QUERY = re.compile(r"([?&][\w.-]{0,64}(?:token|key|secret|password)=)[^&#\s'\"]+", re.IGNORECASE)
# What follows the path in an address: a query and a fragment, which may be a secret under any name.
_AFTER_PATH = re.compile(r"[?#]")
# What stands before `://`, and where an address ends that git has put into quotes, whatever is in it.
_SCHEME_BEFORE = re.compile(r"(['\"]?)([A-Za-z0-9+.-]*)$")
_CLOSED = {quote: re.compile(rf"{quote}(?=[\s:.,;)]|$)") for quote in "'\""}
_SPACE = re.compile(r"\s")
# Lines that end in an address, which may hold spaces.
_ENDS_IN_ADDRESS = re.compile(r"(?:From|To|Pushing to|warning: redirecting to) ")
# What may be an address, as a whole or in part.
_ADDRESS = re.compile(r"://|:.*@", re.DOTALL)

# Only what the shell itself can do: no other program is looked for. What git asks is in credential.c (credential_ask_one):
# "Username for 'https://host:port': ", "Password for 'https://user@host:port': ", with a path where credential.useHttpPath is
# set; Git LFS asks with double quotes and without the colon. An older git does not encode the user, so that one named
# `trusted/` shows as another host: with an `@` in the path, or two of them, nobody can tell, and nothing is answered.
_SCRIPT = """\
#!/bin/sh
case $1 in
"Username for '"*"': ") asked=${1#*\\'} asked=${asked%\\': } answer=$WORKSPACE_GIT_USERNAME ;;
"Password for '"*"': ") asked=${1#*\\'} asked=${asked%\\': } answer=$WORKSPACE_GIT_PASSWORD ;;
'Username for "'*'"') asked=${1#*\\"} asked=${asked%\\"} answer=$WORKSPACE_GIT_USERNAME ;;
'Password for "'*'"') asked=${1#*\\"} asked=${asked%\\"} answer=$WORKSPACE_GIT_PASSWORD ;;
*) exit 1 ;;
esac
[ -n "$WORKSPACE_GIT_ORIGIN" ] && [ -n "$answer" ] || exit 1
scheme=${asked%%://*}
rest=${asked#*://}
case $rest in
*/*@* | *@*@*) exit 1 ;;
esac
host=${rest%%/*}
[ "$scheme://${host#*@}" = "$WORKSPACE_GIT_ORIGIN" ] || exit 1
printf '%s\\n' "$answer"
"""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a secret for one origin (`https://host[:port]`, as `origin_of` gives it).

    `username` None means `DEFAULT_USERNAME`; where the address names a user, git takes that one. Raises `WorkspaceError`
    (`credentials_invalid`) for what can't be passed on: nothing, a control character, what is no text, too much of it.
    """

    username: str | None
    password: str = field(repr=False)
    origin: str

    def __post_init__(self) -> None:
        for name, value in (("username", self.username), ("password", self.password)):
            if value is None:
                continue
            if not value or len(value) > MAX_SECRET or _CONTROL.search(value) or not _is_text(value):
                raise WorkspaceError(
                    "credentials_invalid",
                    f"{name}: must be text of 1 to {MAX_SECRET:,} characters on one line, without control characters.",
                )

    @property
    def user(self) -> str:
        """The name that git is told when it asks for one."""
        return self.username or DEFAULT_USERNAME


def origin_of(url: bytes | str) -> str | None:
    """The origin of an HTTP address, `https://host[:port]`, written as in the address, since git asks in these words.

    None for every other kind of address (ssh, scp-like, file, a path), and for one that `check_url` refuses.
    """
    found = _NETWORK.fullmatch(_text(url))
    return f"{found[1]}://{found[3]}{found[4]}" if found and found[1] != "ssh" else None


def bind(url: str, username: str | None, password: str) -> Credentials:
    """The credentials for the host of this address. Raises `WorkspaceError` (`credentials_invalid`), also where it is not HTTP."""
    origin = origin_of(url)
    if origin is None:
        raise WorkspaceError(
            "credentials_invalid",
            "The remote is not reached by HTTP: leave out the credentials. SSH uses the user's own keys.",
        )
    return Credentials(username, password, origin)


# --- what git asks ----------------------------------------------------------------------------------------------------------


def askpass_script(folder: Path) -> Path:
    """The program that answers git, in a folder of ours; made where it is missing or not as it should be. It holds no secret.

    Raises `OSError`.
    """
    path = folder / "git-askpass"
    try:
        if path.read_text() == _SCRIPT and path.stat().st_mode & 0o777 == 0o700:
            return path
    except (OSError, ValueError):
        pass  # made anew
    descriptor, temporary = tempfile.mkstemp(prefix="git-askpass-", dir=folder)
    try:
        with open(descriptor, "w") as file:
            file.write(_SCRIPT)
            os.fchmod(descriptor, 0o700)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def environment(credentials: Credentials | None, script: Path) -> Mapping[str, str]:
    """What one run of git gets in addition. Without credentials the program refuses every question, and git fails at once.

    `GIT_ASKPASS` is always set, so that a program in a repository's `core.askPass` never runs. Helpers come before it
    (`credential.helper`) and keep what was right: a run with credentials must have none.
    """
    asked = {"GIT_ASKPASS": str(script), "GIT_TERMINAL_PROMPT": "0"}
    if credentials is not None:
        asked |= {
            "WORKSPACE_GIT_ORIGIN": credentials.origin,
            "WORKSPACE_GIT_USERNAME": credentials.user,
            "WORKSPACE_GIT_PASSWORD": credentials.password,
        }
    return asked


# --- what may be shown --------------------------------------------------------------------------------------------------------


def redact(text: str, credentials: Credentials | None) -> str:
    """The text without the secret in any form that git or curl write, and without what stands before the host of any URL and after its
    path.

    To be called before a text is shortened: half a secret is not found any more.
    """
    if credentials is not None:
        for form in _forms(credentials):
            text = text.replace(form, HIDDEN)
    lines = _USERINFO.sub(_without_secret, text).split("\n")
    return _IN_QUERY.sub(rf"\1{HIDDEN}", "\n".join(map(_without_rest, lines)))


def tellable(name: str) -> str:
    """What a client has given as a name, as it may be told again: nothing of what may be an address, with a password in it."""
    return HIDDEN if _ADDRESS.search(unquote(name)) else name


def _forms(credentials: Credentials) -> list[str]:
    password = credentials.password
    encoded = {quote(password, safe=safe) for safe in ("", "/")}
    basic = base64.b64encode(f"{credentials.user}:{password}".encode()).decode().rstrip("=")
    alone = base64.b64encode(password.encode()).decode().rstrip("=")
    forms = {password, basic, alone, *encoded, *(re.sub("%..", lambda code: code[0].lower(), text) for text in encoded)}
    return sorted(forms, key=len, reverse=True)


def _without_secret(found: re.Match[str]) -> str:
    # a user of ssh is a name; one of HTTP may be the token itself
    user = re.split(":|%3[Aa]", found[1].removesuffix("@"), maxsplit=1)[0]
    return f"://{user}@" if user and found.string.endswith("ssh", 0, found.start()) else "://"


def _without_rest(line: str) -> str:
    """A line of text without the queries and fragments of the addresses in it."""
    done: list[str] = []
    at = 0
    whole = _ENDS_IN_ADDRESS.match(line)
    while (found := line.find("://", at)) >= 0:
        before = _SCHEME_BEFORE.search(line[max(at, found - _MAX_SCHEME) : found])
        quote, scheme = before.groups() if before else ("", "")
        end = None if whole and not quote else (_CLOSED[quote] if quote else _SPACE).search(line, found)
        until = end.start() if end else len(line)
        done += [line[at : found - len(scheme)], _short(line[found - len(scheme) : until])]
        at = until
    return "".join([*done, line[at:]])


def _short(address: str) -> str:
    """An address without what stands before its host and after its path; of a file there is nothing after it."""
    address = _USERINFO_OF_ALL.sub(_without_secret, address, count=1)
    found = None if address.startswith("file://") else _AFTER_PATH.search(address)
    if found is None:
        return address
    return address[: found.start()] + (f"?{HIDDEN}" if found[0] == "?" else "")


def without_rest(url: str) -> str:
    """An address without its query and its fragment; a path of this machine is as it was."""
    scheme, network, _ = url.partition("://")
    return url if not network or scheme == "file" else _AFTER_PATH.split(url, maxsplit=1)[0]


def safe_url(url: bytes | str) -> str:
    """An address as it may be shown: without a password, and over HTTP without the user too, without what a query says, and without a
    fragment. `git@host:path` stays."""
    text = _text(url)
    if "://" not in text:
        text = _SCP_SECRET.sub(rf"\1:{HIDDEN}@", text, count=1) if _SCP_SECRET.match(text) else text
        return _short(text) if _SCP.fullmatch(text) else _IN_QUERY.sub(rf"\1{HIDDEN}", text)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _short(text))


# --- which addresses are taken ------------------------------------------------------------------------------------------------


def check_url(url: str) -> None:
    """Whether git may be given this address: https, http, ssh, `[user@]host:path`, `file:///path` and absolute paths.

    Raises `WorkspaceError` (`remote_url_refused`) for all else, such as programs (`ext::`), options (`-…`, also as a host or a
    user), `git://` (not encrypted, and a repository may name a program for it), and a password in an address of ssh.
    """
    problem = _problem(url)
    if problem:  # what it is stays untold: where it is not as it should be, nobody knows which part is the secret
        raise WorkspaceError("remote_url_refused", f"The address {problem}.")


def _problem(url: str) -> str | None:
    if not url:
        return "is empty"
    if _CONTROL.search(url) or not _is_text(url):
        return "holds a control character, or what is no text"
    if url.startswith("-"):
        return "begins with '-'"
    if _HELPER.match(url):
        return "names a program (helper::address)"
    if url.startswith("/"):
        return None
    if _SCHEME.match(url):
        return _problem_of_url(url)
    found = _SCP.fullmatch(url)
    if found is None:
        return "is neither a URL, nor [user@]host:path, nor an absolute path"
    if found[1] is None and found[2].lower() in ("http", "https", "ssh", "file"):
        return "has too few slashes after its scheme"
    if (found[1] or "").startswith("-"):
        return "has a user that begins with '-'"
    return "has an '@' after its first colon, as a password would: ssh takes none" if _SCP_SECRET.match(url) else None


def _problem_of_url(url: str) -> str | None:
    if re.search(rb"[\x00-\x1f\x7f]", unquote_to_bytes(url)):
        return "holds an encoded control character"
    if url.startswith("file:///"):
        return None
    found = _NETWORK.fullmatch(url)
    if found is None:
        return "is no URL of https, http or ssh with a plain host, or of file:/// with a path"
    user = unquote(found[2] or "")
    if user.startswith("-"):
        return "has a user that begins with '-'"
    if found[1] == "ssh" and (":" in user or "@" in user):
        return "has a password, or an '@' in the user: ssh takes a plain user"
    return None


def carries_password(url: str) -> bool:
    """Whether an address of HTTP holds a password, or a token in the place of the user, which git would write into the repository's
    configuration."""
    found = _NETWORK.fullmatch(url)
    user = unquote(found[2] or "") if found is not None else ""
    return ":" in user or _TOKEN.match(user) is not None


def _text(url: bytes | str) -> str:
    return url.decode(errors="replace") if isinstance(url, bytes) else url


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
