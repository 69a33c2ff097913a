"""Prompts as Claude Code takes them. Pure."""

from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

from .base import FileText, ImagePart, JsonObject, PromptPart, TextPart


def prompt_content(parts: Sequence[PromptPart]) -> str | list[JsonObject]:
    """A prompt as the Messages API has it. A file is given whole, not as a mention: the CLI's own language for those can't name
    every file, says nothing of one that it does not find, and follows links to anywhere."""
    content: list[JsonObject] = []
    for part in parts:
        match part:
            case TextPart(text):
                content.append({"type": "text", "text": text})
            case ImagePart(mime_type, data):
                content.append({"type": "image", "source": {"type": "base64", "media_type": mime_type, "data": data}})
            case FileText(path, text, first, last):
                lines = "" if first is None else f' lines="{first}-{last or first}"'
                content.append({"type": "text", "text": f"<file path={quoteattr(path)}{lines}>\n{text}\n</file>"})
    # one text is sent as a string: only that the CLI reads as a slash command
    if content and all(block["type"] == "text" for block in content):
        return "\n".join(block["text"] for block in content)
    return content
