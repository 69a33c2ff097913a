"""Names that a client gives, before git sees them: revisions become ids, branch names are checked, nothing can be an option."""

import re

from workspace_runtime.errors import WorkspaceError

from .credentials import tellable
from .failures import failure
from .git import Output
from .repository import Repository

MAX_NAME = 1000
_OID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def checked(name: str, field: str = "ref") -> str:
    """The name, if git can't take it for an option. Raises `ref_invalid`."""
    if not name or name.startswith("-") or len(name) > MAX_NAME or _CONTROL.search(name):
        raise WorkspaceError(
            "ref_invalid",
            f"{field}: {tellable(name)[:100]!r} is no name: it must not be empty, begin with '-', or hold control characters.",
            field=field,
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise WorkspaceError("ref_invalid", f"{field}: the name is no text that can be encoded.", field=field) from None
    return name


def resolve(repository: Repository, name: str, kind: str = "commit", *, field: str = "ref") -> str:
    """The full id of what a revision (gitrevisions(7)) names; `kind` as in `commit`, `tree`, `object`. Blocks.

    Raises `WorkspaceError`: `ref_invalid`, `ref_not_found`, and as `Repository.run`.
    """
    checked(name, field)
    oid: str | None = name
    if ":" in name:  # what is put after a path, or after words to look for, would be part of them
        oid = _parsed(repository, name)
    if oid is not None:
        oid = _parsed(repository, f"{oid}^{{{kind}}}")
    if oid is None:
        raise WorkspaceError(
            "ref_not_found", f"{tellable(name)!r} names no {kind} of the repository.", ref=tellable(name)
        )
    return oid


def _parsed(repository: Repository, revision: str) -> str | None:
    """The id; None where there is none. Raises what keeps git from looking at all."""
    output = _asked(repository, revision)
    oid = output.out.decode("ascii", "replace").strip()
    if output.status == 0 and _OID.fullmatch(oid):
        return oid
    fault = failure(output.err)
    if fault.code.startswith("repository_"):
        raise fault
    return None


def _asked(repository: Repository, revision: str) -> Output:
    return repository.run(["rev-parse", "--verify", "--quiet", "--end-of-options", revision])


def exists(repository: Repository, ref: str) -> bool:
    """Whether there is a ref of this full name. Blocks."""
    return repository.run(["show-ref", "--verify", "--quiet", "--", ref]).status == 0


def alone(oid: str) -> str:
    """A commit's id as a command takes it that also takes names: so it means the commit, and never a branch or tag that was called so."""
    return f"{oid}^{{commit}}"


def head(repository: Repository) -> str | None:
    """The id of the commit that is checked out; None where there is no commit yet. Blocks.

    Raises `repository_invalid` where there is one that can't be read: it must never be taken for a repository without commits.
    """
    tried = _asked(repository, "HEAD^{commit}")
    if tried.status == 0:
        return tried.out.decode().strip()
    # of a branch that is not born git says 1, of a commit that it can't find the id all the same; an empty file, as a crash leaves it,
    # is no branch to be born
    if _asked(repository, "HEAD").status == 1 and repository.run(["symbolic-ref", "--quiet", "HEAD"]).status == 0:
        return None
    again = _asked(repository, "HEAD^{commit}")  # a first commit may have been made just now
    if again.status == 0:
        return again.out.decode().strip()
    fault = failure(again.err)
    if fault.code.startswith("repository_"):
        raise fault
    raise WorkspaceError(
        "repository_invalid", "git can't read the commit that is checked out.", output=fault.data["output"]
    )


def full_name(repository: Repository, name: str, oid: str) -> str:
    """The ref that a revision with this `oid` names, as `refs/heads/main`; empty where it names a commit in another way. Blocks."""
    output = repository.run(["rev-parse", "--symbolic-full-name", "--end-of-options", checked(name)])
    # some versions of git repeat the option
    full = output.out.decode("utf-8", "replace").strip().split("\n")[-1].removeprefix("--end-of-options")
    # an id is told as the branch that is called so
    return full if full and _parsed(repository, f"{full}^{{commit}}") == oid else ""


def current_branch(repository: Repository) -> str | None:
    """The branch that is checked out, also one without a commit; None where HEAD is detached. Blocks."""
    # by its full name: git's short one has `heads/` where a tag has the same
    output = repository.run(["symbolic-ref", "--quiet", "HEAD"])
    return output.out.decode("utf-8", "replace").strip().removeprefix("refs/heads/") or None


def empty_tree(repository: Repository) -> str:
    """The id of the tree without entries, in the repository's own hash. Blocks."""
    return repository.read(["hash-object", "-t", "tree", "--stdin"], input=b"").decode().strip()


def branch_name(repository: Repository, name: str, *, field: str = "branch") -> str:
    """A name that a branch may have. Raises `ref_invalid`. Blocks."""
    checked(name, field)
    if repository.run(["check-ref-format", f"refs/heads/{name}"]).status != 0 or name in ("HEAD", "@"):
        raise WorkspaceError("ref_invalid", f"{field}: {tellable(name)!r} can't be the name of a branch.", field=field)
    return name


def tag_name(repository: Repository, name: str, *, field: str = "name") -> str:
    """A name that a tag may have. Raises `ref_invalid`. Blocks."""
    checked(name, field)
    if repository.run(["check-ref-format", f"refs/tags/{name}"]).status != 0:
        raise WorkspaceError("ref_invalid", f"{field}: {tellable(name)!r} can't be the name of a tag.", field=field)
    return name
