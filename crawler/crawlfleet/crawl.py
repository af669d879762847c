"""One crawl under way: what an adapter may use (`sources.Crawl`), and how the worker ends it.

Every request first asks whether it may be sent (deadlines, on CLOCK_BOOTTIME, which counts a suspended host),
then reserves its turn at the egress. `abort` ends a crawl from another thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from json import dumps
from typing import TYPE_CHECKING, Any

import psycopg
import requests
from psycopg_pool import PoolTimeout

from crawlfleet.errors import Bug, CrawlEnded, Interrupted, Retry, Throttled
from crawlfleet.metrics import PACE_SECONDS
from crawlfleet.sources import Adapter, Credentials, Item, Page
from crawlfleet.sources.http import (
    CONNECT_S,
    READ_S,
    CheckedBody,
    Connections,
    open_session,
    proxy_refused,
    verdicts,
)
from crawlfleet.store import turn
from crawlfleet.store.connection import transaction
from crawlfleet.store.sources import Settings
from crawlfleet.store.turn import Lease, Row
from crawlfleet.tokens import POST_S, Tokens
from crawlfleet.tokens import Connections as Database

if TYPE_CHECKING:
    # They import Selenium, which a worker without a browser need not have.
    from crawlfleet.browser.page import Page as BrowserPage
    from crawlfleet.browser.pool import Pool

log = logging.getLogger(__name__)


STALE_TURN_S = 1.0
"""A turn reserved that long ago was for another moment: the refresh had to outwait somebody."""


def boottime() -> float:
    """Seconds since boot, a suspension included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Source:
    """A source of the batch: its settings and its adapter, built once."""

    source_id: int
    name: str
    settings: Settings
    adapter: Adapter

    @property
    def needs_browser(self) -> bool:
        """Whether its crawls may ask for a page; a plug-in that does not say so has none."""
        return getattr(self.adapter, "needs_browser", False)


@dataclass(frozen=True)
class Exit:
    """How a crawl's requests leave: `proxy` is an opened URL, None for direct."""

    egress_id: int
    source_id: int
    proxy: str | None = field(repr=False)


