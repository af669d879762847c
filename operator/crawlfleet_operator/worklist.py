"""What has to be looked at: each key by one task at a time, many keys side by side, and again if it was marked meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
log = logging.getLogger(__name__)

SIDE_BY_SIDE = 16
BACKOFF_S = (1.0, 60.0)


class Worklist(Generic[K]):
    """Owns which keys are marked and which are at work. Everything happens in one event loop."""

    def __init__(self, work: Callable[[K], Awaitable[None]]) -> None:
        self._work = work
        self._marked: set[K] = set()
        self._tasks: dict[K, asyncio.Task[None]] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._backoff_s: dict[K, float] = {}
        self._room = asyncio.Semaphore(SIDE_BY_SIDE)

    def mark(self, key: K) -> None:
        """Look at it, now or right after the look that is under way."""
        self._marked.add(key)
        if key not in self._tasks:
            self._tasks[key] = asyncio.get_running_loop().create_task(self._look(key))

    def mark_in(self, key: K, seconds: float) -> None:
        """Look at it in so long, unless an earlier look is due."""
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is None or at < timer.when():
            self._cancel_timer(key)
            self._timers[key] = loop.call_at(at, self._ring, key)

    def forget(self, key: K) -> None:
        """It is gone. A look that is under way ends by itself."""
        self._marked.discard(key)
        self._cancel_timer(key)
        self._backoff_s.pop(key, None)

    async def stop(self) -> None:
        """Cut off every look."""
        for key in list(self._timers):
            self._cancel_timer(key)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, key: K) -> None:
        try:
            while key in self._marked:
                self._marked.discard(key)
                async with self._room:
                    await self._try(key)
        finally:
            del self._tasks[key]

    async def _try(self, key: K) -> None:
        """Whatever it raises is told here, and it is tried again."""
        try:
            await self._work(key)
        except Exception as exc:
            wait_s = self._backoff_s.get(key, BACKOFF_S[0])
            self._backoff_s[key] = min(2 * wait_s, BACKOFF_S[1])
            log.warning(
                "not reconciled",
                extra={"key": str(key), "error": str(exc), "again_in_s": wait_s},
                exc_info=True,
            )
            self.mark_in(key, wait_s)
        else:
            self._backoff_s.pop(key, None)

    def _ring(self, key: K) -> None:
        del self._timers[key]
        self.mark(key)

    def _cancel_timer(self, key: K) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()
