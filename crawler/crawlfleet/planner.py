"""Plan: accounts and a batch become tasks, in one transaction. Set-based; no account passes through Python.

A planner that dies leaves a batch in `planning` with no task; a second one waits for the batch's row and
then finds it running. The SQL is in `store/sql/batches.sql`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psycopg.types.json import Jsonb

from crawlfleet.errors import BadInput, CrawlfleetError
from crawlfleet.politeness import BANNED_AFTER
from crawlfleet.store.connection import Connection, transaction
from crawlfleet.store.queries import sql
from crawlfleet.store.sources import Settings

DEFAULT_COST_MS = 10_000
TIERS = ("HIGH", "MEDIUM", "LOW")


@dataclass(frozen=True)
class Selector:
    """Which users a batch crawls; all of them if nothing is set."""

    tiers: Sequence[str] | None = None
    ids: Sequence[int] | None = None
    divisor: int | None = None
    remainder: int | None = None

    def params(self) -> dict[str, Any]:
        """As `plan_tasks` takes them: tiers as numbers, 0 for HIGH."""
        tiers = None if self.tiers is None else [TIERS.index(tier) for tier in self.tiers]
        return {"tiers": tiers, "ids": self.ids, "divisor": self.divisor, "remainder": self.remainder}


@dataclass(frozen=True)
class BatchPlan:
    """A batch to be planned. `uid` is unique: the CR's uid, or local name and spec; `namespace` is the CR's."""

    uid: str
    name: str
    workers: int
    selector: Selector
    sources: Mapping[str, Settings]
    retain_s: int | None = None
    namespace: str | None = None


class NobodyToCrawl(CrawlfleetError):
    """No account matches the batch's sources and users."""


def plan_somebody(conn: Connection, batch: BatchPlan) -> int:
    """As `plan`; raises NobodyToCrawl, and leaves nothing behind, where it would plan no task."""
    try:
        return plan(conn, batch, may_be_empty=False)
    except NobodyToCrawl:
        with transaction(conn):
            conn.execute(sql("forget_unplanned"), {"uid": batch.uid})
        raise


def plan(conn: Connection, batch: BatchPlan, *, may_be_empty: bool = True) -> int:
    """Plan the batch unless it is planned already; returns its id.

    Raises BadInput if a source is not declared in this database.
    """
    batch_id = _add(conn, batch)
    with transaction(conn, long=True):
        state = conn.execute(sql("lock_batch"), {"batch": batch_id}).fetchone()
        if state is None or state[0] != "planning":
            return batch_id
        conn.execute(sql("add_tracks"), {"batch": batch_id, "banned_after": BANNED_AFTER})
        planned = conn.execute(
            sql("plan_tasks"),
            batch.selector.params()
            | {"batch": batch_id, "workers": batch.workers, "default_cost_ms": DEFAULT_COST_MS},
        ).rowcount
        if not planned and not may_be_empty:
            raise NobodyToCrawl(
                f"no enabled account of {', '.join(sorted(batch.sources))} belongs to the chosen users;"
                " `crawlfleet accounts import` adds some"
            )
        conn.execute(sql("tell_dead_on_arrival"), {"batch": batch_id})
        conn.execute(sql("start_batch"), {"batch": batch_id, "total": planned})
        conn.execute(sql("analyze"))
    return batch_id


def _add(conn: Connection, batch: BatchPlan) -> int:
    """The batch's row with the snapshot of its sources, written once."""
    with transaction(conn):
        added = conn.execute(
            sql("add_batch"),
            {
                "uid": batch.uid,
                "name": batch.name,
                "workers": batch.workers,
                "selector": Jsonb(asdict(batch.selector)),
                "retain_s": batch.retain_s,
                "namespace": batch.namespace,
            },
        ).fetchone()
        if added is None:
            return _find(conn, batch.uid)
        for name, settings in batch.sources.items():
            _add_source(conn, added[0], batch.name, name, settings)
        return int(added[0])


def _find(conn: Connection, uid: str) -> int:
    found = conn.execute(sql("find_batch"), {"uid": uid}).fetchone()
    if found is None:
        raise BadInput(f"batch {uid} was deleted while it was being planned; apply it again")
    return int(found[0])


def _add_source(conn: Connection, batch_id: int, batch: str, name: str, settings: Settings) -> None:
    row = conn.execute(
        sql("add_batch_source"), {"batch": batch_id, "name": name, "settings": Jsonb(asdict(settings))}
    ).fetchone()
    if row is None:
        raise BadInput(f"CrawlBatch {batch}: source {name!r} is not declared; apply its CrawlSource first")
