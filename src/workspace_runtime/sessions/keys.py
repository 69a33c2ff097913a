"""Keys that make a retry safe: `client_message_id` of a prompt, `Idempotency-Key` of a new session.

Invariant: from the look-up of a key until its answer is durable one request holds it (`held`). A retry that comes meanwhile waits, and
then finds the answer.
"""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.log import Batch, Statement

from . import store
from .model import JsonObject
from .store import UsedKey

Name = tuple[str, str]  # the scope (a session's id, or empty for creating one) and the key


class UsedKeys:
    """All keys within their lifetime. All methods are of the event loop's thread."""

    def __init__(self, known: Mapping[Name, UsedKey] | None = None) -> None:
        self._known: dict[Name, UsedKey] = dict(known or {})
        self._bound = 1024  # when to look for keys past their lifetime
        self._locks: dict[Name, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def held(self, scope: str, key: str | None) -> AsyncIterator[None]:
        """One request at a time with a key. Without one there is nothing to hold."""
        if key is None:
            yield
            return
        name = scope, key
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            users = self._locks[name][1] - 1
            if users:
                self._locks[name] = lock, users
            else:
                del self._locks[name]

    def answer(self, scope: str, key: str | None, digest: str) -> Mapping[str, Any] | None:
        """What the request with this key was answered, if there was one. Raises `idempotency_conflict` for another request."""
        used = self._known.get((scope, key)) if key is not None else None
        if used is None or used.at < time.time() - store.KEY_LIFETIME_S:
            return None
        if used.digest != digest:
            detail = "This key was used for another request: nothing was done. Use a new one."
            raise WorkspaceError("idempotency_conflict", detail)
        return used.answer

    def use(self, scope: str, key: str, digest: str, answer: JsonObject) -> Statement:
        """Remember an answer; the statement that stores it."""
        moment = time.time()
        if len(self._known) >= self._bound:
            self._known = {name: used for name, used in self._known.items() if used.at >= moment - store.KEY_LIFETIME_S}
            self._bound = max(1024, 2 * len(self._known))
        used = self._known[scope, key] = UsedKey(digest, answer, moment)
        return store.save_key(scope, key, used)

    def forget_unless_stored(self, scope: str, key: str | None, batch: Batch) -> None:
        """What could not be stored did not use its key."""

        def settled(done: asyncio.Future[None]) -> None:
            if not done.cancelled() and done.exception() is not None:
                self._known.pop((scope, str(key)), None)

        if key is not None and batch.done is not None:
            batch.done.add_done_callback(settled)

    def forget_session(self, session_id: str) -> list[Name]:
        """Forget the keys of a purged session; those that it was created with are returned."""
        created = [name for name, used in self._known.items() if used.answer.get("session_id") == session_id]
        for name in [*created, *(name for name in self._known if name[0] == session_id)]:
            del self._known[name]
        return created


def digest(body: bytes | Any) -> str:
    """A digest of a request's body, to tell a retry from another request with the same key."""
    data = body if isinstance(body, bytes) else json.dumps(body, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()
