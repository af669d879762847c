"""Which keys are looked at when: one look at a time each, and never one that is forgotten."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import wraps

import pytest

from crawlfleet_operator import worklist
from crawlfleet_operator.worklist import SIDE_BY_SIDE, Worklist


def in_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run the test in an event loop of its own, for ten seconds at most."""

    @wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 10))

    return run


class Desk:
    """Work that begins when it is called and ends when it is let go; what was looked at, in order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.at_work: list[str] = []
        self.errors: list[Exception] = []
        self._gates: asyncio.Queue[None] = asyncio.Queue()
        self._moved = asyncio.Event()
        self.list: Worklist[str] = Worklist(self._look)

    async def _look(self, key: str) -> None:
        self.begun.append(key)
        self.at_work.append(key)
        self._moved.set()
        try:
            await self._gates.get()
            if self.errors:
                raise self.errors.pop()
        finally:
            self.at_work.remove(key)
            self._moved.set()

    def let_go(self, looks: int = 1) -> None:
        for _ in range(looks):
            self._gates.put_nowait(None)

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._moved.clear()
            await self._moved.wait()


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


@in_a_loop
async def test_a_marked_key_is_looked_at() -> None:
    desk = Desk()
    desk.list.mark("a")
    await desk.until(lambda: desk.begun == ["a"])


@in_a_loop
async def test_a_key_is_looked_at_by_one_at_a_time() -> None:
    desk = Desk()
    for _ in range(3):
        desk.list.mark("a")
        await settle()

    assert desk.at_work == ["a"]
    await desk.list.stop()


@in_a_loop
async def test_a_key_that_was_marked_meanwhile_is_looked_at_once_more() -> None:
    """However often: what came first may have been seen too late."""
    desk = Desk()
    desk.list.mark("a")
    await settle()
    for _ in range(3):
        desk.list.mark("a")
    desk.let_go(5)
    await settle()

    assert desk.begun == ["a", "a"]


@in_a_loop
async def test_keys_are_looked_at_side_by_side_up_to_a_number() -> None:
    desk = Desk()
    for number in range(SIDE_BY_SIDE + 5):
        desk.list.mark(str(number))
    await settle()
    assert len(desk.at_work) == SIDE_BY_SIDE
    desk.let_go(SIDE_BY_SIDE + 5)
    await settle()

    assert len(desk.begun) == SIDE_BY_SIDE + 5


@in_a_loop
async def test_an_error_is_told_and_it_is_tried_again_ever_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worklist, "BACKOFF_S", (0.01, 0.03))
    desk = Desk()
    desk.errors = [ValueError("four"), ValueError("three"), ValueError("two"), ValueError("one")]
    desk.let_go(5)
    desk.list.mark("a")
    with caplog.at_level(logging.WARNING):
        await desk.until(lambda: len(desk.begun) == 5 and not desk.at_work)

    told = [record.__dict__ for record in caplog.records]
    assert [one["error"] for one in told] == ["one", "two", "three", "four"]
    assert [one["again_in_s"] for one in told] == [0.01, 0.02, 0.03, 0.03]


@in_a_loop
async def test_after_a_success_patience_is_as_short_as_at_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worklist, "BACKOFF_S", (0.01, 0.03))
    desk = Desk()
    for _ in range(2):
        desk.errors = [ValueError("no")]
        desk.let_go(2)
        before = len(desk.begun)
        desk.list.mark("a")
        await desk.until(lambda: len(desk.begun) == before + 2 and not desk.at_work)  # noqa: B023  awaited at once
        await settle()

    assert [record.__dict__["again_in_s"] for record in caplog.records] == [0.01, 0.01]


@in_a_loop
async def test_an_error_at_one_key_is_nothing_to_another() -> None:
    desk = Desk()
    desk.errors = [ValueError("no")]
    desk.list.mark("a")
    await settle()
    desk.list.mark("b")
    desk.let_go(2)
    await settle()

    assert desk.begun == ["a", "b"]
    await desk.list.stop()


@pytest.mark.parametrize("delays", [(0.0, 60.0), (60.0, 0.0)], ids=["earlier-first", "later-first"])
@in_a_loop
async def test_the_earlier_time_wins(delays: tuple[float, float]) -> None:
    desk = Desk()
    for delay_s in delays:
        desk.list.mark_in("a", delay_s)
    await desk.until(lambda: desk.begun == ["a"])
    await desk.list.stop()


@in_a_loop
async def test_a_time_that_has_come_leaves_room_for_the_next() -> None:
    desk = Desk()
    desk.let_go(2)
    for looks in (1, 2):
        desk.list.mark_in("a", 0.001)
        await desk.until(lambda: len(desk.begun) == looks and not desk.at_work)  # noqa: B023  awaited at once


@in_a_loop
async def test_what_is_forgotten_is_not_looked_at_any_more() -> None:
    desk = Desk()
    desk.list.mark("a")
    await settle()
    desk.list.mark("a")
    desk.list.mark_in("a", 0.0)
    desk.list.forget("a")
    desk.let_go(3)
    await asyncio.sleep(0.01)

    assert desk.begun == ["a"]


@in_a_loop
async def test_stop_cuts_off_every_look_and_every_timer() -> None:
    desk = Desk()
    desk.list.mark("a")
    desk.list.mark_in("b", 0.001)
    await settle()
    await desk.list.stop()
    await asyncio.sleep(0.01)

    assert desk.at_work == []
    assert desk.begun == ["a"]
