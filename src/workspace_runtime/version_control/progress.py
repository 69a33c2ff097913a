"""What git tells on stderr while it works: how far it is, and its messages.

git writes a count over and over in one line, ended by `\\r`, and ends it with `, done.` and `\\n` (progress.c, display); the other
side's lines come with `remote: ` before them, and blanks after (sideband.c). Only a line of exactly that form is progress; every
other line is a message, so that nothing git says is lost to a guess. However the stream is cut into pieces, the end is the same.
What the other side sends is its own choice: lines and messages are bounded, and cost a few steps each.
"""

import re
from collections import deque
from dataclasses import dataclass

MAX_LINE = 4096  # bytes of a line that are kept
MAX_MESSAGES = 64 * 1024  # bytes of messages that are kept: the last ones

_LINE_END = re.compile(rb"[\r\n]")
_COUNTED = re.compile(
    rb"""(?:remote:\ )?
    (?P<phase>[A-Z][A-Za-z ]{0,60}):\ +
    (?: (?P<percent>\d{1,3})%\ \((?P<done>\d{1,15})/(?P<total>\d{1,15})\) | (?P<count>\d{1,15}) )
    (?: ,\ (?P<bytes>[0-9.]{1,18}\ [A-Za-z]{1,5}) (?:\ \|\ (?P<rate>[0-9.]{1,18}\ [A-Za-z]{1,5})/s)? )?
    (?P<end>,\ done\.)?""",
    re.VERBOSE,
)
# sequencer.c; neither a percentage nor an end of its own
_STEPS = re.compile(rb"(?P<phase>Rebasing) \((?P<done>\d{1,9})/(?P<total>\d{1,9})\)")
# What a terminal would act upon, and git pads with.
_UNSEEN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
# strbuf.c (strbuf_humanise) of git; KB and the like are Git LFS's.
_UNITS = {
    "byte": 1, "bytes": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
_MOST = 2**53 - 1  # what JSON's readers take exactly


@dataclass(frozen=True, slots=True)
class Progress:
    """How far git is. `phase` is git's word, such as `Receiving objects`. What git did not tell is None.

    `bytes` were transferred so far, `rate` is bytes a second; both as exact as git's rounded figures are.
    """

    phase: str
    percent: int | None = None
    done: int | None = None
    total: int | None = None
    bytes: int | None = None
    rate: int | None = None


class ProgressReader:
    """Reads stderr as it comes. `current` is the last progress told, None before the first."""

    def __init__(self) -> None:
        self.current: Progress | None = None
        self._messages: deque[str] = deque()
        self._size = 0
        self._rest = b""

    @property
    def messages(self) -> list[str]:
        """The last lines that were no progress, without their ends, as text; empty ones are left out."""
        return list(self._messages)

    def feed(self, data: bytes) -> bool:
        """Take a piece; whether `current` has changed."""
        latest: re.Match[bytes] | None = None
        start = 0
        for end in _LINE_END.finditer(data):
            line = self._take(data[start : end.start()])
            start = end.end()
            if line:
                latest = self._read(line, data[end.start()] == 13) or latest
        self._rest = self._take(data[start:])
        before = self.current
        if latest is not None:
            self.current = _progress(latest)
        return self.current != before

    def finish(self) -> bool:
        """There will be no more: a line without an end counts too. Whether `current` has changed."""
        return self.feed(b"\n")

    def _take(self, piece: bytes) -> bytes:
        """What is kept of the line so far and this piece of it."""
        line, self._rest = (self._rest + piece[:MAX_LINE])[:MAX_LINE], b""
        return line

    def _read(self, line: bytes, again: bool) -> re.Match[bytes] | None:
        """The progress that a line is; None for a message, which is kept. `again`: it is one that will be written over."""
        plain = line.removesuffix(b"\x1b[K").rstrip(b" ")
        found = _COUNTED.fullmatch(plain) or _STEPS.fullmatch(plain)
        # a number alone is progress only where git goes on counting, or says that it is done
        if found and (again or "count" not in found.groupdict() or found["count"] is None or found["end"]):
            return found
        self._keep(_UNSEEN.sub("", line.decode(errors="replace")).rstrip())
        return None

    def _keep(self, message: str) -> None:
        if not message or message == "remote:":
            return
        self._messages.append(message)
        self._size += len(message.encode()) + 1
        while self._size > MAX_MESSAGES:
            self._size -= len(self._messages.popleft().encode()) + 1


def _progress(found: re.Match[bytes]) -> Progress:
    told = {name: value.decode() for name, value in found.groupdict().items() if value is not None}
    done = told.get("done") or told.get("count")
    total = told.get("total")
    percent = told.get("percent")
    if percent is None and total is not None and int(total):
        percent = str(100 * int(done or 0) // int(total))
    return Progress(
        told["phase"],
        min(int(percent), 100) if percent is not None else None,
        int(done) if done is not None else None,
        int(total) if total is not None else None,
        _bytes(told.get("bytes")),
        _bytes(told.get("rate")),
    )


def _bytes(text: str | None) -> int | None:
    """`1.20 MiB` as a number of bytes; None for what is no such text."""
    number, _, unit = (text or "").partition(" ")
    try:
        return min(round(float(number) * _UNITS[unit]), _MOST)
    except (ValueError, KeyError):
        return None
