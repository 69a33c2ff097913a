"""Differences as data: what real git tells of every kind of change, read right, whatever is configured and however it is cut."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.git_home import Sandbox
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import path_bytes
from workspace_runtime.version_control.diff_output import CONFIG, DiffOutput, arguments, parse, parse_words

LIMITS = {"max_file_bytes": 1 << 30, "max_file_lines": 1 << 30}
ODD = os.fsencode('a "b\n\\\t') + b"caf\xe9 \xc3\xa9"
BLOCK = b"def made():\n    return %d\n\n"  # those that follow may be shown a line further down
DULL = {"path", "old_path", "status", "additions", "deletions", "binary", "truncated"}


def configured(values: dict[str, str]) -> dict[str, str]:
    """An environment in which git has these settings."""
    pairs = {f"GIT_CONFIG_KEY_{i}": key for i, key in enumerate(values)}
    return (
        pairs
        | {f"GIT_CONFIG_VALUE_{i}": value for i, value in enumerate(values.values())}
        | {"GIT_CONFIG_COUNT": str(len(values))}
    )


# What `submodules.not_looking_inside` gives where nothing is said of any.
NOT_INSIDE = {"diff.ignoreSubmodules": "dirty"}


def output(sandbox: Sandbox, repository: Path, *what: str, **options: Any) -> bytes:
    return sandbox.git(repository, "diff", *arguments(**options), *what, env=configured({**CONFIG, **NOT_INSIDE}))


def read(raw: bytes, *, cut: bool = False, limits: dict[str, int] | None = None) -> DiffOutput:
    return parse(raw, cut=cut, **(LIMITS | (limits or {})))


def files(raw: bytes) -> dict[str, dict[str, Any]]:
    found = read(raw)
    assert found.complete
    assert len({file["path"] for file in found.files}) == len(found.files)
    return {file["path"]: file for file in found.files}


def write(repository: Path, name: str | bytes, content: bytes) -> None:
    Path(os.fsdecode(os.path.join(os.fsencode(repository), os.fsencode(name)))).write_bytes(content)


def numbers(*marked: str) -> bytes:
    """The lines 1 to 40 (13 in letters), with some of them replaced: "2=two"."""
    lines = {"13": "thirteen"} | dict(line.split("=") for line in marked)
    return "".join(lines.get(str(i), str(i)) + "\n" for i in range(1, 41)).encode()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


@pytest.fixture
def zoo(sandbox: Sandbox) -> Path:
    """A repository whose working tree has every kind of change that is no conflict."""
    inner = sandbox.init("inner")
    sandbox.commit(inner, {"f": b"1\n"}, "inner")
    zoo = sandbox.init("zoo")
    sandbox.git(zoo, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner), "sub")
    before: dict[str | bytes, bytes] = {
        "binary": b"\0one",
        "blank": b"a\n\nb\n",
        "blocks": b"".join(BLOCK % i for i in (1, 2)),
        "crlf": b"a\r\nb\r\n",
        "deleted": b"gone\n",
        "emptied": b"x\n",
        "mode": b"same\n",
        "modified": numbers(),
        "no newline": b"one",
        "renamed": numbers().replace(b"\n", b"!\n"),
        "type": b"file\n",
        "touched": b"same\n",
        ODD: b"q\n",
        "latin": b"caf\xe9\n",
    }
    sandbox.commit(zoo, before, "base")
    changed: dict[str | bytes, bytes] = {
        "binary": b"\0two",
        "blank": b"a\n\nc\n",
        "blocks": b"".join(BLOCK % i for i in (1, 3, 2)),
        "crlf": b"a\r\nc\r\n",
        "emptied": b"",
        "modified": numbers("2=two", "15=fifteen", "39=x"),
        "no newline": b"two",
        "intended": b"new\n",
        "intended and empty": b"",
        ODD: b"q2\n",
        "latin": b"th\xe9\n",
    }
    for name, content in changed.items():
        write(zoo, name, content)
    (zoo / "mode").chmod(0o755)
    (zoo / "deleted").unlink()
    (zoo / "type").unlink()
    (zoo / "type").symlink_to("target")
    (zoo / "renamed").rename(zoo / "renamed to")
    write(zoo, "renamed to", numbers("7=seven").replace(b"\n", b"!\n"))
    write(zoo, "copied", numbers("7=seven"))
    sandbox.git(zoo, "add", "--intent-to-add", "copied", "intended", "intended and empty", "renamed to")
    sandbox.commit(zoo / "sub", {"f": b"2\n"}, "moved")
    return zoo


def test_every_kind_of_change(sandbox: Sandbox, zoo: Path) -> None:
    found = files(output(sandbox, zoo))
    told = {
        name: (file["status"], file["additions"], file["deletions"], len(file["hunks"])) for name, file in found.items()
    }
    assert told == {
        ODD.decode(errors="replace"): ("modified", 1, 1, 1),
        "binary": ("modified", None, None, 0),
        "blank": ("modified", 1, 1, 1),
        "blocks": ("modified", 3, 0, 1),
        "copied": ("added", 40, 0, 1),
        "crlf": ("modified", 1, 1, 1),
        "deleted": ("deleted", 0, 1, 1),
        "emptied": ("modified", 0, 1, 1),
        "intended": ("added", 1, 0, 1),
        "intended and empty": ("added", 0, 0, 0),
        "latin": ("modified", 1, 1, 1),
        "mode": ("modified", 0, 0, 0),
        "modified": ("modified", 3, 3, 3),
        "no newline": ("modified", 1, 1, 1),
        "renamed to": ("renamed", 1, 1, 1),
        "sub": ("modified", 1, 1, 1),
        "type": ("type_changed", 1, 1, 2),
    }
    assert [name for name, file in found.items() if file["binary"]] == ["binary"]
    assert [name for name, file in found.items() if file["submodule"]] == ["sub"]
    assert not any(file["truncated"] for file in found.values())
    assert found[ODD.decode(errors="replace")]["path_bytes"] == path_bytes(ODD)
    assert "path_bytes" not in found["latin"]
    assert (found["mode"]["old_mode"], found["mode"]["new_mode"]) == ("100644", "100755")
    assert (found["deleted"]["new_mode"], found["deleted"]["new_oid"]) == (None, None)
    assert (found["intended"]["old_mode"], found["intended"]["old_oid"]) == (None, None)
    assert (found["renamed to"]["old_path"], found["renamed to"]["similarity"]) == ("renamed", 95)
    assert found["modified"]["old_path"] is None
    assert found["modified"]["similarity"] is None
    oid = sandbox.git(zoo, "rev-parse", ":modified").decode().strip()
    assert found["modified"]["old_oid"] == oid


def test_the_lines_of_hunks(sandbox: Sandbox, zoo: Path) -> None:
    found = files(output(sandbox, zoo, context=1))
    first, second, third = found["modified"]["hunks"]
    assert len({first["id"], second["id"], third["id"]}) == 3
    assert (second["header"], second["section"]) == ("@@ -14,3 +14,3 @@ thirteen", "thirteen")
    assert (second["old_start"], second["old_lines"], second["new_start"], second["new_lines"]) == (14, 3, 14, 3)
    assert second["lines"] == [
        {"type": "context", "content": "14", "old_line": 14, "new_line": 14},
        {"type": "delete", "content": "15", "old_line": 15, "new_line": None},
        {"type": "add", "content": "fifteen", "old_line": None, "new_line": 15},
        {"type": "context", "content": "16", "old_line": 16, "new_line": 16},
    ]
    assert [line["content"] for line in found["crlf"]["hunks"][0]["lines"]] == ["a\r", "b\r", "c\r"]
    assert [line["content"] for line in found["blank"]["hunks"][0]["lines"]] == ["", "b", "c"]
    assert [line["content"] for line in found["latin"]["hunks"][0]["lines"]] == ["caf\ufffd", "th\ufffd"]
    assert found["no newline"]["hunks"][0]["lines"] == [
        {"type": "delete", "content": "one", "old_line": 1, "new_line": None, "no_newline": True},
        {"type": "add", "content": "two", "old_line": None, "new_line": 1, "no_newline": True},
    ]
    (hunk,) = found["intended"]["hunks"]
    assert (hunk["old_start"], hunk["old_lines"], hunk["new_start"], hunk["new_lines"]) == (0, 0, 1, 1)


def test_an_id_stays_and_tells_hunks_apart(sandbox: Sandbox, zoo: Path) -> None:
    def ids() -> dict[str, list[str]]:
        return {name: [hunk["id"] for hunk in file["hunks"]] for name, file in files(output(sandbox, zoo)).items()}

    before = ids()
    assert ids() == before
    write(zoo, "modified", numbers("2=two", "15=fifteen", "39=y"))
    after = ids()
    assert after["modified"][:2] == before["modified"][:2]
    assert after["modified"][2] != before["modified"][2]
    assert {name for name in before if before[name] != after[name]} == {"modified"}
    sandbox.commit(zoo, {"twin": numbers()}, "twin")
    write(zoo, "twin", numbers("2=two", "15=fifteen", "39=y"))
    assert not set(ids()["twin"]) & set(after["modified"])


HOSTILE = {
    "color.ui": "always",
    "color.diff": "always",
    "core.abbrev": "4",
    "core.bigFileThreshold": "1",
    "core.pager": "cat -A",
    "core.quotePath": "false",
    "core.whitespace": "trailing-space,cr-at-eol",
    "diff.autoRefreshIndex": "false",
    "diff.color": "always",
    "diff.colorMoved": "zebra",
    "diff.colorMovedWS": "ignore-all-space",
    "diff.context": "0",
    "diff.dirstat": "lines,1",
    "diff.dstPrefix": "new/",
    "diff.external": "false",
    "diff.indentHeuristic": "false",
    "diff.interHunkContext": "9",
    "diff.mnemonicPrefix": "true",
    "diff.noPrefix": "true",
    "diff.orderFile": "order",
    "diff.relative": "true",
    "diff.renameLimit": "1",
    "diff.renames": "copies",
    "diff.srcPrefix": "old/",
    "diff.statGraphWidth": "1",
    "diff.submodule": "log",
    "diff.suppressBlankEmpty": "true",
    "diff.wordRegex": ".",
    "diff.wsErrorHighlight": "all",
    "diff.upper.command": "false",
    "diff.upper.textconv": "tr a-z A-Z <",
    "diff.upper.wordRegex": "[a-z]",
}


def test_no_configuration_changes_what_is_read(sandbox: Sandbox, zoo: Path) -> None:
    (zoo / "order").write_text("type\nmodified\n")
    (zoo / "folder").mkdir()
    (zoo / ".git/info/attributes").write_text("modified diff=upper\n")
    plain, words = output(sandbox, zoo), output(sandbox, zoo, words=True)
    settings_before = sandbox.git(zoo, "diff")
    for key, value in HOSTILE.items():
        sandbox.git(zoo, "config", key, value)
    os.utime(zoo / "touched", (1, 1))
    for folder in (zoo, zoo / "folder"):
        assert read(output(sandbox, folder)) == read(plain)
        assert parse_words(output(sandbox, folder, words=True), cut=False, **LIMITS) == parse_words(
            words, cut=False, **LIMITS
        )
    # they do have a say where nothing is done about it
    assert sandbox.git(zoo, "diff", "--no-ext-diff") != settings_before


@pytest.mark.parametrize(("key", "value"), HOSTILE.items())
def test_no_single_setting_changes_what_is_read(sandbox: Sandbox, zoo: Path, key: str, value: str) -> None:
    (zoo / "order").write_text("type\nmodified\n")
    (zoo / ".git/info/attributes").write_text("modified diff=upper\n")
    plain = read(output(sandbox, zoo))
    sandbox.git(zoo, "config", key, value)
    os.utime(zoo / "touched", (1, 1))
    assert read(output(sandbox, zoo)) == plain


def test_nothing_runs_inside_a_submodule(sandbox: Sandbox, zoo: Path) -> None:
    """A filter that the submodule's own configuration names would run to see whether the submodule has changes."""
    mark = zoo / "ran"
    sandbox.git(zoo / "sub", "config", "filter.evil.clean", f"touch '{mark}'; cat")
    (zoo / "sub/.gitattributes").write_text("* filter=evil\n")
    os.utime(zoo / "sub/f", (1, 1))
    found = files(output(sandbox, zoo))
    assert not mark.exists()
    assert found["sub"]["hunks"][0]["lines"][1]["content"].startswith("Subproject commit ")
    sandbox.git(zoo, "diff")
    assert mark.exists()


