"""The database, for an event loop: each call of `store` runs in a thread that has a connection of its own.

A plan of 100,000 accounts takes seconds: plans have threads apart, so that nothing waits for them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

import psycopg

from crawlfleet.errors import CrawlfleetError
from crawlfleet.store.connection import Connection, Reconnecting, first_line, unavailable
from crawlfleet.store.migrations import check_schema

P = ParamSpec("P")
T = TypeVar("T")

THREADS, PLANNERS = 4, 2


class TryAgain(CrawlfleetError):
    """A deadlock, a time-out: the database answers, and the same may be asked of it again."""


class Database:
    """Raises DatabaseUnavailable if it does not answer, SchemaMismatch if its schema is not ours, TryAgain."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._mine = threading.local()
        self._short = ThreadPoolExecutor(THREADS, "database")
        self._long = ThreadPoolExecutor(PLANNERS, "planner")

    async def __call__(
        self, do: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `do(connection, …)` returns."""
        return await self._in(self._short, do, *args, **kwargs)

    async def plan(self, do: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same, for what may take long."""
        return await self._in(self._long, do, *args, **kwargs)

    def close(self) -> None:
        """What runs goes on to its end; a plan that is cut off by the process's end is rolled back."""
        self._short.shutdown(wait=False, cancel_futures=True)
        self._long.shutdown(wait=False, cancel_futures=True)

    async def _in(
        self,
        threads: ThreadPoolExecutor,
        do: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            threads, lambda: self._do(do, *args, **kwargs)
        )

    def _do(self, do: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        conn = self._connection()
        try:
            return do(conn, *args, **kwargs)
        except (psycopg.OperationalError, psycopg.InterfaceError) as exc:
            raise unavailable(exc) if conn.closed else TryAgain(first_line(exc)) from exc
        except psycopg.errors.ReadOnlySqlTransaction as exc:  # a standby by now: the primary is elsewhere
            conn.close()
            raise unavailable(exc) from exc

    def _connection(self) -> Connection:
        """This thread's; one that is new, or was lost, is first asked for its schema."""
        if not hasattr(self._mine, "connect"):
            self._mine.connect = Reconnecting(self._url, "crawlfleet operator")
            self._mine.checked = None
        conn: Connection = self._mine.connect()
        if self._mine.checked is not conn:
            try:
                check_schema(conn)
            except psycopg.OperationalError as exc:
                raise unavailable(exc) from exc
            self._mine.checked = conn
        return conn
