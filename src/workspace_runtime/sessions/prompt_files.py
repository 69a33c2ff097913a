"""Files that a prompt refers to: looked at when it is taken, read when it is handed to the agent.

Every read goes through the gate, so no link leads out; the agent is given the content, never just a name that it might not find, not be
able to name, or follow to somewhere else. All of this waits for the disk: call it in a thread.
"""

import base64
from collections.abc import Sequence
from typing import BinaryIO

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.media import media_type
from workspace_runtime.paths import WorkspaceRoot, parse, refusal, shown

from .drivers.base import FilePart, FileText, ImagePart, PromptPart, TextPart

# What one reference may carry: more would fill the context of any model.
MAX_TEXT_BYTES = 1024 * 1024
MAX_IMAGE_BYTES = 5 * 1024 * 1024
_IMAGES = (b"image/png", b"image/jpeg", b"image/gif", b"image/webp")


def check(root: WorkspaceRoot, parts: Sequence[PromptPart]) -> None:
    """Raise `WorkspaceError`, with the codes of the files API, where a file can't be given to an agent."""
    for part in parts:
        if isinstance(part, FilePart):
            _read(root, part)


def with_contents(root: WorkspaceRoot, parts: Sequence[PromptPart]) -> list[PromptPart]:
    """The parts with each reference replaced by what is in the file now; by a word about it where it is there no more."""
    return [_content(root, part) if isinstance(part, FilePart) else part for part in parts]


def _content(root: WorkspaceRoot, part: FilePart) -> PromptPart:
    try:
        return _read(root, part)
    except WorkspaceError as fault:
        return TextPart(
            f"[The file {part.path!r}, which belongs to this prompt, can't be read any more: {fault.detail}]"
        )


def _read(root: WorkspaceRoot, part: FilePart) -> FileText | ImagePart:
    try:
        path = parse(part.path.encode())
    except UnicodeEncodeError:
        raise WorkspaceError("path_invalid", "The path is no text that can be encoded.") from None
    try:
        file, status = root.open_file(path)
        with open(file, "rb") as reader:
            kind = media_type(path)
            if kind in _IMAGES and part.start_line is None:
                if status.st_size > MAX_IMAGE_BYTES:
                    raise _too_large(path, MAX_IMAGE_BYTES, "Attach a smaller image.")
                return ImagePart(kind.decode(), base64.b64encode(reader.read(MAX_IMAGE_BYTES)).decode())
            text = _lines(reader, part, path)
    except OSError as fault:
        raise refusal(fault, path) from None
    if b"\0" in text[:8192]:
        detail = f"{shown(path)!r} is neither text nor an image: tell the agent its path instead."
        raise WorkspaceError("unsupported_media_type", detail, path=shown(path))
    return FileText(part.path, text.decode("utf-8-sig", "replace"), part.start_line, part.end_line)


def _lines(reader: BinaryIO, part: FilePart, path: bytes) -> bytes:
    """The wanted lines. A line of any length costs no more memory than the limit."""
    first, last = part.start_line or 1, part.end_line
    if part.start_line is not None and last is None:
        last = first
    found = bytearray()
    line = 1
    while (last is None or line <= last) and (piece := reader.readline(MAX_TEXT_BYTES + 1)):
        if line >= first:
            found += piece
            if len(found) > MAX_TEXT_BYTES:
                raise _too_large(path, MAX_TEXT_BYTES, "Name the lines that matter with start_line and end_line.")
        line += piece.endswith(b"\n")
    return bytes(found)


def _too_large(path: bytes, limit: int, advice: str) -> WorkspaceError:
    detail = f"{shown(path)!r} has more than {limit} bytes to give to an agent. {advice}"
    return WorkspaceError("file_too_large", detail, path=shown(path), limit=limit)
