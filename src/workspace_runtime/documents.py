"""The documents that clients make their types from: OpenAPI of the HTTP API, AsyncAPI of the WebSockets. Made from the code."""

import json
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from . import __version__
from .app import routers
from .config import Config
from .documentation import build_api
from .errors import PROBLEMS
from .security.gate import Gate
from .streams import live_protocol, protocol

_TICKET = {"type": "string", "description": "A ticket for one use, of POST /api/v1/auth/tickets."}


def openapi() -> str:
    """The OpenAPI document as JSON text."""
    config = Config()
    document = build_api(routers(config, Gate(config))).openapi()
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def asyncapi() -> str:
    """The AsyncAPI 3.0 document of the WebSockets as JSON text."""
    session = _channel(
        "agentSession",
        "/api/v1/ws/agent-sessions/{id}",
        "One agent session's events. Without `events` only the six types of the default are sent.",
        {
            "after": {"type": "integer", "minimum": 0, "default": 0, "description": "Every event with a higher seq."},
            "tail": {
                "type": "integer",
                "minimum": 0,
                "description": "Begin with the newest so many turns; 0: only what comes.",
            },
            "events": {"type": "string", "description": "`all`, or types with commas."},
            "log_id": {"type": "string", "description": "Refuse when the log was replaced."},
            "ticket": _TICKET,
        },
        protocol.ServerFrame,
        protocol.ClientFrame,
    )
    session["channel"]["parameters"] = {"id": {"description": "The session's id."}}
    live = _channel(
        "workspace",
        "/api/v1/ws",
        "Live events of the workspace: changes of files and system stats. The upgrade is answered when the watch stands. Nothing "
        "is replayed: after a connect, and after a `resync`, list again.",
        {"topics": {"type": "string", "description": "More topics, with commas."}, "ticket": _TICKET},
        live_protocol.LiveServerFrame,
        live_protocol.LiveClientFrame,
    )
    models = {model.__name__: model for part in (session, live) for model in part["models"]}
    schemas = models_json_schema(
        [(model, "validation") for model in models.values()], ref_template="#/components/schemas/{model}"
    )
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Workspace Runtime: WebSockets",
            "version": __version__,
            "description": (
                "Refusals close the connection with 4000 + the HTTP status and the code as reason. Codes: "
                + ", ".join(sorted(PROBLEMS))
                + "."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "servers": {"local": {"host": "localhost:3002", "protocol": "ws"}},
        "channels": {part["name"]: part["channel"] for part in (session, live)},
        "operations": session["operations"] | live["operations"],
        "components": {
            "messages": {
                name: {
                    "name": _type(model),
                    "title": name,
                    "summary": (model.__doc__ or "").strip().split("\n")[0],
                    "payload": {"$ref": f"#/components/schemas/{name}"},
                }
                for name, model in models.items()
            },
            "schemas": schemas[1]["$defs"],
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _channel(
    name: str, address: str, description: str, query: dict[str, Any], received: Any, sent: Any
) -> dict[str, Any]:
    """One WebSocket: its channel, its two operations, and the models of its frames (`received` and `sent` by the client)."""
    down, up = list(_models(received)), list(_models(sent))
    reference = f"#/channels/{name}"

    def messages(models: list[type[BaseModel]]) -> list[dict[str, str]]:
        return [{"$ref": f"{reference}/messages/{model.__name__}"} for model in models]

    return {
        "name": name,
        "models": [*down, *up],
        "channel": {
            "address": address,
            "description": description,
            "messages": {model.__name__: {"$ref": f"#/components/messages/{model.__name__}"} for model in [*down, *up]},
            "bindings": {"ws": {"query": {"type": "object", "properties": query}}},
        },
        "operations": {
            f"{name}Receive": {
                "action": "send",
                "channel": {"$ref": reference},
                "summary": "What a client receives.",
                "messages": messages(down),
            },
            f"{name}Send": {
                "action": "receive",
                "channel": {"$ref": reference},
                "summary": "What a client may send.",
                "messages": messages(up),
            },
        },
    }


def _models(union: Any) -> Iterable[type[BaseModel]]:
    """The models of a (nested, annotated) union, each once, in order."""
    for argument in get_args(union):
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            yield argument
        elif get_args(argument):
            yield from _models(argument)


def _type(model: type[BaseModel]) -> str:
    return str(get_args(model.model_fields["type"].annotation)[0])