def conflicted(sandbox: Sandbox, *names: str) -> Path:
    """A repository where a merge stopped: names in conflict, `cut`, which one side deleted, and `plain` changed."""
    repository = sandbox.init("conflicted")
    sandbox.commit(repository, {"cut": b"base\n", "plain": b"base\n", **dict.fromkeys(names, b"base\n")}, "base")
    sandbox.git(repository, "checkout", "--quiet", "-b", "other")
    sandbox.git(repository, "rm", "--quiet", "cut")
    sandbox.commit(repository, {"both": b"other\n", **dict.fromkeys(names, b"other\n")}, "other")
    sandbox.git(repository, "checkout", "--quiet", "main")
    sandbox.commit(repository, {"both": b"mine\n", "cut": b"mine\n", **dict.fromkeys(names, b"mine\n")}, "mine")
    assert sandbox.attempt(repository, "merge", "other").returncode == 1
    write(repository, "plain", b"changed\n")
    return repository


def test_conflicts_stand_once_and_derail_nothing(sandbox: Sandbox) -> None:
    repository = conflicted(sandbox, "con")
    write(repository, "cut", b"changed\n")  # git tells of this one twice
    raw = output(sandbox, repository)
    assert raw.count(b"\0cut\0") == 2
    assert b"::" in raw
    found = files(raw)
    assert {name: file["status"] for name, file in found.items()} == {
        "both": "unmerged",
        "con": "unmerged",
        "cut": "unmerged",
        "plain": "modified",
    }
    for name in ("both", "con", "cut"):
        assert (found[name]["hunks"], found[name]["additions"], found[name]["binary"]) == ([], None, False)
    assert [line["content"] for line in found["plain"]["hunks"][0]["lines"]] == ["base", "changed"]
    staged = files(output(sandbox, repository, "--cached"))
    assert {file["status"] for file in staged.values()} == {"unmerged"}
    against_head = files(output(sandbox, repository, "HEAD"))
    assert {file["status"] for file in against_head.values()} == {"modified"}
    assert against_head["con"]["hunks"][0]["lines"][0]["content"] == "<<<<<<< HEAD"


