"""What git's configuration says for one repository.

git is asked once (`git config --list` runs no program), and again when a file that has a say has changed: they are known by name,
those included too, and compared by what stands in them, since not every change of a file changes its times. What is laid over it
when git runs is made in `overlays.py`.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workspace_runtime.errors import WorkspaceError

from .credentials import redact
from .failures import failure
from .git import Stop, read_environment, run
from .plain_files import open_file

Settings = list[tuple[str, str]]
# A file as it was: its path, and what tells a change. None: there was none that can be read.
Look = tuple[bytes, int, int, int, int]
Seen = tuple[bytes, Look | None]

_OWN = ("local", "worktree")
_MAX_LIST = 16 * 1024 * 1024
_PLACE = ("--absolute-git-dir", "--is-bare-repository", "--show-toplevel")
_INCLUDE = re.compile(r"include(if\..+)?\.path", re.DOTALL)
_IN_SOME_CASES = re.compile(r"includeif\..+\.path", re.DOTALL)
_MAX_IN_SOME_CASES = 20
_MAX_COMPARED = 1024 * 1024
# Only git knows what this is, so that the file it leads to can't be compared.
_PREFIX = "%(prefix)/"


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
    """All lines that count, in git's order: the last one wins. `seen`: the files that had a say.

    `dormant`: what the repository's own configuration includes in some cases, whether or not this is one of them.
    """

    entries: tuple[Entry, ...] = ()
    dormant: tuple[Entry, ...] = ()
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
        """The lines whose whole key fits, of the repository's own scopes (with the `dormant`) or of the user's."""
        for entry in (*self.entries, *self.dormant):
            if (entry.scope in _OWN) == own and pattern.fullmatch(entry.key):
                yield entry

    def still_holds(self) -> bool:
        """Whether no file that had a say has changed."""
        return all(_look(path) == before for path, before in self.seen)


def load(folder: bytes, git_dir: bytes, common_dir: bytes) -> Configuration:
    """The configuration that counts in a repository that was found in `folder`. Blocks.

    Raises `WorkspaceError`: `repository_invalid` where git can't read it, what git says where it does not take the folder for a
    repository (`repository_not_owned`), and as `git.run`.
    """
    fixed = [
        os.path.join(common_dir, b"config"),
        os.path.join(git_dir, b"config.worktree"),
        os.path.join(git_dir, b"HEAD"),
        *_users_files(),
    ]
    environment = read_environment([], os.path.dirname(folder))
    files = set(fixed)
    while True:
        # looked at before git reads them: a change in between makes the answer old, never unseen
        seen = [(path, _look(path)) for path in sorted(files)]
        listed = _listed(folder, environment, ["--includes"])
        entries = tuple(entry for entry in listed if entry.scope != "command")  # what we have laid over it
        dormant = _in_some_cases(entries, folder, environment)
        all_of_them = (*entries, *dormant)
        named = files.union(path for entry in all_of_them for path in _files_of(entry))
        if named == files:
            break
        files = named
    if any(_is_include(entry) and (entry.value or "").startswith(_PREFIX) for entry in all_of_them):
        seen.append((b"", (b"", 0, 0, 0, 0)))  # never the same again
    says = run(["rev-parse", *_PLACE], cwd=folder, env=environment, stop=Stop(), seconds=10.0)
    if not says.out and git_dir != b"/":
        raise failure(says.err)
    return Configuration(entries, dormant, tuple(seen), says.out)


def _listed(folder: bytes, environment: dict[str, str], how: list[str | bytes]) -> tuple[Entry, ...]:
    arguments = ["config", "--list", "--show-scope", "--show-origin", "-z", *how]
    output = run(arguments, cwd=folder, env=environment, stop=Stop(), limit=_MAX_LIST, seconds=10.0)
    if output.status != 0 or output.cut:
        raise WorkspaceError(
            "repository_invalid",
            "git's configuration can't be read: see output.",
            output=redact(output.err, None)[-1000:],
        )
    return tuple(_parse(output.out, folder))


def _in_some_cases(entries: tuple[Entry, ...], folder: bytes, environment: dict[str, str]) -> tuple[Entry, ...]:
    """What stands in the files that own entries include by `includeIf`, and in those that they include."""
    found: list[Entry] = []
    todo = [entry for entry in entries if entry.scope in _OWN and _IN_SOME_CASES.fullmatch(entry.key)]
    read: set[bytes] = set()
    while todo:
        path = _included(todo.pop())
        if path is None or path in read:
            continue
        read.add(path)
        if len(read) > _MAX_IN_SOME_CASES:
            raise WorkspaceError("repository_invalid", "The repository's configuration includes too many files.")
        if open_file(path) is not None:
            listed = [
                dataclasses.replace(entry, scope="local") for entry in _listed(folder, environment, ["--file", path])
            ]
            found += listed
            todo += listed
    return tuple(found)


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
        file = os.path.join(folder, origin.removeprefix(b"file:")) if origin.startswith(b"file:") else b""
        yield Entry(scope, os.path.normpath(file) if file else b"", key, value if separator else None)


def _is_include(entry: Entry) -> bool:
    return _INCLUDE.fullmatch(entry.key) is not None


def _included(entry: Entry) -> bytes | None:
    """The file that an entry includes (that may not be there yet); None where it is none that includes."""
    if not (entry.origin and entry.value and _is_include(entry)):
        return None
    return os.path.join(os.path.dirname(entry.origin), os.path.expanduser(os.fsencode(entry.value)))


def _files_of(entry: Entry) -> Iterator[bytes]:
    """The files that an entry tells of: the one it stands in, and the one it includes."""
    if entry.origin:
        yield entry.origin
    if (included := _included(entry)) is not None:
        yield included


def _users_files() -> list[bytes]:
    """Where the user's and the machine's configuration may stand (git-config(1), FILES)."""
    home = os.path.expanduser("~")
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    named = [os.environ.get("GIT_CONFIG_GLOBAL", ""), os.environ.get("GIT_CONFIG_SYSTEM", "")]
    return [
        os.fsencode(path) for path in (*named, f"{home}/.gitconfig", f"{base}/git/config", "/etc/gitconfig") if path
    ]


def _look(path: bytes) -> Look | None:
    opened = open_file(path)
    if opened is None:
        return None
    with opened as file:
        status = os.fstat(file.fileno())
        digest = hashlib.sha256(file.read(_MAX_COMPARED)).digest()
        return digest, status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
