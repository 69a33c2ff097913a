"""Who may connect: asked once for each request and WebSocket, before anything else looks at it.

In this order: the peer (looked up by the connection), the `Host`, the `Origin`, the token. Each keeps out another kind of
stranger: other users of this machine; pages that point a name of theirs at our address (DNS rebinding); pages of other
sites, which a browser lets send requests blindly; everyone else.

A cookie is sent by a browser unasked, also for other ports of the same name. It never counts alone: browsers send `Origin`
with every WebSocket and every request that could change something, and `Sec-Fetch-Site` with the rest, and those are checked
before it is looked at. A client that sends neither is no browser, and had to put the cookie there itself.

`admit` looks at each header once, remembers names that it has judged, and changes nothing, but that a ticket is used up.
"""

import base64
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from workspace_runtime.config import Config
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.logs import told

from .connection import PEER_STATE, TARGET_STATE
from .cors import plain_origin
from .forwarded import FORWARDED, Outside, Proxies
from .tokens import Tokens

logger = logging.getLogger(__name__)

HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
PAGES = frozenset({"/", "/docs", "/redoc"})
# Where a browser signs in: the token travels in the body.
OPEN_PATHS = frozenset({"/api/v1/auth/session"})
SUBPROTOCOL = "workspace-runtime.v1"
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
_EVERYWHERE = frozenset({"0.0.0.0", "::", "[::]"})  # noqa: S104
_HEADERS = frozenset(
    {
        b"host",
        b"origin",
        b"authorization",
        b"cookie",
        b"sec-fetch-site",
        b"sec-fetch-mode",
        b"access-control-request-method",
    }
)
_MAX_HOSTS = 256


@dataclass(frozen=True, slots=True)
class Access:
    """How a request was let in. `stranger`: it was not, and only health, signing in and a preflight are for it.

    `subprotocol` is the one to answer to a WebSocket.
    """

    by: Literal["peer", "bearer", "cookie", "ticket", "subprotocol", "preflight", "none"]
    stranger: bool = False
    subprotocol: str | None = None


_BY_PEER = Access("peer")
_BY_BEARER = Access("bearer")
_PREFLIGHT = Access("preflight", stranger=True)
_STRANGER = Access("none", stranger=True)


