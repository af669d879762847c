"""One turn of a worker's loop: commit what finished, then take. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from crawlfleet.errors import Verdict
from crawlfleet.politeness import Change, Contender, Egress, Seen, after, is_telling, share
from crawlfleet.store.connection import Connection
from crawlfleet.store.queries import sql
from crawlfleet.verdicts import Decision, History, Outcome

TIER_RANKS = 64
"""Ranks of one tier (`plan_tasks`): 0..63 is HIGH, 64..127 MEDIUM, 128..191 LOW."""
TIER_ENDS = (TIER_RANKS, 2 * TIER_RANKS, 3 * TIER_RANKS)
MAX_RANK = TIER_ENDS[-1]
TURN_TICKS = 12
"""So long an odd permit is one worker's turn: often enough for fairness, seldom enough to cost nothing."""


class Row(NamedTuple):
    """An item as it is stored: `body` is canonical JSON, `hash` its digest."""

    kind: str
    external_id: str
    hash: bytes
    body: str


@dataclass(frozen=True)
class Lease:
    """A permit filled with a task: the right to crawl this account once, under a fencing id."""

    egress_id: int
    no: int
    lease_id: int
    task_no: int
    user_id: int
    source_id: int
    cut: int
    credentials: bytes | None
    generation: int | None
    account_state: str | None
    account_reason: str | None
    wait_s: float | None
    history: History

    @classmethod
    def from_row(cls, row: Sequence[Any], history: Sequence[Any]) -> Lease:
        """From the columns of `fill_permits` or `read_back`, and retries, crashes and seconds of throttling."""
        values: list[Any] = [*row, History(*history)]
        return cls(*values)

    def __repr__(self) -> str:
        return f"<Lease {self.lease_id}: task {self.task_no}, user {self.user_id}, permit {self.egress_id}/{self.no}>"


@dataclass(frozen=True)
class Finished:
    """A crawl that ended, with what becomes of its task, waiting for its commit."""

    lease: Lease
    outcome: Outcome
    decision: Decision
    generation: int | None
    cost_ms: int = 0
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Identity:
    """Who takes: the registration, its batch and its shard."""

    worker_id: int
    batch_id: int
    shard: int


@dataclass(frozen=True)
class Room:
    """One egress of the batch: permits open, free among them, and the rank of its best ready task."""

    egress_id: int
    open: int
    free: int
    head: int | None


def commit(conn: Connection, me: Identity, finished: Sequence[Finished], random: Random) -> list[Finished]:
    """Write what ended: tasks, failures, costs, accounts, egresses, items; free the permits.

    Returns those that still were ours. The others were rescued: nothing of them is written.
    """
    held = _free_permits(conn, me, finished)
    ours = [f for f in finished if f.lease.lease_id in held]
    if not ours:
        return []
    _finish_tasks(conn, me, ours)
    _teach_tracks(conn, ours)
    _park_accounts(conn, [f for f in ours if f.outcome.verdict is Verdict.AUTH])
    _change_egresses(conn, ours, random)
    write_items(conn, [(f.lease, f.rows) for f in ours])
    _record_failures(conn, me, [f for f in ours if f.outcome.verdict is not Verdict.OK])
    return ours


def permit_keys(leases: Sequence[Lease]) -> dict[str, list[int]]:
    """The three arrays that name permits to a statement, sorted by permit."""
    ordered = sorted(leases, key=lambda lease: (lease.egress_id, lease.no))
    return {
        "egresses": [lease.egress_id for lease in ordered],
        "nos": [lease.no for lease in ordered],
        "leases": [lease.lease_id for lease in ordered],
    }


def _free_permits(conn: Connection, me: Identity, finished: Sequence[Finished]) -> set[int]:
    if not finished:
        return set()
    keys = permit_keys([f.lease for f in finished])
    return {lease_id for (lease_id,) in conn.execute(sql("free_permits"), keys | {"worker": me.worker_id})}


def _finish_tasks(conn: Connection, me: Identity, ours: Sequence[Finished]) -> None:
    ordered = sorted(ours, key=lambda f: f.lease.task_no)
    conn.execute(
        sql("finish_tasks"),
        {
            "batch": me.batch_id,
            "nos": [f.lease.task_no for f in ordered],
            "states": [f.decision.state for f in ordered],
            "verdicts": [f.outcome.verdict.value for f in ordered],
            "delays": [f.decision.delay_s for f in ordered],
            "retries": [f.decision.retries for f in ordered],
            "crashes": [f.decision.crashes for f in ordered],
        },
    )


