"""Cafe24's call limit of one mall: when the next call may be sent. Pure; `cafe24` does the waiting."""

from __future__ import annotations

import re
from collections.abc import Mapping

from crawlfleet.sources.hints import number, seconds

DRAIN_PER_S = 2.0
STEADY_PER_S = 1.8
LEAST_GAP_S = 0.11
FULLEST = 0.8
BUSY_USAGE = 80.0
BUSY_GAP_S = 1.0
FULL_USAGE_GAP_S = 5.0
_CALL_LIMIT = re.compile(r"(\d{1,6})/(\d{1,6})")


class CallLimit:
    """One mall's leaky bucket as this crawl knows it; times are seconds of one clock.

    It counts its own calls and is put right by `X-Api-Call-Limit`, since other apps may fill the bucket too.
    An account is in one crawl at a time, so nobody else of the fleet calls this mall.
    """

    def __init__(self) -> None:
        self.level = 0.0
        self.size = 40.0
        self.suspended_until = 0.0
        self._usage = 0.0
        self._called_at = float("-inf")

    def delay_s(self, now: float) -> float:
        """How long to wait before the next call; 0 if none."""
        elapsed_s = max(0.0, now - self._called_at)
        level = self._drained(elapsed_s)
        overflow_s = (level + 1 - max(1.0, FULLEST * self.size)) / DRAIN_PER_S
        gap_s = max(LEAST_GAP_S, self._usage_gap_s())
        if level > self.size / 2:
            gap_s = max(gap_s, 1 / STEADY_PER_S)
        return max(0.0, overflow_s, gap_s - elapsed_s)

    def learn(self, headers: Mapping[str, str], now: float) -> None:
        """Count a call that was answered just now."""
        self.level = self._drained(max(0.0, now - self._called_at)) + 1
        self._called_at = now
        reported = _CALL_LIMIT.fullmatch(headers.get("X-Api-Call-Limit", "").replace(" ", ""))
        if reported and int(reported[2]) > 0:
            self.level, self.size = float(reported[1]), float(reported[2])
        self._usage = max(number(headers.get(f"X-Cafe24-{what}-Usage")) or 0.0 for what in ("Call", "Time"))
        remains_s = (seconds(headers.get(f"X-Cafe24-{what}-Remain")) or 0.0 for what in ("Call", "Time"))
        self.suspended_until = now + max(remains_s)

    def _drained(self, elapsed_s: float) -> float:
        return max(0.0, self.level - DRAIN_PER_S * elapsed_s)

    def _usage_gap_s(self) -> float:
        """From 80 % of the usage limit on slower and slower: at 100 % every call lengthens the block."""
        if self._usage < BUSY_USAGE:
            return 0.0
        excess = min(1.0, (self._usage - BUSY_USAGE) / (100.0 - BUSY_USAGE))
        return BUSY_GAP_S + excess * (FULL_USAGE_GAP_S - BUSY_GAP_S)
