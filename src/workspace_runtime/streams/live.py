"""How a client says what it wants of the workspace's live events, the same for WebSocket and SSE."""

from collections.abc import Iterable, Mapping

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.events.board import Board, LiveEvent
from workspace_runtime.paths import from_path_bytes, parse
from workspace_runtime.queries import invalid

MAX_WATCHED = 1000


class Narrowing:
    """Which paths a client wants to hear of: these, and all below them. None: all."""

    def __init__(self, paths: Iterable[bytes] | None = None) -> None:
        self._all = paths is None
        self._paths = frozenset(paths or ())
        if b"" in self._paths:
            self._all = True

    def admits(self, event: LiveEvent) -> bool:
        """Whether the client gets an event."""
        path = event.path
        if self._all or path is None or path in self._paths:
            return True
        if event.deep and (not path or any(wanted.startswith(path + b"/") for wanted in self._paths)):
            return bool(self._paths)
        at = path.rfind(b"/")
        while at > 0:
            if path[:at] in self._paths:
                return True
            at = path.rfind(b"/", 0, at)
        return False


def numbered(seq: int, data: bytes) -> bytes:
    """An event's JSON with the connection's own count in it."""
    return b'{"seq":%d,%b' % (seq, data[1:])


def topics_of(board: Board, query: Mapping[str, str]) -> frozenset[str]:
    """The topics of a connection: those by default, and what `topics=` adds. Raises 422 for an unknown one."""
    names = frozenset(name.strip() for name in query.get("topics", "").split(",") if name.strip())
    for name in sorted(names):
        if name not in board.names:
            raise invalid("topics", f"{name!r} is no topic; there are {', '.join(board.names)}")
    return board.defaults | names


def watched(paths: Iterable[str], encoded: Iterable[str] = ()) -> list[bytes]:
    """Paths that a client narrows its events to; empty text is the root. Raises `path_invalid`."""
    try:
        found = [path.encode() for path in paths] + [from_path_bytes(path) for path in encoded]
    except UnicodeEncodeError:
        raise WorkspaceError("path_invalid", "A path is no text that can be encoded.") from None
    return [parse(path) if path else b"" for path in found]
