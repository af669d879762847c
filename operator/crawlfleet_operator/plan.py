"""What has to be done for a CrawlBatch, given what is seen of it. Pure: the same sight gives the same steps.

`batches.py` sees, takes the steps and looks again; so a step that was lost is simply planned again. `status.py` tells people
about the same sight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crawlfleet.manifests import CrawlBatchSpec
from crawlfleet.statuses import CrawlBatchStatus
from crawlfleet.store.batches import Counts
from crawlfleet.store.oversight import BatchRow, Levers
from crawlfleet_operator.times import seconds

REFUSED = "Refused"
"""The reason while the API server does not take some other step than a Job: it is over when every step is taken."""
RETRY_S = 10.0
"""After an obstacle, or the refusal of a source: whoever removes its cause waits no longer than this."""
RESTART_S = 60.0
"""Between a Job that failed and the next one."""
ALONE_S = 60.0
"""No worker alive for so long, while pods hang in Terminating: their node is lost."""
DRAIN_MARGIN_S = 60.0
"""Beyond the longest crawl: then a drain no longer waits."""
ENDING_S = 60.0
"""A closed batch's Job ends by itself, by the first worker that reads it; after so long it is deleted."""
START_DEADLINE = "StartDeadlineExceeded"
TROUBLE_S = 3.0
"""Pods that are not ready after so long are looked at."""
DRAIN_LOOK_S = 0.5
"""While workers drain: their last crawl ends at any moment."""
SOONEST_S = 0.5
"""No look comes sooner after the last one, unless an event asks for it."""


@dataclass(frozen=True)
class JobView:
    """A Job as far as it matters. `size` is 0 while it is suspended; `ended` is Complete or Failed once all its pods ended."""

    name: str
    round: int
    revision: int
    digest: str
    size: int
    active: int
    ready: int
    terminating: int
    started_s: float
    ended: str = ""
    ended_s: float = 0.0
    message: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether it has no pod that may still crawl."""
        return self.active == 0 and self.terminating == 0


@dataclass(frozen=True)
class Trouble:
    """What stands in the way, since when: a CamelCase reason and words for a person."""

    reason: str
    message: str
    at_s: float = 0.0


@dataclass(frozen=True)
class Observed:
    """All that is known of a batch at one moment.

    `digest` is of the pods it wants now, None if its template cannot be read. `obstacle` is why a step could not be taken.
    `alone_s`: since a worker was seen alive. `budget`: for how many pods the PodDisruptionBudget was last written, None if that
    is not known.
    """

    spec: CrawlBatchSpec
    status: CrawlBatchStatus
    created_s: float
    row: BatchRow | None
    jobs: Sequence[JobView]
    digest: str | None
    obstacle: Trouble | None
    alone_s: float
    budget: int | None
    now_s: float

    @property
    def is_planned(self) -> bool:
        return self.row is not None and self.row.state != "planning"

    @property
    def job(self) -> JobView | None:
        """The newest of the present round."""
        mine = [job for job in self.jobs if self.row is not None and job.round == self.row.round]
        return max(mine, key=lambda job: job.revision, default=None)

    @property
    def wanted(self) -> int:
        """Workers that there should be."""
        return 0 if self.spec.suspend or self.has_failed else self.spec.workers

    @property
    def has_failed(self) -> bool:
        """Whether it could not be run, once and for all."""
        return self.is_late or any(
            (one.type, one.status, one.reason) == ("Failed", "True", START_DEADLINE)
            for one in self.status.conditions or ()
        )

    @property
    def is_late(self) -> bool:
        """Whether the deadline for its first worker is over."""
        return self.start_by_s is not None and self.now_s >= self.start_by_s

    @property
    def start_by_s(self) -> float | None:
        """Until when its first worker has to begin. Neither a suspended batch has such a time, nor a retry, nor a closed one."""
        deadline_s, row = self.spec.start_deadline_seconds, self.row
        has_had_one = row is not None and (row.round > 1 or row.state == "closed" or has_begun(row.counts))
        if deadline_s is None or self.started_s is not None or self.spec.suspend or has_had_one:
            return None
        return max(self.created_s, self.since_s("Suspended", "False") or 0.0) + deadline_s

    @property
    def is_overdue(self) -> bool:
        """Whether it has taken longer than it may."""
        deadline_s = self.spec.active_deadline_seconds
        closed_s = self.row.closed_at if self.row is not None else None
        until_s = self.now_s if closed_s is None else closed_s
        return (
            deadline_s is not None and self.started_s is not None and until_s >= self.started_s + deadline_s
        )

    @property
    def started_s(self) -> float | None:
        """When the first worker of this round began, if one has."""
        if self.row is None or not self.is_planned:
            return None
        if self.status.start_time is not None and self.status.round == self.row.round:
            return seconds(self.status.start_time)
        began_s = self.row.first_worker_at
        if began_s is None or self.status.round in (None, self.row.round):
            return began_s
        ended = self.status.completion_time  # of the round before: its last workers go on in this one
        return max(began_s, seconds(ended) if ended else self.now_s)

    @property
    def is_lost(self) -> bool:
        """Whether the Job's pods are on nodes that are gone: it waits for them for ever, nobody else does."""
        job = self.job
        return (
            job is not None
            and job.terminating > 0
            and job.ready == 0
            and self.row is not None
            and self.row.alive == 0
            and self.alone_s >= ALONE_S
        )

    def since_s(self, condition: str, status: str) -> float | None:
        """Since when that condition has had that status; None if it has another one."""
        for one in self.status.conditions or ():
            if (one.type, one.status) == (condition, status):
                return seconds(one.last_transition_time) if one.last_transition_time else self.now_s
        return None


