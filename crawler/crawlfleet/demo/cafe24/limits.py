"""The two rate systems of the API: a bucket of calls per mall and API, and the usage of a mall in percent.

The shop charges each API request here and sends the headers that come of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock

from crawlfleet.demo.cafe24.config import Cafe24Config

USAGE_DRAIN_PERCENT_PER_S = 0.63
"""From the documented sample: a usage of 120.04 % is told to wait 32 s."""


class Leak:
    """A level that drains at a fixed rate: a bucket in requests, or a usage in percent."""

    def __init__(self, drain_per_s: float) -> None:
        self._drain_per_s = drain_per_s
        self._level = 0.0
        self._at_s = 0.0

    def level(self, now_s: float) -> float:
        """The level at that time, which must not lie before an earlier call's."""
        self._level = max(0.0, self._level - (now_s - self._at_s) * self._drain_per_s)
        self._at_s = now_s
        return self._level

    def add(self, amount: float, now_s: float) -> float:
        """The level after `amount` was added."""
        self._level = self.level(now_s) + amount
        return self._level


@dataclass(frozen=True)
class Charge:
    """What one API request cost: the headers to send, whether to serve it, how long to stay away."""

    headers: Mapping[str, str]
    refused: bool
    wait_s: int = 0


class RateLimits:
    """A bucket per mall and API, and the usage per mall over all APIs. Thread-safe."""

    def __init__(self, config: Cafe24Config, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._lock = Lock()
        self._buckets: dict[tuple[str, str], Leak] = {}
        self._usages: dict[str, tuple[Leak, Leak]] = {}

    def charge(self, mall: str, api: str, processing_s: float) -> Charge:
        """Count one request. A refused call fills no bucket, but a blocked one lengthens its block."""
        with self._lock:
            now_s = self._clock()
            usage, blocked = self._use(mall, processing_s, now_s)
            bucket = self._buckets.setdefault((mall, api), Leak(self._config.bucket_drain_per_s))
            size = self._config.bucket_size
            full = bucket.level(now_s) + 1 > size
            level = bucket.level(now_s) if full or blocked else bucket.add(1, now_s)
            headers = {"X-Api-Call-Limit": f"{math.ceil(level)}/{size}"}
            for name, percent in usage.items():
                headers |= _usage_headers(name, percent)
            wait_s = max(_seconds_to_resume(percent) for percent in usage.values())
            return Charge(headers, refused=full or blocked, wait_s=wait_s)

    def _use(self, mall: str, processing_s: float, now_s: float) -> tuple[dict[str, float], bool]:
        if mall not in self._usages:
            self._usages[mall] = (Leak(USAGE_DRAIN_PERCENT_PER_S), Leak(USAGE_DRAIN_PERCENT_PER_S))
        calls, seconds = self._usages[mall]
        blocked = max(calls.level(now_s), seconds.level(now_s)) >= 100
        call_percent = calls.add(100 / self._config.usage_calls, now_s)
        cost = 0.0 if blocked else 100 * processing_s / self._config.usage_processing_s
        return {"Call": call_percent, "Time": seconds.add(cost, now_s)}, blocked


def _seconds_to_resume(percent: float) -> int:
    return math.floor((percent - 100) / USAGE_DRAIN_PERCENT_PER_S) + 1 if percent >= 100 else 0


def _usage_headers(name: str, percent: float) -> dict[str, str]:
    headers = {f"X-Cafe24-{name}-Usage": f"{percent:.2f}"}
    if percent >= 100:
        headers[f"X-Cafe24-{name}-Remain"] = str(_seconds_to_resume(percent))
    return headers
