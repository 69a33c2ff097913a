"""Commits and files of the history as data.

Commits are read by one `git log` whose format is ours: twelve fields that end in NUL, which no commit can hold, so that nothing that
somebody wrote into a message or a name is taken for structure. All that configuration could change in it is said again on the command
line. Names are those that were committed (no mailmap), text is UTF-8 whatever it was written in. A file's content is what git stored:
no filter and no text conversion runs.
"""

import codecs
import datetime
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import shown

from .git import MAX_OUTPUT, Argument, Output
from .repository import Repository
from .revisions import resolve

# Of the first line of a message, in characters, where a commit is only named.
MAX_SUBJECT = 1000
# Of one message in an answer, in bytes, and of a name or address in it, in characters.
MAX_MESSAGE = 1024 * 1024
MAX_NAME = 1000
# One commit as `LOG` gives it: the fields in the order of `_FORMAT`, and one more where the message was not read to its end.
Fields = Sequence[bytes]
OID, PARENTS, _TREE, _AUTHOR, _COMMITTER, DATE, _REFS, _SUBJECT, _BODY = 0, 1, 2, 3, 6, 8, 9, 10, 11
_FORMAT = ("%H", "%P", "%T", "%an", "%ae", "%at", "%cn", "%ce", "%ct", "%D", "%s", "%b")
# The refs that git names beside a commit by default, said again since configuration may leave some out.
_NAMED = ("HEAD", "refs/heads/", "refs/remotes/", "refs/tags/", "refs/stash")
_QUIET = ("--encoding=UTF-8", "--no-color", "--no-notes", "--no-mailmap", "--no-show-signature", "--no-follow", "--no-patch")  # fmt: skip
_LOG = ("log", "-z", *_QUIET)
_DECORATED = (*_LOG, "--decorate=full", *(f"--decorate-refs={name}" for name in _NAMED))
LOG: tuple[str, ...] = (*_DECORATED, "--format=tformat:" + "%x00".join(_FORMAT))
_PLAIN_LOG = (*_LOG, "--no-decorate", "--format=tformat:" + "%x00".join(_FORMAT).replace("%D", "").replace("%b", ""))
_KINDS = (("refs/heads/", "branch"), ("refs/remotes/", "remote"), ("refs/tags/", "tag"), ("refs/", "other"))
# The stages of the index, by the words that a client has for them (git-ls-files(1), --stage).
_STAGES = {"index": b"0", "base": b"1", "ours": b"2", "theirs": b"3"}


# --- commits ----------------------------------------------------------------------------------------------------------------


def read_commits(
    repository: Repository,
    arguments: Sequence[Argument],
    *,
    limit: int = 2 * MAX_MESSAGE,
    failed: Callable[[Output], WorkspaceError] | None = None,
) -> tuple[list[Fields], bool]:
    """The commits of `LOG` with these arguments, as many as `limit` bytes hold but one at least, and whether there may be more. Blocks.

    Of a message that is longer than that the beginning is read. Raises what `failed` (without it: `Repository.failed`) makes of a git
    that did not succeed, and `git_output_too_large` where not even the rest of a commit can be read.
    """
    for most in (limit, MAX_OUTPUT):
        output = repository.run([*LOG, *arguments], limit=most)
        if not output.cut and output.status != 0:
            raise (failed or repository.failed)(output)
        found = rows(output.out, cut=output.cut)
        if found or not output.cut:
            return found, output.cut
    raise WorkspaceError("git_output_too_large", "What git tells of the next commit is too long for one answer.")


