"""Quick open: what fits, and what comes first."""

import random
import time
import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace_runtime.files import quick_open
from workspace_runtime.files.index import FileIndex, Names, Piece, Snapshot, fold
from workspace_runtime.files.quick_open import Kind, Match, search
from workspace_runtime.paths import WorkspaceRoot

FILES = """
.env .github/workflows/ci.yml .gitignore CHANGELOG.md Dockerfile Makefile README.md package.json pyproject.toml tsconfig.json
docs/architecture.md docs/guides/getting-started.md docs/guides/README.md docs/index.md
src/workspace_runtime/__init__.py src/workspace_runtime/__main__.py src/workspace_runtime/app.py
src/workspace_runtime/cli.py src/workspace_runtime/config.py src/workspace_runtime/errors.py src/workspace_runtime/paths.py
src/workspace_runtime/processes.py src/workspace_runtime/server.py src/workspace_runtime/events/hub.py
src/workspace_runtime/events/log.py src/workspace_runtime/events/model.py src/workspace_runtime/sessions/actor.py
src/workspace_runtime/sessions/manager.py src/workspace_runtime/sessions/model.py src/workspace_runtime/sessions/routes.py
src/workspace_runtime/sessions/drivers/claude_driver.py src/workspace_runtime/sessions/drivers/claude_events.py
src/workspace_runtime/security/routes.py src/workspace_runtime/security/tokens.py src/workspace_runtime/streams/session_socket.py
tests/unit/test_actor.py tests/unit/test_paths.py tests/unit/test_config.py tests/api/test_sessions.py tests/conftest.py
web/src/App.tsx web/src/App.test.tsx web/src/index.tsx web/src/components/Button.tsx web/src/components/IconButton.tsx
web/src/components/FileTree/FileTree.tsx web/src/components/FileTree/index.ts web/src/components/UserProfileView.tsx
web/src/hooks/useFileTree.ts web/src/hooks/useSessionStore.ts web/src/lib/apiClient.ts web/src/lib/format_date.ts
web/src/styles/app.css web/public/favicon.ico web/vite.config.ts web/package.json scripts/build.sh scripts/configure_logging.sh
"""
TREE = FILES.split()


def snapshot_of(paths: list[str]) -> Snapshot:
    """A snapshot of these files and all folders above them."""
    folders: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}
    for path in paths:
        parts = path.split("/")
        for depth in range(len(parts)):
            prefix = "".join(part + "/" for part in parts[:depth])
            here = folders.setdefault(prefix, (set(), set()))
            here[depth < len(parts) - 1].add(parts[depth])
    pieces = []
    for prefix, (files, below) in folders.items():
        texts = ["\0" + "\0".join(sorted(names)) + "\0" if names else "" for names in (files, below)]
        blocks = [(Names(text, fold(text)),) if text else () for text in texts]
        pieces.append(Piece(prefix, fold(prefix), blocks[0], blocks[1]))
    return Snapshot(tuple(pieces))


SNAPSHOT = snapshot_of(TREE)


