"""A client that stops in the middle of a transaction loses it, with every lock, and the fleet goes on.

Each case costs the time-out of an idle transaction, so all of them run at once, each on rows of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from random import Random
from tempfile import NamedTemporaryFile
from typing import Any, cast

import psycopg
import pytest
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

from crawlfleet.crawl import encode
from crawlfleet.credentials import KeyRing
from crawlfleet.errors import Blocked, Bug
from crawlfleet.keys import rotate
from crawlfleet.planner import plan
from crawlfleet.sources import Item
from crawlfleet.store import accounts, batches, fleet, turn
from crawlfleet.store.connection import IDLE_IN_TRANSACTION_S, Connection, connect, transaction
from crawlfleet.store.fleet import close_batch, housekeep
from crawlfleet.store.queries import sql
from crawlfleet.store.sources import lock_sources, put_source, source_id_of

IDLE = "idle_in_transaction_session_timeout"
Connections = Callable[[], Connection]
Act = Callable[[Connection], object]


class AtCommit:
    """A connection whose client stops before it commits the transaction with that statement."""

    def __init__(self, conn: Connection, statement: str, stop: Callable[[], None]) -> None:
        self._conn = conn
        self._statement = sql(statement)
        self._stop = stop
        self._stops = False

    def execute(self, query: Any, *args: Any) -> Any:
        self._stops |= query == self._statement
        if query == "commit" and self._stops:
            self._stop()
        return self._conn.execute(query, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)


def pause_in(
    connections: Connections, operation: Act, statement: str, *, meanwhile: Act, rival: Act
) -> list[type[BaseException]]:
    """Stop an operation before it commits `statement`; returns what the client is told when it goes on.

    `meanwhile` needs nothing that is locked, and the time-out waits for it; `rival` wants it all, and gets it in the end.
    """
    paused, watch = connections(), connections()
    alive = "select exists (select from pg_stat_activity where pid = %s)"
    told: list[type[BaseException]] = []
    with ThreadPoolExecutor(1) as thread:
        waiting: list[Future[object]] = []

        def stop() -> None:
            waiting.append(thread.submit(rival, connections()))
            idle_s = scalar(paused, f"show {IDLE}")
            paused.execute(f"set local {IDLE} = 0")
            meanwhile(connections())
            assert scalar(watch, alive, paused.info.backend_pid)
            paused.execute(f"set local {IDLE} = '{idle_s}'")
            until(lambda: not scalar(watch, alive, paused.info.backend_pid), 4 * IDLE_IN_TRANSACTION_S)

        try:
            operation(cast(Connection, AtCommit(paused, statement, stop)))
        except psycopg.Error as exc:
            told.append(type(exc))
        [rivals] = waiting
        rivals.result(timeout=30)
    return told


def pause(
    connections: Connections, lock: Act, *, meanwhile: Act, rival: Act, long: bool = False
) -> list[type[BaseException]]:
    """The same for a transaction that its caller begins: stop after `lock`."""

    def operation(conn: Connection) -> None:
        with transaction(conn, long=long):
            lock(conn)
            conn.execute(sql("clock"))  # locks nothing: the mark of this transaction

    return pause_in(connections, operation, "clock", meanwhile=meanwhile, rival=rival)


def shop(conn: Connection, name: str, keys: KeyRing | None = None) -> int:
    """A source of that name with 4 permits, 8 accounts, and a batch for two workers."""
    declare_source(conn, egress(cap=4), name=name)
    add_accounts(conn, range(1, 9), source=name, keys=keys)
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


def paused_in_an_intent(connections: Connections) -> list[type[BaseException]]:
    """The account is locked before its token is sent: other crawls go on, and its next crawl refreshes."""
    conn = connections()
    me = register_worker(conn, shop(conn, "intend"))
    [mine, other, *_] = take(conn, me)
    stored = accounts.read_credentials(conn, mine.source_id, mine.user_id)
    assert stored is not None
    key = (mine.source_id, mine.user_id, stored)

    def intends(conn: Connection) -> None:
        assert accounts.intend_refresh(conn, *key, lease_id=1)

    return pause_in(
        connections,
        lambda paused: accounts.intend_refresh(paused, *key, mine.lease_id),
        "intend_refresh",
        meanwhile=lambda conn: commit(conn, me, ended(other)),
        rival=intends,
    )


def paused_in_a_store(connections: Connections) -> list[type[BaseException]]:
    """The account is locked by whoever stores its new token: stored again, it is there."""
    conn = connections()
    me = register_worker(conn, shop(conn, "store"))
    [mine, other, *_] = take(conn, me)
    key = (mine.source_id, mine.user_id, 0)

    def stored(conn: Connection) -> None:
        assert accounts.store_refresh(conn, *key, b"again")

    return pause_in(
        connections,
        lambda paused: accounts.store_refresh(paused, *key, b"new"),
        "store_refresh",
        meanwhile=lambda conn: commit(conn, me, ended(other)),
        rival=stored,
    )


def paused_in_a_parking(connections: Connections) -> list[type[BaseException]]:
    """A refused account is locked: others are crawled, and the seller's new consent is imported."""
    conn = connections()
    me = register_worker(conn, shop(conn, "park"))
    [mine, other, *_] = take(conn, me)
    return pause_in(
        connections,
        lambda paused: accounts.park(paused, mine.source_id, mine.user_id, 0, "RefreshRefused"),
        "park_accounts",
        meanwhile=lambda conn: commit(conn, me, ended(other)),
        rival=lambda conn: add_accounts(
            conn, [account(mine.user_id, source="park", credentials={"token": "new"})]
        ),
    )


