"""What every connection of ours brings along, whoever opens it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import pytest

from crawlfleet.store.connection import Connection, Reconnecting, connect, pool

WATCHED = {
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "connect_timeout": "5",
}


@contextmanager
def alone(url: str) -> Iterator[Connection]:
    with closing(connect(url)) as conn:
        yield conn


@contextmanager
def pooled(url: str) -> Iterator[Connection]:
    with pool(url, 1) as connections, connections.connection() as conn:
        yield conn


@contextmanager
def reconnecting(url: str) -> Iterator[Connection]:
    with Reconnecting(url, "test") as connection:
        yield connection()


@pytest.mark.parametrize("opened", [alone, pooled, reconnecting], ids=lambda opened: opened.__name__)
def test_every_connection_notices_a_database_that_is_gone(
    database_url: str, opened: Callable[[str], AbstractContextManager[Connection]]
) -> None:
    """Without these a client waits for a lost server's reply for as long as the kernel does: hours, or for ever."""
    with opened(database_url) as conn:
        told = {"keepalives": "1"} | conn.info.get_parameters()  # libpq tells only what is not its default

    assert {name: told.get(name) for name in WATCHED} == WATCHED
