"""Everything through pgbouncer in transaction mode: several connections share few of the server's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from random import Random
from time import monotonic

import psycopg
import pytest
from builders import ended, register_worker, scalar, shop_batch, together

from crawlfleet.crawl import encode
from crawlfleet.sources import Item
from crawlfleet.store import fleet, turn
from crawlfleet.store.batches import results
from crawlfleet.store.connection import Connection, connect, transaction
from crawlfleet.store.turn import Finished, Identity
from crawlfleet.worker import TRY_AGAIN

Connections = Callable[[], Connection]


@pytest.fixture
def pooled(pgbouncer_url: str) -> Iterator[Connections]:
    """A function that opens one more connection to pgbouncer."""
    with ExitStack() as opened:
        yield lambda: opened.enter_context(closing(connect(pgbouncer_url)))


def work(open_connection: Connections, me: Identity) -> None:
    """A worker's life: turns, renewals and chores, each on a connection of its own."""
    loop, heart, chores = open_connection(), open_connection(), open_connection()
    finished: list[Finished] = []
    deadline_s = monotonic() + 60
    while monotonic() < deadline_s and not fleet.housekeep(chores).closed:
        control = fleet.read_control(heart, me.worker_id)
        if control is None or control.batch_state == "closed":
            return
        try:
            with transaction(loop):
                turn.commit(loop, me, finished, Random(0))
                leases = turn.take(loop, me, 0)
        except psycopg.Error as exc:
            if exc.sqlstate not in TRY_AGAIN:
                raise
            continue
        assert fleet.renew(heart, me.worker_id, leases) == {lease.lease_id for lease in leases}
        rows = [encode(Item("order", "1", {"paid": True}))]
        finished = [ended(lease, rows=rows) for lease in leases]


def test_a_batch_runs_to_its_end_through_few_server_connections(
    pooled: Connections, conn: Connection
) -> None:
    planner = pooled()
    batch = shop_batch(planner, users=60, cap=6, workers=6)
    workers = [register_worker(planner, batch, ordinal, slots=4) for ordinal in range(6)]

    together(*[partial(work, pooled, me) for me in workers])

    assert scalar(planner, "select state::text from batch") == "closed"
    assert [row[0] for row in results(planner, batch, None, None)] == list(range(1, 61))
    servers = (
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    )
    assert scalar(conn, servers) < 3 * len(workers)


def test_time_outs_hold_in_every_transaction_and_end_with_it(pooled: Connections) -> None:
    """Whichever server connection it gets; the next client finds it as it was."""
    conn = pooled()
    settings = ("statement_timeout", "idle_in_transaction_session_timeout")
    with transaction(conn):
        inside = [scalar(conn, "select current_setting(%s)", name) for name in settings]
    outside = [scalar(conn, "select current_setting(%s)", name) for name in settings]

    assert inside == ["30s", "5s"]
    assert outside == ["0", "0"]


def test_a_statement_that_takes_too_long_is_ended(pooled: Connections) -> None:
    conn = pooled()

    with transaction(conn), pytest.raises(psycopg.errors.QueryCanceled):
        conn.execute("set local statement_timeout = '50ms'; select pg_sleep(30)")
    assert scalar(conn, "select 1") == 1


def test_statements_are_prepared_only_without_a_pooler_between(
    pooled: Connections, database_url: str
) -> None:
    """A prepared statement would be missing in the next transaction's server connection."""
    assert pooled().prepare_threshold is None
    with closing(connect(database_url)) as direct:
        assert direct.prepare_threshold == 2


def test_only_one_housekeeper_works_at_a_time(pooled: Connections) -> None:
    """The advisory lock belongs to the transaction, not to a server connection that others use."""
    one, other = pooled(), pooled()
    conn = pooled()
    conn.execute("update fleet set ticked_at = clock_timestamp() - interval '1 day'")

    chores = together(partial(fleet.housekeep, one), partial(fleet.housekeep, other))

    assert [c.ticked for c in chores].count(True) == 1
    with transaction(conn):
        assert scalar(conn, "select count(*) from pg_locks where locktype = 'advisory'") == 0