def found(query: str, snapshot: Snapshot = SNAPSHOT, kind: Kind = "file", limit: int = 20) -> list[str]:
    return [match.path for match in search(snapshot, query, kind=kind, limit=limit)]


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("readme", "README.md"),
        ("README.md", "README.md"),
        ("app.py", "src/workspace_runtime/app.py"),
        ("App", "web/src/App.tsx"),
        ("app", "web/src/App.tsx"),
        ("app.css", "web/src/styles/app.css"),
        ("config", "src/workspace_runtime/config.py"),
        ("conf", "tests/conftest.py"),
        ("button", "web/src/components/Button.tsx"),
        ("ib", "web/src/components/IconButton.tsx"),
        ("upv", "web/src/components/UserProfileView.tsx"),
        ("uft", "web/src/hooks/useFileTree.ts"),
        ("cdr", "src/workspace_runtime/sessions/drivers/claude_driver.py"),
        ("clev", "src/workspace_runtime/sessions/drivers/claude_events.py"),
        ("sess/rou", "src/workspace_runtime/sessions/routes.py"),
        ("security/routes", "src/workspace_runtime/security/routes.py"),
        ("routes sessions", "src/workspace_runtime/sessions/routes.py"),
        ("sessions routes", "src/workspace_runtime/sessions/routes.py"),
        ("sessroutes", "src/workspace_runtime/sessions/routes.py"),
        ("test actor", "tests/unit/test_actor.py"),
        ("tactor", "tests/unit/test_actor.py"),
        ("filetree", "web/src/components/FileTree/FileTree.tsx"),
        ("filetree/index", "web/src/components/FileTree/index.ts"),
        ("docs/readme", "docs/guides/README.md"),
        ("pkg", "package.json"),
        ("ci", ".github/workflows/ci.yml"),
        ("mk", "Makefile"),
        ("fmtdate", "web/src/lib/format_date.ts"),
        ("web/package.json", "web/package.json"),
        ("src/workspace_runtime/sessions/model.py", "src/workspace_runtime/sessions/model.py"),
        ("./docs/index.md", "docs/index.md"),
        ("evhub", "src/workspace_runtime/events/hub.py"),
    ],
)
def test_what_comes_first(query: str, first: str) -> None:
    assert found(query)[:1] == [first]


def test_the_order_of_ways_to_fit() -> None:
    paths = [
        "a/log",
        "b/log.py",
        "a/log_file.py",
        "a/logger.py",
        "a/my_log.py",
        "a/catalog.py",
        "a/lo_g.py",
        "log_x/b.py",
    ]
    ranked = found("log", snapshot_of(paths))
    assert ranked[:4] == ["a/log", "b/log.py", "a/log_file.py", "a/logger.py"]
    assert ranked.index("a/my_log.py") < ranked.index("a/catalog.py")


def test_case_counts_only_for_the_rank_and_only_with_a_capital() -> None:
    paths = ["a/makefile", "b/Makefile"]
    assert found("Makefile", snapshot_of(paths)) == ["b/Makefile", "a/makefile"]
    assert found("makefile", snapshot_of(paths)) == ["a/makefile", "b/Makefile"]
    assert found("MAKEFILE", snapshot_of(paths)) == ["b/Makefile", "a/makefile"]


def test_equal_ones_are_ordered_by_length_then_alphabet() -> None:
    assert found("x", snapshot_of(["bb/x", "b/x", "a/x"])) == ["a/x", "b/x", "bb/x"]


def test_kinds() -> None:
    assert found("sessions", kind="directory")[0] == "src/workspace_runtime/sessions"
    assert search(SNAPSHOT, "sessions", kind="any", limit=1)[0].is_dir
    assert not any(match.is_dir for match in search(SNAPSHOT, "s", kind="file", limit=100))


def test_an_empty_query_gives_the_topmost() -> None:
    for query in ("", "  ", "/", "./"):
        assert found(query, limit=3) == [".env", "Makefile", "README.md"]
    assert len(found("", limit=1000)) == len(TREE)
    assert found("", kind="directory", limit=5) == ["src", "web", "docs", "tests", ".github"]


def test_what_fits_nothing() -> None:
    for query in ("zzz", "app app/zzz", "a\0b", "a" * 5000, "paths.py/x"):
        assert found(query) == []
    assert found("a", Snapshot(())) == found("", Snapshot(())) == []


def test_signs_of_patterns_are_letters() -> None:
    paths = ["a[b]^c.py", "d]-\\.py", "e*+?.py"]
    for query, path in (("[b]^", 0), ("^c", 0), ("]-\\", 1), ("*+?", 2), ("a^", 0)):
        assert found(query, snapshot_of(paths)) == [paths[path]]


def test_positions() -> None:
    (match,) = search(snapshot_of(["src/fooBar_baz.py"]), "fbb", kind="file", limit=5)
    assert match.positions == [4, 7, 11]
    (match,) = search(snapshot_of(["äb/ÖX.py"]), "öx", kind="file", limit=5)
    assert match.positions == [3, 4]
    (match,) = search(snapshot_of(["src/routes.py"]), "rou src", kind="file", limit=5)
    assert match.positions == [0, 1, 2, 4, 5, 6]


