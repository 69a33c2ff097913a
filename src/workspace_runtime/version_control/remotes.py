"""Speaking with other repositories: fetch, pull, push, and the list of those that are known.

A remote is a configured name, never an address. What is not said is left to git and its configuration.
"""

import re
from typing import Any, Literal

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import as_text

from .credentials import Credentials, bind, carries_password, check_url, redact, tellable
from .failures import failure
from .git import READ_PROTOCOLS
from .obstacles import must_be_free
from .overlays import detours
from .push_output import push_refs
from .repository import Repository
from .revisions import branch_name, checked, exists, head, resolve
from .stops import stopped_by_conflicts
from .switching import where
from .work import Work

Mode = Literal["ff-only", "rebase", "merge"]
_REMOTE = re.compile(r"remote\.(.+)\.(url|pushurl|fetch)", re.DOTALL)
_UPLOAD, _RECEIVE = "--upload-pack=git-upload-pack", "--receive-pack=git-receive-pack"


def names(repository: Repository) -> list[str]:
    """The configured remotes."""
    found = (_REMOTE.fullmatch(entry.key) for entry in repository.configuration.entries)
    return list(dict.fromkeys(match[1] for match in found if match))


def must_exist(repository: Repository, remote: str) -> str:
    """Raises `WorkspaceError` (`remote_not_configured`) for what is no configured name."""
    checked(remote, "remote")
    if any(entry.key == f"remotes.{remote}" for entry in repository.configuration.entries):
        raise WorkspaceError(
            "remote_not_configured",
            f"{tellable(remote)!r} is a group of remotes: name one of them.",
            remote=tellable(remote),
        )
    if remote not in names(repository):
        raise WorkspaceError(
            "remote_not_configured",
            "There is no such remote: name one that is configured, an address is none.",
            remotes=[tellable(as_text(name)) for name in names(repository)],
        )
    return remote


def reachable(repository: Repository, remote: str, *, push: bool = False) -> str:
    """The same, and for what has no address: git would take the name for one."""
    must_exist(repository, remote)
    if not any(
        repository.configuration.last(f"remote.{remote}.{key}") for key in ("url", *(["pushurl"] if push else []))
    ):
        raise WorkspaceError("remote_not_configured", f"The remote {tellable(remote)!r} has no address: set its url.")
    return remote


def default_remote(repository: Repository, *, push: bool = False) -> str:
    """The remote that git takes where none is named: the branch's own, the only one, or `origin`. Blocks."""
    configuration = repository.configuration
    branch = where(repository)["head"]["branch"]
    keys = [f"branch.{branch}.pushremote", "remote.pushdefault"] if push else []
    for key in [*keys, f"branch.{branch}.remote"]:
        if (name := configuration.last(key)) and name != ".":
            return reachable(repository, name, push=push)
    known = names(repository)
    return reachable(repository, known[0] if len(known) == 1 else "origin", push=push)


def bound(url: str, username: str | None, token: str | None) -> Credentials | None:
    """A token for one call, bound to the host of this address; None where none is given."""
    if token is None:
        if username is not None:
            raise WorkspaceError("credentials_invalid", "A username needs a token.")
        return None
    return bind(url, username, token)


def _credentials(
    repository: Repository, remote: str, username: str | None, token: str | None, *, push: bool
) -> Credentials | None:
    """The token for a remote: bound to the address that git will use, with `insteadOf` applied. Blocks."""
    if token is None and username is None:
        return None
    if found := detours(repository.configuration):
        raise WorkspaceError(
            "credentials_refused",
            f"The repository's own configuration sets {redact(found[0], None)}, so a token could go elsewhere: remove it, or set it for the user.",
            settings=[redact(key, None) for key in found],
        )
    url = repository.read(["remote", "get-url", *(["--push"] if push else []), "--", remote]).decode("utf-8", "replace")
    return bound(url.removesuffix("\n"), username, token)


