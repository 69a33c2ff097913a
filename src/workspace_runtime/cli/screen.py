"""A turn's events as text: what an agent says on standard output, what happens to it on standard error."""

import json
import sys
from typing import Any, TextIO

from .text import printable, shortened

JsonObject = dict[str, Any]

_RESULT_LINES = 12
_LINE_CHARACTERS = 200
# Why a turn ended, where it did not end by itself. What the agent said stands, but it is not all.
_ENDS = {
    "max_tokens": "The answer was cut: the model's limit of tokens is reached. Ask it to go on.",
    "max_turns": "The agent stopped: its limit of steps is reached. Ask it to go on.",
    "refusal": "The model refused to go on.",
    "interrupted": "Interrupted.",
    "cancelled": "The prompt was taken back before it began.",
    "terminated": "The session was terminated.",
    "error": "The turn failed.",
    "agent_died": "The agent stopped unexpectedly.",
    "server_restarted": "The server was stopped in the middle of the turn.",
}


class OutputError(Exception):
    """Standard output takes nothing more: its reader has gone, or its disk is full. `fault`: what the system said.

    Not an `OSError`, which everywhere else here is the connection's.
    """

    def __init__(self, fault: OSError) -> None:
        super().__init__(str(fault))
        self.fault = fault


class Output:
    """Standard output, line by line or piece by piece."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> None:
        """Write it, so that it is seen at once. Raises `OutputError`."""
        try:
            self._out.write(text)
            self._out.flush()
        except OSError as fault:
            raise OutputError(fault) from fault


class Screen:
    """Shows events. Text comes piece by piece, as the agent writes it."""

    def __init__(self, out: Output) -> None:
        self._out = out
        # of each block: the characters that were shown, and those of this pass (deltas begin anew after a gap)
        self._shown: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._mid_line = False

    def tell(self, sentence: str) -> None:
        """Something of ours, on standard error. Whatever others sent in it must be printable already."""
        self.end_line()
        print(sentence, file=sys.stderr, flush=True)

    def end_line(self) -> None:
        """Begin a new line, unless one has just begun."""
        if self._mid_line:
            self._write("\n")

    def show(self, event: JsonObject) -> None:
        """Show one event of the six types, a delta or a plan; nothing for the others."""
        kind = event["type"]
        if kind in ("text_delta", "thinking_delta"):
            self._show_text(event["id"], event["content"], kind == "thinking_delta", begins=event["offset"] == 0)
        elif kind in ("text", "thinking"):
            self._show_text(event["id"], event["content"], kind == "thinking", begins=True)
            self.end_line()
        elif kind == "tool_use":
            title = event["title"] or f"{event['tool']} {json.dumps(event['input'], ensure_ascii=False)}"
            self._show_line(f"▸ {shortened(printable(title), _LINE_CHARACTERS)}")
        elif kind == "tool_result":
            self._show_result(event)
        elif kind == "plan":
            marks = {"completed": "x", "in_progress": "~", "pending": " "}
            for entry in event["entries"]:
                self._show_line(f"  [{marks.get(entry['status'], '?')}] {printable(entry['content'], prose=True)}")
        elif kind == "error":
            message = printable(event["error"], lines=True, prose=True)
            self.tell(f"error ({printable(event['code'])}): {message}")

    def show_end(self, stop_reason: str) -> None:
        """Say why the turn ended, where it was not by itself."""
        if stop_reason != "end_turn":
            self.tell(_ENDS.get(stop_reason) or f"The turn ended: {printable(stop_reason)}.")

    def _show_result(self, event: JsonObject) -> None:
        lines = event["output"].replace("\r\n", "\n").removesuffix("\n").split("\n") if event["output"] else []
        for line in lines[:_RESULT_LINES]:
            self._show_line(f"  {shortened(printable(line, lines=True, prose=True), _LINE_CHARACTERS)}")
        if len(lines) > _RESULT_LINES:
            self._show_line(f"  … {len(lines) - _RESULT_LINES} more lines")
        if event["is_error"] and not lines:
            self._show_line(f"  ({printable(event['status'])})")

    def _show_text(self, block: str, text: str, thinking: bool, *, begins: bool) -> None:
        if begins:
            self._told[block] = 0
        told, shown = self._told.get(block, 0), self._shown.get(block, 0)
        self._told[block] = told + len(text)
        new = text[max(0, shown - told) :]
        if not new:
            return
        if thinking and not shown:
            self.end_line()
            self._write("(thinking) ")
        self._shown[block] = told + len(text)
        self._write(printable(new, lines=True, prose=True))

    def _show_line(self, line: str) -> None:
        self.end_line()
        self._write(f"{line}\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._mid_line = not text.endswith("\n")
