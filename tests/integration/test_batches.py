"""Batches from running to closed and back: never closed over open work, stopped, retried, counted, deleted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from builders import (
    commit,
    ended,
    plan_batch,
    register_worker,
    scalar,
    shop_batch,
    take,
    task_states,
)

from crawlfleet.errors import AuthFailed, BadInput, Bug, Retry
from crawlfleet.store import batches
from crawlfleet.store.accounts import purge
from crawlfleet.store.connection import Connection, transaction
from crawlfleet.store.fleet import close_batch, delete_chunk, housekeep
from crawlfleet.verdicts import OK, Outcome

Connections = Callable[[], Connection]
ROUNDS = 1000


def state(conn: Connection) -> tuple[str, int]:
    """(state, round) of the only batch."""
    row = conn.execute("select state::text, round from batch").fetchone()
    assert row is not None
    return row[0], row[1]


def crawl_all(conn: Connection, batch_id: int, how: Outcome = OK) -> None:
    """Take everything and end it so."""
    me = register_worker(conn, batch_id)
    commit(conn, me, *[ended(lease, how) for lease in take(conn, me)])


DEAD = Outcome.of(Bug("BadRow"))


# Closing.


def test_a_batch_closes_when_its_last_task_has_ended(conn: Connection) -> None:
    batch = shop_batch(conn, users=4)
    assert housekeep(conn).closed == 0

    crawl_all(conn, batch)

    assert housekeep(conn).closed == 1
    assert state(conn) == ("closed", 1)
    assert housekeep(conn).closed == 0


def test_a_batch_without_a_task_closes_at_once(conn: Connection) -> None:
    shop_batch(conn, users=0)

    assert housekeep(conn).closed == 1


@pytest.mark.parametrize("open_state", ["ready", "waiting", "leased"])
def test_a_batch_never_closes_over_an_open_task(conn: Connection, open_state: str) -> None:
    batch = shop_batch(conn, users=1)
    if open_state != "ready":
        me = register_worker(conn, batch)
        leases = take(conn, me)
        if open_state == "waiting":
            commit(conn, me, *[ended(lease, Retry("Timeout")) for lease in leases])

    assert housekeep(conn).closed == 0
    assert task_states(conn, batch) == {1: open_state}
    assert state(conn) == ("running", 1)


def test_retrying_and_closing_at_once_never_closes_over_a_revived_task(
    conn: Connection, connections: Connections
) -> None:
    """A thousand times, each from a running batch with one dead task."""
    batch = shop_batch(conn, users=1)
    gate, ends = Barrier(3, timeout=60), []

    def racing(act: Callable[[Connection], int]) -> None:
        mine = connections()
        for _ in range(ROUNDS):
            gate.wait()
            act(mine)
            gate.wait()

    def close(mine: Connection) -> int:
        with transaction(mine):
            return close_batch(mine, batch)

    with ThreadPoolExecutor(2) as threads:
        racers = [
            threads.submit(racing, act) for act in (close, lambda mine: batches.retry(mine, batch, None))
        ]
        for _ in range(ROUNDS):
            conn.execute("update task set state = 'dead'; update batch set state = 'running'")
            gate.wait()
            gate.wait()
            ends.append((state(conn)[0], scalar(conn, "select state::text from task")))
        assert [racer.result() for racer in racers] == [None, None]

    assert set(ends) == {("running", "ready")}


def test_a_user_who_was_purged_holds_no_batch_open(conn: Connection) -> None:
    """Neither by a waiting task nor by one that is rescued."""
    batch = shop_batch(conn, users=2)
    me = register_worker(conn, batch)
    waits, lost = take(conn, me)
    commit(conn, me, ended(waits, Retry("Timeout")))
    conn.execute("update permit set renewed_tick = -1000 where lease_id is not null; delete from track")
    assert purge(conn, waits.user_id) is not None
    conn.execute("update task set run_after = now() where state = 'waiting'")

    chores = housekeep(conn)

    assert (chores.rescued, chores.promoted) == (1, 1)
    assert task_states(conn, batch) == {waits.user_id: "ready", lost.user_id: "ready"}


# Stopping.


@pytest.mark.parametrize("mode", ["cancel", "drain"])
def test_a_stopped_batch_gives_up_what_has_not_begun_and_closes_when_the_rest_has_ended(
    conn: Connection, mode: str
) -> None:
    batch = shop_batch(conn, users=6, cap=3)
    me = register_worker(conn, batch)
    good, bad, slow = take(conn, me)
    commit(conn, me, ended(bad, Retry("Timeout")))

    assert batches.stop(conn, batch, mode)
    assert housekeep(conn).closed == 0
    commit(conn, me, ended(good), ended(slow, Retry("Timeout")))
    assert housekeep(conn).closed == 1

    assert sorted(task_states(conn, batch).values()) == ["cancelled"] * 5 + ["ok"]
    assert not batches.stop(conn, batch, mode)


def test_a_stop_can_be_taken_back(conn: Connection) -> None:
    batch = shop_batch(conn, users=1)
    batches.stop(conn, batch, "drain")
    batches.stop(conn, batch, "none")
    housekeep(conn)

    assert task_states(conn, batch) == {1: "ready"}


def test_only_a_live_worker_can_be_drained(conn: Connection) -> None:
    me = register_worker(conn, shop_batch(conn))

    assert batches.drain(conn, me.worker_id)
    conn.execute("update worker set ended_at = now()")
    assert not batches.drain(conn, me.worker_id)


# Retrying.


def test_retrying_a_closed_batch_opens_a_new_round_with_fresh_budgets(conn: Connection) -> None:
    batch = shop_batch(conn, users=2)
    crawl_all(conn, batch, DEAD)
    conn.execute("update task set retries = 3, crashes = 1, throttled_since = now()")
    housekeep(conn)

    assert batches.retry(conn, batch, None) == 2

    assert state(conn) == ("running", 2)
    assert task_states(conn, batch) == {1: "ready", 2: "ready"}
    fresh = "select distinct retries, crashes, throttled_since, verdict from task"
    assert conn.execute(fresh).fetchall() == [(0, 0, None, None)]


def test_retrying_a_running_batch_stays_in_its_round(conn: Connection) -> None:
    batch = shop_batch(conn, users=2, cap=1)
    crawl_all(conn, batch, DEAD)

    assert batches.retry(conn, batch, None) == 1
    assert state(conn) == ("running", 1)


def test_a_retry_that_revives_nothing_opens_nothing(conn: Connection) -> None:
    batch = shop_batch(conn, users=2)
    crawl_all(conn, batch)
    housekeep(conn)

    assert batches.retry(conn, batch, None) == 0
    assert state(conn) == ("closed", 1)


def test_a_cancelled_batch_can_be_retried(conn: Connection) -> None:
    batch = shop_batch(conn, users=2)
    batches.stop(conn, batch, "cancel")
    housekeep(conn)

    assert batches.retry(conn, batch, None) == 2
    assert scalar(conn, "select stop::text from batch") == "none"
    assert len(take(conn, register_worker(conn, batch))) == 2


def test_only_tasks_that_died_of_that_verdict_are_retried(conn: Connection) -> None:
    batch = shop_batch(conn, users=2)
    me = register_worker(conn, batch)
    bug, auth = take(conn, me)
    commit(conn, me, ended(bug, DEAD), ended(auth, AuthFailed("Refused")))

    assert batches.retry(conn, batch, "bug") == 1
    assert task_states(conn, batch) == {bug.user_id: "ready", auth.user_id: "dead"}


def test_an_account_that_needs_a_person_is_not_retried_before_it_is_well(conn: Connection) -> None:
    """Never blindly: that locks sellers out."""
    batch = shop_batch(conn, users=1)
    crawl_all(conn, batch, Outcome.of(AuthFailed("Refused")))
    assert batches.retry(conn, batch, None) == 0

    conn.execute("update account set state = 'ok'")
    assert batches.retry(conn, batch, "auth") == 1


# Counting and deleting.


def test_progress_counts_tasks_by_source_state_and_verdict(conn: Connection) -> None:
    batch = shop_batch(conn, users=5, cap=3)
    me = register_worker(conn, batch)
    good, bad, busy = take(conn, me)
    commit(conn, me, ended(good), ended(bad, DEAD))
    conn.execute("update batch set counted_at = 'epoch'")

    housekeep(conn)

    assert batches.counts(conn, batch) == {
        "shop": {("ok", "ok"): 1, ("dead", "bug"): 1, ("leased", None): 1, ("ready", None): 2}
    }
    assert busy.user_id


def test_a_closed_batch_has_its_final_counts(conn: Connection) -> None:
    """However lately they were counted."""
    batch = shop_batch(conn, users=4)
    housekeep(conn)
    crawl_all(conn, batch)
    conn.execute("update batch set counted_at = clock_timestamp()")
    housekeep(conn)

    assert batches.counts(conn, batch) == {"shop": {("ok", "ok"): 4}}


def test_a_retired_batch_is_deleted_in_chunks(conn: Connection) -> None:
    batch = shop_batch(conn, users=2, retain_s=60)
    kept = plan_batch(conn)
    crawl_all(conn, batch, DEAD)
    conn.execute(
        "insert into task (user_id, batch_id, task_no, state, source_id, egress_id, rank, shard)"
        " select 1, batch_id, n, 'ok', source_id, egress_id, rank, shard"
        " from task, generate_series(100, 7000) n where batch_id = %s and task_no = 1",
        (batch,),
    )
    housekeep(conn)
    left = "select count(*) from task where batch_id = %s"
    conn.execute("update batch set closed_at = now() - interval '59 s' where batch_id = %s", (batch,))
    housekeep(conn)
    assert scalar(conn, left, batch) == 6903

    conn.execute("update batch set closed_at = now() - interval '61 s' where batch_id = %s", (batch,))
    found = []
    for _ in range(3):
        housekeep(conn)
        found.append((scalar(conn, left, batch), scalar(conn, "select count(*) from failure")))

    assert found == [(1903, 0), (0, 0), (0, 0)]
    assert conn.execute("select batch_id from batch").fetchall() == [(kept,)]
    assert scalar(conn, left, kept) == 2


def test_a_retired_batch_that_was_retried_in_time_is_kept_whole(conn: Connection) -> None:
    """Housekeeping may already have found it retired when the retry came."""
    batch = shop_batch(conn, users=2, retain_s=60)
    crawl_all(conn, batch, DEAD)
    with transaction(conn):
        assert close_batch(conn, batch) == 1
    batches.retry(conn, batch, None)

    with transaction(conn):
        delete_chunk(conn, batch)

    assert task_states(conn, batch) == {1: "ready", 2: "ready"}


def test_a_batch_past_its_retention_is_not_retried(conn: Connection) -> None:
    """Some of its tasks may be deleted already: a new round would miss their sellers."""
    batch = shop_batch(conn, users=2, retain_s=60)
    crawl_all(conn, batch, DEAD)
    with transaction(conn):
        assert close_batch(conn, batch) == 1
    conn.execute("update batch set closed_at = now() - interval '61 s'")

    with pytest.raises(BadInput, match="past its retention"):
        batches.retry(conn, batch, None)


def test_an_account_parked_by_one_batch_is_not_crawled_by_another(conn: Connection) -> None:
    """The lease tells, so that the worker ends the crawl `auth` without a request."""
    batch = shop_batch(conn, users=1)
    conn.execute("update account set state = 'auth', reason = 'RefreshRefused'")
    me = register_worker(conn, batch)

    [lease] = take(conn, me)

    assert (lease.account_state, lease.account_reason) == ("auth", "RefreshRefused")


def test_the_newest_batch_of_a_name_is_found_or_the_one_with_that_uid(conn: Connection) -> None:
    found = {shop_batch(conn, users=1, name="nightly"), plan_batch(conn, name="nightly")}
    newest = batches.find(conn, "nightly")
    assert newest is not None
    by_uid = batches.find(conn, newest.uid)

    assert newest.batch_id == max(found)
    assert by_uid is not None
    assert by_uid.batch_id == newest.batch_id
    assert batches.find(conn, "other") is None
