"""The documents that clients make their types from: OpenAPI of the HTTP API, AsyncAPI of the WebSocket. Made from the code."""

import json
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from . import __version__
from .config import Config
from .documentation import build_api
from .errors import PROBLEMS
from .security.gate import Gate
from .security.routes import auth_router
from .sessions.routes import agents_router
from .sessions.routes import router as sessions_router
from .streams import protocol

SOCKET = "/api/v1/ws/agent-sessions/{id}"


def openapi() -> str:
    """The OpenAPI document as JSON text."""
    config = Config()
    document = build_api([agents_router, sessions_router, auth_router(config, Gate(config))]).openapi()
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def asyncapi() -> str:
    """The AsyncAPI 3.0 document of the agent-session WebSocket as JSON text."""
    received = list(_models(protocol.ServerFrame))
    sent = list(_models(protocol.ClientFrame))
    schemas = models_json_schema(
        [(model, "validation") for model in [*received, *sent]], ref_template="#/components/schemas/{model}"
    )
    messages = {
        model.__name__: {
            "name": _type(model),
            "title": model.__name__,
            "summary": (model.__doc__ or "").strip().split("\n")[0],
            "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
        }
        for model in [*received, *sent]
    }
    channel = "#/channels/agentSession"
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Workspace Runtime: agent-session WebSocket",
            "version": __version__,
            "description": (
                "One agent session's events. Without `events` in the query only `text`, `thinking`, `tool_use`, "
                "`tool_result`, `error` and `done` are sent. Refusals close the connection with 4000 + the HTTP status "
                "and the code as reason. Codes: " + ", ".join(sorted(PROBLEMS)) + "."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "servers": {"local": {"host": "localhost:3002", "protocol": "ws"}},
        "channels": {
            "agentSession": {
                "address": SOCKET,
                "parameters": {"id": {"description": "The session's id."}},
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {
                    "ws": {
                        "query": {
                            "type": "object",
                            "properties": {
                                "after": {
                                    "type": "integer",
                                    "minimum": 0,
                                    "default": 0,
                                    "description": "Every event with a higher seq.",
                                },
                                "tail": {
                                    "type": "integer",
                                    "minimum": 0,
                                    "description": "Begin with the newest so many turns; 0: only what comes.",
                                },
                                "events": {"type": "string", "description": "`all`, or types with commas."},
                                "log_id": {"type": "string", "description": "Refuse when the log was replaced."},
                                "ticket": {"type": "string"},
                            },
                        }
                    }
                },
            }
        },
        "operations": {
            "receive": {
                "action": "send",
                "channel": {"$ref": channel},
                "summary": "What a client receives.",
                "messages": [{"$ref": f"{channel}/messages/{model.__name__}"} for model in received],
            },
            "send": {
                "action": "receive",
                "channel": {"$ref": channel},
                "summary": "What a client may send.",
                "messages": [{"$ref": f"{channel}/messages/{model.__name__}"} for model in sent],
            },
        },
        "components": {"messages": messages, "schemas": schemas[1]["$defs"]},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _models(union: Any) -> Iterable[type[BaseModel]]:
    """The models of a (nested, annotated) union, each once, in order."""
    for argument in get_args(union):
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            yield argument
        elif get_args(argument):
            yield from _models(argument)


def _type(model: type[BaseModel]) -> str:
    return str(get_args(model.model_fields["type"].annotation)[0])
