"""Whether the workers of a batch, and batches of a source, share its permits evenly, and how soon a newcomer gets its part."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from figures import Figure, at_most
from rig import Bed, Rig, await_that

from crawlfleet.planner import Selector

PERMITS, SLOTS, CRAWL_S = 30, 50, 2.0
USERS = 1800
WATCH_S, LOOK_S = 20.0, 0.25
NEWCOMER_S, TOLERANCE = 10.0, 1

_HELD_BY_WORKER = "select w.ordinal, count(p.lease_id)"
_HELD_BY_BATCH = "select w.batch_id, count(p.lease_id)"
_FROM = " from worker w left join permit p using (worker_id) where w.ended_at is null group by 1"


def measure(rig: Rig) -> list[Figure]:
    """Two workers and a third that joins; two batches and a third that joins. Both at once: they mostly wait."""
    with ThreadPoolExecutor(2) as threads:
        halves = [threads.submit(half, rig) for half in (_workers, _batches)]
    return [figure for half in halves for figure in half.result()]


def _workers(rig: Rig) -> list[Figure]:
    with rig.bed(PERMITS) as bed, ExitStack() as stack:
        bed.add_accounts({"duration_s": CRAWL_S} for _ in range(USERS))
        bed.plan("even", workers=3)
        stack.enter_context(bed.workers("even", range(2), SLOTS))
        _until_even(bed, _HELD_BY_WORKER, 2)
        two = _watch(bed, _HELD_BY_WORKER)
        third = stack.enter_context(bed.workers("even", [2], SLOTS))[0]
        third.worker_id()
        third_s = _until_even(bed, _HELD_BY_WORKER, 3)
        three = _watch(bed, _HELD_BY_WORKER)
    return [
        _evenness("30 permits, 2 workers of 50 slots: away from 15", two, 2),
        at_most("… a third worker holds its third after", third_s, NEWCOMER_S, "s"),
        _evenness("… then away from 10", three, 3),
    ]


def _batches(rig: Rig) -> list[Figure]:
    with rig.bed(PERMITS) as bed, ExitStack() as stack:
        bed.add_accounts({"duration_s": CRAWL_S} for _ in range(USERS))
        for remainder, uid in enumerate(("one", "two", "three")):
            bed.plan(uid, workers=1, selector=Selector(divisor=3, remainder=remainder))
        stack.enter_context(bed.workers("one", [0], SLOTS))
        _until_even(bed, _HELD_BY_BATCH, 1)
        joined_s, watched = [], []
        for parts, uid in ((2, "two"), (3, "three")):
            newcomer = stack.enter_context(bed.workers(uid, [0], SLOTS))[0]
            newcomer.worker_id()
            joined_s.append(_until_even(bed, _HELD_BY_BATCH, parts))
            watched.append(_watch(bed, _HELD_BY_BATCH))
    return [
        at_most("2 batches: the second holds its half after", joined_s[0], NEWCOMER_S, "s"),
        _evenness("… then away from 15", watched[0], 2),
        at_most("… a third batch holds its third after", joined_s[1], NEWCOMER_S, "s"),
        _evenness("… then away from 10", watched[1], 3),
    ]


def _held(bed: Bed, query: str) -> dict[int, int]:
    """Permits by worker or by batch, now."""
    return dict(bed.conn.execute(query + _FROM).fetchall())


def _watch(bed: Bed, query: str) -> list[Mapping[int, int]]:
    """What each holds, from this moment on."""
    samples: list[Mapping[int, int]] = []
    for _ in range(round(WATCH_S / LOOK_S)):
        samples.append(_held(bed, query))
        time.sleep(LOOK_S)
    return samples


def _until_even(bed: Bed, query: str, parts: int) -> float:
    """Seconds until each part holds as much as any other, and all permits are held."""
    began_s = time.monotonic()
    await_that(lambda: _away(_held(bed, query), parts) <= TOLERANCE, 60, f"{parts} even parts")
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
