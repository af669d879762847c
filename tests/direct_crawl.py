"""A `Crawl` for tests of adapters: real requests, no fleet around it, and a clock that only moves by waiting."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any

import requests

from crawlfleet.sources import Credentials, Page
from crawlfleet.sources.http import CheckedBody, Connections, open_session, verdicts

NOON = datetime.fromisoformat("2026-03-10T12:00:00+09:00")


class DirectCrawl:
    """Sends at once, keeps tokens in `credentials`, and records `waits` instead of sleeping."""

    def __init__(self, base_url: str | None, credentials: Credentials, now: datetime = NOON) -> None:
        self.user_id = 17
        self.source = "test"
        self.base_url = base_url
        self.credentials = credentials
        self.waits: list[float] = []
        self.spared_s = 0.0
        self._now = now
        self._connections = Connections()
        self._session = open_session(self._connections, None)

    def now(self) -> datetime:
        return self._now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._now += timedelta(seconds=seconds)

    def spare_account(self, seconds: float) -> None:
        self.spared_s = seconds

    def request(self, method: str, url: str, **kwargs: Any) -> requests.Response:
        with verdicts(_go_on):
            response = self._session.request(
                method, url, stream=True, allow_redirects=False, timeout=10, **kwargs
            )
        response.raw = CheckedBody(response.raw, _go_on)
        return response

    def browse(self) -> AbstractContextManager[Page]:
        raise AssertionError("this adapter was not to ask for a page")

    def login(self, submit: Callable[[Credentials], Credentials]) -> None:
        self.credentials = submit(dict(self.credentials))

    def refresh(self, post: Callable[[Credentials], Credentials]) -> None:
        self.credentials = post(dict(self.credentials))

    def close(self) -> None:
        self._session.close()
        self._connections.close()


def _go_on() -> None:
    """Nothing stops this crawl."""
