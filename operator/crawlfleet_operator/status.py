"""What people are told of a CrawlBatch: conditions with the reason why it waits, counts, the phase. Pure.

Written by nobody but the operator, and read by it only for what time has taught: since when, and from when on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from crawlfleet.progress import ALL_SUCCEEDED, WITH_FAILURES, Progress, by_source, eta, failures_of, progress
from crawlfleet.statuses import Condition, CrawlBatchStatus, CrawlSourceStatus, SourceCounts
from crawlfleet.store.batches import Counts
from crawlfleet.store.oversight import SourceRow
from crawlfleet_operator.plan import START_DEADLINE, JobView, Observed, Trouble
from crawlfleet_operator.times import written

Truth = Literal["True", "False"]
Statuses = CrawlBatchStatus | CrawlSourceStatus
LONGEST = 1000
"""Of the words about a spec: a path in it may be as long as it is deep."""
ALWAYS = ("Planned", "Progressing", "Degraded", "Complete")
"""The others are shown once they were true."""


@dataclass(frozen=True)
class Said:
    """A condition without its times."""

    type: str
    status: Truth
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Surroundings:
    """What else is known when a batch is described.

    `sources` are those of the database by name, `missing` those of the batch that have no CrawlSource. `trouble` is why pods
    do not start. `rate` is tasks a second.
    """

    generation: int
    selector: str
    sources: Mapping[str, SourceRow]
    missing: Sequence[str]
    trouble: Trouble | None
    rate: float


def describe(seen: Observed, around: Surroundings) -> CrawlBatchStatus:
    """The whole status, made anew."""
    said = {one.type: one for one in _conditions(seen, around)}
    job, row = seen.job, seen.row
    sums = progress(row.counts) if row else None
    return CrawlBatchStatus(
        observed_generation=around.generation,
        phase=_phase(said, job),
        conditions=tuple(_shown(seen, around.generation, said)),
        total=row.total if row and seen.is_planned else None,
        done=sums.done if sums else None,
        failed=sums.failed if sums else None,
        cancelled=sums.cancelled if sums else None,
        sources=tuple(_source_counts(row.counts)) if row else None,
        workers=job.size if job else 0,
        ready_workers=job.ready if job else 0,
        selector=around.selector,
        eta=_eta(seen, sums, around.rate),
        round=row.round if row else None,
        revision=max((seen.status.revision or 0, *(j.revision for j in seen.jobs))) or None,
        job_name=job.name if job else None,
        start_time=written(seen.started_s) if seen.started_s is not None else None,
        completion_time=written(row.closed_at) if row and row.closed_at is not None else None,
    )


def unreadable(before: CrawlBatchStatus, trouble: Trouble, now_s: float) -> CrawlBatchStatus:
    """Nothing can be known at the moment, and nothing that was said is known to be otherwise."""
    degraded = Said("Degraded", "True", trouble.reason, trouble.message)
    known = [one for one in before.conditions or () if one.type != "Degraded"]
    conditions = (*known, dated(degraded, before, before.observed_generation, now_s))
    return before.model_copy(
        update={"conditions": conditions, "phase": before.phase or "Pending", "eta": None}
    )


def spoilt(before: CrawlBatchStatus, words: str, generation: int, now_s: float) -> CrawlBatchStatus:
    """A spec that the schema let through and that cannot be run as it stands; what runs goes on as it was, a new one heals."""
    now = before.model_copy(update={"observed_generation": generation})
    words = words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"
    if holds(before, "Planned"):
        return unreadable(now, Trouble("Invalid", words), now_s)
    said = [
        Said("Planned", "False", "Invalid", words),
        Said("Progressing", "False", "Invalid", words),
        Said("Failed", "True", "Invalid", words),
    ]
    conditions = tuple(dated(one, before, generation, now_s) for one in said)
    return now.model_copy(update={"phase": "Failed", "conditions": conditions})


def holds(before: Statuses, condition: str) -> bool:
    """Whether it says that this is so."""
    return any((one.type, one.status) == (condition, "True") for one in before.conditions or ())


def changes(before: Statuses, after: Statuses) -> list[tuple[str, Condition]]:
    """(Normal or Warning, condition) for each that now says something else: an Event each.

    Of what does not hold only that crawls wait for something is worth an Event, unless Degraded says the same.
    """
    old = {one.type: (one.status, one.reason) for one in before.conditions or ()}
    new = {one.type: one for one in after.conditions or () if old.get(one.type) != (one.status, one.reason)}
    told = [one for one in new.values() if one.status == "True"]
    waits = new.get("Progressing")
    is_told = {"Closed", *(one.reason for one in told)}
    if waits is not None and waits.status == "False" and waits.reason not in is_told:
        told.append(waits)
    return [("Warning" if one.type in ("Degraded", "Failed") else "Normal", one) for one in told]


# Conditions.


def _conditions(seen: Observed, around: Surroundings) -> Iterator[Said]:
    yield _planned(seen)
    yield _progressing(seen, around)
    yield _draining(seen)
    yield _suspended(seen)
    yield _degraded(seen, around)
    yield _complete(seen)
    yield _failed(seen)


def _planned(seen: Observed) -> Said:
    if seen.row is not None and seen.is_planned:
        return Said("Planned", "True", "Planned", f"{seen.row.total} accounts are to be crawled")
    if seen.obstacle is not None:
        return Said("Planned", "False", seen.obstacle.reason, seen.obstacle.message)
    if seen.spec.suspend:
        return Said("Planned", "False", "Suspended", "it is planned when it is resumed")
    return Said("Planned", "False", "Planning", "its accounts become tasks")


def _progressing(seen: Observed, around: Surroundings) -> Said:
    """Whether crawls can begin, and if not, what they wait for."""
    if seen.row is not None and seen.row.state == "closed":
        return Said("Progressing", "False", "Closed", "nothing is left to do")
    waits = _waits(seen, around)
    if waits is not None:
        return Said("Progressing", "False", waits.reason, waits.message)
    throttled = [_cooling(row) for row in _sources(seen, around) if row.cool_until is not None]
    if throttled:
        return Said("Progressing", "True", "Throttled", "; ".join(throttled))
    return Said("Progressing", "True", "Running", "workers crawl")


def _waits(seen: Observed, around: Surroundings) -> Trouble | None:
    """Why no crawl can begin; None if one can."""
    if seen.has_failed:
        return Trouble("Failed", "it could not be run")
    if seen.spec.suspend:
        return Trouble("Suspended", "spec.suspend is true")
    if not seen.is_planned:
        return seen.obstacle or Trouble("Planning", "its accounts become tasks")
    if seen.job is None or seen.job.ready == 0:
        return seen.obstacle or around.trouble or Trouble("Starting", "its pods start")
    rows = _sources(seen, around)
    if rows and all(row.cool_until is not None for row in rows):
        return Trouble("Throttled", "; ".join(_cooling(row) for row in rows))
    return None


def _sources(seen: Observed, around: Surroundings) -> list[SourceRow]:
    """The batch's sources, as far as they have something left to crawl."""
    counts = by_source(seen.row.counts) if seen.row else {}
    return [row for name, row in sorted(around.sources.items()) if name in counts and counts[name].open]


