"""A client that stops in the middle of a transaction loses it, with every lock, and the fleet goes on.

Each case costs the time-out of an idle transaction, so all of them run at once, each on rows of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from random import Random

import psycopg
from builders import (
    account,
    add_accounts,
    batch_plan,
    commit,
    declare_source,
    egress,
    ended,
    plan_batch,
    register_worker,
    scalar,
    take,
    together,
    until,
)

from crawlfleet.errors import Blocked, Bug
from crawlfleet.planner import plan
from crawlfleet.store import accounts, batches, fleet, turn
from crawlfleet.store.connection import IDLE_IN_TRANSACTION_S, Connection, connect, transaction
from crawlfleet.store.fleet import close_batch, housekeep
from crawlfleet.store.queries import sql
from crawlfleet.store.sources import source_id_of

Connections = Callable[[], Connection]
Act = Callable[[Connection], object]


def pause(
    connections: Connections, lock: Act, *, meanwhile: Act, rival: Act, long: bool = False
) -> list[type[BaseException]]:
    """Stop after `lock`; returns what the client is told when it goes on.

    `meanwhile` needs nothing that is locked; `rival` wants it all, and gets it in the end.
    """
    paused, watch = connections(), connections()
    alive = "select exists (select from pg_stat_activity where pid = %s)"
    told: list[type[BaseException]] = []
    with ThreadPoolExecutor(1) as thread:
        try:
            with transaction(paused, long=long):
                lock(paused)
                waiting = thread.submit(rival, connections())
                meanwhile(connections())
                assert scalar(watch, alive, paused.info.backend_pid), "meanwhile took as long as the pause"
                until(lambda: not scalar(watch, alive, paused.info.backend_pid), 4 * IDLE_IN_TRANSACTION_S)
                paused.execute("select 1")
        except psycopg.Error as exc:
            told.append(type(exc))
        waiting.result(timeout=30)
    return told


def shop(conn: Connection, name: str) -> int:
    """A source of that name with 4 permits, 8 accounts, and a batch for two workers."""
    declare_source(conn, egress(cap=4), name=name)
    add_accounts(conn, range(1, 9), source=name)
    return plan_batch(conn, sources=[name], workers=2)


def paused_in_a_turn(connections: Connections) -> list[type[BaseException]]:
    """Permits and tasks are locked: others skip them, and fill them when the worker has lost them."""
    conn = connections()
    batch = shop(conn, "turn")
    me = register_worker(conn, batch, 0)
    mine = take(conn, me)
    other = register_worker(conn, batch, 1)
    commit(conn, me, ended(mine[0]), ended(mine[1]))

    def turned(paused: Connection) -> None:
        assert len(turn.commit(paused, me, [ended(mine[2])], Random(0))) == 1
        assert len(turn.take(paused, me, 1)) == 1

    def others_go_on(conn: Connection) -> None:
        assert len(take(conn, other)) == 1
        assert fleet.renew(conn, me.worker_id, mine[2:]) == {mine[3].lease_id}

    def its_commit_again(conn: Connection) -> None:
        assert len(commit(conn, me, ended(mine[2]), ended(mine[3]))) == 2

    return pause(connections, turned, meanwhile=others_go_on, rival=its_commit_again)


def paused_over_an_egress(connections: Connections) -> list[type[BaseException]]:
    """Its row is locked for a cut: crawls of others end, and the next cut gets through."""
    conn = connections()
    batch = shop(conn, "egress")
    me = register_worker(conn, batch, 0)
    mine = take(conn, me)
    other = register_worker(conn, batch, 1)
    commit(conn, me, *map(ended, mine[:2]))
    others = take(conn, other)
    cut = partial(turn.commit, me=me, finished=[ended(mine[2], Blocked("BanPage"))], random=Random(0))
    return pause(
        connections,
        cut,
        meanwhile=lambda conn: commit(conn, other, ended(others[0])),
        rival=lambda conn: commit(conn, other, ended(others[1], Blocked("BanPage"))),
    )


def paused_in_a_retry(connections: Connections) -> list[type[BaseException]]:
    """The batch's row is locked: its workers go on, and it closes when the lock is lost."""
    conn = connections()
    batch = shop(conn, "retry")
    me = register_worker(conn, batch)
    while leases := take(conn, me):
        commit(conn, me, *[ended(lease, Bug("BadRow")) for lease in leases])

    def locked(paused: Connection) -> None:
        paused.execute(sql("lock_batch"), {"batch": batch})
        assert paused.execute(sql("retry_dead"), {"batch": batch, "verdict": None}).rowcount == 8

    def close(conn: Connection) -> None:
        with transaction(conn):
            close_batch(conn, batch)
        assert scalar(conn, "select state::text from batch where batch_id = %s", batch) == "closed"

    return pause(
        connections,
        locked,
        meanwhile=lambda conn: fleet.read_control(conn, me.worker_id),
        rival=close,
        long=True,
    )


