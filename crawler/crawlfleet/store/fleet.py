"""Workers as the database sees them (registration, renewal, control), and the fleet's housekeeping.

Liveness is counted in ticks, not clocks: housekeeping advances `fleet.tick` by at most one a tick length,
so neither an outage of the database nor a step of its clock expires anybody.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crawlfleet.errors import CrawlfleetError
from crawlfleet.politeness import BANNED_AFTER
from crawlfleet.store.connection import Connection, transaction
from crawlfleet.store.queries import sql
from crawlfleet.store.turn import Lease, permit_keys

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
    """What a worker has to know each second; how much it may take, each turn reads itself. `cuts`: egress id → cut."""

    batch_state: str
    stop: str
    draining: bool
    ended: bool
    cuts: Mapping[int, int] = field(default_factory=dict)


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
        raise CrawlfleetError(
            "the table `fleet` has lost its row; restore it from a backup or migrate an empty database"
        )
    return Clock(*row)


@dataclass(frozen=True)
class Process:
    """One process for everybody: `pid` names it within `pid_space`, `host` is for people."""

    host: str
    pid_space: str
    pid: int

    @classmethod
    def this(cls) -> Process:
        """This process: its PID namespace, in this boot of this machine."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        return cls(socket.gethostname(), f"{boot}/{namespace}", os.getpid())


def register(conn: Connection, batch_id: int, ordinal: int, slots: int, process: Process) -> int | None:
    """Register a process as a worker of the batch; None if there is no such batch."""
    row = conn.execute(
        sql("register"), {"batch": batch_id, "ordinal": ordinal, "slots": slots, **asdict(process)}
    ).fetchone()
    return None if row is None else row[0]


def renew(
    conn: Connection, worker_id: int, leases: Sequence[Lease], *, unable: Collection[int] = ()
) -> set[int] | None:
    """Renew these permits and the registration: the lease ids renewed, None if the registration was ended.

    For the sources that it says it is `unable` to crawl now a worker does not contend: the others take its part.
    """
    with transaction(conn):
        if (
            conn.execute(sql("renew_worker"), {"worker": worker_id, "unable": sorted(unable)}).fetchone()
            is None
        ):
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
    state, stop, draining, ended, cuts = row
    return Control(state, stop, draining, ended, {int(egress): cut for egress, cut in cuts.items()})


def end_worker(conn: Connection, worker_id: int) -> None:
    """Say good-bye."""
    with transaction(conn):
        conn.execute(sql("end_worker"), {"worker": worker_id})


def bury_worker(conn: Connection, batch_id: int, pid_space: str, pid: int) -> None:
    """The parent saw that process end: its permits are rescued at the next housekeeping, without quarantine."""
    process = {"batch": batch_id, "pid_space": pid_space, "pid": pid}
    with transaction(conn):
        conn.execute(sql("bury_worker"), process)
        conn.execute(sql("end_buried"), process)


@dataclass(frozen=True)
class Chores:
    """What one round of housekeeping did."""

    ticked: bool = False
    rescued: int = 0
    promoted: int = 0
    closed: int = 0


def housekeep(conn: Connection) -> Chores:
    """One round of all chores, each in its own transaction; those that another housekeeper is at are skipped."""
    banned = {"banned_after": BANNED_AFTER}
    ticked = _chore(conn, advance_tick)
    if ticked:
        conn.execute(sql("vacuum_permits"))
    rescued = _chore(conn, rescue)
    _chore(conn, _rows, "end_silent_workers", {})
    _chore(conn, move_accounts)
    promoted = closed = 0
    for batch_id, stopped, count_due in conn.execute(sql("open_batches")).fetchall():
        batch = {"batch": batch_id}
        promoted += _chore(conn, _rows, "promote", batch)
        _chore(conn, _rows, "move_ready_tasks", batch | banned)
        if stopped:
            _chore(conn, _rows, "cancel_unbegun", batch)
        if count_due:
            _chore(conn, count_progress, batch_id)
        if not has_open_tasks(conn, batch_id):
            closed += _chore(conn, close_batch, batch_id)
    _chore(conn, _rows, "forget_items", {})
    for (batch_id,) in conn.execute(sql("retired_batches")).fetchall():
        _chore(conn, delete_chunk, batch_id)
    return Chores(ticked > 0, rescued, promoted, closed)


