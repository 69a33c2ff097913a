"""What git means when it refuses.

git has no codes for what went wrong, only sentences. They are told apart by one ordered table, in English (`LC_ALL=C.UTF-8`); what
is not in it is `git_failed`, with git's own words. Lines that the other side sent (`remote: `) are never searched, since they can say
anything; nor, where git's own account is there (`account.py`), what a hook or a filter has printed. What is about a remote counts
only where one is talked to. What is shown has no secret in it, and is bounded.
"""

import re
from collections.abc import Sequence
from typing import Any

from workspace_runtime.errors import WorkspaceError

from .account import Account
from .credentials import Credentials, redact

MAX_OUTPUT = 4096  # bytes of git's own words in an answer: the last ones


def _row(code: str, words: str, detail: str) -> tuple[str, re.Pattern[str], str]:
    return code, re.compile(words, re.MULTILINE), detail


_FILTER = r"^(?:fatal|error): "
# The first row that fits counts: what names the cause stands before what only says that it did not work. `^` is the start of a line.
_TABLE = (
    _row(
        "filter_failed",
        rf"{_FILTER}(?:.+: clean filter '.*' failed|.+: smudge filter .* failed|external filter '(?s:.*)' failed"
        r"|initialization for subprocess '(?s:.*)' failed|external filter '.*' is not available anymore)",
        "A filter that the configuration names failed. Install or mend its program, or take the filter out.",
    ),
    _row(
        "repository_not_owned",
        r"detected dubious ownership in repository",
        "The repository belongs to another user. Give it to the server's user, or set git's safe.directory for it.",
    ),
    _row(
        "repository_locked",
        r"\.lock': File exists|^error: could not lock config file .*: File exists",
        "Another git works in this repository, or one that crashed has left its lock. Wait for it, or clear the lock.",
    ),
    _row(
        "identity_missing",
        r"Please tell me who you are|^fatal: (?:empty ident name|no (?:email|name) was given|unable to auto-detect email)",
        "git does not know who you are. Set user.name and user.email, or send an author.",
    ),
    _row(
        "remote_url_refused",
        r"^fatal: (?:transport '.*' not allowed|remote helper '.*' aborted|strange (?:hostname|pathname|port) '.*' blocked)",
        "git does not use this kind of address here. Use https or ssh.",
    ),
    _row(
        "remote_host_unknown",
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "The remote's host key is not the one that is known. If the change is right, replace it in known_hosts.",
    ),
    _row(
        "remote_host_unknown",
        r"^Host key verification failed|^No \S+ host key is known for",
        "The remote's host key is not known. Check its fingerprint, and add it to known_hosts (ssh-keyscan).",
    ),
    _row(
        "remote_auth_failed",
        r"^fatal: (?:Authentication failed for|could not read (?:Username|Password) for)|The requested URL returned error: 40[13]"
        r"|Permission denied \((?:publickey|password|keyboard-interactive|gssapi|hostbased)|^Permission denied, please try again",
        "The remote did not take the credentials, or wants some. Send a token with the right to it, or set up a key or a helper.",
    ),
    _row(
        "remote_ref_not_found",
        r"^fatal: (?:couldn't find remote ref|Remote branch .* not found in upstream)|^error: unable to delete '.*': remote ref does not"
        r" exist|^from the remote, but no such ref was fetched",
        "The remote has no such branch or tag. Fetch, and choose another.",
    ),
    _row(
        "ref_not_found",
        r"^error: src refspec .* does not match any",
        "There is no such branch or tag here to push.",
    ),
    _row(
        "remote_not_found",
        r"^fatal: repository '.*' (?:not found|does not exist)|does not appear to be a git repository|^error: No such remote"
        r"|^ERROR: Repository not found|^fatal: No remote repository specified",
        "There is no such remote, or no repository at its address, or none that these credentials may see.",
    ),
    _row(
        "remote_unreachable",
        r"^fatal: unable to access '.*': .*(?:certificate|gnutls|SSL|TLS)",
        "The remote's TLS certificate or connection can't be trusted. Check the address, and the certificates of this machine.",
    ),
    _row(
        "remote_unreachable",
        r"^fatal: (?:unable to (?:access|connect)|Could not read from remote|[Tt]he remote end hung up|early EOF|protocol error)"
        r"|^ssh: (?:connect to|Could not resolve)|Connection (?:closed|reset|timed out)|^error: RPC failed|unexpected disconnect",
        "The remote can't be reached, or broke off. Check the address and the network, then try again.",
    ),
    _row(
        "no_upstream",
        r"has no upstream branch|^There is no tracking information|^fatal: no upstream configured|does not track"
        r"|^fatal: No configured push destination",
        "The branch has no upstream. Name the remote and the branch, or push with set_upstream.",
    ),
    _row(
        "no_upstream",
        r"^fatal: The upstream branch of your current branch does not match",
        "The branch's upstream has another name, so git does not choose. Name the remote and the branch.",
    ),
    _row(
        "no_upstream",
        r"^(?:fatal: )?You are not currently on a branch",
        "No branch is checked out, so none has an upstream. Check one out, or name the remote and the branch.",
    ),
    _row(
        "diverged",
        r"^fatal: (?:Need to specify how to reconcile divergent branches|Not possible to fast-forward)|^hint: Diverging branches",
        "Both sides have commits that the other has not. Choose a mode: rebase or merge.",
    ),
    _row(
        "local_changes_in_way",
        r"would be overwritten by|^error: cannot (?:pull with rebase|rebase): (?:You have unstaged|Your index contains)"
        r"|would lose untracked files in them|already exists, no checkout|could not restore untracked files from stash"
        r"|^error: Entry '(?s:.+)' not uptodate\. Cannot merge",
        "Changes that are not committed are in the way. Commit, stash or discard them first.",
    ),
    _row(
        "operation_in_progress",
        r"already a rebase-(?:merge|apply) directory|You have not concluded your (?:merge|cherry-pick)|is already in progress"
        r"|cannot switch branch while|^fatal: cannot do a partial commit during a",
        "A merge, rebase or the like is not finished. Continue or abort it first.",
    ),
    _row(
        "path_ignored",
        r"^The following paths are ignored by one of your",
        "git ignores some of these paths. Say force to stage them all the same.",
    ),
    _row(
        "path_ignored",
        r"^outside of your sparse-checkout definition",
        "Some of these paths are outside of the sparse checkout. Say force to stage them all the same.",
    ),
    _row(
        "branch_not_merged",
        r"^error: [Tt]he branch '.*' is not fully merged",
        "The branch has commits that are on no other. Merge it, or say force, which loses them.",
    ),
    _row(
        "worktree_gone",
        r"^fatal: '.*' is a missing but (?:already registered|locked) worktree",
        "A working tree of this place is still known, and its folder is gone: remove it first (DELETE …/worktrees).",
    ),
    _row(
        "signing_failed",
        r"^error: (?:gpg failed to sign|unable to sign the tag|.*failed to sign the data|Couldn't load public key|Load key |No private key found"
        r"|user\.signing[kK]ey|gpg\.ssh|either user\.signingkey|ssh-keygen )|^fatal: (?:cannot run gpg|.*failed to sign)|^(?:error: )?No user exists for uid",
        "git could not sign it. Mend the key (user.signingKey) or the program that signs; its words are in output.",
    ),
    _row(
        "branch_checked_out",
        r"(?:checked out|used by worktree) at '",
        "The branch is checked out in a working tree. Switch that one to another branch first.",
    ),
    _row(
        "worktree_locked",
        r"cannot (?:remove|move) a locked working tree",
        "The working tree is locked, so that nobody removes it. Unlock it first: git worktree unlock.",
    ),
    _row(
        "worktree_not_clean",
        r"contains modified or untracked files, use --force",
        "The working tree has changes. Commit them, or say force, which loses them.",
    ),
    _row(
        "merge_conflict",
        r"^CONFLICT \(|^Automatic merge failed|^.+: needs merge$|^error: path '.*' is unmerged|^error: (?:could not apply|you need to resolve your current index|\w+ is not possible because"
        r" you have unmerged)|^fatal: Exiting because of an unresolved conflict",
        "There are conflicts. Resolve them and continue, or abort.",
    ),
    _row(
        "file_not_found",
        r"pathspec '.*' did not match any",
        "git knows no such file. Look at the status for what there is.",
    ),
    _row(
        "ref_not_found",
        r"^fatal: (?:not a valid object name|invalid reference)",
        "There is no such revision, perhaps no commit yet.",
    ),
    _row(
        "ref_exists",
        r"^error: some local refs could not be updated; try running",
        "A branch that was fetched earlier, and that the remote no longer has, is in the way. Fetch with prune.",
    ),
    _row(
        "ref_exists",
        r"^fatal: a (?:branch|tag) named '.*' already exists|^fatal: tag '.*' already exists|' exists; cannot create '",
        "There is one of this name already. Choose another.",
    ),
    _row(
        "nothing_to_commit",
        r"^You asked to amend the most recent commit, but doing so would make",
        "The amended commit would change nothing. To undo it, reset to the one before.",
    ),
    _row(
        "nothing_to_commit",
        r"^nothing (?:added )?to commit|^no changes added to commit",
        "There is nothing to commit. Stage something first, or use all or paths.",
    ),
    _row(
        "nothing_to_stash",
        r"^No staged changes",
        "Nothing is staged that could be put away.",
    ),
    _row(
        "repository_invalid",
        r"^fatal: not a git repository|^fatal: (?:bad config|unknown repository extension|Expected git repo version)",
        "git can't work with this repository. Its own words are in output.",
    ),
)
# Of these the words of any other program may be meant, where no remote is talked to.
_OF_REMOTES = frozenset(
    {
        "remote_url_refused",
        "remote_host_unknown",
        "remote_auth_failed",
        "remote_ref_not_found",
        "remote_not_found",
        "remote_unreachable",
    }
)
# How git ends when a process that filters ends in the middle of their talk.
_HUNG_UP = re.compile(r"^fatal: (?:the remote end hung up|early EOF|protocol error)", re.MULTILINE)
_CLEANED = re.compile(r"^(?:fatal|error): (.+): clean filter '(.*)' failed$", re.MULTILINE)
_SMUDGED = re.compile(r"^(?:fatal|error): (.+): smudge filter (.*) failed$", re.MULTILINE)
_IN_TREE = re.compile(r"(?:checked out|used by worktree) at '(.*)'|^fatal: '(.*)' is a missing but", re.MULTILINE)
_SAID = re.compile(r"^(?:fatal|error): .*\n?", re.MULTILINE)
_PUSH_FAILED = re.compile(r"^error: failed to push some refs", re.MULTILINE)
_WRITTEN_OVER = re.compile(r"^[^\n]*\r(?=[^\n])", re.MULTILINE)
# that the program we have git ask gave no answer: git says right after it what it wanted to know
_OURS = re.compile(r"^error: unable to read askpass response from .*\n?", re.MULTILINE)
_REMOTE_LINE = re.compile(r"^remote:.*\n?", re.MULTILINE)
_BEHIND = {"fetch first", "non-fast-forward"}
_STALE = {"stale info", "remote ref updated since checkout"}
# unpack-trees.c (setup_unpack_trees_porcelain): each path on a line of its own, after a tab
_IN_WAY = re.compile(r"(?:would be overwritten by [\w -]{1,40}|would lose untracked files in them):\n((?:\t.*\n?)+)")
# the same, where git knows of but one at a time
_ONE_IN_WAY = re.compile(r"^error: Untracked working tree file '(.*)' would be overwritten by", re.MULTILINE)
_THERE_ALREADY = re.compile(r"^(.+) already exists, no checkout$", re.MULTILINE)


