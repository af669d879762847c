"""How close a batch of very different crawls comes to the shortest time possible, also when a worker is killed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import floor, log2
from random import Random

from figures import Figure, at_most
from rig import Bed, Held, Rig, Worker, await_end, await_that

from crawlfleet.store.fleet import Clock, set_clock

USERS, PERMITS, WORKERS = 1000, 20, 4
SIGMA, SEEDS, IDEAL_S = 1.5, (20, 22, 23), 20.0
CLOCK = Clock(tick_s=0.2, expire_ticks=10, quarantine_ticks=5)
BAR = 1.05


@dataclass(frozen=True)
class Kill:
    """At `at_s` the crawls of `users` are lost; they and their permits come back at `back_s`."""

    at_s: float
    back_s: float
    users: frozenset[int]


@dataclass(frozen=True)
class Run:
    """How long a batch took, and how long it would have taken at best."""

    seed: int
    took_s: float
    ideal_s: float
    remark: str

    @property
    def times_ideal(self) -> float:
        return self.took_s / self.ideal_s


def durations(seed: int) -> dict[int, float]:
    """User → seconds: lognormal, so that all permits busy would take IDEAL_S."""
    random = Random(seed)
    raw = [random.lognormvariate(0, SIGMA) for _ in range(USERS)]
    scale = IDEAL_S * PERMITS / sum(raw)
    return {user: round(scale * s, 3) for user, s in enumerate(raw, 1)}


def measure(rig: Rig) -> list[Figure]:
    """The makespan against max(sum / permits, longest), and with a kill against an ideal replay of it."""
    return [
        _worst(
            "makespan of 1,000 lognormal crawls, 4 workers",
            "times ideal",
            [_undisturbed(rig, seed, durations(seed)) for seed in SEEDS],
        ),
        _worst(
            "… one of the four killed -9 halfway",
            "times the replay",
            [_with_a_kill(rig, seed, durations(seed)) for seed in SEEDS],
        ),
    ]


def _worst(name: str, unit: str, runs: Sequence[Run]) -> Figure:
    """The run that came least close."""
    worst = max(runs, key=lambda run: run.times_ideal)
    others = ", ".join(f"{run.times_ideal:.3g} with {run.seed}" for run in runs if run is not worst)
    said = (
        f"{worst.took_s:.2f} s against {worst.ideal_s:.2f} s with seed {worst.seed}, {worst.remark}; {others}"
    )
    return at_most(name, worst.times_ideal, BAR, unit, said)


def _undisturbed(rig: Rig, seed: int, crawl_s: Mapping[int, float]) -> Run:
    with rig.bed(PERMITS) as bed:
        _prepare(bed, crawl_s)
        with bed.workers("makespan", range(WORKERS), slots=PERMITS) as workers:
            await_end(workers, 120)
        took_s = _makespan_s(bed.leases())
    longest_s = max(crawl_s.values())
    ideal_s = max(sum(crawl_s.values()) / PERMITS, longest_s)
    return Run(seed, took_s, ideal_s, f"the longest crawl takes {longest_s:.1f} s")


def _with_a_kill(rig: Rig, seed: int, crawl_s: Mapping[int, float]) -> Run:
    with rig.bed(PERMITS) as bed:
        _prepare(bed, crawl_s)
        with bed.workers("makespan", range(WORKERS), slots=PERMITS) as workers:
            began_at, killed_at = _kill_halfway(bed, workers[1])
            await_end([w for w in workers if w is not workers[1]], 120)
        leases = bed.leases()
    lost = frozenset(user for user, n in Counter(lease.user_id for lease in leases).items() if n > 1)
    absent_s = (CLOCK.expire_ticks + CLOCK.quarantine_ticks) * CLOCK.tick_s
    kill = Kill(killed_at - began_at, killed_at - began_at + absent_s, lost)
    remark = f"killed after {kill.at_s:.1f} s, {len(lost)} crawls lost"
    return Run(seed, _makespan_s(leases), replay_s(crawl_s, PERMITS, kill), remark)


def _prepare(bed: Bed, crawl_s: Mapping[int, float]) -> None:
    """Accounts of one tier whose costs are known from earlier crawls, and their batch."""
    set_clock(bed.conn, CLOCK)
    bed.audit()
    bed.add_accounts({"duration_s": crawl_s[user]} for user in sorted(crawl_s))
    bed.conn.cursor().executemany(
        "insert into track (source_id, user_id, egress_id, cost_ms) select source_id, %s, egress_id, %s from egress",
        [(user, max(1, round(s * 1000))) for user, s in crawl_s.items()],
    )
    bed.plan("makespan", workers=WORKERS)


def _kill_halfway(bed: Bed, worker: Worker) -> tuple[float, float]:
    """Kill it half the ideal time after the first lease: when that lease and the kill were, by the clock."""
    first = "select extract(epoch from min(filled_at))::float8 from held"
    await_that(lambda: bed.number(first) is not None, 60, "the first lease")
    began_at = float(bed.number(first))
    await_that(lambda: time.time() >= began_at + IDEAL_S / 2, 60, "half of the time")
    worker.kill()
    return began_at, time.time()


def _makespan_s(leases: Sequence[Held]) -> float:
    return max(lease.freed_at for lease in leases) - min(lease.filled_at for lease in leases)


def replay_s(crawl_s: Mapping[int, float], permits: int, kill: Kill) -> float:
    """The makespan if every permit took the next crawl by the fleet's own rule in the very moment it became free.

    Users of the kill that do not run at that moment here are replaced by those that began last.
    """
    todo = sorted(crawl_s, key=lambda user: _rank(crawl_s, user))
    free = [0.0] * permits
    running: list[tuple[float, float, int]] = []  # end, begin, user
    while todo and free[0] < kill.at_s:
        user, begin = todo.pop(0), heappop(free)
        running.append((begin + crawl_s[user], begin, user))
        heappush(free, begin + crawl_s[user])
    open_then = sorted(
        (r for r in running if r[0] > kill.at_s), key=lambda r: (r[2] not in kill.users, -r[1])
    )
    lost = [user for _, _, user in open_then[: len(kill.users)]]
    ends = [end for end, _, user in running if user not in lost]
    free = [end for end, _, user in open_then if user not in lost] + [kill.back_s] * len(lost)
    free += [kill.at_s] * (permits - len(free))
    heapify(free)
    return max(ends + _rest(crawl_s, todo, free, lost, kill.back_s))


def _rest(
    crawl_s: Mapping[int, float], todo: list[int], free: list[float], lost: list[int], back_s: float
) -> list[float]:
    """When the crawls end that had not begun, and the lost ones, which are in the queue from `back_s` on."""
    ends = []
    while todo or lost:
        begin = heappop(free)
        if lost and begin >= back_s:
            todo, lost = sorted(todo + lost, key=lambda user: _rank(crawl_s, user)), []
        if not todo:
            heappush(free, back_s)
            continue
        ends.append(begin + crawl_s[todo.pop(0)])
        heappush(free, ends[-1])
    return ends


def _rank(crawl_s: Mapping[int, float], user: int) -> tuple[int, int]:
    """Of one tier: the longest expected class first (log2 of milliseconds), then by number."""
    return -floor(log2(max(1, round(crawl_s[user] * 1000)))), user
