"""What an agent wants to do, for a person to read before they allow it: edits as a diff, all else field by field.

Nothing of it is left out: a field that is no part of a diff is shown beside it.
"""

import difflib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from .text import printable

JsonObject = dict[str, Any]
# Gives what a file holds now: its text, "" where there is none, or None where it can't be told.
Reader = Callable[[str], str | None]

_PATHS = ("file_path", "path", "notebook_path")


def proposal(tool: str, input: JsonObject, read: Reader) -> list[str]:
    """The lines that tell the whole of what is to be allowed, printable."""
    rest = dict(input)
    lines: list[str] = []
    name = next((name for name in _PATHS if isinstance(input.get(name), str)), None)
    if name is not None and tool in ("Write", "Edit", "MultiEdit"):
        edits = _edits(tool, rest)
        if edits is not None:
            lines = _diff(rest.pop(name), edits, read)
    return lines + [line for name, value in rest.items() for line in _field(name, value)]


Edit = tuple[str | None, str, bool]


def _edits(tool: str, rest: JsonObject) -> list[Edit] | None:
    """The changes as (old, new, everywhere), where old None is the whole file; takes their fields out of `rest`.

    None, and `rest` as it was, where the input has another form.
    """
    if tool == "Write":
        return [(None, rest.pop("content"), False)] if isinstance(rest.get("content"), str) else None
    asked = rest.get("edits") if tool == "MultiEdit" else [rest]
    known = {"old_string", "new_string", "replace_all"}
    if not isinstance(asked, list) or not asked:
        return None
    found: list[Edit] = []
    for edit in asked:
        if not isinstance(edit, dict) or (tool == "MultiEdit" and not edit.keys() <= known):
            return None
        old, new, everywhere = edit.get("old_string"), edit.get("new_string"), edit.get("replace_all", False)
        if not isinstance(old, str) or not isinstance(new, str) or not isinstance(everywhere, bool):
            return None
        found.append((old, new, everywhere))
    for name in ("edits",) if tool == "MultiEdit" else known:
        rest.pop(name, None)
    return found


def _diff(path: str, edits: Sequence[Edit], read: Reader) -> list[str]:
    now = read(path)
    head = [printable(path)]
    if now is not None:
        changed = _applied(now, edits)
        if changed is not None:
            if now == "" and changed:
                head = [f"{head[0]} (new, or empty until now)"]
            return head + (_unified(now, changed) or ["(changes nothing)"])
    lines = head
    if now is None:
        lines = [f"{head[0]} (what it holds now can't be shown)"]
    for old, new, everywhere in edits:  # it does not fit the file: show what was asked
        if everywhere:
            lines.append("at every place:")
        lines += _unified(old or "", new) or ["(changes nothing)"]
    return lines


def _applied(text: str, edits: Sequence[Edit]) -> str | None:
    for old, new, everywhere in edits:
        if old is None or (old == "" and text == ""):
            text = new
        elif old == "" or old not in text:
            return None
        else:
            text = text.replace(old, new) if everywhere else text.replace(old, new, 1)
    return text


def _unified(old: str, new: str) -> list[str]:
    """The hunks of a unified diff. Lines end at line feeds alone, so that nothing of a line is lost."""
    before, after = (re.findall(r"[^\n]*\n|[^\n]+", text) for text in (old, new))
    found: list[str] = []
    for line in list(difflib.unified_diff(before, after, n=3))[2:]:
        found.append(printable(line.removesuffix("\n"), lines=True))
        if not line.endswith("\n"):
            found.append("\\ No newline at the end")
    return found


def _field(name: str, value: Any) -> list[str]:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
    first, *more = printable(text, lines=True).split("\n")
    label = printable(name)
    return [f"{label}: {first}", *(" " * (len(label) + 2) + line for line in more)] if more else [f"{label}: {first}"]