def _cooling(row: SourceRow) -> str:
    return f"{row.name} rests after a ban until {written(row.cool_until or 0)}"


def _draining(seen: Observed) -> Said:
    job, row = seen.job, seen.row
    is_open = row is not None and row.state == "running"
    if job is not None and row is not None and is_open and not job.ended and row.worker_limit < job.size:
        held = row.held_above(row.worker_limit)
        return Said("Draining", "True", "Draining", _drains(row.worker_limit, job.size, held > 0))
    if is_open and row is not None and row.stop != "none":
        return Said("Draining", "True", "Stopping", f"stop is {row.stop}: what runs ends, nothing begins")
    return Said("Draining", "False", "NotDraining")


def _drains(limit: int, size: int, is_busy: bool) -> str:
    who = f"workers {limit} to {size - 1}" if size - limit > 1 else f"worker {limit}"
    return f"taking no more: {who}, {'until the last crawl has ended' if is_busy else 'with no crawl left'}"


def _suspended(seen: Observed) -> Said:
    stands = seen.job is None or seen.job.ended or (seen.job.size == 0 and seen.job.is_empty)
    if seen.spec.suspend and stands:
        return Said("Suspended", "True", "Suspended", "no pod is left; spec.suspend: false resumes")
    return Said("Suspended", "False", "NotSuspended")


