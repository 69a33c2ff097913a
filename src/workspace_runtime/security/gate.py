"""Who may connect: asked once for each request and WebSocket, before anything else looks at it.

In this order: the peer (looked up by the connection), the `Host`, the `Origin`, the token. A valid bearer header makes the
`Host` check unneeded, since no page can send one to us unasked.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any, Literal
from urllib.parse import parse_qs

from workspace_runtime.config import Config
from workspace_runtime.errors import WorkspaceError

from .connection import REFUSED_SCOPE, TARGET_SCOPE
from .tokens import Tokens

HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
PAGES = frozenset({"/", "/docs", "/redoc"})
# Where a browser signs in: the token travels in the body.
OPEN_PATHS = frozenset({"/api/v1/auth/session"})
SUBPROTOCOL = "workspace-runtime.v1"
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
_DEFAULT_PORTS = {"http": b":80", "https": b":443"}
_MAX_HOSTS = 256


@dataclass(frozen=True, slots=True)
class Access:
    """How a request was let in. `stranger`: it was not, and only the open paths may be answered."""

    by: Literal["peer", "bearer", "cookie", "ticket", "subprotocol", "preflight", "none"]
    stranger: bool = False
    subprotocol: str | None = None


_BY_PEER = Access("peer")
_STRANGER = Access("none", stranger=True)


class Gate:
    """The checks for one server's settings."""

    def __init__(self, config: Config) -> None:
        self.tokens = Tokens(config.token) if config.token is not None else None
        self.cookie_name = f"workspace_runtime_{config.port}"
        self._names = LOCAL_NAMES | {name.lower() for name in config.allowed_hosts}
        self._origins = frozenset(origin.lower().encode() for origin in config.allowed_origins)
        self._proxies = [ipaddress.ip_network(network) for network in config.trusted_proxies]
        self._hosts: dict[bytes, WorkspaceError | None] = {}

    def admit(self, scope: Mapping[str, Any], path: str) -> Access:
        """Let a request in, or raise `WorkspaceError`: `peer_refused`, `bad_host`, `host_refused`, `origin_refused`,
        `auth_required`. `path` is the request's, without the prefix of a proxy. Health is always let in, as a stranger."""
        if path in HEALTH_PATHS:
            try:
                return self._admit(scope, path)
            except WorkspaceError:
                return _STRANGER
        return self._admit(scope, path)

    def _admit(self, scope: Mapping[str, Any], path: str) -> Access:
        if REFUSED_SCOPE in scope:
            detail = "On loopback without a token only processes of the server's user and of root may connect."
            raise WorkspaceError("peer_refused", detail)
        host = origin = site = mode = authorization = cookie = None
        hosts = 0
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
                hosts += 1
            elif name == b"origin":
                origin = value if origin is None else b"null"
            elif name == b"authorization":
                authorization = value
            elif name == b"cookie":
                cookie = value if cookie is None else cookie + b"; " + value
            elif name == b"sec-fetch-site":
                site = value
            elif name == b"sec-fetch-mode":
                mode = value
        if hosts != 1 or host is None:
            raise WorkspaceError("bad_host", "Send one Host header.")
        bearer = self.tokens is not None and authorization is not None and self._is_bearer(authorization)
        scheme, outer_host = self.outside(scope, host)
        if not bearer:
            self._check_host(outer_host)
            if TARGET_SCOPE in scope:
                self._check_host(scope[TARGET_SCOPE])
        if origin is not None:
            self._check_origin(origin, scheme, outer_host)
        elif site is not None and site not in (b"same-origin", b"none"):
            navigated = path in PAGES and mode == b"navigate" and scope.get("method") in ("GET", "HEAD")
            if not navigated:
                raise WorkspaceError("origin_refused", "A page of another site asked for this.")
        if self.tokens is None:
            return _BY_PEER if scope.get("method") != "OPTIONS" else self._preflight(scope, origin) or _BY_PEER
        if bearer:
            return Access("bearer", subprotocol=_own_subprotocol(scope))
        return self._authenticate(self.tokens, scope, path, origin, cookie)

    # --- host and origin ----------------------------------------------------------------------------------------------

    def outside(self, scope: Mapping[str, Any], host: bytes) -> tuple[str, bytes]:
        """Scheme (`http` or `https`) and host as the client sees them: those of a proxy, where it is trusted."""
        scheme = "https" if scope["scheme"] in ("https", "wss") else "http"
        if not self._proxies or not self._is_proxy(scope.get("client")):
            return scheme, host
        for name, value in scope["headers"]:
            if name == b"x-forwarded-proto":
                # a chain of proxies writes a list; the last was written by the one that we trust
                scheme = "https" if value.rpartition(b",")[2].strip() in (b"https", b"wss") else "http"
            elif name == b"x-forwarded-host":
                host = value.rpartition(b",")[2].strip()
        return scheme, host

    def _is_proxy(self, client: Any) -> bool:
        try:
            address = ipaddress.ip_address(client[0])
        except (TypeError, ValueError, IndexError):
            return False
        return any(address in network for network in self._proxies)

    def _check_host(self, host: bytes) -> None:
        try:
            refused = self._hosts[host]
        except KeyError:
            refused = self._judge_host(host)
            if len(self._hosts) < _MAX_HOSTS:
                self._hosts[host] = refused
        if refused is not None:
            raise WorkspaceError(refused.code, refused.detail)

    def _judge_host(self, host: bytes) -> WorkspaceError | None:
        match = _HOST.fullmatch(host)
        if match is None or (match[2] is not None and int(match[2]) > 65535):
            return WorkspaceError("bad_host", "The Host must be a name, or name:port.")
        if match[1].decode().lower() not in self._names:
            return WorkspaceError(
                "host_refused", "This name is not served here: add it to ALLOWED_HOSTS if it should be."
            )
        return None

    def _check_origin(self, origin: bytes, scheme: str, host: bytes) -> None:
        origin = origin.lower()
        if origin in self._origins:
            return
        default = _DEFAULT_PORTS[scheme]
        own = scheme.encode() + b"://" + host.lower()
        if origin.removesuffix(default) != own.removesuffix(default):
            raise WorkspaceError("origin_refused", "Pages of this origin may not call this server.")

    def _preflight(self, scope: Mapping[str, Any], origin: bytes | None) -> Access | None:
        asks = any(name == b"access-control-request-method" for name, _ in scope["headers"])
        allowed = origin is not None and origin.lower() in self._origins
        return Access("preflight", stranger=True) if asks and allowed and scope.get("method") == "OPTIONS" else None

    # --- token --------------------------------------------------------------------------------------------------------

    def _authenticate(
        self, tokens: Tokens, scope: Mapping[str, Any], path: str, origin: bytes | None, cookie: bytes | None
    ) -> Access:
        subprotocol = _own_subprotocol(scope)
        if scope["type"] == "websocket":
            for name in scope.get("subprotocols", ()):
                if name.startswith("bearer.") and subprotocol and tokens.is_token(_decode(name[7:])):
                    return Access("subprotocol", subprotocol=subprotocol)
        if cookie is not None and self._is_cookie(tokens, cookie):
            return Access("cookie", subprotocol=subprotocol)
        query: bytes = scope["query_string"]
        if b"ticket=" in query:
            ticket = parse_qs(query.decode("latin-1")).get("ticket", [""])[0]
            if tokens.use_ticket(ticket, path):
                return Access("ticket", subprotocol=subprotocol)
        preflight = self._preflight(scope, origin)
        if preflight is not None:
            return preflight
        if path in OPEN_PATHS:
            return _STRANGER
        raise WorkspaceError(
            "auth_required", "This server wants its token.", **({"subprotocol": subprotocol} if subprotocol else {})
        )

    def _is_bearer(self, authorization: bytes) -> bool:
        kind, _, value = authorization.partition(b" ")
        return self.tokens is not None and kind.lower() == b"bearer" and self.tokens.is_token(value.strip())

    def _is_cookie(self, tokens: Tokens, header: bytes) -> bool:
        try:
            morsel = SimpleCookie(header.decode("latin-1")).get(self.cookie_name)
        except CookieError:
            return False
        return morsel is not None and tokens.is_cookie(morsel.value)


def _own_subprotocol(scope: Mapping[str, Any]) -> str | None:
    return SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None


def _decode(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""
