"""What Claude Code's tools are, in neutral words: a kind, a title for a person, the places they touch. Pure."""

import os
from collections.abc import Mapping

from .base import JsonObject, Location, ToolKind

EDIT_TOOLS = frozenset({"Write", "Edit", "MultiEdit", "NotebookEdit"})

KINDS: Mapping[str, ToolKind] = {
    "Read": "read",
    "Write": "edit",
    "Edit": "edit",
    "MultiEdit": "edit",
    "NotebookEdit": "edit",
    "Glob": "search",
    "Grep": "search",
    "LS": "search",
    "ToolSearch": "search",
    "Bash": "execute",
    "BashOutput": "execute",
    "KillShell": "execute",
    "Monitor": "execute",
    "WebFetch": "fetch",
    "WebSearch": "fetch",
    "Task": "sub_agent",
    "Agent": "sub_agent",
    "SendMessage": "sub_agent",
    "TodoWrite": "plan",
    "TaskCreate": "plan",
    "TaskUpdate": "plan",
    "TaskList": "plan",
    "TaskGet": "plan",
    "EnterPlanMode": "plan",
    "ExitPlanMode": "plan",
    "AskUserQuestion": "question",
}

# The field of a tool's input that names what it is about, the first that is there.
_SUBJECTS = (
    "file_path",
    "notebook_path",
    "path",
    "command",
    "pattern",
    "url",
    "query",
    "description",
    "subject",
    "skill",
)
_TITLE_CHARACTERS = 120
_TITLES = {"AskUserQuestion": "Question", "ExitPlanMode": "Plan to carry out", "EnterPlanMode": "Make a plan"}


def kind(tool: str) -> ToolKind:
    """The kind of a tool; a tool of an MCP server is `mcp`, one that is not known `other`."""
    return KINDS.get(tool) or ("mcp" if tool.startswith("mcp__") else "other")


def title(tool: str, input: JsonObject, cwd: str) -> str:
    """One line for a person: what the tool is about to do."""
    for name in _SUBJECTS:
        value = input.get(name)
        if isinstance(value, str) and value.strip():
            subject = _relative(value, cwd) if name.endswith("path") else value.strip().splitlines()[0]
            return f"{_name(tool)}: {subject}"[:_TITLE_CHARACTERS]
    return _TITLES.get(tool) or _name(tool)


def locations(tool: str, input: JsonObject) -> tuple[Location, ...]:
    """The files a tool touches, as the agent named them."""
    if kind(tool) not in ("read", "edit", "search"):
        return ()
    line = input.get("offset") if tool == "Read" else None
    found = (input.get(name) for name in ("file_path", "notebook_path", "path"))
    return tuple(
        Location(path, line if isinstance(line, int) and line > 0 else None) for path in found if isinstance(path, str)
    )


def _name(tool: str) -> str:
    if tool.startswith("mcp__"):
        server, _, name = tool.removeprefix("mcp__").partition("__")
        return f"{name} ({server})" if name else server
    return tool


def _relative(path: str, cwd: str) -> str:
    if not os.path.isabs(path):
        return path
    relative = os.path.relpath(path, cwd)
    return path if relative.startswith("..") else relative
