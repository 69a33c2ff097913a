"""The log: one line for each thing that happened, as text for people or as JSON for machines, on standard error.

`logger.info("agent started", extra=told(session_id=..., pid=...))` makes either

    2026-11-30T10:00:00.000Z info workspace_runtime.sessions.runner: agent started session_id=ses_1 pid=4711 request_id=r-1

or an object with `time, level, logger, message` and these fields. The id of the request in whose course something happens is added
by itself (`request_id`). No token, query string or prompt is ever put into a line; what a client chose (a path, a name) is written so
that it can't end the line or reach the terminal as anything but text.
"""

import contextvars
import datetime
import logging
import re
from collections.abc import Mapping
from typing import Any

import orjson

# The request in whose course something happens; whatever is begun by it inherits it.
request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)

_FIELDS = "workspace_runtime_fields"
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[^\s\"=\\]+")


def told(**fields: Any) -> Mapping[str, Any]:
    """What `extra` of a logger's call takes: the line's fields, without those that are None."""
    return {_FIELDS: {name: value for name, value in fields.items() if value is not None}}


def configure(level: str, form: str) -> None:
    """Log to standard error from `level` on, as `text` or `json`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class TextLines(logging.Formatter):
    """A line of text; an exception's traceback follows in lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        parts = [_time(record), f"{record.levelname:<7}", f"{record.name}: {_one_line(record.getMessage())}"]
        parts += [f"{name}={_word(value)}" for name, value in _fields(record).items()]
        line = " ".join(parts)
        return f"{line}\n{_traceback(record)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object a line; a traceback is a field of it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in _fields(record).items() if name not in line}
        if record.exc_info:
            line["exception"] = _traceback(record)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = dict(getattr(record, _FIELDS, {}))
    request = request_id.get()
    if request is not None:
        fields.setdefault("request_id", request)
    return {name: _encodable(value) if isinstance(value, str) else value for name, value in fields.items()}


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(record: logging.LogRecord) -> str:
    return _encodable(logging.Formatter().formatException(record.exc_info)) if record.exc_info else ""


def _one_line(text: str) -> str:
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], _encodable(text))


def _word(value: Any) -> str:
    text = _one_line(str(value))
    return text if _PLAIN.fullmatch(text) else orjson.dumps(text).decode()
