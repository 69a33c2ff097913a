"""Which repository a path of the workspace lies in.

A repository is found as git finds it, from the path upwards, but by looks that start no program and open nothing that could wait.
What it consists of must lie in the workspace, or in a repository that knows this working tree as its own (a linked worktree, a
submodule): a `.git` that somebody made to lead elsewhere is refused. A repository that begins above the workspace is read only, and
all that is told of it is limited to the workspace's folder. Where git itself takes another repository for this one, neither counts.
"""

import dataclasses
import os
import re
import stat

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import WorkspaceRoot, kind_of, refusal

from .configuration import Configuration, git_says, is_true, load
from .confinement import alternates_must_stay, is_below, must_stay, outside
from .git import Stop
from .plain_files import invalid, line_of, must_be_a_file
from .repository import Repository

_HEAD = re.compile(rb"ref:\s*refs/.*|[0-9a-f]{40}([0-9a-f]{24})?\s*", re.DOTALL)
# What git opens in the folder of a repository: were one of these a FIFO, git would wait for ever.
_OPENED = (
    b"HEAD", b"config", b"config.worktree", b"index", b"packed-refs", b"shallow", b"info/exclude", b"info/attributes", b"info/sparse-checkout",
    b"info/grafts", b"objects/info/alternates", b"objects/info/commit-graph", b"MERGE_HEAD", b"CHERRY_PICK_HEAD", b"REVERT_HEAD",
    b"ORIG_HEAD", b"FETCH_HEAD", b"logs/HEAD", b"commondir", b"gitdir",
)  # fmt: skip


def find(root: WorkspaceRoot, path: bytes, known: "Known", stop: Stop) -> tuple[Repository, bytes]:
    """The repository that a path of the workspace lies in, and the path below its `root` (empty: the root itself). Blocks.

    The path need not exist. Raises `WorkspaceError`: `repository_not_found`, `repository_invalid`, `repository_outside_workspace`,
    `path_outside`, and as `git.run`.
    """
    workspace = os.fsencode(root.path)
    folder, rest = _folder_of(root, path)
    at = folder
    while True:
        found = _look(os.path.join(workspace, at) if at else workspace)
        if found is not None:
            below = folder[len(at) :].strip(b"/") if at else folder
            inner = b"/".join(part for part in (below, rest) if part)
            repository = _at(workspace, at, found, known)
            break
        if not at:
            repository = _above(workspace, known)
            inner = b"/".join(part for part in (folder, rest) if part)
            break
        at = os.path.dirname(at)
    return dataclasses.replace(repository, stop=stop, trusted=known.trusted), inner


def _folder_of(root: WorkspaceRoot, path: bytes) -> tuple[bytes, bytes]:
    """The real folder of the workspace that a path names or lies in, and the rest of the path: names that are no folder, or not there."""
    names: list[bytes] = []
    parts = path.split(b"/") if path else []
    if b".git" in parts:
        parts = parts[: parts.index(b".git")]
    while parts:
        try:
            with root.place(b"/".join(parts)) as place:
                status = place.status()
                if status is not None and stat.S_ISDIR(status.st_mode):
                    return place.path, b"/".join(names)
                above = os.path.dirname(place.path)
                return above, b"/".join([parts[-1], *names])
        except (FileNotFoundError, NotADirectoryError):
            names.insert(0, parts.pop())
        except OSError as fault:
            raise refusal(fault, path) from None
    return b"", b"/".join(names)


class Known:
    """Configurations that were read, used for as long as their files stay as they are, and whether repositories are `trusted`."""

    def __init__(self, *, trusted: bool = True) -> None:
        self.trusted = trusted
        self._configurations: dict[tuple[bytes, bytes, bytes], Configuration] = {}

    def configuration(self, folder: bytes, git_dir: bytes, common_dir: bytes) -> Configuration:
        """The configuration of a repository. Blocks where it must be read."""
        key = folder, git_dir, common_dir
        found = self._configurations.get(key)
        if found is None or not found.still_holds():
            found = load(folder, git_dir, common_dir)
            if len(self._configurations) > 200:
                self._configurations.clear()
            self._configurations[key] = found
        return found


