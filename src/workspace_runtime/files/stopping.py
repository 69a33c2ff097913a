"""How long work gives up: it asks again and again whether it is to stop."""

from collections.abc import Callable

from workspace_runtime.errors import WorkspaceError

IsStopped = Callable[[], bool]


class Stopped(WorkspaceError):
    """The work was given up before its end: the server stops, or nobody waits for it any more."""

    def __init__(self) -> None:
        super().__init__("shutting_down", "The server stops: what was begun is not finished.")


def never() -> bool:
    """For work that nobody stops."""
    return False


def check(stopped: IsStopped) -> None:
    """Raise `Stopped` if it is time."""
    if stopped():
        raise Stopped
