"""The crawls that the fleet was built for, at a tenth of their length: 10 permits of 3 s, 20 permits of 1 s."""

from __future__ import annotations

from dataclasses import dataclass

from figures import Figure, at_most
from rig import Rig, await_end, peak


@dataclass(frozen=True)
class Load:
    """100 crawls of that length on that many permits, and how long they may take."""

    duration_s: float
    permits: int
    bar_s: float


CRAWLS = 100
LOADS = (Load(3.0, 10, 32.0), Load(1.0, 20, 5.5))


def measure(rig: Rig) -> list[Figure]:
    """From the first lease to the last commit, with one worker and with four, and the most permits held at once."""
    return [figure for load in LOADS for workers in (1, 4) for figure in _measure(rig, load, workers)]


def _measure(rig: Rig, load: Load, workers: int) -> list[Figure]:
    with rig.bed(load.permits) as bed:
        bed.audit()
        bed.add_accounts({"duration_s": load.duration_s} for _ in range(CRAWLS))
        bed.plan("seed", workers=workers)
        with bed.workers("seed", range(workers), slots=load.permits) as started:
            await_end(started, load.bar_s + 60)
        leases = bed.leases()
        crawl_s = {lease: s for worker in started for lease, s in worker.crawl_seconds().items()}
    took_s = max(lease.freed_at for lease in leases) - min(lease.filled_at for lease in leases)
    # A crawl ended at its commit at the latest; one that ran without its permit would reach before its filling.
    crawls = peak((lease.freed_at - crawl_s[lease.lease_id], lease.freed_at) for lease in leases)
    permits = peak((lease.filled_at, lease.freed_at) for lease in leases)
    name = f"{CRAWLS} crawls of {load.duration_s:g} s on {load.permits} permits, {workers} worker{'s' * (workers > 1)}"
    ideal_s = CRAWLS * load.duration_s / load.permits
    return [
        at_most(name, took_s, load.bar_s, "s", f"ideal {ideal_s:g} s"),
        at_most(
            "… crawls at once (permits filled)",
            max(crawls, permits),
            load.permits,
            "",
            f"{crawls} ({permits})",
        ),
    ]
