"""The operator's way to the database: it comes and goes, and nothing waits for a plan."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from random import Random
from threading import Event
from threading import enumerate as enumerate_threads
from typing import Any

import pytest
from builders import scalar
from pg_proxy import PgProxy

from crawlfleet.errors import DatabaseUnavailable
from crawlfleet.store import oversight
from crawlfleet.store.connection import Connection
from crawlfleet.store.migrations import SchemaMismatch
from crawlfleet.store.oversight import Levers
from crawlfleet_operator.database import PLANNERS, THREADS, Database

LATER = "insert into schema_migration (version, name, checksum) values (9999, 'later', 'x')"


pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
"""A thread's connection ends with its thread, and psycopg complains: the operator's threads end with its process."""


@pytest.fixture
def proxy(database_url: str, open_dir: Path) -> Iterator[PgProxy]:
    with PgProxy(database_url, open_dir) as proxy:
        yield proxy


def run(test: Callable[[Database], Coroutine[Any, Any, None]], url: str) -> None:
    """In an event loop of its own; no thread outlives it."""
    database = Database(url)
    before = set(enumerate_threads())
    try:
        asyncio.run(asyncio.wait_for(test(database), 30))
    finally:
        database.close()
        for thread in set(enumerate_threads()) - before:
            if thread.name.startswith(("database", "planner")):
                thread.join(30)
        gc.collect()  # now, and not in the test after this one


def backend(conn: Connection) -> int:
    return int(scalar(conn, "select pg_backend_pid()"))


def test_a_call_has_the_stores_result(database_url: str) -> None:
    async def look(database: Database) -> None:
        assert await database(oversight.look, None) == {}
        assert await database.plan(scalar, "select 1 + %s", 1) == 2

    run(look, database_url)


def test_calls_at_once_have_connections_of_their_own(database_url: str) -> None:
    async def ask(database: Database) -> None:
        together = asyncio.gather(*[database(hold, barrier) for _ in range(THREADS)])
        assert len(set(await together)) == THREADS

    waiting: list[int] = []
    barrier = Event()

    def hold(conn: Connection, is_full: Event) -> int:
        waiting.append(1)
        if len(waiting) == THREADS:
            is_full.set()
        assert is_full.wait(20)
        return backend(conn)

    run(ask, database_url)


def test_a_connection_is_kept(database_url: str, conn: Connection) -> None:
    async def ask(database: Database) -> None:
        for _ in range(5 * THREADS):
            await database(backend)
        mine = "select count(*) from pg_stat_activity where application_name = 'crawlfleet operator'"
        assert scalar(conn, mine) <= THREADS

    run(ask, database_url)


def test_a_database_that_cannot_be_reached_is_told_and_comes_back(proxy: PgProxy) -> None:
    async def ask(database: Database) -> None:
        await database(oversight.look, None)
        proxy.refuse()
        for _ in range(2 * THREADS):
            with pytest.raises(DatabaseUnavailable, match="cannot reach the database"):
                await database(oversight.look, None)
        proxy.admit()
        for _ in range(2 * THREADS):
            assert await database(oversight.look, None) == {}

    run(ask, proxy.url)


def test_a_connection_that_was_cut_costs_one_call(proxy: PgProxy) -> None:
    """Each thread has one: it is opened again when it is needed."""

    async def ask(database: Database) -> None:
        await asyncio.gather(*[database(oversight.look, None) for _ in range(THREADS)])
        cut = proxy.cut(1.0, Random(0))
        failed = 0
        for _ in range(4 * THREADS):
            try:
                await database(oversight.look, None)
            except DatabaseUnavailable:
                failed += 1
        assert failed <= cut

    run(ask, proxy.url)


def test_a_newer_schema_is_refused_until_it_is_ours(database_url: str, conn: Connection) -> None:
    """The new operator takes over; if the upgrade is undone the old one goes on."""
    conn.execute(LATER)

    async def ask(database: Database) -> None:
        with pytest.raises(SchemaMismatch, match="9999, newer than this crawlfleet"):
            await database(oversight.look, None)
        conn.execute("delete from schema_migration where version = 9999")
        for _ in range(THREADS):
            assert await database(oversight.look, None) == {}

    run(ask, database_url)


def test_a_schema_is_looked_at_again_after_a_connection_was_lost(proxy: PgProxy, conn: Connection) -> None:
    """The database may be another one: restored, or upgraded."""

    async def ask(database: Database) -> None:
        await database(oversight.look, None)
        conn.execute(LATER)
        proxy.cut(1.0, Random(0))
        refused = 0
        for _ in range(2 * THREADS):
            try:
                await database(oversight.look, None)
            except SchemaMismatch:
                refused += 1
            except DatabaseUnavailable:
                pass
        assert refused >= THREADS

    run(ask, proxy.url)


def test_a_standby_is_an_outage_and_its_connections_are_left(database_url: str, conn: Connection) -> None:
    """Whoever was the primary keeps the connections of before; behind the same name there is another one now."""
    read_only = "alter database {} set default_transaction_read_only = {}".format

    def set_levers(conn: Connection) -> None:
        oversight.set_levers(conn, "nobody", Levers(1, 1, None))

    async def ask(database: Database) -> None:
        conn.execute(read_only(conn.info.dbname, "on").encode())
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            await database(set_levers)
        conn.execute(read_only(conn.info.dbname, "off").encode())
        for _ in range(2 * THREADS):
            await database(set_levers)

    run(ask, database_url)


def test_a_mistake_of_ours_is_no_outage(database_url: str) -> None:
    async def ask(database: Database) -> None:
        with pytest.raises(Exception, match='relation "nothing" does not exist') as wrong:
            await database(scalar, "select from nothing")
        assert not isinstance(wrong.value, DatabaseUnavailable)

    run(ask, database_url)


def test_nothing_waits_for_plans(database_url: str) -> None:
    """As many as there may be at once, and more in the queue."""
    done = Event()

    def plan(conn: Connection) -> None:
        assert done.wait(20)

    async def ask(database: Database) -> None:
        plans = [asyncio.create_task(database.plan(plan)) for _ in range(2 * PLANNERS)]
        await asyncio.sleep(0)
        assert await database(oversight.look, None) == {}
        assert not any(task.done() for task in plans)
        done.set()
        await asyncio.gather(*plans)

    run(ask, database_url)


def test_closing_waits_for_nobody(database_url: str) -> None:
    """What runs goes on to its end; what has not begun never will."""
    begun, done = Event(), Event()

    def plan(conn: Connection, number: int) -> int:
        begun.set()
        assert done.wait(20)
        return number

    async def ask(database: Database) -> None:
        plans = [asyncio.create_task(database.plan(plan, number)) for number in range(PLANNERS + 1)]
        await asyncio.get_running_loop().run_in_executor(None, partial(begun.wait, 20))
        database.close()
        done.set()
        *ran, never = await asyncio.gather(*plans, return_exceptions=True)
        assert ran == list(range(PLANNERS))
        assert isinstance(never, BaseException)

    run(ask, database_url)