def _teach_tracks(conn: Connection, ours: Sequence[Finished]) -> None:
    """What the crawls teach of their accounts: the cost of those that ended ok, and how long the shop wants to be left alone."""
    costs = [f.cost_ms if f.outcome.verdict is Verdict.OK else None for f in ours]
    waits = [f.outcome.account_wait_s or None for f in ours]
    if any(costs) or any(waits):
        conn.execute(sql("teach_tracks"), _accounts(ours) | {"costs": costs, "waits": waits})


def _park_accounts(conn: Connection, refused: Sequence[Finished]) -> None:
    if refused:
        conn.execute(
            sql("park_accounts"),
            _accounts(refused)
            | {
                "generations": [f.generation for f in refused],
                "reasons": [f.outcome.reason for f in refused],
            },
        )


def _accounts(crawls: Sequence[Finished]) -> dict[str, list[Any]]:
    return {"sources": [f.lease.source_id for f in crawls], "users": [f.lease.user_id for f in crawls]}


def _record_failures(conn: Connection, me: Identity, failed: Sequence[Finished]) -> None:
    if not failed:
        return
    conn.execute(
        sql("record_failures"),
        {
            "leases": [f.lease.lease_id for f in failed],
            "batches": [me.batch_id] * len(failed),
            "nos": [f.lease.task_no for f in failed],
            "verdicts": [f.outcome.verdict.value for f in failed],
            "reasons": [f.outcome.reason for f in failed],
            "details": [f.outcome.detail for f in failed],
            "snapshots": [f.outcome.snapshot for f in failed],
            "pictures": [f.outcome.picture for f in failed],
        },
    )


def _change_egresses(conn: Connection, ours: Sequence[Finished], random: Random) -> None:
    """Tell the egresses what their crawls met. Most crawls say nothing, and lock nothing."""
    cut_before = sorted({f.lease.egress_id for f in ours if f.lease.cut > 0})
    recovering = (
        {e for (e,) in conn.execute(sql("recovering"), {"egresses": cut_before})} if cut_before else set()
    )
    telling: dict[int, list[Seen]] = {}
    for f in ours:
        if is_telling(seen := _seen(f), f.lease.egress_id in recovering):
            telling.setdefault(f.lease.egress_id, []).append(seen)
    if not telling:
        return
    for row in conn.execute(sql("lock_egresses"), {"egresses": list(telling)}).fetchall():
        values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in row]
        egress = Egress(*values)
        change = after(egress, telling[egress.egress_id], random)
        if change != Change(egress):
            _write_change(conn, egress, change)


def _write_change(conn: Connection, before: Egress, change: Change) -> None:
    new = change.egress
    conn.execute(
        sql("change_egress"),
        {
            "egress": new.egress_id,
            "cut": new.cut,
            "cuts_in_row": new.cuts_in_row,
            "ramp": new.ramp,
            "ramp_successes": new.ramp_successes,
            "suspects": list(new.suspects),
            "suspects_new": new.suspects != before.suspects and len(new.suspects) == 1,
            "cool_s": change.cool_s,
        },
    )


def _seen(f: Finished) -> Seen:
    return Seen(
        f.outcome.verdict, f.lease.user_id, f.lease.cut, f.outcome.retry_after_s, f.outcome.account_only
    )


def write_items(conn: Connection, crawls: Sequence[tuple[Lease, Sequence[Row]]]) -> None:
    """Upsert items, sorted by key; of two with one key the last counts."""
    rows = {
        (lease.user_id, lease.source_id, r.kind, r.external_id): r for lease, rows in crawls for r in rows
    }
    if not rows:
        return
    keys = sorted(rows)
    conn.execute(
        sql("upsert_items"),
        {
            "users": [k[0] for k in keys],
            "sources": [k[1] for k in keys],
            "kinds": [k[2] for k in keys],
            "ids": [k[3] for k in keys],
            "hashes": [rows[k].hash for k in keys],
            "bodies": [rows[k].body for k in keys],
        },
    )


