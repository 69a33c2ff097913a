"""When the table of mounts says that something was mounted where we watch."""

from pathlib import Path

import pytest

from workspace_runtime import mounts

LINE = "{id} 1 0:{id} / {at} rw shared:1 - tmpfs tmpfs rw\n"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of the test's own."""
    path = tmp_path / "mountinfo"
    path.write_text(LINE.format(id=20, at="/") + LINE.format(id=21, at="/work/data"))
    monkeypatch.setattr(mounts, "TABLE", str(path))
    return path


def test_what_differs_counts_where_it_concerns_the_folder_and_what_came_and_went_counts_too(table: Path) -> None:
    seen = mounts.MountTable()
    try:
        assert seen.changed(b"/work")
        with table.open("a") as file:
            file.write(LINE.format(id=22, at="/elsewhere"))
        assert not seen.changed(b"/work")
        with table.open("a") as file:
            file.write(LINE.format(id=23, at="/work/more\\040data"))
        assert seen.changed(b"/work")
        assert seen.changed(b"/work"), "woken, and nothing differs: something came and went"
    finally:
        seen.close()