class Gate:
    """The checks for one server's settings. `tokens` is None where no token is set."""

    def __init__(self, config: Config) -> None:
        self.tokens = Tokens(config.token) if config.token is not None else None
        self.proxies = Proxies(config.trusted_proxies)
        self._port = config.port
        # the address that we were told to listen on is no name that somebody else could point at us
        own = () if config.host in _EVERYWHERE else (_in_brackets(config.host),)
        self._names = LOCAL_NAMES | {name.lower() for name in (*config.allowed_hosts, *own)}
        self._origins = frozenset(plain_origin(origin.encode()) for origin in config.allowed_origins)
        self._wanted = _HEADERS | FORWARDED if self.proxies.any else _HEADERS
        self._served: dict[bytes, bool] = {}

    def admit(self, scope: Mapping[str, Any], path: str) -> Access:
        """Let an HTTP request or a WebSocket in. `path` is the request's, without the prefix of a proxy.

        Raises `WorkspaceError`: `peer_refused`, `bad_host`, `host_refused`, `origin_refused`, `auth_required` (with the
        `subprotocol` to answer to a WebSocket, where it asked for ours). Health is always let in, if as a stranger.
        """
        try:
            return self._admit(scope, path)
        except WorkspaceError as fault:
            if path in HEALTH_PATHS:
                return _STRANGER
            self._tell(fault, scope, path)
            raise

    def _tell(self, fault: WorkspaceError, scope: Mapping[str, Any], path: str) -> None:
        """Log who was not let in, and by what it tried; never what it has shown."""
        tried = None
        if fault.code == "auth_required":
            found = self._read(scope)
            names = {"authorization": b"authorization" in found, "cookie": self.cookie(scope) is not None}
            names["ticket"] = b"ticket=" in scope["query_string"]
            names["subprotocol"] = any(name.startswith("bearer.") for name in scope.get("subprotocols", ()))
            tried = ", ".join(name for name, shown in names.items() if shown) or "nothing"
        told_as = "sign-in failed" if tried not in (None, "nothing") else "refused"
        level = logging.WARNING if tried != "nothing" else logging.INFO
        client = self.outside(scope).client
        logger.log(level, told_as, extra=told(code=fault.code, client=client, path=path, tried=tried))

    def outside(self, scope: Mapping[str, Any]) -> Outside:
        """Scheme, host and client as seen from outside the trusted proxies."""
        return self.proxies.outside(scope, self._read(scope))

    def cookie_name(self, scope: Mapping[str, Any]) -> str:
        """Browsers send a cookie to all ports of a name, so its name carries the port."""
        server = scope.get("server")
        return f"workspace_runtime_{server[1] if server and server[1] else self._port}"

    def cookie(self, scope: Mapping[str, Any]) -> str | None:
        """The value of our cookie in a request."""
        header = self._read(scope).get(b"cookie")
        return None if header is None else _find_cookie(header, self.cookie_name(scope))

    # --- in order -----------------------------------------------------------------------------------------------------

    def _admit(self, scope: Mapping[str, Any], path: str) -> Access:
        state = scope.get("state") or {}
        if self.tokens is None and state.get(PEER_STATE) is not True:
            detail = "On loopback without a token only processes of the server's user and of root may connect."
            raise WorkspaceError("peer_refused", detail)
        headers = self._read(scope)
        host = headers.get(b"host")
        if host is None:
            raise WorkspaceError("bad_host", "Send one Host header.")
        authorization = headers.get(b"authorization")
        bearer = self.tokens is not None and authorization is not None and self._bearer_is_right(authorization)
        scheme = "https" if scope["scheme"] in ("https", "wss") else "http"
        outer = host
        if self.proxies.any:
            outside = self.proxies.outside(scope, headers)
            scheme, outer = outside.scheme, outside.host
        self._check_hosts(host, outer, state.get(TARGET_STATE), needed=not bearer)

        origin = headers.get(b"origin")
        if origin is not None:
            self._check_origin(origin, scheme, outer)
        else:
            site = headers.get(b"sec-fetch-site")
            if site is not None and site != b"same-origin" and site != b"none":
                self._check_navigation(scope, path, headers)

        if scope.get("method") == "OPTIONS" and self._is_preflight(headers):
            return _PREFLIGHT
        if self.tokens is None:
            return _BY_PEER if scope["type"] == "http" else Access("peer", subprotocol=_own_subprotocol(scope))
        if bearer:
            return _BY_BEARER if scope["type"] == "http" else Access("bearer", subprotocol=_own_subprotocol(scope))
        return self._authenticate(self.tokens, scope, path, headers)

    def _read(self, scope: Mapping[str, Any]) -> dict[bytes, bytes]:
        """The headers that count here. A repeated one is joined to a list, which no check takes for one value."""
        found: dict[bytes, bytes] = {}
        wanted = self._wanted
        for name, value in scope["headers"]:
            if name in wanted:
                if name in found:
                    value = found[name] + (b"; " if name == b"cookie" else b", ") + value
                found[name] = value
        return found

    # --- host and origin ----------------------------------------------------------------------------------------------

    def _check_hosts(self, host: bytes, outer: bytes, target: bytes | None, *, needed: bool) -> None:
        """Our own Host, that of a trusted proxy's client, and that of an absolute-form target: all must be served here.

        Also the first, behind a proxy: a page that points its name at us can send `X-Forwarded-Host` from this machine.
        """
        self._check_host(host, needed=needed)
        if outer is not host:
            self._check_host(outer, needed=needed)
        if target is not None:
            self._check_host(target, needed=needed)

    def _check_host(self, host: bytes, *, needed: bool) -> None:
        served = self._served.get(host)
        if served is None:
            served = self._is_served(host)
            if served and len(self._served) < _MAX_HOSTS:
                self._served[host] = served
        if not served and needed:
            raise WorkspaceError(
                "host_refused",
                "This name is not served here: add it to WORKSPACE_RUNTIME_ALLOWED_HOSTS if it should be.",
            )

    def _is_served(self, host: bytes) -> bool:
        match = _HOST.fullmatch(host)
        if match is None or (match[2] is not None and int(match[2]) > 65535):
            raise WorkspaceError("bad_host", "There must be one Host, a name or name:port.")
        return match[1].decode().lower() in self._names

    def _check_origin(self, origin: bytes, scheme: str, host: bytes) -> None:
        """Ours is what the browser has in its address bar: the scheme and the Host that it sent."""
        if origin == scheme.encode() + b"://" + host:
            return
        plain = plain_origin(origin)
        if plain not in self._origins and plain != plain_origin(scheme.encode() + b"://" + host):
            raise WorkspaceError("origin_refused", "Pages of this origin may not call this server.")

    def _check_navigation(self, scope: Mapping[str, Any], path: str, headers: Mapping[bytes, bytes]) -> None:
        """A link from elsewhere may lead to a page, and to nothing else."""
        navigated = headers.get(b"sec-fetch-mode") == b"navigate" and scope.get("method") in ("GET", "HEAD")
        if path not in PAGES or not navigated:
            raise WorkspaceError("origin_refused", "A page of another site asked for this.")

    def _is_preflight(self, headers: Mapping[bytes, bytes]) -> bool:
        """A browser's question before a request, which carries no sign-in; answered by headers alone, for known origins."""
        origin = headers.get(b"origin")
        return (
            origin is not None and b"access-control-request-method" in headers and plain_origin(origin) in self._origins
        )

    # --- token --------------------------------------------------------------------------------------------------------

    def _authenticate(
        self, tokens: Tokens, scope: Mapping[str, Any], path: str, headers: Mapping[bytes, bytes]
    ) -> Access:
        """By what the client shows. A wrong bearer or subprotocol counts as wrong, whatever else is there."""
        socket = scope["type"] == "websocket"
        subprotocol = _own_subprotocol(scope) if socket else None
        offered = [name for name in scope.get("subprotocols", ()) if name.startswith("bearer.")] if socket else []
        if offered:
            if len(offered) == 1 and tokens.is_token(_from_base64url(offered[0][7:])):
                return Access("subprotocol", subprotocol=subprotocol)
        elif not _is_bearer(headers.get(b"authorization", b"")):
            cookie = headers.get(b"cookie")
            value = None if cookie is None else _find_cookie(cookie, self.cookie_name(scope))
            if value is not None and tokens.is_cookie(value):
                return Access("cookie", subprotocol=subprotocol)
            ticket = _find_ticket(scope["query_string"])
            if ticket and (socket or scope["method"] in ("GET", "HEAD")) and tokens.use_ticket(ticket, path):
                return Access("ticket", subprotocol=subprotocol)
        if path in OPEN_PATHS and not socket:
            return _STRANGER
        told = {"subprotocol": subprotocol} if subprotocol else {}
        raise WorkspaceError("auth_required", "This server wants its token.", **told)

    def _bearer_is_right(self, authorization: bytes) -> bool:
        return (
            self.tokens is not None
            and _is_bearer(authorization)
            and self.tokens.is_token(authorization[7:].strip(b" \t"))
        )


def _in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _is_bearer(authorization: bytes) -> bool:
    return authorization[:7].lower() == b"bearer "


def _own_subprotocol(scope: Mapping[str, Any]) -> str | None:
    return SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None


def _find_cookie(header: bytes, name: str) -> str | None:
    """By hand: cookies of other ports may hold what a stricter parser stops at."""
    wanted = name.encode() + b"="
    for part in header.split(b";"):
        part = part.strip(b" \t")
        if part.startswith(wanted):
            return part[len(wanted) :].decode("latin-1")
    return None


def _find_ticket(query: bytes) -> str:
    if b"ticket=" in query:
        for part in query.split(b"&"):
            if part.startswith(b"ticket="):
                return part[7:].decode("latin-1")
    return ""


def _from_base64url(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:  # also what the decoder calls its own
        return b""
