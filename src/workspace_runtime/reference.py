"""The reference pages, made from the code's own tables: settings, error codes, event types, the demo agent's words."""

import sys
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel

from .config import settings
from .errors import PROBLEMS
from .events.model import DEFAULT_TYPES, LIVE_TYPES
from .sessions.drivers.demo_agent import HELP
from .streams import live_protocol, protocol

_MADE = "<!-- Made from the code by scripts/docs: change it there. -->\n"


def reference() -> str:
    """The page `docs/reference.md`."""
    return "\n".join(
        [
            "# Reference",
            "",
            _MADE,
            "The HTTP API is described by [openapi.json](api/openapi.json) and shown at `/docs` and `/redoc` of a running server, the",
            "WebSockets by [asyncapi.json](api/asyncapi.json).",
            "",
            "## Settings",
            "",
            "A flag of `workspace-runtime serve` wins over the variable, the variable over the default. `PATH`, the first argument,",
            "is the workspace's root.",
            "",
            "The short name of a variable counts where the long one is not set. A platform may use it for something else: a value that",
            "can't be meant for this server is passed over with a warning, and reaches the agents. An agent inherits no setting of ours.",
            "",
            *_table(("Variable", "Short", "Flag", "Default", "Meaning"), map(_setting, settings())),
            "",
            "## Error codes",
            "",
            "Every error answer is `application/problem+json` with `type, title, status, detail, code, request_id`; 422 has `errors[]`",
            "as well. On a WebSocket the close code is 4000 + the status, and the reason is the code.",
            "",
            *_table(
                ("Code", "Status", "Title", "What to do"),
                ((f"`{code}`", str(row.status), row.title, row.advice) for code, row in sorted(PROBLEMS.items())),
            ),
            "",
            "## Events",
            "",
            "Every stored event has `seq, id, type, session_id, turn_id, timestamp`, and `parent_tool_use_id` in a sub-agent's. The six",
            "in bold are sent by default.",
            "",
            *_table(("Type", "Stored", "Fields", "Meaning"), map(_event, _events())),
            "",
            "## Live events of the workspace",
            "",
            "On the WebSocket `/api/v1/ws` and on `GET /api/v1/events`. Each has a `seq`, which counts the events of the connection;",
            "none is stored.",
            "",
            *_table(("Type", "Fields", "Meaning"), map(_live_event, _members(live_protocol.WorkspaceEvent))),
            "",
        ]
    )


def demo() -> str:
    """The page `docs/guides/demo.md`."""
    return "\n".join(
        [
            "# The demo agent",
            "",
            _MADE,
            "The agent `demo` is built in. It is a process of its own like every agent, goes the same way through driver, log and hub,",
            "and plays a small script instead of thinking: for trying everything, and for testing a client, without a key or a network.",
            "",
            "```sh",
            '.venv/bin/workspace-runtime run --agent demo "think Let me see\nsay Hello\nwrite hello.txt Hi there\nquestion Which colour? | Red | Blue"',
            "```",
            "",
            "Its words, as `help` tells them:",
            "",
            "```",
            HELP,
            "```",
            "",
            "A turn's usage counts words. The conversation is kept in the server's state, so that `recall` works after a `kill -9` too.",
            "",
        ]
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows)]


def _setting(field: Any) -> tuple[str, ...]:
    data = field.metadata
    default = data["shown"] or str(field.default)
    flag = f"`{data['flag']}`" if data["flag"] else ("`PATH`" if field.name == "workspace_path" else "never")
    return f"`{data['env']}`", f"`{data['short']}`", flag, default, data["help"]


def _members(union: Any) -> list[type[BaseModel]]:
    return list(get_args(get_args(union)[0]))


def _events() -> list[type[BaseModel]]:
    return [*_members(protocol.StoredEvent), *_members(protocol.LiveEvent)]


def _live_event(model: type[BaseModel]) -> tuple[str, ...]:
    fields = ", ".join(f"`{field}`" for field in model.model_fields if field not in ("type", "seq"))
    return (
        f"`{get_args(model.model_fields['type'].annotation)[0]}`",
        fields,
        (model.__doc__ or "").strip().split("\n")[0],
    )


def _event(model: type[BaseModel]) -> tuple[str, ...]:
    name = str(get_args(model.model_fields["type"].annotation)[0])
    shared = {*protocol.EventBase.model_fields, "type"} - ({"id"} if name in LIVE_TYPES else set())
    fields = ", ".join(f"`{field}`" for field in model.model_fields if field not in shared)
    meaning = (model.__doc__ or "").strip().split("\n")[0]
    return (
        f"**`{name}`**" if name in DEFAULT_TYPES else f"`{name}`",
        "no" if name in LIVE_TYPES else "yes",
        fields,
        meaning,
    )


if __name__ == "__main__":
    sys.stdout.write(demo() if sys.argv[1:] == ["demo"] else reference())
