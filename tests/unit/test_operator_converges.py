"""Whatever a batch looks like and whatever happens to it: the steps lead to where no step is due, and never over a worker.

The steps are taken on a small model of the database and the Job controller; the status is the operator's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
from operators import JOB_TIMEOUT_S, NOW_S, around, closed_row, condition, job, row, seen, spec, status, tasks

from crawlfleet.manifests import CrawlBatchSpec
from crawlfleet.statuses import CrawlBatchStatus
from crawlfleet.store.oversight import BatchRow
from crawlfleet_operator.plan import (
    DRAIN_MARGIN_S,
    CreateJob,
    DeleteBatch,
    DeleteJob,
    JobView,
    LookAtPods,
    Observed,
    PlanTasks,
    ResizeJob,
    SetBudget,
    SetLevers,
    Step,
    again_s,
    plan,
)
from crawlfleet_operator.status import describe

DRAIN_S = JOB_TIMEOUT_S + DRAIN_MARGIN_S
PASSES = 6
LOOK_S = 45.0
"""Between two looks at least: nothing is the worse for it."""
LOOKS = 1000
DIGESTS = ("digest-now", "another")


@dataclass
class World:
    """One batch in a database and a cluster. `held`: WORKER_ID → when each of its crawls ends by itself."""

    random: Random
    spec: CrawlBatchSpec
    row: BatchRow | None
    jobs: dict[str, JobView]
    digest: str
    status: CrawlBatchStatus
    held: dict[int, list[float]]
    budget: int | None = None
    now_s: float = NOW_S
    alive_s: float = NOW_S
    is_gone: bool = False
    lost_pods: set[str] = field(default_factory=set)
    told: list[Step] = field(default_factory=list)

    def observed(self) -> Observed:
        if self.row is not None:
            held = {worker: len(ends) for worker, ends in self.held.items()}
            is_open = self.row.state == "running"
            alive = sum(j.ready for j in self.jobs.values()) if is_open else 0
            self.row = replace(self.row, held=held if is_open else {}, alive=alive)
            self.alive_s = self.now_s if alive else self.alive_s
        return seen(
            spec=self.spec,
            status=self.status,
            created_s=NOW_S - 70,
            row=self.row,
            jobs=list(self.jobs.values()),
            digest=self.digest,
            alone_s=self.now_s - self.alive_s,
            budget=self.budget,
            now_s=self.now_s,
        )

    # The operator.

    def reconcile(self) -> bool:
        """As the operator does it; whether it did something."""
        did = False
        for _ in range(PASSES):
            found = self.observed()
            steps = [step for step in plan(found) if not isinstance(step, LookAtPods)]
            for step in steps:
                self.take(found, step)
            did |= bool(steps)
            if not any(not isinstance(step, SetBudget | DeleteBatch) for step in steps):
                break
        self.status = describe(self.observed(), around())
        return did

    def take(self, found: Observed, step: Step) -> None:
        self.told.append(step)
        match step:
            case PlanTasks():
                assert self.row is None or self.row.state == "planning"
                limit = self.spec.workers
                self.row = row(
                    worker_limit=limit, max_concurrent=None, held={}, alive=0, first_worker_at=None
                )
            case SetLevers(levers):
                assert self.row is not None
                self.crawl(self.row)  # until that moment workers take
                stop = levers.stop or self.row.stop
                self.row = replace(
                    self.row,
                    worker_limit=levers.worker_limit,
                    max_concurrent=levers.max_concurrent,
                    stop=stop,
                )
            case CreateJob(revision, size):
                self.create(found, revision, size)
            case ResizeJob(name, size):
                self.resize(found, name, size)
            case DeleteJob(name):
                del self.jobs[name]
            case SetBudget(size):
                self.budget = size
            case DeleteBatch():
                self.is_gone = True

    def create(self, found: Observed, revision: int, size: int) -> None:
        assert self.row is not None
        assert size >= 1
        assert revision > max((j.revision for j in self.jobs.values()), default=0)
        for other in self.jobs.values():
            if other.round == self.row.round and not other.ended and not found.is_lost:
                assert other.size == 0, f"a second Job beside {other}"
                assert other.is_empty, f"its pods may still crawl: {other}"
        fresh = job(
            revision,
            size,
            round=self.row.round,
            digest=self.digest,
            active=size,
            ready=0,
            started_s=self.now_s,
        )
        assert fresh.name not in self.jobs
        self.jobs[fresh.name] = fresh
        self.alive_s = self.now_s

    def resize(self, found: Observed, name: str, size: int) -> None:
        old = self.jobs[name]
        assert self.row is not None
        assert not old.ended
        if size < old.size:
            assert self.row.worker_limit <= size, "it could still take"
            since_s = found.since_s("Draining", "True")
            is_over = since_s is not None and self.now_s >= since_s + DRAIN_S
            assert is_over or not any(self.held.get(worker) for worker in range(size, old.size))
        stays = min(size, old.active)
        ending = old.terminating + old.active - stays
        active = size if size > old.size else stays
        self.jobs[name] = replace(
            old, size=size, active=active, ready=min(old.ready, stays), terminating=ending
        )
        self.held = {worker: ends for worker, ends in self.held.items() if worker < size}

    # The world.

    def pass_time(self) -> None:
        """Until the operator looks again: crawls end, pods start and end, the batch closes when it is stopped."""
        self.now_s += max(LOOK_S, again_s(self.observed()) or 0.0)
        for name, one in self.jobs.items():
            if not one.ended:
                stuck = one.terminating if name in self.lost_pods else 0
                ready = 0 if name in self.lost_pods else one.active
                self.jobs[name] = replace(one, terminating=stuck, ready=ready)
        self.held = {
            worker: [end_s for end_s in ends if end_s > self.now_s] for worker, ends in self.held.items()
        }
        if self.row is None or self.row.state != "running":
            return
        if any(one.ready for one in self.jobs.values()) and self.row.first_worker_at is None:
            self.row = replace(self.row, first_worker_at=self.now_s)
        if self.row.stop == "none":
            self.crawl(self.row)
        elif not any(self.held.values()):
            self.row = closed_row(stop=self.row.stop, closed_at=self.now_s, round=self.row.round)

    def crawl(self, open_row: BatchRow) -> None:
        """Workers below the limit take now and then; some crawls last as long as they may."""
        working = max((one.ready for one in self.jobs.values()), default=0)
        for worker in range(min(working, open_row.worker_limit)):
            if self.random.random() < 0.3:
                lasts_s = JOB_TIMEOUT_S if self.random.random() < 0.1 else self.random.uniform(1, 30)
                self.held.setdefault(worker, []).append(self.now_s + lasts_s)

    def happen(self) -> None:
        """Somebody or something interferes."""
        change = self.random.choice(
            (self.edit, self.edit, self.change_template, self.fail, self.lose, self.restart)
        )
        change()

    def edit(self) -> None:
        self.spec = any_spec(self.random)

    def change_template(self) -> None:
        self.digest = self.random.choice(DIGESTS)

    def fail(self) -> None:
        """A Job fails, or ends without the batch."""
        for name, one in self.jobs.items():
            if one.size > 0 and not one.ended:
                how = self.random.choice(("Failed", "Complete"))
                self.jobs[name] = replace(
                    one, active=0, ready=0, terminating=0, ended=how, ended_s=self.now_s
                )
                self.held = {}

    def lose(self) -> None:
        """All its pods are on a node that is gone; what they crawled is free again when they have been silent."""
        for name, one in self.jobs.items():
            if one.active and not one.ended:
                self.lost_pods.add(name)
                self.jobs[name] = replace(one, active=0, ready=0, terminating=one.active)

    def restart(self) -> None:
        """A new operator: it knows what stands in the cluster, and nothing else."""
        self.budget = None
        self.alive_s = self.now_s


def any_spec(random: Random) -> CrawlBatchSpec:
    fields: dict[str, Any] = {"workers": random.randint(1, 5), "maxConcurrent": random.choice((3, 10))}
    if random.random() < 0.3:
        fields["suspend"] = True
    if random.random() < 0.1:
        fields["stop"] = random.choice(("Drain", "Cancel"))
    if random.random() < 0.1:
        fields["activeDeadlineSeconds"] = random.choice((30, 3000))
    if random.random() < 0.1:
        fields["startDeadlineSeconds"] = random.choice((1, 3000))
    return spec(**fields)


def any_world(random: Random) -> World:
    """A batch somewhere on its way: unplanned, running or closed, with Jobs of which at most the newest has pods."""
    state = random.choice(("none", "planning", "running", "running", "running", "closed"))
    number = random.randint(0, 2) if state in ("running", "closed") else 0
    size = random.randint(0, 5)
    jobs = [job(revision + 1, size=0, digest=random.choice(DIGESTS)) for revision in range(number)]
    if jobs:
        jobs[-1] = job(number, size, digest=random.choice(DIGESTS), ready=random.randint(0, size))
    limit = random.randint(0, 5)
    rows = {
        "none": None,
        "planning": row(state="planning", first_worker_at=None),
        "running": row(worker_limit=limit, stop="none", counts=tasks(ready=10)),
        "closed": closed_row(closed_at=NOW_S - random.choice((1, 1000))),
    }
    held = {
        worker: [NOW_S + random.uniform(1, JOB_TIMEOUT_S) for _ in range(random.randint(0, 2))]
        for worker in range(size if jobs and state == "running" else 0)
    }
    drains = (
        [condition("Draining", "True", ago_s=random.uniform(0, 2 * DRAIN_S))] if random.random() < 0.3 else []
    )
    return World(
        random=random,
        spec=any_spec(random),
        row=rows[state],
        jobs={one.name: one for one in jobs},
        digest=random.choice(DIGESTS),
        status=status(*drains, revision=number or None, start_time=None),
        held=held,
    )


def run(world: World, *, events: int) -> Iterator[Observed]:
    """Let it go on, with so many interferences, until nothing has been due for longer than any drain."""
    quiet_s = 0.0
    for look in range(LOOKS):
        before_s = world.now_s
        did = world.reconcile()
        yield world.observed()
        if look < 4 * events and look % 4 == 3:
            world.happen()
        world.pass_time()
        quiet_s = 0.0 if did or look < 4 * events else quiet_s + world.now_s - before_s
        if world.is_gone or quiet_s > DRAIN_S + LOOK_S:
            return
    pytest.fail(f"it never comes to rest: {world.told[-10:]}")


CASES = [pytest.param(seed, events, id=f"{seed}-{events}") for events in (0, 5) for seed in range(100)]


@pytest.mark.parametrize(("seed", "events"), CASES)
def test_the_steps_lead_to_what_is_wanted(seed: int, events: int) -> None:
    """And then no step is due. On the way no worker is cut off, and no second Job is beside one that works."""
    world = any_world(Random(seed))
    *_, last = run(world, events=events)

    assert [step for step in plan(last) if not isinstance(step, LookAtPods)] == []
    if last.row is not None and last.row.state == "running" and not last.has_failed:
        size = last.job.size if last.job is not None and not last.job.ended else 0
        assert size == last.wanted
        assert size == 0 or [one.digest for one in last.jobs] == [last.digest]
