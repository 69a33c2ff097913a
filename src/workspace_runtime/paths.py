"""The workspace's root, and the one gate through which a client's path goes."""

import os
from pathlib import Path

from .errors import WorkspaceError


class WorkspaceRoot:
    """The real root folder of the workspace."""

    def __init__(self, root: Path) -> None:
        self.path = root.resolve()

    def folder(self, path: str) -> str:
        """A folder a client named, for an agent to work in: relative to the root, `.` or empty for the root itself.

        Links are followed; where they lead must lie inside. Returns the path as given, tidied. Raises `WorkspaceError`
        (`path_invalid`, `path_outside`).
        """
        relative = path.removesuffix("/")
        if relative in ("", "."):
            if path.startswith("/"):
                raise WorkspaceError("path_invalid", "The path must be relative to the workspace root.")
            return "."
        if relative.startswith("/") or "\0" in relative or any(part in ("", ".", "..") for part in relative.split("/")):
            detail = f"{path!r} must be relative to the workspace root, without empty, '.' or '..' segments."
            raise WorkspaceError("path_invalid", detail)
        try:
            real = os.path.realpath(self.path / relative)
        except (OSError, ValueError):
            raise WorkspaceError("path_invalid", f"{path!r} can't be resolved.") from None
        if real != str(self.path) and not real.startswith(os.path.join(self.path, "")):
            raise WorkspaceError("path_outside", f"{path!r} leads out of the workspace.")
        if not os.path.isdir(real):
            raise WorkspaceError("path_invalid", f"{path!r} is no folder of the workspace.")
        return relative
