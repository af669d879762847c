"""What an operator reads of all batches and sources at a time, and what it sets: the levers of a CrawlBatch, and who owns what."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from crawlfleet.store.batches import Counts
from crawlfleet.store.connection import Connection, transaction
from crawlfleet.store.queries import sql

Namespaces = Sequence[str] | None
"""Those an operator looks after; None for all."""


@dataclass(frozen=True)
class BatchRow:
    """One batch. Times are seconds since the epoch. `adapters` are those of its sources as it was planned.

    Only while it runs: `first_worker_at`, `alive` (workers that renew) and `held` (WORKER_ID → permits of its registrations
    that have not ended).
    """

    uid: str
    namespace: str
    name: str
    state: str
    round: int
    stop: str
    worker_limit: int
    max_concurrent: int | None
    total: int
    closed_at: float | None
    adapters: Sequence[str]
    job_timeout_s: float
    counts: Counts
    first_worker_at: float | None
    alive: int
    held: Mapping[int, int]

    def held_above(self, workers: int) -> int:
        """Permits of workers whose WORKER_ID is not below that."""
        return sum(permits for ordinal, permits in self.held.items() if ordinal >= workers)


@dataclass(frozen=True)
class SourceRow:
    """One source: its permits, the cuts of its egresses, the tasks that wait after a throttle. `cool_until` (since the epoch)
    is set while all its egresses cool: then the first of them is open again."""

    name: str
    namespace: str | None
    total: int
    held: int
    cooling: int
    blocked: int
    throttled: int
    cool_until: float | None


@dataclass(frozen=True)
class Levers:
    """What a CrawlBatch says of a batch that runs. `stop` None leaves what the command line said."""

    worker_limit: int
    max_concurrent: int
    stop: str | None

    def are_set(self, row: BatchRow) -> bool:
        """Whether the database has them already."""
        stop = row.stop if self.stop is None else self.stop
        return (self.worker_limit, self.max_concurrent, stop) == (
            row.worker_limit,
            row.max_concurrent,
            row.stop,
        )


def look(conn: Connection, namespaces: Namespaces, uid: str | None = None) -> dict[str, BatchRow]:
    """The batches of these namespaces by uid, or that one alone."""
    with transaction(conn):
        found = conn.execute(sql("overview"), {"namespaces": namespaces, "uid": uid}).fetchall()
    rows = [BatchRow(*columns) for columns in found]
    return {row.uid: replace(row, counts=_counts(row.counts), held=_by_worker(row.held)) for row in rows}


def _counts(tasks: Any) -> Counts:
    """From JSON: a list of [source, state, verdict, number]."""
    counts: Counts = {}
    for source, state, verdict, number in tasks:
        counts.setdefault(source, {})[state, verdict] = number
    return counts


def _by_worker(held: Mapping[Any, int]) -> dict[int, int]:
    """From JSON, whose keys are text."""
    return {int(ordinal): permits for ordinal, permits in held.items()}


def sources(conn: Connection) -> dict[str, SourceRow]:
    """Every source by name."""
    with transaction(conn):
        return {row[0]: SourceRow(*row) for row in conn.execute(sql("source_states"))}


def set_levers(conn: Connection, uid: str, levers: Levers) -> None:
    """Workers see it with their next turn. A closed batch has none."""
    with transaction(conn):
        conn.execute(sql("set_levers"), {"uid": uid, **asdict(levers)})


def forget_batch(conn: Connection, uid: str, retain_s: int) -> None:
    """Its CrawlBatch is gone: cancel it if it is open, and let housekeeping delete it so long after it closed.

    Waits for a planner that is at it, and forgets what that one has planned.
    """
    with transaction(conn):
        conn.execute(sql("forget_unplanned"), {"uid": uid})
        conn.execute(sql("forget_batch"), {"uid": uid, "retain_s": retain_s})


def orphaned_batches(conn: Connection, namespaces: Namespaces, uids: Collection[str]) -> list[str]:
    """The uids of batches in these namespaces that are none of `uids` and were not forgotten yet."""
    found = conn.execute(sql("orphaned_batches"), {"namespaces": namespaces, "uids": list(uids)})
    return [uid for (uid,) in found]


def claimed_sources(conn: Connection, namespaces: Namespaces) -> list[tuple[str, str]]:
    """(name, namespace) of the sources that belong to these namespaces."""
    return conn.execute(sql("claimed_sources"), {"namespaces": namespaces}).fetchall()


def release_source(conn: Connection, name: str, namespace: str) -> bool:
    """Its CrawlSource is gone: name and exits are free again; False while an open batch still crawls by them."""
    with transaction(conn):
        released = conn.execute(sql("release_source"), {"name": name, "namespace": namespace}).fetchone()
        if released is not None:
            conn.execute(sql("lock_all_egresses"))
            conn.execute(sql("remove_egresses"), {"source": released[0]})
    return released is not None