def test_a_name_in_conflict_that_looks_like_a_patch(sandbox: Sandbox) -> None:
    lie = "a\ndiff --git a/plain b/plain\n--- a/plain\n+++ b/plain\n@@ -1 +1 @@\n-base\n+lie\n"
    (sandbox.folder / "conflicted").mkdir()
    repository = conflicted(sandbox, *[lie[:-1]])
    for what in ((), ("--cached",)):
        assert "lie" not in str([file["hunks"] for file in files(output(sandbox, repository, *what)).values()])
    found = files(output(sandbox, repository))
    assert [line["content"] for line in found["plain"]["hunks"][0]["lines"]] == ["base", "changed"]
    assert found[lie[:-1]]["status"] == "unmerged"


@pytest.mark.parametrize("quote", ["true", "false"])
def test_names_of_any_bytes(sandbox: Sandbox, quote: str) -> None:
    repository = sandbox.init("names")
    names = [b"x%cy" % byte for byte in range(1, 256) if byte not in b"/"]
    names += [b"-dash", b" ", b"a/b b/b", b'"', b"a b/a b", b"\xff\xfe/\n", ODD]
    sandbox.commit(repository, {os.fsdecode(name): name + b"\n" for name in names}, "names")
    for name in names:
        write(repository, name, name + b"!\n")
    raw = sandbox.git(repository, "-c", f"core.quotePath={quote}", "diff", *arguments())
    found = {file.get("path_bytes", file["path"]): file for file in read(raw).files}
    assert set(found) == {path_bytes(name) or name.decode() for name in names}
    for name in names:
        file = found[path_bytes(name) or name.decode()]
        assert file["hunks"][0]["lines"][-1]["content"] == (name + b"!").decode(errors="replace").rpartition("\n")[2]


