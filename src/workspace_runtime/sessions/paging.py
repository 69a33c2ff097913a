"""Pages of what is kept in memory: each ends at a number of items, and at a number of bytes."""

import base64
from collections.abc import Sequence

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.model import encode

from .model import JsonObject

# A page also ends here, in bytes of its items: a client asks for the next one, and nobody holds all of a long list at once.
MAX_PAGE_BYTES = 4 * 1024 * 1024


def pending_page(
    permissions: Sequence[JsonObject], *, limit: int, cursor: str | None
) -> tuple[list[bytes], str | None]:
    """The next of the waiting permissions, which are given in their order, as JSON, and the cursor of the page after it.

    Raises `cursor_invalid`.
    """
    after = _decode(cursor) if cursor is not None else ""
    items: list[bytes] = []
    size, last = 0, ""
    for permission in permissions:
        place = f"{permission['created_at']} {permission['id']}"
        if place <= after:
            continue
        if len(items) == limit:
            return items, _encode(last)
        data = encode(permission)
        size += len(data)
        if items and size > MAX_PAGE_BYTES:
            return items, _encode(last)
        items.append(data)
        last = place
    return items, None


def _encode(place: str) -> str:
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    try:
        place = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError:
        place = ""
    if not place or _encode(place) != cursor:
        raise WorkspaceError("cursor_invalid", "Use next_cursor exactly as it was given.")
    return place
