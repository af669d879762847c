"""Connections to the test's own database, closed at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from crawlfleet.store.connection import Connection, connect


@pytest.fixture
def connections(database_url: str) -> Iterator[Callable[[], Connection]]:
    """A function that opens one more connection."""
    with ExitStack() as opened:
        yield lambda: opened.enter_context(closing(connect(database_url)))


@pytest.fixture
def conn(connections: Callable[[], Connection]) -> Connection:
    return connections()