def test_a_commit_and_a_rename_without_counts_of_lines(sandbox: Sandbox) -> None:
    repository = sandbox.init("commits")
    first = sandbox.commit(repository, {"a": numbers(), "empty": b""}, "first")
    tree = ("diff-tree", "-r", "--root")
    found = files(sandbox.git(repository, *tree, *arguments(), first))
    assert {name: (file["status"], file["additions"]) for name, file in found.items()} == {
        "a": ("added", 40),
        "empty": ("added", 0),
    }
    sandbox.git(repository, "mv", "a", "b\nc")
    second = sandbox.commit(repository, {}, "second")
    for what in ((second,), (first, second), ("--no-commit-id", second)):
        (file,) = files(sandbox.git(repository, *tree, *arguments(), *what)).values()
        assert (file["status"], file["old_path"], file["path"], file["similarity"]) == ("renamed", "a", "b\nc", 100)
        assert (file["old_oid"], file["hunks"]) == (file["new_oid"], [])
    assert files(sandbox.git(repository, *tree, *arguments(), second, second)) == {}


def test_without_patches_and_with_white_space_ignored(sandbox: Sandbox, zoo: Path) -> None:
    dull = {name: {key: file[key] for key in DULL} for name, file in files(output(sandbox, zoo)).items()}
    bare = files(output(sandbox, zoo, patch=False))
    assert {name: {key: file[key] for key in DULL} for name, file in bare.items()} == dull
    assert not any(file["hunks"] for file in bare.values())
    write(zoo, "blank", b"a  \n\nb\n")
    file = files(output(sandbox, zoo, ignore_whitespace=True))["blank"]
    assert (file["status"], file["additions"], file["deletions"], file["hunks"]) == ("modified", 0, 0, [])
    assert files(output(sandbox, zoo, ignore_whitespace=True))["crlf"]["additions"] == 1


