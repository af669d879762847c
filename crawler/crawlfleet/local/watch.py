"""What a person sees of a batch: progress while it runs, a summary at its end. Reads, decides nothing."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from crawlfleet.store import batches
from crawlfleet.store.batches import Batch, Counts, Wait
from crawlfleet.store.connection import Connection

RATE_WINDOW_S = 20.0


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
    def open(self) -> int:
        return self.total - self.done - self.failed - self.cancelled


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


class Rate:
    """Finished tasks a second over the last seconds."""

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


def waits_for(p: Progress, waits: list[Wait], next_retry_s: float | None, stop: str) -> str:
    """Why the batch does not go faster, in words."""
    if stop != "none":
        return f"running crawls to end (stop: {stop})"
    reasons = [reason for wait in waits if (reason := _reason(wait))]
    if not reasons and p.retrying and not p.waiting and not p.running and next_retry_s is not None:
        reasons = [f"the next retry in {duration(max(0.0, next_retry_s))}"]
    if not reasons and p.waiting:
        reasons = [_busiest(waits)]
    return "; ".join(reasons) or "nothing"


def _busiest(waits: list[Wait]) -> str:
    held, open_permits = sum(w.held for w in waits), sum(w.open for w in waits)
    return f"permits ({held} of {open_permits} held)" if held >= open_permits else "workers"


def _reason(wait: Wait) -> str:
    where = wait.source if wait.egress == "direct" else f"{wait.source} by {wait.egress}"
    if wait.cool_s > 0:
        return f"{where} cools down, {duration(wait.cool_s)} left"
    if wait.cap == 0 and not wait.removed:
        return f"{where} is paused (maxConcurrent: 0)"
    if wait.silent:
        return f"{wait.silent} permits of {where} held by a lost worker"
    return ""


def line(p: Progress, rate: float, waiting_for: str) -> str:
    """One line of progress for a log or a pipe."""
    return (
        f"{p.done}/{p.total} done, {p.running} running, {p.waiting} waiting, {p.retrying} retrying, {p.failed} failed,"
        f" {rate:.1f}/s, ETA {eta(p, rate)}, waits for: {waiting_for}"
    )


def summary(conn: Connection, batch: Batch) -> dict[str, Any]:
    """The summary of `run -o json` (a contract, design section 9)."""
    counts = batches.counts(conn, batch.batch_id)
    total = progress(counts)
    closed = batch.state == "closed"
    return {
        "batch": batch.name,
        "state": "Open" if not closed else "Cancelled" if batch.stop != "none" else "Complete",
        "reason": "AllSucceeded" if closed and total.done == total.total else "WithFailures",
        "seconds": round(batch.seconds or 0.0, 1),
        "counts": {source: _source_counts(tasks) for source, tasks in sorted(counts.items())},
        "failures": {
            source: failures for source, tasks in sorted(counts.items()) if (failures := _failures(tasks))
        },
    }


def _source_counts(tasks: dict[tuple[str, str | None], int]) -> dict[str, int]:
    p = progress({"": tasks})
    return {"total": p.total, "ok": p.done, "dead": p.failed, "cancelled": p.cancelled}


def _failures(tasks: dict[tuple[str, str | None], int]) -> dict[str, int]:
    return {
        verdict or "unknown": n for (state, verdict), n in sorted(tasks.items(), key=str) if state == "dead"
    }
