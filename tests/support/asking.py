"""Requests whose target goes over the wire exactly as given: no client tidies it."""

import http.client
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers (lower case) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return orjson.loads(self.body)

    @property
    def code(self) -> str:
        """The problem's code."""
        assert self.headers["content-type"] == "application/problem+json", self
        return str(self.json["code"])


def ask(
    url: str,
    method: str,
    target: str,
    body: "bytes | Iterable[bytes] | None" = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on a connection of its own; an iterable body is sent in chunks."""
    host = urlsplit(url).netloc
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT_S)
    try:
        chunked = body is not None and not isinstance(body, bytes)
        more = {"Transfer-Encoding": "chunked"} if chunked else {}
        connection.request(method, target, body, {**(headers or {}), **more}, encode_chunked=chunked)
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def file_url(path: "str | bytes") -> str:
    """The target of a file."""
    return "/api/v1/files/" + quote(path)


def multipart(
    *parts: tuple[bytes, bytes], boundary: bytes = b"frontier", end: bool = True
) -> tuple[bytes, dict[str, str]]:
    """A body of files (filename, content) and its headers."""
    body = b""
    for name, content in parts:
        escaped = name.replace(b'"', b"%22").replace(b"\r", b"%0D").replace(b"\n", b"%0A")
        body += b'--%b\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n%b\r\n' % (
            boundary, escaped, content,
        )  # fmt: skip
    if end:
        body += b"--%b--\r\n" % boundary
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}
