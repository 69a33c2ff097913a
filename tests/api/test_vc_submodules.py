"""Submodules under every setting of what is to be ignored of them: the status and the difference say what git says."""

from collections.abc import Iterator

import pytest

from support.version_control import Case, Host, host

STATES = ["commit", "modified", "untracked", "all of it", "staged", "nothing"]
IGNORED = [None, "none", "untracked", "dirty", "all"]
WHERE = ["config", "gitmodules", "diff", "against gitmodules"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("submodules")) as made:
        yield made


@pytest.fixture(scope="module")
def case(here: Host) -> Case:
    """A repository with a submodule at `sub`, named otherwise, and one in that."""
    inner = here.init("inner")
    inner.commit({"i.txt": b"i\n"}, "first")
    source = here.init("source")
    source.commit({"f": b"1\n"}, "first")
    add = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "--name")
    source.git(*add, "nested", str(inner.folder), "nested")
    source.git("commit", "-q", "-m", "nested")
    made = here.init("case")
    made.commit({"a.txt": b"a\n"}, "first")
    made.git(*add, "a.name", str(source.folder), "sub")
    made.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "update", "--init", "--recursive")
    made.git("commit", "-q", "-m", "with a submodule")
    return made


def reach(case: Case, state: str) -> None:
    """Bring the submodule into a state, whatever it was in."""
    sub = case.folder / "sub"
    case.git("reset", "-q", "--hard")
    oid = case.git("rev-parse", "HEAD:sub")
    case.host.box.git(sub, "checkout", "-q", "--force", oid)
    case.host.box.git(sub, "clean", "-q", "-f", "-d", "-x")
    if state in ("commit", "staged", "all of it"):
        case.host.box.git(sub, "commit", "-q", "--allow-empty", "-m", "more")
    if state == "staged":
        case.git("-c", "submodule.a.name.ignore=none", "-c", "diff.ignoreSubmodules=none", "add", "sub")
    if state in ("modified", "all of it"):
        (sub / "f").write_text("changed\n")
    if state in ("untracked", "all of it"):
        (sub / "new").write_text("new\n")


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("ignored", IGNORED)
def test_as_git_says(case: Case, where: str, ignored: str | None) -> None:
    for key in ("submodule.a.name.ignore", "diff.ignoreSubmodules"):
        case.attempt("config", "--unset-all", key)
    for state in STATES:
        reach(case, state)
        if ignored is not None:
            key = "diff.ignoreSubmodules" if where == "diff" else "submodule.a.name.ignore"
            case.git("config", *(["-f", ".gitmodules"] if where == "gitmodules" else []), key, ignored)
            if where == "against gitmodules":
                case.git("config", "-f", ".gitmodules", key, "all" if ignored != "all" else "none")
        same_as_git(case, state)


def same_as_git(case: Case, state: str) -> None:
    wanted = {}
    for line in case.git("status", "--porcelain=v2").splitlines():
        fields = line.split(" ", 8)
        if fields[8] == "sub":
            wanted = {"code": fields[1], "letters": fields[2]}
    (found,) = [file for file in case.status()["files"] if file["path"] == "sub"] or [None]
    told = {}
    if found is not None:
        words = {None: ".", "modified": "M"}
        letters = (("commit_changed", "C"), ("modified", "M"), ("untracked", "U"))
        told = {
            "code": words[found["index"]] + words[found["worktree"]],
            "letters": "S" + "".join(letter if found["submodule"][name] else "." for name, letter in letters),
        }
    assert told == wanted, state
    for target, command in (
        ("worktree", []),
        ("HEAD", ["HEAD"]),
        ("index", ["--cached"]),
        ("HEAD~1..HEAD", ["HEAD~1", "HEAD"]),
    ):
        names = case.git("diff", "--name-only", *command).splitlines()
        assert [file["path"] for file in case.get("diff", target=target)["files"]] == names, (state, target)
    stat = {file["path"]: file for file in case.get("diff", stat=True)["files"]}
    counts = [line.split("\t") for line in case.git("diff", "--numstat").splitlines()]
    assert {path: (str(file["additions"]), str(file["deletions"])) for path, file in stat.items()} == {
        path: (added, deleted) for added, deleted, path in counts
    }, state


def test_what_is_nested_counts(case: Case) -> None:
    """A change in a submodule of a submodule, unless that one is to be ignored."""
    for key in ("submodule.a.name.ignore", "diff.ignoreSubmodules"):
        case.attempt("config", "--unset-all", key)
    reach(case, "nothing")
    nested = case.folder / "sub/nested"
    (nested / "i.txt").write_text("changed\n")
    same_as_git(case, "nested")
    assert case.get("diff", paths="sub")["files"][0]["hunks"][0]["lines"][1]["content"].endswith("-dirty")
    assert case.get("diff", paths="a.txt")["files"] == []
    case.host.box.git(case.folder / "sub", "config", "submodule.nested.ignore", "all")
    same_as_git(case, "nested, ignored")
    case.host.box.git(case.folder / "sub", "config", "--unset", "submodule.nested.ignore")
    case.host.box.git(nested, "checkout", "-q", "i.txt")