def has_begun(counts: Counts) -> bool:
    """Whether anything was ever crawled, also by workers that have ended."""
    return any(
        state in ("leased", "waiting", "ok") or verdict not in (None, "auth")
        for of_source in counts.values()
        for state, verdict in of_source
    )


# Steps.


@dataclass(frozen=True)
class PlanTasks:
    """Write the batch's tasks into the database."""


@dataclass(frozen=True)
class SetLevers:
    levers: Levers


@dataclass(frozen=True)
class CreateJob:
    revision: int
    size: int


@dataclass(frozen=True)
class ResizeJob:
    """To 0: suspend it."""

    name: str
    size: int


@dataclass(frozen=True)
class DeleteJob:
    name: str


@dataclass(frozen=True)
class SetBudget:
    """For a Job of so many pods; 0 removes it."""

    size: int


@dataclass(frozen=True)
class LookAtPods:
    """Find out why the pods of this Job do not start, or fail."""

    job: str


@dataclass(frozen=True)
class DeleteBatch:
    """Its time to live is over."""


Step = PlanTasks | SetLevers | CreateJob | ResizeJob | DeleteJob | SetBudget | LookAtPods | DeleteBatch


def plan(seen: Observed) -> list[Step]:
    """The steps that are due now, in their order."""
    if seen.row is None or not seen.is_planned:
        return _unplanned(seen)
    if seen.row.state == "closed":
        return _closed(seen)
    return _running(seen, seen.row)


def _unplanned(seen: Observed) -> list[Step]:
    if _is_past_its_time(seen):
        return [DeleteBatch()]
    if seen.has_failed or seen.spec.suspend or not _may_try(seen):
        return []
    return [PlanTasks()]


def _may_try(seen: Observed) -> bool:
    """Also if the clock was set back: who waits for it then waits for as long as that."""
    if seen.obstacle is None or seen.obstacle.reason == REFUSED:
        return True
    return not 0 <= seen.now_s - seen.obstacle.at_s < RETRY_S


def _closed(seen: Observed) -> list[Step]:
    steps: list[Step] = [DeleteJob(job.name) for job in seen.jobs if _is_left_over(seen, job)]
    if seen.budget:
        steps.append(SetBudget(0))
    if _is_past_its_time(seen):
        steps.append(DeleteBatch())
    return steps


def _is_left_over(seen: Observed, job: JobView) -> bool:
    """A Job that no worker will end: it stands still, or those that were to start never read that the batch is closed."""
    closed_s = seen.row.closed_at if seen.row else None
    is_over = closed_s is not None and seen.now_s >= closed_s + ENDING_S
    return not job.ended and (job.size == 0 or is_over)


def _is_past_its_time(seen: Observed) -> bool:
    goes_s = _goes_s(seen)
    return goes_s is not None and seen.now_s >= goes_s


def _goes_s(seen: Observed) -> float | None:
    """When its time to live is over: since it closed, or since it failed before it was ever planned."""
    if seen.is_planned:
        ended_s = seen.row.closed_at if seen.row else None
    else:
        ended_s = (seen.since_s("Failed", "True") or seen.start_by_s) if seen.has_failed else None
    return _after(ended_s, seen.spec.ttl_seconds_after_finished)