def failure(
    stderr: str,
    refs: Sequence[dict[str, Any]] = (),
    *,
    out: str = "",
    credentials: Credentials | None = None,
    hook: str | None = None,
    account: Account | None = None,
    network: bool = False,
) -> WorkspaceError:
    """The refusal that git's words mean, with them in `output` (redacted, the last 4 KB).

    `stderr` must not be shortened yet. Of a merge, rebase, pull, cherry-pick or stash it is stderr and stdout together, since git tells
    conflicts on the latter. `refs` are `push_refs` of a push, `credentials` what the run was given. `hook`: the local hook
    that is known to have ended the run; git itself does not say that it was one. `out`: the standard output, where git tells conflicts.
    `account`: git's own, where there is one. `network`: the run speaks with another repository.
    """
    said = _OURS.sub("", _WRITTEN_OVER.sub("", f"{stderr}\n{out}" if out else stderr))
    output = _bounded(redact(said, credentials))
    refs = [{**ref, "reason": redact(ref["reason"], credentials) if ref["reason"] else None} for ref in refs]
    if hook is not None:
        return WorkspaceError(
            "hook_refused", f"The hook {hook} refused: see its words in output.", hook=hook, output=output
        )
    if any(ref["status"] in ("rejected", "remote_rejected") for ref in refs):
        return _push_refusal(refs, output)
    words = _REMOTE_LINE.sub("", said)
    for searched, of_remotes in _to_search(words, out, account, network=network):
        for code, pattern, detail in _TABLE:
            if (of_remotes or code not in _OF_REMOTES) and pattern.search(searched):
                return WorkspaceError(code, detail, **_data(code, words, searched), output=output)
        if not network and _HUNG_UP.search(searched):
            return WorkspaceError(
                "filter_failed",
                "A filter that the configuration names ended too soon.",
                driver=None,
                path=None,
                output=output,
            )
    if _PUSH_FAILED.search(words):
        return WorkspaceError("push_rejected", "The push was refused: see output.", refs=refs, output=output)
    return WorkspaceError("git_failed", "git refused: see its words in output.", output=output)


