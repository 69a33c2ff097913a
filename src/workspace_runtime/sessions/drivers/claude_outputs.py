"""Tool results that Claude Code found too large for the model, whole again.

The CLI writes such a result into a file of the conversation and gives the model a preview that names it. A client wants what the
tool said, not the preview. The name stands in text that a tool could have made up, so only a file in the conversations' own
folders is read, however the text got there.
"""

import dataclasses
import json
import re
from pathlib import Path

from .base import ToolEnded
from .claude_events import content

_MARK = "<persisted-output>"
# A result beyond this stays a preview: it would not fit into a message of the CLI either.
MAX_BYTES = 64 * 1024 * 1024
_SAVED = re.compile(r"saved to: (\S.*?/tool-results/[^/\s]+)$", re.MULTILINE)
# what it says of a result of an MCP server's tool
_SAVED_MCP = re.compile(
    r"^Error: result \(.* exceeds maximum allowed tokens\. Output has been saved to (\S.*?/tool-results/[^/\n]+)\.\nFormat: ",
    re.MULTILINE,
)


def is_preview(output: str) -> bool:
    """Whether a result names the file that has it whole."""
    return output.startswith(_MARK) or _SAVED_MCP.search(output[:2000]) is not None


def whole(ended: ToolEnded, config_folder: Path) -> ToolEnded:
    """The result with what its file holds; as it is, where there is no such file. Reads the file: call it in a thread."""
    named = _SAVED.search(ended.output) if ended.output.startswith(_MARK) else _SAVED_MCP.search(ended.output)
    if named is None:
        return ended
    path = Path(named[1])
    try:
        path = path.resolve(strict=True)
        inside = path.is_relative_to((config_folder / "projects").resolve())
        if not inside or not path.is_file() or path.stat().st_size > MAX_BYTES:
            return ended
        text = path.read_text(errors="replace")
    except OSError:
        return ended
    if path.suffix != ".json":
        return dataclasses.replace(ended, output=text)
    try:
        blocks = json.loads(text)
    except ValueError:
        return dataclasses.replace(ended, output=text)
    output, images = content(blocks)
    return dataclasses.replace(ended, output=output or text, images=[*ended.images, *images])