async def fetch(
    work: Work, *, remote: str | None, every: bool, prune: bool, username: str | None = None, token: str | None = None
) -> dict[str, Any]:
    """Get what is new at a remote, or at `every` one. Answers which refs have changed."""
    repository = work.repository
    before = await work.ask(_refs, repository)
    if every and token is not None:
        raise WorkspaceError("credentials_invalid", "A token is for one remote: name it.")
    if every:
        wanted = names(repository)
    else:
        wanted = [
            await work.ask(reachable, repository, remote) if remote else await work.ask(default_remote, repository)
        ]
    # one by one, as `--all` has no flag for the program at the other side, and the repository's own must not count
    refusals = []
    for name in wanted:
        flags = [
            "--progress",
            "--no-recurse-submodules",
            "--no-auto-maintenance",
            *(["--prune"] if prune else []),
            _UPLOAD,
        ]
        try:
            await work.ask(reachable, repository, name)
            credentials = await work.ask(_credentials, repository, name, username, token, push=False)
            await work.git(["fetch", *flags, "--", name], credentials=credentials, network=True)
        except WorkspaceError as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[0]
    changes = _changed(before, await work.ask(_refs, repository))
    return {"remote": None if every else wanted[0], "refs": changes}


def _refs(repository: Repository) -> dict[str, str]:
    # a remote's HEAD only names one of its branches
    how = "--format=%(if)%(symref)%(then)%(else)%(objectname) %(refname)%(end)"
    listing = repository.read(["for-each-ref", how, "refs/remotes", "refs/tags"])
    rows = (line.partition(" ") for line in listing.decode("utf-8", "replace").split("\n") if line)
    return {name: oid for oid, _, name in rows}


def _changed(before: dict[str, str], after: dict[str, str]) -> list[dict[str, Any]]:
    refs = sorted(before.keys() | after.keys())
    return [
        {"ref": ref, "old": before.get(ref), "new": after.get(ref)} for ref in refs if before.get(ref) != after.get(ref)
    ]


async def pull(
    work: Work,
    *,
    remote: str | None,
    branch: str | None,
    mode: Mode | None,
    autostash: bool | None,
    username: str | None = None,
    token: str | None = None,
) -> dict[str, Any]:
    """Fetch, and bring it into what is checked out. Raises `diverged`, `merge_conflict`, `local_changes_in_way`, `no_upstream`."""
    repository = work.repository
    before = await work.ask(head, repository)
    which: list[str] = []
    if remote is not None or branch is not None:
        remote = await work.ask(reachable, repository, remote) if remote else await work.ask(default_remote, repository)
        # by its full name: git takes the word `tag` alone for the beginning of a tag's
        which = [remote, *([f"refs/heads/{await work.ask(branch_name, repository, branch)}"] if branch else [])]
    given = token is not None or username is not None
    known = remote or (await work.ask(default_remote, repository) if given else None)
    credentials = await work.ask(_credentials, repository, known, username, token, push=False) if known else None
    await work.ask(_must_be_free, repository, which, before, mode)
    how = {"ff-only": ["--ff-only"], "rebase": ["--rebase"], "merge": ["--no-rebase"], None: []}[mode]
    how += [] if autostash is None else ["--autostash" if autostash else "--no-autostash"]
    arguments = ["pull", "--progress", "--no-edit", "--no-recurse-submodules", _UPLOAD, *how, *which]
    left = await stopped_by_conflicts(work, arguments, credentials=credentials, network=True)
    after = await work.ask(where, repository)
    return {**after, "before": before, "updated": after["head"]["oid"] != before, **left}


