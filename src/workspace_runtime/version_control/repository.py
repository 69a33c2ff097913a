"""Which repository a path of the workspace lies in, and how git is asked about it.

A repository is found as git finds it, from the path upwards, but by looks that start no program and open nothing that could wait.
What it consists of must lie in the workspace, or in a repository that knows this working tree as its own (a linked worktree, a
submodule): a `.git` that somebody made to lead elsewhere is refused. A repository that begins above the workspace is read only, and
all that is told of it is limited to the workspace's folder.

Two kinds of paths: the client's are relative to `root`, git's to `top`; `to_git` and `from_git` lead from one to the other.
"""

import dataclasses
import os
import re
import stat
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import WorkspaceRoot, kind_of, refusal, shown

from .configuration import Configuration, Settings, git_says, is_true, load
from .failures import failure
from .git import MAX_OUTPUT, READ_SECONDS, Argument, Output, Stop, read_environment, run, succeeded, write_environment

_HEAD = re.compile(rb"ref:\s*refs/.*|[0-9a-f]{40}([0-9a-f]{24})?\s*", re.DOTALL)
# What git opens in the folder of a repository: were one of these a FIFO, git would wait for ever.
_OPENED = (
    b"HEAD", b"config", b"config.worktree", b"index", b"packed-refs", b"shallow", b"info/exclude", b"info/attributes", b"info/sparse-checkout",
    b"info/grafts", b"objects/info/alternates", b"objects/info/commit-graph", b"MERGE_HEAD", b"CHERRY_PICK_HEAD", b"REVERT_HEAD",
    b"ORIG_HEAD", b"FETCH_HEAD", b"logs/HEAD", b"commondir", b"gitdir",
)  # fmt: skip
_FOLDERS = (
    b"objects", b"objects/info", b"objects/pack", b"refs", b"refs/heads", b"refs/remotes", b"refs/tags", b"logs", b"logs/refs", b"info",
    b"modules", b"worktrees", b"rebase-merge", b"rebase-apply", b"sequencer",
)  # fmt: skip
_MAX_LINK = 8192
_ARGUMENT_BYTES = 256 * 1024  # of the 2 MB that the system takes


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository, as a request sees it. All paths are bytes, absolute ones real."""

    top: bytes  # the working tree's top; of a bare one its own folder
    git_dir: bytes
    common_dir: bytes  # where refs and objects are: for a linked worktree the main repository's
    root: bytes  # relative to the workspace: the folder that the client's paths start from
    prefix: bytes = b""  # what of the repository the workspace has: all, or a folder of it, ending in `/`
    bare: bool = False
    writable: bool = True
    away: bool = False  # git would not find it from `top` by itself
    configuration: Configuration = field(default_factory=Configuration)
    stop: Stop = field(default_factory=Stop, compare=False)

    @property
    def places(self) -> tuple[bytes, ...]:
        """What makes it this repository and no other."""
        return self.top, self.git_dir, self.common_dir, self.root, self.prefix

    # --- paths ----------------------------------------------------------------------------------------------------------

    def to_git(self, path: bytes) -> bytes:
        """A client's path as git names it."""
        return self.prefix + path

    def from_git(self, path: bytes) -> bytes | None:
        """A path of git's as the client names it; None where it is not the workspace's."""
        if not self.prefix:
            return path
        return path[len(self.prefix) :] if path.startswith(self.prefix) else None

    @property
    def limits(self) -> list[Argument]:
        """Arguments that limit a command to what is the workspace's: nothing, or `--` and the folder."""
        return ["--", self.prefix] if self.prefix else []

    def paths(self, paths: Sequence[bytes]) -> list[Argument]:
        """Arguments that limit a command to these paths of the client's; none means all that is the workspace's."""
        return ["--", *map(self.to_git, paths)] if paths else self.limits

    # --- asking git -------------------------------------------------------------------------------------------------------

    @property
    def _where(self) -> dict[str, str]:
        return {"GIT_DIR": os.fsdecode(self.git_dir), "GIT_WORK_TREE": os.fsdecode(self.top)} if self.away else {}

    def environment(self, settings: Settings = []) -> dict[str, str]:  # noqa: B006 - never changed
        """The environment of a read."""
        environment = read_environment([*self.configuration.for_reads(), *settings], os.path.dirname(self.top))
        return environment | self._where

    def environment_for_writes(
        self,
        *,
        trusted: bool,
        network: bool = False,
        settings: Settings = [],  # noqa: B006 - never changed
    ) -> dict[str, str]:
        """The environment of a write. `trusted`: the repository's hooks, filters and merge drivers run. `network`: it speaks with
        another repository."""
        laid_over = [*self.configuration.for_writes(trusted=trusted), *settings]
        return write_environment(laid_over, os.path.dirname(self.top), network=network) | self._where

    def run(
        self,
        arguments: Sequence[Argument],
        *,
        input: bytes | None = None,
        limit: int = MAX_OUTPUT,
        seconds: float = READ_SECONDS,
        settings: Settings = [],  # noqa: B006 - never changed
        env: Mapping[str, str] | None = None,
    ) -> Output:
        """Run a git command that only reads. Blocks. Raises as `git.run`."""
        environment = {**self.environment(settings), **(env or {})}
        return run(arguments, cwd=self.top, env=environment, stop=self.stop, input=input, limit=limit, seconds=seconds)

    def read(
        self,
        arguments: Sequence[Argument],
        *,
        ok: Container[int] = (0,),
        input: bytes | None = None,
        settings: Settings = [],  # noqa: B006 - never changed
    ) -> bytes:
        """As `run`; the output of a command that must succeed. Raises `WorkspaceError` also when git failed, or wrote too much."""
        output = self.run(arguments, input=input, settings=settings)
        if not succeeded(output, ok):
            raise failure(output.err)
        if output.cut:
            raise WorkspaceError("git_output_too_large", "git has more to say than one answer holds: ask for less.")
        return output.out

    def need_worktree(self) -> None:
        """Raises `repository_bare` where there is no working tree."""
        if self.bare:
            raise WorkspaceError("repository_bare", "The repository is bare: it has no working tree.")

    def need_write(self) -> None:
        """Raises `repository_outside_workspace` where the repository may only be read."""
        if not self.writable:
            raise WorkspaceError(
                "repository_outside_workspace",
                "The repository begins above the workspace: it can only be read from here.",
            )


