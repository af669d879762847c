"""Workers as the database sees them (registration, renewal, control), and the fleet's housekeeping.

Liveness is counted in ticks, not clocks: housekeeping advances `fleet.tick` by at most one a tick length,
so neither an outage of the database nor a step of its clock expires anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from crawlfleet.errors import CrawlfleetError
from crawlfleet.politeness import BANNED_AFTER
from crawlfleet.store.connection import Connection, transaction
from crawlfleet.store.queries import sql
from crawlfleet.store.turn import Lease, permit_keys

T = TypeVar("T")

_HOUSEKEEPING = 0x686F7573  # "hous": the advisory lock of the housekeeper


@dataclass(frozen=True)
class Clock:
    """How long a renewal is good for, in seconds and ticks. One truth for all workers: the `fleet` row."""

    tick_s: float = 5.0
    expire_ticks: int = 6
    quarantine_ticks: int = 14

    @property
    def stop_after_s(self) -> float:
        """A worker stops sending this long after it sent its last renewal: two ticks before its permits expire.

        One, since a renewal may come just before a tick; one more, since a step of the database's clock gives a tick.
        """
        return self.tick_s * (self.expire_ticks - 2)


@dataclass(frozen=True)
class Control:
    """What a worker has to know each second. `cuts`: egress id → (cut, whether it cools down)."""

    batch_state: str
    stop: str
    suspended: bool
    within_limit: bool
    max_concurrent: int | None
    draining: bool
    ended: bool
    cuts: Mapping[int, tuple[int, bool]] = field(default_factory=dict)


def set_clock(conn: Connection, clock: Clock) -> None:
    """Write the fleet's clock; running workers keep what they read when they registered."""
    conn.execute(
        sql("set_clock"),
        {
            "tick_ms": round(clock.tick_s * 1000),
            "expire_ticks": clock.expire_ticks,
            "quarantine_ticks": clock.quarantine_ticks,
        },
    )


def read_clock(conn: Connection) -> Clock:
    """The fleet's clock."""
    row = conn.execute(sql("clock")).fetchone()
    if row is None:
        raise CrawlfleetError("the table `fleet` has lost its row; restore it from a backup or migrate an empty database")
    return Clock(*row)


def register(conn: Connection, batch_id: int, ordinal: int, slots: int, host: str, pid: int) -> int | None:
    """Register this process as a worker of the batch; None if there is no such batch."""
    row = conn.execute(
        sql("register"), {"batch": batch_id, "ordinal": ordinal, "slots": slots, "pid": pid, "host": host}
    ).fetchone()
    return None if row is None else row[0]


def renew(conn: Connection, worker_id: int, leases: Sequence[Lease]) -> set[int] | None:
    """Renew these permits and the registration: the lease ids renewed, None if the registration was ended."""
    with transaction(conn):
        if conn.execute(sql("renew_worker"), {"worker": worker_id}).fetchone() is None:
            return None
        if not leases:
            return set()
        renewed = conn.execute(sql("renew_permits"), permit_keys(leases) | {"worker": worker_id})
        return {lease_id for (lease_id,) in renewed}


def read_control(conn: Connection, worker_id: int) -> Control | None:
    """The control row of this worker; None if its registration is gone."""
    with transaction(conn):
        row = conn.execute(sql("control"), {"worker": worker_id}).fetchone()
    if row is None:
        return None
    return Control(*row[:7], {int(egress): (cut, cools) for egress, (cut, cools) in row[7].items()})


def end_worker(conn: Connection, worker_id: int) -> None:
    """Say good-bye."""
    with transaction(conn):
        conn.execute(sql("end_worker"), {"worker": worker_id})


def bury_worker(conn: Connection, batch_id: int, host: str, pid: int) -> None:
    """The parent saw that process end: its permits are rescued at the next housekeeping, without quarantine."""
    with transaction(conn):
        conn.execute(sql("bury_worker"), {"batch": batch_id, "host": host, "pid": pid})


@dataclass(frozen=True)
class Chores:
    """What one round of housekeeping did."""

    ticked: bool = False
    rescued: int = 0
    promoted: int = 0
    closed: int = 0


def housekeep(conn: Connection) -> Chores:
    """One round of all chores, each in its own transaction; those that another housekeeper is at are skipped."""
    ticked = _chore(conn, lambda: conn.execute(sql("advance_tick")).rowcount > 0)
    rescued = _chore(conn, lambda: conn.execute(sql("rescue")).rowcount)
    _chore(conn, lambda: conn.execute(sql("end_silent_workers")).rowcount)
    _chore(conn, lambda: conn.execute(sql("move_accounts"), {"banned_after": BANNED_AFTER}).rowcount)
    promoted = closed = 0
    for batch_id, stopped, _, count_due in conn.execute(sql("open_batches")).fetchall():
        promoted += _chore(conn, lambda b=batch_id: conn.execute(sql("promote"), {"batch": b}).rowcount) or 0
        _chore(conn, lambda b=batch_id: conn.execute(sql("move_ready_tasks"), _moving(b)).rowcount)
        if stopped:
            _chore(conn, lambda b=batch_id: conn.execute(sql("cancel_unbegun"), {"batch": b}).rowcount)
        if count_due:
            _chore(conn, lambda b=batch_id: count_progress(conn, b))
        closed += _chore(conn, lambda b=batch_id: close_batch(conn, b)) or 0
    for (batch_id,) in conn.execute(sql("retired_batches")).fetchall():
        _chore(conn, lambda b=batch_id: delete_chunk(conn, b))
    return Chores(bool(ticked), rescued or 0, promoted, closed)


def _moving(batch_id: int) -> dict[str, int]:
    return {"batch": batch_id, "banned_after": BANNED_AFTER}


def _chore(conn: Connection, do: Callable[[], T]) -> T | None:
    with transaction(conn):
        if conn.execute(sql("try_housekeeping"), {"lock": _HOUSEKEEPING}).fetchone() == (True,):
            return do()
    return None


def count_progress(conn: Connection, batch_id: int) -> None:
    """Write the batch's counts by state and verdict for everybody who watches it."""
    for statement in ("forget_progress", "count_progress", "stamp_progress"):
        conn.execute(sql(statement), {"batch": batch_id})


def close_batch(conn: Connection, batch_id: int) -> int:
    """Close the batch if nothing of it is open; 1 if it was closed now.

    Two statements: the second must see what a `retry` committed while the first waited for the lock.
    """
    state = conn.execute(sql("lock_batch"), {"batch": batch_id}).fetchone()
    if state is None or state[0] != "running":
        return 0
    if conn.execute(sql("has_open_tasks"), {"batch": batch_id}).fetchone() == (True,):
        return 0
    count_progress(conn, batch_id)
    return conn.execute(sql("close_batch"), {"batch": batch_id}).rowcount


def delete_chunk(conn: Connection, batch_id: int) -> None:
    """Delete one chunk of a retired batch's tasks; the batch itself goes last."""
    if conn.execute(sql("delete_tasks"), {"batch": batch_id}).rowcount == 0:
        conn.execute(sql("delete_failures"), {"batch": batch_id})
        conn.execute(sql("delete_batch"), {"batch": batch_id})
