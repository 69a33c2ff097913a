"""What more there is to tell of a refusal than git's words have: which filter failed on which file, and what a way out is not.

A way out that git names is none where the working tree that has a branch is gone, or where a file has changes that no status shows.
"""

import os
import re
from collections.abc import Sequence

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import shown

from .account import Account
from .refs import in_workspace
from .repository import Repository, portions

_MAX_LISTED = 4 * 1024 * 1024
# Those that the status passes over (git-ls-files(1), -v): `S` skip-worktree, lower case assume-unchanged.
_HIDDEN = re.compile(rb"([Sa-z]) (.*)", re.DOTALL)


def explained(repository: Repository, fault: WorkspaceError, account: Account) -> WorkspaceError:
    """The refusal of a write with what more can be told of it. Blocks."""
    if fault.code == "filter_failed":
        _name_filter(repository, fault, account.filters)
    elif fault.code == "local_changes_in_way":
        _name_hidden(repository, fault)
    elif fault.code in ("branch_checked_out", "worktree_gone"):
        return _of_worktree(repository, fault)
    return fault


# --- filters ------------------------------------------------------------------------------------------------------------------


def _name_filter(repository: Repository, fault: WorkspaceError, commands: Sequence[str]) -> None:
    """Add the `driver` and the `path` that git did not tell. `commands`: those of the processes that it started.

    A process that ends at once is found by its command in the configuration, the file by its attributes: the first of those that have
    changed.
    """
    data = fault.data
    if data["driver"] is None:
        data["driver"] = next(
            (driver for command in reversed(commands) for driver in _drivers(repository, command)), None
        )
    path = os.fsencode(data["path"]) if data["path"] else None
    if path is None and data["driver"] is not None:
        path = _first(repository, os.fsencode(data["driver"]))
    inner = repository.from_git(path) if path is not None else None
    data["path"] = shown(inner) if inner is not None else None
    if data["driver"] is not None:
        what = repr(data["path"]) if inner is not None else "a file"
        fault.detail = f"The filter {data['driver']!r} failed on {what}. Install or mend its program, or take it out of the configuration."


def _drivers(repository: Repository, command: str) -> list[str]:
    return [
        entry.key.removeprefix("filter.").removesuffix(".process")
        for entry in repository.configuration.entries
        if entry.key.startswith("filter.") and entry.key.endswith(".process") and entry.value == command
    ]


def _first(repository: Repository, driver: bytes) -> bytes | None:
    """The first file that has changed, and goes through this filter."""
    changed = ["ls-files", "-z", "--full-name", "--modified", "--others", "--exclude-standard", *repository.limits]
    names = repository.run(changed, limit=_MAX_LISTED).out.rpartition(b"\0")[0]
    asked = names + b"\0" if names else b""
    fields = repository.run(["check-attr", "-z", "--stdin", "filter"], input=asked).out.split(b"\0")
    return next((path for path, value in zip(fields[0:-1:3], fields[2::3], strict=False) if value == driver), None)


# --- ways out -----------------------------------------------------------------------------------------------------------------


def _name_hidden(repository: Repository, fault: WorkspaceError) -> None:
    """Tell of files that have a mark by which the status passes them over, and a stash too."""
    paths = hidden_among(repository, [os.fsencode(path) for path in fault.data.get("paths", [])])
    if paths:
        fault.data["hidden"] = paths
        fault.detail = _marked(paths[0])


def refuse_hidden(repository: Repository, paths: Sequence[bytes]) -> None:
    """Raises `local_changes_in_way` where one of these files (the client's paths) is there and has such a mark: git would leave it as it is
    without a word. Blocks."""
    names = [name for path in paths if _is_file(os.path.join(repository.top, name := repository.to_git(path)))]
    if hidden := sorted(set(hidden_among(repository, names)) & {shown(path) for path in paths}):
        raise WorkspaceError("local_changes_in_way", _marked(hidden[0]), paths=hidden, hidden=hidden)


def _is_file(place: bytes) -> bool:
    """Whether a file or a link is there: what is in a folder is not named."""
    return os.path.islink(place) or (os.path.lexists(place) and not os.path.isdir(place))


def hidden_among(repository: Repository, names: Sequence[bytes]) -> list[str]:
    """The paths of the files at these names (git's) that the status passes over. Blocks."""
    hidden = []
    for part in portions(names):
        for line in repository.run(["ls-files", "-v", "-z", "--full-name", "--", *part]).out.split(b"\0"):
            if found := _HIDDEN.fullmatch(line):
                hidden.append(found[2])
    return [shown(path) for name in hidden if (path := repository.from_git(name)) is not None]


def _marked(path: str) -> str:
    return (
        f"{path!r} has changes, and a mark by which git passes over them: no status shows them, and no stash takes them. Take the"
        " mark off (git update-index --no-skip-worktree --no-assume-unchanged), then commit, stash or discard them."
    )


def _of_worktree(repository: Repository, fault: WorkspaceError) -> WorkspaceError:
    """Name the working tree, as the workspace does, and say where it is one that is gone."""
    place = os.fsencode(fault.data["worktree"] or "")
    inner = in_workspace(repository, place) if place else None
    named = shown(inner) if inner is not None else None
    fault.data["worktree"] = named
    if not place or (fault.code == "branch_checked_out" and os.path.lexists(os.path.join(place, b".git"))):
        return fault
    how = (
        "remove it first (DELETE …/worktrees)"
        if inner is not None
        else "forget it first (git worktree prune, in a terminal)"
    )
    what = repr(named) if named is not None else "outside the workspace"
    return WorkspaceError(
        "worktree_gone",
        f"The working tree {what} is still known, and its folder is gone: {how}.",
        **fault.data,
    )
