"""Liveness in ticks: who is expired and rescued, and that no outage or clock expires anybody who renews."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

import pytest
from builders import (
    commit,
    ended,
    held,
    pass_ticks,
    plan_batch,
    process,
    register_worker,
    scalar,
    shop_batch,
    take,
    task_states,
    together,
    until,
)

from crawlfleet.store import fleet, turn
from crawlfleet.store.batches import waits
from crawlfleet.store.connection import Connection, transaction
from crawlfleet.store.fleet import Clock, bury_worker, end_worker, housekeep, read_clock, renew, set_clock

Connections = Callable[[], Connection]
CLOCK = Clock(tick_s=3600, expire_ticks=4, quarantine_ticks=3)
GONE = CLOCK.expire_ticks + CLOCK.quarantine_ticks


@pytest.fixture(autouse=True)
def _slow_clock(conn: Connection) -> None:
    """A tick lasts an hour: it passes when a test says so."""
    set_clock(conn, CLOCK)


def tick(conn: Connection) -> int:
    return int(scalar(conn, "select tick from fleet"))


def last_tick_was(conn: Connection, ago: str) -> None:
    conn.execute("update fleet set ticked_at = clock_timestamp() - %s::interval", (ago,))


# The clock.


def test_a_tick_passes_once_a_tick_length_however_many_housekeepers(
    conn: Connection, connections: Connections
) -> None:
    last_tick_was(conn, "61 min")

    chores = together(*[partial(housekeep, connections()) for _ in range(8)])

    assert tick(conn) == 1
    assert [c.ticked for c in chores].count(True) == 1


def test_no_tick_passes_before_its_length(conn: Connection) -> None:
    last_tick_was(conn, "59 min")

    assert not housekeep(conn).ticked
    assert tick(conn) == 0


def test_an_outage_is_one_tick_whatever_its_length(conn: Connection) -> None:
    last_tick_was(conn, "30 days")

    assert housekeep(conn).ticked
    assert not housekeep(conn).ticked
    assert tick(conn) == 1


def test_an_outage_expires_nobody_who_renews_after_it(conn: Connection) -> None:
    me = register_worker(conn, shop_batch(conn, users=1))
    leases = take(conn, me)

    for _ in range(3 * GONE):
        last_tick_was(conn, "30 days")
        assert housekeep(conn).rescued == 0
        assert renew(conn, me.worker_id, leases) == {leases[0].lease_id}
    assert tick(conn) == 3 * GONE


def test_a_clock_that_was_set_back_neither_ticks_nor_freezes(conn: Connection) -> None:
    last_tick_was(conn, "-1 day")

    housekeep(conn)
    assert tick(conn) == 0
    assert scalar(conn, "select clock_timestamp() - ticked_at < '1 min' from fleet")
    last_tick_was(conn, "61 min")
    housekeep(conn)
    assert tick(conn) == 1


def test_a_worker_stops_two_ticks_before_its_permits_expire(conn: Connection) -> None:
    clock = read_clock(conn)

    assert clock == CLOCK
    assert clock.stop_after_s == (CLOCK.expire_ticks - 2) * CLOCK.tick_s


# Expiry and rescue.


def test_a_permit_that_is_not_renewed_is_rescued_after_expiry_and_quarantine(conn: Connection) -> None:
    batch = shop_batch(conn, users=1)
    take(conn, register_worker(conn, batch))

    pass_ticks(conn, GONE - 1)
    assert housekeep(conn).rescued == 0
    assert held(conn) == 1
    pass_ticks(conn, 1)
    assert housekeep(conn).rescued == 1
    assert held(conn) == 0
    assert task_states(conn, batch) == {1: "ready"}


def test_a_rescued_task_is_charged_a_crash_that_tells_why(conn: Connection) -> None:
    take(conn, register_worker(conn, shop_batch(conn, users=1)))
    pass_ticks(conn, GONE)
    housekeep(conn)

    assert conn.execute("select crashes, verdict::text from task").fetchone() == (1, "crashed")
    assert conn.execute("select verdict::text, reason from failure").fetchall() == [("crashed", "WorkerLost")]


def test_a_task_that_loses_worker_after_worker_is_dead(conn: Connection) -> None:
    """Its crash budget is 1."""
    batch = shop_batch(conn, users=1)
    for state in ("ready", "dead"):
        assert len(take(conn, register_worker(conn, batch))) == 1
        pass_ticks(conn, GONE)
        housekeep(conn)
        assert task_states(conn, batch) == {1: state}


def test_a_task_of_a_stopped_batch_is_cancelled_when_it_is_rescued(conn: Connection) -> None:
    batch = shop_batch(conn, users=1)
    take(conn, register_worker(conn, batch))
    conn.execute("update batch set stop = 'cancel'")
    pass_ticks(conn, GONE)
    housekeep(conn)

    assert task_states(conn, batch) == {1: "cancelled"}


def test_an_expired_permit_is_shown_as_silent_while_it_is_in_quarantine(conn: Connection) -> None:
    batch = shop_batch(conn, users=1)
    take(conn, register_worker(conn, batch))

    pass_ticks(conn, CLOCK.expire_ticks - 1)
    assert [wait.silent for wait in waits(conn, batch)] == [0]
    pass_ticks(conn, 1)
    assert [wait.silent for wait in waits(conn, batch)] == [1]


def test_a_permit_that_its_worker_does_not_name_expires(conn: Connection) -> None:
    """The reply of a take was lost: the worker lives, but does not know this lease."""
    batch = shop_batch(conn, users=2)
    me = register_worker(conn, batch)
    known, lost = take(conn, me)

    for _ in range(GONE):
        assert renew(conn, me.worker_id, [known]) == {known.lease_id}
        pass_ticks(conn, 1)
    assert housekeep(conn).rescued == 1
    assert task_states(conn, batch) == {known.user_id: "leased", lost.user_id: "ready"}


def test_a_lease_that_was_rescued_is_not_renewed(conn: Connection) -> None:
    me = register_worker(conn, shop_batch(conn, users=1))
    leases = take(conn, me)
    pass_ticks(conn, GONE)
    housekeep(conn)
    again = take(conn, register_worker(conn, me.batch_id))

    assert again[0].no == leases[0].no
    assert not renew(conn, me.worker_id, leases)


def test_a_renewal_does_not_wait_for_a_commit_of_its_own_worker(
    conn: Connection, connections: Connections
) -> None:
    """Which may be long; what it frees is skipped."""
    me = register_worker(conn, shop_batch(conn, users=2))
    first, second = take(conn, me)
    other = connections()

    with transaction(conn):
        assert turn.commit(conn, me, [ended(first)], Random(0)) == [ended(first)]
        assert renew(other, me.worker_id, [first, second]) == {second.lease_id}


def test_a_silent_registration_is_ended_and_cannot_come_back(conn: Connection) -> None:
    me = register_worker(conn, shop_batch(conn, users=1))
    leases = take(conn, me)
    pass_ticks(conn, GONE)
    housekeep(conn)

    assert renew(conn, me.worker_id, leases) is None
    assert take(conn, me) == []


def test_a_worker_that_said_good_bye_is_over(conn: Connection) -> None:
    me = register_worker(conn, shop_batch(conn, users=1))
    end_worker(conn, me.worker_id)

    assert renew(conn, me.worker_id, []) is None
    control = fleet.read_control(conn, me.worker_id)
    assert control is not None
    assert control.ended


def test_a_worker_its_parent_saw_dying_is_rescued_without_quarantine(conn: Connection) -> None:
    """Only that process: its neighbour on the same host goes on, and its namesake of another boot."""
    batch = shop_batch(conn, users=4, workers=2)
    dead, alive = register_worker(conn, batch, 0, slots=2), register_worker(conn, batch, 1, slots=2)
    lost, kept = take(conn, dead), take(conn, alive)

    bury_worker(conn, batch, "another-boot", process(0).pid)
    assert housekeep(conn).rescued == 0
    bury_worker(conn, batch, process(0).pid_space, process(0).pid)

    assert housekeep(conn).rescued == 2
    states = task_states(conn, batch)
    assert {states[lease.user_id] for lease in lost} == {"ready"}
    assert {states[lease.user_id] for lease in kept} == {"leased"}


def test_a_burial_waits_for_a_turn_that_the_server_has_not_given_up_yet(
    conn: Connection, connections: Connections
) -> None:
    batch = shop_batch(conn, users=1)
    take(conn, register_worker(conn, batch))
    last_turn = connections()
    last_turn.execute("begin")
    last_turn.execute("select from permit where lease_id is not null for update")

    def bury() -> None:
        bury_worker(connections(), batch, process().pid_space, process().pid)

    def give_up() -> None:
        until(lambda: scalar(conn, "select count(*) from pg_locks where not granted"))
        last_turn.execute("rollback")

    together(bury, give_up)
    assert housekeep(conn).rescued == 1


def test_burying_a_worker_of_one_batch_leaves_that_process_alone_in_the_others(conn: Connection) -> None:
    """A number is used again: the parent of one batch says nothing about another's workers."""
    batch, other = shop_batch(conn, users=4), plan_batch(conn)
    take(conn, register_worker(conn, batch, slots=2))
    take(conn, register_worker(conn, other, slots=2))

    bury_worker(conn, batch, process().pid_space, process().pid)

    assert housekeep(conn).rescued == 2
    assert "leased" not in task_states(conn, batch).values()
    assert list(task_states(conn, other).values()).count("leased") == 2


def test_a_crawl_may_be_committed_during_its_quarantine(conn: Connection) -> None:
    """Until it is rescued it is still its worker's."""
    batch = shop_batch(conn, users=1)
    me = register_worker(conn, batch)
    [lease] = take(conn, me)
    pass_ticks(conn, GONE - 1)
    housekeep(conn)

    assert commit(conn, me, ended(lease)) == [ended(lease)]
    assert task_states(conn, batch) == {1: "ok"}
