"""The one shape of an error answer: a problem document (RFC 9457), for HTTP; and its short form for WebSockets."""

import http
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from .errors import PROBLEMS, WorkspaceError

MEDIA_TYPE = "application/problem+json"
# A close frame holds 125 bytes: two of the code, the rest of the reason.
MAX_REASON = 123


def problem(code: str, detail: str, request_id: str, data: Mapping[str, Any] | None = None) -> bytes:
    """The body: `type, title, status, detail, code, request_id`, then the error's own data."""
    row = PROBLEMS[code]
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": row.title,
        "status": row.status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    return orjson.dumps({**(data or {}), **body} if data else body, default=str)


def from_status(status: int, detail: str) -> WorkspaceError:
    """An error for a status that a framework made (an unknown path, a wrong method)."""
    codes = {
        400: "malformed_json",
        404: "not_found",
        405: "method_not_allowed",
        413: "body_too_large",
        415: "unsupported_media_type",
    }
    if status >= 500:
        return WorkspaceError("internal_error", "Something went wrong in the server.")
    code = codes.get(status, "validation_failed")
    return WorkspaceError(code, detail or http.HTTPStatus(status).phrase)


def from_validation(errors: Sequence[Mapping[str, Any]], content_type: str) -> WorkspaceError:
    """An error for a request that does not fit its types: 400 for malformed JSON, 415 for a body that is said to be something
    else, 422 otherwise. Never tells the input again, which may hold a secret."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type and not media_type.endswith("json") and any(row["loc"][0] == "body" for row in errors):
        return WorkspaceError(
            "unsupported_media_type", f"The body is said to be {media_type}: send it as application/json."
        )
    rows = [{"loc": [*row["loc"]], "msg": row["msg"], "type": row["type"]} for row in errors]
    if any(row["type"] == "json_invalid" for row in rows):
        place = next(row for row in rows if row["type"] == "json_invalid")
        at = next((part for part in place["loc"] if isinstance(part, int)), None)
        where = "" if at is None else f" (at character {at})"
        return WorkspaceError("malformed_json", f"The body is not valid JSON{where}.")
    first = rows[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
    return WorkspaceError("validation_failed", f"{where}: {first['msg']}{more}", errors=rows)
