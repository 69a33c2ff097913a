"""The live side of the log: what was published last, shared by all subscribers.

A *stream* is one session's events. A *channel* of it holds the newest published events for one choice of types in one framing
(WebSocket frames, SSE lines): each event is framed once, and all subscribers of the channel share the bytes. A *subscription*
is a cursor: a position in its channel, and the `seq` it has given out last. It never holds events of its own.

How a subscription gets each event exactly once: it registers at the published head (`seq` H, position P), reads the log up to
H, then follows the channel from P. Whoever is too slow for what the channel holds goes back to the log, and follows again.
Publishing calls each subscriber's `wake` and never waits for one.
"""

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from .blocks import OpenBlock, deltas
from .log import EventLog
from .model import ALL_TYPES, COMING_TYPES, DEFAULT_TYPES, STORED_TYPES, Event

Framing = Literal["ws", "sse"]

# What a channel holds at most, in bytes; a slower subscriber reads the log again.
CHANNEL_BYTES = 2 * 1024 * 1024
# The largest piece given to a transport at once, unless one event is larger.
CHUNK_BYTES = 256 * 1024


def frame_ws(seq: int, data: bytes) -> bytes:
    """A whole unmasked WebSocket text frame (RFC 6455, 5.2): the same for every client."""
    length = len(data)
    if length < 126:
        return b"\x81" + bytes((length,)) + data
    if length < 65536:
        return b"\x81\x7e" + struct.pack("!H", length) + data
    return b"\x81\x7f" + struct.pack("!Q", length) + data


def frame_sse(seq: int, data: bytes) -> bytes:
    """An event of `text/event-stream`; a live one (seq 0) has no `id`, so that a reconnect goes on from the last stored."""
    return b"id: %d\ndata: %b\n\n" % (seq, data) if seq else b"data: %b\n\n" % data


_FRAMERS: dict[Framing, Callable[[int, bytes], bytes]] = {"ws": frame_ws, "sse": frame_sse}


# After events were shown to many subscribers, the next ones wait a moment for more: writing to each costs most of all.
PAUSE_PER_SUBSCRIBER_S = 30e-6
MAX_PAUSE_S = 0.005


@dataclass(frozen=True, slots=True)
class Chunk:
    """Framed events, joined, and the last `seq` among all published so far."""

    data: bytes
    seq: int


class Channel:
    """The newest events of a stream for one choice of types in one framing. Positions count chunks and never restart."""

    __slots__ = ("chunks", "first", "framer", "size", "subscribers", "types")

    def __init__(self, types: frozenset[str], framing: Framing) -> None:
        self.types = types
        self.framer = _FRAMERS[framing]
        self.chunks: deque[Chunk] = deque()
        self.first = 0  # the position of chunks[0]
        self.size = 0
        self.subscribers: set[Subscription] = set()

    @property
    def end(self) -> int:
        """The position that the next chunk will have."""
        return self.first + len(self.chunks)

    def add(self, events: Sequence[Event], before: int) -> None:
        """Frame and hold the events of this channel's types; `before` is the stream's last `seq` before them."""
        frames: list[bytes] = []
        size = 0
        seq = before
        for event in events:
            if event.type in self.types:
                frame = self.framer(event.seq, event.data)
                if frames and size + len(frame) > CHUNK_BYTES:
                    self._hold(b"".join(frames), seq)
                    frames, size = [], 0
                frames.append(frame)
                size += len(frame)
            seq = event.seq or seq
        if frames:
            self._hold(b"".join(frames) if len(frames) > 1 else frames[0], seq)

    def _hold(self, data: bytes, seq: int) -> None:
        self.chunks.append(Chunk(data, seq))
        self.size += len(data)
        while self.size > CHANNEL_BYTES and len(self.chunks) > 1:
            self.size -= len(self.chunks.popleft().data)
            self.first += 1


