"""Files in prompts: read through the gate, whole, or refused with the codes of the files API."""

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import WorkspaceRoot
from workspace_runtime.sessions import prompt_files
from workspace_runtime.sessions.drivers.base import FilePart, FileText, ImagePart, PromptPart, TextPart


@pytest.fixture
def root(tmp_path: Path) -> Iterator[WorkspaceRoot]:
    (tmp_path / "ws").mkdir()
    opened = WorkspaceRoot(tmp_path / "ws")
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "name",
    [
        'q "x".txt',
        "a b.txt",
        "#L1.txt",
        "@x.txt",
        "new\nline.txt",
        "ünï.txt",
        "-rf",
        "a'b.txt",
        "x`y`.txt",
        "deep/er/x.txt",
    ],
)
def test_a_file_of_any_name_is_given_whole(root: WorkspaceRoot, name: str) -> None:
    path = root.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("one\ntwo\nthree")
    prompt_files.check(root, [FilePart(name)])
    parts: list[PromptPart] = [
        TextPart("see"),
        FilePart(name),
        FilePart(name, 2),
        FilePart(name, 2, 9),
        FilePart(name, 7, 9),
    ]
    assert prompt_files.with_contents(root, parts) == [
        TextPart("see"),
        FileText(name, "one\ntwo\nthree"),
        FileText(name, "two\n", 2),
        FileText(name, "two\nthree", 2, 9),
        FileText(name, "", 7, 9),
    ]


def test_a_link_is_followed_inside_alone(root: WorkspaceRoot, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (root.path / "in.txt").write_text("inside")
    (root.path / "good").symlink_to("in.txt")
    (root.path / "bad").symlink_to(tmp_path / "secret")
    (root.path / "up").symlink_to("..")
    prompt_files.check(root, [FilePart("good")])
    for name in ("bad", "up/secret"):
        with pytest.raises(WorkspaceError) as caught:
            prompt_files.check(root, [FilePart(name)])
        assert caught.value.code == "path_outside"
    (told,) = prompt_files.with_contents(root, [FilePart("bad")])
    assert isinstance(told, TextPart) and "secret'" not in told.text and "can't be read any more" in told.text


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("missing", "file_not_found"), ("folder", "is_directory"), ("fifo", "not_a_file"), ("/etc/passwd", "path_invalid"),
        ("../x", "path_invalid"), ("a//b", "path_invalid"), ("a\0b", "path_invalid"), ("\ud800", "path_invalid"),
        ("large", "file_too_large"), ("one-line", "file_too_large"), ("binary", "unsupported_media_type"), ("big.png", "file_too_large"),
    ],
)  # fmt: skip
def test_everything_else_is_refused(root: WorkspaceRoot, name: str, code: str) -> None:
    (root.path / "folder").mkdir()
    os.mkfifo(root.path / "fifo")
    (root.path / "large").write_text("line\n" * 300_000)
    (root.path / "one-line").write_text("x" * 1_100_000)
    (root.path / "binary").write_bytes(b"\x7fELF\0\0")
    (root.path / "big.png").write_bytes(bytes(6_000_000))
    with pytest.raises(WorkspaceError) as caught:
        prompt_files.check(root, [FilePart(name)])
    assert caught.value.code == code


def test_lines_of_a_large_file_an_image_and_text_that_is_not_utf8(root: WorkspaceRoot) -> None:
    (root.path / "large").write_text("".join(f"line {number}\n" for number in range(300_000)))
    (root.path / "dot.png").write_bytes(b"\x89PNG\0")
    (root.path / "latin").write_bytes("\ufeffé\n".encode() + b"\xe9\n")
    large, image, latin = prompt_files.with_contents(
        root, [FilePart("large", 299_999, 400_000), FilePart("dot.png"), FilePart("latin")]
    )
    assert large == FileText("large", "line 299998\nline 299999\n", 299_999, 400_000)
    assert image == ImagePart("image/png", base64.b64encode(b"\x89PNG\0").decode())
    assert latin == FileText("latin", "é\n\ufffd\n")
