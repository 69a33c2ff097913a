"""Conditions and ranges of a request (RFC 9110, 13 and 14), as pure functions over a file's validators."""

import datetime
import email.utils
import re
from collections.abc import Mapping
from dataclasses import dataclass

from workspace_runtime.errors import WorkspaceError

_TAG = re.compile(r'[\s,]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")\s*(?:,[\s,]*|$)')
_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*")
_BEYOND = 10**19  # more than any file has


@dataclass(frozen=True, slots=True)
class Conditions:
    """What must hold before a change. The tags are None, `*`, or a list of entity tags as they were sent; the time is in seconds."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_unmodified_since: int | None = None

    @property
    def wants_existing(self) -> bool:
        """Whether nothing may be written where there is nothing yet."""
        return self.if_match is not None

    def check(self, etag: str | None, path: str, modified: float | None) -> None:
        """`etag` and `modified` are those of what is there now, None when there is nothing. Raises `precondition_failed` with it."""
        if self.if_match is not None:
            if etag is None or not matches(self.if_match, etag, weak=False):
                detail = "There is nothing to match." if etag is None else "It has changed since it was read."
                raise WorkspaceError("precondition_failed", f"{path!r}: {detail}", path=path, etag=etag)
        elif self.if_unmodified_since is not None and modified is not None and int(modified) > self.if_unmodified_since:
            detail = "It has changed since that time."
            raise WorkspaceError("precondition_failed", f"{path!r}: {detail}", path=path, etag=etag)
        if self.if_none_match is not None and etag is not None and matches(self.if_none_match, etag, weak=True):
            raise WorkspaceError("precondition_failed", f"{path!r}: There is one already.", path=path, etag=etag)


NO_CONDITIONS = Conditions()


def conditions(headers: Mapping[str, str]) -> Conditions:
    """The conditions of a request that changes something. A time that is none is no condition (RFC 9110, 13.1.4)."""
    since = _seconds(headers.get("if-unmodified-since", ""))
    return Conditions(headers.get("if-match"), headers.get("if-none-match"), since)


def matches(header: str, etag: str, *, weak: bool) -> bool:
    """Whether a tag of the header is this one. `weak`: a weak tag counts as well (RFC 9110, 8.8.3.2)."""
    if header.strip() == "*":
        return True
    at = 0
    while at < len(header):
        found = _TAG.match(header, at)
        if found is None:  # not a list of entity tags: a bare one is what a person types
            return header[at:].strip() == etag.strip('"')
        tag = found[1]
        if tag == etag or (weak and tag.removeprefix("W/") == etag):
            return True
        at = found.end()
    return False


def http_date(seconds: float) -> str:
    """A time as `Last-Modified` has it."""
    return email.utils.formatdate(seconds, usegmt=True)


def _seconds(text: str) -> int | None:
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    try:
        return int(when.timestamp())
    except (OverflowError, ValueError):
        return None


def read_status(headers: Mapping[str, str], etag: str, modified: int) -> int:
    """What the conditions of a GET or HEAD come to: 200, 304 or 412. `modified` in whole seconds. RFC 9110, 13.2.2."""
    if "if-match" in headers:
        if not matches(headers["if-match"], etag, weak=False):
            return 412
    elif "if-unmodified-since" in headers:
        since = _seconds(headers["if-unmodified-since"])
        if since is not None and modified > since:
            return 412
    if "if-none-match" in headers:
        if matches(headers["if-none-match"], etag, weak=True):
            return 304
    elif "if-modified-since" in headers:
        since = _seconds(headers["if-modified-since"])
        if since is not None and modified <= since:
            return 304
    return 200


def byte_range(headers: Mapping[str, str], size: int, etag: str, modified: int) -> tuple[int, int] | None:
    """The part that is asked for, as start and end (exclusive); None for the whole.

    One range is served. Several, another unit, a malformed one, and one whose `If-Range` no longer fits mean the whole, as
    RFC 9110, 14.2 allows. Raises `range_not_satisfiable` for a range that begins behind the end.
    """
    text = headers.get("range")
    found = _RANGE.fullmatch(text) if text is not None else None
    if found is None or found[1] == found[2] == "" or not _still(headers.get("if-range"), etag, modified):
        return None
    if not found[1]:
        count = _figure(found[2])
        start, end = max(0, size - count), size
        satisfiable = count > 0 and size > 0
    else:
        start, last = _figure(found[1]), _figure(found[2] or str(_BEYOND))
        end = min(size, last + 1)
        if last < start:
            return None
        satisfiable = start < size
    if not satisfiable:
        raise WorkspaceError("range_not_satisfiable", f"The range is outside the {size} bytes.", size=size)
    return start, end


def _figure(digits: str) -> int:
    """The number; of one that is larger than any size, just that."""
    return min(int(digits.lstrip("0")[:20] or "0"), _BEYOND)


def _still(if_range: str | None, etag: str, modified: int) -> bool:
    if if_range is None:
        return True
    if '"' in if_range:
        return if_range.strip() == etag
    return _seconds(if_range) == modified
