"""Search in the content of files, by ripgrep.

Invariants: nothing outside the root is read, no link is followed, `.git` and our own temporary files are never searched. The
program gets a list of arguments, an environment of its own and a held folder to work in, never a path that could be swapped; a
file that was named is its standard input. Whoever stops reading ends it: it is killed and waited for before the generator is
closed. It is read only as fast as the results are taken.

Results are lines of JSON, made here from ripgrep's own: byte offsets become offsets of code points, names and lines that are
not UTF-8 become text, long lines are cut around the first match. They come in no order, as ripgrep's threads find them:
sorting would make it search with one thread. A line whose JSON is longer than `MAX_RECORD` is never held in memory: only its start
is told. In a folder a file counts as binary, and ends for the search, at its
first NUL byte; a file that was named is searched to its end.
"""

import asyncio
import base64
import contextlib
import os
import re
import stat
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.model import in_one_line
from workspace_runtime.files.ignored import WITHOUT_GIT, global_file, root_rules
from workspace_runtime.files.ripgrep import Ripgrep
from workspace_runtime.paths import WorkspaceRoot, path_bytes, refusal, reopen, shown
from workspace_runtime.processes import finish

MAX_LIMIT = 10_000
MAX_CONTEXT = 10
MAX_PATTERN = 8_192
MAX_GLOBS = 100
MAX_RECORD = 1024 * 1024  # of one line in ripgrep's JSON
MAX_ANSWER = 64 * 1024 * 1024  # of all lines together


@dataclass(frozen=True, slots=True)
class ContentQuery:
    """What to search for, and where.

    `globs` are patterns as in a `.gitignore`, relative to the folder that is searched; those with `!` in front leave out.
    `path` is a folder or a file, as `paths.parse` gives it; empty for all. A file that is named is searched in any case.
    `hidden`: also names that start with a dot. `ignored`: also what git ignores. `context`: lines before and after.
    `limit`: of lines with a match. `max_line`: code points of a line's text.
    """

    q: str
    regex: bool = False
    case: Literal["smart", "sensitive", "insensitive"] = "smart"
    word: bool = False
    globs: Sequence[str] = ()
    path: bytes = b""
    hidden: bool = True
    ignored: bool = False
    context: int = 0
    limit: int = 1000
    max_line: int = 2000
    timeout_s: float = 60.0


async def search(root: WorkspaceRoot, query: ContentQuery) -> AsyncGenerator[bytes]:
    """The matches: blocks of whole lines of JSON, each line ended by a line feed.

    `{"type": "match", "path", "line", "column", "text", "ranges"}`, with `path_bytes` where the path is not UTF-8 and
    `truncated: true` where the text is not the whole line; `column` (from 1) and `ranges` (within `text`) count code
    points; of a line too long to be held, `column` is null and `ranges` is empty. `"context"` lines have no `column` and
    `ranges`. The last line is `{"type": "summary", "matches", "files", "limit_reached", "elapsed_ms"}`; where a limit was reached,
    `reason` says which: `matches`, `size` (`MAX_ANSWER` bytes were sent), `time`, or `memory` (ripgrep's own).

    Close the generator (`contextlib.aclosing`): that ends the search, also when it is cancelled. Raises `WorkspaceError`
    before the first block: `search_invalid`, `search_unavailable`, and what `WorkspaceRoot.hold` may meet.
    """
    _check(query)
    started = time.monotonic()
    ripgrep = await _start(root, query)
    reader = _Reader(query)
    late = False

    def give_up() -> None:
        nonlocal late
        late = True
        ripgrep.kill()

    timer = asyncio.get_running_loop().call_later(query.timeout_s, give_up)
    status = sent = 0
    try:
        while not reader.full and sent <= MAX_ANSWER and (chunk := await ripgrep.read()):
            if block := reader.take(chunk):
                yield block
                sent += len(block)
        if not reader.full and sent <= MAX_ANSWER:
            status = await ripgrep.ended()
    finally:
        timer.cancel()
        await finish(_end(ripgrep))
        message = ripgrep.complaint()
    if status == 2 and not reader.seen and message:
        raise WorkspaceError("search_invalid", _cleaned(message))
    summary: dict[str, Any] = {"type": "summary", "matches": reader.matches, "files": reader.files}
    reason = _reason(reader, sent, status, late=late)
    summary |= {"limit_reached": False} if reason is None else {"limit_reached": True, "reason": reason}
    summary["elapsed_ms"] = round((time.monotonic() - started) * 1000)
    yield orjson.dumps(summary, option=orjson.OPT_APPEND_NEWLINE)


