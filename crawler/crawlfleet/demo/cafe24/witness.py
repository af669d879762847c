"""What the stand-in cafe24 counts beside what every shop counts: bursts at a mall, and dead refresh tokens."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from crawlfleet.demo.violations import Agreement, Arrivals, Counters, Flight, Witness

BURST_PER_MALL = 10
"""More calls than this per second to one mall may be judged abnormal, whatever its bucket says."""


@dataclass
class Cafe24Counters(Counters):
    """Exact counts since the shop started."""

    burst_per_mall: int = 0
    refresh_after_refusal: int = 0
    stale_refresh: int = 0


class Cafe24Witness(Witness[Cafe24Counters]):
    """Keeps the counters. Thread-safe."""

    def __init__(self, agreement: Agreement, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(agreement, Cafe24Counters(), clock)
        self._calls: defaultdict[str, Arrivals] = defaultdict(Arrivals)

    def arrived(self, flight: Flight, *, is_api: bool) -> None:
        """A request came in; token requests count as calls, too."""
        super().arrived(flight, is_api=is_api)
        with self._lock:
            if flight.account and self._calls[flight.account].exceed(BURST_PER_MALL, self._clock()):
                self._counters.burst_per_mall += 1

    def refreshed_after_refusal(self) -> None:
        """A refresh came with a token that had been refused before."""
        with self._lock:
            self._counters.refresh_after_refusal += 1

    def refreshed_stale(self) -> None:
        """A refresh came with a token whose successor had been handed out."""
        with self._lock:
            self._counters.stale_refresh += 1
