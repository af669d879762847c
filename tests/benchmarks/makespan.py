"""How close a batch of very different crawls comes to the shortest time possible, also when a worker is killed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from random import Random

from figures import Figure, at_most
from rig import Bed, Held, Rig, Worker, await_end, await_that

from crawlfleet.store.fleet import Clock, set_clock

USERS, PERMITS, WORKERS = 1000, 20, 4
SIGMA, SEED, IDEAL_S = 1.5, 20, 20.0
CLOCK = Clock(tick_s=0.2, expire_ticks=10, quarantine_ticks=5)
BAR = 1.05


@dataclass(frozen=True)
class Kill:
    """At `at_s` the crawls of `users` are lost; they and their permits come back at `back_s`."""

    at_s: float
    back_s: float
    users: frozenset[int]


def durations() -> dict[int, float]:
    """User → seconds: lognormal, so that all permits busy would take IDEAL_S."""
    random = Random(SEED)
    raw = [random.lognormvariate(0, SIGMA) for _ in range(USERS)]
    scale = IDEAL_S * PERMITS / sum(raw)
    return {user: round(scale * s, 3) for user, s in enumerate(raw, 1)}


def measure(rig: Rig) -> list[Figure]:
    """The makespan against max(sum / permits, longest), and with a kill against an ideal replay of it."""
    crawl_s = durations()
    return [_undisturbed(rig, crawl_s), _with_a_kill(rig, crawl_s)]


def _undisturbed(rig: Rig, crawl_s: Mapping[int, float]) -> Figure:
    with rig.bed(PERMITS) as bed:
        _prepare(bed, crawl_s)
        with bed.workers("makespan", range(WORKERS), slots=PERMITS) as workers:
            await_end(workers, 120)
        took_s = _makespan_s(bed.leases())
    ideal_s = max(sum(crawl_s.values()) / PERMITS, *crawl_s.values())
    said = f"{took_s:.2f} s against {ideal_s:.2f} s; the longest crawl takes {max(crawl_s.values()):.1f} s"
    return at_most(
        "makespan of 1,000 lognormal crawls, 4 workers", took_s / ideal_s, BAR, "times ideal", said
    )


def _with_a_kill(rig: Rig, crawl_s: Mapping[int, float]) -> Figure:
    with rig.bed(PERMITS) as bed:
        _prepare(bed, crawl_s)
        with bed.workers("makespan", range(WORKERS), slots=PERMITS) as workers:
            began_at, killed_at = _kill_halfway(bed, workers[1])
            await_end([w for w in workers if w is not workers[1]], 120)
        leases = bed.leases()
    order = list(dict.fromkeys(lease.user_id for lease in leases))
    lost = frozenset(user for user, n in Counter(lease.user_id for lease in leases).items() if n > 1)
    absent_s = (CLOCK.expire_ticks + CLOCK.quarantine_ticks) * CLOCK.tick_s
    kill = Kill(killed_at - began_at, killed_at - began_at + absent_s, lost)
    took_s, ideal_s = _makespan_s(leases), replay_s(crawl_s, order, PERMITS, kill)
    said = f"{took_s:.2f} s against {ideal_s:.2f} s; killed after {kill.at_s:.1f} s, {len(lost)} crawls lost"
    return at_most("… one of the four killed -9 halfway", took_s / ideal_s, BAR, "times the replay", said)


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


def replay_s(crawl_s: Mapping[int, float], order: Sequence[int], permits: int, kill: Kill) -> float:
    """The makespan if every permit took the next crawl of `order` in the very moment it became free.

    Users of the kill that do not run at that moment here are replaced by those that began last.
    """
    todo = list(reversed(order))
    free = [0.0] * permits
    running: list[tuple[float, float, int]] = []  # end, begin, user
    while todo and free[0] < kill.at_s:
        user, begin = todo.pop(), heappop(free)
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
    waiting = sorted(lost, key=order.index, reverse=True)
    while todo or waiting:
        begin = heappop(free)
        if waiting and begin >= kill.back_s:
            user = waiting.pop()
        elif todo:
            user = todo.pop()
        else:
            heappush(free, kill.back_s)
            continue
        ends.append(begin + crawl_s[user])
        heappush(free, ends[-1])
    return max(ends)
