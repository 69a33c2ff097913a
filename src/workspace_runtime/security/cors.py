"""CORS: which answers the pages of other origins may read. Only those of `ALLOWED_ORIGINS`, which the gate lets in."""

from collections.abc import Iterable, Mapping
from typing import Any

from workspace_runtime.config import Config

EXPOSED = b"ETag, Location, Content-Range, Retry-After, X-Request-ID"
METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
MAX_AGE_S = b"600"

Headers = list[tuple[bytes, bytes]]


class Cors:
    """Headers for one server's allowed origins. `active`: there are some."""

    def __init__(self, config: Config) -> None:
        self._origins = frozenset(origin.lower().encode() for origin in config.allowed_origins)
        self.active = bool(self._origins)

    def headers(self, scope: Mapping[str, Any]) -> Headers:
        """What is added to an answer: always `Vary`, the rest for an allowed origin."""
        origin = find(scope["headers"], b"origin")
        added: Headers = [(b"vary", b"Origin")]
        if origin is not None and origin.lower() in self._origins:
            added += [
                (b"access-control-allow-origin", origin),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", EXPOSED),
                # the fixed `same-origin` would keep the page from reading it
                (b"cross-origin-resource-policy", b"cross-origin"),
            ]
        return added

    def preflight(self, scope: Mapping[str, Any]) -> Headers:
        """What is added to the answer of a preflight, beside `headers`."""
        wanted = find(scope["headers"], b"access-control-request-headers") or b"content-type"
        return [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", MAX_AGE_S),
        ]


def find(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first header of this (lower-case) name."""
    return next((value for key, value in headers if key == name), None)
