"""One repository, as a request sees it, and how git is asked about it.

Two kinds of paths: the client's are relative to `root`, git's to `top`; `to_git` and `from_git` lead from one to the other.
"""

import functools
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from workspace_runtime.errors import WorkspaceError

from .configuration import Configuration, Settings
from .failures import failure
from .git import MAX_OUTPUT, READ_SECONDS, Argument, Output, Stop, read_environment, run, succeeded, write_environment
from .overlays import for_reads, for_writes
from .plain_files import must_not_wait

_PROMISED = re.compile(r"extensions\.partialclone|remote\..*\.(promisor|partialclonefilter)", re.DOTALL)
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
    trusted: bool = (
        True  # in writes its hooks, filters and merge drivers run; in reads it may fetch what a partial clone lacks
    )
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
        """Arguments that limit a command to what is the workspace's: `--`, so that no name before it is taken for a file's, and the
        folder where it is not all."""
        return ["--", self.prefix] if self.prefix else ["--"]

    def paths(self, paths: Sequence[bytes]) -> list[Argument]:
        """Arguments that limit a command to these paths of the client's; none means all that is the workspace's."""
        return ["--", *map(self.to_git, paths)] if paths else self.limits

    # --- asking git -------------------------------------------------------------------------------------------------------

    @property
    def _where(self) -> dict[str, str]:
        return {"GIT_DIR": os.fsdecode(self.git_dir), "GIT_WORK_TREE": os.fsdecode(self.top)} if self.away else {}

    def environment(self, settings: Settings = []) -> dict[str, str]:  # noqa: B006 - never changed
        """The environment of a read."""
        laid_over = [*for_reads(self.configuration, self.top), *settings]
        environment = read_environment(laid_over, os.path.dirname(self.top))
        if not self.trusted:
            environment |= {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1"}
        return environment | self._where

    def environment_for_writes(
        self,
        *,
        network: bool = False,
        settings: Settings = [],  # noqa: B006 - never changed
    ) -> dict[str, str]:
        """The environment of a write. `network`: it speaks with another repository."""
        laid_over = [*for_writes(self.configuration, self.top, trusted=self.trusted), *settings]
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
        look = None if self.bare else functools.partial(must_not_wait, self.top)
        return run(
            arguments,
            cwd=self.top,
            env=environment,
            stop=self.stop,
            input=input,
            limit=limit,
            seconds=seconds,
            look=look,
        )

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
            raise self.failed(output)
        if output.cut:
            raise WorkspaceError("git_output_too_large", "git has more to say than one answer holds: ask for less.")
        return output.out

    def failed(self, output: Output) -> WorkspaceError:
        """What a read means that did not succeed."""
        fault = failure(output.err, network=self.partial)
        if fault.code == "remote_url_refused":
            return WorkspaceError(
                "object_missing",
                "The repository is a partial clone of a folder of this machine, from where reads fetch nothing, since that would run what"
                " that one says. Get the rest in a terminal: git fetch --refetch --no-filter.",
                **fault.data,
            )
        return fault

    @property
    def partial(self) -> bool:
        """Whether reading it may have git fetch what it lacks (git-clone(1), `--filter`)."""
        return any(_PROMISED.fullmatch(entry.key) for entry in self.configuration.entries)

    def trees(self) -> list[bytes]:
        """The real places of all its working trees, the main one's first. Blocks. Raises as `read`."""
        records = self.read(["worktree", "list", "--porcelain", "-z"]).split(b"\0")
        kind = b"worktree "
        return [os.path.realpath(record.removeprefix(kind)) for record in records if record.startswith(kind)]

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
