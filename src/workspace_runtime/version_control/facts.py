"""What of a repository is told when it changes, and its reading: the state that `status` answers, and all refs.

The state is asked for as a client asks, so a reading and clients that ask in the same moment share one run of git.
"""

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from typing import Any

import orjson

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import path_bytes, shown

from .git import Argument
from .layout import Followed, Kept, kept
from .repository import Repository
from .room import VersionControl
from .submodules import submodules

# What can change, as clients are told it.
CHANGES = ("status", "head", "branch", "refs", "stash", "operation")
_NO_REPOSITORY = ("repository_not_found", "repository_invalid", "repository_outside_workspace", "path_outside")


@dataclass(frozen=True, slots=True)
class Facts:
    """One reading. `head` as `status` has it, and `etag` its entity tag; both None where there is no repository (any more)."""

    etag: str | None = None
    head: dict[str, Any] | None = None
    operation: dict[str, Any] | None = None
    stashes: int = 0
    refs: bytes = b""  # a digest of all but the stash
    stash: bytes = b""
    failed: bool = False

    @classmethod
    def unknown(cls, before: "Facts | None") -> "Facts":
        """What is told where the state could not be read: whoever asks will get the reason."""
        return dataclasses.replace(before or cls(), etag=None, failed=True)

    def changed(self, before: "Facts | None") -> list[str]:
        """Which of `CHANGES` differ from an earlier reading; all where there was none, or where the repository came or went."""
        if before is None or (before.head is None) != (self.head is None):
            return list(CHANGES)
        head, old = self.head or {}, before.head or {}
        differs = {
            "status": (self.etag, self.failed) != (before.etag, before.failed),
            "head": head.get("oid") != old.get("oid"),
            "branch": head.get("branch") != old.get("branch"),
            "refs": self.refs != before.refs,
            "stash": (self.stash, self.stashes) != (before.stash, before.stashes),
            "operation": self.operation != before.operation,
        }
        return [name for name in CHANGES if differs[name]]


@dataclass(frozen=True, slots=True)
class _Refs:
    own: tuple[bytes, ...]
    shared: bytes | None
    refs: bytes
    stash: bytes


class Reading:
    """Reads one repository, which begins at `root` in the workspace: another one, further up, does not count."""

    def __init__(self, room: VersionControl, root: bytes) -> None:
        self._room = room
        self._root = root
        self._entry = os.path.join(room.root_bytes, root, b".git") if root else os.path.join(room.root_bytes, b".git")
        self._found = _Refs((self._entry,), None, b"", b"")
        self._kept: Kept | None = None
        self.unseen = False  # nobody tells of changes of its files

    @property
    def own(self) -> tuple[bytes, ...]:
        """Where the repository begins, or would, and its folder."""
        return self._found.own

    @property
    def followed(self) -> frozenset[Followed]:
        """All that tells of a change."""
        return frozenset(one for one in (*self._found.own, self._found.shared, self._kept) if one is not None)

    async def find(self) -> None:
        """Look where the repository is, and at its refs. Raises as `Repository.run`."""

        def read(repository: Repository, _: bytes) -> _Refs:
            if self._root and repository.root != self._root:
                return _Refs((self._entry,), None, b"", b"")
            refs, stash = _refs(repository)
            return _Refs(tuple({self._entry, repository.git_dir}), repository.common_dir, refs, stash)

        try:
            self._found = await self._room.reading(read, self._root, "refs-digest")
        except WorkspaceError as fault:
            if fault.code not in _NO_REPOSITORY:
                raise
            self._found = _Refs((self._entry,), None, b"", b"")
        self.unseen = await self._is_unseen()

    async def find_kept(self) -> None:
        """Look what is tracked in folders that git ignores, and which submodules there are. Raises as `Repository.read`."""

        def read(repository: Repository, _: bytes) -> Kept | None:
            if repository.bare or (self._root and repository.root != self._root):
                return None
            return _kept(repository)

        try:
            self._kept = await self._room.reading(read, self._root, "kept")
        except WorkspaceError as fault:
            if fault.code not in _NO_REPOSITORY:
                raise
            self._kept = None

    async def _is_unseen(self) -> bool:
        """Whether the repository lies in a folder that the one around it ignores."""
        if not self._root:
            return False

        def read(repository: Repository, inner: bytes) -> bool:
            name = b"/".join(part for part in (inner, os.path.basename(self._root)) if part)
            # this command knows no literal paths, but takes them as they are; with `./` none is taken for magic (gitglossary(7))
            arguments: list[Argument] = ["check-ignore", "--quiet", "--", b"./" + repository.to_git(name)]
            return repository.run(arguments, env={"GIT_LITERAL_PATHSPECS": "0"}).status == 0

        try:
            return await self._room.reading(read, os.path.dirname(self._root))
        except WorkspaceError as fault:
            if fault.code not in _NO_REPOSITORY:
                raise
            return False

    async def facts(self) -> Facts:
        """The state now, with the refs that `find` saw last. Raises as `VersionControl.status`."""
        try:
            body, etag = await self._room.status(self._root)
        except WorkspaceError as fault:
            if fault.code in _NO_REPOSITORY:
                return Facts()
            raise
        state = without_files(body)
        if self._root and (state["root"], state.get("root_bytes")) != (shown(self._root), path_bytes(self._root)):
            return Facts()
        found = self._found
        return Facts(etag, state["head"], state["operation"], state["stash_count"], found.refs, found.stash)


def without_files(body: bytes) -> dict[str, Any]:
    """What `status` answers but for the files, of which there may be very many: all that stands before them.

    Inside of a text a quotation mark has a backslash before it, so what is looked for is never part of one.
    """
    state: dict[str, Any] = orjson.loads(body[: body.index(b',"files":[')] + b"}")
    return state


def _refs(repository: Repository) -> tuple[bytes, bytes]:
    """A digest of all refs but the stash, and the stash's id. Blocks."""
    output = repository.run(["for-each-ref", "--format=%(refname) %(objectname) %(symref)"])
    digest = hashlib.blake2b(digest_size=16)
    stash = b""
    for line in output.out.splitlines(keepends=True):
        if line.startswith(b"refs/stash "):
            stash = line
        else:
            digest.update(line)
    return digest.digest(), stash


def _kept(repository: Repository) -> Kept | None:
    """What is tracked although it is ignored, and the submodules. Blocks."""
    listing = ["ls-files", "-z", "--cached", "--sparse", "--ignored", "--exclude-standard", *repository.limits]
    ignored = repository.read(listing).split(b"\0")
    within = [
        [path for name in names if (path := repository.from_git(name))] for names in (ignored, submodules(repository))
    ]
    return kept(os.path.join(repository.top, repository.prefix).rstrip(b"/"), *within)
