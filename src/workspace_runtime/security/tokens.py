"""What stands for the token: a cookie for browsers, and tickets for what can't send headers.

The cookie holds an expiry and its HMAC under a key made from the token: it needs no memory, survives a restart, and ends with
the token. A ticket is for one use on one path, within 30 s, kept in memory.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

COOKIE_LIFETIME_S = 30 * 86_400
TICKET_LIFETIME_S = 30.0
MAX_TICKETS = 1000


class Tokens:
    """Checks for one token. `clock` gives seconds, `now` the time of day in seconds."""

    def __init__(
        self, token: str, *, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self._token = token.encode()
        self._key = hashlib.sha256(b"workspace-runtime cookie\0" + self._token).digest()
        self._clock = clock
        self._now = now
        self._tickets: dict[str, tuple[str, float]] = {}

    def is_token(self, value: bytes) -> bool:
        """Whether this is the token, in a time that tells nothing."""
        return hmac.compare_digest(value, self._token)

    def make_cookie(self) -> str:
        """A fresh value for the cookie."""
        expiry = str(int(self._now()) + COOKIE_LIFETIME_S)
        return f"{expiry}.{self._sign(expiry)}"

    def is_cookie(self, value: str) -> bool:
        """Whether this is a value of ours that has not expired."""
        expiry, _, signature = value.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(expiry).encode()):
            return False
        return int(expiry) > self._now()

    def _sign(self, expiry: str) -> str:
        return hmac.new(self._key, expiry.encode(), hashlib.sha256).hexdigest()

    def make_ticket(self, path: str) -> str:
        """A ticket for one request to `path`. The oldest goes when there are too many."""
        now = self._clock()
        for name in [name for name, (_, until) in self._tickets.items() if until <= now]:
            del self._tickets[name]
        while len(self._tickets) >= MAX_TICKETS:
            del self._tickets[next(iter(self._tickets))]
        ticket = secrets.token_urlsafe(24)
        self._tickets[ticket] = (path, now + TICKET_LIFETIME_S)
        return ticket

    def use_ticket(self, ticket: str, path: str) -> bool:
        """Whether this ticket is good for `path` now. It is used up in any case."""
        bound, until = self._tickets.pop(ticket, ("", 0.0))
        return bound == path and until > self._clock()
