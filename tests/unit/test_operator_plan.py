"""Which steps are due for what is seen of a batch, and when to look again."""

from __future__ import annotations

from typing import Any

import pytest
from operators import (
    JOB_TIMEOUT_S,
    NOW_S,
    closed_row,
    condition,
    ended_job,
    job,
    new,
    planned,
    row,
    seen,
    status,
    tasks,
    trouble,
)

from crawlfleet.store.batches import Counts
from crawlfleet.store.oversight import Levers
from crawlfleet_operator.plan import (
    ALONE_S,
    DRAIN_LOOK_S,
    DRAIN_MARGIN_S,
    ENDING_S,
    RESTART_S,
    RETRY_S,
    START_DEADLINE,
    TROUBLE_S,
    CreateJob,
    DeleteBatch,
    DeleteJob,
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
from crawlfleet_operator.times import written

DRAIN_S = JOB_TIMEOUT_S + DRAIN_MARGIN_S
BUSY = {0: 1, 1: 1, 2: 0, 3: 1}
"""Of four workers all but the third hold a permit."""
CONTINUES = {"stop": None, "max_concurrent": 10}


def levers(worker_limit: int, max_concurrent: int = 10, stop: str | None = None) -> SetLevers:
    return SetLevers(Levers(worker_limit, max_concurrent, stop))


def held_up(ago_s: float, **changed: Any) -> Observed:
    """Not planned, since something was missing that long ago."""
    return new(obstacle=trouble("SourceMissing", ago_s), **changed)


def shrinking(to: int = 2, *, draining_s: float = 1, **changed: Any) -> Observed:
    """Four workers of which only the first are still wanted; the database knows, and they drain since then."""
    four = {"jobs": [job(size=4)], "budget": 4, "row": row(worker_limit=to, held=BUSY, alive=4)}
    return seen(
        condition("Draining", "True", ago_s=draining_s), **{"spec": {"workers": to}, **four, **changed}
    )


def suspending(**changed: Any) -> Observed:
    """Suspended; the database knows."""
    return seen(**{"spec": {"suspend": True}, "row": row(worker_limit=0), **changed})


def standing(**changed: Any) -> Observed:
    """Suspended, and drained."""
    empty = {"jobs": [job(size=0)], "budget": 0, "row": row(worker_limit=0, alive=0, held={})}
    return suspending(**{**empty, **changed})


def handing_over(old: Any, **changed: Any) -> Observed:
    """The pods' template is another one than that of the Job that is there."""
    return seen(**{"digest": "another", "jobs": [old], "row": row(worker_limit=0), **changed})


def lost(**changed: Any) -> Observed:
    """Both pods hang in Terminating, and no worker has been alive for long."""
    gone = {"jobs": [job(active=0, ready=0, terminating=2)], "row": row(alive=0, held={0: 1, 1: 1})}
    return seen(**{**gone, "alone_s": ALONE_S, **changed})


def failed(ago_s: float, **changed: Any) -> Observed:
    """The Job has failed; its batch is open."""
    return seen(**{"jobs": [ended_job("Failed", ago_s)], "row": row(alive=0, held={}), **changed})


def steps_of(observed: Observed) -> list[Step]:
    """Without the looks at pods, which change nothing."""
    return [step for step in plan(observed) if not isinstance(step, LookAtPods)]


def failed_unplanned(*, ago_s: float, ttl_s: int) -> Observed:
    """No worker began in time, since nobody could plan it."""
    failed = status(condition("Failed", "True", START_DEADLINE, ago_s=ago_s), start_time=None)
    spec = {"startDeadlineSeconds": 1, "ttlSecondsAfterFinished": ttl_s}
    return new(spec=spec, status=failed, created_s=NOW_S - 900)


@pytest.mark.parametrize(
    ("observed", "steps"),
    [
        pytest.param(seen(), [], id="all-is-as-it-should-be"),
        pytest.param(new(), [PlanTasks()], id="a-new-one-is-planned"),
        pytest.param(new(row=row(state="planning")), [PlanTasks()], id="a-plan-that-broke-off-is-done-again"),
        pytest.param(held_up(RETRY_S - 1), [], id="an-obstacle-is-not-tried-at-once"),
        pytest.param(held_up(RETRY_S), [PlanTasks()], id="an-obstacle-is-tried-again-in-time"),
        pytest.param(new(spec={"suspend": True}), [], id="suspended-before-it-is-planned"),
        pytest.param(planned(), [CreateJob(1, 2), SetBudget(2)], id="a-planned-one-gets-its-job"),
        pytest.param(
            planned(spec={"workers": 5, "maxConcurrent": 3}),
            [levers(5, 3), CreateJob(1, 5), SetBudget(5)],
            id="levers-come-before-workers",
        ),
        pytest.param(
            planned(obstacle=trouble(ago_s=RETRY_S - 1)), [], id="refused-pods-are-not-tried-at-once"
        ),
        pytest.param(
            planned(obstacle=trouble(ago_s=RETRY_S)),
            [CreateJob(1, 2), SetBudget(2)],
            id="refused-pods-are-tried-again-in-time",
        ),
        pytest.param(
            planned(status=status(revision=7)),
            [CreateJob(8, 2), SetBudget(2)],
            id="a-revision-never-comes-twice",
        ),
        pytest.param(seen(spec={"workers": 4}), [levers(4), ResizeJob("nightly-1-1", 4)], id="up-at-once"),
        pytest.param(
            seen(spec={"workers": 1}, row=row(held={0: 0, 1: 0})),
            [levers(1)],
            id="down-begins-with-the-levers-even-if-nobody-is-busy",
        ),
        pytest.param(shrinking(), [], id="down-waits-for-a-busy-worker"),
        pytest.param(shrinking(to=3), [], id="down-waits-for-the-highest-worker"),
        pytest.param(
            shrinking(row=row(worker_limit=2, held={0: 1, 1: 1, 2: 0, 3: 0})),
            [ResizeJob("nightly-1-1", 2)],
            id="down-when-the-highest-hold-nothing",
        ),
        pytest.param(
            shrinking(draining_s=DRAIN_S - 1), [], id="a-drain-may-take-as-long-as-the-longest-crawl"
        ),
        pytest.param(
            shrinking(draining_s=DRAIN_S), [ResizeJob("nightly-1-1", 2)], id="a-drain-ends-some-time"
        ),
        pytest.param(seen(budget=None), [SetBudget(2)], id="a-budget-that-is-not-known-is-written"),
        pytest.param(seen(budget=4), [SetBudget(2)], id="the-budget-follows-the-job"),
        pytest.param(seen(spec={"suspend": True}), [levers(0)], id="suspend-drains"),
        pytest.param(suspending(row=row(worker_limit=0, held={0: 1})), [], id="suspend-waits-for-the-busy"),
        pytest.param(suspending(), [ResizeJob("nightly-1-1", 0)], id="suspend-ends-with-a-suspended-job"),
        pytest.param(standing(), [], id="suspended"),
        pytest.param(standing(budget=2), [SetBudget(0)], id="a-suspended-one-needs-no-budget"),
        pytest.param(standing(spec={}), [levers(2), ResizeJob("nightly-1-1", 2)], id="resumed-as-it-was"),
        pytest.param(
            standing(spec={"workers": 7}), [levers(7), ResizeJob("nightly-1-1", 7)], id="resumed-with-more"
        ),
        pytest.param(seen(digest="another"), [levers(0)], id="another-template-drains-the-old-job"),
        pytest.param(
            handing_over(job(), row=row(worker_limit=0, held={1: 1})),
            [],
            id="another-template-waits-for-the-busy",
        ),
        pytest.param(
            handing_over(job()), [ResizeJob("nightly-1-1", 0)], id="another-template-stops-the-drained-job"
        ),
        pytest.param(
            handing_over(job(size=0, active=1)), [], id="another-template-waits-for-the-last-pod-to-end"
        ),
        pytest.param(
            handing_over(job(size=0, active=0, terminating=1)),
            [],
            id="another-template-waits-for-terminating-pods",
        ),
        pytest.param(
            handing_over(job(size=0)),
            [levers(2), CreateJob(2, 2)],
            id="another-template-is-another-revision",
        ),
        pytest.param(
            handing_over(job(size=0), spec={"suspend": True}), [], id="another-template-while-suspended-waits"
        ),
        pytest.param(
            handing_over(job(size=0), digest=job().digest, budget=0),
            [levers(2), ResizeJob("nightly-1-1", 2)],
            id="the-old-template-again-is-the-old-job-again",
        ),
        pytest.param(
            seen(jobs=[job(1, size=0), job(2)]), [DeleteJob("nightly-1-1")], id="a-job-that-was-replaced-goes"
        ),
        pytest.param(failed(RESTART_S - 1), [], id="a-failed-job-rests"),
        pytest.param(failed(RESTART_S), [CreateJob(2, 2)], id="after-a-failed-job-comes-another"),
        pytest.param(
            seen(jobs=[ended_job("Complete", RESTART_S)]),
            [CreateJob(2, 2)],
            id="after-a-job-that-ended-without-its-batch-comes-another",
        ),
        pytest.param(
            failed(RESTART_S, spec={"suspend": True}), [levers(0)], id="none-comes-while-it-is-suspended"
        ),
        pytest.param(lost(), [CreateJob(2, 2)], id="a-lost-node-means-a-new-job-at-once"),
        pytest.param(lost(alone_s=ALONE_S - 1), [], id="a-silent-node-may-come-back"),
        pytest.param(
            lost(row=row(alive=1, held={0: 1})), [], id="a-node-is-not-lost-while-a-worker-is-alive"
        ),
        pytest.param(
            lost(spec={"suspend": True}, row=row(worker_limit=0, alive=0, held={})),
            [ResizeJob("nightly-1-1", 0)],
            id="a-lost-node-of-a-suspended-batch",
        ),
        pytest.param(
            lost(jobs=[job(active=2, ready=0, terminating=0)]), [], id="pods-that-only-start-are-not-lost"
        ),
        pytest.param(
            seen(row=row(round=2, alive=0, held={}), jobs=[ended_job("Complete", 5)]),
            [CreateJob(2, 2)],
            id="a-retry-is-a-new-rounds-job-at-once",
        ),
        pytest.param(
            seen(row=row(round=2), jobs=[ended_job("Complete", 5), job(2, round=2)]),
            [DeleteJob("nightly-1-1")],
            id="the-job-of-the-round-before-goes",
        ),
        pytest.param(seen(spec={"stop": "Drain"}), [levers(2, stop="drain")], id="stop-drain"),
        pytest.param(seen(spec={"stop": "Cancel"}), [levers(2, stop="cancel")], id="stop-cancel"),
        pytest.param(seen(row=row(stop="drain")), [], id="the-command-line-may-stop-it"),
        pytest.param(
            seen(spec={"stop": "Drain"}, row=row(stop="cancel")),
            [levers(2, stop="drain")],
            id="the-spec-wins-over-the-command-line",
        ),
        pytest.param(seen(spec={"maxConcurrent": 3}), [levers(2, 3)], id="max-concurrent-is-a-lever-alone"),
        pytest.param(seen(row=row(max_concurrent=None)), [levers(2)], id="max-concurrent-was-never-set"),
        pytest.param(seen(spec={"activeDeadlineSeconds": 51}), [], id="before-the-active-deadline"),
        pytest.param(
            seen(spec={"activeDeadlineSeconds": 50}),
            [levers(2, stop="cancel")],
            id="past-the-active-deadline",
        ),
        pytest.param(
            seen(
                spec={"activeDeadlineSeconds": 1},
                status=status(start_time=None),
                row=row(first_worker_at=None),
            ),
            [],
            id="the-active-deadline-begins-with-the-first-worker",
        ),
        pytest.param(
            planned(spec={"startDeadlineSeconds": 1}, jobs=[job(ready=0)], budget=2),
            [levers(0, stop="cancel")],
            id="past-the-start-deadline",
        ),
        pytest.param(
            planned(spec={"startDeadlineSeconds": 2}, jobs=[job(ready=0)], budget=2),
            [],
            id="before-the-start-deadline",
        ),
        pytest.param(new(spec={"startDeadlineSeconds": 1}), [], id="too-late-to-be-planned"),
        pytest.param(
            failed_unplanned(ago_s=20, ttl_s=20), [DeleteBatch()], id="what-was-never-planned-goes-too"
        ),
        pytest.param(failed_unplanned(ago_s=20, ttl_s=21), [], id="what-was-never-planned-stays-its-time"),
        pytest.param(
            seen(spec={"startDeadlineSeconds": 1}), [], id="the-start-deadline-is-met-once-a-worker-has-begun"
        ),
        pytest.param(
            planned(spec={"startDeadlineSeconds": 1, "suspend": True}, row=row(worker_limit=0)),
            [],
            id="no-start-deadline-while-suspended",
        ),
        pytest.param(
            planned(
                spec={"startDeadlineSeconds": 30},
                created_s=NOW_S - 900,
                status=status(condition("Suspended", "False", ago_s=29), start_time=None, revision=None),
            ),
            [CreateJob(1, 2), SetBudget(2)],
            id="the-start-deadline-begins-anew-when-it-is-resumed",
        ),
        pytest.param(
            seen(
                condition("Failed", "True", "StartDeadlineExceeded"), row=row(worker_limit=0, stop="cancel")
            ),
            [ResizeJob("nightly-1-1", 0)],
            id="what-has-failed-stays-failed",
        ),
        pytest.param(
            seen(
                row=row(round=2, first_worker_at=None, alive=0, held={}),
                jobs=[],
                spec={"startDeadlineSeconds": 1},
            ),
            [CreateJob(2, 2)],
            id="a-retry-has-no-start-deadline",
        ),
        pytest.param(
            seen(condition("Failed", "True", "Invalid")),
            [],
            id="a-spec-that-was-mended-goes-on-as-if-nothing-had-been",
        ),
        pytest.param(
            new(status=status(condition("Failed", "True", "Invalid"), start_time=None)),
            [PlanTasks()],
            id="a-spec-that-was-mended-is-planned",
        ),
    ],
)
def test_the_steps_of_an_open_batch(observed: Observed, steps: list[Step]) -> None:
    assert steps_of(observed) == steps


@pytest.mark.parametrize(
    ("observed", "steps"),
    [
        pytest.param(seen(row=closed_row(), jobs=[ended_job("Complete", 5)], budget=0), [], id="all-is-done"),
        pytest.param(
            seen(row=closed_row(), jobs=[ended_job("Complete", 5)]), [SetBudget(0)], id="it-needs-no-budget"
        ),
        pytest.param(seen(row=closed_row(), budget=0), [], id="its-job-ends-by-itself"),
        pytest.param(
            seen(row=closed_row(closed_at=NOW_S - ENDING_S), budget=0),
            [DeleteJob("nightly-1-1")],
            id="a-job-that-does-not-end-goes",
        ),
        pytest.param(
            standing(row=closed_row()), [DeleteJob("nightly-1-1")], id="a-suspended-job-ends-never-and-goes"
        ),
        pytest.param(
            seen(row=closed_row(), jobs=[], budget=0, spec={"ttlSecondsAfterFinished": 11}),
            [],
            id="within-its-ttl",
        ),
        pytest.param(
            seen(row=closed_row(), jobs=[], budget=0, spec={"ttlSecondsAfterFinished": 10}),
            [DeleteBatch()],
            id="past-its-ttl",
        ),
        pytest.param(
            seen(
                row=closed_row(), jobs=[], budget=0, spec={"workers": 9, "stop": "Cancel"}, digest="another"
            ),
            [],
            id="a-new-spec-changes-nothing",
        ),
    ],
)
def test_the_steps_of_a_closed_batch(observed: Observed, steps: list[Step]) -> None:
    assert plan(observed) == steps


@pytest.mark.parametrize(
    ("observed", "looks"),
    [
        pytest.param(seen(), False, id="all-are-ready"),
        pytest.param(seen(jobs=[job(ready=1)]), True, id="one-is-not-ready"),
        pytest.param(
            seen(jobs=[job(ready=0, started_s=NOW_S - TROUBLE_S + 1)]), False, id="it-has-just-begun"
        ),
        pytest.param(standing(), False, id="there-are-to-be-none"),
    ],
)
def test_pods_are_looked_at_when_they_should_be_ready(observed: Observed, looks: bool) -> None:
    assert (LookAtPods("nightly-1-1") in plan(observed)) == looks


@pytest.mark.parametrize(
    ("observed", "wait_s"),
    [
        pytest.param(seen(), None, id="events-tell-the-rest"),
        pytest.param(new(), None, id="not-planned"),
        pytest.param(held_up(2), RETRY_S - 2, id="an-obstacle"),
        pytest.param(seen(spec={"activeDeadlineSeconds": 90}), 40, id="the-active-deadline"),
        pytest.param(seen(spec={"activeDeadlineSeconds": 50}), None, id="the-active-deadline-is-over"),
        pytest.param(new(spec={"startDeadlineSeconds": 90}), 89, id="the-start-deadline"),
        pytest.param(
            new(spec={"startDeadlineSeconds": 1, "ttlSecondsAfterFinished": 9}, created_s=NOW_S - 5),
            5,
            id="the-time-to-live-of-what-fails-now",
        ),
        pytest.param(failed_unplanned(ago_s=20, ttl_s=50), 30, id="the-time-to-live-of-what-has-failed"),
        pytest.param(
            new(
                spec={"startDeadlineSeconds": 90},
                created_s=NOW_S - 900,
                status=status(condition("Suspended", "False", ago_s=30), start_time=None),
            ),
            60,
            id="the-start-deadline-since-it-was-resumed",
        ),
        pytest.param(
            new(spec={"startDeadlineSeconds": 90, "suspend": True}, created_s=NOW_S - 900),
            None,
            id="no-start-deadline-while-suspended",
        ),
        pytest.param(new(spec={"startDeadlineSeconds": 1}), None, id="the-start-deadline-is-over"),
        pytest.param(
            held_up(900, spec={"startDeadlineSeconds": 1}), None, id="an-obstacle-of-what-has-failed"
        ),
        pytest.param(held_up(900, spec={"suspend": True}), None, id="an-obstacle-of-what-is-suspended"),
        pytest.param(shrinking(), DRAIN_LOOK_S, id="a-drain"),
        pytest.param(seen(jobs=[job(ready=1)]), TROUBLE_S, id="a-pod-that-is-not-ready"),
        pytest.param(failed(20), RESTART_S - 20, id="the-rest-after-a-failed-job"),
        pytest.param(
            failed(900, spec={"suspend": True}, row=row(worker_limit=0)),
            None,
            id="a-failed-job-while-suspended",
        ),
        pytest.param(seen(row=closed_row(), jobs=[job()]), ENDING_S - 10, id="a-job-that-should-end"),
        pytest.param(seen(row=closed_row(), jobs=[ended_job("Complete", 5)]), None, id="all-is-done"),
        pytest.param(seen(row=closed_row(), jobs=[], spec={"ttlSecondsAfterFinished": 30}), 20, id="the-ttl"),
        pytest.param(
            seen(spec={"activeDeadlineSeconds": 90}, jobs=[job(ready=1)]), TROUBLE_S, id="whatever-is-first"
        ),
    ],
)
def test_when_to_look_again(observed: Observed, wait_s: float | None) -> None:
    """None: only what an event tells of can change anything, so nobody looks in vain."""
    assert again_s(observed) == wait_s


def test_a_closed_batch_is_never_too_late() -> None:
    """It was cancelled before a worker began."""
    ended = seen(row=closed_row(), jobs=[], status=status(start_time=None), spec={"startDeadlineSeconds": 1})

    assert not ended.has_failed


def test_an_obstacle_of_before_the_clock_was_set_back_is_tried_again() -> None:
    ahead = planned(obstacle=trouble("SecretMissing", ago_s=-3600))

    assert plan(ahead) == [CreateJob(1, 2), SetBudget(2)]


def test_a_batch_that_closed_in_time_is_never_overdue() -> None:
    """It took 40 of 50 s; that it is looked at later does not make it longer."""
    ended = seen(row=closed_row(closed_at=NOW_S - 10), jobs=[], spec={"activeDeadlineSeconds": 45})

    assert not ended.is_overdue


@pytest.mark.parametrize(
    ("closed_ago_s", "since_ago_s"), [(5, 5), (None, 0)], ids=["seen-closed", "closed-and-retried-unseen"]
)
def test_a_retry_has_an_active_deadline_of_its_own(closed_ago_s: int | None, since_ago_s: int) -> None:
    """The workers of the round before, which have not read yet that it was closed, go on in this one."""
    before = None if closed_ago_s is None else written(NOW_S - closed_ago_s)
    again = seen(
        row=row(round=2, first_worker_at=NOW_S - 3600),
        status=status(start_time=written(NOW_S - 3600), completion_time=before),
        spec={"activeDeadlineSeconds": 600},
    )

    assert again.started_s == NOW_S - since_ago_s
    assert not again.is_overdue


def test_a_retry_begins_with_its_first_worker() -> None:
    again = seen(
        row=row(round=2, first_worker_at=NOW_S - 20),
        status=status(start_time=written(NOW_S - 3600), completion_time=written(NOW_S - 100)),
    )

    assert again.started_s == NOW_S - 20


@pytest.mark.parametrize(
    ("counts", "has_failed"),
    [
        (tasks(ready=8, ok=2), False),
        (tasks(ready=10, leased=1), False),
        (tasks(ready=9, waiting_throttled=1), False),
        (tasks(ready=9, dead_bug=1), False),
        (tasks(ready=9, dead_auth=1), True),
        (tasks(ready=10), True),
    ],
    ids=["ok", "at-work", "waiting", "dead", "dead-on-arrival", "nothing"],
)
def test_a_start_deadline_is_met_by_workers_that_have_ended(counts: Counts, has_failed: bool) -> None:
    """They came, crawled and were drained while no operator looked."""
    away = planned(
        spec={"startDeadlineSeconds": 1},
        row=row(alive=0, held={}, first_worker_at=None, counts=counts),
        jobs=[job(ready=0)],
    )

    assert away.has_failed == has_failed
