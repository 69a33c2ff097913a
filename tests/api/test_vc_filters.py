"""Filters that fail: told as that, with the driver and the file, whatever they print."""

from collections.abc import Iterator

import pytest

from support.version_control import Case, Host, host

# What a program may print, in the words of git and of others.
WORDS = (
    "fatal: unable to access 'http://127.0.0.1/': Could not resolve host\\nfatal: Could not read from remote repository\\n"
    "fatal: Authentication failed for 'x'\\nx.lock': File exists\\nnothing to commit\\nPlease tell me who you are\\n"
    "fatal: the remote end hung up unexpectedly\\n"
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("filters")) as made:
        yield made


@pytest.fixture
def case(here: Host) -> Case:
    made = here.fresh()
    made.commit({".gitattributes": b"*.bin filter=odd\n", "a.bin": b"one\n", "plain": b"p\n"}, "first")
    made.git("branch", "side")
    made.commit({"a.bin": b"two\n"}, "second")
    return made


def filtered(case: Case, **settings: str) -> None:
    for name, value in {"required": "true", **settings}.items():
        case.git("config", f"filter.odd.{name}", value)


FAILING = {
    "missing process": {"process": "no-such-program filter-process", "clean": "no-such-program clean"},
    "process that ends": {"process": f"printf '%b' \"{WORDS}\" >&2; exit 3"},
    "process that takes and ends": {"process": f"read line; printf '%b' \"{WORDS}\" >&2; exit 3"},
    "missing program": {"clean": "no-such-program", "smudge": "no-such-program"},
    "program that prints": {
        "clean": f"printf '%b' \"{WORDS}\" >&2; exit 3",
        "smudge": f"printf '%b' \"{WORDS}\" >&2; exit 3",
    },
}


@pytest.mark.parametrize("how", FAILING)
def test_it_is_the_filter(case: Case, how: str) -> None:
    filtered(case, **FAILING[how])
    case.write("a.bin", "changed\n")
    for route, body in (
        ("stage", {"all": True}), ("stage", {"paths": ["a.bin"]}), ("commit", {"message": "m", "all": True}), ("stash", {}), ("discard", {"all": True}),
    ):  # fmt: skip
        problem = case.refused("POST", route, body)
        assert (problem["code"], problem["status"], problem["driver"]) == ("filter_failed", 409, "odd"), (
            route,
            problem,
        )
        assert problem["path"] == "a.bin"
    for key in FAILING[how]:
        case.git("config", "--unset", f"filter.odd.{key}")
    case.git("checkout", "-q", "a.bin")
    filtered(case, **FAILING[how])
    problem = case.refused("POST", "checkout", {"branch": "side"})
    assert (problem["code"], problem["driver"]) == ("filter_failed", "odd"), problem


def test_one_that_works_and_prints_chooses_nothing(case: Case) -> None:
    """A filter that prints what it likes, and a failure for another reason."""
    loud = f"printf '%b' \"{WORDS}\" >&2; cat"
    filtered(case, clean=loud, smudge=loud)
    case.write("a.bin", "changed\n")
    assert "dropped" not in case.post("stage", paths=["a.bin"])
    case.write("a.bin", "changed again\n")
    assert case.refused("POST", "checkout", {"branch": "side"})["code"] == "local_changes_in_way"
    case.write(".gitignore", "ignored\n")
    case.write("ignored", "i\n")
    assert case.refused("POST", "stage", {"paths": ["ignored"]})["code"] == "path_ignored"
    assert case.refused("POST", "stage", {"paths": ["a.bin", "gone"]})["code"] == "file_not_found"
    case.post("commit", message="m", all=True)
    assert case.refused("POST", "commit", {"message": "m"})["code"] == "nothing_to_commit"


def test_a_hook_that_prints_chooses_nothing(case: Case) -> None:
    hooks = case.folder / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("pre-commit", "post-checkout", "reference-transaction", "post-index-change", "pre-rebase", "pre-push"):
        (hooks / name).write_text(f"#!/bin/sh\nprintf '%b' \"{WORDS}\" >&2\n")
        (hooks / name).chmod(0o755)
    assert case.refused("POST", "commit", {"message": "m"})["code"] == "nothing_to_commit"
    case.write("a.bin", "in the way\n")
    assert case.refused("POST", "checkout", {"branch": "side"})["code"] == "local_changes_in_way"
    assert case.refused("POST", "rebase", {"onto": "side"})["code"] == "local_changes_in_way"
