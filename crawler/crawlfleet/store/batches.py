"""What people do with batches (retry, cancel, drain) and what they read of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from crawlfleet.errors import BadInput
from crawlfleet.store.connection import Connection, transaction
from crawlfleet.store.queries import sql


@dataclass(frozen=True)
class Batch:
    """One batch. `seconds` since its plan, until it closed."""

    batch_id: int
    uid: str
    name: str
    round: int
    state: str
    stop: str
    suspended: bool
    total: int
    workers: int
    seconds: float | None
    started_at: datetime | None
    closed_at: datetime | None

    @property
    def short_uid(self) -> str:
        """What tells it from others of its name: commands take it, too (`batch_by_name`)."""
        return self.uid[-12:]


@dataclass(frozen=True)
class Wait:
    """Why work of an egress does not begin. `silent` permits belong to a worker that no longer renews."""

    source: str
    egress: str
    cap: int
    open: int
    held: int
    cool_s: float
    removed: bool
    cuts_in_row: int
    silent: int


@dataclass(frozen=True)
class Failure:
    """What tasks of a source died of: how many of them, one of the users, and that user's last words."""

    source: str
    verdict: str
    reason: str
    tasks: int
    user_id: int
    detail: str


@dataclass(frozen=True)
class LiveWorker:
    """A registration that has not ended. `ordinal` is its WORKER_ID; `silent`: it does not renew any more."""

    worker_id: int
    ordinal: int
    host: str
    pid_space: str
    pid: int
    slots: int
    draining: bool
    silent: bool
    held: int


Counts = dict[str, dict[tuple[str, str | None], int]]
"""Source → (task state, last verdict) → tasks."""


def find(conn: Connection, name: str) -> Batch | None:
    """The newest batch of that name, or the one with that uid."""
    row = conn.execute(sql("batch_by_name"), {"name": name}).fetchone()
    return None if row is None else Batch(*row)


def namesakes(conn: Connection, name: str, uid: str) -> list[tuple[str, str]]:
    """(uid, state) of the other batches of that name, the newest first."""
    return conn.execute(sql("namesakes"), {"name": name, "uid": uid}).fetchall()


def recent(conn: Connection) -> list[Batch]:
    """The newest batches, newest first."""
    return [Batch(*row) for row in conn.execute(sql("recent_batches"))]


def counts(conn: Connection, batch_id: int) -> Counts:
    """The batch's tasks as housekeeping last counted them."""
    found: Counts = {}
    for source, state, verdict, tasks in conn.execute(sql("read_progress"), {"batch": batch_id}):
        found.setdefault(source, {})[state, verdict] = tasks
    return found


def waits(conn: Connection, batch_id: int) -> list[Wait]:
    """The permits of the batch's sources, by egress."""
    return [Wait(*row) for row in conn.execute(sql("waits"), {"batch": batch_id})]


def next_retry_s(conn: Connection, batch_id: int) -> float | None:
    """Seconds until the first waiting task is due; None if none waits."""
    row = conn.execute(sql("next_retry"), {"batch": batch_id}).fetchone()
    return None if row is None else row[0]


def retry(conn: Connection, batch_id: int, verdict: str | None) -> int:
    """Make dead and cancelled tasks ready again; on a closed batch this opens a new round. Returns how many.

    Takes the lock that closing takes, so that a batch never closes over a task that was just revived.
    """
    with transaction(conn, long=True):
        found = conn.execute(sql("lock_batch"), {"batch": batch_id}).fetchone()
        if found is None or found[1]:
            raise BadInput("the batch is past its retention and being deleted; plan a new one")
        revived = conn.execute(sql("retry_dead"), {"batch": batch_id, "verdict": verdict}).rowcount
        if revived:
            conn.execute(sql("reopen_batch"), {"batch": batch_id})
    return revived


def left_dead(conn: Connection, batch_id: int, verdict: str | None) -> int:
    """How many dead tasks such a retry leaves, because nobody can log in to their accounts."""
    with transaction(conn, long=True):
        row = conn.execute(sql("left_dead"), {"batch": batch_id, "verdict": verdict}).fetchone()
    return row[0] if row else 0


def stop(conn: Connection, batch_id: int, mode: str) -> bool:
    """Set the batch's stop mode (`none`, `drain`, `cancel`); False if it is closed."""
    with transaction(conn):
        return conn.execute(sql("stop_batch"), {"batch": batch_id, "stop": mode}).fetchone() is not None


def drain(conn: Connection, worker_id: int) -> bool:
    """Let one worker finish what it holds and take no more; False if it is not alive."""
    with transaction(conn):
        return conn.execute(sql("drain_worker"), {"worker": worker_id}).fetchone() is not None


def worker_ended(conn: Connection, worker_id: int) -> tuple[datetime | None, bool] | None:
    """(when the worker ended, if it has; whether it is silent), None if there is no such registration."""
    row = conn.execute(sql("worker_ended"), {"worker": worker_id}).fetchone()
    return None if row is None else (row[0], row[1])


def failures(conn: Connection, batch_id: int) -> list[Failure]:
    """What the batch's dead tasks died of, the most frequent first."""
    with transaction(conn, long=True):
        return [Failure(*row) for row in conn.execute(sql("failures"), {"batch": batch_id})]


def workers(conn: Connection, batch_id: int) -> list[LiveWorker]:
    """The batch's workers that have not ended."""
    return [LiveWorker(*row) for row in conn.execute(sql("live_workers"), {"batch": batch_id})]


def limit_workers(conn: Connection, batch_id: int, workers: int) -> None:
    """Let only the workers with WORKER_ID 0..workers-1 take."""
    with transaction(conn):
        conn.execute(sql("limit_workers"), {"batch": batch_id, "workers": workers})


def source_names(conn: Connection, batch_id: int) -> list[str]:
    """The names of the batch's sources."""
    return [name for (name,) in conn.execute(sql("batch_source_names"), {"batch": batch_id})]


def why(conn: Connection, user_id: int) -> list[tuple[Any, ...]]:
    """An attempt: (batch id, source, task state, verdict, run after; at, verdict, reason, detail, id, snapshot, picture)."""
    return conn.execute(sql("why"), {"user": user_id}).fetchall()


def results(
    conn: Connection, batch_id: int, source: str | None, kind: str | None
) -> Iterator[tuple[Any, ...]]:
    """(user id, source, kind, external id, fetched at, body) of every item, streamed by a server-side cursor.

    Who reads may pause (a pager); it holds no lock that anybody waits for.
    """
    with transaction(conn, long=True), conn.cursor(name="results") as cursor:
        conn.execute("set local idle_in_transaction_session_timeout = '1h'")
        cursor.itersize = 1000
        cursor.execute(sql("results"), {"batch": batch_id, "source": source, "kind": kind})
        yield from cursor
