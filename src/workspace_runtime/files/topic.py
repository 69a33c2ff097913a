"""The topic `files`: changes of the workspace's files as live events."""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from workspace_runtime.events.board import LiveEvent, Publish
from workspace_runtime.paths import WorkspaceRoot, path_bytes, shown

from .times import timestamp
from .watch import Watcher
from .watching.telling import Change

# Of the folders that one frame names: more become the root.
MAX_RESYNC_BYTES = 64 * 1024
MAX_RESYNC_PATHS = 1000


class FilesTopic:
    """See the module. Runs a watcher while somebody listens."""

    name = "files"
    by_default = True

    def __init__(self, root: WorkspaceRoot) -> None:
        self._root = root
        self._watcher: Watcher | None = None
        # called, on the loop, with folders in which a repository may have come or gone: no event tells of it
        self.repositories: Callable[[Sequence[bytes]], None] = lambda _: None

    async def start(self, publish: Publish) -> None:
        """Returns when the watch stands."""

        def changed(changes: Sequence[Change]) -> None:
            publish([_changed(change) for change in changes])

        def resync(paths: Sequence[bytes]) -> None:
            publish([_resync(paths)])

        watcher = Watcher(self._root, changed, resync, repositories=lambda paths: self.repositories(paths))
        try:
            await watcher.start()
        except BaseException:
            await watcher.stop()
            raise
        self._watcher = watcher

    async def stop(self) -> None:
        """Watch no more."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            await watcher.stop()

    async def greeting(self, *, missed: bool) -> Sequence[LiveEvent]:
        """Nothing, or that all is to be listed again."""
        return [_resync([b""])] if missed else []


def _changed(change: Change) -> LiveEvent:
    body: dict[str, Any] = {
        "type": "file_changed",
        "path": shown(change.path),
        "event_type": change.event_type,
        "is_dir": change.is_dir,
        "size": change.size,
        "modified_at": timestamp(change.modified_ns),
        "etag": change.etag,
        "moved_from": shown(change.moved_from) if change.moved_from is not None else None,
    }
    if encoded := path_bytes(change.path):
        body["path_bytes"] = encoded
    if change.moved_from is not None and (encoded := path_bytes(change.moved_from)):
        body["moved_from_bytes"] = encoded
    gone = change.is_dir and change.event_type == "deleted"
    return LiveEvent(orjson.dumps(body, option=orjson.OPT_UTC_Z), change.path, deep=gone)


def _resync(paths: Sequence[bytes]) -> LiveEvent:
    if sum(map(len, paths)) > MAX_RESYNC_BYTES or len(paths) > MAX_RESYNC_PATHS:
        paths = [b""]  # the folder above all
    body: dict[str, Any] = {"type": "resync", "paths": [shown(path) for path in paths]}
    encoded = [path_bytes(path) for path in paths]
    if any(encoded):
        body["paths_bytes"] = [text or path.decode() for text, path in zip(encoded, paths, strict=True)]
    # of several folders the one above all: who narrowed what it gets is told once too often rather than too seldom
    return LiveEvent(orjson.dumps(body), paths[0] if len(paths) == 1 else b"", deep=True)
