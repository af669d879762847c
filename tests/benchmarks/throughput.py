"""What the queue costs: crawls that do nothing, and the same number of Celery tasks on Redis beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from celery_rival import celery_pace
from figures import Figure, at_least, at_most, told
from machine import Cpu, Pace
from rig import Bed, Rig, Worker, await_end, await_that

READY, WITH_ITEMS = 100_000, 50_000
WORKERS, SLOTS, PERMITS = 2, 50, 100
BAR, BAR_WITH_ITEMS, TIMES_CELERY = 4000, 2000, 2
BAR_TURN_MS = 25
TURN_TASKS = READY // 5
"""The turns that count for "at 100,000 ready" are those of the first fifth."""
_TURN = "crawlfleet_turn_duration_seconds"
_CRAWLED = re.compile(r"^(\S+) info crawled .*verdict=ok", re.MULTILINE)


def measure(rig: Rig) -> list[Figure]:
    """Tasks a second of two workers, without and with items, and of two Celery workers; one turn at 100,000 ready."""
    celery = celery_pace(rig.folder)
    ours, turns = _measure(rig, READY, items=0)
    with_items, _ = _measure(rig, WITH_ITEMS, items=5)
    times = f"{ours.per_s / celery.per_s:.1f} times Celery + Redis, which made {celery}"
    return [
        at_least("tasks/s: noop, 100,000 ready, 2 workers of 50", ours.per_s, BAR, "/s", str(ours)),
        at_least(
            "… twice Celery (2 of prefork 1, late ack)", ours.per_s, TIMES_CELERY * celery.per_s, "/s", times
        ),
        at_least(
            "tasks/s with 5 items of 120 B a task", with_items.per_s, BAR_WITH_ITEMS, "/s", str(with_items)
        ),
        *_turn_figures(turns),
    ]


def _measure(rig: Rig, tasks: int, items: int) -> tuple[Pace, dict[float, float]]:
    """The pace from the first commit to the last, and the turns of the first fifth by upper bound in seconds."""
    with rig.bed(PERMITS) as bed:
        bed.settings.options.update({"items": items, "body_bytes": 120} if items else {})
        bed.add_accounts({} for _ in range(tasks))
        bed.plan("throughput", workers=WORKERS)
        before_all = Cpu.now()
        with bed.workers("throughput", range(WORKERS), SLOTS, logs="text") as workers:
            before = [worker.metrics() for worker in workers]
            await_that(
                lambda: bed.number("select last_value from lease_id") >= tasks // 5,
                120,
                "a fifth of the tasks",
            )
            turns = _turns(before, [worker.metrics() for worker in workers])
            await_end(workers, 240)
        _check_all_ok(bed, tasks)
        used_s = Cpu.now().ours_since_s(before_all)
        return Pace(tasks / _span_s(workers), used_s * 1e6 / tasks), turns


def _check_all_ok(bed: Bed, tasks: int) -> None:
    done = bed.number("select count(*) from task where state = 'ok'")
    if done != tasks:
        raise RuntimeError(f"only {done} of {tasks} tasks ended ok")


def _span_s(workers: Sequence[Worker]) -> float:
    """From the first commit to the last, by the workers' logs, which tell no date."""
    times = [time for worker in workers for time in _CRAWLED.findall(worker.log.read_text())]
    moments = [datetime.strptime(time, "%H:%M:%S.%f") for time in times]
    if max(moments) - min(moments) > timedelta(hours=12):  # midnight passed
        moments = [m + timedelta(days=m.hour < 12) for m in moments]
    return (max(moments) - min(moments)).total_seconds()


def _turns(before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]) -> dict[float, float]:
    """Upper bound in seconds → turns that took no longer, of all workers between two scrapes."""
    bounds = [
        re.search(r'_bucket\{le="(.+)"\}', name) for name in after[0] if name.startswith(_TURN + "_bucket")
    ]
    return {
        float(bound[1]): sum(
            a[_TURN + bound[0]] - b[_TURN + bound[0]] for a, b in zip(after, before, strict=True)
        )
        for bound in bounds
        if bound
    }


def _turn_figures(turns: Mapping[float, float]) -> list[Figure]:
    total = turns[float("inf")]
    within = turns[BAR_TURN_MS / 1000] / total
    said = f"{within:.2%} of {total:.0f} turns within {BAR_TURN_MS} ms; each commits and takes {TURN_TASKS / total:.0f}"
    return [
        at_most("one turn at 100,000 ready, p99", quantile_ms(turns, 0.99), BAR_TURN_MS, "ms", said),
        told("… p50", f"{quantile_ms(turns, 0.5):.3g} ms", f"both from the workers' {_TURN}"),
    ]


def quantile_ms(turns: Mapping[float, float], share: float) -> float:
    """A quantile of a cumulative histogram, linear within its bucket as Prometheus has it."""
    wanted = turns[float("inf")] * share
    for (low, below), (high, upto) in pairwise([(0.0, 0.0), *sorted(turns.items())]):
        if upto >= wanted:
            return 1000 * (low + (high - low) * (wanted - below) / (upto - below))
    raise ValueError("the histogram is empty")