def _running(seen: Observed, row: BatchRow) -> list[Step]:
    job = seen.job
    if job is None or job.ended or (seen.is_lost and seen.wanted > 0):
        return _begin(seen, row, job)
    if seen.digest is not None and job.digest != seen.digest:
        return _hand_over(seen, row, job)
    steps = _resize(seen, row, job, to=seen.wanted)
    return steps + _older(seen, job) + _budget(seen, job.size) + _look(seen, job)


def _begin(seen: Observed, row: BatchRow, last: JobView | None) -> list[Step]:
    """There is no Job that works, or it has ended without the batch."""
    steps = _levers(seen, row, limit=seen.wanted)
    if last is not None and last.ended == "Failed":
        steps.append(LookAtPods(last.name))
    rests = last is not None and last.ended and seen.now_s < last.ended_s + RESTART_S
    if seen.wanted == 0 or rests or not _may_try(seen):
        return steps
    return [*steps, CreateJob(_next_revision(seen), seen.wanted), *_budget(seen, seen.wanted)]


def _hand_over(seen: Observed, row: BatchRow, old: JobView) -> list[Step]:
    """The pods' template has changed: the old Job drains, and the new one begins when the last of its pods has gone."""
    if old.size > 0 or not old.is_empty:
        return _resize(seen, row, old, to=0)
    return _begin(seen, row, None)


def _next_revision(seen: Observed) -> int:
    return 1 + max(seen.status.revision or 0, *(job.revision for job in seen.jobs), 0)


def _resize(seen: Observed, row: BatchRow, job: JobView, *, to: int) -> list[Step]:
    """Up at once. Down when the highest workers, which take no more, hold nothing any more."""
    steps = _levers(seen, row, limit=to)
    if job.size < to or (job.size > to and not steps and _is_drained(seen, row, to)):
        steps.append(ResizeJob(job.name, to))
    return steps


def _is_drained(seen: Observed, row: BatchRow, to: int) -> bool:
    since_s = seen.since_s("Draining", "True")
    is_over = since_s is not None and seen.now_s >= since_s + row.job_timeout_s + DRAIN_MARGIN_S
    return row.held_above(to) == 0 or is_over


def _levers(seen: Observed, row: BatchRow, *, limit: int) -> list[Step]:
    levers = Levers(limit, seen.spec.max_concurrent, _stop(seen))
    return [] if levers.are_set(row) else [SetLevers(levers)]


def _stop(seen: Observed) -> str | None:
    """What the CrawlBatch wants to be stopped by; None if it does not say, then the command line may."""
    if seen.has_failed or seen.is_overdue:
        return "cancel"
    return None if seen.spec.stop == "None" else seen.spec.stop.lower()


def _older(seen: Observed, job: JobView) -> list[Step]:
    return [DeleteJob(other.name) for other in seen.jobs if other.name != job.name]


def _budget(seen: Observed, size: int) -> list[Step]:
    return [] if seen.budget == size else [SetBudget(size)]


def _look(seen: Observed, job: JobView) -> list[Step]:
    is_new = 0 <= seen.now_s - job.started_s < TROUBLE_S
    return [] if is_new or job.ready >= job.size else [LookAtPods(job.name)]


def again_s(seen: Observed) -> float | None:
    """In how many seconds something is due that no event will tell of. What was due already had its turn."""
    times = [at_s for at_s in _due_s(seen) if at_s is not None and at_s > seen.now_s]
    return max(SOONEST_S, min(times) - seen.now_s) if times else None


def _due_s(seen: Observed) -> list[float | None]:
    """When it will be worth a look, in seconds since the epoch."""
    spec, row, job = seen.spec, seen.row, seen.job
    again = seen.obstacle.at_s + RETRY_S if seen.obstacle else None
    if row is not None and row.state == "closed":
        leaves = row.closed_at + ENDING_S if row.closed_at and any(not j.ended for j in seen.jobs) else None
        goes = seen.now_s + RETRY_S if _is_past_its_time(seen) else None
        return [_goes_s(seen), goes, leaves, again]
    due = [_goes_s(seen), _after(seen.started_s, spec.active_deadline_seconds), seen.start_by_s, again]
    if job is not None and job.ended:
        due.append(job.ended_s + RESTART_S)
    elif job is not None and row is not None:
        due.append(seen.now_s + DRAIN_LOOK_S if row.worker_limit < job.size else None)
        due.append(seen.now_s + TROUBLE_S if job.ready < job.size else None)
    return due


def _after(since_s: float | None, delay_s: int | None) -> float | None:
    return None if since_s is None or delay_s is None else since_s + delay_s
