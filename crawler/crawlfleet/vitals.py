"""Is this worker still allowed to work? The heartbeat asks the database, the watchdog the clock.

The heartbeat renews permits each tick and reads the control row each second, on its own connection. The watchdog does no
I/O: it ends crawls at their deadlines, and the process if renewals stay away, whatever hangs elsewhere.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection
from random import Random

import psycopg

from crawlfleet import metrics
from crawlfleet.crawl import Source, cooling_down
from crawlfleet.errors import STOPPED_ITSELF, DatabaseUnavailable, Interrupted
from crawlfleet.leases import Leases
from crawlfleet.slots import Exits
from crawlfleet.store import fleet
from crawlfleet.store.connection import Connection, Reconnecting, first_line
from crawlfleet.store.fleet import Clock, Control
from crawlfleet.tokens import PendingStores

log = logging.getLogger(__name__)

CONTROL_S = 1.0
WATCHDOG_S = 0.1
GIVE_UP_S = 15.0
"""A crawl that goes on that long after it was ended is hung in code of its own."""
LEAVE_S = 3.0
"""How long the loop may take to notice that it has to end."""


class Vitals:
    """`control`, `lost` and `hung` are written here and read by the loop; `wake` tells it to look."""

    def __init__(
        self,
        worker_id: int,
        leases: Leases,
        exits: Exits,
        sources: dict[int, Source],
        fleet_clock: Clock,
        *,
        clock: Callable[[], float],
        random: Random,
        renewed_at: float,
        wake: Callable[[], None],
        unable: Callable[[], Collection[int]],
        pending: PendingStores,
    ) -> None:
        self._worker_id = worker_id
        self._leases = leases
        self._exits = exits
        self._sources = sources
        self._fleet_clock = fleet_clock
        self._clock = clock
        self._random = random
        self._wake = wake
        self._unable = unable
        self._pending = pending
        self._renewed_at = renewed_at
        self._drain_until = float("inf")
        self.control: Control | None = None
        self.lost = False
        self.hung = False
        self.done = threading.Event()

    @property
    def stop_at(self) -> float:
        """Until when a crawl that begins now may send."""
        return self._renewed_at + self._fleet_clock.stop_after_s

    def is_well(self) -> bool:
        """Whether renewals get through."""
        return not self.lost and self._clock() < self.stop_at

    def drain(self, seconds: float) -> None:
        """Crawls that take longer than that are interrupted. Safe in a signal handler."""
        self._drain_until = self._clock() + seconds

    def heartbeat(self, database_url: str) -> None:
        """The heartbeat's thread."""
        pause_s = min(CONTROL_S, self._fleet_clock.tick_s)
        renew_at = 0.0
        with Reconnecting(database_url, "crawlfleet heartbeat") as connection:
            while not self.done.is_set():
                try:
                    if self._clock() >= renew_at:
                        renew_at = self._clock() + self._fleet_clock.tick_s
                        self._renew(connection())
                    self._read_control(connection())
                except (psycopg.Error, DatabaseUnavailable) as exc:
                    metrics.DATABASE_ERRORS.labels("heartbeat").inc()
                    log.warning("heartbeat failed", extra={"error": first_line(exc)})
                    renew_at = 0.0
                self.done.wait(pause_s * self._random.uniform(0.8, 1.0))

    def watchdog(self) -> None:
        """The watchdog's thread."""
        while not self.done.wait(WATCHDOG_S):
            try:
                self._watch()
            except Exception:
                log.exception("the watchdog failed")
                self._lose("the watchdog failed")
            if self.lost:
                self._leave()

    def _watch(self) -> None:
        self._enforce_deadlines()
        if self._clock() > self._drain_until:
            self._leases.abort(Interrupted("Drained", "the worker had to stop and this crawl took too long"))
        if self._clock() >= self.stop_at:
            self._lose("permits could not be renewed in time")

    def _renew(self, conn: Connection) -> None:
        sent_at = self._clock()
        renewed = fleet.renew(conn, self._worker_id, self._leases.held(), unable=self._unable())
        if renewed is None:
            self._lose("the registration was ended by the fleet")
            return
        self._renewed_at = sent_at
        metrics.LAST_RENEWAL.set_to_current_time()
        self._leases.extend(renewed, self.stop_at)
        self._exits.read(conn)

    def _read_control(self, conn: Connection) -> None:
        control = fleet.read_control(conn, self._worker_id)
        if control is None or control.ended:
            self._lose("the registration is gone")
            return
        before, self.control = self.control, control
        if control.stop == "cancel":
            self._leases.abort(Interrupted("Cancelled", "the batch was cancelled"))
        if before:
            self._count_cuts(before, control)
        for crawl in self._leases.crawls():
            if crawl.lease.cut < control.cuts.get(crawl.lease.egress_id, 0):
                crawl.abort(cooling_down())  # some wait for a turn that was reserved before the cut

    def _count_cuts(self, before: Control, control: Control) -> None:
        for egress_id, cut in control.cuts.items():
            source = self._sources.get(self._exits.source_of(egress_id) or 0)
            if source and cut > before.cuts.get(egress_id, cut):
                metrics.CUTS.labels(source.name).inc()

    def _enforce_deadlines(self) -> None:
        for crawl in self._leases.crawls():
            crawl.enforce()
            if crawl.overdue_s() > GIVE_UP_S and not self.hung:
                self.hung = True
                log.error(
                    "a crawl does not end; this worker takes no more", extra={"lease": crawl.lease.lease_id}
                )

    def _lose(self, why: str) -> None:
        """This registration is over: nothing may be sent any more."""
        if not self.lost:
            log.error("worker stops itself", extra={"reason": why})
        self.lost = True
        self._leases.abort(Interrupted("RenewalLost", why))
        self._wake()

    def _leave(self) -> None:
        """Exit even if the loop hangs in the database; but not over a token that is not stored yet."""
        leave_at = self._clock() + LEAVE_S
        while not self.done.wait(WATCHDOG_S):
            self._enforce_deadlines()
            if self._clock() >= leave_at and not len(self._pending):
                os._exit(STOPPED_ITSELF)
