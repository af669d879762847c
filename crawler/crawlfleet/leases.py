"""What one process holds: every lease from its take to its commit, every crawl while it runs. Thread-safe."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable

from crawlfleet.crawl import LiveCrawl
from crawlfleet.errors import CrawlEnded
from crawlfleet.store.turn import Lease


class Leases:
    """The loop adds and forgets leases, slots begin and end crawls, the heartbeat and the watchdog look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, Lease] = {}
        self._running: dict[int, LiveCrawl] = {}

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)

    def add(self, taken: Iterable[Lease]) -> None:
        """These were taken: from now on they are renewed."""
        with self._lock:
            self._held |= {lease.lease_id: lease for lease in taken}

    def forget(self, lease_ids: Iterable[int]) -> None:
        """These were committed, or are somebody else's now."""
        with self._lock:
            for lease_id in lease_ids:
                self._held.pop(lease_id, None)

    def held(self) -> list[Lease]:
        """All leases: those that are crawled, and those whose crawl waits for its commit."""
        with self._lock:
            return list(self._held.values())

    def begin(self, crawl: LiveCrawl) -> int:
        """A crawl begins; returns how many run now."""
        with self._lock:
            self._running[crawl.lease.lease_id] = crawl
            return len(self._running)

    def end(self, crawl: LiveCrawl) -> None:
        """A crawl has ended; its lease is held until the commit."""
        with self._lock:
            del self._running[crawl.lease.lease_id]

    def crawls(self) -> list[LiveCrawl]:
        """The crawls under way."""
        with self._lock:
            return list(self._running.values())

    def extend(self, renewed: Collection[int], stop_at: float) -> None:
        """The permits of these leases were renewed: their crawls may send until `stop_at`."""
        for crawl in self.crawls():
            if crawl.lease.lease_id in renewed:
                crawl.extend(stop_at)

    def abort(self, ending: CrawlEnded, *, but: Collection[int] = ()) -> None:
        """End every crawl, except those of the leases in `but`."""
        for crawl in self.crawls():
            if crawl.lease.lease_id not in but:
                crawl.abort(ending)
