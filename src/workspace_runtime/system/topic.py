"""The topic `stats`: how busy the workspace is, every few seconds, from one sampler for all who listen."""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import orjson

from workspace_runtime.events.board import LiveEvent, Publish

from .stats import Sampler

logger = logging.getLogger(__name__)

PERIOD_S = 3.0
# A share of the processor's time means little over a shorter time.
SHORTEST_S = 0.1


class StatsTopic:
    """See the module. `root` says which disk is meant."""

    name = "stats"
    by_default = True

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sampler: Sampler | None = None
        self._last: LiveEvent | None = None
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self, publish: Publish) -> None:
        """Begin to sample."""
        self._last = None
        self._sampler = await asyncio.to_thread(Sampler, self._root)
        self._task = asyncio.get_running_loop().create_task(self._run(publish))

    async def stop(self) -> None:
        """Sample no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def greeting(self, *, missed: bool) -> Sequence[LiveEvent]:
        """The newest figures, at once."""
        async with self._lock:
            if self._last is None:
                await asyncio.sleep(SHORTEST_S)
                await self._sample()
        return [self._last] if self._last is not None else []

    async def _run(self, publish: Publish) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            async with self._lock:
                await self._sample()
            if self._last is not None:
                publish([self._last])

    async def _sample(self) -> None:
        if self._sampler is not None:
            stats = await asyncio.to_thread(self._sampler.sample)
            self._last = LiveEvent(orjson.dumps({"type": "system_stats", "stats": dataclasses.asdict(stats)}))
