"""Which names git ignores, without starting git: a repository's configuration can make git run programs.

The rules are git's (gitignore(5)): a folder's own `.gitignore` before those above it, then `.git/info/exclude`, then the user's
global file; within a file the last pattern that fits decides; what lies in an ignored folder is ignored. A nested repository has
rules of its own. Patterns are read by `pathspec`, and asked level by level as git does: of each name by itself, never of what is
below a name that fits. What the index holds is not asked: a file that is tracked although a
pattern fits counts as ignored, as it does for ripgrep.

Without a repository around, three folders that tools fill count as ignored: `node_modules`, `.venv`, `__pycache__`.
"""

import functools
import os
import re
import stat
import subprocess
from dataclasses import dataclass

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from workspace_runtime.paths import WorkspaceRoot

WITHOUT_GIT = ("node_modules/", ".venv/", "__pycache__/")
MAX_RULES_BYTES = 1024 * 1024

# a file's patterns, the last one first: what a whole path must be, a folder's with a `/` at its end, and whether it is ignored then
_Patterns = tuple[tuple[re.Pattern[str], bool], ...]
# a file's patterns, and the length of the path (from the top of the rules) up to the folder they are relative to
_Layer = tuple[_Patterns, int]
# of a pattern that ends with `/**` pathspec would take the folder before it too, and of these two any part of a path
_BELOW = re.compile(r"(?<=/)\*\*(?=/?$)")
_WHOLE = {".": ".*", "(?P<ps_d>/)": ".*/"}


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that hold in one folder. `path` leads to it from the topmost folder that has rules: empty, or ending in `/`."""

    path: str
    layers: tuple[_Layer, ...]

    def ignores(self, name: str, *, is_dir: bool) -> bool:
        """Whether git ignores this name in the folder. `.git` itself is always ignored. `name` as `os.scandir` gives it."""
        if name == ".git":
            return True
        path = f"{self.path}{name}/" if is_dir else f"{self.path}{name}"
        for patterns, start in reversed(self.layers):
            below = path[start:]
            for pattern, ignored in patterns:
                if pattern.fullmatch(below):
                    return ignored
        return False

    def below(self, name: str, folder: int) -> "Rules":
        """The rules in the sub-folder `name`, of which `folder` is an open descriptor."""
        rules = Rules(f"{self.path}{name}/", self.layers)
        return rules.here(folder)

    def here(self, folder: int) -> "Rules":
        """These rules with what the folder's own files add: `.gitignore`, and a nested repository's own."""
        if _has(folder, ".git"):
            layers: tuple[_Layer, ...] = (*_global_layers(len(self.path)), *_exclude_layers(folder, len(self.path)))
        else:
            layers = self.layers
        own = _read(folder, ".gitignore")
        if own:
            layers = (*layers, (own, len(self.path)))
        return self if layers is self.layers else Rules(self.path, layers)


def root_rules(root: WorkspaceRoot) -> Rules:
    """The rules in the workspace's root; where it lies inside a repository, with those of the folders above it.

    A root that the repository above ignores counts as being outside of it: or nothing in it would count.
    """
    above: list[str] = []  # names from the repository's top down to the root
    top = str(root.path)
    while not os.path.lexists(os.path.join(top, ".git")):
        parent, name = os.path.split(top)
        if parent == top:
            return _alone(root)
        above.insert(0, name)
        top = parent
    rules = Rules("", ())
    folder = top
    for name in above:
        try:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return _alone(root)
        try:
            rules = rules.here(opened)
        finally:
            os.close(opened)
        if rules.ignores(name, is_dir=True):
            return _alone(root)
        rules = Rules(f"{rules.path}{name}/", rules.layers)
        folder = os.path.join(folder, name)
    return rules.here(root.fd)


def _alone(root: WorkspaceRoot) -> Rules:
    return Rules("", ((_patterns("\n".join(WITHOUT_GIT)), 0),)).here(root.fd)


def _has(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


def _read(folder: int, name: str) -> _Patterns | None:
    """The patterns of a file, None where there is none. As git, never through a link; never a FIFO."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return None
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    with os.fdopen(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            return None
        return _patterns(os.fsdecode(file.read(MAX_RULES_BYTES)))


@functools.lru_cache(maxsize=512)
def _patterns(text: str) -> _Patterns:
    lines = [line.rstrip("\r") for line in text.removeprefix("\ufeff").split("\n")]
    patterns = []
    for line in reversed(lines):
        try:
            regex, ignored = GitIgnoreSpecPattern.pattern_to_regex(_BELOW.sub("**/*", line))
        except ValueError:  # git takes no pattern as an error: it fits nothing
            continue
        if regex is not None and ignored is not None:
            patterns.append((re.compile(_WHOLE.get(regex, regex), re.DOTALL), ignored))
    return tuple(patterns)


def _exclude_layers(folder: int, start: int) -> tuple[_Layer, ...]:
    """`.git/info/exclude` of the repository whose top is `folder`; nothing where `.git` is a file (a worktree, a submodule)."""
    try:
        info = os.open(".git/info", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return ()
    try:
        patterns = _read(info, "exclude")
    finally:
        os.close(info)
    return ((patterns, start),) if patterns else ()


def _global_layers(start: int) -> tuple[_Layer, ...]:
    """The user's global file."""
    try:
        with open(global_file(), "rb") as file:
            patterns = _patterns(os.fsdecode(file.read(MAX_RULES_BYTES)))
    except OSError:
        return ()
    return ((patterns, start),) if patterns else ()


@functools.cache
def global_file() -> str:
    """`core.excludesFile` of the user's (never a repository's) configuration, or its default place."""
    home = os.path.expanduser("~")
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    default = os.path.join(base, "git", "ignore")
    command = ("git", "config", "--global", "--type=path", "--get", "core.excludesFile")
    try:
        # in `/`, so that no repository is looked for
        found = subprocess.run(command, cwd="/", capture_output=True, timeout=5, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return default
    return os.fsdecode(found.stdout.rstrip(b"\n")) if found.returncode == 0 and found.stdout.strip() else default
