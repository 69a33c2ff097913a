"""Prompts as Claude Code takes them. Pure."""

import os
from collections.abc import Sequence
from pathlib import Path

from .base import FilePart, ImagePart, JsonObject, PromptPart, TextPart


def prompt_content(parts: Sequence[PromptPart], root: Path, cwd: str) -> str | list[JsonObject]:
    """A prompt as the Messages API has it. A file becomes a mention that the CLI expands, with its lines."""
    content: list[JsonObject] = []
    for part in parts:
        match part:
            case TextPart(text):
                content.append({"type": "text", "text": text})
            case ImagePart(mime_type, data):
                content.append({"type": "image", "source": {"type": "base64", "media_type": mime_type, "data": data}})
            case FilePart(path, first, last):
                mention = os.path.relpath(root / path, cwd)
                if first is not None:
                    mention += f"#L{first}" + (f"-{last}" if last is not None else "")
                content.append({"type": "text", "text": f'@"{mention}"' if " " in mention else f"@{mention}"})
    # one text is sent as a string: only that the CLI reads as a slash command
    if content and all(block["type"] == "text" for block in content):
        return "\n".join(block["text"] for block in content)
    return content