def rows(output: bytes, *, cut: bool = False) -> list[Fields]:
    """The commits of a run of `LOG`; of one that was cut those that are whole, or the first with the beginning of its message. Raises
    `git_output_invalid` for what it can't be."""
    fields = output.split(b"\0")
    width = len(_FORMAT)
    if cut and _SUBJECT < len(fields) <= width:
        return [[*fields, *[b""] * (width + 1 - len(fields))]]
    if cut:
        fields = [*fields[: (len(fields) - 1) // width * width], b""]
    if len(fields) % width != 1 or fields[-1]:
        raise WorkspaceError("git_output_invalid", "git's list of commits can't be read.")
    return [fields[at : at + width] for at in range(0, len(fields) - 1, width)]


def commit(fields: Fields) -> dict[str, Any]:
    """A commit as the API tells it: `oid, parents, author, committer, subject, body, refs`; `truncated` where the message is longer."""
    subject, cut = beginning(fields[_SUBJECT])
    body, cut_too = beginning(fields[_BODY], MAX_MESSAGE - min(MAX_MESSAGE, len(fields[_SUBJECT])))
    return {
        "oid": fields[OID].decode(),
        "parents": fields[PARENTS].decode().split(),
        "author": person(*fields[_AUTHOR : _AUTHOR + 3]),
        "committer": person(*fields[_COMMITTER : _COMMITTER + 3]),
        "subject": subject,
        "body": body.rstrip("\r\n"),
        "refs": _refs(text(fields[_REFS])),
        **({"truncated": True} if cut or cut_too or len(fields) > len(_FORMAT) else {}),
    }


def beginning(raw: bytes, most: int = MAX_MESSAGE) -> tuple[str, bool]:
    """As `text`, of the first bytes; and whether there are more."""
    if len(raw) <= most:
        return text(raw), False
    # a character that is cut is left out
    return codecs.getincrementaldecoder("utf-8")("replace").decode(raw[:most]), True


def person(name: bytes, email: bytes, seconds: bytes) -> dict[str, Any]:
    """Who did something, and when: `name, email, date`; of a name and an address the first 1,000 characters."""
    return {"name": text(name)[:MAX_NAME], "email": text(email)[:MAX_NAME], "date": when(seconds)}


def when(seconds: bytes) -> str | None:
    """A time of git's (seconds since 1970, in digits) in UTC; None where it is none that a calendar has."""
    try:
        moment = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat().replace("+00:00", "Z")


def text(raw: bytes) -> str:
    """What somebody wrote; bytes that are not UTF-8 show as U+FFFD."""
    return raw.decode("utf-8", "replace")


def commit_facts(repository: Repository, oid: str) -> dict[str, Any]:
    """One commit, `oid` its full id, as `commit` has it, and the id of its `tree`. Blocks.

    Raises `WorkspaceError`: `ref_not_found` where it is not told of (of a repository that begins above the workspace, a commit that
    touches nothing here), and as `Repository.read`.
    """
    # a commit without its parents is a history of one, which paths can limit
    found, _ = read_commits(repository, [f"{oid}^!", *repository.limits])
    if not found:
        raise WorkspaceError("ref_not_found", f"{oid} changes nothing in the workspace.", ref=oid)
    return {**commit(found[0]), "tree": found[0][_TREE].decode()}


def commits_named(repository: Repository, oids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The commits with these full ids, by id, as a list names them: `refs` and `body` left empty, of `subject` the first 1,000
    characters. What is no commit, or is not there, is left out. Blocks."""
    wanted = "\n".join(oids)
    if not wanted:
        return {}
    arguments = [*_PLAIN_LOG, "--no-walk=unsorted", "--ignore-missing", "--stdin"]
    found = rows(repository.read(arguments, input=wanted.encode() + b"\n"))
    commits = (commit(fields) for fields in found)
    return {one["oid"]: {**one, "subject": one["subject"][:MAX_SUBJECT]} for one in commits}


def _refs(decorations: str) -> list[dict[str, str]]:
    """The refs of `%D` (git-log(1)): names with `, ` between, which can't be in one; `HEAD -> ` before the branch that is checked out."""
    first: list[dict[str, str]] = []
    refs: list[dict[str, str]] = []
    for part in decorations.split(", "):
        full = part.removeprefix("tag: ")
        if full == "HEAD":
            first.append(_ref("HEAD", "HEAD", "head"))
        elif full.startswith("HEAD -> "):
            full = full.removeprefix("HEAD -> ")
            first += [_named(full), _ref("HEAD", "HEAD", "head")]
        elif full.startswith("refs/") and not is_remote_head(full):
            refs.append(_named(full))
    return first + refs


def _named(full: str) -> dict[str, str]:
    prefix, kind = next(row for row in _KINDS if full.startswith(row[0]))
    return _ref(full.removeprefix(prefix), full, kind)


def _ref(name: str, full: str, kind: str) -> dict[str, str]:
    return {"name": name, "type": kind, "full": full}


def is_remote_head(full: str) -> bool:
    """Whether a ref only says which branch of a remote is its main one: `refs/remotes/<remote>/HEAD`."""
    return full.startswith("refs/remotes/") and full.endswith("/HEAD")


# --- files ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of the history or the index: `mode` as git has it (`100644`, `120000` a symlink, whose content is its target)."""

    oid: str
    mode: str
    size: int
    content: bytes


def blob(repository: Repository, path: bytes, *, ref: str) -> Blob:
    """What a file was. `ref`: a revision, or the word `index`, `ours`, `theirs` or `base` for what the index has. Blocks.

    Raises `WorkspaceError`: `file_not_found`, `is_directory`, `not_a_file` (a submodule), `git_output_too_large` above 64 MiB,
    and as `resolve`.
    """
    if ref in _STAGES:
        mode, oid = _in_index(repository, path, _STAGES[ref])
    else:
        mode, oid = _in_tree(repository, path, resolve(repository, ref, "tree"))
    if mode == "160000":
        raise WorkspaceError(
            "not_a_file", f"{shown(path)!r} is a submodule: its files are in a repository of their own."
        )
    output = repository.run(["cat-file", "blob", oid], limit=MAX_OUTPUT)
    if output.cut:
        raise WorkspaceError("git_output_too_large", f"{shown(path)!r} is larger than {MAX_OUTPUT} bytes.")
    if output.status != 0:
        raise repository.failed(output)
    return Blob(oid, mode, len(output.out), output.out)


def tree_entry(repository: Repository, path: bytes, tree: str) -> tuple[str, str, str] | None:
    """What a client's path names in a tree (its id, or a commit's): mode, kind (`blob`, `tree`, or `commit` for a submodule) and id;
    None where there is nothing. Blocks."""
    if not path:
        return "040000", "tree", tree
    for mode, kind, oid, name in _listed(repository.read(["ls-tree", "-z", tree, *repository.paths([path])])):
        if name == repository.to_git(path):
            return mode, kind, oid
    return None


def _in_tree(repository: Repository, path: bytes, tree: str) -> tuple[str, str]:
    found = tree_entry(repository, path, tree)
    if found is None:
        raise missing(path, "in that revision")
    mode, kind, oid = found
    if kind == "tree":
        raise directory(path)
    return mode, oid


def _in_index(repository: Repository, path: bytes, stage: bytes) -> tuple[str, str]:
    repository.need_worktree()
    if not path:
        raise directory(path)
    below = repository.to_git(path) + b"/"
    for mode, oid, of_stage, name in _listed(repository.read(["ls-files", "-s", "-z", *repository.paths([path])])):
        if name.startswith(below):
            raise directory(path)
        if of_stage == stage.decode():
            return mode, oid
    raise missing(path, "in the index, on that side")


def _listed(listed: bytes) -> Iterable[tuple[str, str, str, bytes]]:
    """The lines of `ls-tree -z` and `ls-files -s -z`: three words, a tab, and the name."""
    for line in listed.split(b"\0"):
        words, tab, name = line.partition(b"\t")
        parts = words.decode("ascii", "replace").split()
        if tab and len(parts) == 3:
            yield parts[0], parts[1], parts[2], name


def look(repository: Repository, name: bytes) -> os.stat_result | None:
    """What the working tree has by git's name for it, no link followed on the way or at its end; None where there is nothing."""
    at = repository.top
    parts = name.split(b"/")
    try:
        for part in parts[:-1]:
            at = os.path.join(at, part)
            if not stat.S_ISDIR(os.lstat(at).st_mode):
                return None
        return os.lstat(os.path.join(at, parts[-1]))
    except (OSError, ValueError):
        return None


def directory(path: bytes) -> WorkspaceError:
    """The refusal of a folder where a file is wanted."""
    return WorkspaceError("is_directory", f"{shown(path)!r} is a directory.")


def missing(path: bytes, where: str) -> WorkspaceError:
    """The refusal of a path that names nothing; `where` ends the sentence."""
    return WorkspaceError("file_not_found", f"There is no {shown(path)!r} {where}.")
