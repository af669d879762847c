"""A `Crawl` with real pages of a real Chrome for tests of adapters; no fleet around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from direct_crawl import DirectCrawl

from crawlfleet.browser.page import Page
from crawlfleet.browser.pool import Pool
from crawlfleet.demo.korea import KST
from crawlfleet.sources import Credentials


class BrowserCrawl(DirectCrawl):
    """`turns` counts how often it would have waited for its turn at the egress."""

    def __init__(self, pool: Pool, base_url: str, credentials: Credentials) -> None:
        super().__init__(base_url, credentials, datetime.now(KST))
        self._pool = pool
        self.turns = 0

    @contextmanager
    def browse(self) -> Iterator[Page]:
        with self._pool.page(None, self._connections, self._turn, lambda: None) as page:
            yield page

    def _turn(self) -> None:
        self.turns += 1