class LiveCrawl:
    """Implements `sources.Crawl`. Used by its own thread, `_post` by those of its page; `abort` and `extend` by the worker's."""

    def __init__(
        self,
        lease: Lease,
        source: Source,
        tokens: Tokens,
        way_out: Exit,
        database: Database,
        browsers: Pool | None,
        *,
        stop_at: float,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self.lease = lease
        self.user_id = lease.user_id
        self.source = source.name
        self.base_url = source.settings.base_url
        self.account_wait_s = 0.0
        self.tokens = tokens
        self._exit = way_out
        self._database = database
        self._browsers = browsers
        self._page: BrowserPage | None = None
        self._clock = clock
        self.began_at = clock()
        self._deadline = self.began_at + source.settings.job_timeout_s
        self._stop_at = stop_at
        self._ending: CrawlEnded | None = None
        self._wake = threading.Event()
        self._connections = Connections()
        self._session: requests.Session | None = None
        self._refreshing_until: float | None = None
        self._turn_at = 0.0

    # What the adapter uses.

    @property
    def credentials(self) -> Credentials:
        return self.tokens.credentials

    def now(self) -> datetime:
        return datetime.now(UTC)

    def wait(self, seconds: float) -> None:
        self._wake.wait(max(0.0, seconds))
        self.check()

    def spare_account(self, seconds: float) -> None:
        self.account_wait_s = seconds

    @contextmanager
    def browse(self) -> Iterator[Page]:
        self.check()
        if self._browsers is None:
            raise Bug("NoBrowser", "an adapter that asks for a page must say `needs_browser`")
        with self._browsers.page(self._exit.proxy, self._connections, self._await_turn, self.check) as page:
            self._page = page
            try:
                yield page
            finally:
                self._page = None

    def login(self, submit: Callable[[Credentials], Credentials]) -> None:
        with self._page.posts_by(self._post) if self._page else nullcontext():
            self._exchange(self.tokens.login, submit)

    def request(self, method: str, url: str, **kwargs: Any) -> requests.Response:
        self._await_turn()
        if self._session is None:
            self._session = open_session(self._connections, self._exit.proxy)
        return self._send(self._session, method, url, **kwargs)

    def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> requests.Response:
        """For a page that logs in, in a thread and a session of its own. The turn was taken before the page was told to."""
        self.check()
        with open_session(self._connections, self._exit.proxy) as session:
            response = self._send(session, "POST", url, headers=headers, data=body)
            response.content  # noqa: B018  read, while the session is open
            return response

    def _send(self, session: requests.Session, method: str, url: str, **kwargs: Any) -> requests.Response:
        with verdicts(self.check):
            response = session.request(
                method, url, stream=True, allow_redirects=False, timeout=(CONNECT_S, READ_S), **kwargs
            )
        if response.status_code == 407 and self._exit.proxy is not None:
            response.close()
            raise proxy_refused()
        response.raw = CheckedBody(response.raw, self.check)
        return response

    def refresh(self, post: Callable[[Credentials], Credentials]) -> None:
        self._exchange(self.tokens.refresh, post)

    # What the worker uses.

    def check(self) -> None:
        """Raise if this crawl must not go on."""
        if self._refreshing_until is not None:
            if self._clock() >= self._refreshing_until:
                raise Retry("RefreshTimeout", f"the shop took longer than {POST_S:.0f} s to refresh a token")
            return
        self.enforce()
        if self._ending is not None:
            raise self._ending

    def extend(self, stop_at: float) -> None:
        """The permit was renewed: requests may be sent until then."""
        self._stop_at = max(self._stop_at, stop_at)

    def enforce(self) -> None:
        """End the crawl if a deadline has passed. Called by the watchdog, so that a blocked read ends too."""
        now, ending, refreshing_until = self._clock(), self._ending, self._refreshing_until  # in this order
        if refreshing_until is not None:
            if now >= refreshing_until:
                self._connections.shut()
        elif now >= self._stop_at:
            self.abort(Interrupted("RenewalLost", "the permit could not be renewed in time"))
        elif now >= self._deadline:
            limit_s = self._deadline - self.began_at
            self.abort(
                Retry("Deadline", f"the crawl took longer than its {limit_s:.0f} s (jobTimeoutSeconds)")
            )
        elif ending is not None:
            self._connections.shut()

    def abort(self, ending: CrawlEnded) -> None:
        """End the crawl now. A refresh POST under way ends first: its reply must not be lost."""
        if self._ending is None:
            self._ending = ending
        self._wake.set()
        if self._refreshing_until is None:
            self._connections.shut()

    def close(self) -> None:
        """Close what is open; the crawl's own thread, at its end. A page's post that is still out ends."""
        self._connections.shut()
        if self._session is not None:
            self._session.close()
        self._connections.close()

    def overdue_s(self) -> float:
        """How long ago this crawl should have ended; 0 if it need not yet."""
        return max(
            0.0, self._clock() - max(min(self._deadline, self._stop_at), self._refreshing_until or 0.0)
        )

    def _exchange(
        self,
        renew: Callable[[Callable[[Credentials], Credentials], Callable[[float], None]], None],
        post: Callable[[Credentials], Credentials],
    ) -> None:
        self.check()
        self._reserve_turn()  # before the intent: a wait or a lost database must not look like a lost reply
        renew(lambda credentials: self._uninterrupted(post, credentials), self.wait)
        self.check()

    def _uninterrupted(
        self, post: Callable[[Credentials], Credentials], credentials: Credentials
    ) -> Credentials:
        self._refreshing_until = self._clock() + POST_S
        try:
            # Asked after it was said, and `abort` the other way round: one of the two notices the other.
            if self._ending is not None or self._clock() >= min(self._stop_at, self._deadline):
                raise Interrupted(
                    "NotSent", "the worker had to stop before the refresh was sent", never_sent=True
                )
            return post(credentials)
        finally:
            self._refreshing_until = None

    def _await_turn(self) -> None:
        self.check()
        if self._refreshing_until is None or self._clock() - self._turn_at > STALE_TURN_S:
            self._reserve_turn()
        self.check()

    def _reserve_turn(self) -> None:
        """Reserve this request's turn on the egress's row and wait for it.

        A thread that wakes late (its process was paused, the host is busy) reserves again: late requests
        of several crawls would otherwise leave at once.
        """
        while True:
            wait_s, gap_s = self._reserve()
            turn_at = self._turn_at = self._clock() + wait_s
            if wait_s > 0:
                PACE_SECONDS.labels(self.source).observe(wait_s)
                # A refresh under way is not woken by what ends the crawl: its POST would leave before its turn.
                (self._wake if self._refreshing_until is None else threading.Event()).wait(wait_s)
                self.check()
            if gap_s == 0 or self._clock() <= turn_at + min(max(gap_s / 2, 0.02), 0.05):
                return

    def _reserve(self) -> tuple[float, float]:
        try:
            with self._database() as conn, transaction(conn):
                reserved = turn.reserve(conn, self._exit.egress_id, self.lease.cut)
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as exc:
            # A verdict, so that a refresh whose POST waits here knows that its token was not used.
            raise Interrupted(
                "DatabaseLost", "the request's turn could not be reserved", never_sent=True
            ) from exc
        if reserved is None:
            raise cooling_down()
        return reserved


def cooling_down() -> Throttled:
    """The egress was cut: nothing was asked of the shop, and only this crawl is delayed."""
    return Throttled(
        "CoolingDown",
        "the egress was cut while this crawl was under way",
        retry_after_s=0.0,
        account_only=True,
        never_sent=True,
    )


def encode(item: Item) -> Row:
    """An item as it is stored. Raises Bug for what cannot be (a lone surrogate, a key with NUL, no JSON)."""
    try:
        body = dumps(item.body, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
        digest = blake2b(body.encode(), digest_size=16).digest()
        if "\x00" in (key := item.kind + item.external_id):
            raise ValueError("the driver refuses NUL before PostgreSQL can")
        key.encode()
    except (TypeError, ValueError) as exc:
        raise Bug(
            "BadRecord", f"a record of kind {item.kind!r} cannot be stored: {type(exc).__name__}"
        ) from None
    return Row(item.kind, item.external_id, digest, body)
