"""Pages and frames of the files stay below a number of bytes, however long paths are."""

import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from workspace_runtime.files import listing, topic
from workspace_runtime.files.listing import Listing, list_folder
from workspace_runtime.paths import WorkspaceRoot

BOUND = 300_000


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkspaceRoot]:
    """Many long names, deep, of bytes that JSON escapes or that are not UTF-8, and links with long targets."""
    monkeypatch.setattr(listing, "MAX_PAGE_BYTES", BOUND)
    folder = os.fsencode(tmp_path / "root")
    os.mkdir(folder)
    at = os.open(folder, os.O_RDONLY)
    for level in range(8):
        name = (b"\x01" if level % 2 else b"\xff") * 240
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
        for number in range(12):
            os.close(os.open(b"\x02" * 200 + b"%d" % number, os.O_CREAT | os.O_WRONLY, dir_fd=at))
            os.symlink(b"\x03" * 4000, b"link%d" % number, dir_fd=at)
    os.close(at)
    made = WorkspaceRoot(tmp_path / "root")
    yield made
    made.close()


def pages(root: WorkspaceRoot, path: bytes, depth: int) -> list[list[str]]:
    found, cursor = [], None
    while True:
        page = list_folder(root, Listing(path, depth, limit=1000, cursor=cursor))
        assert len(orjson.dumps(page.items)) < BOUND + 60_000  # and one item
        assert page.items
        found.append([item.get("path_bytes") or item["path"] for item in page.items])
        cursor = page.next_cursor
        if cursor is None:
            return found


def test_a_page_has_a_bound_and_the_next_goes_on(root: WorkspaceRoot) -> None:
    tree = pages(root, b"", 100)
    names = [name for page in tree for name in page]
    assert len(tree) > 1
    assert len(names) == len(set(names)) == 8 * 25
    top = os.listdir(os.fsencode(root.path))[0]
    flat = pages(root, top, 1)
    assert len(flat) > 1 and len({name for page in flat for name in page}) == 25


def test_a_resync_of_many_folders_is_one_of_the_root() -> None:
    few = orjson.loads(topic._resync([b"a", b"b"]).data)
    assert few["paths"] == ["a", "b"]
    for many in ([b"x"] * 2000, [b"x" * 4000] * 50):
        assert orjson.loads(topic._resync(many).data)["paths"] == [""]
