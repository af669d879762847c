"""Planning a million tasks, against writing a million rows into a table like `task` with nothing to decide."""

from __future__ import annotations

import time
from collections.abc import Callable

from figures import Figure, at_most, told
from rig import Bed, Rig

TASKS = 1_000_000
BAR = 3.0

# Half of the users pay; the others were last seen within 14 days. The planner reads no credentials.
_ACCOUNTS = """
insert into account (user_id, source_id, subscription, last_login_at, credentials, imported)
select u, %s, case when u %% 2 = 0 then 'paid' else 'free' end, now() - make_interval(hours => (u %% 336)::int),
    decode(repeat('5e', 300), 'hex'), decode(repeat('5e', 300), 'hex')
from generate_series(1, %s) as u
"""
_COSTS = "update track set cost_ms = (1000 * exp(1.5 * sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random())))::int + 1"
_AGAIN = """
insert into bare (user_id, run_after, throttled_since, batch_id, task_no, state, verdict, source_id, egress_id, rank, shard)
select user_id, run_after, throttled_since, %s, task_no, state, verdict, source_id, egress_id, rank, shard
from task where batch_id = %s
"""


def measure(rig: Rig) -> list[Figure]:
    """The first plan (every account is new) and the nightly one, beside the bare insert of the same rows."""
    with rig.bed(20) as bed:
        bed.conn.execute(_ACCOUNTS, (bed.source_id, TASKS))
        bed.conn.execute("vacuum analyze account")
        first_s = _timed(bed, lambda: bed.plan("first", workers=10))
        bed.conn.execute("create table bare (like task including all)")
        _insert(bed, 1)  # so that both tables hold a batch already
        bed.conn.execute(_COSTS)
        bed.conn.execute("vacuum analyze track")
        bed.conn.execute("vacuum analyze task")
        bare_s = _timed(bed, lambda: _insert(bed, 2))
        nightly_s = _timed(bed, lambda: bed.plan("nightly", workers=10))
        bare_s = min(bare_s, _timed(bed, lambda: _insert(bed, 3)))
        _check(bed)
    return [
        at_most(
            "planning 1,000,000 tasks, nightly",
            nightly_s / bare_s,
            BAR,
            "times bare",
            f"{nightly_s:.1f} s against {bare_s:.1f} s of a bare INSERT … SELECT with the same indexes",
        ),
        told(
            "… the first plan",
            f"{first_s / bare_s:.2f} times bare",
            f"{first_s:.1f} s: no account has an egress yet",
        ),
    ]


def _insert(bed: Bed, batch_id: int) -> None:
    bed.conn.execute(_AGAIN, (batch_id, 1))


def _timed(bed: Bed, do: Callable[[], object]) -> float:
    """Seconds, begun after a checkpoint: what was written before is not written again meanwhile."""
    bed.conn.execute("checkpoint")
    began_s = time.monotonic()
    do()
    return time.monotonic() - began_s


def _check(bed: Bed) -> None:
    """Both tables got a million rows a batch."""
    counts = "select string_agg(n::text, ' ') from (select count(*) as n from {} group by batch_id) as c"
    for name, batches in (("task", 2), ("bare", 3)):
        found = bed.number(counts.format(name))
        if found != " ".join([str(TASKS)] * batches):
            raise RuntimeError(f"table {name} holds {found} rows by batch")