def _reason(reader: "_Reader", sent: int, status: int, *, late: bool) -> str | None:
    """Which limit ended the search; None where it came to its end."""
    if reader.full:
        return "matches"
    if sent > MAX_ANSWER:
        return "size"
    if status in (0, 1, 2):
        return None
    return "time" if late else "memory"  # it holds all matches of a line at once, and ends where it gets no more


async def _end(ripgrep: Ripgrep) -> None:
    await ripgrep.end()


def _check(query: ContentQuery) -> None:
    """Refuse what ripgrep would not take, or would take for something else."""
    if not query.q:
        raise WorkspaceError("search_invalid", "The query is empty.")
    if (
        len(query.q) > MAX_PATTERN
        or len(query.globs) > MAX_GLOBS
        or any(len(glob) > MAX_PATTERN for glob in query.globs)
    ):
        raise WorkspaceError("search_invalid", "The query or a glob is too long, or there are too many globs.")
    if "\n" in query.q:
        raise WorkspaceError("search_invalid", "The query holds a line break; lines are searched one by one.")
    for text in (query.q, *query.globs):
        if "\0" in text or not text.strip("!") or not _encodable(text):
            raise WorkspaceError("search_invalid", f"{text!r} is no text that can be searched for.")
    if not (1 <= query.limit <= MAX_LIMIT and 0 <= query.context <= MAX_CONTEXT and query.max_line >= 1):
        raise WorkspaceError("search_invalid", f"A limit is 1 to {MAX_LIMIT}, context 0 to {MAX_CONTEXT} lines.")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- the process ------------------------------------------------------------------------------------------------------


def _arguments(query: ContentQuery, *, is_file: bool, without_git: bool) -> list[str]:
    arguments = ["--no-config", "--json", "--no-messages", "--crlf", "--no-ignore-dot", "--no-follow", "--no-mmap"]
    # Room for one match more than is told, to know whether there are more. A larger regex may compile for minutes.
    arguments += [f"--max-count={query.limit + 1}", f"--context={query.context}", "--regex-size-limit=10M"]
    arguments.append(_CASES[query.case])
    globs = [*query.globs, "!.git", "!.workspace-runtime-*.tmp"]  # the last that fits decides
    if not query.regex:
        arguments.append("--fixed-strings")
    if query.word:
        arguments.append("--word-regexp")
    if query.hidden:
        arguments.append("--hidden")
    if query.ignored:
        arguments.append("--no-ignore")
    elif without_git:
        arguments.append("--no-require-git")
        if not query.path:
            arguments.append("--no-ignore-parent")
        globs = [*(f"!{name}" for name in WITHOUT_GIT), *globs]
    arguments += [f"--glob={glob}" for glob in globs]
    return [*arguments, f"--regexp={query.q}", "--", "-" if is_file else "."]


