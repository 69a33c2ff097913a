"""The history, a page at a time.

The plain history goes on from the frontier of the last page (`cursors.py`), so that a page costs the same at any depth. One that is
narrowed (by a path, an author, words) or that leaves out what another revision has, is walked by git from its beginning for each
page: git must look at all of it anyway. A page always belongs to the history that the first page began with.
"""

import re
from collections.abc import Sequence
from typing import Any

from workspace_runtime.errors import WorkspaceError

from . import cursors
from .cursors import Place
from .git import Argument, Output
from .objects import Fields, commit, read_commits
from .repository import Repository
from .revisions import head, resolve

MAX_WORDS = 1000
_MAX_BEGIN_SO = 100
_AS_WORDS = ("--fixed-strings", "--regexp-ignore-case")
_ID = re.compile(r"[0-9a-f]{7,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def log(
    repository: Repository,
    *,
    ref: str | None = None,
    path: bytes | None = None,
    author: str | None = None,
    q: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    """A page of commits, as `git log` orders them: `{"items", "next_cursor"}`. Blocks.

    `ref`: a revision, `A..B` or `A...B`; None is what is checked out, without a commit yet an empty list. `path`: the client's, of a
    file or folder whose changes are wanted, renames not followed. `author`: words in `name <email>`; `q`: words in a line of the
    message, or the beginning (at least 7 digits) of the commit's id; both whatever their case.

    Raises `WorkspaceError`: `ref_invalid`, `ref_not_found`, `cursor_invalid`, `validation_failed`, and as `Repository.read`.
    """
    by_author = [f"--author={_words(author, 'author')}"] if author else []
    by_words = [f"--grep={_words(q, 'q')}"] if q else []
    bound = cursors.binding(repository.git_dir, ref, path, author, q)
    limits = repository.paths([path] if path else [])
    narrowed = bool(by_author or by_words or len(limits) > 1)
    if cursor is not None:
        place = cursors.decode_place(cursor, bound)
        if narrowed:
            place = cursors.by_count(place)
    else:
        begun = _begin(repository, ref)
        if begun is None:
            return {"items": [], "next_cursor": None}
        starts, excluded = begun
        place = Place(bound, starts, excluded, frontier=() if narrowed or excluded else starts)
    named = _by_id(repository, q, place, [*_AS_WORDS, *by_author], limits) if q else []
    first = named if cursor is None else []
    page, after = _page(repository, place, [*_AS_WORDS, *by_author, *by_words], limits, limit - len(first))
    rest = [fields for fields in page if fields not in named] if named else page
    return {
        "items": [commit(fields) for fields in (*first, *rest)],
        "next_cursor": cursors.encode_place(after) if after else None,
    }


# --- what is asked for ----------------------------------------------------------------------------------------------------------


def _words(words: str, field: str) -> str:
    if len(words) > MAX_WORDS or _CONTROL.search(words):
        raise WorkspaceError(
            "validation_failed",
            f"{field}: at most {MAX_WORDS} characters in one line, none of them a control character.",
        )
    return words


def _begin(repository: Repository, ref: str | None) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The ids that a history begins with and those whose history it leaves out (gitrevisions(7)); None before the first commit."""
    if ref is None:
        oid = head(repository)
        return ((oid,), ()) if oid else None
    left, dots, right = ref.partition("..")
    if not dots:
        return (resolve(repository, ref),), ()
    symmetric = right.startswith(".")
    ours = resolve(repository, left or "HEAD")
    theirs = resolve(repository, right.removeprefix(".") or "HEAD")
    if not symmetric:
        return (theirs,), (ours,)
    bases = repository.read(["merge-base", "--all", ours, theirs], ok=(0, 1)).decode().split()
    return (ours, theirs), tuple(bases)


def _by_id(
    repository: Repository, q: str, place: Place, filters: Sequence[str], limits: Sequence[Argument]
) -> list[Fields]:
    """The commit of the history whose id begins with the words, where the filters let it through."""
    digits = q.lower()
    # asked as what they are, since a branch may have them for its name
    found = _ID.fullmatch(digits) and repository.read(["rev-parse", f"--disambiguate={digits}"]).decode().split()
    if not found or len(found) > _MAX_BEGIN_SO:
        return []
    listed = repository.read(["cat-file", "--batch-check"], input="\n".join(found).encode() + b"\n").decode()
    commits = [line.split(" ")[0] for line in listed.splitlines() if line.split(" ")[1] == "commit"]
    if len(commits) != 1:
        return []
    oid = commits[0]
    outside = [oid, *(f"^{start}" for start in place.starts)]
    inside = [oid, *(f"^{end}" for end in place.excluded)]
    if _newest(repository, outside) or _newest(repository, inside) != oid:
        return []
    return read_commits(repository, [*filters, f"{oid}^!", *limits])[0]


def _newest(repository: Repository, revisions: Sequence[str]) -> str:
    return repository.read(["rev-list", "--max-count=1", *revisions, "--"]).decode().strip()


# --- one page -------------------------------------------------------------------------------------------------------------------


def _page(
    repository: Repository, place: Place, filters: Sequence[str], limits: Sequence[Argument], limit: int
) -> tuple[list[Fields], Place | None]:
    """The next commits, at most `limit`, and the place after them; None at the end."""
    fresh: list[Fields] | None = None
    cut = False
    if place.frontier:
        most = limit + 1 + len(place.same)
        found, cut = _walk(repository, place, [f"--max-count={most}", *place.frontier, "--"])
        fresh = cursors.unseen(place, found, limit + 1)
        if fresh is None or (cut and not fresh):
            fresh, place = None, cursors.by_count(place)
    if fresh is None:
        ends = [*place.starts, *(f"^{oid}" for oid in place.excluded)]
        counts = [f"--skip={place.count}", f"--max-count={limit + 1}"]
        fresh, cut = _walk(repository, place, [*filters, *counts, *ends, *limits])
    page = fresh[:limit]
    return page, cursors.after(place, page) if cut or len(fresh) > limit else None


def _walk(repository: Repository, place: Place, arguments: Sequence[Argument]) -> tuple[list[Fields], bool]:
    """Commits, and whether there are more than a page has room for (`cursors.MAX_BYTES`)."""

    def failed(output: Output) -> WorkspaceError:
        return cursors.invalid() if _is_gone(repository, place) else repository.failed(output)

    return read_commits(repository, arguments, limit=cursors.MAX_BYTES, failed=failed)


def _is_gone(repository: Repository, place: Place) -> bool:
    """Whether one of the place's ids names no commit (any more)."""
    ids = [*place.starts, *place.excluded, *place.frontier]
    told = repository.read(["cat-file", "--batch-check=%(objecttype)"], input="\n".join(ids).encode() + b"\n")
    return told.split(b"\n")[:-1] != [b"commit"] * len(ids)
