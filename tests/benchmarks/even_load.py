"""Whether the workers of a batch, and batches of a source, share its permits evenly, and how soon a newcomer gets its part."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from figures import Figure, at_most
from rig import Bed, Rig, await_that

from crawlfleet.planner import Selector

PERMITS, SLOTS, CRAWL_S = 30, 50, 2.0
USERS = 1500
SETTLE_S, WATCH_S, LOOK_S = 5.0, 12.0, 0.5
NEWCOMER_S, TOLERANCE = 10.0, 1

_HELD_BY_WORKER = "select w.ordinal, count(p.lease_id)"
_HELD_BY_BATCH = "select w.batch_id, count(p.lease_id)"
_FROM = " from worker w left join permit p using (worker_id) where w.ended_at is null group by 1"


def measure(rig: Rig) -> list[Figure]:
    """Two workers, a third that joins, and two batches."""
    return [*_workers(rig), *_batches(rig)]


def _workers(rig: Rig) -> list[Figure]:
    with rig.bed(PERMITS) as bed, ExitStack() as stack:
        bed.add_accounts({"duration_s": CRAWL_S} for _ in range(USERS))
        bed.plan("even", workers=3)
        stack.enter_context(bed.workers("even", range(2), SLOTS))
        _await_holders(bed, 2)
        watched = _watch(bed, _HELD_BY_WORKER)
        third = stack.enter_context(bed.workers("even", [2], SLOTS))[0]
        third.worker_id()
        share_s = _until_even(lambda: _held(bed, _HELD_BY_WORKER), 3)
        after = _watch(bed, _HELD_BY_WORKER)
    return [
        _evenness("30 permits, 2 workers of 50 slots: away from 15", watched, 2),
        at_most("… a third worker holds its third after", share_s, NEWCOMER_S, "s"),
        _evenness("… then away from 10", after, 3),
    ]


def _batches(rig: Rig) -> list[Figure]:
    with rig.bed(PERMITS) as bed, ExitStack() as stack:
        bed.add_accounts({"duration_s": CRAWL_S} for _ in range(USERS))
        for remainder, uid in enumerate(("one", "two")):
            bed.plan(uid, workers=1, selector=Selector(divisor=2, remainder=remainder))
        stack.enter_context(bed.workers("one", [0], SLOTS))
        _await_holders(bed, 1)
        second = stack.enter_context(bed.workers("two", [0], SLOTS))[0]
        second.worker_id()
        share_s = _until_even(lambda: _held(bed, _HELD_BY_BATCH), 2)
        watched = _watch(bed, _HELD_BY_BATCH)
    return [
        at_most("2 batches: the second holds its half after", share_s, NEWCOMER_S, "s"),
        _evenness("… then away from 15", watched, 2),
    ]


def _held(bed: Bed, query: str) -> dict[int, int]:
    """Permits by worker or by batch, now."""
    return dict(bed.conn.execute(query + _FROM).fetchall())


def _await_holders(bed: Bed, workers: int) -> None:
    """Until all permits are filled and so many workers hold some, and then until it has settled."""
    await_that(
        lambda: (
            len(held := _held(bed, _HELD_BY_WORKER)) == workers
            and sum(held.values()) == PERMITS
            and min(held.values()) > 0
        ),
        60,
        f"{workers} workers that hold {PERMITS} permits",
    )
    time.sleep(SETTLE_S)


def _watch(bed: Bed, query: str) -> list[Mapping[int, int]]:
    """What each holds, twice a second."""
    samples: list[Mapping[int, int]] = []
    for _ in range(round(WATCH_S / LOOK_S)):
        samples.append(_held(bed, query))
        time.sleep(LOOK_S)
    return samples


def _until_even(held: Callable[[], Mapping[int, int]], parts: int) -> float:
    began_s = time.monotonic()
    await_that(lambda: _away(held(), parts) <= TOLERANCE, 60, f"{parts} even parts")
    return time.monotonic() - began_s


def _away(held: Mapping[int, int], parts: int) -> float:
    """The greatest distance from an even part; all of it if somebody is missing."""
    if len(held) != parts:
        return PERMITS
    return max(abs(n - PERMITS / parts) for n in held.values())


def _evenness(name: str, samples: list[Mapping[int, int]], parts: int) -> Figure:
    everybody = [n for held in samples for n in held.values()]
    said = f"{len(samples)} samples in {WATCH_S:.0f} s, each held {min(everybody)} to {max(everybody)}"
    return at_most(name, max(_away(held, parts) for held in samples), TOLERANCE, "permits", said)
