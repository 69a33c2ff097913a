"""What stands for the token: a cookie for browsers, and tickets for what can't send headers.

The cookie is an expiry and a random id, signed with a key made from the token: it is never the token itself, needs no memory,
survives a restart, and ends with the token. Signing out is remembered until the server ends, so that a copy of the cookie ends
too. A ticket is for one use on one path within 30 s, and kept in memory: after a restart a client asks for another.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

COOKIE_LIFETIME_S = 30 * 86_400
TICKET_LIFETIME_S = 30.0
MAX_TICKETS = 1000
MAX_REVOKED = 1000


class Tokens:
    """Checks for one token. `clock` gives seconds for tickets, `now` the time of day in seconds for cookies."""

    def __init__(
        self, token: str, *, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self._token = token.encode()
        self._key = hashlib.sha256(b"workspace-runtime cookie\0" + self._token).digest()
        self._clock = clock
        self._now = now
        self._tickets: dict[str, tuple[str, float]] = {}
        self._revoked: dict[str, None] = {}

    def is_token(self, value: bytes) -> bool:
        """Whether this is the token, in a time that tells nothing of it."""
        return hmac.compare_digest(value, self._token)

    def make_cookie(self) -> str:
        """A fresh value for the cookie."""
        body = f"{int(self._now()) + COOKIE_LIFETIME_S}.{secrets.token_hex(8)}"
        return f"{body}.{self._sign(body)}"

    def is_cookie(self, value: str) -> bool:
        """Whether this is a value of ours, neither expired nor signed out."""
        body, _, signature = value.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(body).encode()):
            return False
        expiry, _, name = body.partition(".")
        return int(expiry) > self._now() and name not in self._revoked

    def revoke_cookie(self, value: str) -> None:
        """Let this cookie be good no more. Of very many the oldest are forgotten; what is not ours is passed over."""
        if self.is_cookie(value):
            while len(self._revoked) >= MAX_REVOKED:
                del self._revoked[next(iter(self._revoked))]
            self._revoked[value.split(".")[1]] = None

    def _sign(self, body: str) -> str:
        return hmac.digest(self._key, body.encode(), "sha256").hex()

    def make_ticket(self, path: str) -> str:
        """A ticket for one request to `path` (decoded, without a proxy's prefix). Of too many the oldest goes."""
        now = self._clock()
        # made in order of time, so those that expired stand first
        while self._tickets and (len(self._tickets) >= MAX_TICKETS or next(iter(self._tickets.values()))[1] <= now):
            del self._tickets[next(iter(self._tickets))]
        ticket = secrets.token_urlsafe(24)
        self._tickets[ticket] = (path, now + TICKET_LIFETIME_S)
        return ticket

    def use_ticket(self, ticket: str, path: str) -> bool:
        """Whether this ticket is good for `path` now. It is used up in any case."""
        bound, until = self._tickets.pop(ticket, ("", 0.0))
        return bound == path and until > self._clock()