def paused_in_an_import(connections: Connections) -> list[type[BaseException]]:
    """Accounts are locked: they are crawled on, and the next import gets through."""
    conn = connections()
    batch = shop(conn, "import")
    me = register_worker(conn, batch)
    [lease, *_] = take(conn, me)

    def locked(paused: Connection) -> None:
        source_id = source_id_of(paused, "import")
        assert len(accounts.locked_imports(paused, source_id, range(1, 9))) == 8

    again = [account(user, source="import", credentials={"token": "new"}) for user in range(1, 9)]
    return pause(
        connections,
        locked,
        meanwhile=lambda conn: commit(conn, me, ended(lease)),
        rival=lambda conn: add_accounts(conn, again),
    )


def paused_in_a_plan(connections: Connections) -> list[type[BaseException]]:
    """Another planner of the same batch waits, then plans it; other batches are planned meanwhile."""
    conn = connections()
    shop(conn, "plan")
    batch = batch_plan(sources=["plan"])
    plan(conn, batch)
    conn.execute("update batch set state = 'planning' where uid = %s", (batch.uid,))
    conn.execute("delete from task using batch b where b.batch_id = task.batch_id and uid = %s", (batch.uid,))

    def planned(conn: Connection) -> None:
        plan(conn, batch)
        assert scalar(conn, "select total from batch where uid = %s and state = 'running'", batch.uid) == 8

    return pause(
        connections,
        lambda paused: paused.execute("select from batch where uid = %s for no key update", (batch.uid,)),
        meanwhile=lambda conn: plan_batch(conn, sources=["plan"]),
        rival=planned,
        long=True,
    )


def paused_in_housekeeping(connections: Connections) -> list[type[BaseException]]:
    """Other housekeepers skip what it is at, without waiting; then one of them does it."""
    conn = connections()
    conn.execute("update fleet set ticked_at = clock_timestamp() - interval '1 day'")

    def ticked(paused: Connection) -> None:
        assert paused.execute(sql("try_housekeeping"), {"lock": fleet._HOUSEKEEPING}).fetchone() == (True,)
        assert paused.execute(sql("advance_tick")).rowcount == 1

    def skipped(conn: Connection) -> None:
        assert not housekeep(conn).ticked

    return pause(
        connections, ticked, meanwhile=skipped, rival=lambda conn: until(lambda: housekeep(conn).ticked)
    )


CASES = (
    paused_in_a_turn,
    paused_over_an_egress,
    paused_in_a_retry,
    paused_in_an_import,
    paused_in_a_plan,
    paused_in_housekeeping,
)


def test_a_paused_client_loses_its_locks_and_others_go_on(connections: Connections) -> None:
    told = together(*[partial(case, connections) for case in CASES])

    assert [[issubclass(error, psycopg.OperationalError) for error in errors] for errors in told] == [
        [True]
    ] * len(CASES)


def test_a_client_paused_behind_pgbouncer_loses_its_locks_too(
    connections: Connections, pgbouncer_url: str
) -> None:
    conn = connections()
    batch = shop(conn, "shop")
    with closing(connect(pgbouncer_url)) as paused, suppress(psycopg.Error), transaction(paused):
        paused.execute(sql("lock_batch"), {"batch": batch})
        assert batches.stop(conn, batch, "drain")
        paused.execute(sql("stop_batch"), {"batch": batch, "stop": "none"})

    assert scalar(conn, "select stop::text from batch") == "drain"
