"""Every pair of operations at once on the same rows: none is ever the victim of a deadlock.

The order of locks is batch, permit, task, track, account, egress, item. Every row that a statement changes or deletes
holds it up for a moment, so that two operations are in the midst of each other, and each pair runs a few times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from random import Random
from threading import Event

import psycopg
import pytest
from builders import (
    account,
    add_accounts,
    batch_plan,
    declare_source,
    egress,
    ended,
    plan_batch,
    process,
    register_worker,
    take,
    together,
)

from crawlfleet.crawl import encode
from crawlfleet.credentials import KeyRing, proxy_context
from crawlfleet.errors import AuthFailed, Blocked, Throttled
from crawlfleet.keys import rotate
from crawlfleet.local.postgres import EmbeddedPostgres
from crawlfleet.planner import NobodyToCrawl, Selector, plan_somebody
from crawlfleet.politeness import BANNED_AFTER
from crawlfleet.sources import Item
from crawlfleet.store import accounts, batches, fleet, oversight, turn
from crawlfleet.store.connection import Connection, connect, transaction
from crawlfleet.store.oversight import Levers
from crawlfleet.store.queries import sql
from crawlfleet.store.sources import EgressSpec, lock_sources, put_source
from crawlfleet.store.turn import Finished, Identity, Lease, Row
from crawlfleet.verdicts import OK, Outcome

ROUNDS = 2
LATEST_S = 0.03
"""One of the two begins up to that much later."""
USERS = range(1, 9)
SOURCES = ("mall", "shop")
NAMESPACE = "crawl"
KEPT = ("egress", "permit", "account", "track", "task", "item", "batch", "worker", "source", "fleet")

_SLOW_ROWS = """
create function hold_up() returns trigger language plpgsql as $$
begin
    perform pg_sleep(0.001);
    return case when tg_op = 'DELETE' then old else new end;
end $$;
do $$
declare name text;
begin
    foreach name in array array['batch', 'permit', 'task', 'track', 'account', 'egress', 'item', 'worker'] loop
        execute format('create trigger slow before update or delete on %I for each row execute function hold_up()', name);
    end loop;
