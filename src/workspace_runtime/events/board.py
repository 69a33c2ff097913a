"""Live events of the whole workspace, which are never stored: what the general WebSocket and its SSE twin tell.

A *topic* is a source of such events (files, system stats). It runs only while somebody listens: the first subscriber starts it,
and waits until it stands; a short while after the last has left it is stopped. The *board* holds the newest events of all topics
once, shared by all subscribers, and a subscriber is a position on it. Whoever is slower than what the board holds has missed
events: it goes on from the end, and each of its topics says how to start anew (`greeting`). So no subscriber slows another, and
memory is bounded whatever a client does.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .model import in_one_line

logger = logging.getLogger(__name__)

# What the board holds at most, in bytes of JSON.
BOARD_BYTES = 8 * 1024 * 1024
# How long a topic runs on without a subscriber: a page that is loaded again finds it still there.
LINGER_S = 5.0


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """One event. `data` is its JSON object. `path`, where it concerns one, lets a subscriber narrow what it gets; `deep`: it
    concerns all that lies below the path as well."""

    data: bytes
    path: bytes | None = None
    deep: bool = False

    def __post_init__(self) -> None:
        if (data := in_one_line(self.data)) is not self.data:  # a file's name may hold the end of a line
            object.__setattr__(self, "data", data)


Publish = Callable[[Sequence[LiveEvent]], None]


class Topic(Protocol):
    """A source of live events. All of it is called on the event loop, `start` and `stop` in turns."""

    name: str
    by_default: bool  # whether a subscriber gets it without asking

    async def start(self, publish: Publish) -> None:
        """Begin to publish. When this returns, every later change is told. Must undo itself when it is cancelled or fails."""

    async def stop(self) -> None:
        """End, and let go of everything."""

    async def greeting(self, *, missed: bool) -> Sequence[LiveEvent]:
        """What a subscriber is sent before all else; `missed`: it was there already, and has missed events."""


@dataclass(slots=True)
class _Running:
    """A topic with those who listen to it."""

    topic: Topic
    subscribers: set["LiveSubscription"] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    runs: bool = False
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None


class Board:
    """See the module."""

    def __init__(self, topics: Iterable[Topic]) -> None:
        self._topics = {topic.name: _Running(topic) for topic in topics}
        self._events: deque[tuple[str, LiveEvent]] = deque()
        self._first = 0  # the position of the oldest event that is held
        self._size = 0
        self.closed = False

    @property
    def names(self) -> list[str]:
        """The names of all topics."""
        return list(self._topics)

    @property
    def defaults(self) -> frozenset[str]:
        """The names of those that a subscriber gets without asking."""
        return frozenset(name for name, running in self._topics.items() if running.topic.by_default)

    @property
    def end(self) -> int:
        """The position that the next event will have."""
        return self._first + len(self._events)

    async def subscribe(self, topics: frozenset[str], wake: Callable[[], None]) -> "LiveSubscription":
        """A subscription to these topics, once they all stand: every later event is seen. `wake` must not block or raise."""
        subscription = LiveSubscription(self, topics, wake)
        try:
            for name in sorted(topics):
                await self._join(self._topics[name], subscription)
        except BaseException:
            subscription.close()
            raise
        subscription.position = self.end
        return subscription

    async def _join(self, running: _Running, subscription: "LiveSubscription") -> None:
        running.subscribers.add(subscription)
        if running.timer is not None:
            running.timer.cancel()
            running.timer = None
        async with running.lock:
            if not running.runs:
                await running.topic.start(lambda events: self._publish(running, events))
                running.runs = True

    def leave(self, subscription: "LiveSubscription") -> None:
        """Undo `subscribe`; a topic that nobody listens to any more is stopped after a while."""
        for name in subscription.topics:
            running = self._topics[name]
            running.subscribers.discard(subscription)
            if not running.subscribers and running.timer is None and not self.closed:
                running.timer = asyncio.get_running_loop().call_later(LINGER_S, self._end, running)

    def _end(self, running: _Running) -> None:
        running.timer = None
        running.task = asyncio.get_running_loop().create_task(self._stop(running))

    async def _stop(self, running: _Running, *, always: bool = False) -> None:
        async with running.lock:
            if running.runs and (always or not running.subscribers):
                running.runs = False
                try:
                    await running.topic.stop()
                except Exception:  # the edge of this task: the topic is over in any case
                    logger.exception("topic %s did not stop well", running.topic.name)

    def _publish(self, running: _Running, events: Sequence[LiveEvent]) -> None:
        name = running.topic.name
        for event in events:
            self._events.append((name, event))
            self._size += len(event.data)
        while self._size > BOARD_BYTES and len(self._events) > 1:
            self._size -= len(self._events.popleft()[1].data)
            self._first += 1
        for subscription in list(running.subscribers):
            subscription.wake()

    def read(self, position: int, topics: frozenset[str], most: int) -> tuple[list[LiveEvent], int]:
        """Events of these topics from a position on, of at most so many bytes (or one), and the position after them.

        Raises `Missed` where events from there on are no longer held.
        """
        if position < self._first:
            raise Missed
        found: list[LiveEvent] = []
        size = 0
        index = position - self._first
        # a deque is slow in its middle: turned, so that what is read comes first
        self._events.rotate(-index)
        try:
            for name, event in self._events:
                if index == len(self._events):
                    break
                if name in topics:
                    size += len(event.data)
                    if found and size > most:
                        break
                    found.append(event)
                index += 1
        finally:
            self._events.rotate(position - self._first)
        return found, self._first + index

    async def greetings(self, topics: frozenset[str], *, missed: bool) -> list[LiveEvent]:
        """What these topics say to a subscriber that begins, or that has `missed` events."""
        found: list[LiveEvent] = []
        for name in sorted(topics):
            found += await self._topics[name].topic.greeting(missed=missed)
        return found

    def wake_all(self) -> None:
        """Have every subscriber look again."""
        for running in self._topics.values():
            for subscription in list(running.subscribers):
                subscription.wake()

    async def close(self) -> None:
        """The server stops: let all subscribers go, stop all topics."""
        self.closed = True
        self.wake_all()
        for running in self._topics.values():
            if running.timer is not None:
                running.timer.cancel()
            await self._stop(running, always=True)
            if running.task is not None:
                with contextlib.suppress(asyncio.CancelledError):
                    await running.task


class LiveSubscription:
    """A position on the board. Used by one task; made by `Board.subscribe`."""

    __slots__ = ("_board", "_open", "position", "topics", "wake")

    def __init__(self, board: Board, topics: frozenset[str], wake: Callable[[], None]) -> None:
        self._board = board
        self.topics = topics
        self.wake = wake
        self.position = 0
        self._open = True

    def take(self, most: int) -> list[LiveEvent]:
        """The next events, of at most so many bytes; empty when there are none. Raises `Missed`."""
        found, self.position = self._board.read(self.position, self.topics, most)
        return found

    async def start_anew(self, *, missed: bool) -> list[LiveEvent]:
        """Go on from the end; what the topics have to say to that."""
        self.position = self._board.end
        return await self._board.greetings(self.topics, missed=missed)

    @property
    def over(self) -> bool:
        """Whether the server stops."""
        return self._board.closed

    def close(self) -> None:
        """Leave. Safe to call twice."""
        if self._open:
            self._open = False
            self._board.leave(self)


class Missed(Exception):
    """The subscriber was slower than what the board holds."""