_CASES = {"smart": "--smart-case", "sensitive": "--case-sensitive", "insensitive": "--ignore-case"}


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is searched: an open folder or file. `without_git`: no repository's rules hold in it; `rules`: files outside of the
    root that say what is ignored."""

    held: int
    is_file: bool
    without_git: bool
    rules: tuple[str, ...] = ()


def _prepare(root: WorkspaceRoot, query: ContentQuery) -> _Subject:
    """Open what is to be searched. Waits for the disk."""
    try:
        held = root.hold(query.path)
    except OSError as fault:
        raise refusal(fault, query.path) from None
    try:
        if not stat.S_ISDIR(os.fstat(held).st_mode):
            file, _ = reopen(held, query.path)
            os.close(held)
            return _Subject(file, True, False)
        rules = root_rules(root)
        without_git = not rules.path and not os.path.lexists(os.path.join(root.path, ".git"))
        return _Subject(held, False, without_git, tuple(_rules_outside(root)))
    except OSError as fault:
        os.close(held)
        raise refusal(fault, query.path) from None
    except BaseException:
        os.close(held)
        raise


def _rules_outside(root: WorkspaceRoot) -> list[str]:
    """Files outside of the root by which git, and so ripgrep, knows what to ignore."""
    home = os.path.expanduser("~")
    configuration = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    found = [
        global_file(), os.path.join(home, ".gitconfig"), os.path.join(configuration, "git", "config"),
        os.path.join(configuration, "git", "ignore"),
    ]  # fmt: skip
    for folder in root.path.parents:
        found += [os.path.join(folder, ".gitignore"), os.path.join(folder, ".git", "info", "exclude")]
    return found


async def _start(root: WorkspaceRoot, query: ContentQuery) -> Ripgrep:
    preparing = asyncio.create_task(asyncio.to_thread(_prepare, root, query))
    try:
        subject = await asyncio.shield(preparing)
    except asyncio.CancelledError:
        preparing.add_done_callback(_let_go)
        raise
    try:
        arguments = _arguments(query, is_file=subject.is_file, without_git=subject.without_git)
        return await Ripgrep.start(root, arguments, subject.held, is_file=subject.is_file, rules=subject.rules)
    finally:
        os.close(subject.held)


def _let_go(preparing: asyncio.Task[_Subject]) -> None:
    if not preparing.cancelled() and preparing.exception() is None:
        os.close(preparing.result().held)


def _cleaned(message: str) -> str:
    """ripgrep's complaint as one line, without its name and without what it put around the pattern."""
    lines = [line.strip() for line in message.removeprefix("rg: ").splitlines()]
    for line in lines:
        if line.startswith("error: "):
            return f"The regular expression is invalid: {line.removeprefix('error: ')}."
    return f"The search is invalid: {lines[0].rstrip('.')}."


# --- its output -------------------------------------------------------------------------------------------------------


class _Reader:
    """Makes our lines of ripgrep's. `full`: the limit is reached, and there was more."""

    def __init__(self, query: ContentQuery) -> None:
        self.matches = 0
        self.files = 0
        self.full = False
        self.seen = False  # whether anything came
        self._query = query
        self._partial: list[bytes] = []
        self._size = 0
        self._long: _LongRecord | None = None
        self._path: dict[str, str] = {}

    def take(self, chunk: bytes) -> bytes:
        """The lines that `chunk` completes; may be empty."""
        self.seen = True
        out: list[bytes] = []
        if self._long is not None:
            chunk = self._skip(self._long, chunk, out)
        end = chunk.rfind(b"\n")
        if end < 0:
            self._keep(chunk)
            return b"".join(out)
        lines = b"".join([*self._partial, chunk[:end]])
        self._partial, self._size = [], 0
        self._keep(chunk[end + 1 :])
        # no record holds a line feed, so that all are read at once
        for record in orjson.loads(b"[" + lines.replace(b"\n", b",") + b"]"):
            kind = record["type"]
            if kind == "match" or kind == "context":
                self._add(_item(record["data"], kind, self._path, self._query.max_line), out)
            elif kind == "begin":
                self.files += 1
                self._path = self._name(record["data"]["path"])
            if self.full:
                break
        return b"".join(out)

    def _add(self, item: dict[str, Any], out: list[bytes]) -> None:
        if item["type"] == "match":
            if self.matches == self._query.limit:
                self.full = True
                return
            self.matches += 1
        out.append(in_one_line(orjson.dumps(item, option=orjson.OPT_APPEND_NEWLINE)))

    def _keep(self, part: bytes) -> None:
        """Keep the start of a record, or where it is too long, its first bytes alone."""
        if not part:
            return
        if self._long is not None:
            self._long.add(part)
            return
        self._partial.append(part)
        self._size += len(part)
        if self._size > MAX_RECORD:
            self._long = _LongRecord(b"".join(self._partial))
            self._partial, self._size = [], 0

    def _skip(self, record: "_LongRecord", chunk: bytes, out: list[bytes]) -> bytes:
        """Go on with a record that is too long; what follows it in `chunk`."""
        end = chunk.find(b"\n")
        if end < 0:
            return chunk
        record.add(chunk[:end])
        self._long = None
        if (item := record.item(self._path, self._query.max_line)) is not None:
            self._add(item, out)
        return chunk[end + 1 :]

    def _name(self, path: dict[str, str]) -> dict[str, str]:
        """A file's `path`, and `path_bytes` where it is not UTF-8, from the root."""
        raw = _bytes_of(path)
        above = self._query.path
        if raw != b"<stdin>":
            above += raw[1:]  # it begins with `./`
        raw = above.removeprefix(b"/")
        quoted = path_bytes(raw)
        return {"path": shown(raw)} if quoted is None else {"path": shown(raw), "path_bytes": quoted}


