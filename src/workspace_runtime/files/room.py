"""The files of one workspace: the parts of this room put together, and the threads that its blocking work runs on.

Short work and long work (packing, unpacking, copying, deleting a tree) have threads of their own, so that no number of long ones
keeps a short one waiting. Work that looks at many names (lists, searches by name) goes one at a time where it can: side by side,
two such threads would take the interpreter from each other with every name, and need twice the time together.
"""

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from workspace_runtime.paths import WorkspaceRoot
from workspace_runtime.threads import done

from .index import FileIndex
from .temporary import Temporaries
from .unpack.work import Limits
from .writing import Writer

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

SHORT_THREADS = 8
# How long a look at many names waits for the one before.
PATIENCE_S = 0.25
LONG_THREADS = 4
# How many large files are looked at for how they are given as JSON, at once: more threads would keep the event loop from its turn.
MEASURING = 2

EXTRACT_LIMITS = Limits(max_bytes=10 * 1024**3, max_entries=200_000, max_ratio=250)
MAX_UPLOAD_FILES = 10_000


class Files:
    """See the module. `state` is the folder of the server's own state, `scratch` one in it for what lives a short time."""

    def __init__(
        self, root: WorkspaceRoot, state: Path, scratch: Path, *, max_upload_bytes: int, max_body_bytes: int
    ) -> None:
        self.root = root
        self.scratch = scratch
        self.max_upload_bytes = max_upload_bytes
        self.max_body_bytes = max_body_bytes
        self._temporaries = Temporaries(state / "temporaries")
        removed = self._temporaries.clean(root)
        if removed:
            logger.info("%d half-written files of a server that was killed were removed", removed)
        self.writer = Writer(root, self._temporaries)
        self.index = FileIndex(root)
        self._short = ThreadPoolExecutor(SHORT_THREADS, "files")
        self._turn = asyncio.Lock()
        self._measuring = asyncio.Semaphore(MEASURING)
        self._long = ThreadPoolExecutor(LONG_THREADS, "files-long")
        self._closing = threading.Event()

    async def short(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking call that ends soon."""
        return await self._run(self._short, call, *args, **kwargs)

    async def counting(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call that looks at many names."""
        held = False
        with contextlib.suppress(TimeoutError):  # the one before may hang on a disk that does not answer
            async with asyncio.timeout(PATIENCE_S):
                held = await self._turn.acquire()
        try:
            return await self._run(self._short, call, *args, **kwargs)
        finally:
            if held:
                self._turn.release()

    async def measuring(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call that goes through all of a large file."""
        async with self._measuring:
            return await self._run(self._short, call, *args, **kwargs)

    async def long(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking call that may take long."""
        return await self._run(self._long, call, *args, **kwargs)

    async def _run(self, executor: Executor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await done(
            asyncio.get_running_loop().run_in_executor(executor, functools.partial(call, *args, **kwargs))
        )

    def stopped(self) -> bool:
        """Whether the server stops: long work gives up."""
        return self._closing.is_set()

    def stop(self) -> None:
        """Let long work give up."""
        self._closing.set()

    def close(self) -> None:
        """Wait for the threads, and close what is open."""
        self.stop()
        self._short.shutdown()
        self._long.shutdown()
        self._temporaries.close()