def test_limits_leave_counts(sandbox: Sandbox, zoo: Path) -> None:
    write(zoo, "modified", b"long\n" * 100)
    whole = files(output(sandbox, zoo))
    for limits in ({"max_file_lines": 100}, {"max_file_bytes": 500}):
        found = {file["path"]: file for file in read(output(sandbox, zoo), limits=limits).files}
        assert [name for name, file in found.items() if file["truncated"]] == ["modified"]
        assert found["modified"] == whole["modified"] | {"truncated": True, "hunks": []}
        assert found["renamed to"] == whole["renamed to"]


def test_cut_anywhere(sandbox: Sandbox, zoo: Path) -> None:
    """What is given of a cut output is the truth: as in the whole one, or marked as missing."""
    for raw in (output(sandbox, zoo), output(sandbox, conflicted(sandbox, "con"))):
        whole = read(raw).files
        shown = set()
        for size in range(len(raw)):
            found = read(raw[:size], cut=True)
            assert found.complete <= (len(found.files) == len(whole))
            for file, right in zip(found.files, whole, strict=False):
                if file["additions"] is None and right["additions"] is not None:
                    assert file["truncated"]
                    assert not file["binary"]
                    right = right | {"additions": None, "deletions": None}
                if file["truncated"]:
                    right = right | {"truncated": True, "hunks": [], "binary": file["binary"]}
                else:
                    shown.add(file["path"])
                assert file == right
            assert not found.files or found.files[-1]["truncated"]
        assert shown == {file["path"] for file in whole[:-1]}


@given(st.binary(max_size=60), st.integers(0), st.booleans(), st.booleans())
def test_garbage_is_refused_and_never_a_crash(junk: bytes, place: int, cut: bool, words: bool) -> None:
    raw = SAMPLE[: place % len(SAMPLE)] + junk + SAMPLE[place % len(SAMPLE) + len(junk) :]
    try:
        (parse_words if words else parse)(raw, cut=cut, **LIMITS)
    except WorkspaceError as refused:
        assert refused.code == "git_output_invalid"


SAMPLE = (
    b":100644 100644 %(a)b %(b)b M\0x\0:100644 100644 %(a)b %(b)b R090\0y\0z\0:100644 000000 %(a)b %(b)b U\0u\0"
    b"1\t1\tx\0"
    + b"1\t0\t\0y\0z\0"
    + b"0\t0\tu\0\0diff --git a/x b/x\nindex 1..2 100644\n--- a/x\n+++ b/x\n@@ -1 +1 @@ f\n-a\n+b\n"
    b"diff --git a/y b/z\nrename from y\nrename to z\n--- a/y\n+++ b/z\n@@ -1 +1,2 @@\n c\n+d\n\\ No newline at end of file\n"
    b"* Unmerged path u\n"
) % {b"a": b"1" * 40, b"b": b"0" * 40}