end $$;
"""


@dataclass
class World:
    """Two sources with two egresses each, eight users with an account at both, two batches over all of them; and a
    source `spare` that no batch crawls.

    Users 1 to 4 are leased by `mine` of the first batch, whose permits are silent; 5 and 6 by `others` of the
    second. In the first batch 5 and 6 wait and are due, and 7 is dead; all else is ready. One egress of each
    source is banned.
    """

    conn: Connection
    keys: KeyRing
    newer_keys: KeyRing
    egresses: dict[str, list[EgressSpec]]
    mine: Identity
    others: Identity
    fresh: tuple[Identity, Identity]
    leases: list[Lease]
    other_leases: list[Lease]

    @property
    def first(self) -> int:
        return self.mine.batch_id

    def save(self) -> None:
        for table in KEPT:
            self.conn.execute(f"create table saved.{table} as table {table}")
        self.conn.execute(_SLOW_ROWS)

    def restore(self) -> None:
        """As it was saved, without the triggers."""
        with self.conn.transaction():
            self.conn.execute("set local session_replication_role = replica")
            self.conn.execute("delete from failure; delete from progress")
            self.conn.execute(
                "delete from batch_source where batch_id not in (select batch_id from saved.batch)"
            )
            for table in KEPT:
                self.conn.execute(f"delete from {table}")
                self.conn.execute(f"insert into {table} overriding system value table saved.{table}")


@pytest.fixture(scope="module")
def world(
    postgres: EmbeddedPostgres, _template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """In a database that all pairs share, since it is restored between them."""
    with closing(psycopg.connect(postgres.url, autocommit=True)) as admin:
        admin.execute(f"create database lock_order template {_template}")
        with closing(connect(postgres.url.replace("///crawlfleet?", "///lock_order?"))) as conn:
            yield _build(conn, tmp_path_factory.mktemp("keys") / "keys")
        admin.execute("drop database lock_order with (force)")


def _build(conn: Connection, file: Path) -> World:
    old, new = KeyRing.new_key(), KeyRing.new_key()
    keys, newer_keys = _ring(file, old, new), _ring(file, new, old)
    specs = {source: [_egress(keys, source, name) for name in ("good", "banned")] for source in SOURCES}
    for source in reversed(SOURCES):  # their numbers are in another order than their names
        declare_source(conn, *specs[source], name=source)
        add_accounts(conn, USERS, source=source, keys=keys)
    declare_source(conn, egress("one", exit="z"), egress("two", exit="a"), name="spare", namespace=NAMESPACE)
    first, second = (plan_batch(conn, sources=SOURCES, workers=2, retain_s=0) for _ in range(2))
    conn.execute("update batch set namespace = %s", (NAMESPACE,))
    conn.execute(
        "update track k set egress_id = e.egress_id from egress e"
        " where e.source_id = k.source_id and (e.name = 'banned') = (k.user_id % 3 < 2);"
        " update task t set egress_id = k.egress_id from track k where (k.source_id, k.user_id) = (t.source_id, t.user_id)"
    )
    mine, others = register_worker(conn, first), register_worker(conn, second)
    leases = _take_only(conn, mine, range(1, 5))
    other_leases = _take_only(conn, others, range(5, 7))
    conn.execute(
        "update task set state = case when user_id = 7 then 'dead' when user_id = 8 then 'ready' else 'waiting' end"
        "::task_state, run_after = now() where batch_id = %s and state <> 'leased'",
        (first,),
    )
    conn.execute("update task set state = 'ready' where batch_id = %s and state <> 'leased'", (second,))
    conn.execute("update fleet set tick = 1000; update worker set renewed_tick = 1000")
    conn.execute(
        "update permit set renewed_tick = case batch_id when %s then 0 else 1000 end where lease_id > 0",
        (first,),
    )
    conn.execute("update egress set cuts_in_row = %s where name = 'banned'", (BANNED_AFTER,))
    conn.execute("update source set retain_days = 1")
    with transaction(conn):
        turn.write_items(conn, [(lease, _rows("old")) for lease in (*leases, *other_leases)])
    conn.execute("update item set seen_on = current_date - 2")
    fresh = (register_worker(conn, first, 1), register_worker(conn, second, 1))
    conn.execute("create schema saved")
    found = World(conn, keys, newer_keys, specs, mine, others, fresh, leases, other_leases)
    found.save()
    return found


def _ring(file: Path, *lines: str) -> KeyRing:
    file.write_text("\n".join(lines))
    file.chmod(0o600)
    return KeyRing.load(file)


def _egress(keys: KeyRing, source: str, name: str) -> EgressSpec:
    url = keys.seal({"url": "http://127.0.0.1:9"}, proxy_context(source, name))
    return replace(egress(name, 8), proxy=url)


def _take_only(conn: Connection, me: Identity, users: range) -> list[Lease]:
    conn.execute(
        "update task set state = case when user_id = any(%s) then 'ready' else 'dead' end::task_state"
        " where batch_id = %s",
        (list(users), me.batch_id),
    )
    leases: list[Lease] = []
    while more := take(conn, me):
        leases += more
    assert len(leases) == len(users) * len(SOURCES)
    return leases


def _rows(text: str) -> list[Row]:
    return [encode(Item("order", str(number), {"text": text})) for number in (3, 1, 2)]


# The operations. Whatever may come in any order comes in another one than that of the locks.

REFUSED, BANNED = Outcome.of(AuthFailed("Refused")), Outcome.of(Blocked("BanPage"))
TOLD = Outcome.of(Throttled("CallLimit", retry_after_s=5.0, account_only=True))


def _ended(leases: list[Lease], *hows: Outcome) -> list[Finished]:
    backwards = sorted(leases, key=lambda lease: (lease.user_id, lease.source_id), reverse=True)
    return [
        ended(lease, hows[number % len(hows)], rows=_rows("new")) for number, lease in enumerate(backwards)
    ]


def commit(world: World, conn: Connection) -> None:
    """Of odd users one source, of even users the other: whoever locks source by source comes in another order."""
    lower = min(lease.source_id for lease in world.leases)
    some = [lease for lease in world.leases if lease.user_id % 2 == (lease.source_id > lower)]
    with transaction(conn):
        turn.commit(conn, world.mine, _ended(some, OK), Random(0))


def park(world: World, conn: Connection) -> None:
    with transaction(conn):
        turn.commit(conn, world.mine, _ended(world.leases, REFUSED, BANNED, TOLD), Random(0))


def commit_and_take(world: World, conn: Connection) -> None:
    with transaction(conn):
        turn.commit(conn, world.others, _ended(world.other_leases, OK, TOLD, REFUSED, BANNED), Random(0))
        turn.take(conn, world.others, 0)


def take_first(world: World, conn: Connection) -> None:
    take(conn, world.fresh[0])


def take_second(world: World, conn: Connection) -> None:
    take(conn, world.fresh[1])


def write_ahead(world: World, conn: Connection) -> None:
    for lease in reversed(world.leases):
        with transaction(conn):
            turn.write_ahead(conn, world.mine, lease, _rows("ahead"))


def renew(world: World, conn: Connection) -> None:
    fleet.renew(conn, world.mine.worker_id, world.leases[::-1])


def rescue(world: World, conn: Connection) -> None:
    with transaction(conn):
        fleet.rescue(conn)


def promote(world: World, conn: Connection) -> None:
    with transaction(conn):
        conn.execute(sql("promote"), {"batch": world.first})


def move_accounts(world: World, conn: Connection) -> None:
    with transaction(conn):
        fleet.move_accounts(conn)
    with transaction(conn):
        conn.execute(sql("move_ready_tasks"), {"batch": world.first, "banned_after": BANNED_AFTER})


def close(world: World, conn: Connection) -> None:
    with transaction(conn):
        fleet.close_batch(conn, world.first)


def cancel(world: World, conn: Connection) -> None:
    batches.stop(conn, world.first, "cancel")
    with transaction(conn):
        conn.execute(sql("cancel_unbegun"), {"batch": world.first})


def forget_items(world: World, conn: Connection) -> None:
    with transaction(conn):
        conn.execute(sql("forget_items"))


def housekeep(world: World, conn: Connection) -> None:
    fleet.housekeep(conn)


def bury(world: World, conn: Connection) -> None:
    fleet.bury_worker(conn, world.first, process().pid_space, process().pid)


def plan(world: World, conn: Connection) -> None:
    plan_batch(conn, sources=SOURCES[::-1])


def retry(world: World, conn: Connection) -> None:
    batches.retry(conn, world.first, None)


def import_accounts(world: World, conn: Connection) -> None:
    lines = [account(u, source=s, credentials={"token": "new"}) for u in reversed(USERS) for s in SOURCES]
    add_accounts(conn, lines, keys=world.keys)


def disable(world: World, conn: Connection) -> None:
    for user in reversed(USERS):
        accounts.set_state(conn, user, None, "disabled", "by a person")


def purge(world: World, conn: Connection) -> None:
    for user in reversed(USERS):
        accounts.purge(conn, user)


def put_sources(world: World, conn: Connection) -> None:
    with transaction(conn):
        lock_sources(conn, SOURCES)
        for source in SOURCES:
            put_source(conn, source, world.egresses[source][::-1])


def remove_egresses(world: World, conn: Connection) -> None:
    with transaction(conn):
        lock_sources(conn, SOURCES)
        for source in SOURCES:
            put_source(conn, source, [])


def claim_sources(world: World, conn: Connection) -> None:
    """As a CrawlSource each."""
    for source in SOURCES[::-1]:
        with transaction(conn):
            lock_sources(conn, [source])
            put_source(conn, source, world.egresses[source], namespace=NAMESPACE)


def release_source(world: World, conn: Connection) -> None:
    oversight.release_source(conn, "spare", NAMESPACE)


def set_levers(world: World, conn: Connection) -> None:
    for uid in _uids(conn):
        oversight.set_levers(conn, uid, Levers(1, 5, "cancel"))


def forget_batches(world: World, conn: Connection) -> None:
    for uid in _uids(conn):
        oversight.forget_batch(conn, uid, 3600)


def plan_nobody(world: World, conn: Connection) -> None:
    wanted = batch_plan(sources=SOURCES[::-1], selector=Selector(ids=[77]), namespace=NAMESPACE)
    with suppress(NobodyToCrawl):
        plan_somebody(conn, wanted)


def _uids(conn: Connection) -> list[str]:
    return [uid for (uid,) in conn.execute("select uid from batch order by batch_id desc")]


def rotate_keys(world: World, conn: Connection) -> None:
    rotate(conn, world.newer_keys)


Operation = Callable[[World, Connection], None]
TAKING: tuple[Operation, ...] = (take_first, take_second, commit_and_take)
OPERATIONS: tuple[Operation, ...] = (
    *TAKING,
    commit,
    park,
    write_ahead,
    renew,
    rescue,
    promote,
    move_accounts,
    close,
    cancel,
    forget_items,
    housekeep,
    bury,
    plan,
    retry,
    import_accounts,
    disable,
    purge,
    put_sources,
    remove_egresses,
    claim_sources,
    release_source,
    set_levers,
    forget_batches,
    plan_nobody,
    rotate_keys,
)


def _until_through(world: World, conn: Connection, operation: Operation, *, may_deadlock: bool) -> None:
    """As the worker does: a take that met another take is tried again."""
    for _ in range(5):
        try:
            return operation(world, conn)
        except psycopg.errors.UniqueViolation:
            if operation not in TAKING:
                raise
        except psycopg.errors.DeadlockDetected:
            if not may_deadlock:
                raise
    pytest.fail(f"{operation.__name__} did not get through")


@pytest.mark.parametrize(
    ("one", "other"),
    list(combinations_with_replacement(OPERATIONS, 2)),
    ids=lambda operation: operation.__name__,
)
def test_no_two_operations_deadlock(world: World, one: Operation, other: Operation) -> None:
    """Two takes may, over accounts that two batches share: the worker tries again."""
    may_deadlock = one in TAKING and other in TAKING
    random = Random(f"{one.__name__} {other.__name__}")

    def run(conn: Connection, operation: Operation, delay_s: float) -> None:
        Event().wait(delay_s)
        _until_through(world, conn, operation, may_deadlock=may_deadlock)

    with ExitStack() as opened:
        connections = [opened.enter_context(closing(connect(world.conn.info.dsn))) for _ in range(2)]
        for number in range(ROUNDS):
            world.restore()
            delays = (0.0, random.uniform(0, LATEST_S))
            together(*map(partial, [run] * 2, connections, (one, other), delays[:: (-1) ** number]))
