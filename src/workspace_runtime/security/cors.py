"""CORS: which answers the pages of other origins may read. Only those of `WORKSPACE_RUNTIME_ALLOWED_ORIGINS`, which the gate lets in."""

from collections.abc import Iterable, Mapping
from typing import Any

from workspace_runtime.config import Config

EXPOSED = b"ETag, Location, Content-Range, Retry-After, X-Request-ID"
METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
MAX_AGE_S = b"600"

Headers = list[tuple[bytes, bytes]]
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}


class Cors:
    """Headers for one server's allowed origins. `active`: there are some."""

    def __init__(self, config: Config) -> None:
        self._origins = frozenset(plain_origin(origin.encode()) for origin in config.allowed_origins)
        self.active = bool(self._origins)

    def headers(self, scope: Mapping[str, Any]) -> Headers:
        """What is added to an answer: always `Vary`, the rest for an allowed origin."""
        origin = find(scope["headers"], b"origin")
        added: Headers = [(b"vary", b"Origin")]
        if origin is not None and plain_origin(origin) in self._origins:
            added += [
                (b"access-control-allow-origin", origin),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", EXPOSED),
            ]
        return added

    def preflight(self, scope: Mapping[str, Any]) -> Headers:
        """What is added to the answer of a preflight, beside `headers`."""
        wanted = find(scope["headers"], b"access-control-request-headers") or b"content-type"
        added: Headers = [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", MAX_AGE_S),
        ]
        if (
            find(scope["headers"], b"access-control-request-private-network") == b"true"
        ):  # a public page to this machine
            added.append((b"access-control-allow-private-network", b"true"))
        return added


def find(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first header of this (lower-case) name."""
    return next((value for key, value in headers if key == name), None)


def plain_origin(origin: bytes) -> bytes:
    """Lower-case, without the port that the scheme has by default: so that equal origins compare equal."""
    origin = origin.lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(b":")[0], b"\0"))