def advance_tick(conn: Connection) -> int:
    """Advance the fleet's clock if it is time; 1 if it was."""
    conn.execute(sql("undo_step_back"))
    return _rows(conn, "advance_tick", {})


def is_housekeeping_due(conn: Connection, interval_s: float) -> bool:
    """Whether this worker shall do a round now: one an interval for the whole fleet."""
    return conn.execute(sql("claim_round"), {"seconds": interval_s}).fetchone() is not None


def rescue(conn: Connection) -> int:
    """Free the permits of lost workers and give their tasks back; how many."""
    lost = conn.execute(sql("free_lost_permits")).fetchall()
    if lost:
        leases, batches, nos = zip(*lost, strict=True)
        conn.execute(
            sql("rescue_tasks"), {"leases": list(leases), "batches": list(batches), "nos": list(nos)}
        )
    return len(lost)


def move_accounts(conn: Connection) -> int:
    """Move accounts away from egresses that were removed or are banned; how many."""
    banned = {"banned_after": BANNED_AFTER}
    left = [egress_id for (egress_id,) in conn.execute(sql("left_egresses"), banned)]
    return _rows(conn, "move_accounts", {"egresses": left} | banned) if left else 0


def _chore(conn: Connection, do: Callable[..., int], *args: Any) -> int:
    with transaction(conn):
        if conn.execute(sql("try_housekeeping"), {"lock": _HOUSEKEEPING}).fetchone() == (True,):
            return do(conn, *args)
    return 0


def _rows(conn: Connection, statement: str, params: Mapping[str, Any]) -> int:
    return conn.execute(sql(statement), params).rowcount


def count_progress(conn: Connection, batch_id: int) -> int:
    """Write the batch's counts by state and verdict for everybody who watches it; how many rows they took."""
    batch = {"batch": batch_id}
    conn.execute(sql("forget_progress"), batch)
    conn.execute(sql("stamp_progress"), batch)
    return conn.execute(sql("count_progress"), batch).rowcount


def recount(conn: Connection, batch_id: int) -> None:
    """Count the batch now, once no housekeeper is at it."""
    with transaction(conn):
        conn.execute(sql("await_housekeeping"), {"lock": _HOUSEKEEPING})
        count_progress(conn, batch_id)


def has_open_tasks(conn: Connection, batch_id: int) -> bool:
    """Whether anything of the batch is ready, waiting or leased."""
    return conn.execute(sql("has_open_tasks"), {"batch": batch_id}).fetchone() == (True,)


def close_batch(conn: Connection, batch_id: int) -> int:
    """Close the batch if nothing of it is open; 1 if it was closed now.

    Two statements: the second must see what a `retry` committed while the first waited for the lock.
    """
    state = conn.execute(sql("lock_batch"), {"batch": batch_id}).fetchone()
    if state is None or state[0] != "running":
        return 0
    if has_open_tasks(conn, batch_id):
        return 0
    count_progress(conn, batch_id)
    return conn.execute(sql("close_batch"), {"batch": batch_id}).rowcount


def delete_chunk(conn: Connection, batch_id: int) -> int:
    """Delete one chunk of a retired batch's tasks, the batch itself last; returns the tasks deleted.

    None of a batch that a `retry` has reopened since it was found retired.
    """
    state = conn.execute(sql("lock_batch"), {"batch": batch_id}).fetchone()
    if state is None or state[0] != "closed":
        return 0
    deleted = conn.execute(sql("delete_tasks"), {"batch": batch_id}).rowcount
    if deleted == 0:
        conn.execute(sql("delete_batch"), {"batch": batch_id})
    return deleted