class Stream:
    """One session's live side. `head` is the last published `seq`, `first` the first that is kept; `ended` once the session is
    terminated, `removed` once it is purged, `closed` once the server stops: then subscribers are let go when they have all."""

    def __init__(self, log: EventLog, session_id: str, key: int, *, first: int = 0, head: int = 0) -> None:
        self.log = log
        self.session_id = session_id
        self.key = key
        self.first = first
        self.head = head
        self.ended = False
        self.removed = False
        self.closed = False
        self.blocks: dict[str, OpenBlock] = {}
        self._channels: dict[tuple[frozenset[str], Framing], Channel] = {}
        self._waiting: list[Event] = []
        self._shown: list[Callable[[], None]] = []
        self._timer: asyncio.Handle | None = None
        self._next_show = 0.0

    def publish(
        self, events: Sequence[Event], shown: Callable[[], None] | None = None, *, at_once: bool = False
    ) -> None:
        """Show durable (or live) events to all subscribers. Called on the event loop, in order, once each.

        `shown` is called in the same instant. What is published within a short while is shown together, so that a
        subscriber is written to once and not for each event; `at_once` shows it before this returns.
        """
        self._waiting += events
        if shown is not None:
            self._shown.append(shown)
        if at_once:
            self._show()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            pause = self._next_show - loop.time()
            self._timer = loop.call_later(pause, self._show) if pause > 0 else loop.call_soon(self._show)

    def _show(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        events, shown = self._waiting, self._shown
        self._waiting, self._shown = [], []
        before = self.head
        for event in events:
            if event.seq:
                self.head = event.seq
                if not self.first:
                    self.first = event.seq
        for call in shown:
            call()
        count = 0
        for channel in list(self._channels.values()):
            channel.add(events, before)
            count += len(channel.subscribers)
            for subscriber in list(channel.subscribers):
                subscriber.wake()
        pause = min(count * PAUSE_PER_SUBSCRIBER_S, MAX_PAUSE_S)
        self._next_show = asyncio.get_running_loop().time() + pause if pause else 0.0

    @property
    def over(self) -> bool:
        """Whether nothing more comes: a subscriber that has all is let go."""
        return self.ended or self.removed or self.closed

    def wake_all(self) -> None:
        """Have every subscriber look again: after `over` changed."""
        for channel in list(self._channels.values()):
            for subscriber in list(channel.subscribers):
                subscriber.wake()

    @property
    def subscribers(self) -> int:
        """How many subscriptions are attached."""
        return sum(len(channel.subscribers) for channel in self._channels.values())

    def attach(self, subscription: "Subscription") -> Channel:
        """Register a subscription with its channel, which exists as long as it has subscribers."""
        key = (subscription.types, subscription.framing)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(*key)
        channel.subscribers.add(subscription)
        return channel

    def detach(self, subscription: "Subscription", channel: Channel) -> None:
        """Undo `attach`."""
        channel.subscribers.discard(subscription)
        if not channel.subscribers:
            self._channels.pop((subscription.types, subscription.framing), None)

    def open_blocks(self, types: frozenset[str]) -> Iterator[bytes]:
        """Deltas from offset 0 for each block being written: what a subscriber needs that joins in the middle.

        They tell what was shown at the time of this call, and are made one at a time as they are taken.
        """
        shown = [(name, block, block.shown) for name, block in self.blocks.items() if block.type in types]
        return (data for name, block, upto in shown for data in deltas(self.session_id, name, block, upto))


class Subscription:
    """A cursor over one stream. Used by one task; `wake` is called when there may be more, and must not block or raise.

    Use: `async for chunk in replay()`, then `follow()` for as long as it gives chunks; when it raises `Lagged`, replay again.
    """

    __slots__ = ("_begun", "_channel", "_position", "framing", "seq", "stream", "types", "wake")

    def __init__(
        self, stream: Stream, *, after: int, types: frozenset[str], framing: Framing, wake: Callable[[], None]
    ) -> None:
        self.stream = stream
        self.seq = after
        self.types = types
        self.framing: Framing = framing
        self.wake = wake
        self._channel: Channel | None = None
        self._position = 0
        self._begun = False

    async def replay(self) -> AsyncIterator[bytes]:
        """All stored events after the cursor up to the head at the time of this call, then the blocks being written.

        Gives framed chunks. Registers with the channel first, so that `follow` goes on without a gap. Raises
        `TooFarBehind` when events that the cursor has not seen were trimmed meanwhile.
        """
        self.close()
        stream = self.stream
        self._channel = stream.attach(self)
        self._position = self._channel.end
        head = stream.head
        framer = self._channel.framer
        blocks = stream.open_blocks(self.types)
        stored = self.types & STORED_TYPES
        if not self._begun:
            self._begun = True
            self.seq = max(self.seq, stream.first - 1)
        while self.seq < head and stored:
            types = None if stored == STORED_TYPES else stored
            rows = await stream.log.read(stream.key, after=self.seq, upto=head, types=types, max_bytes=CHUNK_BYTES)
            if stream.first > self.seq + 1:
                raise TooFarBehind(stream.first)
            if not rows:
                break
            self.seq = rows[-1].seq
            yield b"".join([framer(row.seq, row.data) for row in rows])
        self.seq = max(self.seq, head)
        for data in blocks:
            yield framer(0, data)

    def follow(self) -> bytes | None:
        """The next chunk, or None when the subscriber has all. Raises `Lagged` when the channel no longer holds it."""
        channel = self._channel
        if channel is None:
            raise Lagged
        index = self._position - channel.first
        if index < 0:
            raise Lagged
        if index >= len(channel.chunks):
            return None
        chunk = channel.chunks[index]
        self._position += 1
        self.seq = chunk.seq
        return chunk.data

    def close(self) -> None:
        """Unregister. Safe to call twice."""
        if self._channel is not None:
            self.stream.detach(self, self._channel)
            self._channel = None


class Lagged(Exception):
    """The subscriber was slower than what the channel holds: replay from the log, then follow again."""


class TooFarBehind(Exception):
    """Events that the subscriber had not seen were trimmed. The argument is the first `seq` that is kept."""


def event_types(text: str | None) -> frozenset[str]:
    """The types that `events=` chooses: None the six of the default, `all`, or a list of names with commas.

    Types that nothing tells yet are chosen in vain, and no fault. Raises `KeyError` with the first unknown name.
    """
    if text is None:
        return DEFAULT_TYPES
    names: Iterable[str] = [name.strip() for name in text.split(",") if name.strip()]
    chosen: set[str] = set()
    for name in names:
        if name == "all":
            chosen |= ALL_TYPES
        elif name == "default":
            chosen |= DEFAULT_TYPES
        elif name in ALL_TYPES:
            chosen.add(name)
        elif name not in COMING_TYPES:
            raise KeyError(name)
    return frozenset(chosen)
