"""Waiting for work in a thread: whoever waited may be cancelled, but what the thread uses must not be taken away from it."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def done(work: "asyncio.Future[T]", give_up: Callable[[], None] = lambda: None) -> T:
    """The result of work in a thread. Cancelled, it calls `give_up`, and returns no sooner than the thread is free again."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        give_up()
        while not work.done():
            try:
                await asyncio.wait((work,))
            except asyncio.CancelledError:
                continue
        raise