def test_the_sample_is_read_and_its_faults_are_not() -> None:
    found = files(SAMPLE)
    assert found["z"]["hunks"][0]["lines"][-1]["no_newline"]
    faults = {
        b"@@ -1 +1 @@": b"@@ -1,2 +1 @@",
        b"\n-a": b"\n*a",
        b"diff --git a/x b/x": b"diff --git a/x b/w",
        b"M\0x": b"Q\0x",
        b"0\t0\tu": b"0 0 u",
    }
    for right, wrong in faults.items():
        assert right in SAMPLE
        with pytest.raises(WorkspaceError):
            read(SAMPLE.replace(right, wrong))
    assert read(b"") == DiffOutput([], True)
    assert read(b"", cut=True) == DiffOutput([], False)


# --- words ------------------------------------------------------------------------------------------------------------------


def test_words(sandbox: Sandbox) -> None:
    repository = sandbox.init("words")
    sandbox.commit(repository, {"a": "call(first, größe)\n\nold line\r\nend".encode()}, "base")
    write(repository, "a", "call(first, höhe)\n\nend\n~ new\n".encode())
    raw = sandbox.git(repository, "diff", *arguments(words=True), env={"LC_ALL": "C"})
    (file,) = parse_words(raw, cut=False, **LIMITS).files
    (hunk,) = file["hunks"]
    assert "id" not in hunk
    assert hunk["old_lines"] == 4
    lines = [[(segment["type"], segment["content"]) for segment in line["segments"]] for line in hunk["lines"]]
    assert lines[:2] == [
        [("context", "call(first, "), ("delete", "größe"), ("add", "höhe"), ("context", ")")],
        [],
    ]
    both = [segment for line in lines for segment in line]
    assert ("add", "~ new") in both
    assert [text.strip() for kind, text in both if kind == "delete"] == ["größe", "old line"]


# --- a second reading -------------------------------------------------------------------------------------------------------

ROWS = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"", b"\r", b"a\r", b"-- a", b"++ b", b" c", b"~", b"\\ No newline", b"\xff"]),
    st.sampled_from([b"@@ -1 +1 @@", b"diff --git a/0 b/0", b"* Unmerged path 0", "ü\u2028\x85".encode(), b"\x0c\x0b"]),
    st.binary(max_size=6).map(lambda row: row.replace(b"\n", b"").replace(b"\0", b"")),
)
TEXT = st.tuples(st.lists(ROWS, max_size=14), st.booleans()).map(lambda made: b"\n".join(made[0]) + b"\n" * made[1])


def rows_of(text: bytes) -> list[tuple[str, bool]]:
    """Lines as text, and whether they end with a newline."""
    *rows, last = text.decode(errors="replace").split("\n")
    return [(row, True) for row in rows] + ([(last, False)] if last else [])


def applied(old: list[tuple[str, bool]], hunks: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """The new lines, made of the old ones by hunks; asserts that these fit."""
    new: list[tuple[str, bool]] = []
    done = 0
    for hunk in hunks:
        start = hunk["old_start"] - (hunk["old_lines"] > 0)
        new += old[done:start]
        done = start
        assert len(new) == hunk["new_start"] - (hunk["new_lines"] > 0)
        for line in hunk["lines"]:
            row = line["content"], not line.get("no_newline", False)
            if line["type"] != "add":
                assert old[done] == row
                done += 1
                assert line["old_line"] == done
            if line["type"] != "delete":
                new.append(row)
                assert line["new_line"] == len(new)
    return new + old[done:]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=12), context=st.integers(0, 4))
def test_hunks_make_the_new_text_of_the_old(sandbox: Sandbox, pairs: list[tuple[bytes, bytes]], context: int) -> None:
    repository = sandbox.folder / "texts"
    if not repository.exists():
        sandbox.init("texts")
    sandbox.git(repository, "rm", "-r", "--quiet", "--cached", "--force", "--ignore-unmatch", ".")
    for index, (old, _) in enumerate(pairs):
        write(repository, str(index), old)
    sandbox.git(repository, "add", *map(str, range(len(pairs))))
    for index, (_, new) in enumerate(pairs):
        write(repository, str(index), new)
    found = files(output(sandbox, repository, context=context))
    assert {int(name) for name in found} == {index for index, (old, new) in enumerate(pairs) if old != new}
    for name, file in found.items():
        old, new = pairs[int(name)]
        assert applied(rows_of(old), file["hunks"]) == rows_of(new)
        kinds = [line["type"] for hunk in file["hunks"] for line in hunk["lines"]]
        assert (file["additions"], file["deletions"]) == (kinds.count("add"), kinds.count("delete"))