def _degraded(seen: Observed, around: Surroundings) -> Said:
    """Whether there is less than there should be."""
    if seen.row is not None and seen.row.state == "closed":
        return Said("Degraded", "False", "Closed")
    found = _lacks(seen, around)
    if found is not None:
        return Said("Degraded", "True", found.reason, found.message)
    return Said("Degraded", "False", "AsWanted")


def _lacks(seen: Observed, around: Surroundings) -> Trouble | None:
    job = seen.job
    if seen.obstacle is not None:
        return seen.obstacle
    if job is not None and job.ended:
        words = around.trouble.message if around.trouble else job.message
        return Trouble(f"Job{job.ended}", f"Job {job.name} ended before the batch: {words}")
    if seen.is_lost:
        return Trouble("NodeLost", "no worker answers and their pods do not end; others take over")
    if around.trouble is not None and job is not None and job.ready < seen.wanted:
        return around.trouble
    if seen.is_planned and around.missing:
        names = ", ".join(around.missing)
        return Trouble(
            "SourceMissing", f"there is no CrawlSource {names} any more; it goes on as it was planned"
        )
    permits = sum(row.total for row in _sources(seen, around))
    if seen.is_planned and _sources(seen, around) and seen.wanted > permits:
        return Trouble(
            "Oversized",
            f"{seen.wanted} workers, but its sources allow {permits} crawls at a time: some stay idle",
        )
    return None


def _complete(seen: Observed) -> Said:
    row = seen.row
    if row is None or row.state != "closed" or seen.has_failed:
        if seen.has_failed:
            return Said("Complete", "False", "Failed")
        return Said("Complete", "False", "Running" if seen.is_planned else "NotPlanned")
    sums = progress(row.counts)
    reason = ALL_SUCCEEDED if sums.done == row.total else WITH_FAILURES
    why = " after activeDeadlineSeconds" if seen.is_overdue and row.stop == "cancel" else ""
    words = f"{sums.done} of {row.total} ok, {sums.failed} failed, {sums.cancelled} cancelled{why}"
    return Said("Complete", "True", reason, words)


def _failed(seen: Observed) -> Said:
    if seen.is_late:
        words = f"no worker began within startDeadlineSeconds ({seen.spec.start_deadline_seconds})"
        return Said("Failed", "True", START_DEADLINE, words)
    for one in seen.status.conditions or ():
        if one.type == "Failed" and seen.has_failed:
            return Said("Failed", "True", START_DEADLINE, one.message or "")
    return Said("Failed", "False", "AsWanted")


def _shown(seen: Observed, generation: int, said: Mapping[str, Said]) -> Iterator[Condition]:
    shown = {one.type for one in seen.status.conditions or ()} | {*ALWAYS}
    for one in said.values():
        if one.status == "True" or one.type in shown:
            yield dated(one, seen.status, generation, seen.now_s)


def dated(one: Said, before: Statuses, generation: int | None, now_s: float) -> Condition:
    """The condition; its transition time is that of the last change of its status."""
    same = [old for old in before.conditions or () if (old.type, old.status) == (one.type, one.status)]
    since = same[0].last_transition_time if same else written(now_s)
    return Condition(
        type=one.type,
        status=one.status,
        reason=one.reason,
        message=one.message or None,
        last_transition_time=since,
        observed_generation=generation,
    )


# The rest.


def _phase(said: Mapping[str, Said], job: JobView | None) -> str:
    """One word for a table; nothing depends on it."""
    for condition in ("Failed", "Complete", "Suspended", "Draining"):
        if said[condition].status == "True":
            return condition
    if said["Planned"].status == "False":
        return "Pending"
    return "Running" if job is not None and job.ready else "Starting"


def _source_counts(counts: Counts) -> Iterator[SourceCounts]:
    for name, p in by_source(counts).items():
        yield SourceCounts(
            name=name,
            total=p.total,
            ready=p.waiting,
            leased=p.running,
            ok=p.done,
            retrying=p.retrying,
            dead=p.failed,
            cancelled=p.cancelled,
            failures=failures_of(counts[name]) or None,
        )


def _eta(seen: Observed, sums: Progress | None, rate: float) -> str | None:
    if seen.row is None or sums is None or seen.row.state != "running" or rate <= 0:
        return None
    return eta(sums, rate)