def write_ahead(conn: Connection, me: Identity, lease: Lease, rows: Sequence[Row]) -> bool:
    """Write a chunk of a crawl that goes on; False (and nothing written) if the lease is no longer ours."""
    held = conn.execute(
        sql("hold_permit"),
        {"egress": lease.egress_id, "no": lease.no, "lease": lease.lease_id, "worker": me.worker_id},
    ).fetchone()
    if held is None:
        return False
    write_items(conn, [(lease, rows)])
    return True


def reserve(conn: Connection, egress_id: int, cut: int) -> tuple[float, float] | None:
    """Reserve one request's turn: (seconds to wait for it, seconds between two). None if the egress was cut since."""
    row = conn.execute(sql("reserve"), {"egress": egress_id, "cut": cut}).fetchone()
    return None if row is None else (row[0], row[1])


def take(conn: Connection, me: Identity, running: int, unable: Collection[int] = ()) -> list[Lease]:
    """Fill free permits with the best ready tasks, as many as this worker has slots and its share allows.

    `running` crawls are under way in this worker; it is `unable` to crawl these sources just now.
    """
    may_take = conn.execute(sql("may_take"), {"worker": me.worker_id}).fetchone()
    slots, tick = may_take or (0, 0)
    if slots <= running:
        return []
    rooms = [
        Room(*row) for row in conn.execute(sql("room"), {"batch": me.batch_id, "unable": sorted(unable)})
    ]
    wanted = sorted((r for r in rooms if r.head is not None and r.free > 0), key=lambda r: r.head or 0)
    if not wanted:
        return []
    contenders = [Contender(*row) for row in conn.execute(sql("contenders"), {"batch": me.batch_id})]
    taken: list[Lease] = []
    for below, room in _in_order(wanted):
        here = [c for c in contenders if c.egress_id == room.egress_id]
        allowed = _allowance(me, room, here, taken, tick // TURN_TICKS + room.egress_id)
        taken += _take_from(conn, me, room, below, min(allowed, slots - running - len(taken)))
    return taken


def _in_order(rooms: Sequence[Room]) -> list[tuple[int, Room]]:
    """What to take, one after the other: (ranks below this, egress). Among several egresses the better tier goes first."""
    if len(rooms) == 1:
        return [(MAX_RANK, rooms[0])]
    return [
        (below, room) for below in TIER_ENDS for room in rooms if room.head is not None and room.head < below
    ]


def _allowance(
    me: Identity, room: Room, here: Sequence[Contender], taken: Sequence[Lease], turn_no: int
) -> int:
    """How many more of this egress's permits may be filled, given the worker's fair share of them."""
    just_taken = sum(lease.egress_id == room.egress_id for lease in taken)
    mine = next((c.held for c in here if c.worker_id == me.worker_id), 0)
    return min(room.free, share(me.worker_id, room.open, here, turn_no) - mine) - just_taken


def _take_from(conn: Connection, me: Identity, room: Room, below: int, most: int) -> list[Lease]:
    """Lock free permits first, then as many tasks; fill the one with the other."""
    if most <= 0:
        return []
    nos = [no for (no,) in conn.execute(sql("pick_permits", limit=most), {"egress": room.egress_id})]
    where = {"batch": me.batch_id, "egress": room.egress_id, "shard": me.shard, "below": below}
    tasks: list[Any] = []
    for statement in ("take_own", "take_any"):
        if len(tasks) < len(nos):
            tasks += conn.execute(sql(statement, limit=len(nos) - len(tasks)), where).fetchall()
    if not tasks:
        return []
    tasks.sort(key=lambda task: task[1])  # by user: two batches that share accounts fill in one order
    filled = conn.execute(
        sql("fill_permits"),
        {
            "worker": me.worker_id,
            "batch": me.batch_id,
            "egress": room.egress_id,
            "nos": nos[: len(tasks)],
            "tasks": [task[0] for task in tasks],
            "users": [task[1] for task in tasks],
        },
    )
    history = {task_no: rest for task_no, _, *rest in tasks}
    return [Lease.from_row((room.egress_id, *row), history[row[2]]) for row in filled]


def read_back(conn: Connection, me: Identity) -> list[Lease]:
    """The leases that this registration really holds, after a reply was lost."""
    rows = conn.execute(sql("read_back"), {"worker": me.worker_id})
    return [Lease.from_row(row[:12], row[12:]) for row in rows]
