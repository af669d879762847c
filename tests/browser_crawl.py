"""A `Crawl` with real pages of a real Chrome for tests of adapters; no fleet around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

import requests
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
        self._page: Page | None = None
        self.turns = 0

    @contextmanager
    def browse(self) -> Iterator[Page]:
        with self._pool.page(None, self._connections, self._turn, lambda: None) as page:
            self._page = page
            yield page

    def login(self, submit: Callable[[Credentials], Credentials]) -> None:
        assert self._page is not None
        with self._page.posts_by(self._post):
            super().login(submit)

    def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> requests.Response:
        return self.request("POST", url, headers=headers, data=body)

    def _turn(self) -> None:
        self.turns += 1