def _must_be_free(repository: Repository, which: list[str], before: str | None, mode: Mode | None) -> None:
    """Refuse a pull in whose way something stands that git would replace, as far as is known without the remote. Blocks."""
    known = f"refs/remotes/{which[0]}/{which[1].removeprefix('refs/heads/')}" if len(which) > 1 else "@{upstream}"
    if len(which) > 1 and not exists(repository, known):
        return
    found = repository.run(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{known}^{{commit}}"])
    if before is not None and found.status == 0:
        configuration = repository.configuration
        of_branch = configuration.last(f"branch.{where(repository)['head']['branch']}.rebase")
        rebases = of_branch or configuration.last("pull.rebase") or "false"
        rebased = mode == "rebase" or (mode is None and rebases != "false")
        must_be_free(repository, found.out.decode().strip(), before=before, merged=not rebased)


async def push(
    work: Work,
    *,
    remote: str | None,
    branch: str | None,
    set_upstream: bool = False,
    force_with_lease: bool | str = False,
    username: str | None = None,
    token: str | None = None,
) -> dict[str, Any]:
    """Push a branch, or what git would. `force_with_lease`: replace what is there if it is what was fetched last, or this id.

    Answers the refs with what became of each. Raises `push_rejected`, `lease_stale`, `no_upstream`, `remote_auth_failed`, ….
    """
    repository = work.repository
    named = remote is not None or branch is not None or set_upstream or isinstance(force_with_lease, str)
    given = token is not None or username is not None
    where_to = (
        await work.ask(reachable, repository, remote, push=True)
        if remote is not None
        else (await work.ask(default_remote, repository, push=True) if named or given else None)
    )
    what = await work.ask(_pushed, repository, branch, needed=set_upstream or isinstance(force_with_lease, str))
    how = ["--set-upstream"] if set_upstream else []
    if isinstance(force_with_lease, str):
        expected = await work.ask(resolve, repository, force_with_lease, field="force_with_lease")
        how.append(f"--force-with-lease={what}:{expected}")
    elif force_with_lease:
        how.append("--force-with-lease")
    credentials = await work.ask(_credentials, repository, where_to, username, token, push=True) if where_to else None
    which = [*([where_to] if where_to and named else []), *([what] if what else [])]
    # the other repository's hooks would run here
    protocols = {} if repository.trusted else {"GIT_ALLOW_PROTOCOL": READ_PROTOCOLS}
    output = await work.git(
        ["push", "--porcelain", "--progress", "--no-recurse-submodules", _RECEIVE, *how, *which],
        credentials=credentials,
        ok=(0, 1),
        env=protocols,
        network=True,
    )
    refs = [{**ref, "reason": ref["reason"] and redact(ref["reason"], credentials)} for ref in push_refs(output.out)]
    if output.status != 0:
        raise failure(output.err, refs, network=True)
    return {"remote": where_to, "refs": refs}


def _pushed(repository: Repository, branch: str | None, *, needed: bool) -> str | None:
    """The full name of the branch to push; the current one where one is `needed`. Blocks."""
    if branch is None:
        if not needed:
            return None
        branch = where(repository)["head"]["branch"]
        if branch is None:
            raise WorkspaceError("head_detached", "No branch is checked out: name the one to push.")
    branch_name(repository, branch)
    if not exists(repository, f"refs/heads/{branch}"):
        raise WorkspaceError("ref_not_found", f"There is no branch {branch!r}.", ref=branch)
    return f"refs/heads/{branch}"


# --- the list ---------------------------------------------------------------------------------------------------------------


async def add(work: Work, *, name: str, url: str) -> dict[str, Any]:
    """Know another remote. Raises `remote_url_refused`, `remote_exists`."""
    await work.ask(_remote_name, work.repository, name)
    _must_be_takeable(url)
    if name in names(work.repository):
        raise WorkspaceError("remote_exists", f"There is a remote {tellable(name)!r} already.", remote=tellable(name))
    await work.git(["remote", "add", "--", name, url])
    return {"name": name}


async def change(work: Work, *, name: str, new_name: str | None, url: str | None) -> dict[str, Any]:
    """Give a remote another address, another name, or both."""
    must_exist(work.repository, name)
    renamed = new_name is not None and new_name != name
    if url is not None:
        _must_be_takeable(url)
    if new_name is not None and renamed:
        await work.ask(_remote_name, work.repository, new_name)
        if new_name in names(work.repository):
            raise WorkspaceError(
                "remote_exists", f"There is a remote {tellable(new_name)!r} already.", remote=tellable(new_name)
            )
    # all of it is known to be possible: nothing is done by halves
    if url is not None:
        await work.git(["remote", "set-url", "--", name, url])
    if new_name is not None and renamed:
        await work.git(["remote", "rename", "--no-progress", "--", name, new_name])
    return {"name": new_name or name}


async def forget(work: Work, *, name: str) -> dict[str, Any]:
    """Forget a remote, and what was fetched from it."""
    must_exist(work.repository, name)
    await work.git(["remote", "remove", "--", name])
    return {}


def _must_be_takeable(url: str) -> None:
    check_url(url)
    if carries_password(url):
        raise WorkspaceError(
            "remote_url_refused", "The address holds a password: leave it out, and give it as a token with each call."
        )


def _remote_name(repository: Repository, name: str) -> None:
    """As git checks it (remote.c, valid_remote_name). Blocks."""
    checked(name, "name")
    if repository.run(["check-ref-format", f"refs/remotes/{name}/x"]).status != 0:
        raise WorkspaceError("ref_invalid", f"name: {tellable(name)!r} can't be the name of a remote.", field="name")