def _at(workspace: bytes, at: bytes, git_dir: bytes, known: Known) -> Repository:
    """The repository whose `.git` (or which itself) was found in the folder `at` of the workspace."""
    folder = os.path.join(workspace, at) if at else workspace
    common_dir = _common(git_dir)
    inside = is_below(git_dir, workspace)
    if inside:
        must_stay(git_dir, workspace)
        if not is_below(common_dir, workspace):
            raise outside()
        must_stay(common_dir, workspace)
        if not known.trusted:
            alternates_must_stay(os.path.join(common_dir, b"objects"), workspace)
    configuration = known.configuration(folder, git_dir, common_dir)
    files = _files_with_place(configuration, git_dir, common_dir)
    worktree = configuration.of_files("core.worktree", files)
    top = os.path.realpath(os.path.join(git_dir, os.fsencode(worktree))) if worktree else folder
    if not inside and not (_names_back(git_dir, folder) or (worktree and top == folder)):
        raise outside()
    found = Repository(top, git_dir, common_dir, at, configuration=configuration)
    bare = git_dir == folder or is_true(configuration.of_files("core.bare", files))
    if configuration.place != git_says(git_dir, None if bare else top):
        raise invalid(os.path.join(folder, b".git"), "is not what git takes for it")
    if bare:
        return dataclasses.replace(found, top=folder, bare=True)
    if top == folder:
        # the list of ceilings is parted by colons: of such a folder git would look further up
        return dataclasses.replace(found, away=b":" in top)
    if is_below(top, workspace):
        return dataclasses.replace(found, root=_relative(top, workspace), away=True)
    if is_below(workspace, top):
        return dataclasses.replace(found, root=b"", prefix=_relative(workspace, top) + b"/", writable=False, away=True)
    raise outside()


def _files_with_place(configuration: Configuration, git_dir: bytes, common_dir: bytes) -> list[bytes]:
    """The files in which git looks for where the working tree is: the repository's own, and never what they include. Of a linked
    working tree the common one has no say (setup.c, check_repository_format_gently)."""
    files = [] if common_dir != git_dir else [os.path.join(git_dir, b"config")]
    if configuration.flag("extensions.worktreeconfig"):
        files.append(os.path.join(git_dir, b"config.worktree"))
    return files


def _above(workspace: bytes, known: Known) -> Repository:
    """The repository that the workspace lies in, one that begins above it."""
    top = workspace
    while top != b"/":
        top = os.path.dirname(top)
        git_dir = _look(top)
        if git_dir is not None and git_dir != top:
            common_dir = _common(git_dir)
            configuration = known.configuration(top, git_dir, common_dir)
            files = _files_with_place(configuration, git_dir, common_dir)
            if is_true(configuration.of_files("core.bare", files)) or configuration.of_files("core.worktree", files):
                break
            if configuration.place != git_says(git_dir, top):
                raise invalid(os.path.join(top, b".git"), "is not what git takes for it")
            prefix = _relative(workspace, top) + b"/"
            return Repository(top, git_dir, common_dir, b"", prefix, writable=False, configuration=configuration)
    raise WorkspaceError(
        "repository_not_found",
        "There is no git repository here. Make one with POST …/init, or get one with POST …/clone.",
    )


def _look(folder: bytes) -> bytes | None:
    """The real folder of the repository that begins in this folder; None where none does. Raises `repository_invalid`."""
    entry = os.path.join(folder, b".git")
    try:
        mode = os.stat(entry).st_mode
    except OSError:
        return folder if _is_git_dir(folder) else None
    if stat.S_ISDIR(mode):
        if _is_git_dir(entry):
            return os.path.realpath(entry)
        return folder if _is_git_dir(folder) else None
    if not stat.S_ISREG(mode):
        raise invalid(entry, f"is {kind_of(mode)}")
    line = line_of(entry)
    if line is None or not line.startswith(b"gitdir: "):
        raise invalid(entry, "does not say where the repository is")
    target = os.path.realpath(os.path.join(folder, line.removeprefix(b"gitdir: ")))
    if not _is_git_dir(target):
        raise invalid(entry, "leads to no repository")
    return target


def _is_git_dir(folder: bytes) -> bool:
    """Whether this is the folder of a repository, as git itself decides (gitrepository-layout(5)). Raises `repository_invalid`."""
    try:
        mode = os.lstat(os.path.join(folder, b"HEAD")).st_mode
    except OSError:
        return False
    common = _common(folder)
    if not all(os.path.isdir(os.path.join(common, name)) for name in (b"objects", b"refs")):
        return False
    for place in {folder, common}:
        for name in _OPENED:
            must_be_a_file(os.path.join(place, name))
    return stat.S_ISLNK(mode) or _HEAD.fullmatch(line_of(os.path.join(folder, b"HEAD")) or b"") is not None


def _common(git_dir: bytes) -> bytes:
    line = line_of(os.path.join(git_dir, b"commondir"))
    return os.path.realpath(os.path.join(git_dir, line)) if line else git_dir


def _names_back(git_dir: bytes, folder: bytes) -> bool:
    """Whether a repository elsewhere knows this folder as a linked worktree of its own (git-worktree(1), `gitdir`)."""
    line = line_of(os.path.join(git_dir, b"gitdir"))
    return line is not None and os.path.realpath(os.path.join(git_dir, line)) == os.path.join(folder, b".git")


def _relative(path: bytes, folder: bytes) -> bytes:
    return path[len(folder.rstrip(b"/")) :].strip(b"/")
