"""Places for running agents: a bounded number, shared by all sessions.

Who has something to do keeps its place. One that has nothing is put to rest when another needs it; one that only starts is waited for.
"""

import asyncio
from collections.abc import Callable, Iterable

from workspace_runtime.errors import WorkspaceError

from .actor import SessionActor
from .runner import AgentRunner

# When a client that found no place may try again.
RETRY_AFTER_S = 5


class Places:
    """See `runner.Slots`. `actors` gives those of all sessions."""

    def __init__(self, limit: int, actors: Callable[[], Iterable[SessionActor]]) -> None:
        self.limit = limit
        self._actors = actors
        self._taken: set[AgentRunner] = set()
        self._looking: set[asyncio.Event] = set()

    @property
    def running(self) -> int:
        """How many agents run."""
        return len(self._taken)

    def check(self, runner: AgentRunner | None = None) -> None:
        """Refuse what would need a place where all agents that have one are at work. Raises `too_many_agents`."""
        if len(self._taken) < self.limit or runner in self._taken:
            return
        at_work = [
            (a.record.id, a.at_work) for a in self._actors() if a.runner in self._taken and a.at_work is not None
        ]
        if len(at_work) >= len(self._taken):
            raise WorkspaceError(
                "too_many_agents",
                f"{self.limit} agents run already, and each has something to do.",
                limit=self.limit,
                at_work=[{"session_id": session_id, "at_work": words} for session_id, words in at_work],
                retry_after_s=RETRY_AFTER_S,
            )

    async def claim(self, runner: AgentRunner) -> None:
        """Take a place. Waits until one is free, or has nothing to do."""
        look = asyncio.Event()
        self._looking.add(look)
        try:
            while len(self._taken) >= self.limit and runner not in self._taken:
                look.clear()
                idle = min((a for a in self._actors() if a.restable), key=lambda a: a.idle_since, default=None)
                if idle is None:
                    await look.wait()
                else:
                    await idle.rest()
            self._taken.add(runner)
        finally:
            self._looking.discard(look)

    def release(self, runner: AgentRunner) -> None:
        """Give a place back. Safe without one."""
        self._taken.discard(runner)
        self.changed()

    def changed(self) -> None:
        """Have those look again who wait for a place."""
        for look in self._looking:
            look.set()