def portions(paths: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Paths in as many lists as command lines must hold them; none for no paths."""
    part: list[bytes] = []
    size = 0
    for path in paths:
        if part and size + len(path) > _ARGUMENT_BYTES:
            yield part
            part, size = [], 0
        part.append(path)
        size += len(path) + 32
    if part:
        yield part


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
    return dataclasses.replace(repository, stop=stop), inner


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
    """Configurations that were read, by the repository's folder: used for as long as their files stay as they are."""

    def __init__(self) -> None:
        self._configurations: dict[tuple[bytes, bytes], Configuration] = {}

    def configuration(self, folder: bytes, git_dir: bytes, common_dir: bytes) -> Configuration:
        """The configuration of a repository. Blocks where it must be read."""
        found = self._configurations.get((folder, git_dir))
        if found is None or not found.still_holds():
            found = load(folder, git_dir, common_dir)
            if len(self._configurations) > 200:
                self._configurations.clear()
            self._configurations[folder, git_dir] = found
        return found


def _at(workspace: bytes, at: bytes, git_dir: bytes, known: Known) -> Repository:
    """The repository whose `.git` (or which itself) was found in the folder `at` of the workspace."""
    folder = os.path.join(workspace, at) if at else workspace
    common_dir = _common(git_dir)
    inside = _is_below(git_dir, workspace)
    if inside:
        _must_stay(git_dir, workspace)
        if not _is_below(common_dir, workspace):
            raise _outside()
        _must_stay(common_dir, workspace)
    configuration = known.configuration(folder, git_dir, common_dir)
    files = _files_with_place(configuration, git_dir, common_dir)
    worktree = configuration.of_files("core.worktree", files)
    top = os.path.realpath(os.path.join(git_dir, os.fsencode(worktree))) if worktree else folder
    if not inside and not (_names_back(git_dir, folder) or (worktree and top == folder)):
        raise _outside()
    found = Repository(top, git_dir, common_dir, at, configuration=configuration)
    bare = git_dir == folder or is_true(configuration.of_files("core.bare", files))
    if configuration.place not in (b"", git_says(git_dir, None if bare else top)):
        raise _invalid(os.path.join(folder, b".git"), "is not what git takes for it")
    if bare:
        return dataclasses.replace(found, top=folder, bare=True)
    if top == folder:
        # the list of ceilings is parted by colons: of such a folder git would look further up
        return dataclasses.replace(found, away=b":" in top)
    if _is_below(top, workspace):
        return dataclasses.replace(found, root=_relative(top, workspace), away=True)
    if _is_below(workspace, top):
        return dataclasses.replace(found, root=b"", prefix=_relative(workspace, top) + b"/", writable=False, away=True)
    raise _outside()


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
            prefix = _relative(workspace, top) + b"/"
            return Repository(top, git_dir, common_dir, b"", prefix, writable=False, configuration=configuration)
    raise WorkspaceError(
        "repository_not_found",
        "There is no git repository here. Make one with POST …/init, or get one with POST …/clone.",
    )


def _must_stay(folder: bytes, workspace: bytes) -> None:
    """Raises `repository_outside_workspace` where something that git reads or writes in its folder is a link out of the workspace."""
    for name in (*_OPENED, *_FOLDERS):
        path = os.path.join(folder, name)
        if os.path.islink(path) and not _is_below(os.path.realpath(path), workspace):
            raise _outside()


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
        raise _invalid(entry, f"is {kind_of(mode)}")
    line = line_of(entry)
    if line is None or not line.startswith(b"gitdir: "):
        raise _invalid(entry, "does not say where the repository is")
    target = os.path.realpath(os.path.join(folder, line.removeprefix(b"gitdir: ")))
    if not _is_git_dir(target):
        raise _invalid(entry, "leads to no repository")
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


def must_be_a_file(path: bytes) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise _invalid(path, f"is {kind_of(mode)}")


def _common(git_dir: bytes) -> bytes:
    line = line_of(os.path.join(git_dir, b"commondir"))
    return os.path.realpath(os.path.join(git_dir, line)) if line else git_dir


def _names_back(git_dir: bytes, folder: bytes) -> bool:
    """Whether a repository elsewhere knows this folder as a linked worktree of its own (git-worktree(1), `gitdir`)."""
    line = line_of(os.path.join(git_dir, b"gitdir"))
    return line is not None and os.path.realpath(os.path.join(git_dir, line)) == os.path.join(folder, b".git")


def line_of(path: bytes) -> bytes | None:
    """The text of a short file without the end of its line; None where there is none. Never waits."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            return None
        return os.read(opened, _MAX_LINK).rstrip(b"\r\n")
    except OSError:
        return None
    finally:
        os.close(opened)


def _is_below(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def _relative(path: bytes, folder: bytes) -> bytes:
    return path[len(folder.rstrip(b"/")) :].strip(b"/")


def _invalid(path: bytes, what: str) -> WorkspaceError:
    name = b"/".join(path.split(b"/")[-2:])
    return WorkspaceError("repository_invalid", f"{shown(name)!r} of the repository {what}.")


def _outside() -> WorkspaceError:
    return WorkspaceError(
        "repository_outside_workspace", "The repository or its working tree lies outside the workspace."
    )
