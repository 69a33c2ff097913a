"""What git's configuration says for one repository, and what of it must not count.

git is asked once (`git config --list` runs no program), and again when a file that has a say has changed: they are known by name,
those included too. From the list come the settings that are laid over it: in a read, every program that the repository's own
configuration names is taken out; in a write, those that speak with other machines. What stands in the user's own configuration (the
scopes `system` and `global`) is the user's will, and stays.
"""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workspace_runtime.errors import WorkspaceError

from .git import Stop, read_environment, run

Settings = list[tuple[str, str]]
# A file as it was: its path, and what tells a change. None: there was none.
Seen = tuple[bytes, tuple[int, int, int, int] | None]

_OWN = ("local", "worktree")
# Programs in sections with a name of their own: `filter.<name>.clean`.
_NAMED = re.compile(
    r"(filter)\..*\.(clean|smudge|process|required)|(merge)\..*\.driver|(diff)\..*\.(textconv|command|x?funcname|wordregex)",
    re.DOTALL,
)
_TLS = re.compile(r"http\.(.*\.)?sslverify", re.DOTALL)
# The filter that Git LFS installs, in the words that it uses (git-lfs-install(1)): it runs no program of the repository's choice.
_LFS = {
    "filter.lfs.clean": {"git-lfs clean -- %f", "git-lfs clean %f"},
    "filter.lfs.smudge": {"git-lfs smudge -- %f", "git-lfs smudge %f", "git-lfs smudge --skip -- %f"},
    "filter.lfs.process": {"git-lfs filter-process", "git-lfs filter-process --skip"},
}
_LFS_EXTENSION = re.compile(r"lfs\.extension\..*", re.DOTALL)
# Laid over a write in a repository that is not trusted.
_UNTRUSTED: Settings = [
    ("core.hooksPath", os.devnull),
    ("core.fsmonitor", "false"),
    ("commit.gpgSign", "false"),
    ("tag.gpgSign", "false"),
    ("push.gpgSign", "false"),
    ("merge.verifySignatures", "false"),
]
# Laid over every read, whatever is configured.
_READS: Settings = [
    ("core.fsmonitor", "false"),
    ("core.hooksPath", os.devnull),
    ("core.sshCommand", "ssh"),
    ("credential.helper", ""),
    ("protocol.ext.allow", "never"),
    ("log.showSignature", "false"),
    ("commit.gpgSign", "false"),
    ("core.quotePath", "false"),
    ("core.alternateRefsCommand", "true"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
]
_MAX_LIST = 16 * 1024 * 1024
_PLACE = ("--absolute-git-dir", "--is-bare-repository", "--show-toplevel")
_INCLUDE = re.compile(r"include(if\..+)?\.path", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of configuration. `key` as git lists it: section and name in lower case. `value` is None for a bare key."""

    scope: str
    origin: bytes  # the file that it stands in, absolute; empty where it is none
    key: str
    value: str | None


def is_true(value: str | None) -> bool:
    """Whether a value says yes, as git reads it; no where there is none."""
    return (value or "false").lower() in ("true", "yes", "on", "1")


@dataclass(frozen=True, slots=True)
class Configuration:
    """All lines that count, in git's order: the last one wins. `seen`: the files that had a say."""

    entries: tuple[Entry, ...] = ()
    seen: tuple[Seen, ...] = ()
    place: bytes = b""  # what git itself says of the repository: see `git_says`

    def last(self, key: str, scopes: tuple[str, ...] | None = None) -> str | None:
        """The value that counts (of these scopes); None where there is none. `key` in lower case but for what is between the dots."""
        for entry in reversed(self.entries):
            if entry.key == key and (scopes is None or entry.scope in scopes):
                return entry.value if entry.value is not None else "true"
        return None

    def of_files(self, key: str, files: Sequence[bytes]) -> str | None:
        """The value that counts of those that stand in one of these files themselves, not in what they include."""
        found = [entry for entry in self.entries if entry.key == key and entry.origin in files]
        return (found[-1].value or "true") if found else None

    def flag(self, key: str) -> bool:
        """A setting that is yes or no; no where it is not set."""
        return is_true(self.last(key))

    def matching(self, pattern: re.Pattern[str], *, own: bool) -> Iterator[Entry]:
        """The lines whose whole key fits, of the repository's own scopes or of the user's."""
        for entry in self.entries:
            if (entry.scope in _OWN) == own and pattern.fullmatch(entry.key):
                yield entry

    def still_holds(self) -> bool:
        """Whether no file that had a say has changed."""
        return all(_look(path) == before for path, before in self.seen)

    # --- what is laid over it -----------------------------------------------------------------------------------------------

    def for_reads(self) -> Settings:
        """The settings under which no program of the repository's choice runs."""
        return [*_READS, *self._without_programs()]

    def for_writes(self, *, trusted: bool) -> Settings:
        """The settings under which a write runs: hooks, filters and merge drivers as git would, if the repository is `trusted`; what
        reaches other machines only as the user configured it."""
        settings: Settings = [
            ("core.sshCommand", self._users_own("core.sshcommand") or shlex.quote(os.environ.get("GIT_SSH") or "ssh")),
            ("protocol.ext.allow", "never"),
            ("core.alternateRefsCommand", "true"),
            ("core.quotePath", "false"),
            ("submodule.recurse", "false"),
            ("push.recurseSubmodules", "no"),
            ("fetch.recurseSubmodules", "false"),
            ("credential.helper", ""),
        ]
        settings += [(entry.key, entry.value or "") for entry in self.matching(_HELPER, own=False)]
        settings += [(entry.key, "true") for entry in self.matching(_TLS, own=True)]
        # a collection of garbage in the background would be ended with the command that began it
        settings += [("gc.autoDetach", "false"), ("maintenance.autoDetach", "false")]
        return settings if trusted else [*settings, *_UNTRUSTED, *self._without_programs()]

    def detours(self) -> list[str]:
        """Settings of the repository's own by which a token could reach somebody else than the remote's host."""
        return [entry.key for entry in self.matching(_ROUTES, own=True)]

    def _users_own(self, key: str) -> str | None:
        return self.last(key, ("system", "global"))

    def _without_programs(self) -> Settings:
        """Blanks for the programs that sections of the repository's own name."""
        settings: Settings = []
        known = self._lfs_is_known()
        for entry in self.matching(_NAMED, own=True):
            if entry.key.startswith("filter.lfs.") and known:
                continue
            blank = "false" if entry.key.endswith(".required") else ""
            settings.append((entry.key, blank))
        if self._lfs_is_extended():
            # the user's own Git LFS would run it, too
            settings += [*((key, "") for key in _LFS), ("filter.lfs.required", "false")]
        return settings

    def _lfs_is_known(self) -> bool:
        return (
            all((self.last(key) or min(known)) in known for key, known in _LFS.items()) and not self._lfs_is_extended()
        )

    def _lfs_is_extended(self) -> bool:
        """Whether the repository's own configuration has Git LFS run programs (git-lfs-ext(1))."""
        return any(True for _ in self.matching(_LFS_EXTENSION, own=True))


# What decides where a request goes, and whom it is shown to.
_ROUTES = re.compile(
    r"http\.(.*\.)?(proxy|curloptresolve|sslcainfo|sslcapath|sslbackend|cookiefile|savecookies|followredirects)|remote\..*\.proxy"
    r"|url\..*\.(push)?insteadof",
    re.DOTALL,
)
_HELPER = re.compile(r"credential\.(.*\.)?helper", re.DOTALL)


def load(folder: bytes, git_dir: bytes, common_dir: bytes) -> Configuration:
    """The configuration that counts in a repository that was found in `folder`. Blocks.

    Raises `WorkspaceError`: `repository_invalid` where git can't read it, and as `git.run`.
    """
    fixed = [
        os.path.join(common_dir, b"config"),
        os.path.join(git_dir, b"config.worktree"),
        os.path.join(git_dir, b"HEAD"),
        *_users_files(),
    ]
    environment = read_environment(_READS, os.path.dirname(folder))
    files = set(fixed)
    while True:
        # looked at before git reads them: a change in between makes the answer old, never unseen
        seen = tuple((path, _look(path)) for path in sorted(files))
        arguments = ["config", "--list", "--includes", "--show-scope", "--show-origin", "-z"]
        output = run(arguments, cwd=folder, env=environment, stop=Stop(), limit=_MAX_LIST, seconds=10.0)
        if output.status != 0 or output.cut:
            raise WorkspaceError(
                "repository_invalid", "git's configuration can't be read: see output.", output=output.err[-1000:]
            )
        entries = tuple(_parse(output.out, folder))
        named = files.union(path for entry in entries for path in _files_of(entry))
        if named == files:
            break
        files = named
    says = run(["rev-parse", *_PLACE], cwd=folder, env=environment, stop=Stop(), seconds=10.0)
    return Configuration(entries, seen, says.out)


def git_says(git_dir: bytes, top: bytes | None) -> bytes:
    """What git answers where its repository is this one, with this working tree (None: a bare one)."""
    return git_dir + (b"\ntrue\n" if top is None else b"\nfalse\n" + top + b"\n")


def _parse(listed: bytes, folder: bytes) -> Iterator[Entry]:
    """Lines of `git config --list --show-scope --show-origin -z`: scope, origin and entry, each ended by NUL; in an entry the first
    line is the key."""
    fields = listed.split(b"\0")
    for at in range(0, len(fields) - 2, 3):
        scope, origin = os.fsdecode(fields[at]), fields[at + 1]
        key, separator, value = os.fsdecode(fields[at + 2]).partition("\n")
        if scope != "command":
            file = os.path.join(folder, origin.removeprefix(b"file:")) if origin.startswith(b"file:") else b""
            yield Entry(scope, os.path.normpath(file) if file else b"", key, value if separator else None)


def _files_of(entry: Entry) -> Iterator[bytes]:
    """The files that an entry tells of: the one it stands in, and the one it includes (that may not be there yet)."""
    if entry.origin:
        yield entry.origin
        if entry.value and _INCLUDE.fullmatch(entry.key):
            path = os.path.expanduser(os.fsencode(entry.value))
            yield os.path.join(os.path.dirname(entry.origin), path)


def _users_files() -> list[bytes]:
    """Where the user's and the machine's configuration may stand (git-config(1), FILES)."""
    home = os.path.expanduser("~")
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    named = [os.environ.get("GIT_CONFIG_GLOBAL", ""), os.environ.get("GIT_CONFIG_SYSTEM", "")]
    return [
        os.fsencode(path) for path in (*named, f"{home}/.gitconfig", f"{base}/git/config", "/etc/gitconfig") if path
    ]


def _look(path: bytes) -> tuple[int, int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
