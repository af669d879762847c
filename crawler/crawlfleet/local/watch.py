"""A batch in words and numbers: progress while it runs, a summary at its end. Reads, decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crawlfleet.politeness import BANNED_AFTER
from crawlfleet.progress import (
    ALL_SUCCEEDED,
    WITH_FAILURES,
    Progress,
    by_source,
    duration,
    eta,
    failures_of,
    progress,
)
from crawlfleet.store import batches
from crawlfleet.store.batches import Batch, Counts, Failure, Wait
from crawlfleet.store.connection import Connection

OPEN, COMPLETE, CANCELLED = "Open", "Complete", "Cancelled"
CHANGED = "the spec of {} has changed since its last batch, which is closed: this is a new one"
CLOSED_ALREADY = "batch {} is closed already; to crawl again, rename it or retry it"

ATTENTION = (
    "`crawlfleet accounts list --needs-attention` names them; import new credentials or `crawlfleet accounts enable USER`,"
    " then retry"
)
"""What to do about tasks that died of `auth`."""


def waits_for(counts: Counts, waits: Sequence[Wait], next_retry_s: float | None, stop: str) -> str:
    """Why the batch does not go faster, in words. Sources that have nothing left to do hold nothing up."""
    p, sources = progress(counts), by_source(counts)
    waits = [wait for wait in waits if wait.source in sources and sources[wait.source].open]
    if p.open == 0:
        return "nothing"
    if stop != "none":
        return f"running crawls to end (stop: {stop})"
    reasons = [reason for wait in waits if (reason := _reason(wait))]
    if not reasons and p.retrying and not p.waiting and not p.running and next_retry_s is not None:
        reasons = [f"the next retry in {duration(max(0.0, next_retry_s))}"]
    if not reasons and p.waiting:
        reasons = [_busiest([wait for wait in waits if sources[wait.source].waiting])]
    return "; ".join(reasons) or "running crawls to end"


def _busiest(waits: Sequence[Wait]) -> str:
    held, open_permits = sum(w.held for w in waits), sum(w.open for w in waits)
    if held == 0:
        return "workers to begin"
    return f"permits ({held} of {open_permits} held)" if held >= open_permits else "workers"


def _reason(wait: Wait) -> str:
    where = wait.source if wait.egress == "direct" else f"{wait.source} by {wait.egress}"
    if wait.cool_s > 0:
        return f"{where} cools down, {duration(wait.cool_s)} left"
    if wait.cap == 0 and not wait.removed:
        return f"{where} is paused (maxConcurrent: 0)"
    if wait.cuts_in_row >= BANNED_AFTER and not wait.removed:
        return f"{where} is banned (cut {wait.cuts_in_row} times in a row)"
    if wait.silent:
        return f"{wait.silent} permits of {where} held by a lost worker"
    return ""


def line(p: Progress, rate: float, waiting_for: str, sources: Mapping[str, Progress]) -> str:
    """One line of progress for a log or a pipe; of several sources each with what is done."""
    cancelled = f" {p.cancelled} cancelled," if p.cancelled else ""
    parts = ", ".join(f"{source} {part.done}/{part.total}" for source, part in sources.items())
    return (
        f"{p.done}/{p.total} done{f' ({parts})' if len(sources) > 1 else ''}, {p.running} running, {p.waiting} waiting, {p.retrying} retrying,"
        f" {p.failed} failed,{cancelled} {rate:.1f}/s, ETA {eta(p, rate)}, waits for: {waiting_for}"
    )


def failure_words(failure: Failure) -> str:
    """What some of the dead tasks died of, with one user to look at."""
    detail = f": {failure.detail}" if failure.detail else ""
    return (
        f"{failure.source}: {failure.tasks} {failure.verdict}, {failure.reason}{detail}"
        f" (for example user {failure.user_id})"
    )


def speak_of_logs(details: Iterable[str]) -> bool:
    """Whether one of these details of failures sends people to the workers' logs."""
    return any("worker's log" in detail for detail in details)


def summary(conn: Connection, batch: Batch) -> dict[str, Any]:
    """The summary of `run -o json` (a contract, docs/command-line.md)."""
    none: Counts = {source: {} for source in batches.source_names(conn, batch.batch_id)}
    counts = none | batches.counts(conn, batch.batch_id)
    total = progress(counts)
    closed = batch.state == "closed"
    return {
        "batch": batch.name,
        "state": OPEN if not closed else CANCELLED if batch.stop != "none" else COMPLETE,
        "reason": ALL_SUCCEEDED if closed and total.done == total.total else WITH_FAILURES,
        "seconds": round(batch.seconds or 0.0, 1),
        "counts": {source: _source_counts(tasks) for source, tasks in sorted(counts.items())},
        "failures": {
            source: failures for source, tasks in sorted(counts.items()) if (failures := failures_of(tasks))
        },
    }


def _source_counts(tasks: Mapping[tuple[str, str | None], int]) -> dict[str, int]:
    p = progress({"": dict(tasks)})
    return {"total": p.total, "ok": p.done, "dead": p.failed, "cancelled": p.cancelled}
