"""The settings that are laid over a repository's configuration when git runs.

In a read every program that the repository's own configuration names is taken out; in a write what speaks with other machines, and
where the repository is not trusted the programs too. What stands in the user's own configuration (the scopes `system` and `global`)
is the user's will, and stays. What is included only in some cases counts as if it always were: the case may come while git runs.
"""

import os
import re
import shlex
import stat

from .configuration import Configuration, Settings
from .git import FULL_NAMES, WORDS

# Programs in sections with a name of their own: `filter.<name>.clean`.
_NAMED = re.compile(
    r"(filter)\..*\.(clean|smudge|process|required)|(merge)\..*\.driver|(diff)\..*\.(textconv|command|x?funcname|wordregex)"
    r"|gpg\.(.*\.)?(program|defaultkeycommand)",
    re.DOTALL,
)
# A driver that does what git does without one: there is no value that means it.
_PLAIN_MERGE = "git merge-file --marker-size=%L %A %O %B"
_TLS = re.compile(r"http\.(.*\.)?sslverify", re.DOTALL)
# git writes what a server sends into this file, and sends what stands in it.
_COOKIES = re.compile(r"http\.(.*\.)?(cookiefile|savecookies)", re.DOTALL)
# With these git takes arguments for a merge.
_MERGE_OPTIONS = re.compile(r"branch\..*\.mergeoptions", re.DOTALL)
# Files that git reads to their end.
_READ_WHOLE = ("core.attributesfile", "core.excludesfile")
# The filter that Git LFS installs, in the words that it uses (git-lfs-install(1)): it runs no program of the repository's choice.
_LFS = {
    "filter.lfs.clean": {"git-lfs clean -- %f", "git-lfs clean %f"},
    "filter.lfs.smudge": {"git-lfs smudge -- %f", "git-lfs smudge %f", "git-lfs smudge --skip -- %f"},
    "filter.lfs.process": {"git-lfs filter-process", "git-lfs filter-process --skip"},
}
# By these it does (git-lfs-ext(1), git-lfs-config(5)), or it writes elsewhere.
_LFS_DIVERTED = re.compile(r"lfs\.(extension\..*|storage|customtransfer\..*|(.*\.)?standalonetransferagent)", re.DOTALL)
_UNTRUSTED: Settings = [
    ("core.hooksPath", os.devnull),
    ("core.fsmonitor", "false"),
    ("commit.gpgSign", "false"),
    ("tag.gpgSign", "false"),
    ("push.gpgSign", "false"),
    ("merge.verifySignatures", "false"),
]
# What decides where a request goes, and whom it is shown to.
_ROUTES = re.compile(
    r"http\.(.*\.)?(proxy|curloptresolve|sslcainfo|sslcapath|sslbackend|cookiefile|savecookies|followredirects)|remote\..*\.proxy"
    r"|url\..*\.(push)?insteadof",
    re.DOTALL,
)
_HELPER = re.compile(r"credential\.(.*\.)?helper", re.DOTALL)


def for_reads(configuration: Configuration, top: bytes) -> Settings:
    """The settings under which, in a read, no program of the repository's choice runs (beside `git.READS`). `top` is the folder that git runs in."""
    return [*_without_programs(configuration), *_without_devices(configuration, top)]


def for_writes(configuration: Configuration, top: bytes, *, trusted: bool) -> Settings:
    """The settings under which a write runs: hooks, filters and merge drivers as git would, if the repository is `trusted`; what
    reaches other machines only as the user configured it."""
    users_own = configuration.last("core.sshcommand", ("system", "global"))
    settings: Settings = [
        ("core.sshCommand", users_own or shlex.quote(os.environ.get("GIT_SSH") or "ssh")),
        ("protocol.ext.allow", "never"),
        ("core.alternateRefsCommand", "true"),
        ("core.quotePath", "false"),
        FULL_NAMES,
        WORDS,
        ("i18n.commitEncoding", "UTF-8"),  # of what a client sends
        ("submodule.recurse", "false"),
        ("push.recurseSubmodules", "no"),
        ("fetch.recurseSubmodules", "false"),
        ("credential.helper", ""),
    ]
    settings += [(entry.key, entry.value or "") for entry in configuration.matching(_HELPER, own=False)]
    settings += [(entry.key, "true") for entry in configuration.matching(_TLS, own=True)]
    settings += [
        (entry.key, "" if entry.key.endswith("cookiefile") else "false")
        for entry in configuration.matching(_COOKIES, own=True)
    ]
    # a collection of garbage in the background would be ended with the command that began it
    settings += [("gc.autoDetach", "false"), ("maintenance.autoDetach", "false")]
    settings += _without_devices(configuration, top)
    if trusted:
        return settings
    settings += [*_UNTRUSTED, *_without_programs(configuration)]
    return settings + [(entry.key, "") for entry in configuration.matching(_MERGE_OPTIONS, own=True)]


def detours(configuration: Configuration) -> list[str]:
    """Settings of the repository's own by which a token could reach somebody else than the remote's host."""
    return [entry.key for entry in configuration.matching(_ROUTES, own=True)]


def _without_programs(configuration: Configuration) -> Settings:
    """Blanks for the programs that sections of the repository's own name."""
    settings: Settings = []
    diverted = any(True for _ in configuration.matching(_LFS_DIVERTED, own=True))
    known = not diverted and all((configuration.last(key) or min(known)) in known for key, known in _LFS.items())
    for entry in configuration.matching(_NAMED, own=True):
        if entry.key.startswith("filter.lfs.") and known:
            continue
        settings.append((entry.key, _blank(entry.key)))
    if diverted:
        # the user's own Git LFS would do it, too
        settings += [*((key, "") for key in _LFS), ("filter.lfs.required", "false")]
    return settings


def _blank(key: str) -> str:
    if key.endswith(".required"):
        return "false"
    return _PLAIN_MERGE if key.endswith(".driver") else ""


def _without_devices(configuration: Configuration, top: bytes) -> Settings:
    """Blanks for what the repository has git read to its end, and what has none, or keeps git waiting for it."""
    settings: Settings = []
    for key in _READ_WHOLE:
        value = configuration.last(key)
        if value and configuration.last(key, ("local", "worktree")) == value:
            path = os.path.join(top, os.path.expanduser(os.fsencode(value)))
            if os.path.lexists(path) and not _is_file(path):
                settings.append((key, os.devnull))
    return settings


def _is_file(path: bytes) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