def fits(word: str, path: str) -> bool:
    letters = iter(path.lower())
    return all(letter in letters for letter in word.lower())


LETTERS = st.text(alphabet="abAB_.", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))


@given(
    paths=st.lists(st.lists(LETTERS, min_size=1, max_size=4).map("/".join), max_size=12, unique=True),
    query=st.text(alphabet="abB_./ ", min_size=1, max_size=6),
)
def test_it_finds_all_that_fits_and_nothing_else(paths: list[str], query: str) -> None:
    paths = [path for path in paths if not any(other.startswith(path + "/") for other in paths)]
    words = [cleaned for word in query.split() if (cleaned := word.removeprefix("./").lstrip("/"))]
    matches = search(snapshot_of(paths), query, kind="file", limit=100)
    assert {match.path for match in matches} == {path for path in paths if all(fits(word, path) for word in words)}
    assert len(matches) == len({match.path for match in matches})
    for match in matches:
        check_positions(match, words)
    assert matches == sorted(
        matches, key=lambda match: (-match.score, *((len(match.path), match.path) if words else (0,)))
    )


def check_positions(match: Match, words: list[str]) -> None:
    marked = "".join(match.path[position] for position in match.positions)
    assert match.positions == sorted(set(match.positions))
    assert all(fits(word, marked) for word in words)


def test_many_that_fit_are_cut_to_the_likeliest() -> None:
    chance = random.Random(7)
    words = ["alpha", "beta", "gamma", "delta", "theta", "sigma"]
    paths = {"/".join(chance.choices(words, k=4)) + f"/{chance.choice(words)}_{number}.py" for number in range(20_000)}
    snapshot = snapshot_of(sorted(paths | {"alpha/beta/gamma/delta/zeta_target.py", "alpha/ta"}))
    assert found("ta", snapshot)[0] == "alpha/ta"
    assert found("target", snapshot)[0] == found("gamma target", snapshot)[0] == "alpha/beta/gamma/delta/zeta_target.py"
    assert len(found("a", snapshot, limit=5000)) == 5000
    started = time.perf_counter()
    for query in ("a", "ta", "aaa", "gamma theta", "alpha/beta", "a b g", "aaaaaaaaaa", "/" * 300, "ab" * 100):
        found(query, snapshot)
    assert time.perf_counter() - started < 5
    assert quick_open.MAX_QUERY == 4096


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_letter_is_found_however_it_is_written(tmp_path: Path, form: Literal["NFC", "NFD"]) -> None:
    for name in ("caf\u00e9/r\u00e9sum\u00e9.txt", "cafe\u0301/the\u0301.txt", "\ud55c\uae00.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / unicodedata.normalize("NFD", "\ud55c\uae00.md")).touch()
    root = WorkspaceRoot(tmp_path)
    try:
        snapshot = FileIndex(root).refresh()
        for query, expected in (
            ("r\u00e9sum\u00e9", {"caf\u00e9/r\u00e9sum\u00e9.txt"}),
            ("th\u00e9", {"cafe\u0301/the\u0301.txt"}),
            ("caf\u00e9/", {"caf\u00e9/r\u00e9sum\u00e9.txt", "cafe\u0301/the\u0301.txt"}),
            ("caf\u00e9/th\u00e9.txt", {"cafe\u0301/the\u0301.txt"}),
            ("\ud55c\uae00", {"\ud55c\uae00.txt", unicodedata.normalize("NFD", "\ud55c\uae00.md")}),
        ):
            matches = search(snapshot, unicodedata.normalize(form, query), kind="file", limit=20)
            assert {match.path for match in matches} == expected
            for match in matches:
                letters = "".join(match.path[place] for place in match.positions)
                starts = (
                    unicodedata.normalize("NFD", query)[0] if match.path[match.positions[0]] != query[0] else query[0]
                )
                assert letters[0] == starts and max(match.positions) < len(match.path)
        assert {match.path for match in search(snapshot, "", kind="directory", limit=9)} == {"caf\u00e9", "cafe\u0301"}
        assert set(snapshot.folders()) == {"caf\u00e9", "cafe\u0301"}
    finally:
        root.close()
