"""What the target and the headers of a request say, read from ASGI itself: a framework's own reading loses what is not UTF-8."""

from collections.abc import Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from .errors import WorkspaceError
from .paths import parse


def query_of(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """The query; bytes that are not UTF-8 as surrogates."""
    raw: bytes = scope["query_string"]
    if not raw:
        return {}
    text = raw.decode("utf-8", "surrogateescape")
    return dict(parse_qsl(text, keep_blank_values=True, errors="surrogateescape"))


def query_path(query: Mapping[str, str], name: str = "path") -> bytes:
    """A path of the query (`path` or `path_bytes`), empty for the root. Raises `path_invalid`."""
    encoded = query.get(f"{name}_bytes")
    path = unquote_to_bytes(_encoded(encoded)) if encoded is not None else _encoded(query.get(name, ""))
    return parse(path) if path not in (b"", b"/", b".") else b""


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def invalid(field: str, detail: str) -> WorkspaceError:
    """A 422 for one parameter of the query."""
    errors = [{"loc": ["query", field], "msg": detail, "type": "value_error"}]
    return WorkspaceError("validation_failed", f"{field}: {detail}", errors=errors)


def headers_of(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """The headers by name; one that came more than once as a list with commas (RFC 9110, 5.3)."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found