def _to_search(words: str, out: str, account: Account | None, *, network: bool) -> list[tuple[str, bool]]:
    """The words that may say what they mean, the surest first, and whether they may be about a remote."""
    if account is None:
        return [(words, network)]
    own = "".join(f"fatal: {error}\nerror: {error}\n" for error in account.errors) + out
    if account.hooks:
        return [(own, network)]
    if network:  # also what ssh says, and the program that speaks HTTP
        return [(own, False), (words, True)]
    # What git prints by itself counts where it says nothing else. Its output comes first: no filter can print there.
    return [(own, False)] if account.errors else [(out, False), (_SAID.sub("", words), False)]


def _data(code: str, words: str, searched: str) -> dict[str, Any]:
    if code == "local_changes_in_way":
        return {"paths": _paths_in_way(words)}
    if code in ("branch_checked_out", "worktree_gone"):
        at = _IN_TREE.search(searched)
        return {"worktree": (at[1] or at[2]) if at else None}
    if code == "filter_failed":
        found = _CLEANED.search(searched) or _SMUDGED.search(searched)
        return {"driver": found[2] if found else None, "path": found[1] if found else None}
    return {}


def _push_refusal(refs: list[dict[str, Any]], output: str) -> WorkspaceError:
    refused = [ref for ref in refs if ref["status"] in ("rejected", "remote_rejected")]
    reasons = {ref["reason"] for ref in refused}
    # an answer for all refs names the cause; what was only taken along by it (atomic) comes last
    if reasons & _STALE:
        code, detail = (
            "lease_stale",
            "The remote's branch is not what was last seen of it. Fetch, look, and push again.",
        )
    elif reasons & _BEHIND:
        code, detail = "push_rejected", "The remote has commits that are not here. Pull, then push again."
    elif "already exists" in reasons:
        code, detail = (
            "push_rejected",
            "The remote has another tag of this name. Delete it there, or choose another name.",
        )
    else:
        first = next((ref for ref in refused if ref["reason"] != "atomic push failed"), refused[0])
        code, detail = "push_rejected", f"{first['ref']} was refused: {first['reason'] or first['summary']}."
    return WorkspaceError(code, detail, refs=refs, output=output)


# Of a file that a forced switch passes over too, by its mark (unpack-trees.c, `ERROR_NOT_UPTODATE_FILE`).
_ENTRY = re.compile(r"^error: Entry '(.+)' not uptodate\. Cannot merge", re.MULTILINE)


def _paths_in_way(words: str) -> list[str]:
    return [*_ENTRY.findall(words), *_ONE_IN_WAY.findall(words), *_THERE_ALREADY.findall(words), *_listed_in_way(words)]


def _listed_in_way(words: str) -> list[str]:
    return [line[1:] for block in _IN_WAY.findall(words) for line in block.split("\n") if line]


def _bounded(text: str) -> str:
    return text.encode(errors="replace")[-MAX_OUTPUT:].decode(errors="ignore").strip()
