"""Connections to the test's own database, a fleet on it, a shop, and a Chrome for the tests of a module."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from fleet import Fleet, WatchedShop
from supervised import Supervised, require_chrome, supervised

from crawlfleet.browser.chrome import Chrome
from crawlfleet.browser.pool import Pool
from crawlfleet.store.connection import Connection, connect


@pytest.fixture
def connections(database_url: str) -> Iterator[Callable[[], Connection]]:
    """A function that opens one more connection."""
    with ExitStack() as opened:
        yield lambda: opened.enter_context(closing(connect(database_url)))


@pytest.fixture
def conn(connections: Callable[[], Connection]) -> Connection:
    return connections()


@pytest.fixture
def fleet(database_url: str, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(database_url, tmp_path) as fleet:
        yield fleet


@pytest.fixture
def shop() -> Iterator[WatchedShop]:
    with WatchedShop() as shop:
        yield shop


@pytest.fixture(scope="module")
def chrome(module_dir: Path) -> Iterator[Supervised]:
    """A real, supervised Chrome."""
    require_chrome()
    with supervised(module_dir / "chrome") as chrome:
        chrome.ready()
        yield chrome


@pytest.fixture
def pool(chrome: Supervised) -> Iterator[Pool]:
    """Its contexts, as a worker hands them out."""
    pool = Pool(Chrome(chrome.url))
    pool.start(threading.Event().wait)
    yield pool
    pool.close()
