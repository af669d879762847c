"""The pool: browser contexts of the supervised Chrome, one a crawl, each disposed when its crawl ends.

`tend` (a thread of the worker) watches Chrome: after RECYCLE_JOBS crawls or RECYCLE_AGE_S, or when something did not let
itself be cleaned up, nothing new begins, and once the last context has gone Chrome is started afresh. While its memory
runs out nothing new begins either. A worker that dies takes its contexts along (they end with its connection).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from selenium.webdriver.remote.webdriver import WebDriver

from crawlfleet import metrics
from crawlfleet.browser.cdp import Cdp, CdpFailed
from crawlfleet.browser.chrome import Chrome
from crawlfleet.browser.context import Context, dispose, open_context
from crawlfleet.browser.health import Status
from crawlfleet.browser.keyhole import Keyhole
from crawlfleet.browser.page import Page, attach, quit_session, sessions, verdicts
from crawlfleet.errors import ChromeUnusable, Interrupted
from crawlfleet.sources.http import Connections

RECYCLE_JOBS = 200
RECYCLE_AGE_S = 3600.0
FULL = 0.8
"""Above this part of its limit Chrome's memory is full."""
UNUSABLE_S = 60.0
AGAIN_S = 1.0


class Pool:
    """One Chrome's contexts. `tend` is called about once a second, `page` by the threads that crawl."""

    def __init__(
        self,
        chrome: Chrome,
        *,
        recycle_jobs: int = RECYCLE_JOBS,
        recycle_age_s: float = RECYCLE_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chrome = chrome
        self._recycle_jobs = recycle_jobs
        self._recycle_age_s = recycle_age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._restarts: Mapping[str, int] = {}
        self._spent = 0
        self._cdp: Cdp | None = None
        self._open = 0
        self._jobs = 0
        self._soiled = False
        self._recycling = False
        self._able_at = clock()

    def __repr__(self) -> str:
        state = "recycling" if self._recycling else "able" if self.is_able else "unable"
        return f"<Pool {state}: {self._open} open, {self._jobs} jobs>"

    @property
    def is_able(self) -> bool:
        """Whether a crawl may begin now."""
        status, cdp = self._status, self._cdp
        return (
            status is not None
            and status.ready
            and cdp is not None
            and not cdp.is_lost
            and not self._recycling
            and not _is_full(status)
        )

    def is_unusable(self) -> bool:
        """Whether Chrome has been away for so long that it will not come back by itself."""
        return self._clock() - self._able_at > UNUSABLE_S

    def tend(self) -> None:
        """Look at Chrome, connect to a new one, recycle one that is due."""
        status = self._chrome.status()
        self._see(status)
        if status is None or not status.ready:
            return
        if status.generation == self._spent:  # it was not heard
            self._chrome.recycle(self._spent)
            return
        if self._cdp is None or self._cdp.is_lost:
            self._connect(status)
        with self._lock:
            self._recycling = self._recycling or self._is_due(status)
            recycle_now = self._recycling and self._open == 0
        if recycle_now:
            self._recycle(status)
        elif self._cdp is not None:
            self._able_at = self._clock()

    def start(self, wait: Callable[[float], object]) -> None:
        """Wait until Chrome is there. One that an earlier worker has used is started afresh. Raises ChromeUnusable."""
        while not self.is_able and not self.is_unusable():
            self.tend()
            if self._status is not None and self._is_used(self._status):
                self._recycle(self._status)
            wait(0.1)
        if not self.is_able:
            raise ChromeUnusable(f"Chrome is not usable: {self.why()}")

    def why(self) -> str:
        """Why no crawl may begin, for a person."""
        status = self._status
        if status is None and self._spent:
            return "it is being started afresh"
        if status is None:
            url = self._chrome.url
            return f"nobody answers at {url}; does `crawlfleet chrome` run beside this worker (CRAWLFLEET_CHROME_URL)?"
        if _is_full(status):
            return f"its memory is full ({status.memory_mb:.0f} of {status.limit_mb} MB); give it more"
        return "it is being started afresh" if status.ready else status.why

    @contextmanager
    def page(
        self, proxy: str | None, connections: Connections, turn: Callable[[], None], check: Callable[[], None]
    ) -> Iterator[Page]:
        """A page in a context of its own. Raises Interrupted if there is none just now, Crashed if Chrome fails."""
        cdp, status = self._begin()
        try:
            with verdicts(check):
                context = open_context(cdp, proxy, check)
            with self._attached(cdp, status, context, connections, check) as driver:
                yield Page(driver, cdp, context, turn=turn, check=check)
        finally:
            self._end()

    def close(self) -> None:
        """Hang up: whatever is open is disposed by Chrome."""
        if self._cdp is not None:
            self._cdp.close()

    def _begin(self) -> tuple[Cdp, Status]:
        with self._lock:
            if not self.is_able or self._cdp is None or self._status is None:
                raise Interrupted("BrowserUnavailable", f"Chrome: {self.why()}", retry_after_s=AGAIN_S)
            self._open += 1
            self._jobs += 1
            return self._cdp, self._status

    def _end(self) -> None:
        with self._lock:
            self._open -= 1

    @contextmanager
    def _attached(
        self, cdp: Cdp, status: Status, context: Context, connections: Connections, check: Callable[[], None]
    ) -> Iterator[WebDriver]:
        """Selenium on the context. At the end the context goes first: a hung page would hold up everything else."""
        driver: WebDriver | None = None
        with ExitStack() as opened:
            try:
                with verdicts(check):
                    keyhole = opened.enter_context(Keyhole(cdp, context.context, context.target))
                    driver = attach(status.webdriver, keyhole.address, context, connections)
                yield driver
            finally:
                disposed = dispose(cdp, context.context)
                cdp.forget(context.session)
                is_clean = driver is not None and quit_session(status.webdriver, driver) and disposed
                # A crawl of a Chrome that was replaced meanwhile says nothing of the new one.
                with self._lock:
                    self._soiled |= cdp is self._cdp and not is_clean

    def _is_used(self, status: Status) -> bool:
        """Whether an earlier worker has left something behind."""
        if self._cdp is None:
            return False
        try:
            contexts = self._cdp.call("Target.getBrowserContexts")["browserContextIds"]
            return bool(contexts or sessions(status.webdriver))
        except CdpFailed:
            return False

    # What `tend` does.

    def _see(self, status: Status | None) -> None:
        self._status = status
        metrics.BROWSER_CONTEXTS.set(self._open)
        if status is None:
            return
        metrics.BROWSER_MEMORY.set(status.memory_mb * 2**20)
        metrics.BROWSER_LAUNCH.set(status.launch_s)
        for reason, count in status.restarts.items():
            metrics.BROWSER_RESTARTS.labels(reason).inc(max(0, count - self._restarts.get(reason, 0)))
        self._restarts = status.restarts

    def _connect(self, status: Status) -> None:
        try:
            fresh = Cdp(status.cdp)
        except CdpFailed:
            return  # it has just gone; the next look tells
        with self._lock:
            self._cdp, self._jobs, self._soiled, self._recycling = fresh, 0, False, False

    def _is_due(self, status: Status) -> bool:
        return (
            self._soiled
            or self._jobs >= self._recycle_jobs
            or status.age_s >= self._recycle_age_s
            or (_is_full(status) and self._open == 0)
        )

    def _recycle(self, status: Status) -> None:
        if self._cdp is not None:
            self._cdp.close()
        self._cdp = self._status = None
        self._spent = status.generation
        self._chrome.recycle(status.generation)


def _is_full(status: Status) -> bool:
    return status.limit_mb is not None and status.memory_mb > FULL * status.limit_mb
