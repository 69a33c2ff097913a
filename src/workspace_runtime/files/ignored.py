"""Which names git ignores, without starting git: a repository's configuration can make git run programs.

The rules are git's (gitignore(5)): a folder's own `.gitignore` before those above it, then `.git/info/exclude`, then the user's
global file; within a file the last pattern that fits decides; what lies in an ignored folder is ignored. A nested repository has
rules of its own. Patterns are matched by `pathspec`. What the index holds is not asked: a file that is tracked although a
pattern fits counts as ignored, as it does for ripgrep.

Without a repository around, three folders that tools fill count as ignored: `node_modules`, `.venv`, `__pycache__`.
"""

import functools
import os
import stat
import subprocess
from dataclasses import dataclass

from pathspec import GitIgnoreSpec

from workspace_runtime.paths import WorkspaceRoot

WITHOUT_GIT = ("node_modules/", ".venv/", "__pycache__/")
MAX_RULES_BYTES = 1024 * 1024

# a file's patterns, and the length of the path (from the top of the rules) up to the folder they are relative to
_Layer = tuple[GitIgnoreSpec, int]


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
        for spec, start in reversed(self.layers):
            fits = spec.check_file(path[start:]).include
            if fits is not None:
                return fits
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
        own = _read_spec(folder, ".gitignore")
        if own is not None:
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
    return Rules("", ((GitIgnoreSpec.from_lines(WITHOUT_GIT), 0),)).here(root.fd)


def _has(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


def _read_spec(folder: int, name: str) -> GitIgnoreSpec | None:
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
        return _spec(os.fsdecode(file.read(MAX_RULES_BYTES)))


@functools.lru_cache(maxsize=512)
def _spec(text: str) -> GitIgnoreSpec | None:
    lines = [line.rstrip("\r") for line in text.removeprefix("\ufeff").split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    patterns = []
    for line in lines:
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError:  # git takes no pattern as an error: it fits nothing
            continue
        patterns.append(line)
    return GitIgnoreSpec.from_lines(patterns) if patterns else None


def _exclude_layers(folder: int, start: int) -> tuple[_Layer, ...]:
    """`.git/info/exclude` of the repository whose top is `folder`; nothing where `.git` is a file (a worktree, a submodule)."""
    try:
        info = os.open(".git/info", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return ()
    try:
        spec = _read_spec(info, "exclude")
    finally:
        os.close(info)
    return ((spec, start),) if spec is not None else ()


def _global_layers(start: int) -> tuple[_Layer, ...]:
    """The user's global file."""
    try:
        with open(global_file(), "rb") as file:
            spec = _spec(os.fsdecode(file.read(MAX_RULES_BYTES)))
    except OSError:
        return ()
    return ((spec, start),) if spec is not None else ()


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
