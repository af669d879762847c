"""How far a batch is: its counts added up, how fast it goes, and how long it will take. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from crawlfleet.store.batches import Counts

RATE_WINDOW_S = 20.0
ALL_SUCCEEDED, WITH_FAILURES = "AllSucceeded", "WithFailures"
"""The reason of a batch's end."""


@dataclass(frozen=True)
class Progress:
    """Tasks of a batch at one moment. `retrying` are waiting after a failed attempt."""

    total: int
    done: int
    running: int
    waiting: int
    retrying: int
    failed: int
    cancelled: int

    @property
    def ended(self) -> int:
        return self.done + self.failed + self.cancelled

    @property
    def crawled(self) -> int:
        """What ended by a crawl: nobody has to work for a cancelled task."""
        return self.done + self.failed

    @property
    def open(self) -> int:
        return self.total - self.ended


def progress(counts: Counts) -> Progress:
    """Add up the sources."""
    tasks: dict[str, int] = {}
    for source in counts.values():
        for (state, _), number in source.items():
            tasks[state] = tasks.get(state, 0) + number
    return Progress(
        total=sum(tasks.values()),
        done=tasks.get("ok", 0),
        running=tasks.get("leased", 0),
        waiting=tasks.get("ready", 0),
        retrying=tasks.get("waiting", 0),
        failed=tasks.get("dead", 0),
        cancelled=tasks.get("cancelled", 0),
    )


def by_source(counts: Counts) -> dict[str, Progress]:
    """The progress of each source."""
    return {source: progress({source: tasks}) for source, tasks in sorted(counts.items())}


def failures_of(tasks: Mapping[tuple[str, str | None], int]) -> dict[str, int]:
    """Dead tasks of one source, by verdict."""
    return {
        verdict or "unknown": n for (state, verdict), n in sorted(tasks.items(), key=str) if state == "dead"
    }


class Rate:
    """Tasks crawled to their end a second, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, at_s: float, finished: int) -> float:
        """Note how many are finished; returns the rate, 0 while nothing is known."""
        self._seen.append((at_s, finished))
        while self._seen[0][0] < at_s - RATE_WINDOW_S:
            self._seen.popleft()
        first_s, first = self._seen[0]
        return (finished - first) / (at_s - first_s) if at_s > first_s else 0.0


def eta(p: Progress, rate: float) -> str:
    """How long the open tasks will take at this rate."""
    if p.open == 0:
        return "done"
    return duration(p.open / rate) if rate > 0 else "unknown"


def duration(seconds: float) -> str:
    """1h02m, 3m20s, 12s."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
