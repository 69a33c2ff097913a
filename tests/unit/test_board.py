"""The board of live events: nothing is missed without a word, nobody slows another, topics run only for somebody."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workspace_runtime.events import board as module
from workspace_runtime.events.board import Board, LiveEvent, LiveSubscription, Missed, Publish
from workspace_runtime.streams.live import Narrowing


class Counting:
    """A topic whose events are numbers."""

    def __init__(self, name: str = "numbers", *, by_default: bool = True) -> None:
        self.name = name
        self.by_default = by_default
        self.publish: Publish | None = None
        self.starts = self.stops = 0
        self.fails = False

    async def start(self, publish: Publish) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise OSError("no watch")
        self.starts += 1
        self.publish = publish

    async def stop(self) -> None:
        await asyncio.sleep(0)
        self.stops += 1
        self.publish = None

    async def greeting(self, *, missed: bool) -> Sequence[LiveEvent]:
        return [LiveEvent(b"missed" if missed else b"hello")]

    def say(self, *numbers: int) -> None:
        assert self.publish is not None
        self.publish([LiveEvent(b"%s %d" % (self.name.encode(), number)) for number in numbers])


def taken(subscription: LiveSubscription, most: int = 10**6) -> list[bytes]:
    found = []
    while events := subscription.take(most):
        found += [event.data for event in events]
    return found


async def nothing_left() -> None:
    """Let timers of zero seconds and what they start run."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def no_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0)


def test_each_event_once_and_only_of_the_topics_chosen() -> None:
    async def main() -> None:
        first, second = Counting("first"), Counting("second", by_default=False)
        board = Board([first, second])
        assert board.defaults == {"first"} and board.names == ["first", "second"]
        woken: list[str] = []
        one = await board.subscribe(frozenset({"first"}), lambda: woken.append("one"))
        both = await board.subscribe(frozenset({"first", "second"}), lambda: woken.append("both"))
        first.say(1)
        second.say(2)
        first.say(3)
        assert taken(one) == [b"first 1", b"first 3"] and taken(both) == [b"first 1", b"second 2", b"first 3"]
        assert woken.count("one") == 2 and woken.count("both") == 3
        late = await board.subscribe(frozenset({"first"}), lambda: None)
        assert taken(late) == []
        await board.close()
        assert one.over

    asyncio.run(main())


def test_a_topic_runs_only_while_somebody_listens() -> None:
    async def main() -> None:
        topic = Counting()
        board = Board([topic])
        subscriptions = await asyncio.gather(*(board.subscribe(frozenset({"numbers"}), lambda: None) for _ in range(5)))
        assert topic.starts == 1
        for subscription in subscriptions:
            subscription.close()
            subscription.close()
        await nothing_left()
        assert topic.stops == 1
        again = await board.subscribe(frozenset({"numbers"}), lambda: None)
        assert topic.starts == 2
        topic.say(1)
        assert taken(again) == [b"numbers 1"]
        again.close()
        quickly = await board.subscribe(frozenset({"numbers"}), lambda: None)  # before the stop
        await nothing_left()
        assert (topic.starts, topic.stops) == (2, 1)
        quickly.close()
        await board.close()
        assert topic.stops == 2

    asyncio.run(main())


def test_a_topic_that_fails_to_start_is_tried_again() -> None:
    async def main() -> None:
        topic = Counting()
        board = Board([topic])
        topic.fails = True
        with pytest.raises(OSError):
            await board.subscribe(frozenset({"numbers"}), lambda: None)
        topic.fails = False
        await board.subscribe(frozenset({"numbers"}), lambda: None)
        assert topic.starts == 1
        await board.close()

    asyncio.run(main())


def test_a_start_that_is_given_up_leaves_the_topic_to_the_next() -> None:
    async def main() -> None:
        topic = Counting()
        board = Board([topic])
        given_up = asyncio.ensure_future(board.subscribe(frozenset({"numbers"}), lambda: None))
        waiting = asyncio.ensure_future(board.subscribe(frozenset({"numbers"}), lambda: None))
        await asyncio.sleep(0)
        given_up.cancel()
        subscription = await waiting
        topic.say(1)
        assert taken(subscription) == [b"numbers 1"]
        await board.close()

    asyncio.run(main())


def test_whoever_is_too_slow_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BOARD_BYTES", 100)

    async def main() -> None:
        topic = Counting()
        board = Board([topic])
        slow = await board.subscribe(frozenset({"numbers"}), lambda: None)
        quick = await board.subscribe(frozenset({"numbers"}), lambda: None)
        seen = []
        for number in range(100):
            topic.say(number)
            seen += taken(quick)
        assert seen == [b"numbers %d" % number for number in range(100)]
        with pytest.raises(Missed):
            slow.take(1000)
        assert [event.data for event in await slow.start_anew(missed=True)] == [b"missed"]
        topic.say(100)
        assert taken(slow) == [b"numbers 100"]
        await board.close()

    asyncio.run(main())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("say"), st.integers(0, 1), st.integers(1, 30)),
            st.tuples(st.just("take"), st.integers(0, 3), st.integers(1, 200)),
        ),
        max_size=60,
    )
)
def test_every_subscriber_sees_all_or_is_told(steps: list[tuple[str, int, int]]) -> None:
    async def main() -> None:
        held = module.BOARD_BYTES
        module.BOARD_BYTES = 300
        topics = [Counting("a"), Counting("b")]
        board = Board(topics)
        wanted = [frozenset({"a"}), frozenset({"b"}), frozenset({"a", "b"}), frozenset({"a", "b"})]
        subscriptions = [await board.subscribe(names, lambda: None) for names in wanted]
        said: list[tuple[str, bytes]] = []
        position = [0] * 4  # of what was said, up to where each has seen all
        count = 0
        try:
            for step, which, amount in steps:
                if step == "say":
                    numbers = list(range(count, count + amount))
                    count += amount
                    topics[which].say(*numbers)
                    said += [
                        (topics[which].name, b"%s %d" % (topics[which].name.encode(), number)) for number in numbers
                    ]
                    continue
                try:
                    found = [event.data for event in subscriptions[which].take(amount)]
                except Missed:
                    await subscriptions[which].start_anew(missed=True)
                    position[which] = len(said)
                    continue
                due = [data for name, data in said[position[which] :] if name in wanted[which]]
                assert found == due[: len(found)] and (found or not due)
                for _ in found:
                    while said[position[which]][0] not in wanted[which]:
                        position[which] += 1
                    position[which] += 1
        finally:
            module.BOARD_BYTES = held
            await board.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("paths", "event", "admitted"),
    [
        (None, LiveEvent(b"", b"a"), True), ([b""], LiveEvent(b"", b"a"), True), ([], LiveEvent(b"", b"a"), False),
        ([], LiveEvent(b""), True), ([b"a"], LiveEvent(b"", b"a"), True), ([b"a"], LiveEvent(b"", b"a/b/c"), True),
        ([b"a"], LiveEvent(b"", b"ab"), False), ([b"a/b"], LiveEvent(b"", b"a"), False), ([b"a/b"], LiveEvent(b"", b"a", deep=True), True),
        ([b"a/b"], LiveEvent(b"", b"a/c", deep=True), False), ([b"a/b"], LiveEvent(b"", b"", deep=True), True),
        ([], LiveEvent(b"", b"", deep=True), False), ([b"a/b"], LiveEvent(b"", b"a/b/c/d", deep=True), True),
    ],
)  # fmt: skip
def test_narrowing(paths: list[bytes] | None, event: LiveEvent, admitted: bool) -> None:
    assert Narrowing(paths).admits(event) is admitted