def _bytes_of(value: dict[str, str]) -> bytes:
    """What ripgrep gives as text, or in base64 where it is not UTF-8."""
    text = value.get("text")
    return base64.b64decode(value["bytes"]) if text is None else text.encode()


def _item(data: dict[str, Any], kind: str, path: dict[str, str], max_line: int) -> dict[str, Any]:
    """One line of a file: a match, or the context of one."""
    text = data["lines"].get("text")
    found = [[part["start"], part["end"]] for part in data["submatches"]]
    if text is None or not text.isascii():
        raw = _bytes_of(data["lines"])
        text = raw.decode(errors="replace")
        found = _code_points(raw, found)
    if text.endswith("\n"):
        text = text[:-2] if text.endswith("\r\n") else text[:-1]
    item: dict[str, Any] = {"type": kind, **path, "line": data["line_number"], "text": text}
    if kind == "match":
        item["column"] = found[0][0] + 1 if found else 1
        item["ranges"] = found
        if found and found[-1][1] > len(text):  # the line's end was part of it
            item["ranges"] = [[min(start, len(text)), min(end, len(text))] for start, end in found]
    if len(text) > max_line:
        _cut(item, max_line)
    return item


def _code_points(raw: bytes, ranges: list[list[int]]) -> list[list[int]]:
    """Ranges of bytes as ranges of code points."""
    at = count = 0
    converted = []
    for pair in ranges:
        counts = []
        for offset in pair:
            count += len(raw[at:offset].decode(errors="replace"))
            at = offset
            counts.append(count)
        converted.append(counts)
    return converted


def _cut(item: dict[str, Any], max_line: int) -> None:
    """Leave `max_line` code points of the text, a quarter of them before the first match."""
    text, ranges = item["text"], item.get("ranges", [])
    first = ranges[0][0] if ranges else 0
    start = max(0, min(first - max_line // 4, len(text) - max_line))
    item["text"] = text[start : start + max_line]
    if ranges:
        item["ranges"] = [
            [max(low - start, 0), min(high - start, max_line)] for low, high in ranges if low - start < max_line
        ]
    item["truncated"] = True


class _LongRecord:
    """A record that is too long to be held: its start, and the line's number that follows the text."""

    _NUMBER = re.compile(rb'"\},"line_number":(\d+),"absolute_offset"')  # can't be part of a text, where `"` is escaped
    _TEXT = re.compile(rb'\{"type":"(match|context)",.*?"lines":\{"(text|bytes)":"', re.DOTALL)

    def __init__(self, start: bytes) -> None:
        self._start = start
        self._number: int | None = None
        self._end = b""
        self.add(start)

    def add(self, part: bytes) -> None:
        """Go on."""
        if self._number is None:
            window = self._end + part
            if (found := self._NUMBER.search(window)) is not None:
                self._number = int(found[1])
            self._end = window[-64:]

    def item(self, path: dict[str, str], max_line: int) -> dict[str, Any] | None:
        """What is told of it: the text's start. None where it is no line of a file."""
        found = self._TEXT.match(self._start)
        if found is None:
            return None
        raw = self._start[found.end() : found.end() + max_line * 12]
        text = (
            base64.b64decode(raw[: len(raw) // 4 * 4]).decode(errors="replace")
            if found[2] == b"bytes"
            else _start_of(raw)
        )
        item: dict[str, Any] = {"type": found[1].decode(), **path, "line": self._number, "text": text[:max_line]}
        if item["type"] == "match":
            item |= {"column": None, "ranges": []}
        return item | {"truncated": True}


def _start_of(raw: bytes) -> str:
    """The text of a JSON string of which the end is missing, perhaps in the middle of a letter."""
    for end in range(len(raw), max(len(raw) - 16, 0), -1):
        with contextlib.suppress(orjson.JSONDecodeError):
            return str(orjson.loads(b'"' + raw[:end] + b'"'))
    return ""