def paused_in_a_chunk(connections: Connections) -> list[type[BaseException]]:
    """A permit is kept and items are written ahead: the permit is renewed, and its crawl commits."""
    conn = connections()
    me = register_worker(conn, shop(conn, "ahead"))
    [mine, *_] = take(conn, me)
    rows = [encode(Item("order", str(number), {})) for number in range(3)]

    def renewed(conn: Connection) -> None:
        assert fleet.renew(conn, me.worker_id, [mine]) == {mine.lease_id}

    def committed(conn: Connection) -> None:
        assert commit(conn, me, ended(mine, rows=rows))

    return pause(
        connections,
        partial(turn.write_ahead, me=me, lease=mine, rows=rows),
        meanwhile=renewed,
        rival=committed,
    )


def paused_in_a_purge(connections: Connections) -> list[type[BaseException]]:
    """A user's rows are half gone: others are crawled, and the user comes back by an import."""
    conn = connections()
    declare_source(conn, egress(cap=4), name="purge")
    add_accounts(conn, [*range(1, 9), 99], source="purge")
    me = register_worker(conn, plan_batch(conn, sources=["purge"]))
    [mine, *_] = take(conn, me)

    def imported(conn: Connection) -> None:
        add_accounts(conn, [99], source="purge")
        assert accounts.show_account(conn, 99)

    return pause_in(
        connections,
        lambda paused: accounts.purge(paused, 99),
        "purge_snapshots",
        meanwhile=lambda conn: commit(conn, me, ended(mine)),
        rival=imported,
    )


def paused_in_a_renewal(connections: Connections) -> list[type[BaseException]]:
    """A worker and its permits are locked: others take, and the worker commits what it holds."""
    conn = connections()
    batch = shop(conn, "renew")
    me = register_worker(conn, batch, 0, slots=2)
    mine = take(conn, me)
    other = register_worker(conn, batch, 1)

    def others_go_on(conn: Connection) -> None:
        assert len(take(conn, other)) == 2

    def committed(conn: Connection) -> None:
        assert len(commit(conn, me, *map(ended, mine))) == 2

    return pause_in(
        connections,
        lambda paused: fleet.renew(paused, me.worker_id, mine),
        "renew_permits",
        meanwhile=others_go_on,
        rival=committed,
    )


def paused_in_a_good_bye(connections: Connections) -> list[type[BaseException]]:
    """A registration is locked: another process registers, and this one was not ended."""
    conn = connections()
    batch = shop(conn, "good-bye")
    me = register_worker(conn, batch)

    def renewed(conn: Connection) -> None:
        assert fleet.renew(conn, me.worker_id, []) == set()

    return pause_in(
        connections,
        lambda paused: fleet.end_worker(paused, me.worker_id),
        "end_worker",
        meanwhile=lambda conn: take(conn, register_worker(conn, batch, 1)),
        rival=renewed,
    )


