"""Connections and transactions: the same time-outs for every one, in a way that pgbouncer lets through.

Session settings do not survive pgbouncer's transaction mode, so each transaction sets its own. A client
that is paused or gone inside a transaction loses it, and with it every lock, after IDLE_IN_TRANSACTION_S.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, LiteralString, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from crawlfleet.errors import BadConfiguration, DatabaseUnavailable

Connection = psycopg.Connection[TupleRow]

STATEMENT_S = 30
IDLE_IN_TRANSACTION_S = 5

# Short transactions look up a few rows by key. Statistics lag behind tables that turn over in seconds, so the
# planner is told: no JIT (a mistaken estimate compiles for 15 ms) and no scan of a whole table.
_BEGIN: LiteralString = (
    "begin; set local statement_timeout = '30s'; set local idle_in_transaction_session_timeout = '5s';"
    " set local jit = off; set local enable_seqscan = off"
)
_BEGIN_LONG: LiteralString = (
    "begin; set local statement_timeout = '15min'; set local idle_in_transaction_session_timeout = '5s'"
)
_OPTIONS: dict[str, Any] = {
    "autocommit": True,  # `transaction` says begin and commit itself
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


def connect(url: str, name: str = "crawlfleet") -> Connection:
    """A connection for `transaction`. Raises DatabaseUnavailable with the server's own words.

    BadConfiguration if this is no URL; without its text, which may hold a password.
    """
    _check_url(url)
    try:
        conn = psycopg.connect(url, application_name=name, **_OPTIONS)
        _prepare_if_direct(conn)
    except psycopg.OperationalError as exc:
        raise unavailable(exc) from exc
    return conn


def _check_url(url: str) -> None:
    try:
        host = conninfo_to_dict(url).get("host") or ""
    except psycopg.ProgrammingError:
        host = "@"
    if "@" in str(host):  # a password with an unquoted @: its rest would be shown as the host
        raise BadConfiguration(
            "the database URL cannot be read; expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE,"
            " with special characters in it quoted (@ as %40)"
        )


def _prepare_if_direct(conn: Connection) -> None:
    """Prepared statements save the planner's time, but do not survive pgbouncer's transaction mode.

    A pooler answers the cancel key with a process id of its own.
    """
    backend = conn.execute("select pg_backend_pid()", prepare=False).fetchone()
    conn.prepare_threshold = 2 if backend == (conn.info.backend_pid,) else None


def pool(url: str, size: int, name: str = "crawlfleet") -> ConnectionPool[Connection]:
    """A pool of such connections, opened on first use; the caller closes it."""
    return ConnectionPool(
        url,
        kwargs=_OPTIONS | {"application_name": name, "prepare_threshold": None},
        configure=_prepare_if_direct,
        min_size=0,
        max_size=size,
        open=True,
        timeout=STATEMENT_S,
        reconnect_timeout=STATEMENT_S,
    )


def unavailable(exc: Exception) -> DatabaseUnavailable:
    """Say that the database cannot be reached, and what to look at."""
    words = " ".join(str(exc).split())
    end = "" if words.endswith((".", "?")) else "."  # libpq asks whether the server is running
    return DatabaseUnavailable(
        f"cannot reach the database: {words}{end} Check that PostgreSQL runs and that CRAWLFLEET_DATABASE_URL is right."
    )


@contextmanager
def transaction(conn: Connection, *, long: bool = False) -> Iterator[Connection]:
    """One transaction with our time-outs; `long` for a statement that may take minutes (a plan, an export).

    An exception rolls back; a lost connection needs no rollback. A client that was paused in it for too long finds
    its connection lost as by any other cause: OperationalError.
    """
    try:
        conn.execute(_BEGIN_LONG if long else _BEGIN)
        yield conn
        conn.execute("commit")
    except psycopg.errors.IdleInTransactionSessionTimeout as exc:  # no OperationalError in psycopg's classes
        raise psycopg.OperationalError(f"the connection was lost: {exc}") from exc
    except BaseException:
        with suppress(psycopg.Error):  # the connection is lost: so is the transaction
            conn.execute("rollback")
        raise


class Reconnecting:
    """A thread's own connection, opened when it is first needed and again after it was lost."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._conn: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._conn is not None:
            self._conn.close()

    def __call__(self) -> Connection:
        if self._conn is None or self._conn.closed:
            self._conn = connect(self._url, self._name)
        return self._conn


def is_refused_data(exc: psycopg.Error) -> bool:
    """Whether PostgreSQL refuses the data itself (a NUL, an oversized key): trying again will not help."""
    return isinstance(exc, psycopg.DataError) or (exc.sqlstate or "")[:2] in ("22", "54")


def first_line(exc: Exception) -> str:
    """An error's first line, for a log."""
    return str(exc).strip().split("\n", 1)[0]


def check_durability(conn: Connection) -> None:
    """Raise BadConfiguration if a crash of PostgreSQL could forget a commit: permits and lease ids would be given twice."""
    setting = conn.execute("select current_setting('synchronous_commit')").fetchone()
    if setting == ("off",):
        raise BadConfiguration(
            "the database has synchronous_commit = off: a crash would forget permits and hand out their numbers again;"
            " switch it on for this database (alter database ... set synchronous_commit = on)"
        )
