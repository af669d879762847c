"""Sources are plug-ins: one adapter class each, found by entry point (group `crawlfleet.sources`).

An adapter turns one account into items. It knows nothing of permits, tasks or the database: the
`Crawl` it is handed sends its requests at the egress's pace, stops it at its deadline and keeps its
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import requests

from crawlfleet.errors import BadInput, CrawlEnded

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver  # half a second, and most processes need none

Credentials = dict[str, Any]

KST = timezone(timedelta(hours=9), "KST")
"""The zone of platforms, and of times in credentials and account files that name none."""


@dataclass(frozen=True)
class Item:
    """One collected record. `external_id` is unique per (user, source, kind); `body` is JSON."""

    kind: str
    external_id: str
    body: Mapping[str, Any]


class Page(Protocol):
    """One page of a real browser, in a context that nobody else sees: Seoul's time, Korean, no images."""

    driver: WebDriver
    """Ordinary Selenium on the page's one window. What it raises is no verdict yet: prefer the methods."""

    def go(self, url: str) -> None:
        """Navigate, at the egress's pace. Returns when the document is there; its scripts may still draw."""

    def press(self, css: str) -> None:
        """Click what the selector finds, at the egress's pace. Bug if there is nothing."""

    def read(self, script: str, *arguments: Any) -> Any:
        """What a script returns. Read a whole page with one."""

    def settle(self, script: str, *arguments: Any, within_s: float) -> Any:
        """The first true value that the script returns, asked again and again inside the page; None if there was none.

        Retry with reason `PageLeft` if the page goes elsewhere meanwhile.
        """

    def set_cookie(self, url: str, name: str, value: str) -> None:
        """Set a cookie before the first visit."""

    def delete_cookie(self, url: str, name: str) -> None:
        """Forget a cookie."""

    def cookie(self, name: str) -> str | None:
        """A cookie of the present page."""

    def answers(self) -> list[int | CrawlEnded]:
        """What became of each post since the login began: the status of its reply, the verdict that it failed with, or 0 while
        there is neither. Asked for it the page posts nothing more, unless the login succeeds."""

    def likeness(self) -> tuple[str, bytes]:
        """The page as HTML and as a JPEG for a `Bug`, its words and figures made unreadable first. It is of no use after."""


class Crawl(Protocol):
    """What an adapter may use while it crawls one account. Implemented by `crawl.py`."""

    user_id: int
    source: str
    base_url: str | None
    """From the CrawlSource, may hold `{mall_id}`; None means the adapter's official address."""

    @property
    def credentials(self) -> Credentials:
        """The account's decrypted credentials; after `refresh` the new ones."""

    def now(self) -> datetime:
        """The current time, with a zone."""

    def wait(self, seconds: float) -> None:
        """Sleep; ends the crawl at once if it has to stop meanwhile."""

    def spare_account(self, seconds: float) -> None:
        """The shop wants no request of this account for so long: its next crawl begins later, however this one ends."""

    def request(self, method: str, url: str, **kwargs: Any) -> requests.Response:
        """Send one request at the egress's pace. Keyword arguments as of `requests.request`.

        The reply is streamed (`response.raw` is not read yet), at most `MAX_BODY_BYTES` of it can be
        read. Any status is returned, redirects are not followed. Transport errors, time-outs and a
        refusing proxy are raised as the verdict they mean. Close the response (`with`).
        """

    def browse(self) -> AbstractContextManager[Page]:
        """A page of a real browser, leaving by the account's egress. One at a time; only if `needs_browser`."""

    def login(self, submit: Callable[[Credentials], Credentials]) -> None:
        """Submit a password exactly once, whatever dies meanwhile, and keep the session it gives.

        `submit(credentials)` submits it and returns the credentials with the new session; AuthFailed if it was refused.
        Anything else that it raises leaves open whether the password was seen, unless it is `never_sent`: then the
        account waits for a person (reason LoginInterrupted). Meanwhile a page can post once to each address, no more.
        """

    def refresh(self, post: Callable[[Credentials], Credentials]) -> None:
        """Rotate the account's tokens exactly once, whatever dies meanwhile (`tokens.py`).

        `post(credentials)` sends the one refresh request and returns the complete new credentials; it
        raises AuthFailed if the shop refuses the token, another verdict if nothing was learned.
        """


class Adapter(Protocol):
    """One source's way of crawling. Built once per process from the CrawlSource's `options`."""

    official_url: ClassVar[str | None]
    """Where it crawls without a `base_url`, may hold `{mall_id}`; None if it has no such address.

    It names the platform: two sources that crawl one address through one IP are refused.
    """
    needs_browser: ClassVar[bool]
    """Whether `crawl` may ask for a page: then a Chrome runs beside each worker."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Raises BadInput, naming the option, for unknown or wrong ones."""

    def check_credentials(self, credentials: Credentials) -> None:
        """Raises BadInput, naming the field but never its value, if an account cannot work."""

    def crawl(self, crawl: Crawl) -> Iterator[Item]:
        """Yield every item of the account; end by returning, or raise a verdict of `errors`.

        Items are written while the crawl goes on, so do not collect them first.
        """


def adapter_names() -> list[str]:
    """The names of all installed adapters, sorted."""
    return sorted(e.name for e in entry_points(group="crawlfleet.sources"))


@cache
def load_adapter(name: str) -> type[Adapter]:
    """The adapter class of that entry point; BadInput with the installed names if there is none.

    To look for it reads a file of every installed package: once a process.
    """
    for entry in entry_points(group="crawlfleet.sources"):
        if entry.name == name:
            loaded: type[Adapter] = entry.load()
            return loaded
    raise BadInput(f"unknown adapter {name!r}; installed: {', '.join(adapter_names())}")


def needs_browser(name: str) -> bool:
    """Whether the adapter of that entry point crawls with a browser; not if there is no such adapter."""
    try:
        return bool(getattr(load_adapter(name), "needs_browser", False))
    except BadInput:
        return False