def paused_in_a_rescue(connections: Connections) -> list[type[BaseException]]:
    """Lost permits and their tasks are locked: other workers take, and the next rescuer frees them."""
    conn = connections()
    batch = shop(conn, "rescue")
    take(conn, register_worker(conn, batch, 0, slots=2))
    other = register_worker(conn, batch, 1)
    lose = "update permit set renewed_tick = -1000 where batch_id = %s and worker_id <> %s"
    lost = "select count(*) from permit where batch_id = %s and worker_id <> %s"

    def rescued(paused: Connection) -> None:
        paused.execute(lose, (batch, other.worker_id))
        assert fleet.rescue(paused) == 2

    def others_go_on(conn: Connection) -> None:
        assert len(take(conn, other)) == 2

    def rescued_by_another(conn: Connection) -> None:
        assert conn.execute(lose, (batch, other.worker_id)).rowcount == 2
        with transaction(conn):
            fleet.rescue(conn)
        assert scalar(conn, lost, batch, other.worker_id) == 0

    return pause(connections, rescued, meanwhile=others_go_on, rival=rescued_by_another)


def paused_in_a_rotation_of_keys(connections: Connections) -> list[type[BaseException]]:
    """A chunk of all accounts is locked and sealed anew: they are crawled on, and the next import gets through."""
    conn = connections()
    old, new = KeyRing.new_key(), KeyRing.new_key()
    me = register_worker(conn, shop(conn, "rotate", ring(old)))
    [mine, *_] = take(conn, me)
    again = [account(user, source="rotate", credentials={"token": "new"}) for user in range(1, 9)]
    return pause_in(
        connections,
        lambda paused: rotate(paused, ring(new, old)),
        "sealed_accounts",
        meanwhile=lambda conn: commit(conn, me, ended(mine)),
        rival=lambda conn: add_accounts(conn, again, keys=ring(old)),
    )


def ring(*lines: str) -> KeyRing:
    """A key ring of these keys; the first one seals."""
    with NamedTemporaryFile("w") as file:
        file.write("\n".join(lines))
        file.flush()
        return KeyRing.load(Path(file.name))


def paused_in_an_apply(connections: Connections) -> list[type[BaseException]]:
    """A source and all egresses are locked: crawls end and begin, and the next apply gets through."""
    conn = connections()
    me = register_worker(conn, shop(conn, "apply"))
    mine = take(conn, me)

    def applied(conn: Connection, cap: int) -> None:
        lock_sources(conn, ["apply"])
        put_source(conn, "apply", [egress(cap=cap, exit="apply")])

    def turned(conn: Connection) -> None:
        assert len(commit(conn, me, *map(ended, mine))) == 4
        assert len(take(conn, me)) == 4

    def applied_by_another(conn: Connection) -> None:
        with transaction(conn):
            applied(conn, 3)
        assert scalar(conn, "select cap from egress where exit = 'apply'") == 3

    return pause(
        connections,
        lambda paused: applied(paused, 2),
        meanwhile=turned,
        rival=applied_by_another,
    )


SIDE_BY_SIDE = (
    paused_in_a_turn,
    paused_over_an_egress,
    paused_in_a_retry,
    paused_in_an_import,
    paused_in_a_plan,
    paused_in_housekeeping,
    paused_in_an_intent,
    paused_in_a_store,
    paused_in_a_parking,
    paused_in_a_chunk,
    paused_in_a_purge,
    paused_in_a_renewal,
    paused_in_a_good_bye,
    paused_in_a_rescue,
)


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(SIDE_BY_SIDE, id="side-by-side"),
        pytest.param([paused_in_an_apply], id="apply"),  # locks all egresses
        pytest.param([paused_in_a_rotation_of_keys], id="rotation"),  # locks all accounts
    ],
)
def test_a_paused_client_loses_its_locks_and_others_go_on(
    connections: Connections, cases: Sequence[Callable[[Connections], list[type[BaseException]]]]
) -> None:
    told = together(*[partial(case, connections) for case in cases])

    lost = [[issubclass(error, psycopg.OperationalError) for error in errors] for errors in told]
    assert lost == [[True]] * len(cases)


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
