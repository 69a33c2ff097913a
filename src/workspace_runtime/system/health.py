"""Health: alive at all, and ready to work."""

import time
from collections.abc import Callable
from typing import Any

import orjson

DEGRADED = "The state folder takes no writes (is its disk full?). Sessions wait until it does; files can be deleted."


class Health:
    """Answers of `/health`, `/health/live` and `/health/ready`, made as JSON.

    `writable` tells whether the state can be written; `facts` what is told to whoever may connect.
    """

    def __init__(self, version: str, writable: Callable[[], bool], facts: Callable[[], dict[str, Any]]) -> None:
        self._version = version
        self._writable = writable
        self._facts = facts
        self._started = time.monotonic()
        self.stopping = False

    @property
    def ready(self) -> bool:
        """Whether requests can be served in full."""
        return self._writable() and not self.stopping

    def answer(self, path: str, *, stranger: bool) -> tuple[int, bytes]:
        """Status and JSON body for one of the three paths; a stranger gets the word alone."""
        ready = self.ready
        word = "ok" if ready else ("stopping" if self.stopping else "degraded")
        status = 503 if path == "/health/ready" and not ready else 200
        if path == "/health/live":
            word = "ok"
        if stranger:
            return status, b'{"status":"%b"}' % word.encode()
        uptime = round(time.monotonic() - self._started, 3)
        body = {"status": word, "version": self._version, "uptime_s": uptime, **self._facts()}
        if word == "degraded":
            body["reason"] = DEGRADED
        return status, orjson.dumps(body)
