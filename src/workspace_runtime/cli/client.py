"""The API, as `run` uses it: like any client, with the token where there is one."""

import asyncio
import contextlib
import http.client
import json
import os
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlsplit

from websockets.asyncio.client import ClientConnection, connect

from ..errors import ConfigError

JsonObject = dict[str, Any]

TIMEOUT_S = 60.0
# A file over this is not compared with what an agent wants to write: that would take longer than anybody waits.
MAX_COMPARED = 1024 * 1024


class Client:
    """One server. Raises `ConfigError` where it does not answer."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url.rstrip("/")
        self._parts = urlsplit(self.url)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def request(
        self, method: str, path: str, body: JsonObject | None = None, *, timeout: float = TIMEOUT_S
    ) -> tuple[int, JsonObject]:
        """A request with JSON both ways: the status and the object that was answered."""
        status, data = await asyncio.to_thread(self._request, method, path, body, timeout)
        try:
            answer = json.loads(data) if data else {}
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ConfigError(f"What answers at {self.url} is no Workspace Runtime ({method} {path}: {status}).")
        return status, answer

    def text_of(self, path: str) -> str | None:
        """What a file of the workspace holds, "" where there is none, None where it is no text of a moderate size. Blocks."""
        status, data = self._request("GET", f"/api/v1/files/{quote(os.fsencode(path))}", None, TIMEOUT_S)
        if status == 404:
            return ""
        if status != 200 or len(data) > MAX_COMPARED:
            return None
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode()
        return None

    def _request(self, method: str, path: str, body: JsonObject | None, timeout: float) -> tuple[int, bytes]:
        secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        headers = {**self._headers, "Content-Type": "application/json"}
        try:
            connection = kind(self._parts.hostname or "localhost", self._parts.port, timeout=timeout)
            with contextlib.closing(connection):
                data = json.dumps(body) if body is not None else None
                connection.request(method, self._parts.path + path, data, headers)
                answer = connection.getresponse()
                return answer.status, answer.read(MAX_COMPARED * 64)
        except (OSError, http.client.HTTPException) as fault:
            raise ConfigError(f"The server at {self.url} does not answer ({fault}).") from None

    @contextlib.asynccontextmanager
    async def events(self, session_id: str) -> AsyncIterator[ClientConnection]:
        """The session's WebSocket with all its events, from the first."""
        address = f"{self.url.replace('http', 'ws', 1)}/api/v1/ws/agent-sessions/{session_id}?events=all"
        async with connect(
            address, additional_headers=self._headers, max_size=None, proxy=None, close_timeout=1
        ) as socket:
            yield socket


def inside(root: str, cwd: str, path: str) -> str | None:
    """A path that an agent named, as one of the workspace; None where it leads out."""
    absolute = os.path.normpath(os.path.join(root, cwd, path))
    relative = os.path.relpath(absolute, root)
    return None if relative == ".." or relative.startswith("../") or relative == "." else relative
